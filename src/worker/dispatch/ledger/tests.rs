use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::order::{self, Door};
use super::*;
use crate::domain::endpoint::ENDPOINTS;
use crate::upstream::{Acquired, History, Pool, RateRequest, Routes, testing};
use crate::worker::testing as units;
use crate::worker::work::unit::BatchContext;

/// Of the lanes of these tests.
const LIMIT: LaneLimit = LaneLimit {
    calls: 64,
    unspilled: 64,
    domain: 0,
};

/// A unit of one of a few tenants and batches.
fn unit(
    id: u64,
    tenant: u8,
    batch: u8,
    chunk_no: i64,
    lines: u32,
) -> (Arc<LoadedUnit>, Vec<OpenLine>) {
    let context = BatchContext {
        id: format!("batch-{tenant}-{batch}").into(),
        tenant: format!("tenant-{tenant}").into(),
        key_id: Arc::default(),
        endpoint: &ENDPOINTS[0],
        task: None,
        file_id: Arc::default(),
        reuse: None,
        details: false,
        priority: 0,
        deadline: i64::MAX,
        created_at: 0,
        total: i64::MAX,
        number: u64::from(batch),
    };
    let mut leased = units::leased(lines, 0, None);
    leased.lease.key.batch_id = context.id.to_string();
    leased.lease.key.chunk_no = chunk_no;
    leased.lease.epoch = i64::try_from(id).expect("is small");
    units::unit_on(id, Arc::new(context), leased)
}

fn due(at: Instant) -> Due {
    Due { at, soonest: None }
}

/// Where the model has a line.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Fresh,
    Retry,
    Waiting(Instant),
    /// Finished, taken out, or released.
    Gone,
}

/// What the model knows of a unit: every line by its own, and nothing counted.
struct Unit {
    unit: Arc<LoadedUnit>,
    /// `None`: its lines are not sent.
    lane: Option<LaneId>,
    lines: Vec<At>,
    /// Lines in flight count for tenant and batch even when the unit is not in hand any more, and
    /// for the lane by which they were sent. Whether a line has spilled stands beside it.
    in_flight: Vec<(Pending, Counted, Option<LaneId>, bool)>,
    is_in_hand: bool,
    end_reason: Option<EndReason>,
}

impl Unit {
    fn count(&self, is: impl Fn(At) -> bool) -> usize {
        self.lines.iter().filter(|line| is(**line)).count()
    }

    fn resting(&self) -> Resting {
        Resting {
            fresh: self.count(|line| line == At::Fresh),
            retries: self.count(|line| line == At::Retry),
            waiting: self.count(|line| matches!(line, At::Waiting(_))),
        }
    }

    fn tenant(&self) -> &str {
        &self.unit.batch.tenant
    }

    fn batch(&self) -> &str {
        &self.unit.batch.id
    }

    fn lose_resting(&mut self) {
        self.lines.fill(At::Gone);
    }
}

/// A second ledger, which has every line in a list and counts nothing. It shares no code with the
/// ledger.
#[derive(Default)]
struct Model {
    units: BTreeMap<u64, Unit>,
    leases: BTreeSet<UnitLease>,
}

impl Model {
    fn in_hand(&self) -> impl Iterator<Item = &Unit> {
        self.units.values().filter(|unit| unit.is_in_hand)
    }

    /// Adds up what `of` says of the units in hand that `which` names.
    fn sum(&self, which: impl Fn(&Unit) -> bool, of: impl Fn(&Unit) -> usize) -> usize {
        self.in_hand().filter(|unit| which(unit)).map(of).sum()
    }

    fn resting(&self, which: impl Fn(&Unit) -> bool) -> Resting {
        Resting {
            fresh: self.sum(&which, |unit| unit.resting().fresh),
            retries: self.sum(&which, |unit| unit.resting().retries),
            waiting: self.sum(&which, |unit| unit.resting().waiting),
        }
    }

    fn in_flight(&self, which: impl Fn(&Unit) -> bool) -> usize {
        let units = self.units.values().filter(|unit| which(unit));
        units.map(|unit| unit.in_flight.len()).sum()
    }

    /// Without the lines that have spilled.
    fn unspilled(&self, which: impl Fn(&Unit) -> bool) -> usize {
        let units = self.units.values().filter(|unit| which(unit));
        let lines = units.flat_map(|unit| &unit.in_flight);
        lines.filter(|(.., is_spilled)| !is_spilled).count()
    }

    /// A unit all of whose lines have ended is not in hand any more.
    fn remove_spent(&mut self) {
        for unit in self.units.values_mut() {
            let has_lines = unit.lines.iter().any(|line| *line != At::Gone);
            unit.is_in_hand &= has_lines || !unit.in_flight.is_empty();
        }
    }

    fn release(&mut self, id: u64) {
        if let Some(unit) = self.units.get_mut(&id)
            && unit.is_in_hand
        {
            unit.is_in_hand = false;
            unit.lose_resting();
            self.leases.remove(&unit.unit.lease);
        }
    }

    fn revoke(&mut self, lease: &UnitLease) {
        self.leases.remove(lease);
        let units = self.in_hand().filter(|unit| unit.unit.lease == *lease);
        for id in units.map(|unit| unit.unit.id).collect::<Vec<_>>() {
            self.release(id);
        }
    }

    /// Compares all that the ledger counts with the lists.
    fn compare(&self, ledger: &Ledger) {
        let ids: Vec<u64> = self.in_hand().map(|unit| unit.unit.id).collect();
        assert!(ledger.units().map(ActiveUnit::id).eq(ids), "units in hand");
        for unit in self.in_hand() {
            let active = ledger.unit(unit.unit.id).expect("is in hand");
            assert_eq!(active.resting(), unit.resting());
            assert_eq!(active.in_flight(), unit.in_flight.len());
        }
        assert_eq!(ledger.in_flight(), self.in_flight(|_| true));
        let leases: BTreeSet<UnitLease> = ledger.leases().collect();
        assert_eq!(leases, self.leases);

        let run_queues = ledger.run_queues();
        for (id, lane) in run_queues.lanes() {
            let in_flight = self.units.values().flat_map(|unit| &unit.in_flight);
            let in_flight = in_flight
                .filter(|(_, _, lane, _)| *lane == Some(id))
                .count();
            assert_eq!(lane.in_flight(), in_flight, "in flight in a lane");
            let resting = self.resting(|unit| unit.lane == Some(id)).all();
            assert_eq!(lane.in_hand(), in_flight + resting, "in hand in a lane");
        }
        let mut flows = BTreeSet::new();
        for (_, queue) in run_queues.queues() {
            let lane = queue.routes().lane;
            assert!(run_queues.lane(lane).is_some(), "a queue without a lane");
            let ready = self.resting(|unit| unit.lane == Some(lane)).ready();
            assert_eq!(queue.ready(), ready, "ready in a queue");
            for (_, flow) in queue.flows() {
                let tenant = run_queues.tenant(flow.tenant());
                let name = &**tenant.name();
                let is_of_flow = |unit: &Unit| unit.lane == Some(lane) && unit.tenant() == name;
                assert_eq!(flow.resting(), self.resting(is_of_flow), "a flow");
                for of_batch in flow.batches() {
                    let batch = &*run_queues.batch(of_batch.batch()).context().id;
                    let is_of_batch = |unit: &Unit| is_of_flow(unit) && unit.batch() == batch;
                    assert_eq!(of_batch.resting(), self.resting(is_of_batch), "a batch");
                    let ready = self.in_hand().filter(|unit| is_of_batch(unit));
                    let ready = ready.filter(|unit| unit.resting().ready() > 0);
                    let mut ready: Vec<(i64, u64)> = ready
                        .map(|unit| (unit.unit.lease.key.chunk_no, unit.unit.id))
                        .collect();
                    ready.sort_unstable();
                    let ready = ready.into_iter().map(|(_, id)| id);
                    assert!(of_batch.ready_units().eq(ready), "units that are ready");
                    flows.insert((lane, name.to_owned(), batch.to_owned()));
                }
            }
        }
        let of_units = self.in_hand().filter_map(|unit| {
            let (tenant, batch) = (unit.tenant().to_owned(), unit.batch().to_owned());
            Some((unit.lane?, tenant, batch))
        });
        assert_eq!(flows, of_units.collect(), "who is in the queues");
        for unit in self.units.values() {
            let of_tenant = run_queues.turn_of_tenant(unit.tenant(), LIMIT.domain);
            let unspilled = self.unspilled(|other| other.tenant() == unit.tenant());
            let parts = unspilled * run_queues::PARTS_OF_A_CALL;
            assert_eq!(of_tenant.in_flight, parts, "in flight of a tenant");
            let in_flight = self.in_flight(|other| other.tenant() == unit.tenant());
            let tenant = run_queues.tenant_named(unit.tenant());
            let calls = tenant.map(run_queues::Tenant::in_flight);
            assert_eq!(calls.unwrap_or(0), in_flight, "calls of a tenant");
            let of_batch = run_queues.turn_of_batch(unit.batch());
            let in_flight = self.unspilled(|other| other.batch() == unit.batch());
            assert_eq!(of_batch.in_flight, in_flight, "in flight of a batch");
        }
        let due = self.in_hand().flat_map(|unit| &unit.lines);
        let due = due.filter_map(|line| match line {
            At::Waiting(due) => Some(*due),
            _ => None,
        });
        if let Some(due) = due.min() {
            assert!(ledger.wake_at.is_some_and(|at| at <= due), "nobody wakes");
        }
    }
}

/// A transition, of a unit or line that an index picks.
#[derive(Clone, Copy, Debug)]
enum Step {
    AddLease,
    Admit,
    /// Of the lines to be sent again or of the others; whether the line spills.
    Start(bool, bool),
    Finish,
    Retry,
    Wake,
    Hasten,
    EndBatch,
    EndModel,
    Release,
    Revoke,
    RevokeUnit,
    RemoveLease,
    Reroute([Option<usize>; 2]),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::AddLease),
        2 => Just(Step::Admit),
        8 => any::<(bool, bool)>().prop_map(|(retry, spills)| Step::Start(retry, spills)),
        4 => Just(Step::Finish),
        4 => Just(Step::Retry),
        3 => Just(Step::Wake),
        1 => Just(Step::Hasten),
        1 => Just(Step::EndBatch),
        1 => Just(Step::EndModel),
        1 => Just(Step::Release),
        1 => Just(Step::Revoke),
        1 => Just(Step::RevokeUnit),
        1 => Just(Step::RemoveLease),
        1 => any::<[Option<bool>; 2]>().prop_map(|to| {
            Step::Reroute(to.map(|lane| lane.map(usize::from)))
        }),
    ]
}

/// The ledger and its model, side by side.
struct Both {
    ledger: Ledger,
    model: Model,
    routes: [Arc<Routes>; 2],
    now: Instant,
    next_id: u64,
}

/// What a unit is admitted with: tenant, batch, chunk, lines and lane.
type Admitted = (u8, u8, i64, u32, usize);

impl Both {
    fn new() -> Self {
        let pool = testing::pool(64, &[("a", None), ("b", Some(8))]);
        Self {
            ledger: Ledger::default(),
            model: Model::default(),
            routes: ["a", "b"].map(|model| pool.resolve(model).expect("is served")),
            now: Instant::now(),
            next_id: 0,
        }
    }

    fn next_unit(&mut self, of: Admitted) -> (Arc<LoadedUnit>, Vec<OpenLine>) {
        let (tenant, batch, chunk_no, lines, _) = of;
        self.next_id += 1;
        unit(self.next_id, tenant, batch, chunk_no, lines)
    }

    /// The store leases a unit. What this process had of it under another lease is lost.
    fn add_lease(&mut self, unit: &LoadedUnit) {
        self.ledger.add_lease(&unit.lease);
        let leases = self.model.leases.iter();
        let lost = leases.filter(|lease| lease.key == unit.lease.key);
        for lease in lost.cloned().collect::<Vec<_>>() {
            self.model.revoke(&lease);
        }
        self.model.leases.insert(unit.lease.clone());
    }

    fn admit(&mut self, of: Admitted) {
        let (unit, lines) = self.next_unit(of);
        self.add_lease(&unit);
        let routes = Arc::clone(&self.routes[of.4]);
        let in_model = Unit {
            unit: Arc::clone(&unit),
            lane: Some(routes.lane),
            lines: vec![At::Fresh; lines.len()],
            in_flight: Vec::new(),
            is_in_hand: true,
            end_reason: None,
        };
        self.model.units.insert(unit.id, in_model);
        self.ledger.admit(unit, Some(routes), lines, LIMIT);
    }

    fn start(&mut self, id: u64, ready: Ready, is_spilled: bool) {
        let Some(unit) = self.model.units.get_mut(&id) else {
            return;
        };
        let state = match ready {
            Ready::Fresh => At::Fresh,
            Ready::Retry => At::Retry,
        };
        let start = Start {
            is_spilled,
            ..Start::default()
        };
        let started = self.ledger.start(id, ready, start);
        let may_start = unit.is_in_hand && unit.lines.contains(&state);
        assert_eq!(started.is_some(), may_start, "whether a line is sent");
        if let Some((_, pending, counted)) = started {
            let line = &mut unit.lines[pending.line.index as usize];
            assert_eq!(*line, state, "which line is sent");
            *line = At::Gone;
            unit.in_flight
                .push((pending, counted, unit.lane, is_spilled));
        }
    }

    /// A line comes back, with its outcome or to be sent again.
    fn finish(&mut self, pick: usize, retry_after: Option<Duration>) {
        let in_flight = self.model.units.values_mut();
        let mut in_flight: Vec<&mut Unit> = in_flight
            .filter(|unit| !unit.in_flight.is_empty())
            .collect();
        if in_flight.is_empty() {
            return;
        }
        let pick_unit = pick % in_flight.len();
        let unit = &mut *in_flight[pick_unit];
        let picked = unit.in_flight.swap_remove(pick % unit.in_flight.len());
        let (pending, counted, ..) = picked;
        let took = retry_after.is_none().then_some(Duration::from_secs(1));
        self.ledger.finish(&unit.unit, counted, took);
        if let Some(after) = retry_after {
            if unit.is_in_hand {
                let line = pending.line.index as usize;
                unit.lines[line] = At::Waiting(self.now + after);
            }
            let due = due(self.now + after);
            self.ledger.retry_at(unit.unit.id, due, pending);
        }
        self.ledger.remove_if_spent(unit.unit.id);
    }

    fn step(&mut self, step: Step, which: Index, admitted: &[Admitted]) {
        self.now += Duration::from_millis(10);
        let ids: Vec<u64> = self.model.in_hand().map(|unit| unit.unit.id).collect();
        let id = ids.get(which.index(ids.len().max(1))).copied().unwrap_or(0);
        let unit = self.model.units.get(&id).map(|unit| unit.unit.clone());
        match (step, unit) {
            (Step::Admit, _) => self.admit(admitted[which.index(admitted.len())]),
            (Step::AddLease, _) => {
                let of = admitted[which.index(admitted.len())];
                let (unit, _) = self.next_unit(of);
                self.add_lease(&unit);
            }
            (Step::Start(true, spills), _) => self.start(id, Ready::Retry, spills),
            (Step::Start(false, spills), _) => self.start(id, Ready::Fresh, spills),
            (Step::Finish, _) => self.finish(which.index(1_000), None),
            (Step::Retry, _) => {
                let after = Duration::from_millis(which.index(200) as u64);
                self.finish(which.index(1_000), Some(after));
            }
            (Step::Wake, _) => {
                self.ledger.wake(self.now);
                let units = self.model.units.values_mut();
                for line in units.flat_map(|unit| &mut unit.lines) {
                    if matches!(line, At::Waiting(due) if *due <= self.now) {
                        *line = At::Retry;
                    }
                }
            }
            // No call has succeeded, so no line is due sooner.
            (Step::Hasten, _) => self.ledger.hasten(self.now),
            (Step::EndBatch, Some(unit)) => {
                let end_reason = EndReason::Cancelled;
                let taken = self.ledger.end_batch(&unit.batch.id, end_reason, self.now);
                self.end(taken, |other| {
                    let ends = other.batch() == &*unit.batch.id && other.end_reason.is_none();
                    if ends {
                        other.end_reason = Some(end_reason);
                    }
                    ends
                });
            }
            (Step::EndModel, Some(unit)) => {
                let taken = self.ledger.end_model(&unit.batch.id, 0);
                self.end(taken, |other| {
                    other.batch() == &*unit.batch.id && other.end_reason.is_none()
                });
            }
            (Step::Release, Some(unit)) => {
                let released = self.ledger.release(&[id]);
                assert_eq!(released, std::slice::from_ref(&unit.lease));
                self.model.release(id);
                self.model
                    .leases
                    .retain(|lease| lease.key != unit.lease.key);
            }
            (Step::Revoke, Some(unit)) => {
                self.ledger.revoke(std::slice::from_ref(&unit.lease));
                self.model.revoke(&unit.lease);
            }
            (Step::RevokeUnit, Some(unit)) => {
                self.ledger.revoke_unit(&unit);
                self.model.release(id);
            }
            (Step::RemoveLease, Some(unit)) => {
                self.ledger.remove_lease(&unit.lease);
                self.model.leases.remove(&unit.lease);
            }
            (Step::Reroute(to), _) => self.reroute(to),
            (_, None) => {}
        }
        self.model.remove_spent();
    }

    /// The lines of each lane go to another lane from now on, or are not sent any more.
    fn reroute(&mut self, to: [Option<usize>; 2]) {
        let lanes = self.routes.each_ref().map(|routes| routes.lane);
        let led = |lane: LaneId| {
            let from = lanes.iter().position(|one| *one == lane)?;
            Some(&self.routes[to[from]?])
        };
        self.ledger
            .reroute(|routes, _| led(routes.lane).cloned(), |_| LIMIT);
        for unit in self.model.units.values_mut() {
            if unit.is_in_hand {
                unit.lane = unit.lane.and_then(led).map(|routes| routes.lane);
            }
        }
    }

    /// Compares what a transition took out with what the model has, and takes it out there.
    fn end(&mut self, taken: Vec<Taken>, mut ends: impl FnMut(&mut Unit) -> bool) {
        let mut expected = 0;
        for unit in self.model.units.values_mut() {
            if unit.is_in_hand && ends(unit) {
                expected += unit.resting().all();
                unit.lose_resting();
            }
        }
        let taken: usize = taken.iter().map(|(_, lines)| lines.len()).sum();
        assert_eq!(taken, expected, "lines that get their outcome");
    }
}

proptest! {
    #[test]
    fn after_any_transitions_the_counts_are_those_of_a_recount(
        admitted in proptest::collection::vec(
            (0_u8..3, 0_u8..2, 0_i64..3, 1_u32..5, 0_usize..2),
            1..12,
        ),
        steps in proptest::collection::vec((step(), any::<Index>()), 0..150),
    ) {
        let mut both = Both::new();
        for &of in &admitted {
            both.admit(of);
            both.model.compare(&both.ledger);
        }
        for (step, which) in steps {
            both.step(step, which, &admitted);
            both.model.compare(&both.ledger);
        }
        both.ledger.revoke_all();
        let ids: Vec<u64> = both.model.units.keys().copied().collect();
        for id in ids { both.model.release(id); }
        both.model.leases.clear();
        both.model.compare(&both.ledger);
        let mut lines = both.model.in_flight(|_| true);
        while lines > 0 {
            both.finish(0, None);
            lines -= 1;
            both.model.compare(&both.ledger);
        }
        prop_assert_eq!(both.ledger.in_flight(), 0);
        prop_assert_eq!(both.ledger.run_queues().queues().count(), 0);
    }
}

#[test]
fn lines_of_any_unit_wake_when_they_are_due_and_not_before() {
    let pool = testing::pool(64, &[("a", None)]);
    let routes = pool.resolve("a").expect("is served");
    let mut ledger = Ledger::default();
    let begun = Instant::now();
    let after = |seconds| begun + Duration::from_secs(seconds);
    // Two lines of each unit; the unit that comes last has the line that is due first.
    for (id, seconds) in [(1, [40, 20]), (2, [30, 10])] {
        let (unit, lines) = unit(id, 0, 0, 0, 2);
        ledger.admit(unit, Some(Arc::clone(&routes)), lines, LIMIT);
        for seconds in seconds {
            let sent = ledger.start(id, Ready::Fresh, Start::default());
            let (unit, pending, counted) = sent.expect("is sent");
            ledger.finish(&unit, counted, None);
            ledger.retry_at(id, due(after(seconds)), pending);
        }
    }
    for (now, [of_one, of_two], next) in [
        (9, [0, 0], Some(10)),
        (10, [0, 1], Some(20)),
        (25, [1, 1], Some(30)),
        (40, [2, 2], None),
    ] {
        ledger.wake(after(now));
        let ready = |id| {
            let active = ledger.unit(id).expect("is in hand");
            active.resting().retries
        };
        assert_eq!((ready(1), ready(2)), (of_one, of_two), "after {now} s");
        assert_eq!(ledger.next_due(), next.map(after), "after {now} s");
    }
}

#[test]
fn a_line_in_flight_while_its_unit_is_rerouted_is_sent_again() {
    let pool = testing::pool(64, &[("a", None), ("b", None)]);
    let [a, b] = ["a", "b"].map(|model| pool.resolve(model).expect("is served"));
    let mut ledger = Ledger::default();
    let (unit, lines) = unit(1, 0, 0, 0, 1);
    ledger.admit(unit, Some(a), lines, LIMIT);
    let sent = ledger.start(1, Ready::Fresh, Start::default());
    let (unit, pending, counted) = sent.expect("is sent");
    ledger.reroute(|_, _| Some(Arc::clone(&b)), |_| LIMIT);
    let now = Instant::now();
    ledger.finish(&unit, counted, None);
    ledger.retry_at(1, due(now), pending);
    ledger.wake(now);
    let chosen = order::next(&mut ledger, 0, &Trial(pool)).expect("is sent again");
    assert_eq!(chosen.counted.lane, Some(b.lane));
}

#[test]
fn a_line_may_be_sent_in_a_domain_into_which_its_lane_has_come_since() {
    let pool = testing::pool(64, &[("a", None)]);
    let routes = pool.resolve("a").expect("is served");
    let other = LaneLimit { domain: 3, ..LIMIT };
    let mut ledger = Ledger::default();
    for (id, limit) in [(1, LIMIT), (2, other)] {
        let (unit, lines) = unit(id, id as u8, 0, 0, 1);
        ledger.admit(unit, Some(Arc::clone(&routes)), lines, limit);
    }
    let sent = ledger.start(1, Ready::Fresh, Start::default());
    let (sent, _, counted) = sent.expect("is sent");
    let turn = |ledger: &Ledger| ledger.run_queues().turn_of_tenant("tenant-1", 3).in_flight;
    assert_eq!(turn(&ledger), run_queues::PARTS_OF_A_CALL);
    let (later, lines) = unit(3, 1, 0, 1, 1);
    ledger.admit(later, Some(routes), lines, other);
    ledger.finish(&sent, counted, None);
    assert_eq!(turn(&ledger), 0);
}

#[test]
fn who_had_a_turn_is_remembered_without_anything_in_hand() {
    let pool = testing::pool(64, &[("a", None)]);
    let routes = pool.resolve("a").expect("is served");
    let mut ledger = Ledger::default();
    let (unit, lines) = unit(1, 0, 0, 0, 1);
    ledger.admit(unit, Some(routes), lines, LIMIT);
    let sent = ledger.start(1, Ready::Fresh, Start::default());
    let (unit, _, counted) = sent.expect("is sent");
    ledger.finish(&unit, counted, Some(Duration::ZERO));
    assert!(!ledger.remove_if_spent(1));
    let run_queues = ledger.run_queues();
    assert_eq!(run_queues.turn_of_tenant("tenant-0", 0).last, 1);
    assert_eq!(run_queues.turn_of_batch("batch-0-0").last, 1);
}

/// What can be sent of ten lines, with whose unit so many owners died, and of which the fourth was
/// recorded last.
fn sendable(owners: i64, act: impl FnOnce(&mut Ledger)) -> usize {
    let (unit, lines) = units::unit(10, owners, Some(3));
    let mut ledger = Ledger::default();
    ledger.admit(unit, None, lines, LIMIT);
    act(&mut ledger);
    ledger.unit(1).expect("is in hand").sendable()
}

#[test]
fn only_lines_that_may_be_on_their_way_count_as_work_in_hand() {
    let of = |owners| sendable(owners, |_| ());
    assert_eq!([0, 1, 2, 3].map(of), [10, 10, 8, 4]);
}

#[test]
fn while_a_suspect_waits_its_unit_is_no_work_in_hand() {
    let waits = sendable(3, |ledger| {
        let sent = ledger.start(1, Ready::Fresh, Start::default());
        let (_, pending, _) = sent.expect("is sent");
        ledger.retry_at(1, due(Instant::now()), pending);
    });
    assert_eq!(waits, 0);
}

/// A server that is not known to work, and takes one line at a time.
struct Trial(Arc<Pool>);

impl Door for Trial {
    fn is_trial(&self, _: &Routes) -> bool {
        true
    }

    fn works(&self, _: &Routes) -> bool {
        false
    }

    fn is_open(&self, _: &Routes) -> bool {
        true
    }

    fn acquire(
        &self,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
        rates: Option<RateRequest<'_>>,
        _: bool,
    ) -> Acquired {
        self.0.try_acquire(routes, history, batch, rates)
    }
}

#[test]
fn however_many_lines_wait_a_fresh_one_is_tried() {
    let door = Trial(testing::pool(1, &[("m", None)]));
    let routes = door.0.resolve("m").expect("is served");
    let (unit, lines) = unit(1, 0, 0, 0, 10);
    let mut ledger = Ledger::default();
    let limit = LaneLimit {
        calls: 1,
        unspilled: 1,
        ..LIMIT
    };
    ledger.admit(Arc::clone(&unit), Some(routes), lines, limit);
    let later = Instant::now() + Duration::from_mins(1);
    for line in 0..10 {
        let chosen = order::next(&mut ledger, 0, &door).expect("a fresh line is sent");
        assert_eq!(chosen.pending.line.index, line);
        drop(chosen.permit);
        ledger.finish(&unit, chosen.counted, None);
        ledger.retry_at(1, due(later), chosen.pending);
    }
}

#[test]
fn the_models_of_a_batch_take_turns_at_an_upstream_that_they_share() {
    let door = Trial(testing::pool(1, &[("m", None), ("n", None)]));
    let mut ledger = Ledger::default();
    for (id, model) in [(1, "m"), (2, "n")] {
        let routes = door.0.resolve(model).expect("is served");
        let (unit, lines) = unit(id, 0, 0, 0, 10);
        ledger.admit(unit, Some(routes), lines, LIMIT);
    }
    let models = (0..20).map(|_| {
        let chosen = order::next(&mut ledger, 0, &door).expect("a line is sent");
        drop(chosen.permit);
        ledger.finish(&chosen.unit, chosen.counted, None);
        chosen.unit.id
    });
    let models: Vec<u64> = models.collect();
    assert!(
        models.windows(2).all(|pair| pair[0] != pair[1]),
        "{models:?}"
    );
}

#[test]
fn the_models_of_a_batch_take_turns_beside_another_tenant_with_the_same_models() {
    let door = Trial(testing::pool(1, &[("m", None), ("n", None)]));
    let mut ledger = Ledger::default();
    for (id, (tenant, model)) in (1..).zip([(0, "m"), (0, "n"), (1, "m"), (1, "n")]) {
        let routes = door.0.resolve(model).expect("is served");
        let (unit, lines) = unit(id, tenant, 0, 0, 10);
        ledger.admit(unit, Some(routes), lines, LIMIT);
    }
    let sent = (0..24).map(|_| {
        let chosen = order::next(&mut ledger, 0, &door).expect("a line is sent");
        drop(chosen.permit);
        ledger.finish(&chosen.unit, chosen.counted, None);
        chosen.unit.id
    });
    let sent: Vec<u64> = sent.collect();
    let (of_one, of_other): (Vec<u64>, Vec<u64>) = sent.into_iter().partition(|id| *id <= 2);
    for units in [of_one, of_other] {
        assert_eq!(units.len(), 12);
        assert!(units.windows(2).all(|pair| pair[0] != pair[1]), "{units:?}");
    }
}

/// A ledger that has ten lines of a batch in hand, whose routes spill late and whose window ends
/// after so many seconds.
fn in_window(seconds: i64) -> (Ledger, Arc<LoadedUnit>) {
    let pool = testing::spilling_late();
    let routes = pool.resolve("m").expect("is served");
    let context = BatchContext {
        deadline: seconds * 1_000,
        ..units::batch()
    };
    let leased = units::leased(10, 0, None);
    let (unit, lines) = units::unit_on(1, Arc::new(context), leased);
    let mut ledger = Ledger::default();
    ledger.admit(Arc::clone(&unit), Some(routes), lines, LIMIT);
    (ledger, unit)
}

#[test]
fn a_batch_that_is_gone_is_not_late_any_more_at_once() {
    let (mut ledger, unit) = in_window(0);
    let now = Instant::now();
    let became = ledger.judge_lateness(Vec::new(), now, 0);
    assert!(became[0].is_late && ledger.lateness().allows_some());
    ledger.revoke(std::slice::from_ref(&unit.lease));
    let left = ledger.judge_lateness(Vec::new(), now, 0);
    let left: Vec<_> = left.iter().map(|one| (&*one.batch, one.is_late)).collect();
    assert_eq!(left, [("batch", false)]);
    assert_eq!(ledger.lateness().verdicts().count(), 0);
    assert!(!ledger.lateness().allows_some());
}

#[test]
fn a_batch_whose_lines_all_wait_for_their_next_attempt_is_late() {
    let (mut ledger, unit) = in_window(60);
    let begun = Instant::now();
    for _ in 0..10 {
        let sent = ledger.start(1, Ready::Fresh, Start::default());
        let (_, pending, counted) = sent.expect("is sent");
        ledger.finish(&unit, counted, None);
        ledger.retry_at(1, due(begun + Duration::from_mins(5)), pending);
    }
    let second = |second| (begun + Duration::from_secs(second), second as i64 * 1_000);
    let late = (0..60).find(|&number| {
        let (now, now_ms) = second(number);
        let changed = ledger.judge_lateness(Vec::new(), now, now_ms);
        changed.iter().any(|verdict| verdict.is_late)
    });
    assert!(late.is_some_and(|second| second < 50), "{late:?}");
    // They do not wait any more once the time is up.
    let (almost, almost_ms) = second(59);
    ledger.judge_lateness(Vec::new(), almost, almost_ms);
    ledger.wake(almost);
    assert_eq!(ledger.unit(1).expect("is in hand").resting().retries, 0);
    let up = almost + Duration::from_millis(900);
    ledger.judge_lateness(Vec::new(), up, almost_ms + 900);
    ledger.wake(up);
    assert_eq!(ledger.unit(1).expect("is in hand").resting().retries, 10);
    assert!(ledger.lateness().allows_some());
}

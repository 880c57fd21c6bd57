//! Fairness: no tenant holds up another, and no batch or line holds up others for long. Shown over
//! a simulated clock and a simulated upstream, for any mix of tenants, batches, lines that always
//! fail, and outages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::ledger::Ledger;
use super::ledger::run_queues::{Counted, LaneLimit, TenantLimit};
use super::ledger::unit::Due;
use super::order::{self, Chosen};
use crate::domain::endpoint::ENDPOINTS;
use crate::upstream::testing::{answered, next_opening, pool};
use crate::upstream::{Permit, Pool};
use crate::worker::testing as units;
use crate::worker::work::line::Pending;
use crate::worker::work::unit::{BatchContext, LoadedUnit};

/// How long a call takes.
const CALL_MS: u64 = 1_000;
/// How often the supply looks.
const LOOK_EVERY_MS: u64 = 1_000;
/// Nothing takes longer than this, or it never ends.
const END_MS: u64 = 6 * 3_600_000;
const HEALTHY: u16 = 200;

/// A batch as it comes: lines by how they are always answered.
#[derive(Clone, Debug)]
struct Arrival {
    tenant: u8,
    /// What the lines name.
    model: &'static str,
    at_ms: u64,
    lines: Vec<u16>,
    window_ms: Option<u64>,
}

/// For a while every call is answered so.
#[derive(Clone, Debug)]
struct Outage {
    from_ms: u64,
    for_ms: u64,
    status: u16,
}

#[derive(Clone, Debug, Default)]
struct World {
    permits: usize,
    arrivals: Vec<Arrival>,
    outages: Vec<Outage>,
    /// Tenants that have not the same as all others.
    limits: BTreeMap<u8, TenantLimit>,
}

/// What became of a line: by batch and place.
#[derive(Clone, Copy, Debug)]
struct Ended {
    at_ms: u64,
    begun_ms: u64,
    status: u16,
    calls: u32,
}

/// How a world went.
struct Run {
    ended: BTreeMap<(usize, u32), Ended>,
    most_calls: u32,
}

struct Flight {
    unit: Arc<LoadedUnit>,
    pending: Pending,
    permit: Permit,
    counted: Counted,
    status: u16,
}

struct Simulation<'a> {
    world: &'a World,
    pool: Arc<Pool>,
    ledger: Ledger,
    begun: Instant,
    now_ms: u64,
    flights: BTreeMap<u64, Flight>,
    landing: BinaryHeap<Reverse<(u64, u64)>>,
    numbers: u64,
    calls: BTreeMap<(usize, u32), (u32, u64)>,
    ended: BTreeMap<(usize, u32), Ended>,
    batches: BTreeMap<String, usize>,
    look_at: u64,
}

impl<'a> Simulation<'a> {
    fn new(world: &'a World) -> Self {
        Self {
            world,
            pool: pool(world.permits, &[("m", None), ("other", None)]),
            ledger: Ledger::default(),
            begun: Instant::now(),
            now_ms: 0,
            flights: BTreeMap::new(),
            landing: BinaryHeap::new(),
            numbers: 0,
            calls: BTreeMap::new(),
            ended: BTreeMap::new(),
            batches: BTreeMap::new(),
            look_at: 0,
        }
    }

    fn now(&self) -> Instant {
        self.begun + Duration::from_millis(self.now_ms)
    }

    /// Runs until every line has ended but those that may wait for ever: what is refused, or turned
    /// away, without another line having passed since. Returns how those that ended did, and the
    /// calls of each line.
    async fn run(mut self) -> Run {
        let must_end = |status: &u16| matches!(*status, HEALTHY | 400);
        let lines = self.world.arrivals.iter().flat_map(|batch| &batch.lines);
        let lines = lines.filter(|status| must_end(status)).count();
        loop {
            self.arrive();
            self.land();
            let world = self.world;
            let own = |&(batch, place): &(usize, u32)| world.arrivals[batch].lines[place as usize];
            let ended = self
                .ended
                .keys()
                .filter(|line| must_end(&own(line)))
                .count();
            if ended == lines {
                let calls = self.calls.values().map(|(calls, _)| *calls);
                return Run {
                    most_calls: calls.max().unwrap_or(0),
                    ended: self.ended,
                };
            }
            assert!(
                self.now_ms < END_MS,
                "{} lines wait for ever",
                lines - ended
            );
            if self.now_ms >= self.look_at {
                self.look_at = self.now_ms + LOOK_EVERY_MS;
                let now_ms = i64::try_from(self.now_ms).expect("is short");
                self.ledger.set_needs(&HashMap::new(), now_ms);
            }
            let now_ms = i64::try_from(self.now_ms).expect("is short");
            let now = self.now();
            self.ledger.wake(now);
            while let Some(chosen) = order::next(&mut self.ledger, now_ms, &self.pool) {
                self.send(chosen);
            }
            let step = self.next_event().max(self.now_ms + 1) - self.now_ms;
            tokio::time::advance(Duration::from_millis(step)).await;
            self.now_ms += step;
        }
    }

    fn next_event(&self) -> u64 {
        let since = |at: Instant| {
            at.saturating_duration_since(self.begun)
                .as_micros()
                .div_ceil(1000)
        };
        let arrivals = self.world.arrivals.iter().map(|batch| batch.at_ms);
        let arrival = arrivals.filter(|at| *at > self.now_ms).min();
        let landing = self.landing.peek().map(|Reverse((at, _))| *at);
        let due = self
            .ledger
            .next_due()
            .map(|at| u64::try_from(since(at)).expect("is short"));
        let opening = next_opening(&self.pool).map(|at| {
            let left = at.saturating_duration_since(tokio::time::Instant::now());
            self.now_ms + u64::try_from(left.as_micros().div_ceil(1000)).expect("is short")
        });
        let events = [arrival, landing, due, opening, Some(self.look_at)];
        events.into_iter().flatten().min().unwrap_or(END_MS)
    }

    fn arrive(&mut self) {
        for (number, arrival) in self.world.arrivals.iter().enumerate() {
            let id = format!("batch-{number}");
            if arrival.at_ms > self.now_ms || self.batches.contains_key(&id) {
                continue;
            }
            let deadline = arrival
                .window_ms
                .map(|ms| i64::try_from(arrival.at_ms + ms));
            let context = BatchContext {
                id: id.as_str().into(),
                tenant: format!("tenant-{}", arrival.tenant).into(),
                key_id: Arc::default(),
                endpoint: &ENDPOINTS[0],
                task: None,
                file_id: Arc::default(),
                reuse: None,
                details: false,
                priority: 0,
                deadline: deadline.map_or(i64::MAX, |ms| ms.expect("is short")),
                created_at: i64::try_from(arrival.at_ms).expect("is short"),
                total: i64::MAX,
                number: number as u64,
            };
            let count = u32::try_from(arrival.lines.len()).expect("are few");
            let mut leased = units::leased(count, 0, None);
            leased.lease.key.batch_id.clone_from(&id);
            let routes = self.pool.resolve(arrival.model).expect("is served");
            let limit = LaneLimit::of(&self.pool, routes.lane);
            let unit_id = number as u64;
            let (unit, lines) = units::unit_on(unit_id, Arc::new(context), leased);
            let tenant = Arc::clone(&unit.batch.tenant);
            self.ledger.admit(unit, Some(routes), lines, limit);
            if let Some(limit) = self.world.limits.get(&arrival.tenant) {
                self.ledger.set_tenant_limit(&tenant, limit.clone());
            }
            self.batches.insert(id, number);
        }
    }

    fn send(&mut self, chosen: Chosen) {
        let Chosen {
            unit,
            pending,
            permit,
            counted,
            ..
        } = chosen;
        let batch = self.batches[&*unit.batch.id];
        let own = self.world.arrivals[batch].lines[pending.line.index as usize];
        let outage =
            self.world.outages.iter().find(|outage| {
                (outage.from_ms..outage.from_ms + outage.for_ms).contains(&self.now_ms)
            });
        let status = outage.map_or(own, |outage| outage.status);
        let (calls, _) = self
            .calls
            .entry((batch, pending.line.index))
            .or_insert((0, self.now_ms));
        *calls += 1;
        self.numbers += 1;
        // A failure is known at once, a success takes its time.
        let took = if status == HEALTHY { CALL_MS } else { 20 };
        self.landing
            .push(Reverse((self.now_ms + took, self.numbers)));
        let flight = Flight {
            unit,
            pending,
            permit: permit.expect("no rate limit"),
            counted,
            status,
        };
        self.flights.insert(self.numbers, flight);
    }

    fn land(&mut self) {
        while let Some(Reverse((at, number))) = self.landing.peek().copied()
            && at <= self.now_ms
        {
            self.landing.pop();
            let flight = self.flights.remove(&number).expect("is in flight");
            let Flight {
                unit,
                mut pending,
                permit,
                counted,
                status,
            } = flight;
            let again = answered(permit, &mut pending.history, status);
            let took = again.is_none().then_some(Duration::from_millis(CALL_MS));
            self.ledger.finish(&unit, counted, took);
            if let Some((after, is_hastened)) = again {
                let soonest = is_hastened.then(|| self.now() + Duration::from_millis(500));
                let at = self.now() + after;
                self.ledger.retry_at(unit.id, Due { at, soonest }, pending);
            } else {
                let key = (self.batches[&*unit.batch.id], pending.line.index);
                let (calls, begun_ms) = self.calls[&key];
                let ended = Ended {
                    at_ms: self.now_ms,
                    begun_ms,
                    status,
                    calls,
                };
                assert!(self.ended.insert(key, ended).is_none(), "it ends twice");
            }
            self.ledger.remove_if_spent(unit.id);
            if self.pool.targets().take_hastening() {
                let now = self.now();
                self.ledger.hasten(now);
            }
        }
    }
}

fn simulate(world: &World) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(Simulation::new(world).run())
}

fn batch(tenant: u8, at_ms: u64, lines: usize) -> Arrival {
    Arrival {
        tenant,
        model: "m",
        at_ms,
        lines: vec![HEALTHY; lines],
        window_ms: None,
    }
}

/// By when a healthy line is to have ended: the `place`th of its batch, which shares the permits
/// with the other tenants and the other batches of its own.
fn due_ms(world: &World, number: usize, place: usize) -> u64 {
    const SMALL_CONSTANT: u64 = 3;
    let arrival = &world.arrivals[number];
    let mut tenants: Vec<u8> = world.arrivals.iter().map(|batch| batch.tenant).collect();
    tenants.sort_unstable();
    tenants.dedup();
    let of_tenant = world
        .arrivals
        .iter()
        .filter(|batch| batch.tenant == arrival.tenant);
    let competitors = (tenants.len() * of_tenant.count()) as u64;
    let turns = ((place as u64 + 1) * competitors).div_ceil(world.permits as u64) + 1;
    // An outage is noticed to be over at the next trial: when it has lasted twice as long, or a
    // little more, and by all lines that were sent in it when they have waited for as long again.
    let outages: u64 = world
        .outages
        .iter()
        .map(|outage| 6 * outage.for_ms + 30_000)
        .sum();
    // A line that always fails is in the way for as long as its calls take, and closes for a moment
    // what has not worked yet.
    let failing = world.arrivals.iter().flat_map(|batch| &batch.lines);
    let failing = failing.filter(|status| **status != HEALTHY).count() as u64;
    arrival.at_ms + SMALL_CONSTANT * turns * CALL_MS + outages + failing * 2_000 + 5_000
}

fn holds(world: &World) -> Result<(), TestCaseError> {
    let Run { ended, most_calls } = simulate(world);
    prop_assert!(most_calls <= 60, "{most_calls} calls of one line");
    for (&(number, place), line) in &ended {
        let own = world.arrivals[number].lines[place as usize];
        if own != HEALTHY {
            continue;
        }
        prop_assert_eq!(
            line.status,
            HEALTHY,
            "line {} of batch {} is lost",
            place,
            number
        );
        let due = due_ms(world, number, place as usize);
        prop_assert!(
            line.at_ms <= due,
            "line {place} of batch {number} has ended after {} ms, due after {due} ms, first sent after {} ms",
            line.at_ms,
            line.begun_ms
        );
    }
    Ok(())
}

fn worlds() -> impl Strategy<Value = World> {
    let failing = prop_oneof![
        Just(400_u16),
        Just(401),
        Just(402),
        Just(403),
        Just(429),
        Just(500),
        Just(503),
    ];
    let line = prop_oneof![19 => Just(HEALTHY), 1 => failing];
    let arrival = (
        0_u8..6,
        0_u64..20_000,
        proptest::collection::vec(line, 1..60),
    )
        .prop_map(|(tenant, at_ms, lines)| Arrival {
            tenant,
            model: "m",
            at_ms,
            lines,
            window_ms: None,
        });
    let outage = (
        0_u64..60_000,
        1_000_u64..20_000,
        prop_oneof![Just(500_u16), Just(503), Just(429), Just(401)],
    )
        .prop_map(|(from_ms, for_ms, status)| Outage {
            from_ms,
            for_ms,
            status,
        });
    (
        1_usize..9,
        proptest::collection::vec(arrival, 1..12),
        proptest::collection::vec(outage, 0..2),
    )
        .prop_map(|(permits, arrivals, outages)| World {
            permits,
            arrivals,
            outages,
            ..World::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nobody_holds_up_anybody(world in worlds()) {
        holds(&world)?;
    }
}

/// How many lines of each tenant had been sent by then.
fn sent_by(world: &World, ms: u64) -> BTreeMap<u8, usize> {
    let mut sent: BTreeMap<u8, usize> = BTreeMap::new();
    for arrival in &world.arrivals {
        sent.entry(arrival.tenant).or_default();
    }
    for ((number, _), line) in simulate(world).ended {
        if line.begun_ms < ms {
            *sent.entry(world.arrivals[number].tenant).or_default() += 1;
        }
    }
    sent
}

#[test]
fn with_more_tenants_than_permits_each_has_its_turn() {
    for (tenants, permits) in [(12_u8, 4), (200, 64)] {
        let mut world = World {
            permits,
            ..World::default()
        };
        for tenant in 0..tenants {
            let mut arrival = batch(tenant, 0, 40);
            // The deadlines of some are earlier: that is nobody else's affair.
            arrival.window_ms = Some(3_600_000 + u64::from(tenant) * 1_000);
            world.arrivals.push(arrival);
        }
        let turn = u64::from(tenants).div_ceil(permits as u64) * CALL_MS;
        let early = sent_by(&world, 2 * turn);
        assert!(early.values().all(|lines| *lines >= 1), "{early:?}");
        let later = sent_by(&world, 10 * turn);
        let (least, most) = (later.values().min(), later.values().max());
        assert!(most <= least.map(|least| 2 * least).as_ref(), "{later:?}");
    }
}

fn weighing(weight: u32) -> TenantLimit {
    TenantLimit {
        weight,
        ..TenantLimit::default()
    }
}

fn calling(calls: usize) -> TenantLimit {
    TenantLimit {
        calls,
        ..TenantLimit::default()
    }
}

#[test]
fn tenants_have_their_turns_by_weight_however_few_permits_there_are() {
    for permits in [1, 4, 8, 60] {
        let world = World {
            permits,
            arrivals: (0..3).map(|tenant| batch(tenant, 0, 4_000)).collect(),
            limits: BTreeMap::from([(1, weighing(2)), (2, weighing(3))]),
            ..World::default()
        };
        let rounds = 24;
        let sent = sent_by(&world, rounds * CALL_MS);
        // Of calls at once, to within one call; where there is but one, of turns.
        let off = if permits == 1 { 3 } else { rounds };
        let all: usize = sent.values().sum();
        for (tenant, lines) in &sent {
            let due = all * (usize::from(*tenant) + 1) / 6;
            assert!(lines.abs_diff(due) as u64 <= off, "{permits}: {sent:?}");
        }
    }
}

#[test]
fn a_tenant_has_no_more_calls_than_it_may_and_the_others_have_the_rest() {
    let world = World {
        permits: 8,
        // What the limited tenant has waits in front of the others, in as many batches.
        arrivals: vec![
            batch(0, 0, 500),
            batch(0, 0, 500),
            batch(1, 0, 60),
            batch(2, 0, 60),
        ],
        limits: BTreeMap::from([(0, calling(2))]),
        ..World::default()
    };
    let ended = simulate(&world).ended;
    let flight_of = |tenant: u8, at_ms: u64| {
        let of_tenant = |number: usize| world.arrivals[number].tenant == tenant;
        let lines = ended.iter().filter(|((number, _), _)| of_tenant(*number));
        let flying = |line: &Ended| (line.begun_ms..line.at_ms).contains(&at_ms);
        lines.filter(|(_, line)| flying(line)).count()
    };
    for second in 0..500 {
        let at_ms = second * CALL_MS + 500;
        assert!(flight_of(0, at_ms) <= 2, "at {at_ms} ms");
    }
    // 120 lines with six permits.
    let others = ended.iter().filter(|((number, _), _)| *number > 1);
    let last = others.map(|(_, line)| line.at_ms).max();
    assert!(last <= Some(21 * CALL_MS), "{last:?}");
}

#[test]
fn a_small_batch_goes_beside_a_large_one_of_its_tenant() {
    let world = World {
        permits: 4,
        arrivals: vec![batch(0, 0, 2_000), batch(0, 10_000, 10)],
        ..World::default()
    };
    let ended = simulate(&world).ended;
    let last = (0..10).map(|place| ended[&(1, place)].at_ms).max();
    assert!(last <= Some(10_000 + 7 * CALL_MS), "{last:?}");
}

/// The two models have an upstream in common.
#[test]
fn a_small_batch_goes_beside_a_large_one_of_another_model() {
    let models = [("m", "other"), ("other", "m")];
    for (large, small) in models {
        let of = |model: &'static str, one: Arrival| Arrival { model, ..one };
        let world = World {
            permits: 4,
            arrivals: vec![
                of(large, batch(0, 0, 2_000)),
                of(small, batch(0, 10_000, 10)),
                of(large, batch(0, 10_000, 10)),
            ],
            ..World::default()
        };
        let ended = simulate(&world).ended;
        let last = |number| (0..10).map(|place| ended[&(number, place)].at_ms).max();
        assert!(last(1) <= Some(10_000 + 9 * CALL_MS), "{:?}", last(1));
        assert!(last(2) <= Some(10_000 + 9 * CALL_MS), "{:?}", last(2));
    }
}

/// With a weight and a limit of its own, beside another tenant that has as much.
#[test]
fn ten_lines_behind_a_great_many_go_at_once_and_cost_no_more_than_their_own_calls() {
    const SMALL: usize = 300;
    let mut world = World {
        permits: 64,
        arrivals: vec![batch(0, 0, 12_000), batch(1, 0, 24_000)],
        limits: BTreeMap::from([
            (
                0,
                TenantLimit {
                    calls: 48,
                    weight: 3,
                    ..TenantLimit::default()
                },
            ),
            (1, calling(60)),
        ]),
        ..World::default()
    };
    let last_of = |world: &World| {
        let ended = simulate(world).ended;
        let last = |number: usize| {
            let lines = ended.range((number, 0)..(number + 1, 0));
            lines.map(|(_, line)| line.at_ms).max().expect("some")
        };
        (0..world.arrivals.len()).map(last).collect::<Vec<u64>>()
    };
    let alone = last_of(&world)[0];
    let small = (0..SMALL as u64).map(|number| batch(0, 5_000 + number * 400, 10));
    world.arrivals.extend(small);
    let ends = last_of(&world);
    for (arrival, last) in world.arrivals.iter().zip(&ends).skip(2) {
        let took = last - arrival.at_ms;
        assert!(
            took <= 3_000,
            "{took} ms of a batch from {} ms on",
            arrival.at_ms
        );
    }
    // Of its own calls at once, three quarters of the permits.
    let own_ms = (SMALL * 10) as u64 * CALL_MS / 48;
    assert!(
        ends[0] <= alone + own_ms + 2 * CALL_MS,
        "{} ms, alone {alone}",
        ends[0]
    );
}

#[test]
fn a_batch_that_would_miss_its_deadline_goes_first_within_its_tenant() {
    let mut urgent = batch(0, 0, 120);
    // With an even share of four permits it would take a minute.
    urgent.window_ms = Some(45_000);
    let world = World {
        permits: 4,
        arrivals: vec![batch(0, 0, 400), urgent, batch(1, 0, 1)],
        ..World::default()
    };
    let ended = simulate(&world).ended;
    let last = (0..120).map(|place| ended[&(1, place)].at_ms).max();
    assert!(last <= Some(45_000), "{last:?}");
    let others = (0..400).filter(|place| ended[&(0, *place)].begun_ms < 40_000);
    assert!(others.count() > 20, "the other batch goes on");
}

#[test]
fn a_short_outage_of_any_kind_loses_no_line() {
    for status in [500, 502, 503, 504, 529, 429, 401, 402, 403] {
        let world = World {
            permits: 64,
            arrivals: vec![batch(0, 0, 1_500)],
            outages: vec![Outage {
                from_ms: 5_000,
                for_ms: 20_000,
                status,
            }],
            ..World::default()
        };
        let ended = simulate(&world).ended;
        assert!(
            ended.values().all(|line| line.status == HEALTHY),
            "{status}"
        );
        let last = ended.values().map(|line| line.at_ms).max().expect("some");
        assert!(last < 120_000, "{status}: {last} ms");
    }
}

#[test]
fn one_line_that_always_fails_costs_the_others_little() {
    for status in [401, 402, 403, 429, 503, 500] {
        let mut of_one = batch(0, 0, 10);
        of_one.lines[0] = status;
        let world = World {
            permits: 4,
            arrivals: vec![of_one, batch(1, 0, 400)],
            ..World::default()
        };
        let ended = simulate(&world).ended;
        let last = (0..400).map(|place| ended[&(1, place)].at_ms).max();
        // 410 lines, four at a time, take 103 seconds.
        assert!(last <= Some(115_000), "{status}: {last:?}");
        assert!(ended[&(0, 0)].calls <= 12, "{status}: {:?}", ended[&(0, 0)]);
    }
}

#[test]
fn a_batch_that_always_fails_costs_another_tenant_no_more_than_a_share() {
    for status in [400, 403, 429, 500, 503] {
        let mut failing = batch(0, 0, 300);
        failing.lines.fill(status);
        let world = World {
            permits: 4,
            arrivals: vec![failing, batch(1, 0, 200)],
            ..World::default()
        };
        let ended = simulate(&world).ended;
        let last = (0..200).map(|place| ended[&(1, place)].at_ms).max();
        // Alone, with half of the permits, they take 100 seconds.
        assert!(last <= Some(120_000), "{status}: {last:?}");
    }
}

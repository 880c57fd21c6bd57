use proptest::prelude::*;

use super::super::order::Door;
use super::*;
use crate::domain::endpoint::ENDPOINTS;
use crate::upstream::{Acquired, Permit, Pool, testing};
use crate::worker::testing as units;

/// A unit of one of a few tenants and batches.
fn unit(
    id: u64,
    tenant: u8,
    batch: u8,
    chunk_no: i64,
    lines: u32,
    routes: &Arc<Routes>,
) -> (Arc<HeldUnit>, Vec<OpenLine>) {
    let context = BatchContext {
        id: format!("batch-{tenant}-{batch}").into(),
        tenant: format!("tenant-{tenant}").into(),
        endpoint: &ENDPOINTS[0],
        priority: 0,
        deadline: i64::MAX,
        created_at: 0,
        number: u64::from(batch),
    };
    let mut leased = units::leased(lines, 0, None);
    leased.lease.key.batch_id = context.id.to_string();
    leased.lease.key.chunk_no = chunk_no;
    units::unit_on(id, Arc::new(context), leased, Some(Arc::clone(routes)))
}

/// Everything that is counted, counted again from the units and from what is on its way.
fn recounted(ledger: &Ledger, on_the_way: &[Arc<HeldUnit>]) {
    let count = |of: &dyn Fn(&ActiveUnit) -> usize, which: &dyn Fn(&ActiveUnit) -> bool| {
        let units = ledger.units.values().filter(|active| which(active));
        units.map(of).sum::<usize>()
    };
    let ready = |active: &ActiveUnit| active.fresh.len() + active.retries.len();
    for (key, queue) in &ledger.queues {
        let here = |active: &ActiveUnit| active.place.queue.is_some_and(|place| place.0 == key);
        assert_eq!(queue.ready, count(&ready, &here));
        for (flow_key, flow) in &queue.flows {
            let of_flow = |active: &ActiveUnit| {
                here(active) && active.place.queue.is_some_and(|place| place.1 == flow_key)
            };
            assert_eq!(flow.fresh, count(&|active| active.fresh.len(), &of_flow));
            assert_eq!(
                flow.retries,
                count(&|active| active.retries.len(), &of_flow)
            );
            assert_eq!(
                flow.waiting,
                count(&|active| active.waiting.len(), &of_flow)
            );
            assert_eq!(flow.units, count(&|_| 1, &of_flow));
            for (batch_key, of_batch) in &flow.batches {
                let of_this =
                    |active: &ActiveUnit| active.place.queue == Some((key, flow_key, batch_key));
                assert_eq!(
                    of_batch.fresh,
                    count(&|active| active.fresh.len(), &of_this)
                );
                assert_eq!(
                    of_batch.retries,
                    count(&|active| active.retries.len(), &of_this)
                );
                assert_eq!(of_batch.units, count(&|_| 1, &of_this));
                let with_lines: BTreeSet<(i64, u64)> = ledger
                    .units
                    .values()
                    .filter(|active| of_this(active) && ready(active) > 0)
                    .map(|active| (active.unit.lease.key.chunk_no, active.unit.id))
                    .collect();
                assert_eq!(of_batch.ready, with_lines);
            }
        }
    }
    for (id, lane) in &ledger.lanes {
        let of_lane = |unit: &HeldUnit| unit.routes.as_ref().is_some_and(|r| r.lane == *id);
        assert_eq!(lane.ready, count(&ready, &|active| of_lane(&active.unit)));
        assert_eq!(
            lane.waiting,
            count(&|active| active.waiting.len(), &|active| of_lane(
                &active.unit
            ))
        );
        assert_eq!(
            lane.in_flight,
            on_the_way.iter().filter(|unit| of_lane(unit)).count()
        );
    }
    for (_, tenant) in &ledger.tenants {
        let of_tenant = on_the_way
            .iter()
            .filter(|unit| unit.batch.tenant == tenant.name);
        assert_eq!(tenant.in_flight, of_tenant.count());
        let by_domain = tenant.domains.iter().map(|turns| turns.in_flight);
        assert_eq!(by_domain.sum::<usize>(), tenant.in_flight);
        assert_eq!(
            tenant.units,
            count(&|_| 1, &|active| active.unit.batch.tenant == tenant.name)
        );
    }
    for (_, batch) in &ledger.batches {
        let of_batch = on_the_way
            .iter()
            .filter(|unit| unit.batch.id == batch.context.id);
        assert_eq!(batch.turns.in_flight, of_batch.count());
        assert_eq!(
            batch.units,
            count(&|_| 1, &|active| active.unit.batch.id == batch.context.id)
        );
    }
    assert_eq!(ledger.in_flight, on_the_way.len());
    let due = ledger
        .units
        .values()
        .filter_map(|active| active.waiting.peek())
        .map(|w| w.due)
        .min();
    assert!(
        ledger.wake_at <= due || due.is_none(),
        "a line that waits is not woken"
    );
}

proptest! {
    #[test]
    fn after_any_transitions_the_counts_are_those_of_a_recount(
        admitted in proptest::collection::vec((0_u8..3, 0_u8..2, 0_i64..3, 1_u32..5, 0_usize..2), 1..12),
        steps in proptest::collection::vec((0_u8..9, any::<proptest::sample::Index>()), 0..120),
    ) {
        let pool = testing::pool(64, &[("a", None), ("b", Some(8))]);
        let routes = ["a", "b"].map(|model| pool.resolve(model).expect("is served"));
        let mut ledger = Ledger::default();
        let begun = Instant::now();
        let (mut now, mut next_id) = (begun, 0_u64);
        let mut on_the_way: Vec<(Arc<HeldUnit>, Pending)> = Vec::new();
        let mut admit = |ledger: &mut Ledger, at: usize| {
            let (tenant, batch, chunk_no, lines, lane) = admitted[at];
            next_id += 1;
            let (unit, lines) = unit(next_id, tenant, batch, chunk_no, lines, &routes[lane]);
            ledger.admit(&unit, lines, (64, pool.domain(&routes[lane])));
        };
        for at in 0..admitted.len() {
            admit(&mut ledger, at);
        }
        for (step, which) in steps {
            now += Duration::from_millis(10);
            let ids: Vec<u64> = ledger.units.keys().copied().collect();
            let id = if ids.is_empty() { 0 } else { *which.get(&ids) };
            let domain = |unit: &HeldUnit| unit.routes.as_ref().map_or(0, |r| pool.domain(r));
            match step {
                0 => admit(&mut ledger, which.index(admitted.len())),
                1 | 2 => {
                    let unit = ledger.unit(id).map(|active| active.unit.clone());
                    if let Some(unit) = unit {
                        on_the_way.extend(ledger.start(id, step == 2, domain(&unit)));
                    }
                }
                3 | 4 if !on_the_way.is_empty() => {
                    let (unit, pending) = on_the_way.swap_remove(which.index(on_the_way.len()));
                    let ended = step == 3;
                    ledger.finish(&unit, domain(&unit), (ended, Duration::from_secs(1)));
                    if !ended {
                        let due = now + Duration::from_millis(which.index(200) as u64);
                        ledger.retry_at(unit.id, (due, Some(now)), pending);
                    }
                    ledger.remove_if_spent(unit.id);
                }
                5 => ledger.wake_due(now),
                6 => ledger.hasten(now),
                7 => drop(ledger.release(id)),
                8 => {
                    let batch = ledger.unit(id).map(|active| active.unit.batch.id.clone());
                    if let Some(batch) = batch {
                        ledger.end_batch(&batch, EndReason::Cancelled, now);
                    }
                }
                _ => {}
            }
            let units: Vec<Arc<HeldUnit>> = on_the_way.iter().map(|(unit, _)| unit.clone()).collect();
            recounted(&ledger, &units);
        }
        for (unit, _) in on_the_way.drain(..) {
            let domain = unit.routes.as_ref().map_or(0, |routes| pool.domain(routes));
            ledger.finish(&unit, domain, (true, Duration::ZERO));
        }
        for id in ledger.units.keys().copied().collect::<Vec<_>>() {
            ledger.release(id);
        }
        prop_assert!(ledger.queues.is_empty());
        recounted(&ledger, &[]);
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
    for (id, due) in [(1, [40, 20]), (2, [30, 10])] {
        let (unit, lines) = unit(id, 0, 0, 0, 2, &routes);
        ledger.admit(&unit, lines, (64, 0));
        for seconds in due {
            let (unit, pending) = ledger.start(id, false, 0).expect("is sent");
            ledger.finish(&unit, 0, (false, Duration::ZERO));
            ledger.retry_at(id, (after(seconds), None), pending);
        }
    }
    for (now, [of_one, of_two], next) in [
        (9, [0, 0], Some(10)),
        (10, [0, 1], Some(20)),
        (25, [1, 1], Some(30)),
        (40, [2, 2], None),
    ] {
        ledger.wake_due(after(now));
        let ready = |id| ledger.unit(id).expect("is in hand").retries.len();
        assert_eq!((ready(1), ready(2)), (of_one, of_two), "after {now} s");
        assert_eq!(ledger.next_due(), next.map(after), "after {now} s");
    }
}

#[test]
fn who_had_a_turn_is_remembered_without_anything_in_hand() {
    let pool = testing::pool(64, &[("a", None)]);
    let routes = pool.resolve("a").expect("is served");
    let mut ledger = Ledger::default();
    let (unit, lines) = unit(1, 0, 0, 0, 1, &routes);
    ledger.admit(&unit, lines, (64, 0));
    let (unit, _) = ledger.start(1, false, 0).expect("is sent");
    ledger.finish(&unit, 0, (true, Duration::ZERO));
    assert!(!ledger.remove_if_spent(1));
    assert_eq!(ledger.turns_of("tenant-0", 0).last, 1);
    assert_eq!(ledger.turns_of_batch("batch-0-0").last, 1);
}

/// What can be sent of ten lines, with whose unit so many owners died, and of which the fourth was
/// recorded last.
fn sendable(owners: i64, act: impl FnOnce(&mut Ledger)) -> usize {
    let (unit, lines) = units::unit(10, owners, Some(3));
    let mut ledger = Ledger::default();
    ledger.admit(&unit, lines, (64, 0));
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
        let (_, pending) = ledger.start(1, false, 0).expect("is sent");
        ledger.retry_at(1, (Instant::now(), None), pending);
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

    fn domain(&self, _: &Routes) -> usize {
        0
    }

    fn is_open(&self, _: &Routes) -> bool {
        true
    }

    fn acquire(&self, routes: &Arc<Routes>, _: Option<usize>, batch: u64) -> Option<Permit> {
        match self.0.try_acquire(routes, None, batch) {
            Acquired::Permit(permit) => Some(permit),
            _ => None,
        }
    }
}

#[test]
fn however_many_lines_wait_a_fresh_one_is_tried() {
    let door = Trial(testing::pool(1, &[("m", None)]));
    let routes = door.0.resolve("m").expect("is served");
    let (unit, lines) = unit(1, 0, 0, 0, 10, &routes);
    let mut ledger = Ledger::default();
    ledger.admit(&unit, lines, (1, 0));
    let later = Instant::now() + Duration::from_secs(60);
    for line in 0..10 {
        let chosen = ledger.next(0, &door).expect("a fresh line is sent");
        assert_eq!(chosen.pending.line.index, line);
        drop(chosen.permit);
        ledger.finish(&unit, 0, (false, Duration::ZERO));
        ledger.retry_at(1, (later, None), chosen.pending);
    }
}

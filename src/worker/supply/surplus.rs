//! Which units are given back to the store, so that others can use what they hold. Only units are
//! given back of which no line is in flight or on its way to the disk.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::unit::UnitLease;
use crate::upstream::{Pool, Routes};
use crate::worker::dispatch::ledger::Ledger;
use crate::worker::dispatch::ledger::unit::ActiveUnit;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::work::unit::BatchContext;

/// How long units wait for an upstream before another process may try them.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// Releases the units that no upstream takes at present, so that others can use their part of the
/// memory budget.
pub(super) fn release_closed(ledger: &SharedLedger, pool: &Pool) -> Vec<UnitLease> {
    release_on(&mut ledger.lock(), |routes| {
        !pool.targets().was_open(routes)
    })
}

/// Releases units that have waited long for their upstream, where another process may send them,
/// or this process by other routes.
pub(super) fn release_stuck(ledger: &SharedLedger, pool: &Pool) -> Vec<UnitLease> {
    if !pool.targets().is_troubled() {
        return Vec::new();
    }
    let are_shared = pool.limits().are_shared();
    release(&mut ledger.lock(), |active| {
        let Some(routes) = active.routes() else {
            return false;
        };
        let (unit, since) = (active.unit(), pool.targets().closed_since(routes));
        since.is_some_and(|since| since.elapsed() >= STUCK_AFTER)
            && (are_shared || !pool.is_current(routes, unit.batch.task.as_deref(), &unit.model))
    })
}

/// Releases the units whose model no upstream serves any more: they wait with those that were never
/// leased, until one does or their window ends.
pub(super) fn release_unserved(ledger: &SharedLedger) -> Vec<UnitLease> {
    release(&mut ledger.lock(), |active| active.routes().is_none())
}

/// Releases the units for which other replicas have the whole limit. Asked only while this process
/// holds shares.
pub(super) fn release_without_share(
    ledger: &SharedLedger,
    pool: &Pool,
    tenants: &Tenants,
) -> Vec<UnitLease> {
    release(&mut ledger.lock(), |active| {
        let unit = active.unit();
        let lacks_share = |routes| pool.targets().lacks_share(routes);
        let routes = active.routes();
        routes.is_some_and(|routes| lacks_share(routes) || !tenants.has_share(&unit.batch.tenant))
    })
}

/// Releases the units of batches that are paused: they wait with those that were never leased.
pub(super) fn release_held(ledger: &SharedLedger) -> Vec<UnitLease> {
    let mut ledger = ledger.lock();
    let units = ledger.units();
    let held = units.filter(|active| active.is_idle() && ledger.is_held(active));
    let ids: Vec<u64> = held.map(ActiveUnit::id).collect();
    ledger.release(&ids)
}

/// Releases the units of these batches.
pub(super) fn release_batches(ledger: &SharedLedger, ids: &[Arc<str>]) -> Vec<UnitLease> {
    let ids: HashSet<&Arc<str>> = ids.iter().collect();
    release(&mut ledger.lock(), |active| {
        ids.contains(&active.unit().batch.id)
    })
}

/// Releases up to so many units for a batch that has none in hand for want of room: units of
/// tenants, and of the tenant's own batches, that had their turn later. Those that had their turn
/// last come first.
pub(super) fn release_for(
    ledger: &SharedLedger,
    pool: &Pool,
    batch: &BatchContext,
    routes: &Routes,
    most: usize,
) -> Vec<UnitLease> {
    let mut ledger = ledger.lock();
    let domain = pool.limits().domain(routes.lane);
    let run_queues = ledger.run_queues();
    let turns_of = |batch: &BatchContext| {
        let of_tenant = run_queues.turn_of_tenant(&batch.tenant, domain);
        (of_tenant, run_queues.turn_of_batch(&batch.id))
    };
    let waiting = turns_of(batch);
    let mut later: Vec<_> = ledger
        .units()
        .filter(|active| active.routes().is_some() && active.is_idle())
        .map(|active| (turns_of(&active.unit().batch), active.id()))
        .filter(|(turns, _)| *turns > waiting)
        .collect();
    later.sort_unstable_by(|a, b| b.cmp(a));
    let ids: Vec<u64> = later.into_iter().take(most).map(|(_, id)| id).collect();
    ledger.release(&ids)
}

fn release_on(ledger: &mut Ledger, of: impl Fn(&Routes) -> bool) -> Vec<UnitLease> {
    release(ledger, |active| {
        active.routes().is_some_and(|routes| of(routes))
    })
}

fn release(ledger: &mut Ledger, of: impl Fn(&ActiveUnit) -> bool) -> Vec<UnitLease> {
    let units = ledger.units();
    let units = units.filter(|active| active.is_idle() && of(active));
    let ids: Vec<u64> = units.map(ActiveUnit::id).collect();
    ledger.release(&ids)
}

//! What this process could send, for its share of the limits, and what it must let go of.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Dispatch;
use super::ledger::{ActiveUnit, Ledger};
use crate::domain::unit::UnitLease;
use crate::upstream::Routes;
use crate::worker::lease::clock::Uptime;
use crate::worker::work::unit::BatchContext;

/// How long units wait for an upstream before another process may try them.
const STUCK_AFTER: Duration = Duration::from_secs(20);

impl Dispatch {
    /// Notes what there is to lease: routes that are open, each once.
    pub(crate) fn note_offered(&self, open: Vec<Arc<Routes>>) {
        let limits = self.pool.limits();
        let mut ledger = self.lock();
        let is_known = |routes: &Arc<Routes>| {
            let mut offered = ledger.offered.iter();
            offered.any(|known| known.lane == routes.lane)
        };
        let short = |routes: &Arc<Routes>| {
            let allowed = limits.lane_allowed(routes.lane);
            limits.lane(routes.lane) < allowed
        };
        let is_news = open.iter().any(|new| !is_known(new) && short(new));
        ledger.offered = open;
        drop(ledger);
        if is_news {
            limits.poke();
        }
    }

    /// How many calls at once this process could have in flight under each limit, if it had all
    /// of it. In the order of [`Limits::all`](crate::upstream::Limits::all).
    pub(crate) fn demand(&self) -> Vec<usize> {
        let limits = self.pool.limits();
        let mut demand: Vec<usize> = vec![0; limits.all().count()];
        let ledger = self.lock();
        if ledger.is_closed {
            return demand;
        }
        let mut add = |routes: &Routes, lines: usize| {
            let lines = lines.min(limits.lane_allowed(routes.lane));
            let limits = limits.of_lane(routes.lane).into_iter();
            for limit in limits.chain(routes.upstreams()) {
                demand[limit] = demand[limit].saturating_add(lines);
            }
        };
        for routes in &ledger.offered {
            add(routes, usize::MAX);
        }
        for active in ledger.units() {
            let lines = active.resting() + active.in_flight;
            if let Some(routes) = &active.unit.routes
                && (active.in_flight > 0 || self.pool.may_take(routes))
            {
                add(routes, lines);
            }
        }
        for (demand, (_, allowed)) in demand.iter_mut().zip(limits.all()) {
            *demand = (*demand).min(allowed);
        }
        demand
    }

    /// Calls in flight under each limit, in the same order.
    pub(crate) fn in_flight(&self) -> Vec<usize> {
        let limits = self.pool.limits();
        let ledger = self.lock();
        let mut in_flight = self.pool.in_flight();
        in_flight.resize(limits.all().count(), 0);
        for (id, lane) in ledger.lanes() {
            if let Some(limit) = limits.of_lane(id) {
                in_flight[limit] = lane.in_flight;
            }
        }
        in_flight
    }

    /// Whether this process's shares of the limits are its own: they may be others' by now if it
    /// has had no turn for too long.
    pub(crate) fn shares_hold(&self) -> bool {
        if !self.pool.limits().are_shared() {
            return true;
        }
        let until = self.shares_until.lock();
        let until = *until.unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Uptime::now() < until)
    }

    /// The shares hold until then.
    pub(crate) fn shares_granted(&self, until: Uptime) {
        let mut held = self
            .shares_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *held = Some(until);
    }

    /// The shares have changed. Nothing is chosen by the old ones when this is done.
    pub(crate) fn limits_changed(&self) {
        self.lock().set_limits(|lane| self.pool.limits().lane(lane));
    }

    /// There may be more to send than before.
    pub(crate) fn limits_grew(&self) {
        self.pump.notify_one();
        self.hungry.notify_one();
    }

    /// Lets go of units that no upstream takes at present and of which nothing is on its way, so
    /// that others can use their part of the budget. Returns them, to be given back.
    pub(crate) fn shed(&self) -> Vec<UnitLease> {
        self.shed_where(|routes| !self.pool.was_open(routes))
    }

    /// The same of units that have waited for long while somebody else may send them: another
    /// process, or this one by other routes.
    pub(crate) fn shed_stuck(&self) -> Vec<UnitLease> {
        if !self.pool.is_troubled() {
            return Vec::new();
        }
        let are_shared = self.pool.limits().are_shared();
        let mut ledger = self.lock();
        let stuck = |active: &&ActiveUnit| {
            let unit = &active.unit;
            let Some(routes) = unit.routes.as_ref().filter(|_| active.is_idle()) else {
                return false;
            };
            let since = self.pool.closed_since(routes);
            since.is_some_and(|since| since.elapsed() >= STUCK_AFTER)
                && (are_shared || !self.pool.is_current(routes, &unit.model))
        };
        let stuck: Vec<u64> = ledger
            .units()
            .filter(stuck)
            .map(|active| active.unit.id)
            .collect();
        give_back(&mut ledger, &stuck)
    }

    /// The same of units for which other replicas have the whole limit.
    pub(crate) fn shed_without_share(&self) -> Vec<UnitLease> {
        if !self.shares_hold() {
            return Vec::new();
        }
        self.shed_where(|routes| self.pool.lacks_share(routes))
    }

    fn shed_where(&self, is_stuck: impl Fn(&Routes) -> bool) -> Vec<UnitLease> {
        let mut ledger = self.lock();
        let stuck = |active: &&ActiveUnit| {
            let routes = active.unit.routes.as_ref();
            active.is_idle() && routes.is_some_and(|routes| is_stuck(routes))
        };
        let ids: Vec<u64> = ledger
            .units()
            .filter(stuck)
            .map(|active| active.unit.id)
            .collect();
        give_back(&mut ledger, &ids)
    }

    /// Lets go of what these batches have in hand, where nothing of it is on its way.
    pub(crate) fn shed_batches(&self, ids: &[Arc<str>]) -> Vec<UnitLease> {
        let ids: HashSet<&Arc<str>> = ids.iter().collect();
        let mut ledger = self.lock();
        let units: Vec<u64> = ledger
            .units()
            .filter(|active| ids.contains(&active.unit.batch.id) && active.is_idle())
            .map(|active| active.unit.id)
            .collect();
        give_back(&mut ledger, &units)
    }

    /// Lets go of up to so many units for a batch that has none in hand for want of room: of
    /// tenants, and of its tenant's batches, that had their last turn later. Those that had theirs
    /// last come first.
    pub(crate) fn shed_for(
        &self,
        batch: &BatchContext,
        routes: &Routes,
        most: usize,
    ) -> Vec<UnitLease> {
        let mut ledger = self.lock();
        let domain = self.pool.limits().domain(routes.lane);
        let turns_of = |batch: &BatchContext| {
            let of_tenant = ledger.turns_of(&batch.tenant, domain);
            (of_tenant, ledger.turns_of_batch(&batch.id))
        };
        let waiting = turns_of(batch);
        let mut idle: Vec<_> = ledger
            .units()
            .filter(|active| active.is_idle() && active.unit.routes.is_some())
            .map(|active| (turns_of(&active.unit.batch), active.unit.id))
            .filter(|(turns, _)| *turns > waiting)
            .collect();
        idle.sort_unstable_by(|a, b| b.cmp(a));
        let ids: Vec<u64> = idle.into_iter().take(most).map(|(_, id)| id).collect();
        give_back(&mut ledger, &ids)
    }
}

fn give_back(ledger: &mut Ledger, ids: &[u64]) -> Vec<UnitLease> {
    let mut given = Vec::with_capacity(ids.len());
    for &id in ids {
        if let Some((active, _)) = ledger.release(id) {
            ledger.held_mut().remove(&active.unit.lease.key);
            given.push(active.unit.lease.clone());
        }
    }
    given
}

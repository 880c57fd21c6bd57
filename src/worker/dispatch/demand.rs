//! What this process could send, by which its shares of the limits are decided.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shared::SharedLedger;
use crate::upstream::{Pool, Routes};

pub(crate) struct Demand {
    ledger: Arc<SharedLedger>,
    pool: Arc<Pool>,
    /// Routes that are open and that have units to lease, one entry a lane and set of upstreams.
    on_offer: Mutex<Vec<Arc<Routes>>>,
}

impl Demand {
    pub(crate) fn new(ledger: Arc<SharedLedger>, pool: Arc<Pool>) -> Self {
        let on_offer = Mutex::default();
        Self {
            ledger,
            pool,
            on_offer,
        }
    }

    /// Takes in which routes have units to lease, as the supply has seen it.
    pub(crate) fn set_on_offer(&self, open: Vec<Arc<Routes>>) {
        let limits = self.pool.limits();
        let mut on_offer = self.on_offer();
        let is_known = |routes: &Arc<Routes>| {
            let mut known = on_offer.iter();
            known.any(|known| known.lane == routes.lane)
        };
        let lacks_share = |routes: &Arc<Routes>| {
            let allowed = limits.lane_allowed(routes.lane);
            limits.lane(routes.lane) < allowed
        };
        let is_changed = open.iter().any(|new| !is_known(new) && lacks_share(new));
        *on_offer = open;
        drop(on_offer);
        if is_changed {
            limits.notify_changed();
        }
    }

    /// How many calls at once this process could have in flight under each limit, if it had the
    /// whole limit. In the order of [`Limits::all`](crate::upstream::Limits::all).
    pub(crate) fn of_each_limit(&self) -> Vec<usize> {
        let limits = self.pool.limits();
        let mut demand: Vec<usize> = vec![0; limits.all().count()];
        let ledger = self.ledger.lock();
        if ledger.is_closed() {
            return demand;
        }
        let mut add = |routes: &Routes, lines: usize| {
            let lines = lines.min(limits.lane_allowed(routes.lane));
            let in_reach = self.pool.targets().limits_in_reach(routes);
            for limit in limits.of_lane(routes.lane).into_iter().chain(in_reach) {
                demand[limit] = demand[limit].saturating_add(lines);
            }
        };
        for routes in &*self.on_offer() {
            add(routes, usize::MAX);
        }
        for active in ledger.units() {
            let lines = active.resting().all() + active.in_flight();
            if let Some(routes) = &active.unit().routes
                && (active.in_flight() > 0 || self.pool.targets().is_open(routes))
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
        let ledger = self.ledger.lock();
        let mut in_flight = self.pool.targets().in_flight();
        in_flight.resize(limits.all().count(), 0);
        for (id, lane) in ledger.run_queues().lanes() {
            if let Some(limit) = limits.of_lane(id) {
                in_flight[limit] = lane.in_flight();
            }
        }
        let by_route = self.pool.targets().in_flight_by_route();
        in_flight[limits.routes()].copy_from_slice(&by_route);
        in_flight
    }

    fn on_offer(&self) -> MutexGuard<'_, Vec<Arc<Routes>>> {
        self.on_offer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What this process could send, by which its shares of the limits are decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::shared::SharedLedger;
use super::tenants::Tenants;
use crate::upstream::{Limits, Pool, Routes};

pub(crate) struct Demand {
    ledger: Arc<SharedLedger>,
    pool: Arc<Pool>,
    tenants: Arc<Tenants>,
    on_offer: Mutex<OnOffer>,
}

/// What there is to lease, as the supply has seen it.
#[derive(Default)]
pub(crate) struct OnOffer {
    /// Routes that are open and that have units to lease, one entry a lane and set of upstreams;
    /// and how many calls at once the limits of tenants let their lines have.
    pub open: Vec<(Arc<Routes>, usize)>,
    /// Tenants with such units whose calls at once are limited.
    pub limited: BTreeSet<Arc<str>>,
}

impl Demand {
    pub(crate) fn new(ledger: Arc<SharedLedger>, pool: Arc<Pool>, tenants: Arc<Tenants>) -> Self {
        let on_offer = Mutex::default();
        Self {
            ledger,
            pool,
            tenants,
            on_offer,
        }
    }

    /// Takes in what there is to lease.
    pub(crate) fn set_on_offer(&self, offered: OnOffer) {
        let limits = self.pool.limits();
        let mut on_offer = self.on_offer();
        let is_known = |routes: &Arc<Routes>| {
            let mut known = on_offer.open.iter();
            known.any(|(known, _)| known.lane == routes.lane)
        };
        let lacks_share = |routes: &Arc<Routes>| {
            let allowed = limits.lane_allowed(routes.lane);
            limits.lane(routes.lane) < allowed
        };
        let is_new = |tenant: &Arc<str>| {
            !on_offer.limited.contains(tenant) && !self.tenants.has_whole_limit(tenant)
        };
        let mut open = offered.open.iter();
        let is_changed = open.any(|(new, _)| !is_known(new) && lacks_share(new))
            || offered.limited.iter().any(is_new);
        *on_offer = offered;
        drop(on_offer);
        if is_changed {
            self.pool.sharing().notify_changed();
        }
    }

    /// How many calls at once this process could have in flight under each limit, if it had the
    /// whole limit. By the places of these limits.
    pub(crate) fn of_each_limit(&self, limits: &Limits) -> Vec<usize> {
        let mut demand: Vec<usize> = vec![0; limits.places()];
        let ledger = self.ledger.lock();
        if ledger.is_closed() {
            return demand;
        }
        let mut add = |routes: &Routes, lines: usize| {
            let lines = lines.min(limits.lane_allowed(routes.lane));
            if !self.pool.has(routes) {
                // A line that goes by other routes in a moment.
                return;
            }
            let in_reach = self.pool.targets().limits_in_reach(limits, routes);
            for limit in limits.of_lane(routes.lane).into_iter().chain(in_reach) {
                // The routes may be of a configuration that has come since, with more limits.
                if let Some(demand) = demand.get_mut(limit) {
                    *demand = demand.saturating_add(lines);
                }
            }
        };
        for (routes, calls) in &self.on_offer().open {
            add(routes, *calls);
        }
        // Of a tenant whose calls are limited, no more count than the tenant may have.
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        for active in ledger.units() {
            let tenant = &*active.unit().batch.tenant;
            let left = left
                .entry(tenant)
                .or_insert_with(|| self.tenants.allowed(tenant).unwrap_or(usize::MAX));
            let lines = (active.resting().all() + active.in_flight()).min(*left);
            *left -= lines;
            if let Some(routes) = active.routes()
                && (active.in_flight() > 0 || self.pool.targets().is_open(routes))
            {
                add(routes, lines);
            }
        }
        for (place, _, allowed) in limits.all() {
            demand[place] = demand[place].min(allowed);
        }
        demand
    }

    /// The same of each tenant whose calls at once are limited and who has anything to send here.
    pub(crate) fn of_tenants(&self) -> BTreeMap<Arc<str>, usize> {
        let mut demand = BTreeMap::new();
        let ledger = self.ledger.lock();
        if ledger.is_closed() {
            return demand;
        }
        for tenant in &self.on_offer().limited {
            demand.insert(Arc::clone(tenant), usize::MAX);
        }
        for active in ledger.units() {
            let lines = active.resting().all() + active.in_flight();
            let tenant = &active.unit().batch.tenant;
            let wants = demand.entry(Arc::clone(tenant)).or_insert(0_usize);
            *wants = wants.saturating_add(lines);
        }
        drop(ledger);
        let limited = demand.into_iter().filter_map(|(tenant, wants)| {
            let allowed = self.tenants.allowed(&tenant)?;
            Some((tenant, wants.min(allowed)))
        });
        limited.collect()
    }

    /// Calls in flight of each tenant that has any.
    pub(crate) fn in_flight_of_tenants(&self) -> BTreeMap<Arc<str>, usize> {
        let ledger = self.ledger.lock();
        let tenants = ledger.run_queues().tenants();
        let sending = tenants.filter(|tenant| tenant.in_flight() > 0);
        let sending = sending.map(|tenant| (Arc::clone(tenant.name()), tenant.in_flight()));
        sending.collect()
    }

    /// Calls in flight under each limit, by the same places.
    pub(crate) fn in_flight(&self, limits: &Limits) -> Vec<usize> {
        let ledger = self.ledger.lock();
        let mut in_flight = vec![0; limits.places()];
        let by_upstream = self.pool.targets().in_flight();
        for (in_flight, calls) in in_flight[limits.upstreams()].iter_mut().zip(by_upstream) {
            *in_flight = calls;
        }
        for (id, lane) in ledger.run_queues().lanes() {
            if let Some(limit) = limits.of_lane(id) {
                in_flight[limit] = lane.in_flight();
            }
        }
        // Lines of tasks count for the limits of models, too.
        let by_lane = self.pool.targets().in_flight_by_lane();
        for (in_flight, calls) in in_flight[limits.lanes()].iter_mut().zip(by_lane) {
            *in_flight = calls.max(*in_flight);
        }
        let by_route = self.pool.targets().in_flight_by_route();
        for (in_flight, calls) in in_flight[limits.routes()].iter_mut().zip(by_route) {
            *in_flight = calls;
        }
        let by_window = self.pool.targets().in_flight_by_window();
        for (in_flight, calls) in in_flight[limits.windows()].iter_mut().zip(by_window) {
            *in_flight = calls;
        }
        in_flight
    }

    /// Tenants with units to lease whose calls at once are limited.
    pub(crate) fn limited_on_offer(&self) -> BTreeSet<Arc<str>> {
        self.on_offer().limited.clone()
    }

    fn on_offer(&self) -> MutexGuard<'_, OnOffer> {
        self.on_offer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

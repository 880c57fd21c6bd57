//! What this process could send, for its share of the limits, and what it must let go of.

use std::sync::{Arc, PoisonError};

use super::super::uptime::Uptime;
use super::Dispatch;
use super::state::Entry;
use crate::domain::unit::UnitKey;
use crate::upstream::Routes;

impl Dispatch {
    /// Notes what there is to lease: routes that are open, each once.
    pub(in super::super) fn note_offered(&self, open: Vec<Arc<Routes>>) {
        let limits = self.pool.limits();
        let mut state = self.lock();
        let is_known = |routes: &Arc<Routes>| {
            let mut offered = state.offered.iter();
            offered.any(|known| known.lane == routes.lane)
        };
        let short = |routes: &Arc<Routes>| {
            let allowed = limits.lane_allowed(routes.lane);
            limits.lane(routes.lane) < allowed
        };
        let is_news = open.iter().any(|new| !is_known(new) && short(new));
        state.offered = open;
        drop(state);
        if is_news {
            limits.poke();
        }
    }

    /// How many calls at once this process could have in flight under each limit, if it had all
    /// of it. In the order of [`Limits::all`](crate::upstream::Limits::all).
    pub(in super::super) fn demand(&self) -> Vec<usize> {
        let limits = self.pool.limits();
        let mut demand: Vec<usize> = vec![0; limits.all().count()];
        let state = self.lock();
        if state.closed {
            return demand;
        }
        let mut add = |routes: &Routes, lines: usize| {
            let lines = lines.min(limits.lane_allowed(routes.lane));
            let limits = limits.of_lane(routes.lane).into_iter();
            for limit in limits.chain(routes.upstreams()) {
                demand[limit] = demand[limit].saturating_add(lines);
            }
        };
        for routes in &state.offered {
            add(routes, usize::MAX);
        }
        for entry in state.entries.values() {
            let lines = entry.ready.len() + entry.waiting.len() + entry.in_flight;
            if let Some(routes) = &entry.unit.routes
                && (entry.in_flight > 0 || self.pool.may_take(routes))
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
    pub(in super::super) fn in_flight(&self) -> Vec<usize> {
        let limits = self.pool.limits();
        let state = self.lock();
        let mut in_flight = self.pool.in_flight();
        in_flight.resize(limits.all().count(), 0);
        for (id, lane) in &state.lanes {
            if let Some(limit) = limits.of_lane(*id) {
                in_flight[limit] = lane.in_flight;
            }
        }
        in_flight
    }

    /// Whether this process's shares of the limits are its own: they may be others' by now if it
    /// has had no turn for too long.
    pub(in super::super) fn shares_hold(&self) -> bool {
        if !self.pool.limits().are_shared() {
            return true;
        }
        let until = self.shares_until.lock();
        let until = *until.unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Uptime::now() < until)
    }

    /// The shares hold until then.
    pub(in super::super) fn shares_granted(&self, until: Uptime) {
        let mut held = self
            .shares_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *held = Some(until);
    }

    /// The shares have changed. Nothing is chosen by the old ones when this is done.
    pub(in super::super) fn limits_changed(&self) {
        let mut state = self.lock();
        for (id, lane) in &mut state.lanes {
            lane.limit = self.pool.limits().lane(*id);
        }
    }

    /// There may be more to send than before.
    pub(in super::super) fn limits_grew(&self) {
        self.pump.notify_one();
        self.hungry.notify_one();
    }

    /// Lets go of units that no upstream takes at present and of which nothing is on its way, so
    /// that others can use their part of the budget. Returns them, to be given back.
    pub(in super::super) fn shed(&self) -> Vec<(UnitKey, i64)> {
        self.shed_where(|routes| !self.pool.may_take(routes))
    }

    /// The same of units for which other replicas have the whole limit.
    pub(in super::super) fn shed_without_share(&self) -> Vec<(UnitKey, i64)> {
        if !self.shares_hold() {
            return Vec::new();
        }
        self.shed_where(|routes| self.pool.lacks_share(routes))
    }

    fn shed_where(&self, is_stuck: impl Fn(&Routes) -> bool) -> Vec<(UnitKey, i64)> {
        let mut state = self.lock();
        let idle = |entry: &&Entry| {
            let unwritten = entry
                .unit
                .durable
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .open
                - entry.ready.len()
                - entry.waiting.len();
            let routes = entry.unit.routes.as_ref();
            entry.ending.is_none() && unwritten == 0 && routes.is_some_and(|r| is_stuck(r))
        };
        let ids: Vec<u64> = state
            .entries
            .values()
            .filter(idle)
            .map(|e| e.unit.id)
            .collect();
        let mut shed = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(entry) = state.remove(id) {
                state.held.remove(&entry.unit.key);
                shed.push((entry.unit.key.clone(), entry.unit.epoch));
            }
        }
        shed
    }
}

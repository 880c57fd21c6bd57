//! The choice of the next line: the best held unit whose model and upstream have a free place.

use std::sync::Arc;
use std::time::Instant;

use super::super::held::{Care, HeldUnit};
use super::super::line::{Job, Pending};
use super::Dispatch;
use super::state::{Entry, State};
use crate::upstream::{Acquired, Routes};

/// No fresh line is sent while so many times the permits of its model wait for another attempt:
/// permits that they free must not draw the whole queue into sleep. Those in flight by then may
/// come to wait as well, so one time more may wait at most.
const WAITING_A_PERMIT: usize = 2;

impl Dispatch {
    /// Whether units and shares are this process's now.
    pub(super) fn may_send(&self) -> bool {
        self.lease.holds() && self.shares_hold()
    }

    /// Takes the next line to send, with its permits; counts it as in flight.
    pub(super) fn choose(&self, state: &mut State, now: Instant) -> Option<Job> {
        state.wake_due(now);
        if state.closed || state.alone.is_some() || !self.may_send() {
            return None;
        }
        if state.in_flight > 0 && self.pool.budget().is_full() {
            return None;
        }
        // Routes that have no free place: every unit that takes them must wait.
        let mut full: Vec<*const Routes> = Vec::new();
        loop {
            let served = |routes: &Routes| self.pool.may_take(routes);
            let id = state.best(&full, self.clock.now_ms(), served)?;
            let (routes, avoid, care) = state.entries.get(&id).and_then(|entry| {
                let routes = entry.unit.routes.clone()?;
                Some((routes, entry.ready.front()?.avoid, entry.care))
            })?;
            if care == Care::Alone && state.in_flight > 0 {
                // It waits for what is on its way, and the rest for it.
                return None;
            }
            match self.pool.try_acquire(&routes, avoid) {
                Acquired::Permit(permit) => {
                    let (unit, pending) = state.depart(id)?;
                    state.alone = (care == Care::Alone).then_some(id);
                    if state.runs_short(&unit) {
                        self.hungry.notify_one();
                    }
                    return Some(Job {
                        unit,
                        pending,
                        care,
                        permit: Some(permit),
                    });
                }
                Acquired::Full | Acquired::Closed { .. } => full.push(Arc::as_ptr(&routes)),
            }
        }
    }
}

impl State {
    /// The unit whose next line comes first. One that runs alone does only if its model is served.
    fn best(
        &self,
        full: &[*const Routes],
        now_ms: i64,
        served: impl Fn(&Routes) -> bool,
    ) -> Option<u64> {
        self.next_turn(|entry| {
            self.may_send(entry, full, now_ms)
                && (!entry.runs_alone() || entry.unit.routes.as_deref().is_some_and(&served))
        })
    }

    fn may_send(&self, entry: &Entry, full: &[*const Routes], now_ms: i64) -> bool {
        let (Some(lane), Some(routes)) = (entry.lane, &entry.unit.routes) else {
            return false;
        };
        let (Some(lane), Some(next)) = (self.lanes.get(&lane), entry.ready.front()) else {
            return false;
        };
        // A line that has waited may go although others wait: it was one of them.
        let fresh = next.attempts == 0 && next.avoid.is_none();
        entry.ending.is_none()
            && entry.care_allows(next.line.index)
            && lane.in_flight < lane.limit
            && !(fresh && lane.waiting >= lane.limit.saturating_mul(WAITING_A_PERMIT))
            && !full.contains(&Arc::as_ptr(routes))
            && now_ms < entry.unit.batch.deadline
    }

    /// Takes a unit's first line and counts it as in flight.
    fn depart(&mut self, id: u64) -> Option<(Arc<HeldUnit>, Pending)> {
        let entry = self.entries.get_mut(&id)?;
        let pending = entry.ready.pop_front()?;
        entry.in_flight += 1;
        let unit = entry.unit.clone();
        self.in_flight += 1;
        if let Some(lane) = entry.lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.in_flight += 1;
            lane.ready -= 1;
        }
        self.departed(&unit.batch.tenant);
        Some((unit, pending))
    }

    /// Whether the supply should lease more for a unit's lane; says so once.
    fn runs_short(&mut self, unit: &HeldUnit) -> bool {
        let lane = unit
            .routes
            .as_ref()
            .and_then(|routes| self.lanes.get_mut(&routes.lane));
        lane.is_some_and(|lane| lane.ready < lane.low && std::mem::take(&mut lane.more))
    }
}

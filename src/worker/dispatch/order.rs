//! Whose turn it is. Among tenants the one with the least in flight, and among those the one whose
//! last turn is longest ago; within a tenant first the batch that would miss its deadline, then by
//! priority, then the batch with the least in flight, and so on; within a batch by place in the
//! file. Lines that have failed before come last while it is not known that anything works.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use super::ledger::{ActiveUnit, Batch, BatchFlow, Flow, Ledger};
use super::result::Pending;
use crate::upstream::{Acquired, Permit, Pool, Routes};
use crate::worker::work::isolation::Isolation;
use crate::worker::work::unit::HeldUnit;

/// No fresh line of a tenant is sent while so many times the permits of its model wait for another
/// attempt, of its lines: permits that they free must not draw the whole queue into sleep. Those
/// in flight by then may come to wait as well, so one time more may wait at most.
const WAITING_A_PERMIT: usize = 2;
/// The same where calls succeed: then lines wait for reasons of their own.
const WAITING_A_PERMIT_AT_BEST: usize = 16;
/// What a batch that would miss its deadline may take of a lane, at most: the other batches of its
/// tenant must go on.
const RESCUE_MAX: f64 = 7.0 / 8.0;

/// What is asked of the upstreams.
pub(super) trait Door {
    /// Whether lines that have failed before come last.
    fn is_trial(&self, routes: &Routes) -> bool;
    /// Whether calls succeed there, as far as is known.
    fn works(&self, routes: &Routes) -> bool;
    /// Which limits a lane competes for.
    fn domain(&self, routes: &Routes) -> usize;
    /// Whether anything takes its lines at present.
    fn is_open(&self, routes: &Routes) -> bool;
    fn acquire(&self, routes: &Arc<Routes>, avoid: Option<usize>, batch: u64) -> Option<Permit>;
}

impl Door for Arc<Pool> {
    fn is_trial(&self, routes: &Routes) -> bool {
        self.is_troubled() && Pool::is_trial(self, routes)
    }

    fn works(&self, routes: &Routes) -> bool {
        !self.is_troubled() || Pool::works(self, routes)
    }

    fn domain(&self, routes: &Routes) -> usize {
        self.limits().domain(routes.lane)
    }

    fn is_open(&self, routes: &Routes) -> bool {
        self.may_take(routes)
    }

    fn acquire(&self, routes: &Arc<Routes>, avoid: Option<usize>, batch: u64) -> Option<Permit> {
        match self.try_acquire(routes, avoid, batch) {
            Acquired::Permit(permit) => Some(permit),
            Acquired::Full | Acquired::Closed { .. } => None,
        }
    }
}

/// A line that is sent now.
pub(super) struct Chosen {
    pub(super) unit: Arc<HeldUnit>,
    pub(super) pending: Pending,
    pub(super) permit: Permit,
    /// The supply should lease more.
    pub(super) runs_short: bool,
}

/// Where a line is looked for.
#[derive(Clone, Copy)]
struct Found {
    queue: usize,
    flow: usize,
    is_trial: bool,
    takes_fresh: bool,
}

/// How many lines of a tenant may wait for another attempt before no fresh one is sent. `limit`:
/// of the lane. No bound in a trial, which sends few lines: were they only those that fail
/// whatever the server does, it would never be seen that the server works.
pub(super) fn waiting_max(door: &impl Door, routes: &Routes, limit: usize) -> usize {
    if door.is_trial(routes) {
        return usize::MAX;
    }
    limit.saturating_mul(if door.works(routes) {
        WAITING_A_PERMIT_AT_BEST
    } else {
        WAITING_A_PERMIT
    })
}

impl Ledger {
    /// The next line, with its permit; counts it as in flight.
    pub(super) fn next(&mut self, now_ms: i64, door: &impl Door) -> Option<Chosen> {
        // Queues whose routes have no free place, and flows of which no line may be sent.
        let mut shut: Vec<usize> = Vec::new();
        let mut barred: Vec<(usize, usize)> = Vec::new();
        loop {
            let found = self.best_flow(door, &shut, &barred)?;
            let routes = Arc::clone(&self.queues[found.queue].routes);
            let Some((id, is_retry)) = self.best_line(found, now_ms, &routes) else {
                barred.push((found.queue, found.flow));
                continue;
            };
            let (avoid, stops_all, batch) = self.unit(id).and_then(|active| {
                let lines = if is_retry {
                    &active.retries
                } else {
                    &active.fresh
                };
                let first = lines.front()?;
                let unit = &active.unit;
                let stops_all = unit.isolation().is_some_and(Isolation::stops_all);
                Some((first.avoid, stops_all, unit.batch.number))
            })?;
            if stops_all && self.in_flight() > 0 && door.is_open(&routes) {
                // It waits for what is on its way, and the rest for it.
                return None;
            }
            let Some(permit) = door.acquire(&routes, avoid, batch) else {
                shut.push(found.queue);
                continue;
            };
            let (unit, pending) = self.start(id, is_retry, door.domain(&routes))?;
            if stops_all {
                self.alone = Some(id);
            }
            return Some(Chosen {
                unit,
                pending,
                permit,
                runs_short: self.runs_short(id),
            });
        }
    }

    /// The tenant whose turn it is, in the queue where it has it.
    fn best_flow(
        &self,
        door: &impl Door,
        shut: &[usize],
        barred: &[(usize, usize)],
    ) -> Option<Found> {
        let mut best = None;
        for (queue_key, queue) in &self.queues {
            let Some(lane) = self.lane(queue.routes.lane) else {
                continue;
            };
            if queue.ready == 0 || lane.in_flight >= lane.limit || shut.contains(&queue_key) {
                continue;
            }
            let domain = door.domain(&queue.routes);
            let is_trial = door.is_trial(&queue.routes);
            let waiting_max = waiting_max(door, &queue.routes, lane.limit);
            for (flow_key, flow) in &queue.flows {
                let takes_fresh = flow.waiting < waiting_max;
                let has_fresh = takes_fresh && flow.fresh > 0;
                if !has_fresh && flow.retries == 0 || barred.contains(&(queue_key, flow_key)) {
                    continue;
                }
                let turns = self.tenants[flow.tenant].domains.get(domain).copied();
                let turns = turns.unwrap_or_default();
                // In a trial, whoever has had the last one comes last.
                let last = if is_trial { turns.last } else { 0 };
                let key = (is_trial && !has_fresh, last, turns);
                if best.as_ref().is_none_or(|(least, _)| key < *least) {
                    let found = Found {
                        queue: queue_key,
                        flow: flow_key,
                        is_trial,
                        takes_fresh,
                    };
                    best = Some((key, found));
                }
            }
        }
        best.map(|(_, found)| found)
    }

    /// The next line of a tenant: its unit, and whether it has failed before.
    fn best_line(&self, found: Found, now_ms: i64, routes: &Routes) -> Option<(u64, bool)> {
        let flow: &Flow = &self.queues[found.queue].flows[found.flow];
        let limit = self.lane(routes.lane)?.limit as f64;
        let mut best = None;
        for (_, of_batch) in &flow.batches {
            let batch = &self.batches[of_batch.batch];
            let has_fresh = found.takes_fresh && of_batch.fresh > 0;
            let has_any = has_fresh || of_batch.retries > 0;
            if !has_any || now_ms >= batch.context.deadline {
                continue;
            }
            let key = batch.key(found.is_trial && !has_fresh, limit);
            if best.as_ref().is_some_and(|(least, _)| *least <= key) {
                continue;
            }
            if let Some(line) = self.first_line(of_batch, found) {
                best = Some((key, line));
            }
        }
        best.map(|(_, line)| line)
    }

    fn first_line(&self, of_batch: &BatchFlow, found: Found) -> Option<(u64, bool)> {
        let units = of_batch.ready.iter();
        let mut active = units.filter_map(|(_, id)| self.unit(*id));
        // In a trial, what has not failed goes first, wherever it stands.
        if found.is_trial && found.takes_fresh && of_batch.fresh > 0 {
            let fresh = active
                .by_ref()
                .find(|active| self.may_send(active, active.fresh.front()));
            return fresh.map(|active| (active.unit.id, false));
        }
        active.find_map(|active| {
            let id = active.unit.id;
            if self.may_send(active, active.retries.front()) {
                return Some((id, true));
            }
            let fresh = active.fresh.front().filter(|_| found.takes_fresh);
            self.may_send(active, fresh).then_some((id, false))
        })
    }

    fn may_send(&self, active: &ActiveUnit, next: Option<&Pending>) -> bool {
        let Some(next) = next else { return false };
        active.ending.is_none() && active.allows(next.line.index)
    }
}

/// When a batch has its turn within its tenant.
type BatchKey = (bool, bool, Reverse<i64>, super::ledger::Turns, i64, i64);

impl Batch {
    /// `comes_last`: a trial is under way, and all its lines have failed before. `limit`: of the
    /// lane.
    fn key(&self, comes_last: bool, limit: f64) -> BatchKey {
        let in_flight = self.turns.in_flight as f64;
        let is_rescued = in_flight + 1.0 <= self.needs.min(limit * RESCUE_MAX);
        (
            comes_last,
            !is_rescued,
            Reverse(self.context.priority),
            self.turns,
            self.context.deadline,
            self.context.created_at,
        )
    }
}

impl Ledger {
    /// Whether nothing can be sent at present, whatever there is.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_closed || self.alone.is_some()
    }

    /// The next line, once those that are due have been woken.
    pub(super) fn wake_and_choose(
        &mut self,
        (now, now_ms): (Instant, i64),
        door: &impl Door,
    ) -> Option<Chosen> {
        self.wake_due(now);
        if self.is_stopped() {
            return None;
        }
        self.next(now_ms, door)
    }
}

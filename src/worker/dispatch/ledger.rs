//! What is in hand: the leased units, their lines, and all that is counted of them.
//!
//! The ledger is the one owner. Its fields are private, and each of its transitions keeps the
//! counts true: the lease of a unit is added and removed, a unit is admitted, a line is started,
//! finished, or waits for a retry, a batch ends, a unit is released or revoked. What calls a
//! transition decides; the ledger decides nothing.

pub(crate) mod run_queues;
pub(crate) mod unit;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::late::{Lateness, Moment, OpenBatch, Verdict};
use crate::domain::batch::EndReason;
use crate::domain::unit::{UnitKey, UnitLease};
use crate::upstream::{LaneId, Routes};
use crate::worker::work::line::{OpenLine, Pending};
use crate::worker::work::unit::LoadedUnit;
use run_queues::{Counted, Lane, LaneLimit, Resting, RunQueues, TenantLimit};
use unit::{ActiveUnit, Due, Ready};

#[derive(Default)]
pub(crate) struct Ledger {
    units: BTreeMap<u64, ActiveUnit>,
    run_queues: RunQueues,
    /// Which lines may spill.
    lateness: Lateness,
    /// The epoch of every unit that the store has leased to this process, until the unit's last
    /// flush is accepted.
    leases: HashMap<UnitKey, i64>,
    in_flight: usize,
    /// No waiting line is due before this moment. `None`: no line waits. Kept, so that choosing a
    /// line need not look at every unit.
    wake_at: Option<Instant>,
    /// The unit that has the whole process to itself, until its line is on disk.
    exclusive: Option<u64>,
    is_closed: bool,
}

/// How a line is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Start {
    /// With nothing else of the process in flight.
    pub exclusively: bool,
    /// To a tier above the lowest, because the line would be late otherwise.
    pub is_spilled: bool,
}

/// Lines of a batch that are not in hand, where its routes spill late.
#[derive(Clone, Debug)]
pub(crate) struct NotInHand {
    pub lane: LaneId,
    pub tenant: Arc<str>,
    pub batch: Arc<str>,
    /// Milliseconds since the epoch.
    pub deadline: i64,
    /// This process's part of them.
    pub lines: f64,
}

/// The lines that a transition took out of a unit.
pub(crate) type Taken = (Arc<LoadedUnit>, Vec<Pending>);

/// What anybody may see.
impl Ledger {
    pub(crate) fn unit(&self, id: u64) -> Option<&ActiveUnit> {
        self.units.get(&id)
    }

    pub(crate) fn units(&self) -> impl Iterator<Item = &ActiveUnit> {
        self.units.values()
    }

    pub(crate) fn run_queues(&self) -> &RunQueues {
        &self.run_queues
    }

    /// Which lines may spill to a higher tier, and why.
    pub(crate) fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// Lines in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether nothing new is sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether a unit has the whole process to itself.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }

    /// When the next waiting line may be sent, or the next calls be cut.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let settle = self.units.values().filter_map(ActiveUnit::settle_by);
        settle.chain(self.wake_at).min()
    }

    /// Whether a unit's batch is paused.
    pub(crate) fn is_held(&self, active: &ActiveUnit) -> bool {
        self.run_queues.batch(active.position().batch()).is_held()
    }

    /// Whether a unit is this process's under that lease, as far as is known.
    pub(crate) fn has_lease(&self, lease: &UnitLease) -> bool {
        self.leases.get(&lease.key) == Some(&lease.epoch)
    }

    /// Every unit that the store is taken to have leased to this process.
    pub(crate) fn leases(&self) -> impl Iterator<Item = UnitLease> {
        self.leases.iter().map(|(key, &epoch)| UnitLease {
            key: key.clone(),
            epoch,
        })
    }
}

/// The transitions.
impl Ledger {
    /// A unit was leased, and its text is not read yet. If the unit is in hand under an earlier
    /// lease, that lease was lost unnoticed.
    pub(crate) fn add_lease(&mut self, lease: &UnitLease) {
        let before = self.leases.insert(lease.key.clone(), lease.epoch);
        if let Some(epoch) = before {
            let key = lease.key.clone();
            self.revoke(&[UnitLease { key, epoch }]);
        }
    }

    /// A unit's last flush is written, or the unit is not this process's any more.
    pub(crate) fn remove_lease(&mut self, lease: &UnitLease) {
        if self.has_lease(lease) {
            self.leases.remove(&lease.key);
        }
    }

    /// Takes a unit in hand, with its open lines.
    pub(crate) fn admit(
        &mut self,
        unit: Arc<LoadedUnit>,
        routes: Option<Arc<Routes>>,
        lines: Vec<OpenLine>,
        limit: LaneLimit,
    ) {
        let id = unit.id;
        let position = self.run_queues.enter(&unit, routes.as_ref(), limit);
        let active = ActiveUnit::new(unit, routes, position);
        self.units.insert(id, active);
        self.change(id, |active| active.add(lines));
    }

    /// The lines in hand that are not in flight go by other routes from now on: by those that
    /// `routes` says, given the routes before and the unit.
    pub(crate) fn reroute(
        &mut self,
        routes: impl Fn(&Arc<Routes>, &LoadedUnit) -> Option<Arc<Routes>>,
        limit: impl Fn(&Routes) -> LaneLimit,
    ) {
        for active in self.units.values_mut() {
            let Some(before) = active.routes() else {
                continue;
            };
            let now = routes(before, active.unit());
            if now.as_ref().is_some_and(|now| Arc::ptr_eq(now, before)) {
                continue;
            }
            let (resting, none) = (active.resting(), Resting::default());
            let queues = &mut self.run_queues;
            queues.change(active.position(), active.lane(), resting, none);
            queues.leave(active.position());
            let limit = now.as_ref().map(|now| limit(now)).unwrap_or_default();
            let position = queues.enter(active.unit(), now.as_ref(), limit);
            active.reroute(now, position);
            queues.change(position, active.lane(), none, resting);
        }
        self.run_queues.on_reload();
    }

    /// The first of a unit's fresh lines that begins so is its next one.
    pub(crate) fn seek(&mut self, id: u64, beginning: u64) {
        // No line changes its state.
        if let Some(active) = self.units.get_mut(&id) {
            active.seek(beginning);
        }
    }

    /// A unit's next line is sent.
    pub(crate) fn start(
        &mut self,
        id: u64,
        ready: Ready,
        start: Start,
    ) -> Option<(Arc<LoadedUnit>, Pending, Counted)> {
        let Start {
            exclusively,
            is_spilled,
        } = start;
        let (unit, pending, position, lane) = self.change(id, |active| {
            let pending = active.start(ready)?;
            let unit = Arc::clone(active.unit());
            Some((unit, pending, active.position(), active.lane()))
        })??;
        if let Some(beginnings) = unit.beginnings().filter(|_| ready == Ready::Fresh) {
            let beginning = beginnings.get(&pending.line);
            self.run_queues.begins(position, beginning);
        }
        self.in_flight += 1;
        let routes = self.units.get(&id).and_then(ActiveUnit::routes);
        let spills_late = routes.is_some_and(|routes| routes.spill_late());
        let counted = self
            .run_queues
            .on_start(position, lane, (is_spilled, spills_late));
        if let Some(lane) = lane.filter(|_| is_spilled) {
            let batch = &unit.batch;
            self.lateness.on_spill(lane, &batch.tenant, &batch.id);
        }
        if exclusively {
            self.exclusive = Some(id);
        }
        Some((unit, pending, counted))
    }

    /// Lines of a unit go with a line of it that was started, in one call: the next ones of those
    /// that are ready, as long as `takes` takes them. `counted`: what the start has returned.
    pub(crate) fn join(
        &mut self,
        id: u64,
        ready: Ready,
        counted: &mut Counted,
        mut takes: impl FnMut(&OpenLine) -> bool,
    ) -> Vec<Pending> {
        let spilled = counted.lane.filter(|_| counted.is_spilled);
        let mut most = usize::MAX;
        if let (Some(lane), Some(active)) = (spilled, self.units.get(&id)) {
            let batch = &active.unit().batch;
            most = self.lateness.allowed(lane, &batch.tenant, &batch.id);
        }
        let joined = self.change(id, |active| active.join(ready, most, &mut takes));
        let joined = joined.unwrap_or_default();
        self.in_flight += joined.len();
        counted.lines += joined.len();
        if let (Some(lane), Some(active)) = (spilled, self.units.get(&id)) {
            let batch = &active.unit().batch;
            for _ in &joined {
                self.lateness.on_spill(lane, &batch.tenant, &batch.id);
            }
        }
        joined
    }

    /// A line has come back, with those that shared its call. `counted`: what its start has returned.
    /// `took`: how long, if the line has its outcome. The line's unit may not be in hand any more.
    pub(crate) fn finish(&mut self, unit: &LoadedUnit, counted: Counted, took: Option<Duration>) {
        self.in_flight -= counted.lines;
        if let (Some(took), Some(lane)) = (took, counted.lane)
            && counted.spills_late
        {
            let tenant = &unit.batch.tenant;
            for _ in 0..counted.lines {
                self.lateness
                    .on_finish(lane, tenant, took, counted.is_spilled);
            }
        }
        let active = self.units.get_mut(&unit.id);
        let position = active.map(|active| {
            active.finish(counted.lines);
            active.position()
        });
        self.run_queues.on_finish(unit, position, (counted, took));
    }

    /// A line that has come back waits for its next attempt. If its unit is not in hand any more,
    /// the line is not this process's either.
    pub(crate) fn retry_at(&mut self, id: u64, due: Due, pending: Pending) {
        if self
            .change(id, |active| active.wait(due, pending))
            .is_some()
        {
            self.wake_at = self.wake_at.into_iter().chain([due.at]).min();
        }
    }

    /// Lines that are due may be sent again.
    pub(crate) fn wake(&mut self, now: Instant) {
        if self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        let is_due = |active: &&ActiveUnit| active.next_due().is_some_and(|due| due <= now);
        for id in self.ids(is_due) {
            self.change(id, |active| active.wake(now));
        }
        self.wake_at = self.units.values().filter_map(ActiveUnit::next_due).min();
    }

    /// A call has succeeded, or an operator has mended something: lines that wait for that are due
    /// sooner.
    pub(crate) fn hasten(&mut self, now: Instant) {
        // A line only becomes due sooner, so the counts stay.
        self.units
            .values_mut()
            .for_each(|active| active.hasten(now));
        let due = self.units.values().filter_map(ActiveUnit::next_due);
        self.wake_at = due.chain(self.wake_at).min();
    }

    /// A batch ends: takes the lines that are not in flight, and lets calls in flight settle.
    pub(crate) fn end_batch(
        &mut self,
        batch_id: &str,
        end_reason: EndReason,
        settle_by: Instant,
    ) -> Vec<Taken> {
        let is_of_batch = |active: &&ActiveUnit| {
            *active.unit().batch.id == *batch_id && active.end_reason() != Some(end_reason)
        };
        let ids = self.ids(is_of_batch);
        for id in &ids {
            if let Some(active) = self.units.get_mut(id) {
                active.end(end_reason, settle_by);
            }
        }
        self.take_resting(ids)
    }

    /// Nobody has a model of a batch: takes the model's lines that are not in flight.
    pub(crate) fn end_model(&mut self, batch_id: &str, model_no: i64) -> Vec<Taken> {
        let is_of_model = |active: &&ActiveUnit| {
            let unit = active.unit();
            *unit.batch.id == *batch_id
                && unit.lease.key.model_no == model_no
                && active.end_reason().is_none()
        };
        self.take_resting(self.ids(is_of_model))
    }

    /// Cuts calls whose batch has ended and that had their time to settle.
    pub(crate) fn cut_settled(&mut self, now: Instant) {
        let units = self.units.values_mut();
        units.for_each(|active| active.cut_settled(now));
    }

    /// Takes a unit out of which all lines have ended; its flush does the rest. True if its tenant
    /// runs short of ready lines while the supply has more units for it.
    pub(crate) fn remove_if_spent(&mut self, id: u64) -> bool {
        let is_spent = self.units.get(&id).is_some_and(ActiveUnit::is_spent);
        // The unit may keep the process to itself: its line may be on its way to the disk.
        is_spent && self.remove(id).is_some_and(|(_, runs_short)| runs_short)
    }

    /// The unit does not need the process to itself any more. True if it did.
    pub(crate) fn end_exclusive(&mut self, id: u64) -> bool {
        self.exclusive.take_if(|unit| *unit == id).is_some()
    }

    /// Takes units out with their leases, which are to be given back to the store.
    pub(crate) fn release(&mut self, ids: &[u64]) -> Vec<UnitLease> {
        let mut released = Vec::with_capacity(ids.len());
        for &id in ids {
            self.end_exclusive(id);
            if let Some((active, _)) = self.remove(id) {
                let lease = &active.unit().lease;
                self.leases.remove(&lease.key);
                released.push(lease.clone());
            }
        }
        released
    }

    /// These leases are not this process's any more: cuts the units' calls, and takes out the
    /// units, whether their text is read or not.
    pub(crate) fn revoke(&mut self, lost: &[UnitLease]) {
        let epochs = lost.iter().map(|lease| (&lease.key, lease.epoch));
        let epochs: HashMap<&UnitKey, i64> = epochs.collect();
        let is_lost = |active: &&ActiveUnit| {
            let lease = &active.unit().lease;
            epochs.get(&lease.key) == Some(&lease.epoch)
        };
        for id in self.ids(is_lost) {
            self.cut(id);
        }
        let leases = &mut self.leases;
        leases.retain(|key, epoch| epochs.get(key) != Some(&*epoch));
    }

    /// One unit is not this process's any more.
    pub(crate) fn revoke_unit(&mut self, unit: &LoadedUnit) {
        unit.cut.cancel();
        self.cut(unit.id);
        self.remove_lease(&unit.lease);
    }

    /// Takes out everything, because the process stops.
    pub(crate) fn revoke_all(&mut self) {
        for id in self.ids(|_| true) {
            self.cut(id);
        }
        self.leases.clear();
    }

    /// Nothing new is sent from now on.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    /// Whether the supply should lease more for a unit's tenant. True once.
    pub(crate) fn runs_short(&mut self, id: u64) -> bool {
        let position = self.units.get(&id).map(ActiveUnit::position);
        position.is_some_and(|position| self.run_queues.runs_short(position))
    }

    /// Sets this process's shares of the lanes' limits.
    pub(crate) fn set_limits(&mut self, limit: impl Fn(LaneId) -> LaneLimit) {
        self.run_queues.set_limits(limit);
    }

    /// Sets what a tenant may send, where anything of it is in hand or was.
    pub(crate) fn set_tenant_limit(&mut self, name: &str, limit: TenantLimit) {
        self.run_queues.set_tenant_limit(name, limit);
    }

    /// Sets what each tenant may send of which anything is in hand or was.
    pub(crate) fn set_tenant_limits(&mut self, limit: impl Fn(&str) -> TenantLimit) {
        self.run_queues.set_tenant_limits(limit);
    }

    /// Sets which batches are paused: no line of theirs begins. True if others were before.
    pub(crate) fn set_held(&mut self, held: HashSet<String>) -> bool {
        self.run_queues.set_held(held)
    }

    /// Sets how many ready lines the tenants should have, by lane and tenant, where the supply has
    /// more units to lease.
    pub(crate) fn set_low_water(&mut self, wanted: &HashMap<(LaneId, Arc<str>), usize>) {
        self.run_queues.set_low_water(wanted);
    }

    /// Estimates how many calls at once batches need so as to be done in time. `waiting`: lines
    /// that are not in hand, by batch.
    pub(crate) fn set_needs(&mut self, waiting: &HashMap<String, usize>, now_ms: i64) {
        let mut in_hand: HashMap<usize, (usize, Option<f64>)> = HashMap::new();
        for active in self.units.values() {
            let of_batch = in_hand.entry(active.position().batch()).or_default();
            of_batch.0 += active.resting().all() + active.in_flight();
            let lane = active.lane().and_then(|lane| self.run_queues.lane(lane));
            let seconds = lane.and_then(Lane::seconds);
            of_batch.1 = of_batch.1.into_iter().chain(seconds).reduce(f64::max);
        }
        for (batch, (lines, seconds)) in in_hand {
            self.run_queues.set_needs(batch, |context| {
                let waiting = waiting.get(&*context.id).copied().unwrap_or(0);
                let left_ms = context.deadline.saturating_sub(now_ms);
                needed((lines + waiting) as f64, seconds, left_ms)
            });
        }
    }

    /// Judges which batches would be late, of those whose routes spill late: see
    /// [`late`](super::late). Returns the verdicts that have changed.
    pub(crate) fn judge_lateness(
        &mut self,
        not_in_hand: Vec<NotInHand>,
        now: Instant,
        now_ms: i64,
    ) -> Vec<Verdict> {
        let mut flows: BTreeMap<(LaneId, Arc<str>), Judged> = BTreeMap::new();
        for (_, queue) in self.run_queues.queues() {
            let (lane, is_late) = (queue.routes().lane, queue.routes().spill_late());
            for (_, flow) in queue.flows().filter(|_| is_late) {
                let tenant = self.run_queues.tenant(flow.tenant());
                let domain = self.run_queues.lane(lane).map_or(0, Lane::domain);
                let key = (lane, Arc::clone(tenant.name()));
                let of_flow = flows.entry(key).or_default();
                of_flow.in_flight = tenant.unspilled(domain);
                let resting = flow.resting();
                let is_idle = of_flow.in_flight == 0;
                of_flow.is_waiting |= resting.ready() > 0 || is_idle && resting.waiting > 0;
                for of_batch in flow.batches() {
                    let context = self.run_queues.batch(of_batch.batch()).context();
                    let (lines, deadline) = (of_batch.resting().all() as f64, context.deadline);
                    of_flow.add(&context.id, lines, deadline);
                }
            }
        }
        for more in not_in_hand {
            let of_flow = flows.entry((more.lane, more.tenant)).or_default();
            of_flow.add(&more.batch, more.lines, more.deadline);
        }
        let mut changed = self.lateness.leave_all_but(|key| flows.contains_key(key));
        for ((lane, tenant), of_flow) in flows {
            let moment = Moment {
                now,
                is_waiting: of_flow.is_waiting,
                in_flight: of_flow.in_flight,
            };
            let open = of_flow.open(now_ms);
            changed.extend(self.lateness.judge(lane, &tenant, open, moment));
        }
        self.lateness.forget(now);
        self.hasten_late(now);
        changed
    }

    /// The time of late batches is up: their lines do not wait for their next attempt any more.
    fn hasten_late(&mut self, now: Instant) {
        let up = self.lateness.take_up();
        if up.is_empty() {
            return;
        }
        for active in self.units.values_mut() {
            let batch = Arc::clone(&active.unit().batch.id);
            if active
                .lane()
                .is_some_and(|lane| up.contains(&(lane, batch)))
            {
                active.hasten_all(now);
            }
        }
        self.wake_at = self.units.values().filter_map(ActiveUnit::next_due).min();
    }

    /// Changes the resting lines of a unit, and all that is counted of them.
    fn change<T>(&mut self, id: u64, change: impl FnOnce(&mut ActiveUnit) -> T) -> Option<T> {
        let active = self.units.get_mut(&id)?;
        let before = active.resting();
        let outcome = change(active);
        let (position, lane, after) = (active.position(), active.lane(), active.resting());
        self.run_queues.change(position, lane, before, after);
        Some(outcome)
    }

    fn take_resting(&mut self, ids: Vec<u64>) -> Vec<Taken> {
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            taken.extend(self.change(id, |active| {
                (Arc::clone(active.unit()), active.take_resting())
            }));
            self.remove_if_spent(id);
        }
        taken
    }

    /// Takes a unit out, whatever it has. True if its tenant runs short of ready lines.
    fn remove(&mut self, id: u64) -> Option<(ActiveUnit, bool)> {
        let active = self.units.remove(&id)?;
        let (position, resting) = (active.position(), active.resting());
        let none = Resting::default();
        self.run_queues
            .change(position, active.lane(), resting, none);
        let runs_short = self.run_queues.leave(position);
        Some((active, runs_short))
    }

    fn cut(&mut self, id: u64) {
        self.end_exclusive(id);
        if let Some((active, _)) = self.remove(id) {
            active.unit().cut.cancel();
        }
    }

    fn ids(&self, of: impl Fn(&&ActiveUnit) -> bool) -> Vec<u64> {
        self.units.values().filter(of).map(ActiveUnit::id).collect()
    }
}

/// A tenant's lines in a lane, as they are gathered to be judged.
#[derive(Default)]
struct Judged {
    is_waiting: bool,
    in_flight: usize,
    /// Lines and deadline, by batch.
    batches: HashMap<Arc<str>, (f64, i64)>,
}

impl Judged {
    /// A batch without a window is never late.
    fn add(&mut self, batch: &Arc<str>, lines: f64, deadline: i64) {
        if deadline < i64::MAX && lines > 0.0 {
            let of_batch = self.batches.entry(Arc::clone(batch));
            of_batch.or_insert((0.0, deadline)).0 += lines;
        }
    }

    fn open(self, now_ms: i64) -> Vec<OpenBatch> {
        let batches = self.batches.into_iter();
        let open = batches.map(|(id, (lines, deadline))| {
            let left_ms = u64::try_from(deadline.saturating_sub(now_ms)).unwrap_or(0);
            let left = Duration::from_millis(left_ms);
            OpenBatch { id, lines, left }
        });
        open.collect()
    }
}

/// How many calls at once so many lines need, of so many seconds each, so as to be done in the
/// time that is left. A little more than that, because it is an estimate.
pub(crate) fn needed(lines: f64, seconds: Option<f64>, left_ms: i64) -> f64 {
    const MARGIN: f64 = 1.1;
    let left = left_ms.max(1) as f64 / 1000.0;
    lines * seconds.unwrap_or(0.0) * MARGIN / left
}

#[cfg(test)]
mod tests;

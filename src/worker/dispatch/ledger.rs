//! What is in hand: units and their lines, by routes, tenant and batch. One owner of all counts:
//! every transition goes through [`Ledger::change`], which applies what has changed in a unit to
//! all that is counted of it. [`order`](super::order) chooses among what is ready.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use slab::Slab;

use super::result::Pending;
use crate::domain::batch::EndReason;
use crate::domain::unit::UnitKey;
use crate::upstream::{LaneId, Routes};
use crate::worker::work::unit::{BatchContext, HeldUnit, OpenLine};

/// Tenants, and batches, of which nothing is in hand but whose last turn is remembered. Forgotten,
/// they would come first.
const REMEMBERED_MAX: usize = 4_096;
/// How much of a lane's time a call the latest one counts for.
const LATEST_CALL: f64 = 0.1;

#[derive(Default)]
pub(super) struct Ledger {
    units: BTreeMap<u64, ActiveUnit>,
    pub(super) queues: Slab<Queue>,
    pub(super) tenants: Slab<Tenant>,
    tenants_by_name: HashMap<Arc<str>, usize>,
    pub(super) batches: Slab<Batch>,
    batches_by_id: HashMap<Arc<str>, usize>,
    lanes: BTreeMap<LaneId, Lane>,
    /// Every unit that the store says is ours, until its last flush is accepted.
    held: HashMap<UnitKey, i64>,
    in_flight: usize,
    /// No line that waits is due before; none waits where there is none. Kept, so that choosing a
    /// line need not look at every unit.
    wake_at: Option<Instant>,
    /// Counts turns: who had the last one has the highest.
    turns: u64,
    /// The unit whose line runs with nothing else on its way, until it is on disk.
    pub(super) alone: Option<u64>,
    /// What there is to lease, as the supply has seen it: routes that are open, each once.
    pub(super) offered: Vec<Arc<Routes>>,
    pub(super) is_closed: bool,
}

/// All that goes the same way: units of a model, or of several with the same routes.
pub(super) struct Queue {
    pub(super) routes: Arc<Routes>,
    pub(super) flows: Slab<Flow>,
    pub(super) ready: usize,
}

/// A tenant's lines in a queue.
pub(super) struct Flow {
    pub(super) tenant: usize,
    /// Lines that have not failed.
    pub(super) fresh: usize,
    /// Lines that have failed before, and may be sent again.
    pub(super) retries: usize,
    /// Lines that wait for their next attempt.
    pub(super) waiting: usize,
    units: usize,
    pub(super) batches: Slab<BatchFlow>,
    /// Below so many ready lines the supply is told, once, if it has more to lease.
    low: usize,
    has_more: bool,
}

/// A batch's lines in a flow.
pub(super) struct BatchFlow {
    pub(super) batch: usize,
    pub(super) fresh: usize,
    pub(super) retries: usize,
    /// Units with lines that are ready, in the order of the file.
    pub(super) ready: BTreeSet<(i64, u64)>,
    units: usize,
}

/// What is known of a tenant that has, or had, something in hand.
pub(super) struct Tenant {
    name: Arc<str>,
    /// Its lines in flight, and when it had its last turn: by domain, for tenants share what they
    /// compete for.
    pub(super) domains: Vec<Turns>,
    /// In any domain.
    in_flight: usize,
    units: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turns {
    pub(super) in_flight: usize,
    pub(super) last: u64,
}

pub(super) struct Batch {
    pub(super) context: Arc<BatchContext>,
    pub(super) turns: Turns,
    /// Calls at once without which it misses its deadline, as the supply estimates it.
    pub(super) needs: f64,
    units: usize,
}

#[derive(Default)]
pub(super) struct Lane {
    /// This process's share of it, kept here so that choosing need not ask.
    pub(super) limit: usize,
    pub(super) in_flight: usize,
    pub(super) waiting: usize,
    pub(super) ready: usize,
    /// Lines that were ever answered: the supply tells the rate from it.
    answered: u64,
    /// How long a call takes.
    seconds: Option<f64>,
}

/// A unit with lines that are not ended.
pub(super) struct ActiveUnit {
    pub(super) unit: Arc<HeldUnit>,
    pub(super) fresh: VecDeque<Pending>,
    pub(super) retries: VecDeque<Pending>,
    pub(super) waiting: BinaryHeap<Waiting>,
    pub(super) in_flight: usize,
    pub(super) ending: Option<EndReason>,
    /// When calls in flight are cut, once the batch is ending.
    settle_by: Option<Instant>,
    place: Place,
}

/// Where a unit stands.
#[derive(Clone, Copy)]
struct Place {
    tenant: usize,
    batch: usize,
    /// Its queue, flow and batch's flow; `None`: its lines are not sent.
    queue: Option<(usize, usize, usize)>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    fresh: usize,
    retries: usize,
    waiting: usize,
}

/// A line that waits for its next attempt. Ordered so that a heap gives the earliest first.
pub(super) struct Waiting {
    pub(super) due: Instant,
    pub(super) pending: Pending,
    /// When it may be sent if a call has succeeded where it failed.
    pub(super) soonest: Option<Instant>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl ActiveUnit {
    fn counts(&self) -> Counts {
        Counts {
            fresh: self.fresh.len(),
            retries: self.retries.len(),
            waiting: self.waiting.len(),
        }
    }

    fn is_spent(&self) -> bool {
        let Counts {
            fresh,
            retries,
            waiting,
        } = self.counts();
        self.in_flight == 0 && fresh == 0 && retries == 0 && waiting == 0
    }

    /// Lines that are not on their way.
    pub(super) fn resting(&self) -> usize {
        self.fresh.len() + self.retries.len() + self.waiting.len()
    }

    /// Whether nothing of it is on its way, to a model server or to the disk.
    pub(super) fn is_idle(&self) -> bool {
        let durable = self.unit.durable.lock();
        let open = durable.unwrap_or_else(PoisonError::into_inner).open;
        self.ending.is_none() && open == self.resting()
    }

    /// Whether a line may be sent beside those that are on their way or wait.
    pub(super) fn allows(&self, next: u32) -> bool {
        self.unit.isolation().is_none_or(|isolation| {
            self.in_flight < isolation.at_once()
                && isolation.allows(next)
                && (!isolation.is_single() || self.waiting.is_empty() && self.is_idle())
        })
    }

    /// Lines that could be sent if there were permits.
    pub(super) fn sendable(&self) -> usize {
        let ready = self.fresh.len() + self.retries.len();
        self.unit.isolation().map_or(ready, |isolation| {
            if !isolation.is_single() {
                return ready.min(isolation.at_once());
            }
            // While a suspect waits, others are sent.
            let suspects = self.retries.iter().chain(&self.fresh);
            let suspects = suspects.filter(|pending| isolation.allows(pending.line.index));
            if self.waiting.is_empty() {
                suspects.count()
            } else {
                0
            }
        })
    }

    /// Takes all lines that are not on their way.
    fn take_resting(&mut self) -> Vec<Pending> {
        let mut taken: Vec<Pending> = self.retries.drain(..).collect();
        taken.extend(self.fresh.drain(..));
        taken.extend(self.waiting.drain().map(|waiting| waiting.pending));
        taken
    }
}

impl Flow {
    /// Lines that are ready.
    pub(super) fn ready(&self) -> usize {
        self.fresh + self.retries
    }
}

impl Ledger {
    pub(super) fn unit(&self, id: u64) -> Option<&ActiveUnit> {
        self.units.get(&id)
    }

    pub(super) fn units(&self) -> impl Iterator<Item = &ActiveUnit> {
        self.units.values()
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        self.lanes.iter().map(|(&id, lane)| (id, lane))
    }

    pub(super) fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.get(&id)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn held(&self) -> &HashMap<UnitKey, i64> {
        &self.held
    }

    pub(super) fn held_mut(&mut self) -> &mut HashMap<UnitKey, i64> {
        &mut self.held
    }

    /// Sets this process's shares anew.
    pub(super) fn set_limits(&mut self, limit: impl Fn(LaneId) -> usize) {
        for (id, lane) in &mut self.lanes {
            lane.limit = limit(*id);
        }
    }

    /// Takes a unit in hand, with its open lines. `domain`: of its lane. Returns lines that are not
    /// to be sent.
    pub(super) fn admit(
        &mut self,
        unit: &Arc<HeldUnit>,
        lines: Vec<OpenLine>,
        (limit, domain): (usize, usize),
    ) {
        let tenant = self.tenant_of(&unit.batch.tenant);
        let batch = self.batch_of(&unit.batch);
        self.tenants[tenant].units += 1;
        self.batches[batch].units += 1;
        let queue = unit.routes.as_ref().map(|routes| {
            self.lanes.entry(routes.lane).or_default().limit = limit;
            let domains = &mut self.tenants[tenant].domains;
            if domains.len() <= domain {
                domains.resize(domain + 1, Turns::default());
            }
            self.place_in(routes, tenant, batch)
        });
        let active = ActiveUnit {
            unit: Arc::clone(unit),
            fresh: VecDeque::new(),
            retries: VecDeque::new(),
            waiting: BinaryHeap::new(),
            in_flight: 0,
            ending: None,
            settle_by: None,
            place: Place {
                tenant,
                batch,
                queue,
            },
        };
        self.units.insert(unit.id, active);
        let fresh = lines.into_iter().map(Pending::new);
        self.change(unit.id, |active| active.fresh.extend(fresh));
    }

    /// Changes what a unit has, and all that is counted of it.
    pub(super) fn change<T>(
        &mut self,
        id: u64,
        change: impl FnOnce(&mut ActiveUnit) -> T,
    ) -> Option<T> {
        let active = self.units.get_mut(&id)?;
        let before = active.counts();
        let outcome = change(active);
        let (after, place) = (active.counts(), active.place);
        let key = (active.unit.lease.key.chunk_no, id);
        let lane = active.unit.routes.as_ref().map(|routes| routes.lane);
        self.apply(place, lane, key, before, after);
        Some(outcome)
    }

    fn apply(
        &mut self,
        place: Place,
        lane: Option<LaneId>,
        key: (i64, u64),
        before: Counts,
        after: Counts,
    ) {
        let Some((queue, flow, batch)) = place.queue else {
            return;
        };
        let moved = |count: &mut usize, of: fn(&Counts) -> usize| {
            *count = *count + of(&after) - of(&before);
        };
        let ready = |counts: &Counts| counts.fresh + counts.retries;
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            moved(&mut lane.ready, ready);
            moved(&mut lane.waiting, |counts| counts.waiting);
        }
        let queue = &mut self.queues[queue];
        moved(&mut queue.ready, ready);
        let flow = &mut queue.flows[flow];
        moved(&mut flow.fresh, |counts| counts.fresh);
        moved(&mut flow.retries, |counts| counts.retries);
        moved(&mut flow.waiting, |counts| counts.waiting);
        let batch = &mut flow.batches[batch];
        moved(&mut batch.fresh, |counts| counts.fresh);
        moved(&mut batch.retries, |counts| counts.retries);
        if ready(&before) == 0 && ready(&after) > 0 {
            batch.ready.insert(key);
        } else if ready(&before) > 0 && ready(&after) == 0 {
            batch.ready.remove(&key);
        }
    }

    /// A unit's next line is sent: from those that have failed before, or from those that have
    /// not. `domain`: of its lane.
    pub(super) fn start(
        &mut self,
        id: u64,
        is_retry: bool,
        domain: usize,
    ) -> Option<(Arc<HeldUnit>, Pending)> {
        let taken = self.change(id, |active| {
            let lines = if is_retry {
                &mut active.retries
            } else {
                &mut active.fresh
            };
            let pending = lines.pop_front()?;
            active.in_flight += 1;
            let lane = active.unit.routes.as_ref().map(|routes| routes.lane);
            Some((active.unit.clone(), pending, active.place, lane))
        });
        let (unit, pending, place, lane) = taken??;
        self.turns += 1;
        self.in_flight += 1;
        let tenant = &mut self.tenants[place.tenant];
        tenant.in_flight += 1;
        if let Some(turns) = tenant.domains.get_mut(domain) {
            turns.in_flight += 1;
            turns.last = self.turns;
        }
        let batch = &mut self.batches[place.batch];
        batch.turns.in_flight += 1;
        batch.turns.last = self.turns;
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.in_flight += 1;
        }
        Some((unit, pending))
    }

    /// Whether the supply should lease more for a unit's tenant; says so once.
    pub(super) fn runs_short(&mut self, id: u64) -> bool {
        let place = self.units.get(&id).and_then(|active| active.place.queue);
        let Some((queue, flow, _)) = place else {
            return false;
        };
        let flow = &mut self.queues[queue].flows[flow];
        flow.ready() < flow.low && std::mem::take(&mut flow.has_more)
    }

    /// A line has come back after so long. Its unit may not be in hand any more.
    pub(super) fn finish(
        &mut self,
        unit: &HeldUnit,
        domain: usize,
        (has_ended, took): (bool, Duration),
    ) {
        self.in_flight -= 1;
        if let Some(&tenant) = self.tenants_by_name.get(&unit.batch.tenant) {
            let tenant = &mut self.tenants[tenant];
            tenant.in_flight -= 1;
            if let Some(turns) = tenant.domains.get_mut(domain) {
                turns.in_flight -= 1;
            }
        }
        if let Some(&batch) = self.batches_by_id.get(&unit.batch.id) {
            self.batches[batch].turns.in_flight -= 1;
        }
        let lane = unit.routes.as_ref().map(|routes| routes.lane);
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.in_flight -= 1;
            if has_ended {
                lane.answered += 1;
                let took = took.as_secs_f64();
                let before = lane.seconds.unwrap_or(took);
                lane.seconds = Some(before + (took - before) * LATEST_CALL);
            }
        }
        if let Some(active) = self.units.get_mut(&unit.id) {
            active.in_flight -= 1;
        }
    }

    /// Has a line of a unit wait until then, or sooner, if a call succeeds where it failed. If the
    /// unit is not in hand any more, the line is not ours either.
    pub(super) fn retry_at(
        &mut self,
        id: u64,
        (due, soonest): (Instant, Option<Instant>),
        pending: Pending,
    ) {
        let waiting = Waiting {
            due,
            pending,
            soonest,
        };
        if self
            .change(id, |active| active.waiting.push(waiting))
            .is_some()
        {
            self.wake_at = Some(self.wake_at.map_or(due, |at| at.min(due)));
        }
    }

    /// Lines whose wait is over may be sent again.
    pub(super) fn wake_due(&mut self, now: Instant) {
        if self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        self.wake_at = None;
        let first = |active: &ActiveUnit| active.waiting.peek().map(|first| first.due);
        let due: Vec<u64> = self
            .units
            .values()
            .filter(|active| first(active).is_some_and(|due| due <= now))
            .map(|active| active.unit.id)
            .collect();
        for id in due {
            self.change(id, |active| {
                while active.waiting.peek().is_some_and(|first| first.due <= now) {
                    if let Some(waiting) = active.waiting.pop() {
                        active.retries.push_back(waiting.pending);
                    }
                }
            });
        }
        self.wake_at = self.units.values().filter_map(first).min();
    }

    /// Lines that wait for a success where they failed need not wait for longer, where one has
    /// come; nor do those that failed at what an operator has mended since.
    pub(super) fn hasten(&mut self, now: Instant) {
        let mut next = self.wake_at;
        for active in self.units.values_mut() {
            if active.waiting.is_empty() {
                continue;
            }
            let lines = std::mem::take(&mut active.waiting).into_iter();
            active.waiting = lines
                .map(|mut line| {
                    let history = &line.pending.history;
                    if history.is_reset() {
                        line.due = line.due.min(now);
                    } else if let Some(soonest) = line.soonest
                        && history.is_hastened()
                    {
                        line.due = line.due.min(soonest);
                        line.soonest = None;
                    }
                    line
                })
                .collect();
            next = next
                .into_iter()
                .chain(active.waiting.peek().map(|first| first.due))
                .min();
        }
        self.wake_at = next;
    }

    /// Takes the lines of a batch that have not been sent, by unit.
    pub(super) fn end_batch(
        &mut self,
        batch_id: &str,
        ending: EndReason,
        settle_by: Instant,
    ) -> Vec<(Arc<HeldUnit>, Vec<Pending>)> {
        let of_batch = |active: &&ActiveUnit| {
            *active.unit.batch.id == *batch_id && active.ending != Some(ending)
        };
        let ids: Vec<u64> = self
            .units
            .values()
            .filter(of_batch)
            .map(|active| active.unit.id)
            .collect();
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            taken.extend(self.change(id, |active| {
                active.ending = Some(ending);
                active.settle_by.get_or_insert(settle_by);
                (active.unit.clone(), active.take_resting())
            }));
            self.remove_if_spent(id);
        }
        taken
    }

    /// Takes the lines of a model of a batch that have not been sent, by unit.
    pub(super) fn take_lines(
        &mut self,
        batch_id: &str,
        model_no: i64,
    ) -> Vec<(Arc<HeldUnit>, Vec<Pending>)> {
        let of_model = |active: &&ActiveUnit| {
            let unit = &active.unit;
            *unit.batch.id == *batch_id
                && unit.lease.key.model_no == model_no
                && active.ending.is_none()
        };
        let ids: Vec<u64> = self
            .units
            .values()
            .filter(of_model)
            .map(|active| active.unit.id)
            .collect();
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            taken.extend(self.change(id, |active| (active.unit.clone(), active.take_resting())));
            self.remove_if_spent(id);
        }
        taken
    }

    /// Cuts calls whose batch has ended and that had their time to settle.
    pub(super) fn cut_settled(&mut self, now: Instant) {
        for active in self.units.values_mut() {
            if active.settle_by.is_some_and(|by| by <= now) {
                active.unit.cut.cancel();
                active.settle_by = None;
            }
        }
    }

    /// When the next line that waits may be sent, or the next call be cut.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let settle = self.units.values().filter_map(|active| active.settle_by);
        settle.chain(self.wake_at).min()
    }

    /// Others may be sent, if this unit's line kept them from it. Says whether it did.
    pub(super) fn end_isolation(&mut self, id: u64) -> bool {
        self.alone.take_if(|alone| *alone == id).is_some()
    }

    /// Takes a unit out of those in hand, whatever it has. True if its tenant has nothing else in
    /// hand there, while the supply has more for it to lease.
    pub(super) fn release(&mut self, id: u64) -> Option<(ActiveUnit, bool)> {
        self.end_isolation(id);
        let active = self.units.remove(&id)?;
        let lane = active.unit.routes.as_ref().map(|routes| routes.lane);
        let key = (active.unit.lease.key.chunk_no, id);
        self.apply(active.place, lane, key, active.counts(), Counts::default());
        self.tenants[active.place.tenant].units -= 1;
        self.batches[active.place.batch].units -= 1;
        let is_hungry = active
            .place
            .queue
            .is_some_and(|place| self.leave_queue(place));
        self.forget_some();
        Some((active, is_hungry))
    }

    /// Takes a unit out of those in hand all of whose lines have ended; the flush does the rest.
    /// True as for [`release`](Self::release).
    pub(super) fn remove_if_spent(&mut self, id: u64) -> bool {
        // Its line may still be on its way to the disk.
        let alone = self.alone;
        let is_spent = self.units.get(&id).is_some_and(ActiveUnit::is_spent);
        let is_hungry = is_spent && self.release(id).is_some_and(|(_, hungry)| hungry);
        self.alone = alone;
        is_hungry
    }

    fn leave_queue(&mut self, (queue_key, flow_key, batch_key): (usize, usize, usize)) -> bool {
        let queue = &mut self.queues[queue_key];
        let flow = &mut queue.flows[flow_key];
        let batch = &mut flow.batches[batch_key];
        batch.units -= 1;
        if batch.units == 0 {
            flow.batches.remove(batch_key);
        }
        flow.units -= 1;
        let is_hungry = flow.ready() < flow.low && std::mem::take(&mut flow.has_more);
        if flow.units == 0 {
            queue.flows.remove(flow_key);
        }
        if queue.flows.is_empty() {
            self.queues.remove(queue_key);
        }
        is_hungry
    }

    fn place_in(
        &mut self,
        routes: &Arc<Routes>,
        tenant: usize,
        batch: usize,
    ) -> (usize, usize, usize) {
        let mut queues = self.queues.iter();
        let queue = queues.find(|(_, queue)| Arc::ptr_eq(&queue.routes, routes));
        let queue_key = match queue.map(|(key, _)| key) {
            Some(key) => key,
            None => self.queues.insert(Queue {
                routes: Arc::clone(routes),
                flows: Slab::new(),
                ready: 0,
            }),
        };
        let flows = &mut self.queues[queue_key].flows;
        let flow = flows.iter().find(|(_, flow)| flow.tenant == tenant);
        let flow_key = match flow.map(|(key, _)| key) {
            Some(key) => key,
            None => flows.insert(Flow {
                tenant,
                fresh: 0,
                retries: 0,
                waiting: 0,
                units: 0,
                batches: Slab::new(),
                low: 0,
                has_more: false,
            }),
        };
        let flow = &mut flows[flow_key];
        flow.units += 1;
        let mut batches = flow.batches.iter();
        let found = batches.find(|(_, of_batch)| of_batch.batch == batch);
        let batch_key = match found.map(|(key, _)| key) {
            Some(key) => key,
            None => flow.batches.insert(BatchFlow {
                batch,
                fresh: 0,
                retries: 0,
                ready: BTreeSet::new(),
                units: 0,
            }),
        };
        flow.batches[batch_key].units += 1;
        (queue_key, flow_key, batch_key)
    }

    fn tenant_of(&mut self, name: &Arc<str>) -> usize {
        if let Some(&key) = self.tenants_by_name.get(name) {
            return key;
        }
        let key = self.tenants.insert(Tenant {
            name: Arc::clone(name),
            domains: Vec::new(),
            in_flight: 0,
            units: 0,
        });
        self.tenants_by_name.insert(Arc::clone(name), key);
        key
    }

    fn batch_of(&mut self, context: &Arc<BatchContext>) -> usize {
        if let Some(&key) = self.batches_by_id.get(&context.id) {
            return key;
        }
        let key = self.batches.insert(Batch {
            context: Arc::clone(context),
            turns: Turns::default(),
            needs: 0.0,
            units: 0,
        });
        self.batches_by_id.insert(Arc::clone(&context.id), key);
        key
    }

    /// Forgets half of the tenants, and of the batches, of which nothing is in hand, once there are
    /// many: those whose last turn was long ago.
    fn forget_some(&mut self) {
        if self.tenants.len() > 2 * REMEMBERED_MAX {
            let idle = self.tenants.iter().filter(|(_, tenant)| tenant.is_idle());
            let mut idle: Vec<(u64, usize)> =
                idle.map(|(key, tenant)| (tenant.last(), key)).collect();
            idle.sort_unstable();
            for &(_, key) in idle.iter().take(idle.len().saturating_sub(REMEMBERED_MAX)) {
                let tenant = self.tenants.remove(key);
                self.tenants_by_name.remove(&tenant.name);
            }
        }
        if self.batches.len() > 2 * REMEMBERED_MAX {
            let idle = self.batches.iter().filter(|(_, batch)| batch.is_idle());
            let mut idle: Vec<(u64, usize)> =
                idle.map(|(key, batch)| (batch.turns.last, key)).collect();
            idle.sort_unstable();
            for &(_, key) in idle.iter().take(idle.len().saturating_sub(REMEMBERED_MAX)) {
                let batch = self.batches.remove(key);
                self.batches_by_id.remove(&batch.context.id);
            }
        }
    }

    /// When tenant and batch had their turns, and what they have in flight, in a domain.
    pub(super) fn turns_of(&self, tenant: &str, domain: usize) -> Turns {
        let key = self.tenants_by_name.get(tenant);
        let domains = key.map(|&key| &self.tenants[key].domains);
        let turns = domains.and_then(|domains| domains.get(domain).copied());
        turns.unwrap_or_default()
    }

    pub(super) fn turns_of_batch(&self, batch_id: &str) -> Turns {
        let key = self.batches_by_id.get(batch_id);
        key.map(|&key| self.batches[key].turns).unwrap_or_default()
    }

    /// Estimates how many calls at once batches need so as to be done in time. `waiting`: lines
    /// that are not in hand, by batch.
    pub(super) fn set_needs(&mut self, waiting: &HashMap<String, usize>, now_ms: i64) {
        let mut in_hand: HashMap<usize, (usize, Option<f64>)> = HashMap::new();
        for active in self.units.values() {
            let of_batch = in_hand.entry(active.place.batch).or_default();
            of_batch.0 += active.resting() + active.in_flight;
            let lane = active.unit.routes.as_ref().map(|routes| routes.lane);
            let seconds = lane.and_then(|lane| self.lanes.get(&lane)?.seconds);
            of_batch.1 = of_batch.1.into_iter().chain(seconds).reduce(f64::max);
        }
        for (key, (lines, seconds)) in in_hand {
            let batch = &mut self.batches[key];
            let waiting = waiting.get(&*batch.context.id).copied().unwrap_or(0);
            let left_ms = batch.context.deadline.saturating_sub(now_ms);
            batch.needs = needed((lines + waiting) as f64, seconds, left_ms);
        }
    }

    /// Asks to be told when a tenant has fewer ready lines than it should, where the supply has
    /// more to lease: by lane and tenant, how many there should be.
    pub(super) fn set_low(&mut self, wanted: &HashMap<(LaneId, Arc<str>), usize>) {
        for (_, queue) in &mut self.queues {
            let lane = queue.routes.lane;
            for (_, flow) in &mut queue.flows {
                let name = &self.tenants[flow.tenant].name;
                let wanted = wanted.get(&(lane, Arc::clone(name))).copied();
                flow.has_more = wanted.is_some();
                flow.low = wanted.unwrap_or(0).div_ceil(2);
            }
        }
    }

    pub(super) fn tenant_name(&self, key: usize) -> &Arc<str> {
        &self.tenants[key].name
    }
}

/// How many calls at once so many lines need, of so many seconds each, to be done in the time that
/// is left; a little more, for it is an estimate.
pub(crate) fn needed(lines: f64, seconds: Option<f64>, left_ms: i64) -> f64 {
    const MARGIN: f64 = 1.1;
    let left = left_ms.max(1) as f64 / 1000.0;
    lines * seconds.unwrap_or(0.0) * MARGIN / left
}

impl Lane {
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// How long a call takes, as far as is known.
    pub(super) fn seconds(&self) -> Option<f64> {
        self.seconds
    }
}

impl Tenant {
    fn is_idle(&self) -> bool {
        self.units == 0 && self.in_flight == 0
    }

    fn last(&self) -> u64 {
        let last = self.domains.iter().map(|turns| turns.last);
        last.max().unwrap_or(0)
    }
}

impl Batch {
    fn is_idle(&self) -> bool {
        self.units == 0 && self.turns.in_flight == 0
    }
}

#[cfg(test)]
mod tests;

//! What is counted of the lines in hand: by run queue, tenant, batch and lane. Only the ledger
//! changes the counts; [`order`](crate::worker::dispatch::order) reads them to choose a line.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

use crate::domain::beginning;
use crate::upstream::{LaneId, Pool, Routes, TenantMeters};
use crate::worker::work::unit::{BatchContext, LoadedUnit};

/// Tenants, and batches, whose last turn is remembered though nothing of theirs is in hand. If
/// they were forgotten, they would come first.
const REMEMBERED_MAX: usize = 4_096;
/// So many beginnings of lines are remembered of a batch: engines keep some of those that came last.
const BEGINNINGS_MAX: usize = 16;
/// How much the latest call counts for in a lane's average duration.
const LATEST_CALL_WEIGHT: f64 = 0.1;
/// A tenant's calls in flight are counted in such parts of a call, so that they can be divided by
/// its weight.
pub(super) const PARTS_OF_A_CALL: usize = 1_000_000;

#[derive(Default)]
pub(crate) struct RunQueues {
    queues: Slab<RunQueue>,
    tenants: Slab<Tenant>,
    tenants_by_name: HashMap<Arc<str>, usize>,
    batches: Slab<Batch>,
    batches_by_id: HashMap<Arc<str>, usize>,
    lanes: BTreeMap<LaneId, Lane>,
    /// The batches that are paused.
    held: HashSet<String>,
    /// Counts turns, so that the latest turn has the highest number.
    turns: u64,
    /// Counts the configurations that lines have gone by.
    configuration: u64,
}

/// The lines that go the same way: units of a model, or of several models with the same routes.
pub(crate) struct RunQueue {
    routes: Arc<Routes>,
    flows: Slab<Flow>,
    ready: usize,
}

/// A tenant's lines in a run queue.
pub(crate) struct Flow {
    tenant: usize,
    resting: Resting,
    units: usize,
    batches: Slab<BatchFlow>,
    /// With fewer ready lines the supply is notified, once.
    low_water: usize,
    /// Whether the supply has more units to lease, and was not notified yet.
    has_more: bool,
}

/// A batch's lines in a flow.
pub(crate) struct BatchFlow {
    batch: usize,
    resting: Resting,
    /// Units with lines that are ready, in the order of the file.
    ready_units: BTreeSet<(i64, u64)>,
    units: usize,
    /// The number of its last turn. Zero: there was none.
    last: u64,
    /// How the last lines began, the latest last, each first message once, where lines go by that.
    beginnings: VecDeque<u64>,
}

/// What is known of a tenant that has, or had, something in hand.
pub(crate) struct Tenant {
    name: Arc<str>,
    limit: TenantLimit,
    /// By domain, because tenants compete within a domain.
    turns: Vec<Turns>,
    /// In any domain, and at whatever tier.
    in_flight: usize,
    units: usize,
}

/// What is known of a batch that has, or had, something in hand.
pub(crate) struct Batch {
    context: Arc<BatchContext>,
    turn: Turn,
    /// Lines in flight that have spilled.
    spilled: usize,
    /// Calls at once without which the batch misses its deadline, as the supply estimates it.
    needs: f64,
    units: usize,
    /// It is paused: its lines are not sent.
    is_held: bool,
}

/// Who comes first: whoever has less in flight, and then whoever had its last turn earlier. Lines
/// that have [spilled](crate::worker::dispatch::late) take no turn and count for none: else
/// whoever pays for some lines would get less of what need not be paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// Of a batch, calls. Of a tenant, parts of calls divided by its weight.
    pub in_flight: usize,
    /// The number of the last turn. Zero: there was none.
    pub last: u64,
}

/// The turns of a tenant in a domain.
#[derive(Clone, Copy, Debug, Default)]
struct Turns {
    in_flight: usize,
    /// The number of the last turn. A tenant of weight 3 has three calls in a turn.
    last: u64,
    /// Calls of the turn that is not over.
    calls: u32,
}

/// What a tenant may send in this process.
#[derive(Clone, Debug)]
pub(crate) struct TenantLimit {
    /// Calls at once, over all lanes.
    pub calls: usize,
    /// The tenant's part of the fair share, beside those of others: at least 1.
    pub weight: u32,
    /// Its limits on requests and tokens in a time. `None`: it has none.
    pub rates: Option<Arc<TenantMeters>>,
}

impl Default for TenantLimit {
    fn default() -> Self {
        Self {
            calls: usize::MAX,
            weight: 1,
            rates: None,
        }
    }
}

#[derive(Default)]
pub(crate) struct Lane {
    /// This process's share of the lane's limit, kept here so that choosing need not ask for it.
    limit: usize,
    /// The part of it that lines get without spilling.
    unspilled_limit: usize,
    domain: usize,
    in_flight: usize,
    /// Those of them that went by an earlier configuration.
    earlier: usize,
    waiting: usize,
    ready: usize,
    /// Lines that were ever answered. The supply tells the rate from it.
    answered: u64,
    /// How long a call takes, for each of its lines.
    seconds: Option<f64>,
}

/// What a lane's calls compete for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LaneLimit {
    /// How many calls of the lane this process may have in flight.
    pub calls: usize,
    /// How many of them lines get without spilling.
    pub unspilled: usize,
    /// The lanes of one domain have upstreams in common.
    pub domain: usize,
}

impl LaneLimit {
    /// The limit of a lane in this process, as it is now.
    pub(crate) fn of(pool: &Pool, lane: LaneId) -> Self {
        let limits = pool.limits();
        Self {
            calls: limits.lane(lane),
            unspilled: limits.lane_unspilled(lane),
            domain: limits.domain(lane),
        }
    }
}

/// What a line that was sent counts against until it comes back, whatever is configured meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(super) lane: Option<LaneId>,
    domain: usize,
    /// The number of the configuration that the line went by.
    configuration: u64,
    /// It went beyond what the lowest tier takes.
    pub(super) is_spilled: bool,
    /// It was sent by routes that spill late.
    pub(super) spills_late: bool,
    /// The lines that share the call. Only the line itself counts for turns and for limits on calls.
    pub(super) lines: usize,
}

impl Counted {
    /// Whether the line went to a higher tier because it would be late otherwise.
    pub(crate) fn is_spilled(self) -> bool {
        self.is_spilled
    }
}

/// Lines that are neither in flight nor ended, by their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resting {
    pub fresh: usize,
    pub retries: usize,
    pub waiting: usize,
}

impl Resting {
    /// Lines that may be sent.
    pub(crate) fn ready(self) -> usize {
        self.fresh + self.retries
    }

    pub(crate) fn all(self) -> usize {
        self.ready() + self.waiting
    }

    /// Counts other lines, too.
    pub(crate) fn add(&mut self, other: Resting) {
        self.change(Resting::default(), other);
    }

    fn change(&mut self, before: Resting, after: Resting) {
        self.fresh = self.fresh + after.fresh - before.fresh;
        self.retries = self.retries + after.retries - before.retries;
        self.waiting = self.waiting + after.waiting - before.waiting;
    }
}

/// Where a unit stands.
#[derive(Clone, Copy)]
pub(super) struct Position {
    tenant: usize,
    batch: usize,
    /// `None`: the unit's lines are not sent.
    queued: Option<Queued>,
}

#[derive(Clone, Copy)]
struct Queued {
    queue: usize,
    flow: usize,
    batch: usize,
    /// By which the batch's units are ordered: the chunk, then the unit's number.
    key: (i64, u64),
}

impl Position {
    /// The key of the unit's batch.
    pub(super) fn batch(self) -> usize {
        self.batch
    }
}

/// What anybody may see.
impl RunQueues {
    pub(crate) fn queues(&self) -> impl Iterator<Item = (usize, &RunQueue)> {
        self.queues.iter()
    }

    pub(crate) fn queue(&self, key: usize) -> &RunQueue {
        &self.queues[key]
    }

    pub(crate) fn tenant(&self, key: usize) -> &Tenant {
        &self.tenants[key]
    }

    /// The tenants of whom anything is known.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.keyed_tenants().map(|(_, tenant)| tenant)
    }

    /// The same, by their keys.
    pub(crate) fn keyed_tenants(&self) -> impl Iterator<Item = (usize, &Tenant)> {
        self.tenants.iter()
    }

    /// What is known of a tenant.
    pub(crate) fn tenant_named(&self, name: &str) -> Option<&Tenant> {
        let key = self.tenants_by_name.get(name)?;
        self.tenants.get(*key)
    }

    pub(crate) fn batch(&self, key: usize) -> &Batch {
        &self.batches[key]
    }

    /// The batches that are paused, of those of which units are leased.
    pub(crate) fn held(&self) -> &HashSet<String> {
        &self.held
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = (LaneId, &Lane)> {
        self.lanes.iter().map(|(&id, lane)| (id, lane))
    }

    pub(crate) fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.get(&id)
    }

    /// A tenant's turn in a domain.
    pub(crate) fn turn_of_tenant(&self, name: &str, domain: usize) -> Turn {
        let key = self.tenants_by_name.get(name);
        key.map_or_else(Turn::default, |&key| self.tenants[key].turn(domain))
    }

    /// A batch's turn, in any lane.
    pub(crate) fn turn_of_batch(&self, batch_id: &str) -> Turn {
        let key = self.batches_by_id.get(batch_id);
        key.map_or_else(Turn::default, |&key| self.batches[key].turn)
    }
}

impl RunQueue {
    pub(crate) fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// Lines that may be sent.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = (usize, &Flow)> {
        self.flows.iter()
    }

    pub(crate) fn flow(&self, key: usize) -> &Flow {
        &self.flows[key]
    }
}

impl Flow {
    pub(crate) fn tenant(&self) -> usize {
        self.tenant
    }

    pub(crate) fn resting(&self) -> Resting {
        self.resting
    }

    pub(crate) fn batches(&self) -> impl Iterator<Item = &BatchFlow> {
        self.batches.iter().map(|(_, batch)| batch)
    }

    fn runs_short(&mut self) -> bool {
        self.resting.ready() < self.low_water && std::mem::take(&mut self.has_more)
    }
}

impl BatchFlow {
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    pub(crate) fn resting(&self) -> Resting {
        self.resting
    }

    /// The number of its last turn. Zero: there was none.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// How the last lines began, the latest first, where lines go by that.
    pub(crate) fn beginnings(&self) -> impl Iterator<Item = u64> {
        self.beginnings.iter().rev().copied()
    }

    /// Units with lines that are ready, in the order of the file.
    pub(crate) fn ready_units(&self) -> impl Iterator<Item = u64> {
        self.ready_units.iter().map(|&(_, unit)| unit)
    }
}

impl Tenant {
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its turn in a domain.
    pub(crate) fn turn(&self, domain: usize) -> Turn {
        let turns = self.turns.get(domain).copied().unwrap_or_default();
        self.weighted(turns.in_flight, turns.last)
    }

    /// Its turn in all domains together.
    pub(crate) fn turn_of_all(&self) -> Turn {
        self.weighted(self.in_flight, self.last())
    }

    fn weighted(&self, in_flight: usize, last: u64) -> Turn {
        let weight = self.limit.weight.max(1) as usize;
        Turn {
            in_flight: in_flight.saturating_mul(PARTS_OF_A_CALL) / weight,
            last,
        }
    }

    /// Calls in flight in a domain, without those that have spilled.
    pub(crate) fn unspilled(&self, domain: usize) -> usize {
        self.turns.get(domain).map_or(0, |turns| turns.in_flight)
    }

    /// Calls in flight, in any domain.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What it may send in this process.
    pub(crate) fn limit(&self) -> &TenantLimit {
        &self.limit
    }

    /// Whether as many calls are in flight as may be.
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight >= self.limit.calls
    }

    /// Whether nothing of it is in hand, nor in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.units == 0 && self.in_flight == 0
    }

    fn last(&self) -> u64 {
        let last = self.turns.iter().map(|turn| turn.last);
        last.max().unwrap_or(0)
    }
}

impl Batch {
    pub(crate) fn context(&self) -> &BatchContext {
        &self.context
    }

    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }

    /// Calls at once without which the batch misses its deadline.
    pub(crate) fn needs(&self) -> f64 {
        self.needs
    }

    /// Whether the batch is paused: its lines are not sent.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held
    }

    fn is_idle(&self) -> bool {
        self.units == 0 && self.turn.in_flight == 0 && self.spilled == 0
    }
}

impl Lane {
    /// This process's share of the lane's limit.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// The part of it that lines get without spilling.
    pub(crate) fn unspilled_limit(&self) -> usize {
        self.unspilled_limit
    }

    pub(crate) fn domain(&self) -> usize {
        self.domain
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether no other line of the lane could be sent, whichever it is. Lines that went by an
    /// earlier configuration may be at upstreams that are gone, and take no place of those that are
    /// there: only the pool knows.
    pub(crate) fn is_full(&self) -> bool {
        self.in_flight - self.earlier >= self.limit
    }

    /// Lines that have not ended.
    pub(crate) fn in_hand(&self) -> usize {
        self.in_flight + self.waiting + self.ready
    }

    /// Lines that were ever answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// How long a call takes, for each of its lines, as far as is known.
    pub(crate) fn seconds(&self) -> Option<f64> {
        self.seconds
    }
}

/// What only the ledger does with the counts.
impl RunQueues {
    /// Gives a unit its place. The unit has no lines yet.
    pub(super) fn enter(
        &mut self,
        unit: &LoadedUnit,
        routes: Option<&Arc<Routes>>,
        limit: LaneLimit,
    ) -> Position {
        let tenant = self.tenant_of(&unit.batch.tenant);
        let batch = self.batch_of(&unit.batch);
        self.tenants[tenant].units += 1;
        self.batches[batch].units += 1;
        let queued = routes.map(|routes| {
            let lane = self.lanes.entry(routes.lane).or_default();
            (lane.limit, lane.domain) = (limit.calls, limit.domain);
            lane.unspilled_limit = limit.unspilled;
            self.enqueue(routes, tenant, batch, (unit.lease.key.chunk_no, unit.id))
        });
        Position {
            tenant,
            batch,
            queued,
        }
    }

    /// Takes a unit out whose lines are not counted any more. True if its tenant runs short of
    /// ready lines, while the supply has more units for it.
    pub(super) fn leave(&mut self, position: Position) -> bool {
        self.tenants[position.tenant].units -= 1;
        self.batches[position.batch].units -= 1;
        let runs_short = position.queued.is_some_and(|queued| self.dequeue(queued));
        self.forget_some();
        runs_short
    }

    /// The resting lines of a unit have changed.
    pub(super) fn change(
        &mut self,
        position: Position,
        lane: Option<LaneId>,
        before: Resting,
        after: Resting,
    ) {
        let Some(queued) = position.queued else {
            return;
        };
        let moved = |count: &mut usize, of: fn(Resting) -> usize| {
            *count = *count + of(after) - of(before);
        };
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            moved(&mut lane.ready, Resting::ready);
            moved(&mut lane.waiting, |resting| resting.waiting);
        }
        let queue = &mut self.queues[queued.queue];
        moved(&mut queue.ready, Resting::ready);
        let flow = &mut queue.flows[queued.flow];
        flow.resting.change(before, after);
        let batch = &mut flow.batches[queued.batch];
        batch.resting.change(before, after);
        if before.ready() == 0 && after.ready() > 0 {
            batch.ready_units.insert(queued.key);
        } else if before.ready() > 0 && after.ready() == 0 {
            batch.ready_units.remove(&queued.key);
        }
    }

    /// A line of a unit is sent that begins so, where lines go by that.
    pub(super) fn begins(&mut self, position: Position, begins: u64) {
        if let Some(queued) = position.queued {
            let flow = &mut self.queues[queued.queue].flows[queued.flow];
            let last = &mut flow.batches[queued.batch].beginnings;
            let first_message = |one: u64| beginning::least(one, beginning::FIRST_MESSAGE);
            last.retain(|one| first_message(*one) != first_message(begins));
            last.push_back(begins);
            if last.len() > BEGINNINGS_MAX {
                last.pop_front();
            }
        }
    }

    /// A line of a unit is sent. `is_spilled`: beyond what the lowest tier takes; `spills_late`: by
    /// routes that let it. Returns what it counts against until it comes back.
    pub(super) fn on_start(
        &mut self,
        position: Position,
        lane: Option<LaneId>,
        (is_spilled, spills_late): (bool, bool),
    ) -> Counted {
        self.turns += u64::from(!is_spilled);
        let counted = Counted {
            lane,
            domain: self.domain_of(lane),
            configuration: self.configuration,
            is_spilled,
            spills_late,
            lines: 1,
        };
        let domain = counted.domain;
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.in_flight += 1;
        }
        let tenant = &mut self.tenants[position.tenant];
        tenant.in_flight += 1;
        let batch = &mut self.batches[position.batch];
        if is_spilled {
            batch.spilled += 1;
            return counted;
        }
        if let Some(queued) = position.queued {
            let flow = &mut self.queues[queued.queue].flows[queued.flow];
            flow.batches[queued.batch].last = self.turns;
        }
        // A lane may have come into another domain since the unit came in hand.
        if tenant.turns.len() <= domain {
            tenant.turns.resize(domain + 1, Turns::default());
        }
        let turns = &mut tenant.turns[domain];
        turns.in_flight += 1;
        turns.calls += 1;
        if turns.calls >= tenant.limit.weight {
            (turns.last, turns.calls) = (self.turns, 0);
        }
        batch.turn.in_flight += 1;
        batch.turn.last = self.turns;
        counted
    }

    /// A line of a unit has come back. `position`: the unit's, if it is in hand; else its tenant
    /// and its batch are looked up. `counted`: against what since it was sent. `took`: how long, if
    /// the line has its outcome.
    pub(super) fn on_finish(
        &mut self,
        unit: &LoadedUnit,
        position: Option<Position>,
        (counted, took): (Counted, Option<Duration>),
    ) {
        let Counted {
            lane,
            domain,
            configuration,
            is_spilled,
            lines,
            ..
        } = counted;
        if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)) {
            lane.in_flight -= 1;
            lane.earlier -= usize::from(configuration != self.configuration);
            if let Some(took) = took {
                lane.answered += lines as u64;
                if !is_spilled {
                    let took = took.as_secs_f64() / lines as f64;
                    let before = lane.seconds.unwrap_or(took);
                    lane.seconds = Some(before + (took - before) * LATEST_CALL_WEIGHT);
                }
            }
        }
        let (tenant, batch) = match position {
            Some(position) => (Some(position.tenant), Some(position.batch)),
            None => (
                self.tenants_by_name.get(&unit.batch.tenant).copied(),
                self.batches_by_id.get(&unit.batch.id).copied(),
            ),
        };
        if let Some(tenant) = tenant {
            let tenant = &mut self.tenants[tenant];
            tenant.in_flight -= 1;
            if let Some(turn) = tenant.turns.get_mut(domain)
                && !is_spilled
            {
                turn.in_flight -= 1;
            }
        }
        if let Some(batch) = batch {
            let batch = &mut self.batches[batch];
            if is_spilled {
                batch.spilled -= 1;
            } else {
                batch.turn.in_flight -= 1;
            }
        }
    }

    /// Whether the supply should lease more for a unit's tenant. True once.
    pub(super) fn runs_short(&mut self, position: Position) -> bool {
        position.queued.is_some_and(|queued| {
            let flow = &mut self.queues[queued.queue].flows[queued.flow];
            flow.runs_short()
        })
    }

    /// Sets this process's shares of the lanes' limits.
    pub(super) fn set_limits(&mut self, limit: impl Fn(LaneId) -> LaneLimit) {
        for (id, lane) in &mut self.lanes {
            let limit = limit(*id);
            (lane.limit, lane.unspilled_limit) = (limit.calls, limit.unspilled);
        }
    }

    /// Sets what a tenant may send, where anything is known of it.
    pub(super) fn set_tenant_limit(&mut self, name: &str, limit: TenantLimit) {
        if let Some(&key) = self.tenants_by_name.get(name) {
            self.tenants[key].limit = limit;
        }
    }

    /// Sets what each tenant may send.
    pub(super) fn set_tenant_limits(&mut self, limit: impl Fn(&str) -> TenantLimit) {
        for (_, tenant) in &mut self.tenants {
            tenant.limit = limit(&tenant.name);
        }
    }

    /// Lines go by another configuration from now on. Lanes that have nothing in hand and that no
    /// unit goes by are forgotten: their numbers may be those of others. A unit whose lines are all
    /// in flight goes by its lane, too.
    pub(super) fn on_reload(&mut self) {
        let led_to = self.queues.iter().map(|(_, queue)| queue.routes.lane);
        let led_to: BTreeSet<LaneId> = led_to.collect();
        self.lanes
            .retain(|id, lane| lane.in_hand() > 0 || led_to.contains(id));
        self.configuration += 1;
        for lane in self.lanes.values_mut() {
            lane.earlier = lane.in_flight;
        }
    }

    /// Sets how many ready lines the tenants should have, by lane and tenant, where the supply has
    /// more units to lease. Half of it is the low-water mark.
    pub(super) fn set_low_water(&mut self, wanted: &HashMap<(LaneId, Arc<str>), usize>) {
        for (_, queue) in &mut self.queues {
            let lane = queue.routes.lane;
            for (_, flow) in &mut queue.flows {
                let name = &self.tenants[flow.tenant].name;
                let wanted = wanted.get(&(lane, Arc::clone(name))).copied();
                flow.has_more = wanted.is_some();
                flow.low_water = wanted.unwrap_or(0).div_ceil(2);
            }
        }
    }

    /// Sets which batches are paused. True if others were before.
    pub(super) fn set_held(&mut self, held: HashSet<String>) -> bool {
        if held == self.held {
            return false;
        }
        for (_, batch) in &mut self.batches {
            batch.is_held = held.contains(&*batch.context.id);
        }
        self.held = held;
        true
    }

    /// Sets how many calls at once a batch needs, given its context.
    pub(super) fn set_needs(&mut self, batch: usize, needs: impl Fn(&BatchContext) -> f64) {
        let batch = &mut self.batches[batch];
        batch.needs = needs(&batch.context);
    }

    fn domain_of(&self, lane: Option<LaneId>) -> usize {
        let lane = lane.and_then(|lane| self.lanes.get(&lane));
        lane.map_or(0, |lane| lane.domain)
    }

    fn enqueue(
        &mut self,
        routes: &Arc<Routes>,
        tenant: usize,
        batch: usize,
        key: (i64, u64),
    ) -> Queued {
        let mut queues = self.queues.iter();
        let queue = queues.find(|(_, queue)| Arc::ptr_eq(&queue.routes, routes));
        let queue_key = match queue.map(|(key, _)| key) {
            Some(key) => key,
            None => self.queues.insert(RunQueue {
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
                resting: Resting::default(),
                units: 0,
                batches: Slab::new(),
                low_water: 0,
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
                resting: Resting::default(),
                ready_units: BTreeSet::new(),
                units: 0,
                last: 0,
                beginnings: VecDeque::new(),
            }),
        };
        flow.batches[batch_key].units += 1;
        Queued {
            queue: queue_key,
            flow: flow_key,
            batch: batch_key,
            key,
        }
    }

    fn dequeue(&mut self, queued: Queued) -> bool {
        let queue = &mut self.queues[queued.queue];
        let flow = &mut queue.flows[queued.flow];
        let batch = &mut flow.batches[queued.batch];
        batch.units -= 1;
        if batch.units == 0 {
            flow.batches.remove(queued.batch);
        }
        flow.units -= 1;
        let runs_short = flow.runs_short();
        if flow.units == 0 {
            queue.flows.remove(queued.flow);
        }
        if queue.flows.is_empty() {
            self.queues.remove(queued.queue);
        }
        runs_short
    }

    fn tenant_of(&mut self, name: &Arc<str>) -> usize {
        if let Some(&key) = self.tenants_by_name.get(name) {
            return key;
        }
        let key = self.tenants.insert(Tenant {
            name: Arc::clone(name),
            limit: TenantLimit::default(),
            turns: Vec::new(),
            in_flight: 0,
            units: 0,
        });
        self.tenants_by_name.insert(Arc::clone(name), key);
        key
    }

    /// The key of a batch. A batch that is not known yet is added.
    fn batch_of(&mut self, context: &Arc<BatchContext>) -> usize {
        if let Some(&key) = self.batches_by_id.get(&context.id) {
            return key;
        }
        let key = self.batches.insert(Batch {
            context: Arc::clone(context),
            turn: Turn::default(),
            spilled: 0,
            needs: 0.0,
            units: 0,
            is_held: self.held.contains(&*context.id),
        });
        self.batches_by_id.insert(Arc::clone(&context.id), key);
        key
    }

    /// Once there are many tenants, or batches, of which nothing is in hand, forgets half of them:
    /// those whose last turn was longest ago.
    fn forget_some(&mut self) {
        if self.tenants.len() > 2 * REMEMBERED_MAX {
            let idle = self.tenants.iter().filter(|(_, tenant)| tenant.is_idle());
            for key in long_ago(idle.map(|(key, tenant)| (tenant.last(), key))) {
                let tenant = self.tenants.remove(key);
                self.tenants_by_name.remove(&tenant.name);
            }
        }
        if self.batches.len() > 2 * REMEMBERED_MAX {
            let idle = self.batches.iter().filter(|(_, batch)| batch.is_idle());
            for key in long_ago(idle.map(|(key, batch)| (batch.turn.last, key))) {
                let batch = self.batches.remove(key);
                self.batches_by_id.remove(&batch.context.id);
            }
        }
    }
}

/// The keys with the earliest turns: all but as many as are remembered.
fn long_ago(idle: impl Iterator<Item = (u64, usize)>) -> Vec<usize> {
    let mut idle: Vec<(u64, usize)> = idle.collect();
    idle.sort_unstable();
    idle.truncate(idle.len().saturating_sub(REMEMBERED_MAX));
    idle.into_iter().map(|(_, key)| key).collect()
}

//! Whose turn it is.
//!
//! Among tenants the tenant with the least in flight for its weight goes first, and among equals
//! the tenant whose last turn is longest ago. A tenant with as many calls in flight as it may have
//! is passed over. Within a tenant a batch that would miss its deadline goes first; then
//! priority counts, then which batch has the least in flight, and so on, whichever models the
//! batches' lines name: those models may have upstreams in common. Within a batch lines go by
//! their place in the file, or, where the model says so, those that begin alike go one after the
//! other. Lines that have failed before go last while it is not known that any upstream works.
//!
//! This module reads the ledger. It changes nothing but what [`Ledger::start`] does.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use super::ledger::run_queues::{Batch, BatchFlow, Counted, Turn};
use super::ledger::unit::{ActiveUnit, Ready};
use super::ledger::{Ledger, Start};
use crate::domain::beginning;
use crate::upstream::{Acquired, History, Permit, Pool, RateRequest, Routes};
use crate::worker::work::isolation::Isolation;
use crate::worker::work::line::{Pending, Request};
use crate::worker::work::unit::LoadedUnit;

/// No fresh line of a tenant is sent while so many times the permits of its lane wait for another
/// attempt, of the tenant's lines. Otherwise every permit freed by a failure would pull another
/// line into backoff. The lines in flight by then may come to wait as well, so the bound is
/// exceeded by the permits once at most.
const WAITING_PER_PERMIT: usize = 2;
/// The same where calls succeed: there lines wait for reasons of their own.
const WAITING_PER_PERMIT_AT_BEST: usize = 16;
/// So many units of a batch are looked at for a line that begins like the last ones.
const UNITS_SEARCHED: usize = 32;
/// A batch that would miss its deadline may take this part of a lane at most, because the other
/// batches of its tenant must go on.
const RESCUE_MAX: f64 = 7.0 / 8.0;

/// What is asked of the upstreams.
pub(crate) trait Door {
    /// Whether lines that have failed before go last.
    fn is_trial(&self, routes: &Routes) -> bool;
    /// Whether calls succeed there, as far as is known.
    fn works(&self, routes: &Routes) -> bool;
    /// Whether any upstream takes such lines at present.
    fn is_open(&self, routes: &Routes) -> bool;
    /// `rates`: what rate limits are asked, where the line's routes or its tenant have any.
    /// `spills`: whether the line may go to a tier that takes only lines that would be late
    /// otherwise.
    fn acquire(
        &self,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
        rates: Option<RateRequest<'_>>,
        spills: bool,
    ) -> Acquired;
}

impl Door for Arc<Pool> {
    fn is_trial(&self, routes: &Routes) -> bool {
        self.targets().is_troubled() && self.targets().is_trial(routes)
    }

    fn works(&self, routes: &Routes) -> bool {
        !self.targets().is_troubled() || self.targets().works(routes)
    }

    fn is_open(&self, routes: &Routes) -> bool {
        self.targets().is_open(routes)
    }

    fn acquire(
        &self,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
        rates: Option<RateRequest<'_>>,
        spills: bool,
    ) -> Acquired {
        if spills {
            self.try_spill(routes, history, batch, rates)
        } else {
            self.try_acquire(routes, history, batch, rates)
        }
    }
}

/// A line that is sent now.
pub(crate) struct Chosen {
    pub(crate) unit: Arc<LoadedUnit>,
    pub(crate) pending: Pending,
    pub(crate) ready: Ready,
    /// What the line asks for, if it was read already.
    pub(crate) request: Option<Request>,
    /// The permit to send it; or why it can never be sent, in words for its user.
    pub(crate) permit: Result<Permit, String>,
    /// What the line counts against until it comes back.
    pub(crate) counted: Counted,
    /// The supply should lease more units.
    pub(crate) runs_short: bool,
}

/// Where a line is looked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    queue: usize,
    flow: usize,
    is_trial: bool,
    takes_fresh: bool,
    /// The lowest tier takes nothing: only lines that may spill are looked at.
    spills: bool,
}

/// How many lines of a tenant may wait for another attempt before no fresh line is sent. `limit`:
/// of the lane. There is no bound in a trial, which sends few lines: if only lines were sent that
/// fail whatever the server does, nothing would show that the server works.
pub(crate) fn waiting_max(door: &impl Door, routes: &Routes, limit: usize) -> usize {
    if door.is_trial(routes) {
        return usize::MAX;
    }
    limit.saturating_mul(if door.works(routes) {
        WAITING_PER_PERMIT_AT_BEST
    } else {
        WAITING_PER_PERMIT
    })
}

/// The next line, with its permit. The ledger counts the line as in flight.
pub(crate) fn next(ledger: &mut Ledger, now_ms: i64, door: &impl Door) -> Option<Chosen> {
    if ledger.is_closed() || ledger.is_exclusive() {
        return None;
    }
    let mut passed = PassedOver::default();
    let mut lines = BinaryHeap::new();
    loop {
        if lines.is_empty() {
            lines = next_lines(ledger, door, &mut passed, now_ms)?;
        }
        let Some(Reverse(Line {
            place,
            id,
            ready,
            beginning,
            ..
        })) = lines.pop()
        else {
            continue;
        };
        if let Some(beginning) = beginning {
            ledger.seek(id, beginning);
        }
        let routes = Arc::clone(ledger.run_queues().queue(place.queue).routes());
        let active = ledger.unit(id)?;
        let (unit, first) = (active.unit(), active.first(ready)?);
        let exclusively = unit.isolation().is_some_and(Isolation::needs_the_process);
        if exclusively && ledger.in_flight() > 0 && door.is_open(&routes) {
            // The line waits for the lines in flight, and all others wait for the line.
            return None;
        }
        let of_flow = ledger.run_queues().queue(place.queue).flow(place.flow);
        let limit = ledger.run_queues().tenant(of_flow.tenant()).limit();
        let rates = (routes.are_rate_limited() || limit.rates.is_some()).then(|| RateRequest {
            size: active.size_of(&first.line),
            tenant: limit.rates.as_deref(),
        });
        let batch = unit.batch.number;
        let permit = match door.acquire(&routes, &first.history, batch, rates, place.spills) {
            Acquired::Permit(permit) => Ok(permit),
            Acquired::TooLarge(cause) => Err(cause),
            Acquired::Full | Acquired::Closed { .. } | Acquired::Limited { .. } => {
                let full = if place.spills {
                    &mut passed.full
                } else {
                    &mut passed.lowest_full
                };
                full.insert(place.queue);
                continue;
            }
            Acquired::TenantLimited { .. } => {
                passed.flows.insert((place.queue, place.flow));
                continue;
            }
        };
        let above = permit.as_ref().is_ok_and(Permit::is_above_lowest_tier);
        let start = Start {
            exclusively,
            is_spilled: place.spills && above,
        };
        let request = active.take_request(&first.line);
        let (unit, pending, counted) = ledger.start(id, ready, start)?;
        return Some(Chosen {
            unit,
            pending,
            ready,
            request,
            permit,
            counted,
            runs_short: ledger.runs_short(id),
        });
    }
}

/// What was looked at and cannot be sent now.
#[derive(Default)]
struct PassedOver {
    /// Queues of which no line gets a permit, unless it may spill,
    lowest_full: BTreeSet<usize>,
    /// and none at all.
    full: BTreeSet<usize>,
    /// Flows of which no line may be sent.
    flows: BTreeSet<(usize, usize)>,
}

impl PassedOver {
    /// Whether only lines that may spill are looked at in a queue; `None`: no lines.
    fn spills(&self, queue: usize, routes: &Routes) -> Option<bool> {
        let spills = self.lowest_full.contains(&queue);
        let is_full = spills && (!routes.spill_late() || self.full.contains(&queue));
        (!is_full).then_some(spills)
    }
}

/// A line that may be sent, as its queue's next. The least of several goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    key: BatchKey,
    /// The last turn of the batch in the queue: models of one batch take turns.
    last: u64,
    place: Place,
    /// The unit, and which of its lines.
    id: u64,
    ready: Ready,
    /// How the line begins, where lines go by that.
    beginning: Option<u64>,
}

/// The lines of the tenant whose turn it is, one of each of its queues. None where none of them has
/// a line that may be sent: these are passed over. `None`: no tenant has.
fn next_lines(
    ledger: &Ledger,
    door: &impl Door,
    passed: &mut PassedOver,
    now_ms: i64,
) -> Option<BinaryHeap<Reverse<Line>>> {
    let (first, others) = best_flows(ledger, door, passed)?;
    let mut lines = Vec::with_capacity(1 + others.len());
    for place in [first].into_iter().chain(others) {
        match best_line(ledger, place, now_ms) {
            Some(line) => lines.push(Reverse(line)),
            None => {
                passed.flows.insert((place.queue, place.flow));
            }
        }
    }
    // All are put in order only where one after the other is refused.
    Some(lines.into())
}

/// The tenant whose turn it is: the queue where it has its turn, and the others where it has.
fn best_flows(
    ledger: &Ledger,
    door: &impl Door,
    passed: &PassedOver,
) -> Option<(Place, Vec<Place>)> {
    let run_queues = ledger.run_queues();
    let mut best = None;
    let mut others = Vec::new();
    for (queue_key, queue) in run_queues.queues() {
        let routes = queue.routes();
        let Some(lane) = run_queues.lane(routes.lane) else {
            continue;
        };
        if queue.ready() == 0 || lane.is_full() {
            continue;
        }
        let Some(spills) = passed.spills(queue_key, routes) else {
            continue;
        };
        let is_trial = door.is_trial(routes);
        let waiting_max = waiting_max(door, routes, lane.limit());
        for (flow_key, flow) in queue.flows() {
            let resting = flow.resting();
            let takes_fresh = resting.waiting < waiting_max;
            let has_fresh = takes_fresh && resting.fresh > 0;
            let has_any = has_fresh || resting.retries > 0;
            if !has_any || passed.flows.contains(&(queue_key, flow_key)) {
                continue;
            }
            let tenant = run_queues.tenant(flow.tenant());
            let may_send = !tenant.is_full()
                && (!spills || ledger.lateness().allows_any(routes.lane, tenant.name()));
            if !may_send {
                continue;
            }
            let turn = tenant.turn(lane.domain());
            // In a trial, whoever has had the last one goes last.
            let last = if is_trial { turn.last } else { 0 };
            let key = (is_trial && !has_fresh, last, turn);
            let place = Place {
                queue: queue_key,
                flow: flow_key,
                is_trial,
                takes_fresh,
                spills,
            };
            match &best {
                Some((least, tenant, _)) if key == *least && flow.tenant() == *tenant => {
                    others.push(place);
                }
                Some((least, ..)) if key >= *least => {}
                _ => {
                    others.clear();
                    best = Some((key, flow.tenant(), place));
                }
            }
        }
    }
    best.map(|(_, _, place)| (place, others))
}

/// The next line of a tenant in one of its queues.
fn best_line(ledger: &Ledger, place: Place, now_ms: i64) -> Option<Line> {
    let run_queues = ledger.run_queues();
    let queue = run_queues.queue(place.queue);
    let (routes, flow) = (queue.routes(), queue.flow(place.flow));
    let limit = run_queues.lane(routes.lane)?.unspilled_limit() as f64;
    let lateness = ledger.lateness();
    let mut best = None;
    for of_batch in flow.batches() {
        let batch = run_queues.batch(of_batch.batch());
        let has_fresh = place.takes_fresh && of_batch.resting().fresh > 0;
        let has_any = has_fresh || of_batch.resting().retries > 0;
        let context = batch.context();
        if !has_any || batch.is_held() || now_ms >= context.deadline {
            continue;
        }
        if place.spills && !lateness.allows(routes.lane, &context.tenant, &context.id) {
            continue;
        }
        let key = key_of(batch, place.is_trial && !has_fresh, limit);
        if best.as_ref().is_some_and(|least: &Line| least.key <= key) {
            continue;
        }
        if let Some((id, ready)) = first_line(ledger, of_batch, place) {
            let last = of_batch.last();
            let is_fresh = ready == Ready::Fresh;
            let of_unit = || ledger.unit(id).filter(|_| is_fresh)?.unit().beginnings();
            let begins = of_unit().and_then(|_| first_beginning(ledger, of_batch));
            let (id, beginning) = match begins {
                Some((id, beginning)) => (id, Some(beginning)),
                None => (id, None),
            };
            best = Some(Line {
                key,
                last,
                place,
                id,
                ready,
                beginning,
            });
        }
    }
    best
}

fn first_line(ledger: &Ledger, of_batch: &BatchFlow, place: Place) -> Option<(u64, Ready)> {
    let units = of_batch.ready_units();
    let mut units = units.filter_map(|id| ledger.unit(id));
    // In a trial, lines that have not failed go first, wherever they stand.
    if place.is_trial && place.takes_fresh && of_batch.resting().fresh > 0 {
        let fresh = units.find(|active| active.allows(Ready::Fresh));
        return fresh.map(|active| (active.id(), Ready::Fresh));
    }
    units.find_map(|active: &ActiveUnit| {
        let may_send = |ready| active.allows(ready).then(|| (active.id(), ready));
        let fresh = || may_send(Ready::Fresh).filter(|_| place.takes_fresh);
        may_send(Ready::Retry).or_else(fresh)
    })
}

/// Of a batch whose lines go by how they begin, the unit and the beginning that go next, of the fresh
/// lines in hand: one with the first message of one of the last lines, the latest of them; else one
/// that shares most with the last. `None`: its lines go by their place in the file.
fn first_beginning(ledger: &Ledger, of_batch: &BatchFlow) -> Option<(u64, u64)> {
    let units = of_batch.ready_units().take(UNITS_SEARCHED);
    let units = units.filter_map(|id| ledger.unit(id));
    let units: Vec<&ActiveUnit> = units.filter(|active| active.allows(Ready::Fresh)).collect();
    let begins = |from: u64| {
        let units = units.iter();
        units.filter_map(move |active| Some((active.id(), active.beginning_from(from)?)))
    };
    let sharing = |one: u64, steps: u32| {
        let from = beginning::least(one, steps);
        begins(from).find(|(_, other)| beginning::least(*other, steps) == from)
    };
    let mut last = of_batch.beginnings();
    let known = last.find_map(|one| sharing(one, beginning::FIRST_MESSAGE));
    known.or_else(|| {
        let at = of_batch.beginnings().next().unwrap_or(0);
        let mut steps = (1..beginning::FIRST_MESSAGE).rev();
        let near = steps.find_map(|steps| sharing(at, steps));
        near.or_else(|| begins(at).min_by_key(|(_, other)| other.wrapping_sub(at)))
    })
}

/// By what batches of a tenant are ordered.
type BatchKey = (bool, bool, Reverse<i64>, Turn, i64, i64);

/// When a batch has its turn within its tenant. `goes_last`: a trial is under way, and all lines of
/// the batch have failed before. `limit`: of the lane, without what lines must spill for.
fn key_of(batch: &Batch, goes_last: bool, limit: f64) -> BatchKey {
    let in_flight = batch.turn().in_flight as f64;
    let is_rescued = in_flight + 1.0 <= batch.needs().min(limit * RESCUE_MAX);
    let context = batch.context();
    (
        goes_last,
        !is_rescued,
        Reverse(context.priority),
        batch.turn(),
        context.deadline,
        context.created_at,
    )
}

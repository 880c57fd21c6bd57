//! Which line is sent next, and where it goes when its attempt is over.
//!
//! A *slot* is a task that sends lines, one after the other; there are as many as there are calls
//! in flight, and a slot that finds nothing to send ends. Choosing the next line, with a permit of
//! its model and of an upstream, is one step under one short lock; nothing waits while holding it.

mod demand;
mod executor;
#[cfg(test)]
mod fairness;
mod ledger;
mod missing_models;
mod order;
mod ownership;
pub(crate) mod result;
mod write_failures;

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::batch::EndReason;
use crate::domain::clock::Clock;
use crate::store::Store;
use crate::upstream::{LaneId, Pool, RetrySettings, Routes, Timer};
use crate::worker::Settings;
use crate::worker::lease::Lease;
use crate::worker::lease::clock::Uptime;
use crate::worker::work::completions::{Finished, Inbox};
use crate::worker::work::unit::{HeldUnit, OpenLine};
use executor::Outcome;
use ledger::Ledger;
pub(crate) use ledger::needed;
use missing_models::Missing;
use order::Chosen;
use result::{Job, Pending};
use write_failures::Unwritable;

/// How long the pump may sleep when it knows of nothing to wait for.
const PUMP_TICK: Duration = Duration::from_secs(1);

pub(crate) struct Dispatch {
    ledger: Mutex<Ledger>,
    /// Models that batches name and nobody has.
    missing: Mutex<Missing>,
    unwritable: Mutex<Unwritable>,
    store: Store,
    pool: Arc<Pool>,
    inbox: Arc<Inbox>,
    lease: Arc<Lease>,
    /// Until when the shares of limits are this process's; `None` before any is granted.
    shares_until: Mutex<Option<Uptime>>,
    clock: Clock,
    retry: RetrySettings,
    settle: Duration,
    next_id: AtomicU64,
    /// Asks the pump to start slots.
    pump: Notify,
    /// Tells the supply that units run short.
    hungry: Notify,
    /// Told when nothing is in flight any more.
    idle: Notify,
}

/// What is in hand, for the supply to decide what to lease.
#[derive(Default)]
pub(crate) struct InHand {
    /// By lane and tenant, where any upstream takes their lines at present.
    pub tenants: HashMap<(LaneId, Arc<str>), TenantInHand>,
    /// By lane.
    pub lanes: HashMap<LaneId, LaneInHand>,
    /// Batches of which units are held.
    pub batches: BTreeSet<String>,
}

/// What a tenant has in hand in a lane.
#[derive(Default)]
pub(crate) struct TenantInHand {
    /// Where so many of its lines wait for another attempt that no fresh one is sent.
    pub blocked: Vec<Arc<Routes>>,
    /// Lines ready to be sent, by batch.
    pub ready: HashMap<Arc<str>, usize>,
}

#[derive(Default)]
pub(crate) struct LaneInHand {
    /// Of text.
    pub bytes: usize,
    /// Lines that were ever answered.
    pub answered: u64,
    /// How long a call takes, as far as is known.
    pub seconds: Option<f64>,
}

/// When somebody had the last turn, and what is in flight: who has less comes first.
pub(crate) type Turn = (usize, u64);

impl Dispatch {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        inbox: Arc<Inbox>,
        lease: Arc<Lease>,
        clock: Clock,
        settings: &Settings,
    ) -> Arc<Dispatch> {
        Arc::new(Dispatch {
            ledger: Mutex::default(),
            missing: Mutex::default(),
            unwritable: Mutex::default(),
            store,
            pool,
            inbox,
            lease,
            shares_until: Mutex::new(None),
            clock,
            retry: settings.retry.clone(),
            settle: settings.worker.settle_timeout,
            next_id: AtomicU64::new(0),
            pump: Notify::new(),
            hungry: Notify::new(),
            idle: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a unit that is being taken in hand.
    pub(crate) fn unit_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a unit's lines in hand; slots begin to send them.
    pub(crate) fn add(&self, unit: HeldUnit, lines: Vec<OpenLine>) {
        let unit = Arc::new(unit);
        let (mut lines, limits) = (lines, self.pool.limits());
        let isolation = unit.isolation();
        let killer = isolation.and_then(|isolation| isolation.take_killer(&mut lines));
        let known = self.known_missing(&unit);
        let mut ledger = self.lock();
        if ledger.held().get(&unit.lease.key) != Some(&unit.lease.epoch) {
            // Lost while its text was read.
            return;
        }
        let lane = unit.routes.as_ref().map(|routes| routes.lane);
        let place = lane.map_or((0, 0), |lane| (limits.lane(lane), limits.domain(lane)));
        if let Some(known) = known {
            drop(ledger);
            self.answer_unsent(&unit, lines, &known);
        } else {
            ledger.admit(&unit, lines, place);
            ledger.remove_if_spent(unit.id);
            drop(ledger);
        }
        self.inbox.push(killer.map(|line| {
            tracing::error!(
                unit.key = %unit.lease.key,
                unit.line = line.index,
                "a request is not sent again: processes died whenever it was on its way"
            );
            result::crashed(&unit, &line)
        }));
        self.pump.notify_one();
    }

    /// Lines of a batch that have not been sent are not to be any more: they get their outcome
    /// now. Calls in flight may settle.
    pub(crate) fn end_batch(&self, batch_id: &str, ending: EndReason) {
        let settle_by = Instant::now() + self.settle;
        let unsent = self.lock().end_batch(batch_id, ending, settle_by);
        // Written after the lock is given back: there may be many.
        for (unit, unsent) in unsent {
            let unsent = unsent.into_iter();
            let finished: Option<Vec<Finished>> = unsent
                .map(|pending| conclude(&unit, pending, ending))
                .collect();
            match finished {
                Some(finished) => self.inbox.push(finished),
                None => self.lose(&unit),
            }
        }
        self.pump.notify_one();
    }

    /// Sends nothing new from now on.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.idle.notify_waiters();
        self.pool.limits().poke();
    }

    /// Whether nothing new is sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Cuts all calls in flight.
    pub(crate) fn abort_all(&self) {
        for active in self.lock().units() {
            active.unit.cut.cancel();
        }
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.lock().in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Whether nothing is in flight now.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().in_flight() == 0
    }

    /// Whether nothing new can be sent until answers are written.
    pub(crate) fn is_out_of_budget(&self) -> bool {
        self.pool.budget().is_full()
    }

    /// Something changed that may let lines be sent: budget, lease.
    pub(crate) fn poke(&self) {
        self.pump.notify_one();
    }

    /// Waits until units may run short.
    pub(crate) async fn hungry(&self) {
        self.hungry.notified().await;
    }

    /// Calls in flight, by lane.
    pub(crate) fn in_flight_by_lane(&self) -> HashMap<LaneId, usize> {
        let ledger = self.lock();
        let lanes = ledger.lanes();
        lanes.map(|(id, lane)| (id, lane.in_flight)).collect()
    }

    pub(crate) fn in_hand(&self) -> InHand {
        let ledger = self.lock();
        let mut in_hand = InHand::default();
        for active in ledger.units() {
            let unit = &active.unit;
            if !in_hand.batches.contains(&*unit.batch.id) {
                in_hand.batches.insert(unit.batch.id.to_string());
            }
            let Some(routes) = &unit.routes else {
                continue;
            };
            in_hand.lanes.entry(routes.lane).or_default().bytes += unit.text.len();
            // What must wait for its upstream is no work in hand.
            if self.pool.is_troubled() && !self.pool.was_open(routes) {
                continue;
            }
            let key = (routes.lane, unit.batch.tenant.clone());
            let tenant = in_hand.tenants.entry(key).or_default();
            *tenant.ready.entry(unit.batch.id.clone()).or_default() += active.sendable();
        }
        for (_, queue) in &ledger.queues {
            let Some(lane) = ledger.lane(queue.routes.lane) else {
                continue;
            };
            let most = order::waiting_max(&self.pool, &queue.routes, lane.limit);
            for (_, flow) in &queue.flows {
                let key = (queue.routes.lane, ledger.tenant_name(flow.tenant).clone());
                if flow.waiting >= most {
                    let tenant = in_hand.tenants.entry(key).or_default();
                    tenant.blocked.push(queue.routes.clone());
                }
            }
        }
        for (id, lane) in ledger.lanes() {
            let of_lane = in_hand.lanes.entry(id).or_default();
            of_lane.answered = lane.answered();
            of_lane.seconds = lane.seconds();
        }
        in_hand
    }

    /// When tenants had their last turns in a lane's domain, and what they have in flight there.
    pub(crate) fn turns<'a>(
        &self,
        lane: LaneId,
        tenants: impl Iterator<Item = &'a str>,
    ) -> Vec<Turn> {
        let domain = self.pool.limits().domain(lane);
        let ledger = self.lock();
        let turns = tenants.map(|tenant| ledger.turns_of(tenant, domain));
        turns.map(|turns| (turns.in_flight, turns.last)).collect()
    }

    /// The same of batches, in any lane.
    pub(crate) fn turns_of_batches<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Vec<Turn> {
        let ledger = self.lock();
        let turns = ids.map(|id| ledger.turns_of_batch(id));
        turns.map(|turns| (turns.in_flight, turns.last)).collect()
    }

    /// Asks to be told when a tenant has fewer ready lines than it should, where the supply has
    /// more to lease; and says how many lines of batches wait elsewhere, by which it is known which
    /// would miss their deadline.
    pub(crate) fn ask(
        &self,
        wanted: &HashMap<(LaneId, Arc<str>), usize>,
        waiting: &HashMap<String, usize>,
    ) {
        let mut ledger = self.lock();
        ledger.set_low(wanted);
        ledger.set_needs(waiting, self.clock.now_ms());
    }

    /// The wall-clock time, which deadlines are compared with.
    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// One slot: sends lines until there is none to send.
    async fn slot(self: Arc<Self>, mut job: Job) {
        let mut timer = Timer::default();
        loop {
            let outcome = {
                // Pinned: it is large, and would be moved by each layer around it.
                let outcome = pin!(self.outcome(&mut job, &mut timer));
                AssertUnwindSafe(outcome).catch_unwind().await
            };
            let outcome = outcome.unwrap_or_else(|_| self.panicked(&job));
            match self.settle(job, outcome) {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    /// Books what came of a line, and chooses the next one to send.
    fn settle(&self, job: Job, outcome: Outcome) -> Option<Job> {
        let Job {
            unit,
            pending,
            permit,
            begun,
        } = job;
        drop(permit);

        let lane = unit.routes.as_ref().map(|routes| routes.lane);
        let domain = lane.map_or(0, |lane| self.pool.limits().domain(lane));
        let has_ended = matches!(outcome, Outcome::Finished(_));
        let mut ledger = self.lock();
        ledger.finish(&unit, domain, (has_ended, begun.elapsed()));
        self.pool.limits().landed();
        let ending = ledger.unit(unit.id).map(|active| active.ending);
        let finished = match (outcome, ending) {
            // The unit was lost, or is being given back: this line is not ours any more.
            (_, None) => None,
            (Outcome::Finished(finished), Some(_)) => Some(finished),
            (Outcome::Again(..), Some(Some(ending))) => {
                let finished = conclude(&unit, pending, ending);
                if finished.is_none() {
                    ledger.lose(&unit);
                }
                finished
            }
            (Outcome::Again(due, soonest), Some(None)) => {
                // A call may have succeeded meanwhile.
                let when = match soonest {
                    Some(soonest) if pending.history.is_hastened() => (due.min(soonest), None),
                    soonest => (due, soonest),
                };
                ledger.retry_at(unit.id, when, pending);
                self.pump.notify_one();
                None
            }
        };
        if ledger.remove_if_spent(unit.id) {
            self.hungry.notify_one();
        }
        // Nothing of it is to be written, and others may have waited for it.
        if finished.is_none() && ledger.end_isolation(unit.id) {
            self.pump.notify_one();
        }
        // Before the lock is given back: whoever sees that nothing is in flight finds it there.
        self.inbox.push(finished);
        if self.pool.is_troubled() && self.pool.take_hastening() {
            ledger.hasten(Instant::now());
            self.pump.notify_one();
        }
        let next = self.choose(&mut ledger, Instant::now());
        if ledger.in_flight() == 0 {
            self.inbox.nudge();
            self.idle.notify_waiters();
        }
        next
    }

    /// Whether units and shares are this process's now.
    fn may_send(&self) -> bool {
        self.lease.holds() && self.shares_hold()
    }

    /// Takes the next line to send, with its permits; counts it as in flight.
    fn choose(&self, ledger: &mut Ledger, now: Instant) -> Option<Job> {
        if !self.may_send()
            || self.is_halted()
            || (ledger.in_flight() > 0 && self.pool.budget().is_full())
        {
            ledger.wake_due(now);
            return None;
        }
        let chosen = ledger.wake_and_choose((now, self.clock.now_ms()), &self.pool)?;
        let Chosen {
            unit,
            pending,
            permit,
            runs_short,
        } = chosen;
        if runs_short {
            self.hungry.notify_one();
        }
        Some(Job {
            unit,
            pending,
            permit: Some(permit),
            begun: now,
        })
    }

    /// Starts slots while there are lines to send and places to send them to; returns when to
    /// look again.
    fn start_slots(self: &Arc<Self>) -> Instant {
        let now = Instant::now();
        let mut ledger = self.lock();
        ledger.cut_settled(now);
        if self.pool.take_hastening() {
            ledger.hasten(now);
        }
        while let Some(job) = self.choose(&mut ledger, now) {
            tokio::spawn(self.clone().slot(job));
        }
        let next = ledger.next_due().unwrap_or(now + PUMP_TICK);
        next.clamp(now + Duration::from_millis(1), now + PUMP_TICK)
    }
}

/// The outcome of a line that will not be sent any more: an answer that was no fault of the
/// line's, if that is all there was, else that its batch ended. `None` if the code panics at it:
/// then its unit is to be let go, and the line ends when it is taken in hand again.
fn conclude(unit: &Arc<HeldUnit>, pending: Pending, ending: EndReason) -> Option<Finished> {
    let write = || match pending.refusal {
        Some(answer) if ending == EndReason::Expired => {
            result::answered(unit, &pending.line, *answer)
        }
        _ => result::ended(unit, &pending.line, ending),
    };
    std::panic::catch_unwind(AssertUnwindSafe(write))
        .inspect_err(|_| {
            tracing::error!(unit.key = %unit.lease.key, "the code panicked at a line; its unit is let go");
        })
        .ok()
}

/// The pump: starts slots when there is something to send and nobody on the way.
pub(crate) async fn run(dispatch: Arc<Dispatch>, stop: CancellationToken) -> &'static str {
    loop {
        let upstreams = dispatch.pool.changed().notified();
        let look_again = dispatch.start_slots();
        tokio::select! {
            () = stop.cancelled() => return "dispatch",
            () = upstreams => {}
            () = dispatch.pump.notified() => {}
            () = tokio::time::sleep_until(look_again.into()) => {}
        }
    }
}

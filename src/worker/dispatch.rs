//! Which line is sent next, and where it goes when its attempt is over.
//!
//! A *slot* is a task that sends lines, one after the other; there are as many as there are calls
//! in flight, and a slot that finds nothing to send ends. Choosing the next line, with a permit of
//! its model and of an upstream, is one step under one short lock; nothing waits while holding it.

mod care;
mod choose;
mod demand;
mod hold;
mod send;
mod state;
mod turns;

use std::collections::{BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::held::{Care, HeldUnit, OpenLine};
use super::inbox::{Finished, Inbox};
use super::lease::Lease;
use super::line::{self, Job, Pending};
use super::uptime::Uptime;
use crate::config;
use crate::domain::batch::Ending;
use crate::domain::clock::Clock;
use crate::store::Store;
use crate::upstream::{LaneId, Pool, Timer};
use state::{Entry, State};

/// How long the pump may sleep when it knows of nothing to wait for.
const PUMP_TICK: Duration = Duration::from_secs(1);

pub(super) struct Dispatch {
    state: Mutex<State>,
    store: Store,
    pool: Arc<Pool>,
    inbox: Arc<Inbox>,
    lease: Arc<Lease>,
    /// Until when the shares of limits are this process's; `None` before any is granted.
    shares_until: Mutex<Option<Uptime>>,
    clock: Clock,
    retry: config::Retry,
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
pub(super) struct InHand {
    /// Lines ready to be sent by lane and tenant, where any upstream takes them at present.
    pub ready: HashMap<(LaneId, Arc<str>), usize>,
    /// Bytes of text by lane.
    pub bytes: HashMap<LaneId, usize>,
    /// Lines that were ever answered, by lane.
    pub answered: HashMap<LaneId, u64>,
    /// Lines in flight by tenant.
    pub tenants: HashMap<Arc<str>, usize>,
    /// Batches of which units are held.
    pub batches: BTreeSet<String>,
}

impl Dispatch {
    pub(super) fn new(
        store: Store,
        pool: Arc<Pool>,
        inbox: Arc<Inbox>,
        lease: Arc<Lease>,
        clock: Clock,
        settings: &Settings,
    ) -> Arc<Dispatch> {
        Arc::new(Dispatch {
            state: Mutex::default(),
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a unit that is being taken in hand.
    pub(super) fn unit_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes a unit's lines in hand; slots begin to send them.
    pub(super) fn add(&self, unit: HeldUnit, lines: Vec<OpenLine>) {
        let unit = Arc::new(unit);
        let mut state = self.lock();
        if state.held.get(&unit.key) != Some(&unit.epoch) {
            // Lost while its text was read.
            return;
        }
        let mut entry = Entry::new(&unit, lines);
        let crashed = entry.take_care();
        if let Some(routes) = &unit.routes {
            let lane = state.lanes.entry(routes.lane).or_default();
            lane.limit = self.pool.limits().lane(routes.lane);
            lane.ready += entry.ready.len();
        }
        state.put_in(entry);
        state.remove_if_spent(unit.id);
        drop(state);
        self.inbox.push(crashed);
        self.pump.notify_one();
    }

    /// Lines of a batch that have not been sent are not to be any more: they get their outcome
    /// now. Calls in flight may settle.
    pub(super) fn end_batch(&self, batch_id: &str, ending: Ending) {
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
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.idle.notify_waiters();
        self.pool.limits().poke();
    }

    /// Whether nothing new is sent any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Cuts all calls in flight.
    pub(super) fn abort_all(&self) {
        for entry in self.lock().entries.values() {
            entry.unit.cut.cancel();
        }
    }

    /// Waits until nothing is in flight.
    pub(super) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.lock().in_flight == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Whether nothing is in flight now.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().in_flight == 0
    }

    /// Whether nothing new can be sent until answers are written.
    pub(super) fn is_out_of_budget(&self) -> bool {
        self.pool.budget().is_full()
    }

    /// Something changed that may let lines be sent: budget, lease.
    pub(super) fn poke(&self) {
        self.pump.notify_one();
    }

    /// Waits until units may run short.
    pub(super) async fn hungry(&self) {
        self.hungry.notified().await;
    }

    /// Calls in flight, by lane.
    pub(super) fn in_flight_by_lane(&self) -> HashMap<LaneId, usize> {
        let state = self.lock();
        let lanes = state.lanes.iter();
        lanes.map(|(&id, lane)| (id, lane.in_flight)).collect()
    }

    pub(super) fn in_hand(&self) -> InHand {
        let state = self.lock();
        let mut in_hand = InHand::default();
        for (name, tenant) in &state.tenants {
            if tenant.in_flight > 0 {
                in_hand.tenants.insert(name.clone(), tenant.in_flight);
            }
        }
        for entry in state.entries.values() {
            if !in_hand.batches.contains(&entry.unit.batch.id) {
                in_hand.batches.insert(entry.unit.batch.id.clone());
            }
            let (Some(lane), Some(routes)) = (entry.lane, &entry.unit.routes) else {
                continue;
            };
            *in_hand.bytes.entry(lane).or_default() += entry.unit.text.len();
            // What must wait for its upstream is no work in hand.
            if self.pool.may_take(routes) {
                let of_tenant = (lane, entry.unit.batch.tenant.clone());
                *in_hand.ready.entry(of_tenant).or_default() += entry.sendable();
            }
        }
        in_hand.answered = state
            .lanes
            .iter()
            .map(|(&id, lane)| (id, lane.answered))
            .collect();
        in_hand
    }

    /// Asks to be told when a lane has fewer ready lines than it should, where the supply has
    /// more to lease: by lane, how many there should be beside those that must wait.
    pub(super) fn ask(&self, wanted: &HashMap<LaneId, usize>, in_hand: &InHand) {
        let mut state = self.lock();
        for (id, lane) in &mut state.lanes {
            let open = in_hand.ready.iter().filter(|((lane, _), _)| lane == id);
            let open: usize = open.map(|(_, lines)| lines).sum();
            lane.more = wanted.contains_key(id);
            lane.low = lane.ready.saturating_sub(open) + wanted.get(id).unwrap_or(&0) / 2;
        }
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
    fn settle(&self, job: Job, outcome: Result<Finished, Instant>) -> Option<Job> {
        let Job {
            unit,
            pending,
            care,
            permit,
        } = job;
        drop(permit);

        let mut state = self.lock();
        state.landed(&unit, outcome.is_ok());
        self.pool.limits().landed();
        let finished = match (outcome, state.entries.get_mut(&unit.id)) {
            // The unit was lost, or is being given back: this line is not ours any more.
            (_, None) => None,
            (Ok(finished), Some(_)) => Some(finished),
            (Err(due), Some(entry)) => {
                if let Some(ending) = entry.ending {
                    let finished = conclude(&unit, pending, ending);
                    if finished.is_none() {
                        state.lose(&unit);
                    }
                    finished
                } else {
                    state.wait(unit.id, due, pending);
                    self.pump.notify_one();
                    None
                }
            }
        };
        state.remove_if_spent(unit.id);
        if care == Care::Alone && finished.is_none() {
            // Nothing of it is to be written, and others may have waited for it.
            state.not_alone(unit.id);
            self.pump.notify_one();
        }
        // Before the lock is given back: whoever sees that nothing is in flight finds it there.
        self.inbox.push(finished);
        let next = self.choose(&mut state, Instant::now());
        if state.in_flight == 0 {
            self.inbox.nudge();
            self.idle.notify_waiters();
        }
        next
    }

    /// Starts slots while there are lines to send and places to send them to; returns when to
    /// look again.
    fn start_slots(self: &Arc<Self>) -> Instant {
        let now = Instant::now();
        let mut state = self.lock();
        state.cut_settled(now);
        while let Some(job) = self.choose(&mut state, now) {
            tokio::spawn(self.clone().slot(job));
        }
        let next = state.next_due().unwrap_or(now + PUMP_TICK);
        next.clamp(now + Duration::from_millis(1), now + PUMP_TICK)
    }
}

/// The outcome of a line that will not be sent any more: an answer that was no fault of the
/// line's, if that is all there was, else that its batch ended. `None` if the code panics at it:
/// then its unit is to be let go, and the line ends when it is taken in hand again.
fn conclude(unit: &Arc<HeldUnit>, pending: Pending, ending: Ending) -> Option<Finished> {
    let write = || match pending.answer {
        Some(answer) if matches!(answer.status, 401..=403) && ending == Ending::Expired => {
            line::answered(unit, &pending.line, answer)
        }
        _ => line::ended(unit, &pending.line, ending),
    };
    std::panic::catch_unwind(AssertUnwindSafe(write))
        .inspect_err(|_| {
            tracing::error!(unit.key = %unit.key, "the code panicked at a line; its unit is let go");
        })
        .ok()
}

/// The pump: starts slots when there is something to send and nobody on the way.
pub(super) async fn run(dispatch: Arc<Dispatch>, stop: CancellationToken) -> &'static str {
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

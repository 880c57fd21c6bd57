//! The scheduler: starts lines while there are lines to send and permits for them, and books what
//! came of each.
//!
//! There are as many executor tasks as calls in flight. A task that has taken a line to its outcome
//! books the outcome and chooses its next line in one step. A task that finds no line ends.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::executor::{Companion, Executor, Job, Outcome, cut};
use super::ledger::Ledger;
use super::ledger::run_queues::LaneLimit;
use super::ledger::unit::ActiveUnit;
use super::missing_models::MissingModels;
use super::order::{self, Chosen};
use super::result;
use super::shared::SharedLedger;
use super::tenants::Tenants;
use super::together;
use super::write_failures::WriteFailures;
use crate::domain::batch::EndReason;
use crate::domain::clock::Clock;
use crate::upstream::{Pool, Routes, Timer};
use crate::worker::lease::authority::Authority;
use crate::worker::work::finished::{CompletionQueue, FinishedLine};
use crate::worker::work::line::{OpenLine, Pending};
use crate::worker::work::unit::LoadedUnit;

/// How long the scheduler may sleep when it knows of nothing to wait for.
const TICK: Duration = Duration::from_secs(1);

pub(crate) struct Scheduler {
    pub(super) ledger: Arc<SharedLedger>,
    pub(super) pool: Arc<Pool>,
    pub(super) tenants: Arc<Tenants>,
    pub(super) completions: Arc<CompletionQueue>,
    pub(super) authority: Arc<Authority>,
    pub(super) missing_models: Arc<MissingModels>,
    pub(super) write_failures: Arc<WriteFailures>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
    pub(super) settle_timeout: Duration,
}

impl Scheduler {
    /// Takes a unit's lines in hand. They are sent when it is their turn. `routes`: where they go,
    /// if they are to be sent.
    pub(crate) fn admit(
        &self,
        unit: LoadedUnit,
        routes: Option<Arc<Routes>>,
        mut lines: Vec<OpenLine>,
    ) {
        let unit = Arc::new(unit);
        let isolation = unit.isolation();
        let killer = isolation.and_then(|isolation| isolation.take_killer(&mut lines));
        let known = routes.as_ref().and(self.missing_models.known(&unit));
        let mut ledger = self.ledger.lock();
        if !ledger.has_lease(&unit.lease) {
            // Lost while its text was read.
            return;
        }
        if let Some(known) = known {
            drop(ledger);
            self.missing_models.finish(&unit, lines, &known);
        } else {
            // Under the lock: so either these are the routes of now, or a reload changes them.
            let routes = routes.and_then(|routes| self.renewed(&routes, &unit));
            let limit = routes.as_ref().map(|routes| self.limit_of(routes));
            ledger.admit(Arc::clone(&unit), routes, lines, limit.unwrap_or_default());
            let tenant = &*unit.batch.tenant;
            ledger.set_tenant_limit(tenant, self.tenants.limit_of(tenant));
            ledger.remove_if_spent(unit.id);
            drop(ledger);
        }
        self.completions.push(killer.map(|line| {
            tracing::error!(
                unit.key = %unit.lease.key,
                unit.line = line.index,
                "a request is not sent again: processes died whenever it was on its way"
            );
            result::crashed(&unit, &line)
        }));
        self.ledger.notify_scheduler();
    }

    /// A batch ends. Its lines that are not in flight get their outcome now; calls in flight may
    /// settle.
    pub(crate) fn end_batch(&self, batch_id: &str, end_reason: EndReason) {
        let settle_by = Instant::now() + self.settle_timeout;
        let mut ledger = self.ledger.lock();
        let unsent = ledger.end_batch(batch_id, end_reason, settle_by);
        // The outcomes are written without the lock, because there may be many.
        drop(ledger);
        for (unit, unsent) in unsent {
            let unsent = unsent.into_iter();
            let finished: Option<Vec<FinishedLine>> = unsent
                .map(|pending| result::concluded(&unit, pending, end_reason))
                .collect();
            match finished {
                Some(finished) => self.completions.push(finished),
                None => self.ledger.lock().revoke_unit(&unit),
            }
        }
        self.ledger.notify_scheduler();
    }

    /// Another configuration has taken the place of the one before: lines that are not in flight go
    /// by its routes from now on, those that wait for another attempt included.
    pub(crate) fn reroute(&self) {
        self.missing_models.forget();
        self.executor.reuse.renew();
        let mut ledger = self.ledger.lock();
        ledger.reroute(
            |routes, unit| self.renewed(routes, unit),
            |routes| self.limit_of(routes),
        );
        ledger.set_limits(|lane| LaneLimit::of(&self.pool, lane));
        ledger.set_tenant_limits(|tenant| self.tenants.limit_of(tenant));
        drop(ledger);
        self.ledger.notify_scheduler();
        self.ledger.notify_supply();
    }

    /// A unit's last line is on disk: where units wait to be leased, it may be the turn of others.
    pub(crate) fn on_unit_finished(&self) {
        if self.ledger.left().is_any() {
            self.ledger.notify_supply();
        }
    }

    /// Sends nothing new from now on.
    pub(crate) fn close(&self) {
        self.ledger.lock().close();
        self.ledger.notify_idle();
        self.pool.sharing().notify_changed();
    }

    /// Cuts all calls in flight.
    pub(crate) fn cut_all(&self) {
        for active in self.ledger.lock().units() {
            active.unit().cut.cancel();
        }
    }

    /// Starts lines when something changes that may let them be sent, until stopped.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> &'static str {
        loop {
            let upstreams = self.pool.changed().notified();
            let look_again = self.start_lines();
            tokio::select! {
                () = stop.cancelled() => return "dispatch",
                () = upstreams => {}
                () = self.ledger.scheduler_notified() => {}
                () = tokio::time::sleep_until(look_again.into()) => {}
            }
        }
    }

    /// Starts an executor task for each line that can be sent now. Returns when to look again.
    fn start_lines(self: &Arc<Self>) -> Instant {
        let now = Instant::now();
        let mut ledger = self.ledger.lock();
        ledger.cut_settled(now);
        if self.pool.targets().take_hastening() {
            ledger.hasten(now);
        }
        while let Some(job) = self.choose(&mut ledger, now) {
            tokio::spawn(Arc::clone(self).execute_lines(job));
        }
        let limited = self.pool.targets().rate_limits_due().map(Into::into);
        let next = ledger.next_due().into_iter().chain(limited).min();
        let next = next.unwrap_or(now + TICK);
        next.clamp(now + Duration::from_millis(1), now + TICK)
    }

    /// One executor task: takes one line after the other to its outcome, until there is no line.
    async fn execute_lines(self: Arc<Self>, mut job: Job) {
        let mut timer = Timer::default();
        loop {
            let outcome = {
                // Pinned: the future is large, and each layer around it would move it.
                let outcome = pin!(self.executor.execute(&mut job, &mut timer));
                AssertUnwindSafe(outcome).catch_unwind().await
            };
            let outcome = outcome.unwrap_or_else(|_| self.executor.panicked(&mut job));
            match self.book(job, outcome) {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    /// Books what came of a line, and of those that shared its call, and chooses the next line to
    /// send.
    fn book(&self, job: Job, outcome: Outcome) -> Option<Job> {
        let Job {
            unit,
            pending,
            permit,
            counted,
            begun,
            companions,
            ..
        } = job;
        drop(permit);

        let took = matches!(outcome, Outcome::Finished(_)).then(|| begun.elapsed());
        let mut ledger = self.ledger.lock();
        ledger.finish(&unit, counted, took);
        self.pool.sharing().on_finish();
        let mut finished = self.settle(&mut ledger, &unit, pending, outcome);
        for Companion { pending, outcome } in companions {
            let outcome = outcome.unwrap_or_else(cut);
            let of_companion = self.settle(&mut ledger, &unit, pending, outcome);
            self.completions
                .push(std::mem::replace(&mut finished, of_companion));
        }
        if ledger.remove_if_spent(unit.id) {
            self.ledger.notify_supply();
        }
        // Nothing of the line is to be written, and other lines may have waited for it.
        if finished.is_none() && ledger.end_exclusive(unit.id) {
            self.ledger.notify_scheduler();
        }
        // Under the lock: whoever sees that nothing is in flight finds the line in the queue.
        self.completions.push(finished);
        if unit.is_whole_batch && ledger.unit(unit.id).is_none() {
            self.completions.batch_finished(&unit);
        }
        if self.pool.targets().is_troubled() && self.pool.targets().take_hastening() {
            ledger.hasten(Instant::now());
            self.ledger.notify_scheduler();
        }
        let next = self.choose(&mut ledger, Instant::now());
        if ledger.in_flight() == 0 {
            self.completions.notify();
            self.ledger.notify_idle();
        }
        next
    }

    /// Books what came of one line. Returns its outcome, if it has one that is this process's to
    /// write.
    fn settle(
        &self,
        ledger: &mut Ledger,
        unit: &Arc<LoadedUnit>,
        pending: Pending,
        outcome: Outcome,
    ) -> Option<FinishedLine> {
        let end_reason = ledger.unit(unit.id).map(ActiveUnit::end_reason);
        match (outcome, end_reason) {
            // The unit was revoked, or is being given back: the line is another process's.
            (_, None) => None,
            (Outcome::Finished(finished), Some(_)) => Some(finished),
            (Outcome::Again(_), Some(Some(end_reason))) => {
                let finished = result::concluded(unit, pending, end_reason);
                if finished.is_none() {
                    ledger.revoke_unit(unit);
                }
                finished
            }
            (Outcome::Again(mut due), Some(None)) => {
                // A call may have succeeded in the meantime.
                if let Some(soonest) = due.soonest
                    && pending.history.is_hastened()
                {
                    due.at = due.at.min(soonest);
                    due.soonest = None;
                }
                ledger.retry_at(unit.id, due, pending);
                self.ledger.notify_scheduler();
                None
            }
        }
    }

    /// Takes the next line to send, with its permit. The ledger counts the line as in flight.
    fn choose(&self, ledger: &mut Ledger, now: Instant) -> Option<Job> {
        ledger.wake(now);
        if !self.authority.may_send()
            || self.write_failures.is_halted()
            || (ledger.in_flight() > 0 && self.pool.budget().is_full())
        {
            return None;
        }
        let chosen = order::next(ledger, self.clock.now_ms(), &self.pool)?;
        let Chosen {
            unit,
            pending,
            ready,
            request,
            mut permit,
            mut counted,
            runs_short,
        } = chosen;
        let companions = match &mut permit {
            Ok(permit) => {
                let line = (&*unit, &pending, ready);
                together::join(ledger, line, permit, &mut counted)
            }
            Err(_) => Vec::new(),
        };
        if runs_short || (!companions.is_empty() && ledger.runs_short(unit.id)) {
            self.ledger.notify_supply();
        }
        if counted.is_spilled() {
            unit.metrics.spilled();
        }
        let (permit, too_large) = match permit {
            Ok(permit) => (Some(permit), None),
            Err(cause) => (None, Some(cause)),
        };
        Some(Job {
            unit,
            pending,
            request,
            permit,
            counted,
            too_large,
            begun: now,
            companions,
        })
    }

    /// Where the lines of a unit go now that went by these routes.
    fn renewed(&self, routes: &Arc<Routes>, unit: &LoadedUnit) -> Option<Arc<Routes>> {
        let task = unit.batch.task.as_deref();
        self.pool.renewed(routes, task, &unit.model)
    }

    fn limit_of(&self, routes: &Routes) -> LaneLimit {
        LaneLimit::of(&self.pool, routes.lane)
    }
}

//! The executor: takes a line that was chosen to its outcome, or to its next attempt.
//!
//! ```text
//! chosen → recorded, if its unit is isolated → planned → sent → outcome in its final form
//! ```

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::ledger::run_queues::Counted;
use super::ledger::unit::Due;
use super::missing_models::MissingModels;
use super::ownership::Ownership;
use super::result;
use super::reuse::{Asking, Begun, LINES_AHEAD, Reuse, SharedAnswer, is_fresh_enough};
use crate::domain::current::Current;
use crate::domain::endpoint;
use crate::domain::outcome::ErrorCode;
use crate::domain::reuse::Key;
use crate::metrics::trace;
use crate::store::Store;
use crate::upstream::{
    Answer, Attempt, Call, CallResult, Next, Permit, Pool, Reservation, Tariff, Timer,
};
use crate::worker::lease::Lease;
use crate::worker::lease::authority::Authority;
use crate::worker::work::finished::FinishedLine;
use crate::worker::work::isolation::Isolation;
use crate::worker::work::line::{OpenLine, Pending, Request};
use crate::worker::work::settings::Rules;
use crate::worker::work::unit::LoadedUnit;

/// The longest wait of a line whose call this process itself has cut off.
const AFTER_CUT_MAX: Duration = Duration::from_millis(50);

pub(super) struct Executor {
    pub(super) pool: Arc<Pool>,
    pub(super) store: Store,
    pub(super) lease: Arc<Lease>,
    pub(super) authority: Arc<Authority>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) missing_models: Arc<MissingModels>,
    pub(super) reuse: Arc<Reuse>,
    pub(super) rules: Current<Rules>,
}

/// A line that was chosen, with its permit.
pub(super) struct Job {
    pub(super) unit: Arc<LoadedUnit>,
    pub(super) pending: Pending,
    /// What the line asks for, if it was read already.
    pub(super) request: Option<Request>,
    /// Taken by the call, or given back when there is none.
    pub(super) permit: Option<Permit>,
    /// What the line counts against until it comes back.
    pub(super) counted: Counted,
    /// Why the line can never be sent, in words for its user.
    pub(super) too_large: Option<String>,
    pub(super) begun: Instant,
    /// The lines that share its call. Nearly always empty.
    pub(super) companions: Vec<Companion>,
}

/// A line that shares the call of another.
pub(super) struct Companion {
    pub(super) pending: Pending,
    /// `None` until the call is over, and where it was cut off.
    pub(super) outcome: Option<Outcome>,
}

/// What is sent.
pub(super) struct Sent {
    pub(super) path: &'static str,
    pub(super) body: Bytes,
    pub(super) reservation: Reservation,
}

/// What became of a line that was chosen.
pub(super) enum Outcome {
    /// The line has its outcome, in its final form.
    Finished(FinishedLine),
    /// The line is sent again.
    Again(Due),
}

/// How a line gets its outcome. An answer that is known without a call is an arm of this. Lines that
/// need one may share it: see [`together`](super::together).
pub(super) enum Plan {
    /// The line needs no call.
    Finished(FinishedLine),
    /// The line has a call of its own.
    Call {
        path: &'static str,
        request: Request,
    },
    /// The answer to an equal line may be known, or on its way.
    Reuse {
        key: Key,
        path: &'static str,
        request: Request,
    },
}

impl Executor {
    /// Takes a line to its outcome, or to its next attempt.
    pub(super) async fn execute(&self, job: &mut Job, timer: &mut Timer) -> Outcome {
        if let Some(cause) = job.too_large.take() {
            let bill = job.pending.history.take_bill();
            let (line, code) = (&job.pending.line, ErrorCode::RequestTooLarge);
            return Outcome::Finished(result::given_up(&job.unit, line, code, &cause, bill));
        }
        let is_recorded = match job.unit.isolation() {
            None => true,
            Some(isolation) => self.is_recorded(job, isolation).await,
        };
        // Authority is asked for once more right before the line is sent: the process may have
        // stood still since the line was chosen.
        if !is_recorded || !self.authority.may_send() {
            drop(job.permit.take());
            return cut();
        }
        if !job.companions.is_empty() {
            // In a box: few executors have such a call, and all would be as large.
            return Box::pin(self.execute_together(job, timer)).await;
        }
        let request = job.request.take();
        let line = &job.pending.line;
        match self.plan(&job.unit, line, job.permit.as_ref(), request) {
            Plan::Finished(finished) => {
                drop(job.permit.take());
                Outcome::Finished(finished)
            }
            Plan::Call { path, request } => {
                let (unit, permit) = (&job.unit, job.permit.take());
                let call = (path, request);
                let held = (None, self.pool.budget().reserve());
                self.call(unit, &mut job.pending, permit, call, held, timer)
                    .await
            }
            // In a box: few calls are so, and each is as large as the largest.
            Plan::Reuse { key, path, request } => {
                Box::pin(self.reuse(job, key, (path, request), timer)).await
            }
        }
    }

    /// A line that makes the code panic ends alone, and takes no permit and no executor with it.
    /// If even that outcome cannot be written, the line's unit is revoked, and its lines run
    /// again.
    pub(super) fn panicked(&self, job: &mut Job) -> Outcome {
        let unit = &job.unit;
        let key = &unit.lease.key;
        let line = &mut job.pending.line;
        tracing::error!(unit.key = %key, unit.line = line.index, "the code panicked at a line");
        if !job.companions.is_empty() {
            // Whichever line it was, it comes to be alone.
            let lines = job.companions.iter_mut().map(|one| &mut one.pending.line);
            for line in lines.chain([line]) {
                line.together_max = 1;
            }
            return cut();
        }
        let bill = job.pending.history.take_bill();
        let line = &job.pending.line;
        let write = AssertUnwindSafe(|| result::mishandled(unit, line, bill));
        if let Ok(finished) = std::panic::catch_unwind(write) {
            Outcome::Finished(finished)
        } else {
            self.ownership.revoke_unit(unit);
            Outcome::Again(Due {
                at: Instant::now(),
                soonest: None,
            })
        }
    }

    /// Decides how a line gets its outcome. This is the place where a line can get it without a
    /// call. `permit`: for which target. `request`: the line's, if it was read already.
    pub(super) fn plan(
        &self,
        unit: &Arc<LoadedUnit>,
        line: &OpenLine,
        permit: Option<&Permit>,
        request: Option<Request>,
    ) -> Plan {
        if let Some(known) = self.missing_models.known(unit) {
            return Plan::Finished(self.missing_models.finished(unit, line, &known));
        }
        let is_any = *unit.batch.endpoint == endpoint::ANY;
        let of_batch = (!is_any).then_some(unit.batch.endpoint.path);
        let Some(request) = request.or_else(|| line.read(&unit.text)) else {
            return Plan::Finished(result::unreadable(unit, line));
        };
        let path = of_batch.unwrap_or(request.path);
        let key = self.reuse.mode_of(&unit.batch).and_then(|mode| {
            let (permit, tenant) = (permit?, &unit.batch.tenant);
            let asked = (path, &*request.body);
            self.pool.reuse_key(permit, tenant, asked, mode)
        });
        match key {
            None => Plan::Call { path, request },
            Some(key) => Plan::Reuse { key, path, request },
        }
    }

    /// Gives a line the answer to an equal one, or sends it. While the line waits for an answer
    /// that is on its way, it holds no permit.
    async fn reuse(
        &self,
        job: &mut Job,
        key: Key,
        (path, request): (&'static str, Request),
        timer: &mut Timer,
    ) -> Outcome {
        let unit = Arc::clone(&job.unit);
        let Some(tariff) = job
            .permit
            .as_ref()
            .map(|permit| Arc::clone(permit.tariff()))
        else {
            return cut();
        };
        let behind = || self.keys_behind(job, path);
        let begun = self
            .reuse
            .begin(key, &unit.batch, job.pending.asks_alone, behind);
        let Some(begun) = unit.cut.run_until_cancelled(begun).await else {
            return cut();
        };
        let answer = match begun {
            Begun::Alone => {
                let (permit, call) = (job.permit.take(), (path, request));
                let held = (None, self.pool.budget().reserve());
                let call = self.call(&unit, &mut job.pending, permit, call, held, timer);
                return call.await;
            }
            Begun::Asks(asking) => {
                let (permit, call) = (job.permit.take(), (path, request));
                let held = (Some(asking), self.pool.budget().reserve());
                let call = self.call(&unit, &mut job.pending, permit, call, held, timer);
                let outcome = call.await;
                job.pending.asks_alone |= matches!(outcome, Outcome::Again(_));
                return outcome;
            }
            Begun::Answered(answer) => {
                drop(job.permit.take());
                answer
            }
            Begun::Waits(waiting) => {
                drop(job.permit.take());
                let answer = unit.cut.run_until_cancelled(waiting.answer()).await;
                match answer.flatten() {
                    Some(answer) if is_fresh_enough(&unit.batch, &answer) => answer,
                    // Where it got one from before its batch, others may go on to wait for it.
                    none => {
                        job.pending.asks_alone |= none.is_none();
                        return Outcome::Again(Due {
                            at: Instant::now(),
                            soonest: None,
                        });
                    }
                }
            }
        };
        let mut reservation = self.pool.budget().reserve();
        let room = reservation.grow(answer.body.len());
        if unit.cut.run_until_cancelled(room).await.is_none() {
            return cut();
        }
        let known = (&*answer, &tariff);
        reused(&unit, &mut job.pending, (path, request), known, reservation)
    }

    /// The keys of the lines behind a line, as if they went where that line goes.
    fn keys_behind(&self, job: &Job, path: &'static str) -> Vec<Key> {
        let (unit, line) = (&job.unit, &job.pending.line);
        let (Some(permit), Some(mode)) = (&job.permit, self.reuse.mode_of(&unit.batch)) else {
            return Vec::new();
        };
        let lines = unit.lines_behind(line).take(LINES_AHEAD);
        let requests = lines.filter_map(|line| line.read(&unit.text));
        let key = |request: Request| {
            let asked = (path, &*request.body);
            self.pool.reuse_key(permit, &unit.batch.tenant, asked, mode)
        };
        requests.filter_map(key).collect()
    }

    /// Sends a line once, in a call of its own. `asking`: others wait for its answer. The answer's
    /// bytes are reserved in `reservation`.
    pub(super) async fn call(
        &self,
        unit: &Arc<LoadedUnit>,
        pending: &mut Pending,
        permit: Option<Permit>,
        (path, request): (&'static str, Request),
        (asking, reservation): (Option<Asking>, Reservation),
        timer: &mut Timer,
    ) -> Outcome {
        let Request {
            custom_id, body, ..
        } = request;
        let Some(permit) = permit else {
            return cut();
        };
        if unit.packing().is_some() {
            permit.count_lines(1);
        }
        let sent = Sent {
            path,
            body,
            reservation,
        };
        let attempt = {
            let call = pin!(self.send(unit, pending, permit, sent, timer));
            call.await
        };
        let Some(attempt) = attempt else {
            return cut();
        };
        match (attempt.next, attempt.answer) {
            (Next::Again { after, is_hastened }, refusal) => {
                self.again(pending, (attempt.result, refusal), (after, is_hastened))
            }
            (Next::End, Some(answer)) => {
                self.missing_models.on_answer(unit, &answer);
                if let Some(asking) = asking {
                    asking.answered(&answer, &unit.batch, path);
                }
                let bill = pending.history.take_bill();
                let line = &pending.line;
                Outcome::Finished(result::answered(unit, line, &custom_id, answer, bill))
            }
            (Next::End, None) => {
                // What a server has said tells the line's user more than that nobody was asked.
                let is_unsent = attempt.result == CallResult::Unsupported;
                let bill = pending.history.take_bill();
                let finished = if let Some(answer) = pending.refusal.take().filter(|_| is_unsent) {
                    result::answered(unit, &pending.line, &custom_id, *answer, bill)
                } else {
                    let code = attempt.result.error_code();
                    result::given_up(unit, &pending.line, code, &attempt.cause, bill)
                };
                Outcome::Finished(finished)
            }
        }
    }

    /// Makes a call. `None`: it was cut off, or not made.
    pub(super) async fn send(
        &self,
        unit: &LoadedUnit,
        pending: &mut Pending,
        mut permit: Permit,
        sent: Sent,
        timer: &mut Timer,
    ) -> Option<Attempt> {
        let Sent {
            path,
            body,
            reservation,
        } = sent;
        if self.pool.has_rate() {
            // A turn may be far away, and a process that stops does not wait for it.
            let turn = self.pool.turn(&mut permit);
            if unit.cut.run_until_cancelled(turn).await != Some(true) {
                return None;
            }
        }
        let span = tracing::trace_span!(
            target: trace::TARGET,
            parent: None,
            "upstream call",
            otel.kind = "client",
            batch.id = &*unit.batch.id,
            url.path = path,
            attempt = pending.history.attempts() + 1,
            upstream.name = Empty,
            outcome = Empty,
            http.response.status_code = Empty,
        );
        let call = Call {
            path,
            body,
            reservation,
            traceparent: trace::traceparent(&span),
        };
        // Pinned: the future is large, and each layer around it would move it.
        let call = pin!(self.pool.call(permit, call, &mut pending.history, timer));
        unit.cut.run_until_cancelled(call.instrument(span)).await
    }

    /// When a line that failed is sent again.
    fn again(
        &self,
        pending: &mut Pending,
        (result, refusal): (CallResult, Option<Answer>),
        (after, is_hastened): (Duration, bool),
    ) -> Outcome {
        let now = Instant::now();
        // The line ends with a refusal if nobody mends its cause before the window ends. Any other
        // answer is worth nothing once there is another attempt that is sent.
        if refusal.is_some() || result != CallResult::Unsupported {
            pending.refusal = refusal.map(Box::new);
        }
        Outcome::Again(Due {
            at: now + after,
            soonest: is_hastened.then(|| now + self.rules.get().initial_backoff),
        })
    }

    /// Records in the store that the line of an isolated unit is about to be sent: the store must
    /// know that if this process dies of the line. False if it could not be recorded. Then the
    /// line must not be sent.
    async fn is_recorded(&self, job: &Job, isolation: &Isolation) -> bool {
        // A process that stops does not wait for a record either.
        let companions = job.companions.iter().map(|one| &one.pending);
        let lines = companions.chain([&job.pending]);
        let last = lines.map(|pending| pending.line.index).max();
        let record = Box::pin(self.record(&job.unit, isolation, last.unwrap_or_default()));
        job.unit.cut.run_until_cancelled(record).await == Some(true)
    }

    async fn record(&self, unit: &LoadedUnit, isolation: &Isolation, line: u32) -> bool {
        let (store, token) = (&self.store, self.lease.token());
        let record = async |upto| store.record_sending(&token, &unit.lease, upto).await;
        match isolation.record(line, record).await {
            Ok(true) => true,
            Ok(false) => {
                self.ownership.reclaim_or_revoke(unit).await;
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a line waits until it is recorded that it is sent");
                false
            }
        }
    }
}

/// Gives a line the answer to an equal one, which would have been asked at this tariff. The
/// answer's bytes are in `reservation`.
pub(super) fn reused(
    unit: &Arc<LoadedUnit>,
    pending: &mut Pending,
    (path, request): (&'static str, Request),
    (answer, tariff): (&SharedAnswer, &Arc<Tariff>),
    reservation: Reservation,
) -> Outcome {
    let mut bill = pending.history.take_bill();
    bill.reused(tariff, path);
    let held = (reservation, bill);
    let (line, custom_id) = (&pending.line, &request.custom_id);
    Outcome::Finished(result::reused(unit, line, custom_id, answer, held))
}

/// The call was cut off, or not made: the line is sent again soon.
pub(super) fn cut() -> Outcome {
    let pause = AFTER_CUT_MAX.mul_f64(rand::random());
    Outcome::Again(Due {
        at: Instant::now() + pause,
        soonest: None,
    })
}

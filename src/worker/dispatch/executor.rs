//! One attempt of a line: sent, and what came of it written in its final form.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use super::Dispatch;
use super::result::{self, Attempt, Job, Pending};
use crate::upstream::{Again, Timer};
use crate::worker::work::completions::Finished;
use crate::worker::work::isolation::Isolation;
use crate::worker::work::unit::HeldUnit;

/// The longest wait of a line whose call was cut off by this process itself.
const AFTER_A_CUT: Duration = Duration::from_millis(50);

/// What became of a line that was sent.
pub(super) enum Outcome {
    /// In its final form.
    Finished(Finished),
    /// Not yet: when it is due again, and how much sooner if a call succeeds where it failed.
    Again(Instant, Option<Instant>),
}

impl Dispatch {
    /// Sends a line once.
    pub(super) async fn outcome(&self, job: &mut Job, timer: &mut Timer) -> Outcome {
        let attempt = self.attempt(job, timer).await;
        drop(job.permit.take());
        let (unit, pending) = (&job.unit, &mut job.pending);
        Outcome::Finished(match attempt {
            Attempt::Answered(answer) => {
                self.note_missing(unit, &answer);
                result::answered(unit, &pending.line, answer)
            }
            Attempt::GivenUp(cause) => result::given_up(unit, &pending.line, &cause),
            Attempt::Unreadable => result::unreadable(unit, &pending.line),
            Attempt::Again(again) => return self.again(pending, again),
            Attempt::Cut => {
                let pause = AFTER_A_CUT.mul_f64(rand::random());
                return Outcome::Again(Instant::now() + pause, None);
            }
        })
    }

    /// A line that makes the code panic ends alone, and takes no permit and no slot with it. If
    /// even that cannot be written, its unit is let go, and its lines run again.
    pub(super) fn panicked(&self, job: &Job) -> Outcome {
        let (unit, line) = (&job.unit, &job.pending.line);
        tracing::error!(unit.key = %unit.lease.key, unit.line = line.index, "the code panicked at a line");
        let write = AssertUnwindSafe(|| result::mishandled(unit, line));
        match std::panic::catch_unwind(write) {
            Ok(finished) => Outcome::Finished(finished),
            Err(_) => {
                self.lose(unit);
                Outcome::Again(Instant::now(), None)
            }
        }
    }

    async fn attempt(&self, job: &mut Job, timer: &mut Timer) -> Attempt {
        if let Some(isolation) = job.unit.isolation() {
            // A process that stops does not wait for a record either.
            let record = self.record(&job.unit, isolation, job.pending.line.index);
            if job.unit.cut.run_until_cancelled(Box::pin(record)).await != Some(true) {
                return Attempt::Cut;
            }
        }
        // Looked at once more right before the line is sent: the process may have stood still.
        if self.may_send() {
            result::attempt(&self.pool, job, timer).await
        } else {
            Attempt::Cut
        }
    }

    /// Records in the store what is about to be sent, where that must be known if this process dies
    /// of it. False if it could not be recorded: then it must not be sent.
    async fn record(&self, unit: &HeldUnit, isolation: &Isolation, line: u32) -> bool {
        let (store, token) = (&self.store, self.lease.token());
        let record = async |upto| store.record_sending(&token, &unit.lease, upto).await;
        match isolation.record(line, record).await {
            Ok(true) => true,
            Ok(false) => {
                self.keep_or_lose(unit).await;
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a line waits until it is recorded that it is sent");
                false
            }
        }
    }

    /// When a line that failed is sent again.
    fn again(&self, pending: &mut Pending, again: Again) -> Outcome {
        let now = Instant::now();
        pending.avoid = Some(again.upstream);
        // A refusal is what the line ends with, if nobody mends it before the window ends. Any
        // other answer is worth nothing by the next attempt.
        pending.refusal = again.refusal.map(Box::new);
        let soonest = again.is_hastened.then(|| now + self.retry.initial_backoff);
        Outcome::Again(now + again.after, soonest)
    }
}

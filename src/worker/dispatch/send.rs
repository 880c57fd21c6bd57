//! One attempt of a line: sent, and what came of it written in its final form.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::held::{Care, HeldUnit};
use super::super::inbox::Finished;
use super::super::line::{self, Attempt, Job, Pending};
use super::Dispatch;
use crate::upstream::{Retry, Timer, backoff};

/// The longest wait of a line that may be sent again at once: enough to keep a failure that
/// nobody foresaw from becoming a loop without a pause.
const AGAIN_AT_ONCE: Duration = Duration::from_millis(50);

impl Dispatch {
    /// Sends a line once. Comes back with its outcome in its final form, or with when it is due
    /// again.
    pub(super) async fn outcome(
        &self,
        job: &mut Job,
        timer: &mut Timer,
    ) -> Result<Finished, Instant> {
        let attempt = self.attempt(job, timer).await;
        drop(job.permit.take());
        let (unit, pending) = (&job.unit, &mut job.pending);
        let finished = match attempt {
            Attempt::Answered(answer) => Some(line::answered(unit, &pending.line, answer)),
            Attempt::Unreadable => Some(line::unreadable(unit, &pending.line)),
            Attempt::Cut => None,
            Attempt::Failed(failure) => self.judge(unit, pending, failure),
        };
        finished.ok_or_else(|| Instant::now() + self.pause(pending))
    }

    /// A line that makes the code panic ends alone, and takes no permit and no slot with it. If
    /// even that cannot be written, its unit is let go, and its lines run again.
    pub(super) fn panicked(&self, job: &Job) -> Result<Finished, Instant> {
        let (unit, line) = (&job.unit, &job.pending.line);
        tracing::error!(unit.key = %unit.key, unit.line = line.index, "the code panicked at a line");
        let write = AssertUnwindSafe(|| line::mishandled(unit, line));
        std::panic::catch_unwind(write).map_err(|_| {
            self.lose(unit);
            Instant::now()
        })
    }

    async fn attempt(&self, job: &mut Job, timer: &mut Timer) -> Attempt {
        if job.care != Care::Usual {
            // A process that stops does not wait for a note either.
            let unit = job.unit.clone();
            let noting = Box::pin(self.note(job));
            if unit.cut.run_until_cancelled(noting).await != Some(true) {
                return Attempt::Cut;
            }
        }
        // Looked at once more right before the line is sent: the process may have stood still.
        if self.may_send() {
            line::attempt(&self.pool, job, timer).await
        } else {
            Attempt::Cut
        }
    }

    /// What a failed attempt means: an outcome, or another attempt.
    fn judge(
        &self,
        unit: &Arc<HeldUnit>,
        pending: &mut Pending,
        failure: Retry,
    ) -> Option<Finished> {
        pending.avoid = Some(failure.upstream);
        pending.attempts += u32::from(failure.costs_attempt);
        if !failure.costs_attempt || pending.attempts < self.retry.max_attempts {
            self.pool.will_retry(&failure);
            // A refused key is what the line ends with, if nobody mends it before the window
            // ends. Any other answer is worth nothing by the next attempt.
            pending.answer = failure
                .answer
                .filter(|answer| matches!(answer.status, 401..=403));
            return None;
        }
        Some(match failure.answer {
            Some(answer) => line::answered(unit, &pending.line, answer),
            None => line::given_up(unit, &pending.line, &failure.cause),
        })
    }

    /// How long a line waits for its next attempt.
    fn pause(&self, pending: &Pending) -> Duration {
        let random = rand::random::<f64>();
        match pending.attempts {
            0 => AGAIN_AT_ONCE.mul_f64(random),
            attempts => backoff(attempts, &self.retry, random),
        }
    }
}

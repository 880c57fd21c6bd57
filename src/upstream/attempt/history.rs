//! What a line has been through, and what its next failure means: whether it is the line's own
//! fault, what it costs, and how long the line waits.
//!
//! A failure tells little by itself. What tells is how others fare meanwhile: a line that fails
//! again where others have succeeded since fails for reasons of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::bill::Bill;
use super::result::{CallResult, Cost};
use crate::upstream::backoff::{backoff, doubled};
use crate::upstream::balance::Avoid;
use crate::upstream::health::evidence::Evidence;
use crate::upstream::settings::RetrySettings;
use crate::upstream::target::backend::Backend;

/// Calls that a line may make without costing it an attempt, whatever their cause. With the pauses
/// between them that is more than a week of nothing else.
const FREE_CALLS_MAX: u32 = 1_000;
/// The same of failures that would cost an attempt if its server did not fail one line after the
/// other: a line whose server never works again must end some time.
const FREE_FAILURES_MAX: u32 = 20;
/// Calls of a line that may time out: the model server has most likely computed each of them.
const TIMEOUTS_MAX: u32 = 2;
/// A line's failures say nothing about the server if it would be so unlikely for any line to fail
/// so often by chance.
const UNLIKELY: f64 = 0.01;
/// A line is refused for reasons of its own if it would be so unlikely for any other.
const IMPOSSIBLE: f64 = 1e-9;
/// The pauses of a line that failed, in first pauses of any: where no call has succeeded since,
/// and where only calls have that were on their way when it failed. The former add up to minutes,
/// the latter outlast a short outage. How often each is doubled.
const UNTIL_IT_WORKS: (u32, u32) = (10, 2);
const WHILE_IN_DOUBT: (u32, u32) = (6, 1);

/// A line's failures so far, by where it failed. Empty for nearly every line.
#[derive(Clone, Debug, Default)]
pub struct History {
    troubles: Vec<Trouble>,
    /// Calls that cost an attempt.
    attempts: u32,
    /// Calls that did not.
    free: u32,
    /// How often no route that could take the line had a place for it.
    waits: u32,
    timeouts: u32,
    /// Where the line cannot be taken, whatever the state of the server: the provider has no such
    /// parameter, or the model no room for so long a line.
    cannot_take: Vec<Arc<Backend>>,
    /// What its calls were billed.
    bill: Bill,
}

/// A line's failures at one backend.
#[derive(Clone, Debug)]
struct Trouble {
    backend: Arc<Backend>,
    failures: u32,
    first: Instant,
    last: Instant,
    /// The backend's evidence when the line failed first.
    before: Evidence,
    /// It does not have the line's model.
    is_missing: bool,
}

/// A failure, with what is known of the line and of the backend.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Assessment {
    /// The line had not failed here before.
    pub(in crate::upstream) is_fresh: bool,
    /// Another line has succeeded here that was sent after this one had failed first.
    pub(in crate::upstream) is_refuted: bool,
    /// A call has succeeded here since the line failed first.
    pub(in crate::upstream) works: bool,
    /// How likely it is that any line fails so often by chance.
    chance: f64,
    /// How often it has failed here.
    failures: u32,
}

impl Assessment {
    /// Whether the failure says something about the backend.
    pub(in crate::upstream) fn is_signal(&self) -> bool {
        self.is_fresh || !self.is_refuted || self.chance >= UNLIKELY
    }
}

/// What is to become of a line that has failed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// The line ends with this call.
    End,
    /// The line is sent again after so long.
    Again {
        after: Duration,
        /// Sooner than that once a call succeeds there: see [`History::is_hastened`].
        is_hastened: bool,
    },
}

impl Next {
    pub(in crate::upstream) fn is_hastened(self) -> bool {
        matches!(
            self,
            Next::Again {
                is_hastened: true,
                ..
            }
        )
    }
}

/// What a failed call is to its line.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Failed {
    pub(in crate::upstream) result: CallResult,
    /// How long the server asked to be left alone.
    pub(in crate::upstream) wait: Option<Duration>,
    /// A refusal is the line's own.
    pub(in crate::upstream) ends_refusal: bool,
    /// The server fails whatever is sent: an attempt is not counted, up to a bound.
    pub(in crate::upstream) is_for_nothing: bool,
}

impl History {
    /// Whether the line has not failed yet.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.troubles.is_empty() && self.cannot_take.is_empty()
    }

    /// Calls that cost an attempt so far.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Calls that have failed so far, and calls that were not made for a reason on this side.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.attempts + self.free
    }

    /// What the line's calls so far were billed.
    pub(in crate::upstream) fn bill(&mut self) -> &mut Bill {
        &mut self.bill
    }

    /// Takes the bill of a line that has ended.
    #[must_use]
    pub fn take_bill(&mut self) -> Bill {
        std::mem::take(&mut self.bill)
    }

    /// The line has had calls that it shared with others, and this is its part of their bill.
    pub fn add_bill(&mut self, part: Bill) {
        self.bill.add(part);
    }

    /// Whether a call has succeeded that began since at one of the places where the line failed.
    #[must_use]
    pub fn is_hastened(&self) -> bool {
        let mut troubles = self.troubles.iter();
        troubles.any(|trouble| trouble.backend.evidence().success_begun > Some(trouble.first))
    }

    /// Whether an operator has said, since the line failed last, that it is mended where it failed.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        let mut troubles = self.troubles.iter();
        troubles.any(|trouble| trouble.backend.evidence().reset_at > Some(trouble.last))
    }

    /// How much the line avoids a backend in its next attempt.
    pub(in crate::upstream) fn avoids(&self, backend: &Arc<Backend>) -> Avoid {
        if self.cannot_be_taken_at(backend) {
            return Avoid::ModelMissing;
        }
        let is_here = |trouble: &&Trouble| Arc::ptr_eq(&trouble.backend, backend);
        let Some(last) = self.troubles.iter().max_by_key(|trouble| trouble.last) else {
            return Avoid::No;
        };
        match self.troubles.iter().find(is_here) {
            Some(here) if here.is_missing => Avoid::ModelMissing,
            Some(_) if is_here(&last) => Avoid::SameTarget,
            _ if last.backend.upstream() == backend.upstream() => Avoid::SameUpstream,
            _ => Avoid::No,
        }
    }

    /// Whether the line's model was missing anywhere, or the line could not be taken.
    pub(in crate::upstream) fn misses_its_model(&self) -> bool {
        !self.cannot_take.is_empty() || self.troubles.iter().any(|trouble| trouble.is_missing)
    }

    /// Whether it is known that a backend cannot take the line.
    pub(in crate::upstream) fn cannot_be_taken_at(&self, backend: &Arc<Backend>) -> bool {
        self.cannot_take.iter().any(|one| Arc::ptr_eq(one, backend))
    }

    /// Takes a failure down; `evidence` is the backend's, without this call.
    pub(in crate::upstream) fn failed(
        &mut self,
        backend: &Arc<Backend>,
        evidence: &Evidence,
        now: Instant,
    ) -> Assessment {
        let here = |trouble: &Trouble| Arc::ptr_eq(&trouble.backend, backend);
        let Some(at) = self.troubles.iter().position(here) else {
            self.troubles.push(Trouble {
                backend: Arc::clone(backend),
                failures: 1,
                first: now,
                last: now,
                before: *evidence,
                is_missing: false,
            });
            return Assessment {
                is_fresh: true,
                is_refuted: false,
                works: false,
                chance: 1.0,
                failures: 1,
            };
        };
        let trouble = &mut self.troubles[at];
        trouble.failures += 1;
        trouble.last = now;
        let successes = evidence.successes - trouble.before.successes;
        let all = evidence.failures - trouble.before.failures;
        // Without the line's own.
        let failures = all.saturating_sub(u64::from(trouble.failures - 1));
        let rate = (failures + 1) as f64 / (failures + successes + 2) as f64;
        Assessment {
            is_fresh: false,
            is_refuted: evidence.success_begun > Some(trouble.first),
            works: evidence.success_at > Some(trouble.first),
            chance: rate.powf(f64::from(trouble.failures)),
            failures: trouble.failures,
        }
    }

    /// The backend does not have the line's model. Returns whether the same is known of all these.
    pub(in crate::upstream) fn is_missing_at<'a>(
        &mut self,
        backend: &Arc<Backend>,
        all: impl Iterator<Item = &'a Arc<Backend>>,
    ) -> bool {
        let mut troubles = self.troubles.iter_mut();
        if let Some(trouble) = troubles.find(|trouble| Arc::ptr_eq(&trouble.backend, backend)) {
            trouble.is_missing = true;
        }
        self.has_no_way(all)
    }

    /// Whether each of these does not have the line's model, or cannot take the line.
    fn has_no_way<'a>(&self, mut all: impl Iterator<Item = &'a Arc<Backend>>) -> bool {
        all.all(|one| {
            let mut troubles = self.troubles.iter();
            self.cannot_be_taken_at(one)
                || troubles.any(|trouble| trouble.is_missing && Arc::ptr_eq(&trouble.backend, one))
        })
    }

    /// What is to become of a line that an upstream cannot take, by whichever of the keys: its
    /// provider has no such parameter, or its model no room for so long a line. The line goes to
    /// another of `all` at once, and waits where another has no place for the line now. The line
    /// ends where none takes it.
    pub(in crate::upstream) fn unsupported<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a Arc<Backend>>,
        all: impl Iterator<Item = &'a Arc<Backend>>,
        settings: &RetrySettings,
        random: f64,
    ) -> Next {
        let known = self.cannot_take.len();
        for backend in keys {
            if !self.cannot_be_taken_at(backend) {
                self.cannot_take.push(Arc::clone(backend));
            }
        }
        if self.has_no_way(all) {
            return Next::End;
        }
        let after = if self.cannot_take.len() > known {
            Duration::ZERO
        } else {
            self.waits = self.waits.saturating_add(1);
            let pause = doubled(settings.initial_backoff, self.waits - 1).min(settings.max_backoff);
            pause.mul_f64(0.5 + random / 2.0)
        };
        Next::Again {
            after,
            is_hastened: false,
        }
    }

    /// Whether the line has failed at all of these.
    pub(in crate::upstream) fn has_failed_at<'a>(
        &self,
        mut all: impl Iterator<Item = &'a Arc<Backend>>,
    ) -> bool {
        all.all(|one| {
            let mut troubles = self.troubles.iter();
            troubles.any(|trouble| Arc::ptr_eq(&trouble.backend, one))
        })
    }

    /// What is to become of the line after a failure.
    pub(in crate::upstream) fn next(
        &mut self,
        assessment: &Assessment,
        failed: &Failed,
        settings: &RetrySettings,
        random: f64,
    ) -> Next {
        if failed.result == CallResult::TimedOut && self.timed_out() {
            return Next::End;
        }
        match failed.result.cost().unwrap_or(Cost::Refusal) {
            Cost::Refusal if failed.ends_refusal => Next::End,
            Cost::Refusal => self.refused(assessment, settings, random),
            Cost::TurnedAway => self.turned_away(assessment, failed.wait, settings, random),
            Cost::Attempt if failed.is_for_nothing && self.free < FREE_FAILURES_MAX => {
                self.turned_away(assessment, failed.wait, settings, random)
            }
            Cost::Attempt => self.attempted(assessment, settings, random),
        }
    }

    /// A refusal: of the key, the account, the path. It is the line's own once another line has
    /// succeeded that was sent since; else the line waits, however often it is tried.
    pub(in crate::upstream) fn refused(
        &mut self,
        assessment: &Assessment,
        settings: &RetrySettings,
        random: f64,
    ) -> Next {
        if assessment.is_refuted {
            return Next::End;
        }
        self.free(assessment, None, settings, random)
    }

    /// A failure that is no fault of the line's, as far as is known: it costs nothing, until it
    /// is all but impossible that another line would fail as often.
    pub(in crate::upstream) fn turned_away(
        &mut self,
        assessment: &Assessment,
        wait: Option<Duration>,
        settings: &RetrySettings,
        random: f64,
    ) -> Next {
        let is_own = assessment.is_refuted && assessment.chance < IMPOSSIBLE;
        if is_own && assessment.failures >= settings.max_attempts {
            return Next::End;
        }
        self.free(assessment, wait, settings, random)
    }

    /// Counts a call that has timed out. True if the line is not sent again.
    fn timed_out(&mut self) -> bool {
        self.timeouts += 1;
        self.timeouts >= TIMEOUTS_MAX
    }

    /// A failure that costs an attempt. Where the backend has not succeeded since, attempts are
    /// spread over minutes: it may be the backend's fault.
    fn attempted(
        &mut self,
        assessment: &Assessment,
        settings: &RetrySettings,
        random: f64,
    ) -> Next {
        self.attempts += 1;
        if self.attempts >= settings.max_attempts {
            return Next::End;
        }
        if assessment.is_refuted {
            return Next::Again {
                after: backoff(self.attempts, settings, random),
                is_hastened: false,
            };
        }
        let (times, doublings) = if assessment.works {
            WHILE_IN_DOUBT
        } else {
            UNTIL_IT_WORKS
        };
        let first = settings.initial_backoff.saturating_mul(times);
        let longer = doubled(first, (self.attempts - 1).saturating_mul(doublings));
        Next::Again {
            after: longer
                .min(settings.max_backoff)
                .mul_f64(0.75 + random / 4.0),
            is_hastened: true,
        }
    }

    /// The call was not made, for a reason on this side that passes: it says nothing of the line or
    /// of a backend.
    pub(in crate::upstream) fn held_up(&mut self, settings: &RetrySettings, random: f64) -> Next {
        self.free += 1;
        if self.free >= FREE_CALLS_MAX {
            return Next::End;
        }
        let pause = doubled(settings.initial_backoff, self.free - 1).min(settings.max_backoff);
        Next::Again {
            after: pause.mul_f64(0.5 + random / 2.0),
            is_hastened: false,
        }
    }

    /// The line waits for longer each time, so that those that come first are others.
    fn free(
        &mut self,
        assessment: &Assessment,
        wait: Option<Duration>,
        settings: &RetrySettings,
        random: f64,
    ) -> Next {
        self.free += 1;
        if self.free >= FREE_CALLS_MAX {
            return Next::End;
        }
        let own =
            doubled(settings.initial_backoff, assessment.failures - 1).min(settings.max_backoff);
        let own = own.mul_f64(0.5 + random / 2.0);
        Next::Again {
            after: wait.map_or(own, |wait| wait.max(own)),
            is_hastened: false,
        }
    }
}

#[cfg(test)]
mod tests;

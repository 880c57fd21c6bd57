//! Whether lines may be sent to something that fails at times: an upstream, or a model at an
//! upstream. One state machine for both; what closes which follows from a
//! [`CallResult`](crate::upstream::attempt::result::CallResult).
//!
//! * **Open**: lines are sent, as many at once as the limits allow, or as the *window* allows.
//! * **Closed**: nothing is sent until a moment, or until a probe is answered. Then a *trial*
//!   follows: one line, and more as lines succeed.
//!
//! A failure narrows the window to the calls that are still on their way: those that the other
//! side has taken. When none is left the breaker closes. So a server that takes four calls at once
//! keeps four, and one line that always fails closes nothing while others succeed.
//!
//! Each closing begins a new *generation*. A call counts in the generation in which it began: of a
//! hundred calls that fail together one closes the breaker, and what arrives late says nothing
//! about how things are now.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::evidence::Evidence;
use super::reason::Reason;
use crate::upstream::backoff::doubled;
use crate::upstream::settings::{Pace, RetrySettings};

/// Lines that are sent at once when a limit that was reached is tried again.
const FEW: usize = 2;
/// A window that was narrowed grows by one after so many successes. While a limit holds, about
/// one call in thirteen is then refused; and a window grows back to its full size as long as less
/// than one line in thirteen fails for reasons of its own.
const SUCCESSES_A_STEP: u32 = 12;
/// After so many steps without a failure nothing seems to hold it back, and it grows fast.
const STEPS_UNTIL_DOUBLING: u32 = 2;
/// So many refusals in a row close at once, whatever was on its way before: what only a person can
/// mend is not capacity.
const REFUSALS_IN_A_ROW: u32 = 8;
/// So many lines that fail one after the other, each for the first time, are the server's fault
/// and not the lines'. By chance that happens once in ten billion calls where a tenth fails.
const RUN_OF_FAILURES: u32 = 8;
/// A batch whose lines fail so often in a row while other batches succeed is at fault itself.
const FAILURES_OF_A_BATCH: u32 = 4;
/// A success of another batch shows that for so long.
const SHOWN_FOR: Duration = Duration::from_mins(1);
/// Batches whose failures in a row are counted.
const BATCHES_COUNTED_MAX: usize = 256;
/// A call that has not failed for so long lets one more be sent: a model may take minutes.
const ONE_MORE_AFTER: Duration = Duration::from_secs(5);
/// One failure closes nothing that has worked before: the next line shows whose fault it was.
const FAILURES_IN_A_ROW: u32 = 2;

/// Why and until when a breaker is closed.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Closure {
    pub(in crate::upstream) reason: Reason,
    /// In words for people; no addresses, no secrets.
    pub(in crate::upstream) cause: String,
    pub(in crate::upstream) since: Instant,
    /// When lines are tried again; for what is probed, when it is probed.
    pub(in crate::upstream) until: Instant,
    /// Until when the other processes know the breaker to be closed.
    pub(in crate::upstream) shared_until: Option<Instant>,
    /// Calls that have failed since.
    pub(in crate::upstream) failures: u64,
}

/// How many calls at once, until it is known that more are taken.
#[derive(Clone, Copy, Debug)]
struct Window {
    size: usize,
    /// Each success adds one, until a call fails.
    doubles: bool,
    /// Since it grew.
    successes: u32,
    /// How often it grew since a call failed.
    steps: u32,
}

/// Whether a line can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Room {
    Open {
        /// It is not known to work: lines that have failed before come last.
        is_trial: bool,
    },
    /// All that the window allows is on its way.
    Full,
    /// `until`: when it opens by itself.
    Closed { until: Option<Instant> },
}

/// How a call failed, for a breaker.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Failure {
    pub(in crate::upstream) reason: Reason,
    /// How long the server asked to be left alone.
    pub(in crate::upstream) wait: Option<Duration>,
    /// Whether the server asked for more than it is believed: then one line tries.
    pub(in crate::upstream) is_capped: bool,
    /// The line had not failed here before.
    pub(in crate::upstream) is_fresh: bool,
    /// Of the line's batch.
    pub(in crate::upstream) batch: u64,
}

/// What a call has changed.
#[derive(Clone, Debug)]
pub(in crate::upstream) enum Change {
    /// It has closed, and was open before.
    Closed(Closure),
    /// A trial has failed.
    StillClosed,
    /// It is open again; how it was closed.
    Opened(Closure),
}

#[derive(Debug, Default)]
pub(in crate::upstream) struct Breaker {
    closure: Option<Closure>,
    window: Option<Window>,
    generation: u32,
    /// The generation of the last trial, if it has failed.
    failed_trial: Option<u32>,
    /// Calls of this generation.
    in_flight: usize,
    /// Closings since the last success: each doubles the wait.
    consecutive_closings: u32,
    /// Failures since the last success of a call that began after the first of them.
    consecutive_failures: u32,
    /// When the first of them was there, and how the last one was refused.
    failing_since: Option<Instant>,
    doubt: Option<(Reason, String)>,
    /// The same of lines that had not failed before, of the kind that a server shows at times.
    run: u32,
    evidence: Evidence,
    /// When a line began to wait for a success.
    awaited_since: Option<Instant>,
    /// When the last call was sent, and the first of this generation.
    started: Option<Instant>,
    generation_began: Option<Instant>,
    batches: Batches,
}

/// How batches fare, so that one of them is told from the rest.
#[derive(Debug, Default)]
struct Batches {
    /// Failures in a row.
    failures: HashMap<u64, u32>,
    /// The last success, and the last one of another batch than that.
    successes: [Option<(u64, Instant)>; 2],
}

impl Batches {
    fn succeeded(&mut self, batch: u64, now: Instant) {
        if !self.failures.is_empty() {
            self.failures.remove(&batch);
        }
        if self.successes[0].is_some_and(|(last, _)| last != batch) {
            self.successes[1] = self.successes[0];
        }
        self.successes[0] = Some((batch, now));
    }

    /// Takes a failure down. Whether it is the batch's own: it has failed again and again, while
    /// others succeed.
    fn failed(&mut self, batch: u64, now: Instant) -> bool {
        if self.failures.len() >= BATCHES_COUNTED_MAX && !self.failures.contains_key(&batch) {
            self.failures.clear();
        }
        let failures = self.failures.entry(batch).or_default();
        *failures = failures.saturating_add(1);
        let is_often = *failures >= FAILURES_OF_A_BATCH;
        is_often
            && self.successes.iter().flatten().any(|(other, at)| {
                *other != batch && now.saturating_duration_since(*at) < SHOWN_FOR
            })
    }
}

impl Breaker {
    pub(in crate::upstream) fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    pub(in crate::upstream) fn closure(&self) -> Option<&Closure> {
        self.closure.as_ref()
    }

    pub(in crate::upstream) fn room(&self, now: Instant) -> Room {
        if let Some(closure) = &self.closure
            && (closure.until > now || closure.reason == Reason::Unreachable)
        {
            let until = (closure.reason != Reason::Unreachable).then_some(closure.until);
            return Room::Closed { until };
        }
        match self.window {
            Some(window) if self.in_flight >= self.size(window, now) => Room::Full,
            _ => Room::Open {
                is_trial: self.closure.is_some(),
            },
        }
    }

    /// How many calls the window takes: while it is a ramp, more as time goes by without a failure.
    fn size(&self, window: Window, now: Instant) -> usize {
        let began = self.generation_began.filter(|_| window.doubles);
        let elapsed = began.map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        let more = elapsed.as_secs() / ONE_MORE_AFTER.as_secs();
        window
            .size
            .saturating_add(usize::try_from(more).unwrap_or(usize::MAX))
    }

    /// When the last call was sent.
    pub(in crate::upstream) fn last_start(&self) -> Option<Instant> {
        self.started
    }

    /// Whether nothing of it need be remembered.
    pub(in crate::upstream) fn is_unremarkable(&self, now: Instant) -> bool {
        let is_over = |closure: &Closure| closure.until <= now;
        self.closure.as_ref().is_none_or(is_over) && self.in_flight == 0
    }

    /// Whether calls succeed, as far as is known: who fails then fails for reasons of its own.
    pub(in crate::upstream) fn works(&self) -> bool {
        self.closure.is_none() && self.evidence.has_succeeded()
    }

    /// Whether there is nothing to be said of it.
    pub(in crate::upstream) fn is_well(&self) -> bool {
        self.is_wide()
            && self.consecutive_failures == 0
            && (self.evidence.has_succeeded() || !self.evidence.has_failed())
    }

    /// Whether it could take as many lines as the limits allow.
    pub(in crate::upstream) fn is_wide(&self) -> bool {
        self.closure.is_none() && self.window.is_none()
    }

    /// A line is sent. Returns the generation that its call belongs to.
    pub(in crate::upstream) fn start(&mut self, now: Instant) -> u32 {
        self.in_flight += 1;
        self.started = Some(now);
        self.generation_began.get_or_insert(now);
        self.generation
    }

    /// A call was broken off before it showed anything.
    pub(in crate::upstream) fn abandon(&mut self, generation: u32) {
        if generation == self.generation {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// A call has succeeded. `limit`: as many at once as there may be without a window.
    pub(in crate::upstream) fn succeed(
        &mut self,
        generation: u32,
        (begun, now): (Instant, Instant),
        batch: u64,
        limit: usize,
    ) -> Option<Change> {
        self.evidence.succeeded(begun, now);
        self.batches.succeeded(batch, now);
        if generation != self.generation {
            if self.failed_trial == Some(generation)
                && let Some(closure) = &mut self.closure
            {
                // Only one line of that trial was refused: the next one is tried at once.
                self.consecutive_closings = 0;
                closure.until = closure.until.min(now);
            }
            return None;
        }
        let was_in_use = self.in_flight;
        self.in_flight = self.in_flight.saturating_sub(1);
        (self.consecutive_closings, self.run) = (0, 0);
        // What was on its way before says nothing of what has failed since.
        if self
            .failing_since
            .is_none_or(|failing_since| begun >= failing_since)
        {
            self.end_failures();
        }
        let opened = self.closure.take();
        match opened.as_ref().map(|closure| closure.reason) {
            None | Some(Reason::Limited) => self.widen(was_in_use),
            // It works again: at once with half of the calls, and with all of them soon.
            Some(Reason::Unavailable | Reason::Failing | Reason::Unreachable) => {
                self.window = Some(Window::doubling((limit / 2).max(FEW)));
            }
            Some(_) => self.window = None,
        }
        if self.window.is_some_and(|window| window.size >= limit) {
            self.window = None;
        }
        opened.map(Change::Opened)
    }

    /// A call was answered, but not with a success: who answers so works, whatever was wrong with
    /// the line.
    pub(in crate::upstream) fn answer(&mut self, generation: u32) -> Option<Change> {
        if generation != self.generation {
            return None;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.end_failures();
        self.closure.take().map(Change::Opened)
    }

    /// A call has failed; `random` in 0..1. `cause` says how, in words.
    pub(in crate::upstream) fn fail(
        &mut self,
        failure: Failure,
        generation: u32,
        now: Instant,
        paces: (&Pace, &RetrySettings),
        random: f64,
        cause: &str,
    ) -> Option<Change> {
        self.evidence.failed();
        if let Some(closure) = &mut self.closure {
            closure.failures += 1;
        }
        // What nobody answers at, no batch can be at fault for.
        let is_of_batch = self.batches.failed(failure.batch, now);
        if is_of_batch && failure.reason != Reason::Unreachable && self.closure.is_none() {
            self.abandon(generation);
            return None;
        }
        if generation != self.generation {
            self.fail_late(failure, now);
            return None;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.failing_since.get_or_insert(now);
        if failure.reason.needs_a_person() && self.consecutive_failures >= FAILURES_IN_A_ROW {
            self.doubt = Some((failure.reason, cause.to_owned()));
        }
        let is_trial = self.closure.is_some();
        let closure = self.closure.as_ref();
        let is_limited = closure.is_some_and(|closure| closure.reason == Reason::Limited);
        let closes = match failure.reason {
            Reason::Unreachable => true,
            // Who answers with a failure does not limit us any more.
            _ if is_trial && !(is_limited && failure.reason == Reason::Failing) => true,
            Reason::Failing => {
                self.run += u32::from(failure.is_fresh);
                self.run >= RUN_OF_FAILURES && self.evidence.has_succeeded()
            }
            _ if failure.wait.is_some_and(|wait| !wait.is_zero()) => true,
            reason => {
                // What only a person can mend is no lack of room.
                if !reason.needs_a_person() {
                    self.narrow();
                }
                let is_doubted = self.consecutive_failures >= FAILURES_IN_A_ROW
                    || !self.evidence.has_succeeded();
                let is_refused = failure.reason.needs_a_person()
                    && self.consecutive_failures >= REFUSALS_IN_A_ROW;
                is_refused || (self.in_flight == 0 && is_doubted)
            }
        };
        closes.then(|| self.close(failure, now, paces, random, cause))
    }

    /// A call has failed in a way that does not concern this breaker; but a trial that does not
    /// succeed has failed.
    pub(in crate::upstream) fn unclear(
        &mut self,
        generation: u32,
        batch: u64,
        now: Instant,
        paces: (&Pace, &RetrySettings),
        random: f64,
    ) -> Option<Change> {
        let closure = self
            .closure
            .as_ref()
            .filter(|_| generation == self.generation);
        let Some(Closure { reason, cause, .. }) = closure.cloned() else {
            self.abandon(generation);
            return None;
        };
        let failure = Failure {
            reason,
            wait: None,
            is_capped: false,
            is_fresh: false,
            batch,
        };
        self.fail(failure, generation, now, paces, random, &cause)
    }

    /// A line waits for the next success of a call that begins from now on.
    pub(in crate::upstream) fn await_success(&mut self, now: Instant) {
        self.awaited_since = Some(now);
    }

    /// Whether a line has waited for the success that has just come, of a call begun then.
    pub(in crate::upstream) fn take_awaited(&mut self, begun: Instant) -> bool {
        let has_come = self.awaited_since.is_some_and(|since| begun > since);
        if has_come {
            self.awaited_since = None;
        }
        has_come
    }

    /// A call has failed that says nothing about the other side: it is the line's own fault.
    pub(in crate::upstream) fn pass_over(&mut self, generation: u32) {
        self.evidence.failed();
        self.abandon(generation);
    }

    /// A probe of what was unreachable. It opens on trust: until a call succeeds, the next closing
    /// is longer.
    pub(in crate::upstream) fn probed(
        &mut self,
        answers: bool,
        now: Instant,
        pace: &Pace,
        random: f64,
        limit: usize,
    ) -> Option<Change> {
        let closure = self.closure.as_mut()?;
        if closure.reason != Reason::Unreachable {
            return None;
        }
        if answers {
            self.window = Some(Window::doubling((limit / 2).max(FEW)));
            return self.closure.take().map(Change::Opened);
        }
        self.consecutive_closings = self.consecutive_closings.saturating_add(1);
        closure.until = now + probe_wait(self.consecutive_closings, pace, random);
        None
    }

    /// Says how the last probe went.
    pub(in crate::upstream) fn explain(&mut self, cause: String) {
        if let Some(closure) = &mut self.closure {
            closure.cause = cause;
        }
    }

    /// Another process leaves the other side alone until then, and so does this one.
    pub(in crate::upstream) fn follow_cooldown(
        &mut self,
        until: Instant,
        now: Instant,
        cause: &str,
    ) {
        if let Some(closure) = &mut self.closure {
            closure.until = closure.until.max(until);
            closure.shared_until = closure.shared_until.max(Some(until));
        } else {
            self.begin_generation(FEW);
            self.closure = Some(Closure {
                reason: Reason::Limited,
                cause: cause.to_owned(),
                since: now,
                until,
                shared_until: Some(until),
                failures: 0,
            });
        }
    }

    /// An operator says that it is mended: opens it, and forgets its failures.
    pub(in crate::upstream) fn reset(&mut self, now: Instant) -> Option<Change> {
        self.evidence.reset(now);
        self.generation = self.generation.wrapping_add(1);
        (self.in_flight, self.window) = (0, None);
        (self.consecutive_closings, self.run) = (0, 0);
        self.end_failures();
        self.closure.take().map(Change::Opened)
    }

    /// How the last calls were refused, where none that began since has succeeded.
    pub(in crate::upstream) fn doubt(&self) -> Option<&(Reason, String)> {
        self.doubt.as_ref()
    }

    fn end_failures(&mut self) {
        self.consecutive_failures = 0;
        (self.failing_since, self.doubt) = (None, None);
    }

    fn close(
        &mut self,
        failure: Failure,
        now: Instant,
        (pace, retry): (&Pace, &RetrySettings),
        random: f64,
        cause: &str,
    ) -> Change {
        // Who limited us and now refuses a line, or the reverse, answers otherwise than before: how
        // patient to be is found out anew.
        let is_refused = failure.reason.needs_a_person();
        let before = self.closure.take();
        if before
            .as_ref()
            .is_some_and(|before| before.reason.needs_a_person() != is_refused)
        {
            self.consecutive_closings = 0;
        }
        self.consecutive_closings = self.consecutive_closings.saturating_add(1);
        self.failed_trial = before.is_some().then_some(self.generation);
        let own = match failure.reason {
            Reason::Limited => doubled(retry.initial_backoff, self.consecutive_closings - 1)
                .min(retry.max_backoff)
                .mul_f64(0.5 + random / 2.0),
            Reason::Unavailable | Reason::Failing | Reason::Unreachable => {
                probe_wait(self.consecutive_closings, pace, random)
            }
            _ => doubled(pace.trial_first, self.consecutive_closings - 1).min(pace.trial_longest),
        };
        // "Retry after 0 s" would be a tight loop.
        let wait = failure.wait.filter(|wait| !wait.is_zero()).unwrap_or(own);
        let few = match failure.reason {
            Reason::Limited if !failure.is_capped => (self.in_flight / 2).max(FEW),
            _ => 1,
        };
        self.begin_generation(few);
        let closure = Closure {
            reason: failure.reason,
            cause: cause.to_owned(),
            since: before.as_ref().map_or(now, |before| before.since),
            until: now + wait,
            shared_until: before.as_ref().and_then(|before| before.shared_until),
            failures: before.as_ref().map_or(1, |before| before.failures),
        };
        self.closure = Some(closure.clone());
        match before {
            Some(_) => Change::StillClosed,
            None => Change::Closed(closure),
        }
    }

    /// A call of an earlier generation has failed: it says nothing new, unless the server asks to
    /// be left alone, and that fewer calls were taken than it seemed.
    fn fail_late(&mut self, failure: Failure, now: Instant) {
        if failure.reason != Reason::Limited {
            return;
        }
        if let Some(window) = &mut self.window {
            window.size = (window.size - 1).max(FEW.min(window.size));
        }
        if let (Some(closure), Some(wait)) = (&mut self.closure, failure.wait)
            && closure.reason == Reason::Limited
        {
            closure.until = closure.until.max(now + wait);
        }
    }

    fn begin_generation(&mut self, window: usize) {
        self.generation = self.generation.wrapping_add(1);
        (self.in_flight, self.run) = (0, 0);
        self.generation_began = None;
        self.window = Some(Window::doubling(window));
    }

    fn narrow(&mut self) {
        let size = self.window.map_or(usize::MAX, |window| window.size);
        self.window = Some(Window {
            size: size.min(self.in_flight).max(1),
            doubles: false,
            successes: self.window.map_or(0, |window| window.successes),
            steps: 0,
        });
    }

    /// After a success, when so many calls were on their way: a window that is not used does not
    /// show that more would be taken.
    fn widen(&mut self, in_use: usize) {
        let Some(window) = &mut self.window else {
            return;
        };
        if in_use * 4 < window.size {
            return;
        }
        window.successes += 1;
        if window.doubles || window.successes >= SUCCESSES_A_STEP {
            window.size += 1;
            window.successes = 0;
            window.steps += 1;
            window.doubles |= window.steps >= STEPS_UNTIL_DOUBLING;
        }
    }
}

impl Window {
    fn doubling(size: usize) -> Self {
        Self {
            size,
            doubles: true,
            successes: 0,
            steps: 0,
        }
    }
}

fn probe_wait(consecutive_closings: u32, pace: &Pace, random: f64) -> Duration {
    let wait = doubled(pace.probe_first, consecutive_closings.saturating_sub(1));
    wait.min(pace.probe_longest).mul_f64(1.0 + random / 4.0)
}

#[cfg(test)]
mod tests;

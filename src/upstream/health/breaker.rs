//! Whether lines may be sent to something that fails at times: an upstream, or a model at an
//! upstream. Both have the same state machine. Which of the two a failure concerns follows from the
//! [`CallResult`](crate::upstream::attempt::result::CallResult).
//!
//! * **Open**: lines are sent, as many at once as the limits allow, or as the *window* allows.
//! * **Closed**: nothing is sent until a set time, or until a probe is answered. Then a *trial*
//!   follows: one line, and more as lines succeed.
//!
//! A failure narrows the window to the calls that are still in flight, because the other side has
//! taken those. When none is left in flight, the breaker closes. So a server that takes four calls
//! at once keeps four, and one line that always fails closes nothing while others succeed.
//!
//! Each closing begins a new *generation*. A call counts in the generation in which it began. So of
//! a hundred calls that fail together one closes the breaker, and late results say nothing about
//! the present.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::evidence::Evidence;
use super::reason::Reason;
use crate::upstream::backoff::doubled;
use crate::upstream::settings::{Pace, RetrySettings};

/// After a closing the window begins with at least so many calls, unless one line tries alone.
const FIRST_WINDOW_MIN: usize = 2;
/// A narrowed window grows by one after so many successes. While the other side takes no more
/// calls, about one call in thirteen is then refused. As long as less than one line in thirteen
/// fails for reasons of its own, the window grows back to its full size.
const SUCCESSES_A_STEP: u32 = 12;
/// After so many steps without a failure the window grows with each success.
const STEPS_UNTIL_DOUBLING: u32 = 2;
/// When so many lines in a row are refused, each for the first time, that closes at once, even
/// while calls are in flight: a lack of capacity can pass, and what only a person can mend cannot.
const REFUSALS_IN_A_ROW: u32 = 8;
/// When so many lines in a row fail, each for the first time, the server is at fault and not the
/// lines. Where a tenth of the calls fail, that happens by chance once in ten billion calls.
const FRESH_FAILURES_IN_A_ROW: u32 = 8;
/// When so many lines in a row of one batch fail while other batches succeed, the batch is at
/// fault.
const FAILURES_OF_A_BATCH: u32 = 4;
/// For how long the success of another batch counts for that.
const BATCH_SUCCESS_COUNTS_FOR: Duration = Duration::from_mins(1);
/// Batches whose failures in a row are counted.
const BATCHES_COUNTED_MAX: usize = 256;
/// For each such time without a failure, a trial may have one more call in flight: the answer to
/// its first call may take minutes.
const ONE_MORE_AFTER: Duration = Duration::from_secs(5);
/// What was down and works again takes half of its calls for so long, however fast it answers.
const RAMP: Duration = Duration::from_secs(1);
/// What fails is tried again after this part of the time that it has failed. So an outage costs the
/// lines little more than it takes, and a long one few trials.
const TRIED_AFTER_A_PART: u32 = 8;
/// After one failure, what has worked before stays open: the next line shows whose fault it was.
const FAILURES_IN_A_ROW: u32 = 2;

/// Why and until when a breaker is closed.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Closure {
    pub(in crate::upstream) reason: Reason,
    /// In words for people; no addresses, no secrets.
    pub(in crate::upstream) cause: String,
    pub(in crate::upstream) since: Instant,
    /// When a line is tried again, or, after [`Reason::Unreachable`], when the next probe is due.
    pub(in crate::upstream) until: Instant,
    /// The server has named the time.
    pub(in crate::upstream) is_asked: bool,
    /// Until when the other processes keep it closed, as far as they were told.
    pub(in crate::upstream) shared_until: Option<Instant>,
    /// Calls that have failed since then.
    pub(in crate::upstream) failures: u64,
}

/// How many calls there may be at once, until it is known that the other side takes more.
#[derive(Clone, Copy, Debug)]
struct Window {
    size: usize,
    /// Each success adds one to the size, until a call fails: in each round of calls it doubles.
    doubles: bool,
    /// Successes since the size grew.
    successes: u32,
    /// How often the size grew since a call failed.
    steps: u32,
    /// Until then it does not grow.
    held_until: Option<Instant>,
}

/// Whether a line can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Room {
    Open {
        /// Nothing is known to succeed here: lines that have failed before are sent last.
        is_trial: bool,
    },
    /// As many calls are in flight as the window allows.
    Full,
    /// `until`: when it opens by itself.
    Closed { until: Option<Instant> },
}

impl Room {
    /// Where two breakers must let a line be sent.
    pub(in crate::upstream) fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Room::Open { is_trial } => match other() {
                Room::Open { is_trial: other } => Room::Open {
                    is_trial: is_trial || other,
                },
                other => other,
            },
            other => other,
        }
    }

    /// Where a line may be sent by either of two ways.
    pub(in crate::upstream) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Room::Open { is_trial: one }, Room::Open { is_trial: two }) => Room::Open {
                is_trial: one && two,
            },
            (open @ Room::Open { .. }, _) | (_, open @ Room::Open { .. }) => open,
            (Room::Full, _) | (_, Room::Full) => Room::Full,
            (Room::Closed { until: one }, Room::Closed { until: two }) => Room::Closed {
                until: one.into_iter().chain(two).min(),
            },
        }
    }
}

/// How a call failed, for a breaker.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Failure {
    pub(in crate::upstream) reason: Reason,
    /// For how long the server asks for no more calls, cut down to what the configuration allows.
    pub(in crate::upstream) wait: Option<Duration>,
    /// The server asked for a longer time than that. After the wait, one line tries.
    pub(in crate::upstream) is_capped: bool,
    /// The line had not failed here before.
    pub(in crate::upstream) is_fresh: bool,
    /// The number of the line's batch.
    pub(in crate::upstream) batch: u64,
}

/// How a call has changed a breaker.
#[derive(Clone, Debug)]
pub(in crate::upstream) enum Change {
    /// It has closed, and was open before.
    Closed(Closure),
    /// A trial has failed.
    StillClosed,
    /// It is open again, and was closed like this.
    Opened(Closure),
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Breaker {
    closure: Option<Closure>,
    window: Option<Window>,
    generation: u32,
    /// The generation of the last trial, if that trial has failed.
    failed_trial: Option<u32>,
    /// Calls in flight that began in this generation.
    in_flight: usize,
    /// Closings since the last success: each doubles the wait.
    consecutive_closings: u32,
    /// When the first of them was.
    first_closed: Option<Instant>,
    /// Failures since the last success of a call that began after the first of them.
    consecutive_failures: u32,
    /// When the first of them came.
    failing_since: Option<Instant>,
    /// Those of them that only a person can mend, each of a line that had not failed before.
    fresh_refusals: u32,
    /// How the last of them was refused, where only a person can mend it.
    last_refusal: Option<(Reason, String)>,
    /// Server errors since the last success, each of a line that had not failed before.
    fresh_failures: u32,
    evidence: Evidence,
    /// When the last line began to wait for a success here.
    awaited_since: Option<Instant>,
    /// When the last call was sent.
    started: Option<Instant>,
    /// When the first call of this generation was sent.
    generation_began: Option<Instant>,
    batches: Batches,
}

/// How the lines of each batch fare, so that a batch whose lines are at fault is known.
#[derive(Debug, Default)]
struct Batches {
    /// Failures in a row, by batch, and when the first of them came.
    failures: HashMap<u64, (u32, Instant)>,
    /// The last success, and the last success of another batch than that one's.
    successes: [Option<BatchSuccess>; 2],
}

#[derive(Clone, Copy, Debug)]
struct BatchSuccess {
    batch: u64,
    /// When its call began, and ended.
    begun: Instant,
    at: Instant,
}

impl Batches {
    fn succeeded(&mut self, batch: u64, begun: Instant, at: Instant) {
        if !self.failures.is_empty() {
            self.failures.remove(&batch);
        }
        if self.successes[0].is_some_and(|last| last.batch != batch) {
            self.successes[1] = self.successes[0];
        }
        self.successes[0] = Some(BatchSuccess { batch, begun, at });
    }

    /// Counts a failure. True if the batch is at fault: its lines fail again and again while those
    /// of other batches succeed. Where an account is spent, only those successes count whose calls
    /// began after the first of the failures: what came before may have spent it.
    fn failed(&mut self, batch: u64, reason: Reason, now: Instant) -> bool {
        if self.failures.len() >= BATCHES_COUNTED_MAX && !self.failures.contains_key(&batch) {
            self.failures.clear();
        }
        let (failures, since) = self.failures.entry(batch).or_insert((0, now));
        *failures = failures.saturating_add(1);
        let is_often = *failures >= FAILURES_OF_A_BATCH;
        is_often
            && self.successes.iter().flatten().any(|other| {
                let age = now.saturating_duration_since(other.at);
                let is_since = reason != Reason::Unpaid || other.begun >= *since;
                other.batch != batch && is_since && age < BATCH_SUCCESS_COUNTS_FOR
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
        self.room_beside(0, now)
    }

    /// The same, where so many places are kept for other lines.
    pub(in crate::upstream) fn room_beside(&self, kept: usize, now: Instant) -> Room {
        if let Some(closure) = &self.closure
            && (closure.until > now || closure.reason == Reason::Unreachable)
        {
            let until = (closure.reason != Reason::Unreachable).then_some(closure.until);
            return Room::Closed { until };
        }
        match self.window {
            Some(window) if self.in_flight + kept >= self.size(window, now) => Room::Full,
            _ => Room::Open {
                is_trial: self.closure.is_some(),
            },
        }
    }

    /// How many calls the window allows now. While it doubles, time without a failure adds to it.
    fn size(&self, window: Window, now: Instant) -> usize {
        if window.is_held(now) {
            return window.size;
        }
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

    /// Whether the breaker can be forgotten: it is open, or its time is over, and nothing is in
    /// flight.
    pub(in crate::upstream) fn is_unremarkable(&self, now: Instant) -> bool {
        let is_over = |closure: &Closure| closure.until <= now;
        self.closure.as_ref().is_none_or(is_over) && self.in_flight == 0
    }

    /// Whether calls succeed here, as far as is known. A line that fails then is itself at fault.
    pub(in crate::upstream) fn works(&self) -> bool {
        self.closure.is_none() && self.evidence.has_succeeded()
    }

    /// Whether it is open without a window, and nothing has failed since the last success.
    pub(in crate::upstream) fn is_well(&self) -> bool {
        self.is_wide()
            && self.consecutive_failures == 0
            && (self.evidence.has_succeeded() || !self.evidence.has_failed())
    }

    /// Whether as many lines may be sent as the limits allow.
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

    /// A call has succeeded. `limit`: how many calls at once there may be without a window.
    pub(in crate::upstream) fn succeed(
        &mut self,
        generation: u32,
        (begun, now): (Instant, Instant),
        batch: u64,
        limit: usize,
    ) -> Option<Change> {
        self.evidence.succeeded(begun, now);
        self.batches.succeeded(batch, begun, now);
        if generation != self.generation {
            if self.failed_trial == Some(generation)
                && let Some(closure) = &mut self.closure
            {
                // A line of that trial was refused, and another one has succeeded after all: the
                // next line is tried at once.
                self.consecutive_closings = 0;
                closure.until = closure.until.min(now);
            }
            return None;
        }
        let was_in_use = self.in_flight;
        self.in_flight = self.in_flight.saturating_sub(1);
        (self.consecutive_closings, self.fresh_failures) = (0, 0);
        // A call that began before the first failure does not show that the failing has ended.
        if self
            .failing_since
            .is_none_or(|failing_since| begun >= failing_since)
        {
            self.end_failures();
        }
        let opened = self.closure.take();
        match opened.as_ref().map(|closure| closure.reason) {
            None | Some(Reason::Limited) => self.widen(was_in_use, now),
            // The server works again. Half of the calls at once, and soon all of them.
            Some(Reason::Unavailable | Reason::Failing | Reason::Unreachable) => {
                self.window = Some(Window::ramp(limit, now));
            }
            Some(_) => self.window = None,
        }
        if self.window.is_some_and(|window| window.size >= limit) {
            self.window = None;
        }
        opened.map(Change::Opened)
    }

    /// A call was answered with an error that is the line's own: the other side works.
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
        // No batch is at fault for a server that cannot be reached.
        let is_of_batch = self.batches.failed(failure.batch, failure.reason, now);
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
        let is_refusal = failure.reason.needs_a_person();
        self.fresh_refusals += u32::from(is_refusal && failure.is_fresh);
        if is_refusal && self.consecutive_failures >= FAILURES_IN_A_ROW {
            self.last_refusal = Some((failure.reason, cause.to_owned()));
        }
        let is_trial = self.closure.is_some();
        let closure = self.closure.as_ref();
        let is_limited = closure.is_some_and(|closure| closure.reason == Reason::Limited);
        let closes = match failure.reason {
            Reason::Unreachable => true,
            // A server error in a trial after a rate limit shows that the limit is over.
            _ if is_trial && !(is_limited && failure.reason == Reason::Failing) => true,
            Reason::Failing => {
                self.fresh_failures += u32::from(failure.is_fresh);
                self.fresh_failures >= FRESH_FAILURES_IN_A_ROW && self.evidence.has_succeeded()
            }
            _ if failure.wait.is_some_and(|wait| !wait.is_zero()) => true,
            reason => {
                // A window helps where calls are too many, and not where a person must mend
                // something.
                if !reason.needs_a_person() {
                    self.narrow();
                }
                let may_be_closed = self.consecutive_failures >= FAILURES_IN_A_ROW
                    || !self.evidence.has_succeeded();
                let is_refused = is_refusal && self.fresh_refusals >= REFUSALS_IN_A_ROW;
                is_refused || (self.in_flight == 0 && may_be_closed)
            }
        };
        closes.then(|| self.close(failure, now, paces, random, cause))
    }

    /// A call has failed in a way that does not concern this breaker. Only a trial fails by it, as
    /// by anything but a success.
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

    /// A call that began at `begun` has succeeded: whether a line waited for such a success.
    pub(in crate::upstream) fn take_awaited(&mut self, begun: Instant) -> bool {
        let has_come = self.awaited_since.is_some_and(|since| begun > since);
        if has_come {
            self.awaited_since = None;
        }
        has_come
    }

    /// A call has failed by the line's own fault, which says nothing about the other side.
    pub(in crate::upstream) fn pass_over(&mut self, generation: u32) {
        self.evidence.failed();
        self.abandon(generation);
    }

    /// A call has failed in a way that concerns this breaker, and others with it that hear of it as
    /// a failure: only the time is noted.
    pub(in crate::upstream) fn suspect(&mut self, generation: u32, now: Instant) {
        self.failing_since.get_or_insert(now);
        self.pass_over(generation);
    }

    /// A probe of an unreachable upstream has ended. An answer opens the breaker, and only a call
    /// that succeeds ends the doubling of its waits.
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
            self.window = Some(Window::ramp(limit, now));
            return self.closure.take().map(Change::Opened);
        }
        self.consecutive_closings = self.consecutive_closings.saturating_add(1);
        closure.until = now + probe_wait(self.consecutive_closings, pace, random);
        None
    }

    /// Why it is still closed: how the last probe went.
    pub(in crate::upstream) fn explain(&mut self, cause: String) {
        if let Some(closure) = &mut self.closure {
            closure.cause = cause;
        }
    }

    /// Another process has closed its breaker until then, and so does this one.
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
            self.begin_generation(FIRST_WINDOW_MIN);
            self.closure = Some(Closure {
                reason: Reason::Limited,
                cause: cause.to_owned(),
                since: now,
                until,
                is_asked: true,
                shared_until: Some(until),
                failures: 0,
            });
        }
    }

    /// An operator says that the other side is mended: opens the breaker and forgets the failures.
    pub(in crate::upstream) fn reset(&mut self, now: Instant) -> Option<Change> {
        self.evidence.reset(now);
        self.generation = self.generation.wrapping_add(1);
        (self.in_flight, self.window) = (0, None);
        (self.consecutive_closings, self.fresh_failures) = (0, 0);
        self.end_failures();
        self.closure.take().map(Change::Opened)
    }

    /// How the last calls were refused, in words, unless a call that began since has succeeded.
    pub(in crate::upstream) fn last_refusal(&self) -> Option<&(Reason, String)> {
        self.last_refusal.as_ref()
    }

    /// Since when calls have failed here, as far as the failures are not over.
    pub(in crate::upstream) fn failing_since(&self) -> Option<Instant> {
        self.failing_since
    }

    fn end_failures(&mut self) {
        (self.consecutive_failures, self.fresh_refusals) = (0, 0);
        (self.failing_since, self.last_refusal) = (None, None);
    }

    fn close(
        &mut self,
        failure: Failure,
        now: Instant,
        (pace, retry): (&Pace, &RetrySettings),
        random: f64,
        cause: &str,
    ) -> Change {
        // Where a refusal follows a rate limit or an outage, or the reverse, the waits begin anew:
        // how long the new trouble lasts is not known from the old one.
        let is_refused = failure.reason.needs_a_person();
        let before = self.closure.take();
        if before
            .as_ref()
            .is_some_and(|before| before.reason.needs_a_person() != is_refused)
        {
            self.consecutive_closings = 0;
        }
        self.consecutive_closings = self.consecutive_closings.saturating_add(1);
        if self.consecutive_closings == 1 {
            self.first_closed = Some(now);
        }
        self.failed_trial = before.is_some().then_some(self.generation);
        let own = match failure.reason {
            Reason::Limited => doubled(retry.initial_backoff, self.consecutive_closings - 1)
                .min(retry.max_backoff)
                .mul_f64(0.5 + random / 2.0),
            Reason::Unreachable => probe_wait(self.consecutive_closings, pace, random),
            Reason::Unavailable | Reason::Failing => {
                let first = self.first_closed.unwrap_or(now);
                let part = now.saturating_duration_since(first) / TRIED_AFTER_A_PART;
                let wait = part.max(pace.probe_first).min(pace.failing_longest);
                wait.mul_f64(1.0 + random / 4.0)
            }
            _ => doubled(pace.trial_first, self.consecutive_closings - 1).min(pace.trial_longest),
        };
        // "Retry after 0 s" would be a tight loop.
        let wait = failure.wait.filter(|wait| !wait.is_zero()).unwrap_or(own);
        let window = match failure.reason {
            Reason::Limited if !failure.is_capped => (self.in_flight / 2).max(FIRST_WINDOW_MIN),
            _ => 1,
        };
        self.begin_generation(window);
        let closure = Closure {
            reason: failure.reason,
            cause: cause.to_owned(),
            since: before.as_ref().map_or(now, |before| before.since),
            until: now + wait,
            is_asked: failure.wait.is_some_and(|wait| !wait.is_zero()),
            shared_until: before.as_ref().and_then(|before| before.shared_until),
            failures: before.as_ref().map_or(1, |before| before.failures),
        };
        self.closure = Some(closure.clone());
        match before {
            Some(_) => Change::StillClosed,
            None => Change::Closed(closure),
        }
    }

    /// A call of an earlier generation has failed. Only a rate limit says something new: the server
    /// took fewer calls than it seemed, and may ask for a longer wait.
    fn fail_late(&mut self, failure: Failure, now: Instant) {
        if failure.reason != Reason::Limited {
            return;
        }
        if let Some(window) = &mut self.window {
            window.size = (window.size - 1).max(FIRST_WINDOW_MIN.min(window.size));
        }
        if let (Some(closure), Some(wait)) = (&mut self.closure, failure.wait)
            && closure.reason == Reason::Limited
        {
            closure.until = closure.until.max(now + wait);
        }
    }

    /// What began before does not count any more. `window`: how many calls the trial begins with.
    fn begin_generation(&mut self, window: usize) {
        self.generation = self.generation.wrapping_add(1);
        (self.in_flight, self.fresh_failures) = (0, 0);
        self.generation_began = None;
        self.window = Some(Window::doubling(window));
    }

    /// Narrows the window to the calls that are still in flight.
    fn narrow(&mut self) {
        let size = self.window.map_or(usize::MAX, |window| window.size);
        self.window = Some(Window {
            size: size.min(self.in_flight).max(1),
            doubles: false,
            successes: self.window.map_or(0, |window| window.successes),
            steps: 0,
            held_until: self.window.and_then(|window| window.held_until),
        });
    }

    /// Counts a success. While the window doubles, each success widens it by one call; else each
    /// [`SUCCESSES_A_STEP`] do. A window that is held does not change. `in_use`: how many calls
    /// were in flight. Where they fill less than a quarter of the window, a success does not show
    /// that the other side would take more, and is not counted.
    fn widen(&mut self, in_use: usize, now: Instant) {
        let Some(window) = &mut self.window else {
            return;
        };
        if in_use * 4 < window.size || window.is_held(now) {
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
            held_until: None,
        }
    }

    /// For what was down and works again. `limit`: as many calls as there may be without a window.
    fn ramp(limit: usize, now: Instant) -> Self {
        Self {
            held_until: Some(now + RAMP),
            ..Self::doubling((limit / 2).max(1))
        }
    }

    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }
}

fn probe_wait(consecutive_closings: u32, pace: &Pace, random: f64) -> Duration {
    let wait = doubled(pace.probe_first, consecutive_closings.saturating_sub(1));
    wait.min(pace.probe_longest).mul_f64(1.0 + random / 4.0)
}

#[cfg(test)]
mod tests;

//! The state of one upstream: how many calls are in flight there, and how it fares. Calls begin and
//! end through [`Upstream::on_start`] and [`Upstream::on_finish`], and in no other way.

use std::time::Duration;

use tokio::time::Instant;

use super::switch::{Switch, Switched};
use crate::upstream::attempt::ages::{Ages, OldCalls, Second};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::health::breaker::{Breaker, Change, Failure, Room};
use crate::upstream::health::reason::Reason;
use crate::upstream::settings::{Pace, RetrySettings};

/// An upstream's state. The breakers of its models stand beside it, in their
/// [`Backend`](super::backend::Backend)s.
#[derive(Debug)]
pub(in crate::upstream) struct Upstream {
    switched: Switched,
    in_flight: usize,
    /// How old the calls in flight are.
    ages: Ages,
    /// A line was turned away because the upstream is full.
    is_wanted: bool,
    /// The upstream has answered something over HTTP.
    has_answered: bool,
    /// A call for a line has ended, however it went.
    was_tried: bool,
    breaker: Breaker,
}

/// A call in flight, as the breakers know it.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Flight {
    /// The generations of the upstream's and of the backend's breaker in which the call began.
    upstream: u32,
    backend: u32,
    pub(in crate::upstream) begun: Instant,
    /// By when the call is among those whose age is told. `None`: it waits for its turn.
    counted: Option<Second>,
    /// The number of the line's batch.
    pub(in crate::upstream) batch: u64,
}

/// How a call ended, for the health of where it went.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) result: CallResult,
    pub(super) has_answered: bool,
    /// `None`: the result is no failure of the other side.
    pub(super) failure: Option<Failure>,
    /// Whether the failure says something about the other side: else it is the line's own.
    pub(super) is_signal: bool,
    pub(super) cause: &'a str,
}

/// What counts when a call ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    pub(super) now: Instant,
    /// In 0..1.
    pub(super) random: f64,
    pub(super) pace: &'a Pace,
    pub(super) retry: &'a RetrySettings,
    /// As many calls at once as there may be at the upstream.
    pub(super) limit: usize,
}

/// What the end of a call has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) of_upstream: Option<Change>,
    pub(super) of_backend: Option<Change>,
    /// A line may wait for the place that the call had.
    pub(super) frees_a_place: bool,
    /// It was the last call in flight at an upstream that is disabled.
    pub(super) is_drained: bool,
}

impl Upstream {
    /// `enabled`: as the configuration has it.
    pub(super) fn new(enabled: bool) -> Self {
        Self {
            switched: Switched::new(enabled),
            in_flight: 0,
            ages: Ages::default(),
            is_wanted: false,
            has_answered: false,
            was_tried: false,
            breaker: Breaker::default(),
        }
    }

    /// Whether lines may be sent here at all.
    pub(in crate::upstream) fn switched(&self) -> &Switched {
        &self.switched
    }

    /// What operators have set: see [`Switched::follow`].
    pub(super) fn follow_switch(&mut self, set: Option<&Switch>, now: Instant) -> bool {
        self.switched.follow(set, now)
    }

    pub(in crate::upstream) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(in crate::upstream) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Whether nothing has come from the upstream yet, and no call has failed.
    pub(in crate::upstream) fn is_unknown(&self) -> bool {
        !self.has_answered && !self.was_tried
    }

    /// The calls in flight that are at least so old.
    pub(super) fn calls_older_than(&self, age: Duration, now: Instant) -> Option<OldCalls> {
        self.ages.older_than(age, now)
    }

    /// A call waits for its turn.
    pub(super) fn on_pause(&mut self, flight: &mut Flight) {
        if let Some(second) = flight.counted.take() {
            self.ages.end(second);
        }
    }

    /// A call that waited for its turn begins.
    pub(super) fn on_resume(&mut self, flight: &mut Flight, now: Instant) {
        flight.begun = now;
        flight.counted = Some(self.ages.begin(now));
    }

    /// To be read: what changes a breaker is a method here.
    pub(in crate::upstream) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Whether the breakers let a line be sent to a model here, and its operators.
    pub(super) fn room(&self, backend: &Breaker, now: Instant) -> Room {
        if self.switched.is_disabled() {
            return Room::Closed { until: None };
        }
        match self.breaker.room(now) {
            Room::Open { is_trial } => match backend.room(now) {
                Room::Open { is_trial: other } => Room::Open {
                    is_trial: is_trial || other,
                },
                other => other,
            },
            other => other,
        }
    }

    /// A line was turned away because the upstream is full: the next place that is freed is news.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// A call begins.
    pub(super) fn on_start(&mut self, backend: &mut Breaker, now: Instant, batch: u64) -> Flight {
        self.in_flight += 1;
        Flight {
            upstream: self.breaker.start(now),
            backend: backend.start(now),
            begun: now,
            counted: Some(self.ages.begin(now)),
            batch,
        }
    }

    /// A call has ended, or was broken off before it showed anything (`end`: `None`).
    pub(super) fn on_finish(
        &mut self,
        backend: &mut Breaker,
        flight: Flight,
        end: Option<(&End<'_>, Moment<'_>)>,
    ) -> Changes {
        self.in_flight -= 1;
        if let Some(second) = flight.counted {
            self.ages.end(second);
        }
        let is_wanted = std::mem::take(&mut self.is_wanted);
        let mut changes = match end {
            None => self.abandon(backend, flight),
            Some((end, moment)) => {
                self.was_tried = true;
                self.has_answered |= end.has_answered;
                match end.failure {
                    None => self.on_answer(backend, flight, end.result, moment),
                    Some(failure) => self.on_failure(backend, flight, end, failure, moment),
                }
            }
        };
        changes.frees_a_place |= is_wanted;
        changes.is_drained = self.in_flight == 0 && self.switched.is_disabled();
        changes
    }

    fn abandon(&mut self, backend: &mut Breaker, flight: Flight) -> Changes {
        self.breaker.abandon(flight.upstream);
        backend.abandon(flight.backend);
        Changes {
            // Where a window bounds the calls, nobody has noted who wants the place.
            frees_a_place: !backend.is_wide() || !self.breaker.is_wide(),
            ..Changes::default()
        }
    }

    fn on_answer(
        &mut self,
        backend: &mut Breaker,
        flight: Flight,
        result: CallResult,
        moment: Moment<'_>,
    ) -> Changes {
        let mut changes = Changes::default();
        match result {
            CallResult::Succeeded => {
                let times = (flight.begun, moment.now);
                let (batch, limit) = (flight.batch, moment.limit);
                changes.of_upstream = self.breaker.succeed(flight.upstream, times, batch, limit);
                changes.of_backend = backend.succeed(flight.backend, times, batch, limit);
            }
            result if result.is_answer() => {
                changes.of_upstream = self.breaker.answer(flight.upstream);
                changes.of_backend = backend.answer(flight.backend);
            }
            // An answer that is too large, or packed as nobody can unpack, says nothing of who
            // answers.
            _ => {
                self.breaker.abandon(flight.upstream);
                backend.abandon(flight.backend);
            }
        }
        changes
    }

    /// A failure concerns all models of the upstream, or the one that was called. The other breaker
    /// hears of the call, too.
    fn on_failure(
        &mut self,
        backend: &mut Breaker,
        flight: Flight,
        end: &End<'_>,
        failure: Failure,
        moment: Moment<'_>,
    ) -> Changes {
        let Moment { now, random, .. } = moment;
        let paces = (moment.pace, moment.retry);
        let mut changes = Changes::default();
        if end.result.is_of_upstream() {
            backend.pass_over(flight.backend);
            if end.is_signal {
                let fail =
                    self.breaker
                        .fail(failure, flight.upstream, now, paces, random, end.cause);
                changes.of_upstream = fail;
            } else {
                self.breaker.pass_over(flight.upstream);
            }
            return changes;
        }
        changes.of_upstream = if end.result.shows_that_the_key_works() {
            self.breaker.answer(flight.upstream)
        } else {
            self.breaker
                .unclear(flight.upstream, flight.batch, now, paces, random)
        };
        if end.is_signal {
            let fail = backend.fail(failure, flight.backend, now, paces, random, end.cause);
            changes.of_backend = fail;
        } else {
            backend.pass_over(flight.backend);
        }
        changes
    }

    /// A probe has ended: whether the upstream answered, and if so, whether for itself.
    pub(super) fn on_probe(
        &mut self,
        answer: Option<bool>,
        cause: String,
        moment: Moment<'_>,
    ) -> Option<Change> {
        self.has_answered |= answer.is_some();
        let is_up = answer.unwrap_or(false);
        let Moment {
            now, random, limit, ..
        } = moment;
        let change = self.breaker.probed(is_up, now, moment.pace, random, limit);
        if !is_up {
            self.breaker.explain(cause);
        }
        change
    }

    /// The upstream was asked for its models, and answered.
    pub(super) fn on_discovery(&mut self) {
        self.has_answered = true;
    }

    /// The upstream was asked for its models, and cannot be reached.
    pub(super) fn on_unreachable(&mut self, cause: &str, moment: Moment<'_>) -> Option<Change> {
        if self.breaker.closure().is_some() {
            return None;
        }
        let failure = Failure {
            reason: Reason::Unreachable,
            wait: None,
            is_capped: false,
            is_fresh: true,
            batch: 0,
        };
        let Moment { now, random, .. } = moment;
        let generation = self.breaker.start(now);
        let paces = (moment.pace, moment.retry);
        self.breaker
            .fail(failure, generation, now, paces, random, cause)
    }

    /// An operator says that the upstream is mended.
    pub(super) fn reset(&mut self, now: Instant) -> Option<Change> {
        self.breaker.reset(now)
    }
}

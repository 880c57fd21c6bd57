//! The state of one upstream: how many calls are in flight there, and how it fares. Calls begin and
//! end through [`Upstream::on_start`] and [`Upstream::on_finish`], and in no other way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::kept::{Kept, KeptPlaces};
use super::switch::{Switch, Switched};
use crate::upstream::attempt::ages::{Ages, OldCalls, Second};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::health::breaker::{Breaker, Change, Failure, Room};
use crate::upstream::health::reason::Reason;
use crate::upstream::settings::{Pace, RetrySettings};

/// An upstream's state. The breakers of its models stand beside it, in their
/// [`Backend`](super::backend::Backend)s.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Upstream {
    switched: Switched,
    pub(super) name: Arc<str>,
    /// Its address, for the log.
    url: Arc<str>,
    /// Its probe loop waits here for it to change.
    pub(super) attention: Arc<Notify>,
    /// It is not configured any more. Calls in flight end here.
    pub(super) is_gone: bool,
    in_flight: usize,
    /// The numbers that the upstream had while its keys were others, and where calls may be in
    /// flight yet.
    pub(super) earlier: Box<[usize]>,
    /// How old the calls in flight are.
    ages: Ages,
    /// A line was turned away because the upstream is full.
    is_wanted: bool,
    /// The upstream has answered something over HTTP.
    has_answered: bool,
    /// A call for a line has ended, however it went.
    was_tried: bool,
    /// For lines that can go nowhere else.
    pub(super) kept: KeptPlaces,
    /// Of the upstream itself, and, where it has no more than one key, of that.
    breaker: Breaker,
    /// The keys, in their order, where there are several.
    keys: Box<[Key]>,
}

/// The state of one key of several.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Key {
    pub(in crate::upstream) in_flight: usize,
    /// Calls that have begun.
    begun: u64,
    pub(in crate::upstream) breaker: Breaker,
}

/// A call in flight, as the breakers know it.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Flight {
    /// The generations of the upstream's, the key's and the backend's breaker in which the call
    /// began.
    upstream: u32,
    key: u32,
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
    pub(super) retry: RetrySettings,
    /// As many calls at once as there may be at the upstream.
    pub(super) limit: usize,
}

/// What the end of a call has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) of_upstream: Option<Change>,
    pub(super) of_key: Option<Change>,
    pub(super) of_backend: Option<Change>,
    /// A line may wait for the place that the call had.
    pub(super) frees_a_place: bool,
    /// It was the last call in flight at an upstream that is disabled.
    pub(super) is_drained: bool,
}

impl Upstream {
    /// With so many keys that are told apart.
    pub(super) fn new(keys: usize) -> Self {
        Self {
            keys: (0..keys).map(|_| Key::default()).collect(),
            ..Self::default()
        }
    }

    /// It is configured: what the log calls it, whether lines are sent there, and what operators
    /// have set. True as [`Switched::follow`] says.
    pub(super) fn configure(
        &mut self,
        (name, url): (&Arc<str>, &str),
        (enabled, set): (bool, Option<&Switch>),
        now: Instant,
    ) -> bool {
        (self.name, self.url) = (Arc::clone(name), url.into());
        self.is_gone = false;
        self.switched.configure(enabled, set, now)
    }

    /// Whether lines may be sent here at all.
    pub(in crate::upstream) fn switched(&self) -> &Switched {
        &self.switched
    }

    /// What operators have set: see [`Switched::follow`].
    pub(super) fn follow_switch(&mut self, set: Option<&Switch>, now: Instant) -> bool {
        self.switched.follow(set, now)
    }

    /// Its name and its address.
    pub(super) fn shown(&self) -> (Arc<str>, Arc<str>) {
        (Arc::clone(&self.name), Arc::clone(&self.url))
    }

    pub(in crate::upstream) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(in crate::upstream) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Calls in flight at the upstream of this number among all, with those that began while its
    /// keys were others: its limit counts for all of them.
    pub(in crate::upstream) fn calls_at(all: &[Self], number: usize) -> usize {
        let one = &all[number];
        let earlier = one.earlier.iter().map(|other| &all[*other]);
        let earlier = earlier.filter(|other| other.is_gone && other.name == one.name);
        earlier.fold(one.in_flight, |calls, other| calls + other.in_flight)
    }

    /// Whether nothing has come from the upstream yet, and no call has failed.
    pub(in crate::upstream) fn is_unknown(&self) -> bool {
        !self.has_answered && !self.was_tried
    }

    /// Calls in flight by one of the keys.
    pub(super) fn in_flight_by(&self, key: usize) -> usize {
        let of_key = self.keys.get(key).map(|key| key.in_flight);
        of_key.unwrap_or(self.in_flight)
    }

    /// Whether a call for a line was ever made by one of the keys.
    pub(super) fn was_tried_by(&self, key: usize) -> bool {
        let of_key = self.keys.get(key).map(|key| key.begun > 0);
        of_key.unwrap_or(self.was_tried)
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

    /// The keys, where there are several.
    pub(in crate::upstream) fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Its own breaker and those of its keys.
    pub(in crate::upstream) fn breakers(&self) -> impl Iterator<Item = &Breaker> {
        let of_keys = self.keys.iter().map(|key| &key.breaker);
        std::iter::once(&self.breaker).chain(of_keys)
    }

    /// The breakers that stand before all models, for calls by one of the keys.
    pub(in crate::upstream) fn breakers_by(&self, key: usize) -> impl Iterator<Item = &Breaker> {
        let of_key = self.keys.get(key).map(|key| &key.breaker);
        std::iter::once(&self.breaker).chain(of_key)
    }

    /// How busy a key is: what is less busy comes first, and, of two that are as busy, the one that
    /// was used less.
    pub(super) fn load_of_key(&self, key: usize) -> (usize, u64) {
        let key = self.keys.get(key);
        key.map_or((0, 0), |key| (key.in_flight, key.begun))
    }

    /// Whether the breakers let a line be sent by a key to a model here, and the operators.
    pub(super) fn room(&self, key: usize, backend: &Breaker, now: Instant) -> Room {
        self.room_beside(Kept::default(), key, backend, now)
    }

    /// The same, for a line from which places are kept.
    pub(super) fn room_beside(
        &self,
        kept: Kept,
        key: usize,
        backend: &Breaker,
        now: Instant,
    ) -> Room {
        if self.switched.is_disabled() {
            return Room::Closed { until: None };
        }
        let room = self.breaker.room_beside(kept.of_upstream, now);
        let room = match self.keys.get(key) {
            Some(key) => room.and(|| key.breaker.room(now)),
            None => room,
        };
        room.and(|| backend.room_beside(kept.of_backend, now))
    }

    /// A line was turned away because the upstream is full: the next place that is freed is news.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// A call begins, by one of the keys.
    pub(super) fn on_start(
        &mut self,
        key: usize,
        backend: &mut Breaker,
        now: Instant,
        batch: u64,
    ) -> Flight {
        self.in_flight += 1;
        let of_key = self.keys.get_mut(key).map(|key| {
            key.in_flight += 1;
            key.begun += 1;
            key.breaker.start(now)
        });
        Flight {
            upstream: self.breaker.start(now),
            key: of_key.unwrap_or_default(),
            backend: backend.start(now),
            begun: now,
            counted: Some(self.ages.begin(now)),
            batch,
        }
    }

    /// A call by one of the keys has ended, or was broken off before it showed anything (`end`:
    /// `None`).
    pub(super) fn on_finish(
        &mut self,
        key: usize,
        backend: &mut Breaker,
        flight: Flight,
        end: Option<(&End<'_>, Moment<'_>)>,
    ) -> Changes {
        self.in_flight -= 1;
        if let Some(key) = self.keys.get_mut(key) {
            key.in_flight -= 1;
        }
        if let Some(second) = flight.counted {
            self.ages.end(second);
        }
        let is_wanted = std::mem::take(&mut self.is_wanted);
        let mut changes = match end {
            None => self.abandon(key, backend, flight),
            Some((end, moment)) => {
                self.was_tried = true;
                self.has_answered |= end.has_answered;
                match end.failure {
                    None => self.on_answer(key, backend, flight, end.result, moment),
                    Some(failure) => self.on_failure(key, backend, flight, end, failure, moment),
                }
            }
        };
        changes.frees_a_place |= is_wanted;
        changes.is_drained = self.in_flight == 0 && self.switched.is_disabled();
        changes
    }

    fn abandon(&mut self, key: usize, backend: &mut Breaker, flight: Flight) -> Changes {
        self.breaker.abandon(flight.upstream);
        backend.abandon(flight.backend);
        let mut is_wide = backend.is_wide() && self.breaker.is_wide();
        if let Some(key) = self.keys.get_mut(key) {
            key.breaker.abandon(flight.key);
            is_wide &= key.breaker.is_wide();
        }
        Changes {
            // Where a window bounds the calls, nobody has noted who wants the place.
            frees_a_place: !is_wide,
            ..Changes::default()
        }
    }

    fn on_answer(
        &mut self,
        key: usize,
        backend: &mut Breaker,
        flight: Flight,
        result: CallResult,
        moment: Moment<'_>,
    ) -> Changes {
        let mut changes = Changes::default();
        let key = self.keys.get_mut(key).map(|key| &mut key.breaker);
        match result {
            CallResult::Succeeded => {
                let times = (flight.begun, moment.now);
                let (batch, limit) = (flight.batch, moment.limit);
                changes.of_upstream = self.breaker.succeed(flight.upstream, times, batch, limit);
                changes.of_key = key.and_then(|key| key.succeed(flight.key, times, batch, limit));
                changes.of_backend = backend.succeed(flight.backend, times, batch, limit);
            }
            result if result.is_answer() => {
                changes.of_upstream = self.breaker.answer(flight.upstream);
                changes.of_key = key.and_then(|key| key.answer(flight.key));
                changes.of_backend = backend.answer(flight.backend);
            }
            // An answer that is too large, or packed as nobody can unpack, says nothing of who
            // answers.
            _ => {
                self.breaker.abandon(flight.upstream);
                if let Some(key) = key {
                    key.abandon(flight.key);
                }
                backend.abandon(flight.backend);
            }
        }
        changes
    }

    /// A failure concerns all models of the upstream, the key, or the model that was called. The
    /// other breakers hear of the call, too.
    fn on_failure(
        &mut self,
        key: usize,
        backend: &mut Breaker,
        flight: Flight,
        end: &End<'_>,
        failure: Failure,
        moment: Moment<'_>,
    ) -> Changes {
        let Moment { now, random, .. } = moment;
        let paces = (moment.pace, &moment.retry);
        let fail = |breaker: &mut Breaker, generation: u32| {
            if end.is_signal {
                return breaker.fail(failure, generation, now, paces, random, end.cause);
            }
            breaker.pass_over(generation);
            None
        };
        // What shows that the breaker's subject works opens it, and anything else fails its trial.
        let hear = |breaker: &mut Breaker, generation: u32| {
            if end.result.shows_that_the_key_works() {
                breaker.answer(generation)
            } else {
                breaker.unclear(generation, flight.batch, now, paces, random)
            }
        };
        let mut changes = Changes::default();
        let key = self.keys.get_mut(key).map(|key| &mut key.breaker);
        let breaker = &mut self.breaker;
        let is_of_key = match end.result {
            CallResult::KeyRefused => true,
            CallResult::Unpaid => {
                let of_key = key.as_deref().unwrap_or(breaker);
                is_of_account(of_key, backend)
            }
            _ => false,
        };
        match (end.result, key) {
            // The upstream has answered, whatever it thinks of the key.
            (_, Some(key)) if is_of_key => {
                backend.suspect(flight.backend, now);
                changes.of_upstream = breaker.answer(flight.upstream);
                changes.of_key = fail(key, flight.key);
            }
            (_, None) if is_of_key => {
                backend.suspect(flight.backend, now);
                changes.of_upstream = fail(breaker, flight.upstream);
            }
            (CallResult::Unreachable, key) => {
                backend.pass_over(flight.backend);
                if let Some(key) = key {
                    key.pass_over(flight.key);
                }
                changes.of_upstream = fail(breaker, flight.upstream);
            }
            (_, key) => {
                changes.of_upstream = hear(breaker, flight.upstream);
                changes.of_key = key.and_then(|key| hear(key, flight.key));
                changes.of_backend = fail(backend, flight.backend);
            }
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
        let paces = (moment.pace, &moment.retry);
        self.breaker
            .fail(failure, generation, now, paces, random, cause)
    }

    /// An operator says that the upstream is mended. Returns what has changed by that: of the
    /// upstream itself, and of each key that has a number here.
    pub(super) fn reset(&mut self, now: Instant) -> Vec<(Option<usize>, Change)> {
        let own = self.breaker.reset(now).map(|change| (None, change));
        let keys = self.keys.iter_mut().enumerate();
        let of_keys = keys.filter_map(|(number, key)| {
            let change = key.breaker.reset(now)?;
            Some((Some(number), change))
        });
        own.into_iter().chain(of_keys).collect()
    }
}

/// Whether a call that is to be paid concerns all models that are called by its key. Some accounts
/// may use one model for nothing and not the next: there calls of other models by the key succeed
/// that began after this one was refused first.
fn is_of_account(of_key: &Breaker, backend: &Breaker) -> bool {
    let is_closed_so = of_key
        .closure()
        .is_some_and(|closure| closure.reason == Reason::Unpaid);
    let succeeded = of_key.evidence().success_begun;
    let is_good_for_others = backend
        .failing_since()
        .is_some_and(|since| succeeded > Some(since));
    is_closed_so || !is_good_for_others
}

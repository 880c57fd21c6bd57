//! Every upstream's state, under one lock. To choose a target and to take a place there is one step
//! under that lock, and so is to end a call and to let the target's health follow from it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::backend::Backends;
use super::switch::Switch;
use super::upstream::{Moment, Upstream};
use crate::upstream::attempt::ages::OldCalls;
use crate::upstream::attempt::client::Client;
use crate::upstream::balance::Balancer;
use crate::upstream::health::announce::{Subject, announce};
use crate::upstream::health::breaker::{Breaker, Change, Room};
use crate::upstream::health::fail_fast::GivingUp;
use crate::upstream::limits::auto::{Meter, WindowSpec, Windows};
use crate::upstream::limits::concurrency::{Limits, Sharing};
use crate::upstream::limits::rate::RateLimits;
use crate::upstream::numbers::Number;
use crate::upstream::route::{Lane, Routes, Target};
use crate::upstream::settings::{FailFast, Pace, RetrySettings, UpstreamSettings};

/// All upstreams of a process, and what is known of them.
#[derive(Debug)]
pub struct Targets {
    pub(in crate::upstream) backends: Arc<Backends>,
    pub(in crate::upstream) sharing: Arc<Sharing>,
    pub(in crate::upstream) windows: Windows,
    pub(in crate::upstream) rates: RateLimits,
    pub(super) pace: Pace,
    /// Some breaker may be closed or have a narrow window, or an upstream is disabled. While this
    /// is false, nobody need look. Changed under the lock.
    is_troubled: AtomicBool,
    /// A breaker has closed.
    pub(in crate::upstream) closed: Notify,
    /// A line may be sent that could not be sent before.
    pub(in crate::upstream) changed: Notify,
    /// Nothing is in flight any more at an upstream that is disabled.
    pub(super) drained: Notify,
    state: Mutex<State>,
}

/// The calls in flight, as limits count them.
#[derive(Clone, Copy)]
pub(super) struct Counts<'a> {
    pub(super) upstreams: &'a [Upstream],
    /// By the routes that have a limit.
    pub(super) by_route: &'a [usize],
    /// By the lane of the model.
    pub(super) by_lane: &'a [usize],
    /// By window.
    pub(super) meters: &'a [Meter],
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct State {
    /// By their numbers.
    pub(super) upstreams: Vec<Upstream>,
    /// By the number of the tier.
    pub(super) balancers: Vec<Balancer>,
    /// How many calls have begun.
    pub(super) begun: usize,
    /// Calls in flight by the routes that have a limit, by the numbers of these limits.
    pub(super) by_route: Vec<usize>,
    /// What is counted of each window, by the windows' numbers.
    pub(super) meters: Vec<Meter>,
    /// Calls in flight by the lane of the model, be they of the model's lines or of a task's.
    pub(super) by_lane: Vec<usize>,
    pub(super) limits: Arc<Limits>,
    pub(super) retry: RetrySettings,
    /// What operators have set.
    pub(super) switches: Vec<Switch>,
    pub(super) giving_up: GivingUp,
    /// Where the last call went that may have failed like all others: routes, and which target.
    pub(super) refused_last: Option<(Arc<Routes>, usize)>,
    /// Waiting lines may be due now: the success that they waited for has come, or an operator has
    /// mended what they failed at.
    pub(super) is_hastened: bool,
}

impl Targets {
    /// Without any upstream, until [`configure`](Self::configure) is called.
    pub(in crate::upstream) fn new(
        backends: Arc<Backends>,
        (limits, retry): (Arc<Limits>, RetrySettings),
        pace: Pace,
        fail_fast: Option<FailFast>,
    ) -> Self {
        Self {
            backends,
            sharing: Arc::clone(limits.sharing()),
            windows: Windows::default(),
            rates: RateLimits::default(),
            pace,
            is_troubled: AtomicBool::new(false),
            closed: Notify::new(),
            changed: Notify::new(),
            drained: Notify::new(),
            state: Mutex::new(State {
                upstreams: Vec::new(),
                balancers: Vec::new(),
                begun: 0,
                by_route: Vec::new(),
                meters: Vec::new(),
                by_lane: Vec::new(),
                limits,
                retry,
                switches: Vec::new(),
                giving_up: GivingUp::new(fail_fast),
                refused_last: None,
                is_hastened: false,
            }),
        }
    }

    /// Lines go by this configuration from now on. What keeps its number keeps its state. Calls in
    /// flight end where they began.
    pub(in crate::upstream) fn configure<'c>(
        &self,
        upstreams: impl Iterator<Item = (Number, &'c Arc<Client>, &'c UpstreamSettings)>,
        lanes: &[Lane],
        (limits, windows): (Arc<Limits>, Vec<(Number, WindowSpec)>),
        retry: RetrySettings,
    ) {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        for upstream in &mut state.upstreams {
            upstream.is_gone = true;
        }
        for (number, client, settings) in upstreams {
            let upstream = at(&mut state.upstreams, number.at, Upstream::default);
            if number.is_new {
                *upstream = Upstream::new(settings.told_keys().len());
            }
            let earlier = state.upstreams.iter().enumerate();
            let earlier = earlier.filter(|(other, one)| {
                let is_other = *other != number.at && one.in_flight() > 0;
                is_other && one.is_gone && one.name == client.name
            });
            let earlier = earlier.map(|(other, _)| other).collect();
            let mut switches = state.switches.iter();
            let set = switches.find(|set| *set.upstream == *client.name);
            let shown = (&client.name, &*client.shown_url());
            let upstream = &mut state.upstreams[number.at];
            upstream.earlier = earlier;
            if upstream.configure(shown, (settings.enabled, set), now) {
                self.on_switch(upstream);
            }
        }
        for lane in lanes {
            at(&mut state.by_lane, lane.id.index(), usize::default);
            for (number, routes) in lane.tiers.iter().zip(lane.by_tier()) {
                let new = || Balancer::new(lane.strategy, routes.len());
                let balancer = at(&mut state.balancers, number.at, new);
                if number.is_new {
                    *balancer = new();
                }
            }
        }
        state
            .by_route
            .resize(state.by_route.len().max(limits.routes().len()), 0);
        self.windows.configure(windows, &mut state.meters);
        (state.limits, state.retry) = (limits, retry);
        // What is configured again may be closed still.
        self.note_trouble();
    }

    /// Another configuration has taken the place of the one before: all that waits looks again.
    pub(in crate::upstream) fn on_reload(&self) {
        self.closed.notify_one();
        self.changed.notify_one();
        self.sharing.notify_changed();
    }

    /// How many calls at once there may be.
    pub(in crate::upstream) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.lock().limits)
    }

    /// An upstream's probe loop waits here for it to change.
    pub(in crate::upstream) fn attention(&self, upstream: usize) -> Arc<Notify> {
        self.read(|upstreams| Arc::clone(&upstreams[upstream].attention))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the state of all upstreams, by their numbers.
    pub(in crate::upstream) fn read<T>(&self, read: impl FnOnce(&[Upstream]) -> T) -> T {
        read(&self.lock().upstreams)
    }

    /// Calls in flight at an upstream.
    #[must_use]
    pub fn in_flight_at(&self, upstream: usize) -> usize {
        self.read(|upstreams| Upstream::calls_at(upstreams, upstream))
    }

    /// Calls in flight, by the number of the upstream.
    #[must_use]
    pub fn in_flight(&self) -> Vec<usize> {
        self.read(|upstreams| {
            let numbers = 0..upstreams.len();
            numbers
                .map(|number| Upstream::calls_at(upstreams, number))
                .collect()
        })
    }

    /// Calls in flight by the numbers of the lanes of models, whether they are of the model's lines
    /// or of a task's.
    #[must_use]
    pub fn in_flight_by_lane(&self) -> Vec<usize> {
        self.lock().by_lane.clone()
    }

    /// Calls in flight by the routes that have a limit, by the numbers of these limits.
    #[must_use]
    pub fn in_flight_by_route(&self) -> Vec<usize> {
        self.lock().by_route.clone()
    }

    /// The calls in flight that are at least so old, at all upstreams.
    pub(in crate::upstream) fn calls_older_than(&self, age: Duration) -> Option<OldCalls> {
        let now = Instant::now();
        self.read(|upstreams| {
            let old = upstreams
                .iter()
                .filter_map(|one| one.calls_older_than(age, now));
            old.reduce(|a, b| OldCalls {
                count: a.count + b.count,
                oldest: a.oldest.max(b.oldest),
            })
        })
    }

    /// Logs that a breaker has opened or closed. `key`: by which the upstream is called, if it has
    /// several and the breaker is of one. `model`: `None` for the breaker of all models.
    pub(super) fn announce(
        &self,
        upstream: usize,
        (key, model): (Option<&str>, Option<&str>),
        change: &Change,
        status: Option<u16>,
    ) {
        let (name, url) = self.read(|upstreams| upstreams[upstream].shown());
        let subject = Subject {
            upstream: &name,
            url: &url,
            key,
            model,
        };
        announce(subject, change, status);
    }

    /// Whether any upstream or model may be in trouble, or is disabled.
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.is_troubled.load(Ordering::Relaxed)
    }

    /// Something at an upstream or at a model has failed. Noted under the lock.
    pub(super) fn note_trouble(&self) {
        self.is_troubled.store(true, Ordering::Relaxed);
    }

    /// Looks at every breaker, and clears [`is_troubled`](Self::is_troubled) where all are well.
    pub(super) fn look_for_trouble(&self) {
        // Under the lock: what fails from now on is noted after this.
        let state = self.lock();
        let backends = self.backends.all(None);
        let is_well = |one: &Upstream| {
            let are_well = || one.breakers().all(Breaker::is_well);
            one.is_gone || (are_well() && !one.switched().is_disabled())
        };
        let are_well = state.upstreams.iter().all(is_well)
            && backends.iter().all(|backend| backend.breaker().is_well());
        if are_well {
            self.is_troubled.store(false, Ordering::Relaxed);
        }
    }
}

/// The item of this number, with others before it where there are none yet.
fn at<T>(items: &mut Vec<T>, number: usize, new: impl Fn() -> T) -> &mut T {
    if items.len() <= number {
        items.resize_with(number + 1, new);
    }
    &mut items[number]
}

impl State {
    pub(super) fn counts(&self) -> Counts<'_> {
        Counts {
            upstreams: &self.upstreams,
            by_route: &self.by_route,
            by_lane: &self.by_lane,
            meters: &self.meters,
        }
    }

    /// What counts when a call to an upstream ends.
    pub(super) fn moment<'p>(
        &self,
        upstream: usize,
        pace: &'p Pace,
        (now, random): (Instant, f64),
    ) -> Moment<'p> {
        Moment {
            now,
            random,
            pace,
            retry: self.retry,
            limit: self.limits.share(upstream).max(1),
        }
    }

    /// Whether all calls have failed so that only a person can help: see [`FailFast`].
    pub(super) fn is_hopeless(&self) -> bool {
        self.giving_up.hopeless().is_some()
    }

    pub(super) fn is_open(&self, target: &Target, now: Instant) -> bool {
        !matches!(self.room(target, now), Room::Closed { .. })
    }

    pub(super) fn any_open(&self, targets: &[Target], now: Instant) -> bool {
        targets.iter().any(|target| self.is_open(target, now))
    }

    /// Whether a target is open, and not only tried with a line or a few: then other lines must not
    /// wait for it.
    pub(super) fn is_proven(&self, target: &Target) -> bool {
        let upstream = &self.upstreams[target.upstream];
        if upstream.switched().is_disabled() || self.is_hopeless() {
            return false;
        }
        let mut backends = target.backends();
        backends.any(|backend| {
            let mut breakers = upstream.breakers_by(backend.key());
            breakers.all(|breaker| breaker.closure().is_none())
                && backend.breaker().closure().is_none()
        })
    }

    /// Whether only a person can open a target again: each of its keys is closed for such a reason.
    pub(super) fn needs_a_person(&self, target: &Target) -> bool {
        let upstream = &self.upstreams[target.upstream];
        let needs = |breaker: &Breaker| {
            let closure = breaker.closure();
            closure.is_some_and(|closure| closure.reason.needs_a_person())
        };
        let mut backends = target.backends();
        backends.all(|backend| {
            upstream.breakers_by(backend.key()).any(needs) || needs(&backend.breaker())
        })
    }

    /// Gives up where so many calls have failed as only a person can mend it, and no other call may
    /// do better.
    pub(super) fn give_up_if_hopeless(&mut self, now: Instant) {
        if self.giving_up.is_due() && !self.may_do_better(now) {
            self.giving_up.give_up();
        }
    }

    /// Whether a call is in flight, or a line will be tried, where no call was refused yet.
    fn may_do_better(&self, now: Instant) -> bool {
        let mut ways = self.upstreams.iter().enumerate().flat_map(|(number, one)| {
            let keys = 0..one.keys().len().max(1);
            keys.map(move |key| (number, key, one.in_flight_by(key)))
        });
        if ways.any(|(number, key, calls)| calls > 0 && !self.giving_up.was_refused((number, key)))
        {
            return true;
        }
        // A line that was refused is sent to all others of its tier first.
        let last = self.refused_last.as_ref();
        let tier = last.and_then(|(routes, place)| {
            let mut tiers = routes.tiers.iter();
            let tier = tiers.find(|tier| tier.targets.contains(place))?;
            Some(&routes.targets[tier.targets.clone()])
        });
        tier.into_iter().flatten().any(|target| {
            let upstream = &self.upstreams[target.upstream];
            target.backends().any(|backend| {
                let key = backend.key();
                if self.giving_up.was_refused((target.upstream, key)) {
                    return false;
                }
                match upstream.room(key, &backend.breaker(), now) {
                    Room::Open { .. } => !upstream.was_tried_by(key),
                    Room::Full => true,
                    // It opens by itself.
                    Room::Closed { until } => until.is_some(),
                }
            })
        })
    }

    /// A call to a target has ended.
    pub(super) fn free(&mut self, target: &Target) {
        if let Some(limit) = target.limit {
            self.by_route[limit] -= 1;
        }
        self.by_lane[target.lane.index()] -= 1;
    }

    /// Whether the breakers let a line be sent to a target, by any of its keys.
    pub(super) fn room(&self, target: &Target, now: Instant) -> Room {
        if self.is_hopeless() {
            return Room::Closed { until: None };
        }
        let upstream = &self.upstreams[target.upstream];
        let mut rooms = target.backends().map(|backend| {
            let breaker = backend.breaker();
            upstream.room(backend.key(), &breaker, now)
        });
        let first = rooms.next().unwrap_or(Room::Closed { until: None });
        rooms.fold(first, Room::or)
    }
}

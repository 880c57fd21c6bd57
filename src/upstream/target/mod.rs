//! What calls go to. [`Targets`] has every upstream's state under one lock: to choose a target and
//! to take a place there is one step, and so is to end a call and to judge its target by it.

pub(super) mod backend;
pub(super) mod upstream;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::backend::{Backend, Backends};
use self::upstream::{Changes, End, Flight, Moment, UpstreamState};
use super::attempt::ages::OldCalls;
use super::attempt::history::{Assessment, Failed, History, Next};
use super::attempt::result::CallResult;
use super::balance::{Choices, Load};
use super::health::announce::{Subject, announce};
use super::health::breaker::{Breaker, Change, Failure, Room};
use super::health::cooldown::{self, Cooldown};
use super::health::fail_fast::GivingUp;
use super::health::reason::Reason;
use super::limits::concurrency::Limits;
use super::route::{Routes, Target};
use super::settings::{FailFast, Pace, RetrySettings};

/// After trouble, one call in so many looks whether there is still some.
const TROUBLE_CHECK_INTERVAL: usize = 64;
/// Whoever looks once a second sees what was open within this time.
const RECENT: Duration = Duration::from_secs(2);

/// All upstreams of a process, and what is known of them.
#[derive(Debug)]
pub struct Targets {
    /// By upstream: its address, for the log.
    urls: Vec<String>,
    pub(super) backends: Arc<Backends>,
    pub(super) limits: Limits,
    pace: Pace,
    retry: RetrySettings,
    /// Something may be closed or narrow. Kept, so that where all is well nobody need look.
    is_troubled: AtomicBool,
    /// Whoever looks after an upstream waits here for it to change.
    pub(super) attention: Vec<Notify>,
    /// A breaker has closed.
    pub(super) closed: Notify,
    /// A line may be sent that could not be sent before.
    pub(super) changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    upstreams: Vec<UpstreamState>,
    choices: Choices,
    giving_up: GivingUp,
    /// Lines that wait may be due: a success has come that they waited for, or an operator has
    /// mended what they failed at.
    is_hastened: bool,
}

/// Whether a line can be sent now.
#[derive(Debug)]
pub enum Acquired {
    Permit(Permit),
    /// No open upstream has a place: one will be freed.
    Full,
    /// No upstream is open. `until`: when the first one opens by itself, if that is known.
    Closed {
        until: Option<Instant>,
    },
}

/// A place at an upstream, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    targets: Arc<Targets>,
    routes: Arc<Routes>,
    target: usize,
    flight: Flight,
    /// Its place is not given back yet.
    is_held: bool,
}

/// How a call has ended, and how the server was heard.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) result: CallResult,
    /// `None`: there was no answer.
    pub(super) status: Option<u16>,
    /// How long the server asked to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// In words, without addresses and secrets; empty for a success.
    pub(super) cause: String,
}

/// A failure, and what it says of the target and of the line.
struct Judgement {
    assessment: Assessment,
    failure: Failure,
    is_signal: bool,
    /// It is not known that the target ever had the line's model.
    is_missing: bool,
    /// All calls so far may have failed alike.
    is_alike: bool,
    names_a_time: bool,
}

impl Targets {
    /// `urls`: by upstream, without secrets.
    pub(super) fn new(
        urls: Vec<String>,
        backends: Arc<Backends>,
        limits: Limits,
        (pace, retry): (Pace, RetrySettings),
        fail_fast: Option<FailFast>,
    ) -> Self {
        Self {
            backends,
            limits,
            pace,
            retry,
            is_troubled: AtomicBool::new(false),
            attention: urls.iter().map(|_| Notify::new()).collect(),
            closed: Notify::new(),
            changed: Notify::new(),
            state: Mutex::new(State {
                upstreams: urls.iter().map(|_| UpstreamState::default()).collect(),
                choices: Choices::default(),
                giving_up: GivingUp::new(fail_fast),
                is_hastened: false,
            }),
            urls,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free place at the best open target, or why there is none. Never blocks. `avoid`: the
    /// upstream of the last failed attempt, which is not chosen while another one has a place.
    /// `batch`: a number of the line's, by which batches are told apart.
    pub(super) fn try_acquire(
        self: &Arc<Self>,
        routes: &Arc<Routes>,
        avoid: Option<usize>,
        batch: u64,
    ) -> Acquired {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let (upstreams, is_hopeless) = (&state.upstreams, state.is_hopeless());
        let load = |index: usize| {
            let target = &routes.targets[index];
            let upstream = target.backend.upstream();
            let one = &upstreams[upstream];
            let has_place = one.in_flight() < self.limits.share(upstream);
            if is_hopeless || !has_place {
                return None;
            }
            let room = one.room(&target.backend.breaker(), now);
            matches!(room, Room::Open { .. }).then_some(Load {
                avoid: avoid == Some(upstream),
                in_flight: one.in_flight(),
                weight: target.weight,
            })
        };
        let count = routes.targets.len();
        let Some(index) = routes.strategy.choose(&mut state.choices, count, load) else {
            return state.why_not(routes, now);
        };
        let backend = &routes.targets[index].backend;
        let upstream = &mut state.upstreams[backend.upstream()];
        let flight = upstream.on_start(&mut backend.breaker(), now, batch);
        drop(guard);
        Acquired::Permit(Permit {
            targets: Arc::clone(self),
            routes: Arc::clone(routes),
            target: index,
            flight,
            is_held: true,
        })
    }

    /// The calls in flight that are at least so old, at all upstreams.
    pub(super) fn calls_older_than(&self, age: Duration) -> Option<OldCalls> {
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

    /// A call was broken off before it showed anything.
    fn abandon(&self, permit: &Permit) {
        let backend = permit.backend();
        let mut state = self.lock();
        let upstream = &mut state.upstreams[backend.upstream()];
        let changes = upstream.on_finish(&mut backend.breaker(), permit.flight, None);
        drop(state);
        self.limits.on_finish();
        if changes.frees_a_place {
            self.changed.notify_one();
        }
    }

    /// Takes in how a call went: frees its place, and says what is to become of its line.
    fn finish(&self, permit: &Permit, history: &mut History, ended: &Ended) -> Next {
        let now = Instant::now();
        let random = match ended.result {
            CallResult::Succeeded => 0.0, // the usual case throws no dice
            _ => rand::random(),
        };
        let backend = permit.backend();
        let upstream = backend.upstream();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut breaker = backend.breaker();
        let reason = ended.result.reason();
        let judgement =
            reason.map(|reason| self.judge(state, permit, history, &breaker, (ended, reason, now)));
        let end = End {
            result: ended.result,
            has_answered: ended.status.is_some(),
            failure: judgement.as_ref().map(|judgement| judgement.failure),
            is_signal: judgement
                .as_ref()
                .is_some_and(|judgement| judgement.is_signal),
            cause: &ended.cause,
        };
        let moment = self.moment(upstream, now, random);
        let target = &mut state.upstreams[upstream];
        let changes = target.on_finish(&mut breaker, permit.flight, Some((&end, moment)));
        if ended.result.is_answer() {
            state.giving_up.on_answer();
        }
        let hastens =
            ended.result == CallResult::Succeeded && breaker.take_awaited(permit.flight.begun);
        state.is_hastened |= hastens;
        let next = match &judgement {
            None if ended.result.cost().is_none() => Next::End,
            None => history.held_up(&self.retry, random),
            Some(judgement) => {
                let ends_refusals = state.giving_up.ends_refusals();
                self.next(
                    permit,
                    history,
                    judgement,
                    (ended, random),
                    (&breaker, ends_refusals),
                )
            }
        };
        if next.is_hastened() {
            breaker.await_success(now);
        }
        drop(breaker);
        for change in [&changes.of_upstream, &changes.of_backend]
            .into_iter()
            .flatten()
        {
            state.giving_up.on_change(change);
        }
        let checks = state.choices.made().is_multiple_of(TROUBLE_CHECK_INTERVAL);
        drop(guard);
        if reason.is_some() {
            self.is_troubled.store(true, Ordering::Relaxed);
        } else if checks && self.is_troubled() {
            self.look_for_trouble();
        }
        self.limits.on_finish();
        self.on_changes(backend, &changes, ended.status, hastens);
        next
    }

    /// What a failure says of the target, and what of the line.
    fn judge(
        &self,
        state: &mut State,
        permit: &Permit,
        history: &mut History,
        breaker: &Breaker,
        (ended, reason, now): (&Ended, Reason, Instant),
    ) -> Judgement {
        let backend = permit.backend();
        let assessment = history.failed(backend, breaker.evidence(), now);
        // A model that was there a moment ago is no fault of the line's.
        let is_missing =
            ended.result == CallResult::ModelMissing && !breaker.evidence().has_succeeded();
        let cause = || format!("{}: {}", backend.upstream_name(), ended.cause);
        let in_flight = state.upstreams.iter().map(UpstreamState::in_flight);
        let is_alike = state
            .giving_up
            .on_failure(backend.upstream(), reason, cause, in_flight);
        // A server is not believed that asks for more than the configuration allows.
        let longest = self.retry.longest_wait;
        let wait = ended.retry_after.map(|wait| wait.min(longest));
        // A server that names a time means every line of the model, whatever the status.
        let names_a_time = wait.is_some_and(|wait| !wait.is_zero());
        let failure = Failure {
            reason: match reason {
                Reason::Failing if names_a_time => Reason::Limited,
                reason => reason,
            },
            wait,
            is_capped: ended.retry_after.is_some_and(|wait| wait > longest),
            is_fresh: assessment.is_fresh,
            batch: permit.flight.batch,
        };
        Judgement {
            is_signal: assessment.is_signal() && !is_alike && !is_missing,
            assessment,
            failure,
            is_missing,
            is_alike,
            names_a_time,
        }
    }

    /// What is to become of the line after a failure.
    fn next(
        &self,
        permit: &Permit,
        history: &mut History,
        judgement: &Judgement,
        (ended, random): (&Ended, f64),
        (breaker, ends_refusals): (&Breaker, bool),
    ) -> Next {
        let Judgement {
            assessment,
            failure,
            ..
        } = judgement;
        if judgement.is_missing && !judgement.is_alike {
            let all = permit.routes.targets.iter().map(|target| &target.backend);
            return if history.is_missing_at(permit.backend(), all) {
                Next::End
            } else {
                history.turned_away(assessment, None, &self.retry, random)
            };
        }
        let is_refused_again = failure.reason == Reason::Refused && !assessment.is_fresh;
        // The server fails one line after the other.
        let is_of_the_server = judgement.is_signal
            && failure.reason == Reason::Failing
            && breaker
                .closure()
                .is_some_and(|closure| closure.reason != Reason::Limited);
        let failed = Failed {
            result: ended.result,
            wait: failure.wait,
            ends_refusal: ends_refusals && is_refused_again,
            is_for_nothing: is_of_the_server || judgement.names_a_time,
        };
        history.next(assessment, &failed, &self.retry, random)
    }

    /// Says what has changed to those who wait for it.
    fn on_changes(&self, backend: &Backend, changes: &Changes, status: Option<u16>, hastens: bool) {
        let of_upstream = changes.of_upstream.iter().map(|change| (None, change));
        let of_backend = changes.of_backend.iter();
        let of_backend = of_backend.map(|change| (Some(backend.model()), change));
        let mut opens = changes.frees_a_place || hastens;
        for (model, change) in of_upstream.chain(of_backend) {
            self.announce(backend.upstream(), model, change, status);
            if matches!(change, Change::Opened(_)) {
                opens = true;
            } else {
                self.closed.notify_one();
                if cooldown::any_to_share(&self.backends) {
                    self.limits.notify_changed();
                }
            }
            self.attention[backend.upstream()].notify_one();
        }
        if opens {
            self.changed.notify_one();
        }
    }

    fn announce(&self, upstream: usize, model: Option<&str>, change: &Change, status: Option<u16>) {
        let subject = Subject {
            upstream: self.backends.name(upstream),
            url: &self.urls[upstream],
            model,
        };
        announce(subject, change, status);
    }

    fn moment(&self, upstream: usize, now: Instant, random: f64) -> Moment<'_> {
        Moment {
            now,
            random,
            pace: &self.pace,
            retry: &self.retry,
            limit: self.limits.share(upstream).max(1),
        }
    }

    /// A probe has ended: whether the upstream answered, and if so, whether for itself.
    pub(super) fn on_probe(&self, upstream: usize, answer: Option<bool>, cause: String) {
        let moment = self.moment(upstream, Instant::now(), rand::random());
        let change = self.lock().upstreams[upstream].on_probe(answer, cause, moment);
        if let Some(change) = change {
            self.announce(upstream, None, &change, None);
            self.changed.notify_one();
        }
    }

    /// An upstream was asked for its models, and answered, or cannot be reached: how so.
    pub(super) fn on_discovery(&self, upstream: usize, unreachable: Option<&str>) {
        let moment = self.moment(upstream, Instant::now(), rand::random());
        let mut state = self.lock();
        let target = &mut state.upstreams[upstream];
        let Some(cause) = unreachable else {
            target.on_discovery();
            return;
        };
        let change = target.on_unreachable(cause, moment);
        drop(state);
        self.is_troubled.store(true, Ordering::Relaxed);
        if let Some(change) = change {
            self.announce(upstream, None, &change, None);
        }
    }

    /// Opens all that is closed at an upstream, because an operator says that it is mended. False
    /// if there is no such upstream.
    pub fn reset(&self, name: &str) -> bool {
        let Some(upstream) = self.backends.upstream_named(name) else {
            return false;
        };
        let now = Instant::now();
        let of_upstream = self.lock().upstreams[upstream].reset(now);
        if let Some(change) = of_upstream {
            self.announce(upstream, None, &change, None);
        }
        for backend in self.backends.all(Some(upstream)) {
            let change = backend.breaker().reset(now);
            if let Some(change) = change {
                self.announce(upstream, Some(backend.model()), &change, None);
            }
        }
        // When all is open: whoever looks must find it so.
        self.lock().is_hastened = true;
        self.attention[upstream].notify_one();
        self.changed.notify_one();
        true
    }

    /// Takes in that other processes leave a model alone. An upstream that is not known here is
    /// passed over.
    pub fn follow_cooldown(&self, cooldown: &Cooldown) {
        if cooldown::follow(&self.backends, cooldown) {
            self.is_troubled.store(true, Ordering::Relaxed);
            self.closed.notify_one();
        }
    }

    /// The cooldowns that other processes do not know yet.
    #[must_use]
    pub fn cooldowns_to_share(&self) -> Vec<Cooldown> {
        cooldown::to_share(&self.backends)
    }

    /// There are no more lines than this: it is hopeless when all have failed alike.
    pub fn has_lines(&self, lines: usize) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let in_flight = state.upstreams.iter().map(UpstreamState::in_flight);
        state.giving_up.has_lines(lines, in_flight);
    }

    /// Why no line can succeed, where all calls so far have failed alike: see [`FailFast`].
    #[must_use]
    pub fn hopeless(&self) -> Option<String> {
        self.lock().giving_up.hopeless().map(str::to_owned)
    }

    /// Whether, since the last look, a call has succeeded where a line waits for that, or an
    /// operator has opened an upstream: see [`History::is_hastened`] and [`History::is_reset`].
    pub fn take_hastening(&self) -> bool {
        std::mem::take(&mut self.lock().is_hastened)
    }

    /// Calls in flight, by upstream.
    #[must_use]
    pub fn in_flight(&self) -> Vec<usize> {
        self.read(|upstreams| upstreams.iter().map(UpstreamState::in_flight).collect())
    }

    /// Reads the state of all upstreams, in their order.
    pub(super) fn read<T>(&self, read: impl FnOnce(&[UpstreamState]) -> T) -> T {
        read(&self.lock().upstreams)
    }

    /// Whether any upstream or model may be in trouble.
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.is_troubled.load(Ordering::Relaxed)
    }

    fn look_for_trouble(&self) {
        let backends = self.backends.all(None);
        let are_well = backends.iter().all(|backend| backend.breaker().is_well())
            && self.read(|upstreams| upstreams.iter().all(|one| one.breaker().is_well()));
        if are_well {
            self.is_troubled.store(false, Ordering::Relaxed);
        }
    }
}

/// Questions about the targets of some routes.
impl Targets {
    /// Whether lines could be sent, if there were places.
    #[must_use]
    pub fn is_open(&self, routes: &Routes) -> bool {
        self.any_open(routes, |_| true)
    }

    /// Whether lines could be sent at any moment of late. What closes again and again is open for a
    /// moment now and then, and whoever looks seldom must not take it for closed.
    #[must_use]
    pub fn was_open(&self, routes: &Routes) -> bool {
        let now = Instant::now();
        let is_recent = |target: &Target| {
            let started = target.backend.breaker().last_start();
            started.is_some_and(|at| now.duration_since(at) < RECENT)
        };
        self.is_open(routes) || routes.targets.iter().any(is_recent)
    }

    /// Since when all targets are closed, if they are.
    #[must_use]
    pub fn closed_since(&self, routes: &Routes) -> Option<Instant> {
        let now = Instant::now();
        let state = self.lock();
        let mut latest = None;
        for target in &routes.targets {
            if !matches!(state.room(target, now), Room::Closed { .. }) {
                return None;
            }
            let since = |breaker: &Breaker| breaker.closure().map(|closure| closure.since);
            let of_upstream = since(state.upstreams[target.backend.upstream()].breaker());
            let of_backend = since(&target.backend.breaker());
            latest = latest.max(of_upstream.into_iter().chain(of_backend).min());
        }
        latest
    }

    /// Whether no target is known to work: then lines that have failed before come last.
    #[must_use]
    pub fn is_trial(&self, routes: &Routes) -> bool {
        let now = Instant::now();
        let state = self.lock();
        let mut targets = routes.targets.iter();
        !targets.any(|target| {
            matches!(
                state.room(target, now),
                Room::Open { is_trial: false } | Room::Full
            )
        })
    }

    /// Whether calls succeed at any target, as far as is known.
    #[must_use]
    pub fn works(&self, routes: &Routes) -> bool {
        let state = self.lock();
        let mut targets = routes.targets.iter();
        targets.any(|target| {
            let upstream = &state.upstreams[target.backend.upstream()];
            upstream.breaker().closure().is_none() && target.backend.breaker().works()
        })
    }

    /// Whether this process may have calls in flight at a target that is open, be it full.
    #[must_use]
    pub fn has_share(&self, routes: &Routes) -> bool {
        self.limits.lane(routes.lane) > 0
            && self.any_open(routes, |target| {
                self.limits.share(target.backend.upstream()) > 0
            })
    }

    /// Whether others have the whole limit, of the model or of every upstream that is open.
    #[must_use]
    pub fn lacks_share(&self, routes: &Routes) -> bool {
        self.is_open(routes) && !self.has_share(routes)
    }

    /// When the next closed model or upstream may be tried.
    pub(super) fn next_opening(&self, now: Instant) -> Option<Instant> {
        let opens = |breaker: &Breaker| match breaker.room(now) {
            Room::Closed { until } => until,
            _ => None,
        };
        let backends = self.backends.all(None);
        let of_backends = backends
            .iter()
            .filter_map(|backend| opens(&backend.breaker()))
            .min();
        self.read(|upstreams| {
            let of_upstreams = upstreams.iter().filter_map(|one| opens(one.breaker()));
            of_upstreams.chain(of_backends).min()
        })
    }

    /// When an upstream that cannot be reached is to be probed.
    pub(super) fn probe_due(&self, upstream: usize) -> Option<Instant> {
        self.read(|upstreams| {
            let closure = upstreams[upstream].breaker().closure();
            let closure = closure.filter(|closure| closure.reason == Reason::Unreachable);
            closure.map(|closure| closure.until)
        })
    }

    fn any_open(&self, routes: &Routes, holds: impl Fn(&Target) -> bool) -> bool {
        let now = Instant::now();
        let state = self.lock();
        let mut targets = routes.targets.iter();
        targets
            .any(|target| !matches!(state.room(target, now), Room::Closed { .. }) && holds(target))
    }
}

impl State {
    fn is_hopeless(&self) -> bool {
        self.giving_up.hopeless().is_some()
    }

    fn room(&self, target: &Target, now: Instant) -> Room {
        if self.is_hopeless() {
            return Room::Closed { until: None };
        }
        let upstream = &self.upstreams[target.backend.upstream()];
        upstream.room(&target.backend.breaker(), now)
    }

    fn why_not(&mut self, routes: &Routes, now: Instant) -> Acquired {
        let mut is_full = false;
        let mut until: Option<Instant> = None;
        for target in &routes.targets {
            match self.room(target, now) {
                Room::Closed { until: opens } => {
                    until = match (until, opens) {
                        (Some(first), Some(opens)) => Some(first.min(opens)),
                        (first, opens) => first.or(opens),
                    };
                }
                Room::Open { .. } | Room::Full => {
                    is_full = true;
                    self.upstreams[target.backend.upstream()].want();
                }
            }
        }
        if is_full {
            Acquired::Full
        } else {
            Acquired::Closed { until }
        }
    }
}

impl Permit {
    /// The upstream's number, as [`try_acquire`](super::Pool::try_acquire) takes it to avoid it.
    #[must_use]
    pub fn upstream(&self) -> usize {
        self.backend().upstream()
    }

    pub(super) fn target(&self) -> &Target {
        &self.routes.targets[self.target]
    }

    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.target().backend
    }

    /// The call waits for its turn.
    pub(super) fn pause(&mut self) {
        let upstream = self.upstream();
        let mut state = self.targets.lock();
        state.upstreams[upstream].on_pause(&mut self.flight);
    }

    /// The call's turn has come.
    pub(super) fn resume(&mut self) {
        let upstream = self.upstream();
        let mut state = self.targets.lock();
        state.upstreams[upstream].on_resume(&mut self.flight, Instant::now());
    }

    pub(super) fn begun(&self) -> Instant {
        self.flight.begun
    }

    /// The call has ended: frees its place, and says what is to become of its line.
    pub(super) fn finish(mut self, history: &mut History, ended: &Ended) -> Next {
        self.is_held = false;
        self.targets.finish(&self, history, ended)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_held {
            self.targets.abandon(self);
        }
    }
}

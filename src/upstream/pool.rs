//! The upstreams, who of them takes the next line, and what a call does to the one it was made at.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::ModelInfo;
use super::balance::least_busy::{self, Load};
use crate::domain::clock;
use crate::metrics::{CallOutcome, UpstreamMetrics, metrics};
use crate::upstream::attempt::client::Upstream;
use crate::upstream::attempt::history::{History, Next};
use crate::upstream::health::breaker::{Breaker, Change, Closure, Failure, Reason, Room};
use crate::upstream::limits::concurrency::Limits;
use crate::upstream::limits::memory::Budget;
use crate::upstream::provider::classify::{CallResult, Cost};
use crate::upstream::route::{Routes, Routing, Target};
use crate::upstream::settings::{BuildError, Options, RetrySettings, Settings};
use crate::upstream::target::backend::{Backend, Backends};

/// A wait that is said aloud when it begins.
const WORTH_A_WARNING: Duration = Duration::from_secs(60);
/// So many calls after trouble it is looked whether there is still some.
const LOOKS_FOR_TROUBLE_EVERY: usize = 64;
/// Whoever looks once a second sees what was open within this time.
const LATELY: Duration = Duration::from_secs(2);

/// All upstreams of a process.
#[derive(Debug)]
pub struct Pool {
    /// When the next call may begin, where there is a rate.
    next_turn: Mutex<Option<Instant>>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) metrics: Vec<UpstreamMetrics>,
    pub(super) routing: Routing,
    pub(super) backends: Arc<Backends>,
    pub(super) options: Options,
    /// Somebody to look after each upstream waits here for it to change.
    pub(super) attention: Vec<Notify>,
    /// A breaker has closed.
    pub(super) closed: Notify,
    pub(super) changed: Notify,
    /// Upstreams that have not been asked for their models yet.
    pub(super) unasked: watch::Sender<usize>,
    pub(super) created: Instant,
    created_ms: i64,
    pub(super) retry: RetrySettings,
    budget: Arc<Budget>,
    pub(super) limits: Limits,
    /// Something may be closed or narrow. Kept, so that where all is well nobody need look.
    pub(super) troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) places: Vec<Place>,
    turn: usize,
    alike: Alike,
    /// Lines that wait may be due: a success has come that they waited for, or an operator has
    /// mended what they failed at.
    hastens: bool,
}

/// An upstream's state.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) in_flight: usize,
    /// A line was turned away because it is full.
    is_wanted: bool,
    pub(super) breaker: Breaker,
    pub(super) answered: bool,
}

/// How the calls have failed so far, where all have failed as only a person can mend it.
#[derive(Debug, Default)]
struct Alike {
    has_succeeded: bool,
    /// By upstream: how many calls, and how the last one failed.
    refused: BTreeMap<usize, (usize, String)>,
    /// After how many it is hopeless.
    most: usize,
    /// All of them have, or one showed that no other can do better: why.
    hopeless: Option<String>,
}

/// Whether a line can be sent now.
#[derive(Debug)]
pub enum Acquired {
    Permit(Permit),
    /// No open upstream has a place: one will be freed.
    Full,
    /// None is open. `until`: when the first opens by itself, if that is known.
    Closed {
        until: Option<Instant>,
    },
}

/// A place at an upstream, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    pool: Arc<Pool>,
    routes: Arc<Routes>,
    target: usize,
    /// Of the upstream's breaker, and of the backend's.
    generations: (u32, u32),
    batch: u64,
    pub(super) begun: Instant,
    /// Its place is not given back yet.
    is_held: bool,
}

/// How a call went.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) result: CallResult,
    pub(super) status: Option<u16>,
    /// How long the server asked to be left alone.
    pub(super) wait: Option<Duration>,
    /// In words, without addresses and secrets.
    pub(super) cause: String,
}

impl Pool {
    /// Reads CA files and makes a client for each upstream; nothing is called yet.
    pub fn new(settings: &Settings, options: Options) -> Result<Arc<Self>, BuildError> {
        let upstreams = settings.upstreams.iter().map(Upstream::new);
        let upstreams = upstreams.collect::<Result<Vec<_>, _>>()?;
        let backends = Arc::new(Backends::default());
        let has_succeeded = options.fail_fast.is_some_and(|fast| fast.has_succeeded);
        Ok(Arc::new(Self {
            routing: Routing::new(settings, Arc::clone(&backends))?,
            backends,
            metrics: upstreams
                .iter()
                .map(|u| metrics().upstream(&u.name))
                .collect(),
            attention: upstreams.iter().map(|_| Notify::new()).collect(),
            closed: Notify::new(),
            changed: Notify::new(),
            unasked: watch::Sender::new(upstreams.len()),
            created: Instant::now(),
            created_ms: options.clock.now_ms(),
            retry: settings.retry.clone(),
            budget: Budget::new(settings.max_in_flight_bytes),
            limits: Limits::new(settings),
            troubled: AtomicBool::new(false),
            state: Mutex::new(State {
                places: upstreams.iter().map(|_| Place::default()).collect(),
                turn: 0,
                alike: Alike {
                    has_succeeded,
                    most: options.fail_fast.map_or(usize::MAX, |fast| fast.calls),
                    ..Alike::default()
                },
                hastens: false,
            }),
            upstreams,
            options,
            next_turn: Mutex::new(None),
        }))
    }

    /// Where the lines of a model go; `""` for lines that name none. `None`: nobody serves it.
    /// Cheap. What comes back may change with what upstreams report (see
    /// [`changed`](Self::changed)).
    #[must_use]
    pub fn resolve(&self, model: &str) -> Option<Arc<Routes>> {
        self.routing.resolve(model)
    }

    /// Whether the lines of a model would go the same way now.
    #[must_use]
    pub fn is_current(&self, routes: &Arc<Routes>, model: &str) -> bool {
        let now = self.resolve(model);
        now.is_some_and(|now| Arc::ptr_eq(&now, routes))
    }

    /// The models to list: those configured (but for `*`), or, without `[[models]]`, those that
    /// the upstreams report.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        self.routing.models(clock::seconds(self.created_ms))
    }

    /// What metrics call a model: its name where the configuration or an upstream names it, else
    /// [`OTHER`](crate::metrics::OTHER).
    #[must_use]
    pub fn label(&self, model: &str) -> String {
        self.routing.label(model)
    }

    /// The budget of bytes that answers are charged to.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// How many calls at once there may be.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Calls in flight, by upstream.
    #[must_use]
    pub fn in_flight(&self) -> Vec<usize> {
        let state = self.lock();
        state.places.iter().map(|place| place.in_flight).collect()
    }

    /// Woken when a place was freed at a full upstream, a breaker has opened, or models have
    /// changed: time to look again. For one listener; a wake-up that finds nobody waiting is kept.
    #[must_use]
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Whether, since the last look, a call has succeeded where a line waits for that, or an
    /// operator has opened an upstream: see [`History::is_hastened`] and [`History::is_reset`].
    pub fn take_hastening(&self) -> bool {
        std::mem::take(&mut self.lock().hastens)
    }

    /// Why no line can succeed, where all calls so far have failed alike: see [`FailFast`].
    #[must_use]
    pub fn hopeless(&self) -> Option<String> {
        self.lock().alike.hopeless.clone()
    }

    /// There are no more lines than this: it is hopeless when all have failed alike.
    pub fn has_lines(&self, lines: usize) {
        let mut state = self.lock();
        state.alike.most = state.alike.most.min(lines.max(1));
        state.judge_alike();
    }

    /// Waits until a call may begin, where there is a rate. `false`: it may not any more.
    pub async fn turn(&self) -> bool {
        let Some(rate) = &self.options.rate else {
            return true;
        };
        let at = {
            let mut next = self
                .next_turn
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + rate.interval);
            at
        };
        let turn = tokio::time::sleep_until(at);
        rate.stop.run_until_cancelled(turn).await.is_some()
    }

    /// Whether lines could be sent, if there were places: whether they need not wait for an
    /// upstream or a model to open.
    #[must_use]
    pub fn may_take(&self, routes: &Routes) -> bool {
        self.any_open(routes, |_| true)
    }

    /// The same at any moment lately: what closes again and again is open for a moment now and
    /// then, and whoever looks seldom must not take it for closed.
    #[must_use]
    pub fn was_open(&self, routes: &Routes) -> bool {
        let now = Instant::now();
        let lately = |target: &Target| {
            let started = target.backend.breaker().last_start();
            started.is_some_and(|at| now.duration_since(at) < LATELY)
        };
        self.may_take(routes) || routes.targets.iter().any(lately)
    }

    /// Since when all upstreams of these routes are closed, if they are.
    #[must_use]
    pub fn closed_since(&self, routes: &Routes) -> Option<Instant> {
        let now = Instant::now();
        let state = self.lock();
        let mut latest = None;
        for target in &routes.targets {
            if !matches!(state.room(target, now), Room::Closed { .. }) {
                return None;
            }
            let of_upstream = state.places[target.backend.upstream].breaker.closure();
            let since = of_upstream.map(|closure| closure.since);
            let breaker = target.backend.breaker();
            let of_backend = breaker.closure().map(|closure| closure.since);
            latest = latest.max(of_upstream.and(since).into_iter().chain(of_backend).min());
        }
        latest
    }

    /// Whether any upstream or model may be in trouble.
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    /// Whether lines that have failed before are to come last: no upstream is known to work.
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

    /// Whether calls succeed at any upstream of these routes, as far as is known.
    #[must_use]
    pub fn works(&self, routes: &Routes) -> bool {
        let state = self.lock();
        let mut targets = routes.targets.iter();
        targets.any(|target| {
            let upstream = &state.places[target.backend.upstream];
            upstream.breaker.closure().is_none() && target.backend.breaker().works()
        })
    }

    /// Whether this process may have calls in flight there: at an upstream that is open, be it
    /// full.
    #[must_use]
    pub fn has_share(&self, routes: &Routes) -> bool {
        self.limits.lane(routes.lane) > 0
            && self.any_open(routes, |target| {
                self.limits.share(target.backend.upstream) > 0
            })
    }

    /// Whether others have the whole limit, of the model or of every upstream that is open.
    #[must_use]
    pub fn lacks_share(&self, routes: &Routes) -> bool {
        self.may_take(routes) && !self.has_share(routes)
    }

    fn any_open(&self, routes: &Routes, holds: impl Fn(&Target) -> bool) -> bool {
        let now = Instant::now();
        let state = self.lock();
        let mut targets = routes.targets.iter();
        targets
            .any(|target| !matches!(state.room(target, now), Room::Closed { .. }) && holds(target))
    }

    /// A free place at the best open target, or why not. Never blocks. `avoid`: the upstream of
    /// the last failed attempt, which is not chosen while another has a place. `batch`: a number
    /// of the line's, by which batches are told apart.
    pub fn try_acquire(
        self: &Arc<Self>,
        routes: &Arc<Routes>,
        avoid: Option<usize>,
        batch: u64,
    ) -> Acquired {
        let now = Instant::now();
        let mut state = self.lock();
        let turn = state.turn;
        let chosen = least_busy::choose(routes.targets.len(), turn, |index| {
            let target = &routes.targets[index];
            let upstream = target.backend.upstream;
            let place = &state.places[upstream];
            let has_room = place.in_flight < self.limits.share(upstream);
            let is_open = matches!(state.room(target, now), Room::Open { .. });
            (has_room && is_open).then_some(Load {
                avoid: avoid == Some(upstream),
                in_flight: place.in_flight,
                weight: target.weight,
            })
        });
        let Some(index) = chosen else {
            return state.why_not(routes, now);
        };
        state.turn = turn.wrapping_add(1);
        let backend = &routes.targets[index].backend;
        let place = &mut state.places[backend.upstream];
        place.in_flight += 1;
        let generations = (place.breaker.start(now), backend.breaker().start(now));
        drop(state);
        Acquired::Permit(Permit {
            pool: Arc::clone(self),
            routes: Arc::clone(routes),
            target: index,
            generations,
            batch,
            begun: now,
            is_held: true,
        })
    }

    /// Takes in how a call went: frees its place, and says what is to become of its line.
    pub(super) fn report(
        &self,
        mut permit: Permit,
        history: &mut History,
        report: &Report,
    ) -> Next {
        permit.is_held = false;
        let now = Instant::now();
        let backend = Arc::clone(&permit.target().backend);
        let upstream = backend.upstream;
        let random = match report.result {
            CallResult::Succeeded => 0.0, // the usual case throws no dice
            _ => rand::random(),
        };
        let mut state = self.lock();
        let place = &mut state.places[upstream];
        place.in_flight -= 1;
        place.answered |= report.status.is_some();
        let is_wanted = std::mem::take(&mut place.is_wanted);
        let outcome = self.take_in(
            &mut state,
            &permit,
            &backend,
            history,
            report,
            (now, random),
        );
        let looks_again = state.turn.is_multiple_of(LOOKS_FOR_TROUBLE_EVERY);
        drop(state);
        if report.result.reason().is_some() {
            self.troubled.store(true, Ordering::Relaxed);
        } else if looks_again && self.is_troubled() {
            self.look_for_trouble();
        }
        self.limits.landed();
        let mut opens = is_wanted || outcome.hastens;
        for (model, change) in outcome.changes {
            let Some(change) = change else { continue };
            opens |= matches!(change, Change::Opened(_));
            self.tell(
                upstream,
                model.then(|| &*backend.model),
                &change,
                report.status,
            );
            if !matches!(change, Change::Opened(_)) {
                self.closed.notify_one();
                if self.has_gates_to_tell() {
                    self.limits.poke();
                }
            }
            self.attention[upstream].notify_one();
        }
        if opens {
            self.changed.notify_one();
        }
        outcome.next
    }

    fn take_in(
        &self,
        state: &mut State,
        permit: &Permit,
        backend: &Arc<Backend>,
        history: &mut History,
        report: &Report,
        (now, random): (Instant, f64),
    ) -> Outcome {
        let (of_upstream, of_backend) = permit.generations;
        let times = (permit.begun, now);
        let mut breaker = backend.breaker();
        let Some(reason) = report.result.reason() else {
            return self.take_in_answer(state, permit, &mut breaker, history, report, times);
        };
        let judged = history.failed(backend, breaker.evidence(), now);
        // A model that was there a moment ago is no fault of the line's.
        let is_missing =
            report.result == CallResult::ModelMissing && !breaker.evidence().has_succeeded();
        let is_alike = self.note_alike(state, backend.upstream, reason, &report.cause);
        let (wait, is_capped) = self.bounded(report.wait);
        // A server that names a time means every line of the model, whatever the status.
        let names_a_time = wait.is_some_and(|wait| !wait.is_zero());
        let reason = if reason == Reason::Failing && names_a_time {
            Reason::Limited
        } else {
            reason
        };
        let failure = Failure {
            reason,
            wait,
            is_capped,
            is_fresh: judged.is_fresh,
            batch: permit.batch,
        };
        let paces = (&self.options.pace, &self.retry);
        let cause = report.cause.as_str();
        let is_signal = judged.is_signal() && !is_alike && !is_missing;
        let place = &mut state.places[backend.upstream];
        let mut changes = Changes::default();
        let is_failing;
        if report.result.is_of_upstream() {
            breaker.pass_over(of_backend);
            changes.of_upstream = if is_signal {
                place
                    .breaker
                    .fail(failure, of_upstream, now, paces, random, cause)
            } else {
                place.breaker.pass_over(of_upstream);
                None
            };
            is_failing = false;
        } else {
            changes.of_upstream = if report.result.shows_that_the_key_works() {
                place.breaker.answer(of_upstream)
            } else {
                place
                    .breaker
                    .unclear(of_upstream, permit.batch, now, paces, random)
            };
            changes.of_backend = if is_signal {
                breaker.fail(failure, of_backend, now, paces, random, cause)
            } else {
                breaker.pass_over(of_backend);
                None
            };
            let closure = breaker.closure();
            is_failing = reason == Reason::Failing
                && closure.is_some_and(|closure| closure.reason != Reason::Limited);
        }
        drop(breaker);
        let next = if is_missing && !is_alike {
            let all = permit.routes.targets.iter().map(|target| &target.backend);
            if history.is_missing_at(backend, all) {
                Next::End
            } else {
                history.turned_away(&judged, None, &self.retry, random)
            }
        } else {
            let ends_refusals = self.options.fail_fast.is_some()
                && state.alike.has_succeeded
                && reason == Reason::Refused
                && !judged.is_fresh;
            let is_last = report.result == CallResult::TimedOut && history.timed_out();
            match report.result.cost().unwrap_or(Cost::Refusal) {
                _ if is_last => Next::End,
                Cost::Refusal if ends_refusals => Next::End,
                Cost::Refusal => history.refused(&judged, &self.retry, random),
                Cost::TurnedAway => history.turned_away(&judged, wait, &self.retry, random),
                // One after the other fails: it is not the line's fault.
                Cost::Attempt if is_failing && is_signal && history.may_fail_for_nothing() => {
                    history.turned_away(&judged, wait, &self.retry, random)
                }
                Cost::Attempt if names_a_time && history.may_fail_for_nothing() => {
                    history.turned_away(&judged, wait, &self.retry, random)
                }
                Cost::Attempt => history.attempted(&judged, &self.retry, random),
            }
        };
        if let Next::Again {
            is_hastened: true, ..
        } = next
        {
            backend.breaker().await_success(now);
        }
        self.give_up_if_hopeless(state, &changes);
        Outcome {
            next,
            changes: changes.into_list(),
            hastens: false,
        }
    }

    fn take_in_answer(
        &self,
        state: &mut State,
        permit: &Permit,
        breaker: &mut Breaker,
        history: &mut History,
        report: &Report,
        times: (Instant, Instant),
    ) -> Outcome {
        let limit = self.limits.share(permit.upstream()).max(1);
        let (of_upstream, of_backend) = permit.generations;
        let place = &mut state.places[permit.upstream()];
        let mut changes = Changes::default();
        let mut hastens = false;
        match report.result {
            CallResult::Succeeded => {
                state.alike.has_succeeded = true;
                changes.of_upstream =
                    place
                        .breaker
                        .succeed(of_upstream, times, permit.batch, limit);
                changes.of_backend = breaker.succeed(of_backend, times, permit.batch, limit);
                hastens = breaker.take_awaited(permit.begun);
                state.hastens |= hastens;
            }
            CallResult::Rejected | CallResult::Malformed => {
                state.alike.has_succeeded = true;
                changes.of_upstream = place.breaker.answer(of_upstream);
                changes.of_backend = breaker.answer(of_backend);
            }
            // An answer that is too large, or packed as nobody can unpack, says nothing of who
            // answers.
            _ => {
                place.breaker.abandon(of_upstream);
                breaker.abandon(of_backend);
            }
        }
        let next = match report.result.cost() {
            None => Next::End,
            Some(Cost::TurnedAway) => history.held_up(&self.retry, rand::random()),
            Some(_) => {
                let evidence = *breaker.evidence();
                let judged = history.failed(&permit.target().backend, &evidence, times.1);
                breaker.await_success(times.1);
                history.attempted(&judged, &self.retry, rand::random())
            }
        };
        Outcome {
            next,
            changes: changes.into_list(),
            hastens,
        }
    }

    /// Counts a call that failed as only a person can mend it. True while that may be so for all:
    /// then it says nothing of one upstream or line yet.
    fn note_alike(&self, state: &mut State, upstream: usize, reason: Reason, cause: &str) -> bool {
        let is_noted = self.options.fail_fast.is_some() && reason.needs_a_person();
        if !is_noted || state.alike.has_succeeded {
            return false;
        }
        let refused = state.alike.refused.entry(upstream).or_default();
        refused.0 += 1;
        let (name, advice) = (&self.upstreams[upstream].name, reason.advice());
        refused.1 = format!("{name}: {cause}; check {advice}");
        state.judge_alike();
        true
    }

    /// Where somebody waits, what only a person can mend is not waited for.
    fn give_up_if_hopeless(&self, state: &mut State, changes: &Changes) {
        let closed = [&changes.of_upstream, &changes.of_backend];
        for change in closed.into_iter().flatten() {
            if let Change::Closed(closure) = change
                && self.options.fail_fast.is_some()
                && closure.reason.needs_a_person()
                && closure.reason != Reason::Refused
            {
                let (cause, advice) = (&closure.cause, closure.reason.advice());
                state.alike.hopeless = Some(format!("{cause}; check {advice}"));
            }
        }
    }

    /// A server is not believed that asks for more than the configuration allows.
    fn bounded(&self, wait: Option<Duration>) -> (Option<Duration>, bool) {
        let longest = self.retry.longest_wait;
        let is_capped = wait.is_some_and(|wait| wait > longest);
        (wait.map(|wait| wait.min(longest)), is_capped)
    }

    /// Logs that something has closed or opened. `model`: `None` for the whole upstream.
    pub(super) fn tell(
        &self,
        upstream: usize,
        model: Option<&str>,
        change: &Change,
        status: Option<u16>,
    ) {
        let name = &self.upstreams[upstream].name;
        // Of every call's end only few are logged.
        let url = || self.upstreams[upstream].shown_url();
        let what = if model.is_some() { "model" } else { "upstream" };
        match change {
            Change::StillClosed => {}
            Change::Closed(closure) => {
                let wait = closure.until.saturating_duration_since(closure.since);
                let Closure { reason, cause, .. } = closure;
                let check = reason.advice();
                if reason.needs_a_person() {
                    tracing::error!(
                        upstream.name = name,
                        upstream.url = url(),
                        model.name = model,
                        http.status = status,
                        cause,
                        check,
                        "the {what} is set aside: its lines wait or go to others, and one is \
                         tried now and then, until it is mended"
                    );
                } else if *reason != Reason::Limited || wait >= WORTH_A_WARNING {
                    tracing::warn!(
                        upstream.name = name,
                        upstream.url = url(),
                        model.name = model,
                        cause,
                        wait = ?wait,
                        "the {what} fails: its lines wait or go to others until it works again"
                    );
                } else {
                    tracing::debug!(
                        upstream.name = name,
                        upstream.url = url(),
                        model.name = model,
                        cause,
                        wait = ?wait,
                        "limited"
                    );
                }
            }
            Change::Opened(closure) => {
                let after = closure.since.elapsed();
                if closure.reason == Reason::Limited && after < WORTH_A_WARNING {
                    tracing::debug!(
                        upstream.name = name,
                        upstream.url = url(),
                        model.name = model,
                        "not limited any more"
                    );
                } else {
                    tracing::warn!(
                        upstream.name = name,
                        upstream.url = url(),
                        model.name = model,
                        calls.failed = closure.failures,
                        after = ?after,
                        "the {what} works again"
                    );
                }
            }
        }
    }

    /// Opens all that is closed at an upstream, because an operator says that it is mended. False
    /// if there is no such upstream.
    pub fn reset(&self, name: &str) -> bool {
        let named = |upstream: &Upstream| upstream.name == name;
        let Some(index) = self.upstreams.iter().position(named) else {
            return false;
        };
        let now = Instant::now();
        let of_upstream = self.lock().places[index].breaker.reset(now);
        if let Some(change) = of_upstream {
            self.tell(index, None, &change, None);
        }
        for backend in self.backends.all(Some(index)) {
            let change = backend.breaker().reset(now);
            if let Some(change) = change {
                self.tell(index, Some(&backend.model), &change, None);
            }
        }
        // When all is open: whoever looks must find it so.
        self.lock().hastens = true;
        self.attention[index].notify_one();
        self.changed.notify_one();
        true
    }

    fn look_for_trouble(&self) {
        let backends = self.backends.all(None);
        let backends = backends.iter().all(|backend| backend.breaker().is_well());
        let is_well = backends
            && self
                .lock()
                .places
                .iter()
                .all(|place| place.breaker.is_well());
        if is_well {
            self.troubled.store(false, Ordering::Relaxed);
        }
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
            .filter_map(|backend| opens(&backend.breaker()));
        let of_backends = of_backends.min();
        let state = self.lock();
        let of_upstreams = state
            .places
            .iter()
            .filter_map(|place| opens(&place.breaker));
        of_upstreams.chain(of_backends).min()
    }

    /// When an upstream that cannot be reached is to be probed.
    pub(super) fn probe_due(&self, upstream: usize) -> Option<Instant> {
        let state = self.lock();
        let closure = state.places[upstream].breaker.closure();
        let closure = closure.filter(|closure| closure.reason == Reason::Unreachable);
        closure.map(|closure| closure.until)
    }

    /// Takes in how a probe went: whether the upstream answered, and if not well, how.
    pub(super) fn probed(&self, upstream: usize, answers: Option<bool>, cause: String) {
        let limit = self.limits.share(upstream).max(1);
        let now = Instant::now();
        let change = {
            let mut state = self.lock();
            let place = &mut state.places[upstream];
            place.answered |= answers.is_some();
            let (answers, pace) = (answers.unwrap_or(false), &self.options.pace);
            let breaker = &mut place.breaker;
            let change = breaker.probed(answers, now, pace, rand::random(), limit);
            if !answers {
                breaker.explain(cause);
            }
            change
        };
        if let Some(change) = change {
            self.tell(upstream, None, &change, None);
            self.changed.notify_one();
        }
    }

    /// An upstream was asked for its models, and answered, or cannot be reached.
    pub(super) fn looked_at(&self, upstream: usize, unreachable: Option<&str>) {
        let mut state = self.lock();
        let place = &mut state.places[upstream];
        let Some(cause) = unreachable else {
            place.answered = true;
            return;
        };
        if place.breaker.closure().is_some() {
            return;
        }
        let failure = Failure {
            reason: Reason::Unreachable,
            wait: None,
            is_capped: false,
            is_fresh: true,
            batch: 0,
        };
        let paces = (&self.options.pace, &self.retry);
        let now = Instant::now();
        let generation = place.breaker.start(now);
        let change = place
            .breaker
            .fail(failure, generation, now, paces, rand::random(), cause);
        drop(state);
        self.troubled.store(true, Ordering::Relaxed);
        if let Some(change) = change {
            self.tell(upstream, None, &change, None);
        }
    }

    /// Adds a call to the metrics.
    pub(super) fn count(&self, permit: &Permit, outcome: CallOutcome) {
        let target = permit.target();
        target.seconds.observe(permit.begun.elapsed());
        self.metrics[target.backend.upstream].called(outcome);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call has changed, and what is to become of its line.
struct Outcome {
    next: Next,
    /// Whether it is of the model, and not of the whole upstream.
    changes: [(bool, Option<Change>); 2],
    hastens: bool,
}

#[derive(Default)]
struct Changes {
    of_upstream: Option<Change>,
    of_backend: Option<Change>,
}

impl Changes {
    fn into_list(self) -> [(bool, Option<Change>); 2] {
        [(false, self.of_upstream), (true, self.of_backend)]
    }
}

impl State {
    /// It is hopeless when so many calls were refused, and none is on its way that could do better.
    fn judge_alike(&mut self) {
        let alike = &mut self.alike;
        let calls: usize = alike.refused.values().map(|(calls, _)| calls).sum();
        let mut places = self.places.iter().enumerate();
        let may_do_better =
            places.any(|(at, place)| place.in_flight > 0 && !alike.refused.contains_key(&at));
        if calls >= alike.most && calls > 0 && !alike.has_succeeded && !may_do_better {
            let causes: Vec<&str> = alike.refused.values().map(|(_, cause)| &**cause).collect();
            alike.hopeless = Some(causes.join("; "));
        }
    }

    fn room(&self, target: &Target, now: Instant) -> Room {
        if self.alike.hopeless.is_some() {
            return Room::Closed { until: None };
        }
        let of_upstream = self.places[target.backend.upstream].breaker.room(now);
        match of_upstream {
            Room::Open { is_trial } => match target.backend.breaker().room(now) {
                Room::Open { is_trial: other } => Room::Open {
                    is_trial: is_trial || other,
                },
                other => other,
            },
            other => other,
        }
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
                    self.places[target.backend.upstream].is_wanted = true;
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
    /// The upstream's index, as [`Again::upstream`](super::Again::upstream) gives it.
    #[must_use]
    pub fn upstream(&self) -> usize {
        self.target().backend.upstream
    }

    pub(super) fn target(&self) -> &Target {
        &self.routes.targets[self.target]
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_held {
            return;
        }
        let upstream = self.upstream();
        let (of_upstream, of_backend) = self.generations;
        let mut state = self.pool.lock();
        let place = &mut state.places[upstream];
        place.in_flight -= 1;
        place.breaker.abandon(of_upstream);
        let mut breaker = self.target().backend.breaker();
        breaker.abandon(of_backend);
        let is_narrow = !breaker.is_wide() || !place.breaker.is_wide();
        drop(breaker);
        let is_wanted = std::mem::take(&mut place.is_wanted);
        drop(state);
        self.pool.limits.landed();
        if is_wanted || is_narrow {
            self.pool.changed.notify_one();
        }
    }
}

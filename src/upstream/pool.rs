//! The upstreams, their places, and what an attempt does to both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::balance::{self, Load};
use super::budget::Budget;
use super::client::Upstream;
use super::gate::Gates;
use super::health::{Health, Pace, UpstreamState};
use super::limits::Limits;
use super::routes::{Routes, Routing, Target};
use super::{BuildError, ModelInfo, Retry};
use crate::config::{self, Config};
use crate::domain::clock::{self, Clock};
use crate::observe::{UpstreamFigures, figures};

/// What is not configuration.
#[derive(Clone, Debug, Default)]
pub struct PoolSettings {
    /// 401, 402 and 403 are the line's answer at once, as long as no call to that upstream has
    /// succeeded: for `run`, where somebody waits who can mend the key.
    pub final_auth_errors: bool,
    pub pace: Pace,
    pub clock: Clock,
}

/// All upstreams of a process.
#[derive(Debug)]
pub struct Pool {
    pub(super) upstreams: Vec<Upstream>,
    pub(super) figures: Vec<UpstreamFigures>,
    pub(super) routing: Routing,
    pub(super) settings: PoolSettings,
    /// Somebody to look after each upstream waits here for it to change.
    pub(super) attention: Vec<Notify>,
    pub(super) gate_closed: Notify,
    pub(super) changed: Notify,
    /// Upstreams that have not been asked for their models yet.
    pub(super) unasked: watch::Sender<usize>,
    pub(super) created: Instant,
    created_ms: i64,
    pub(super) retry: config::Retry,
    budget: Arc<Budget>,
    pub(super) limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) places: Vec<Place>,
    pub(super) gates: Gates,
    turn: usize,
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) in_flight: usize,
    /// A line was turned away because it is full.
    pub(super) starved: bool,
    pub(super) health: Health,
    /// Why it is not up.
    pub(super) cause: Option<String>,
    pub(super) answered: bool,
    /// It was said once that its refusals are final.
    pub(super) told_of_refusal: bool,
}

/// How an upstream is now.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    pub name: String,
    pub state: UpstreamState,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    /// It has answered something over HTTP since the process started.
    pub answered: bool,
    pub in_flight: usize,
    /// Its `concurrency`.
    pub limit: usize,
}

/// Whether a line can be sent now.
#[derive(Debug)]
pub enum Acquired {
    Permit(Permit),
    /// No open upstream has a place: one will be freed.
    Full,
    /// None is open: all are down, set aside, or answered 429. `until`: when the first opens by
    /// itself, if that is known.
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
    pub(super) era: u32,
    pub(super) begun: Instant,
    /// Its place is not given back yet.
    pub(super) held: bool,
}

impl Pool {
    /// Reads CA files and makes a client for each upstream; nothing is called yet.
    pub fn new(config: &Config, settings: PoolSettings) -> Result<Arc<Self>, BuildError> {
        let upstreams = config.upstreams.iter().map(Upstream::new);
        let upstreams = upstreams.collect::<Result<Vec<_>, _>>()?;
        let created = Instant::now();
        let place = |_: &Upstream| Place {
            in_flight: 0,
            starved: false,
            health: Health::new(created),
            cause: None,
            answered: false,
            told_of_refusal: false,
        };
        Ok(Arc::new(Self {
            routing: Routing::new(config)?,
            figures: upstreams
                .iter()
                .map(|u| figures().upstream(&u.name))
                .collect(),
            attention: upstreams.iter().map(|_| Notify::new()).collect(),
            gate_closed: Notify::new(),
            changed: Notify::new(),
            unasked: watch::Sender::new(upstreams.len()),
            created,
            created_ms: settings.clock.now_ms(),
            retry: config.retry.clone(),
            budget: Budget::new(config.limits.max_in_flight_bytes),
            limits: Limits::new(config),
            state: Mutex::new(State {
                places: upstreams.iter().map(place).collect(),
                gates: Gates::default(),
                turn: 0,
            }),
            upstreams,
            settings,
        }))
    }

    /// Where the lines of a model go; `""` for lines that name none. `None`: nobody serves it.
    /// Cheap. What comes back may change with what upstreams report (see [`changed`](Self::changed)).
    #[must_use]
    pub fn resolve(&self, model: &str) -> Option<Arc<Routes>> {
        self.routing.resolve(model)
    }

    /// The models to list: those configured (but for `*`), or, without `[[models]]`, those that
    /// the upstreams report.
    #[must_use]
    pub fn models(&self) -> Vec<ModelInfo> {
        self.routing.models(clock::seconds(self.created_ms))
    }

    /// What figures call a model: its name where the configuration or an upstream names it, else
    /// [`OTHER`](crate::observe::OTHER).
    #[must_use]
    pub fn label(&self, model: &str) -> String {
        self.routing.label(model)
    }

    /// A line whose attempt failed will be sent again.
    pub fn will_retry(&self, failed: &Retry) {
        self.figures[failed.upstream].retried(failed.outcome);
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

    /// Woken when a place was freed at a full upstream, a gate has opened, an upstream came back
    /// or may be tried, or models have changed: time to look again. For one listener; a wake-up
    /// that finds nobody waiting is kept.
    #[must_use]
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// How all upstreams are.
    #[must_use]
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let state = self.lock();
        let both = self.upstreams.iter().zip(&state.places);
        let status = both.map(|(upstream, place)| UpstreamStatus {
            name: upstream.name.clone(),
            state: place.health.state(),
            cause: place.cause.clone(),
            answered: place.answered,
            in_flight: place.in_flight,
            limit: upstream.concurrency,
        });
        status.collect()
    }

    /// Whether any target is open, be it full: whether lines need not wait for a gate or for an
    /// upstream that is down.
    #[must_use]
    pub fn may_take(&self, routes: &Routes) -> bool {
        self.any_open(routes, |_| true)
    }

    /// Whether this process may have calls in flight there: at an upstream that is open, be it
    /// full.
    #[must_use]
    pub fn has_share(&self, routes: &Routes) -> bool {
        self.limits.lane(routes.lane) > 0
            && self.any_open(routes, |target| self.limits.share(target.upstream) > 0)
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
        targets.any(|target| state.is_open(target, now) && holds(target))
    }

    /// A free place at the best open target, or why not. Never blocks. `avoid`: the upstream of
    /// the last failed attempt, which is not chosen while another has a place.
    pub fn try_acquire(self: &Arc<Self>, routes: &Arc<Routes>, avoid: Option<usize>) -> Acquired {
        let now = Instant::now();
        let mut state = self.lock();
        let turn = state.turn;
        let chosen = balance::choose(routes.targets.len(), turn, |index| {
            let target = &routes.targets[index];
            let place = &state.places[target.upstream];
            let has_room = place.in_flight < self.limits.share(target.upstream);
            (has_room && state.is_open(target, now)).then_some(Load {
                avoid: avoid == Some(target.upstream),
                in_flight: place.in_flight,
                weight: target.weight,
            })
        });
        let Some(index) = chosen else {
            return state.why_not(routes, now);
        };
        state.turn = turn.wrapping_add(1);
        let place = &mut state.places[routes.targets[index].upstream];
        place.in_flight += 1;
        place.health.begin();
        let era = place.health.era();
        drop(state);
        Acquired::Permit(Permit {
            pool: Arc::clone(self),
            routes: Arc::clone(routes),
            target: index,
            era,
            begun: now,
            held: true,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_open(&self, target: &Target, now: Instant) -> bool {
        self.places[target.upstream].health.is_open(now)
            && self.gates.closed_until(&target.gate, now).is_none()
    }

    fn why_not(&mut self, routes: &Routes, now: Instant) -> Acquired {
        let mut is_full = false;
        let mut until: Option<Instant> = None;
        for target in &routes.targets {
            if self.is_open(target, now) {
                is_full = true;
                self.places[target.upstream].starved = true;
            } else if let Some(opens) = self.opens(target, now) {
                until = Some(until.map_or(opens, |first| first.min(opens)));
            }
        }
        if is_full {
            Acquired::Full
        } else {
            Acquired::Closed { until }
        }
    }

    /// When a closed target opens by itself.
    fn opens(&self, target: &Target, now: Instant) -> Option<Instant> {
        let health = &self.places[target.upstream].health;
        let gate = self.gates.closed_until(&target.gate, now);
        match health.state() {
            UpstreamState::Up => gate,
            UpstreamState::Down => None,
            UpstreamState::Aside => health.due().max(gate),
        }
    }
}

impl Permit {
    /// The upstream's index, as [`Retry::upstream`](super::Retry::upstream) gives it.
    #[must_use]
    pub fn upstream(&self) -> usize {
        self.target().upstream
    }

    pub(super) fn target(&self) -> &Target {
        &self.routes.targets[self.target]
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let upstream = self.target().upstream;
        let mut state = self.pool.lock();
        let place = &mut state.places[upstream];
        place.in_flight -= 1;
        place.health.abandon(self.era);
        let is_up = place.health.state() == UpstreamState::Up;
        let wanted = std::mem::take(&mut place.starved);
        drop(state);
        self.pool.limits.landed();
        if wanted || !is_up {
            self.pool.changed.notify_one();
        }
    }
}

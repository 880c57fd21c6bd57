//! How upstreams and models are, as operators read it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::balance::Strategy;
use super::health::breaker::{Breaker, Room};
use super::health::reason::Reason;
use super::limits::concurrency::Limits;
use super::route::lane::Route;
use super::route::pack::Packed;
use super::route::{Lane, LaneId};
use super::settings::Spill;
use super::setup::{Server, Setup};
use super::target::upstream::{Key, Upstream};
use super::target::{Switch, Targets};

/// A model that is due for a trial is not listed any more when nobody has tried it for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// Nothing is known of it: no call has ended.
    Unknown,
    Up,
    /// It does not answer, or fails one line after the other.
    Down,
    /// It refuses our key or account, or is not where its address says.
    Ejected,
    /// The configuration or an operator says that no line is sent there.
    Disabled,
}

impl UpstreamState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::Unknown => "unknown",
            UpstreamState::Up => "up",
            UpstreamState::Down => "down",
            UpstreamState::Ejected => "ejected",
            UpstreamState::Disabled => "disabled",
        }
    }

    fn of(reason: Reason) -> Self {
        match reason {
            Reason::Limited => UpstreamState::Up,
            reason if reason.needs_a_person() => UpstreamState::Ejected,
            _ => UpstreamState::Down,
        }
    }
}

/// How an upstream is now.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    pub name: String,
    pub state: UpstreamState,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    /// How long until it is tried, where all of it is closed; zero where it may be.
    pub left: Duration,
    /// Whether the configuration says that lines are sent there.
    pub configured: bool,
    /// What an operator has set since, where that counts.
    pub set: Option<Switch>,
    /// It has answered something over HTTP since the process started.
    pub answered: bool,
    pub in_flight: usize,
    /// How many this process may have.
    pub share: usize,
    /// Its `concurrency`.
    pub limit: usize,
    /// Its models that take no lines now, or that are being tried.
    pub models: Vec<ClosedModel>,
    /// Its keys, where it has several.
    pub keys: Vec<KeyStatus>,
}

/// A key of several that an upstream has.
#[derive(Clone, Debug)]
pub struct KeyStatus {
    pub name: String,
    /// Up, or ejected: then calls are made with the others.
    pub state: UpstreamState,
    /// Why it is ejected, in words.
    pub cause: Option<String>,
    /// How long until it is tried; zero where it may be.
    pub left: Duration,
    pub in_flight: usize,
}

impl KeyStatus {
    /// `models`: those of the upstream that are closed. `seen`: how many are known with this key.
    fn of(name: &str, key: &Key, models: &[ClosedModel], seen: usize, now: Instant) -> Self {
        let of_key = |model: &&ClosedModel| model.key.as_deref() == Some(name);
        let closed = || models.iter().filter(of_key);
        // Where all its models are closed, so is the key.
        let together = closed().next().filter(|_| closed().count() == seen);
        let together = together.map(|model| (model.reason, model.cause.clone(), model.left));
        let whole = whole(&key.breaker, now).or(together);
        let (state, cause, left) = match whole {
            Some((reason, cause, left)) => (UpstreamState::of(reason), Some(cause), left),
            None => (UpstreamState::Up, None, Duration::ZERO),
        };
        Self {
            name: name.to_owned(),
            state,
            cause,
            left,
            in_flight: key.in_flight,
        }
    }
}

/// A model at an upstream that takes no lines now, or that is being tried.
#[derive(Clone, Debug)]
pub struct ClosedModel {
    /// What the upstream calls the model.
    pub model: String,
    /// By which of the upstream's keys, where it has several.
    pub key: Option<String>,
    pub reason: Reason,
    /// In words.
    pub cause: String,
    /// How long until a line is tried; zero where one may be.
    pub left: Duration,
}

/// Why and for how long a breaker lets nothing through, or lets one line try.
fn whole(breaker: &Breaker, now: Instant) -> Option<(Reason, String, Duration)> {
    if let Some(closure) = breaker.closure() {
        let left = closure.until.saturating_duration_since(now);
        return Some((closure.reason, closure.cause.clone(), left));
    }
    let (reason, cause) = breaker.last_refusal()?;
    Some((*reason, cause.clone(), Duration::ZERO))
}

/// How all upstreams are now.
pub(super) fn take(servers: &[Server], targets: &Targets) -> Vec<UpstreamStatus> {
    let now = Instant::now();
    let limits = targets.limits();
    let mut models: BTreeMap<usize, (Vec<ClosedModel>, BTreeMap<usize, usize>)> = BTreeMap::new();
    for backend in targets.backends.all(None) {
        let breaker = backend.breaker();
        let (closed, seen) = models.entry(backend.upstream()).or_default();
        let is_seen = breaker.closure().is_some() || breaker.evidence().has_succeeded();
        *seen.entry(backend.key()).or_default() += usize::from(is_seen);
        let closure = breaker.closure();
        // What nobody has tried for long, nobody cares for any more.
        let closure = closure.filter(|closure| closure.until + FORGOTTEN_AFTER > now);
        closed.extend(closure.map(|closure| ClosedModel {
            model: backend.model().to_owned(),
            key: backend.key_name().map(str::to_owned),
            reason: closure.reason,
            cause: closure.cause.clone(),
            left: closure.until.saturating_duration_since(now),
        }));
        if breaker.closure().is_none()
            && let Some((reason, cause)) = breaker.last_refusal()
        {
            closed.push(ClosedModel {
                model: backend.model().to_owned(),
                key: backend.key_name().map(str::to_owned),
                reason: *reason,
                cause: cause.clone(),
                left: Duration::ZERO,
            });
        }
    }
    targets.read(|states| {
        let status = servers.iter().map(|Server { number, client, .. }| {
            let upstream = &states[*number];
            let (mut models, seen) = models.remove(number).unwrap_or_default();
            models.sort_by(|a, b| (&a.model, &a.key).cmp(&(&b.model, &b.key)));
            let names = targets.backends.key_names(*number);
            let keys = names.iter().zip(upstream.keys()).enumerate();
            let keys: Vec<KeyStatus> = keys
                .map(|(place, (name, key))| {
                    let seen = seen.get(&place).copied().unwrap_or(0);
                    KeyStatus::of(name, key, &models, seen, now)
                })
                .collect();
            let whole = whole(upstream.breaker(), now).or_else(|| {
                // Where all its keys are refused, so is the upstream. The first one tells why.
                let mut refused = upstream.keys().iter().map(|key| whole(&key.breaker, now));
                let first = refused.next()??;
                refused.try_fold(first, |(reason, cause, left), other| {
                    Some((reason, cause, left.min(other?.2)))
                })
            });
            // Where all its models are closed, so is the upstream, whatever closed them.
            let together = models
                .first()
                .filter(|_| models.len() == seen.values().sum::<usize>());
            let first = models.iter().map(|model| model.left).min();
            let first = first.unwrap_or_default();
            let together = together.map(|model| (model.reason, model.cause.clone(), first));
            let (state, cause, left) = match whole.or(together) {
                Some((reason, cause, left)) => (UpstreamState::of(reason), Some(cause), left),
                None if upstream.is_unknown() => (UpstreamState::Unknown, None, Duration::ZERO),
                None => (UpstreamState::Up, None, Duration::ZERO),
            };
            let switched = upstream.switched();
            let (state, cause, left) = match switched.cause() {
                Some(cause) => (UpstreamState::Disabled, Some(cause), Duration::ZERO),
                None => (state, cause, left),
            };
            UpstreamStatus {
                name: client.name.as_ref().to_owned(),
                state,
                cause,
                left,
                configured: switched.configured(),
                set: switched.set().cloned(),
                answered: upstream.has_answered(),
                in_flight: Upstream::calls_at(states, *number),
                share: limits.share(*number),
                limit: limits.allowed(*number),
                models,
                keys,
            }
        });
        status.collect()
    })
}

/// Where the lines of a `[[models]]` entry go, or of all models where there is none.
#[derive(Clone, Debug)]
pub struct LaneStatus {
    pub id: LaneId,
    /// What the configuration calls it.
    pub name: String,
    /// The task that the lane is for. `None`: it is a model's.
    pub task: Option<String>,
    /// Whether only those lines of the task are the lane's that name one of its models.
    pub is_part: bool,
    pub balance: Strategy,
    pub spill: Spill,
    /// In the order in which they are considered: the lowest tier first.
    pub routes: Vec<RouteStatus>,
}

/// A route, and why it is passed over.
#[derive(Clone, Debug)]
pub struct RouteStatus {
    /// The upstream's name.
    pub upstream: String,
    /// What the upstream calls the model; `None`: what the line calls it.
    pub model: Option<String>,
    pub tier: u32,
    pub weight: u32,
    /// Calls at once by this route, where it has a limit of its own.
    pub calls: Option<RouteCalls>,
    /// `None`: it takes lines.
    pub skipped: Option<Skipped>,
    /// It was closed, and takes a line or a few to be tried. Other lines do not wait for it.
    pub is_trial: bool,
    /// How lines share calls, where they do.
    pub packed: Option<Packed>,
}

/// The calls of a route that has a limit.
#[derive(Clone, Copy, Debug)]
pub struct RouteCalls {
    pub in_flight: usize,
    /// How many this process may have.
    pub share: usize,
    /// How many all processes may have together.
    pub limit: usize,
}

/// Why lines do not go by a route now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// It refuses our key or account, or is not where its address says. `left`: until it is tried.
    Ejected { left: Duration },
    /// It does not answer, or fails one line after the other. `left`: until it is tried.
    Down { left: Duration },
    /// It asked to be left alone for so long, or takes nothing now because of a rate limit.
    Cooldown { left: Duration },
    /// As many calls are in flight as may be: of the upstream, of the route, or as it takes now.
    Full,
    /// A rate limit that is configured is spent. `left`: until something of it is free.
    Limit { left: Duration },
    /// A lower tier takes the lines.
    Tier,
    /// The configuration or an operator has disabled the upstream.
    Disabled,
}

impl Skipped {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Skipped::Ejected { .. } => "ejected",
            Skipped::Down { .. } => "down",
            Skipped::Cooldown { .. } => "cooldown",
            Skipped::Full => "full",
            Skipped::Limit { .. } => "limit",
            Skipped::Tier => "tier",
            Skipped::Disabled => "disabled",
        }
    }

    /// How long until a line is tried there, where that is known.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        match self {
            Skipped::Ejected { left }
            | Skipped::Down { left }
            | Skipped::Cooldown { left }
            | Skipped::Limit { left } => Some(left),
            Skipped::Full | Skipped::Tier | Skipped::Disabled => None,
        }
    }

    fn of(breaker: &Breaker, now: Instant) -> Option<Self> {
        if matches!(breaker.room(now), Room::Open { .. }) {
            return None;
        }
        let Some(closure) = breaker.closure() else {
            return Some(Skipped::Full);
        };
        let left = closure.until.saturating_duration_since(now);
        Some(match UpstreamState::of(closure.reason) {
            UpstreamState::Ejected => Skipped::Ejected { left },
            UpstreamState::Down => Skipped::Down { left },
            UpstreamState::Up | UpstreamState::Unknown | UpstreamState::Disabled => {
                Skipped::Cooldown { left }
            }
        })
    }
}

/// Where the lines of all lanes go now, in the order of the configuration.
pub(super) fn lanes(setup: &Setup, targets: &Targets) -> Vec<LaneStatus> {
    let look = Look {
        setup,
        targets,
        limits: targets.limits(),
        by_route: targets.in_flight_by_route(),
        now: Instant::now(),
    };
    targets.read(|upstreams| {
        let lanes = setup.routing.lanes().iter().map(|lane| {
            let routes = lane.routes.iter();
            let routes = routes.map(|route| look.at_route(lane, route, upstreams));
            let mut routes: Vec<RouteStatus> = routes.collect();
            pass_over_higher_tiers(&mut routes, lane.spill);
            let of_task = lane.task.as_ref();
            LaneStatus {
                id: lane.id,
                name: lane.name.clone(),
                task: of_task.map(|task| task.name.clone()),
                is_part: of_task.is_some_and(|task| task.model.is_some()),
                balance: lane.strategy,
                spill: lane.spill,
                routes,
            }
        });
        lanes.collect()
    })
}

/// A look at all routes.
struct Look<'a> {
    setup: &'a Setup,
    targets: &'a Targets,
    limits: Arc<Limits>,
    by_route: Vec<usize>,
    now: Instant,
}

impl Look<'_> {
    fn at_route(&self, lane: &Lane, route: &Route, upstreams: &[Upstream]) -> RouteStatus {
        let Look { targets, now, .. } = *self;
        let of_lane = lane.prefix().is_none().then_some(lane.name.as_str());
        let model = route.rename.as_deref().or(of_lane);
        let upstream = &upstreams[route.upstream];
        let calls = route.limit.map(|limit| RouteCalls {
            in_flight: self.by_route.get(limit.number).copied().unwrap_or(0),
            share: self.limits.of_route(limit.number),
            limit: limit.concurrency,
        });
        let in_flight = Upstream::calls_at(upstreams, route.upstream);
        let is_full = in_flight >= self.limits.share(route.upstream)
            || calls.is_some_and(|calls| calls.in_flight >= calls.share);
        let mut ways = route.rate_limits.iter().enumerate().map(|(key, limits)| {
            let backend = model.and_then(|model| targets.backends.find(route.upstream, key, model));
            let backend = backend.as_ref().map(|backend| backend.breaker());
            let breakers: Vec<&Breaker> = upstream
                .breakers_by(key)
                .chain(backend.as_deref())
                .collect();
            let is_trial = breakers.iter().any(|breaker| breaker.closure().is_some());
            let skipped = breakers.iter().find_map(|one| Skipped::of(one, now));
            let spent = targets.rates.spent_for(now, limits);
            (
                skipped.or(spent.map(|left| Skipped::Limit { left })),
                is_trial,
            )
        });
        // Lines go by the best of its keys.
        let first = ways.next().unwrap_or_default();
        let (skipped, is_trial) = ways.fold(first, |best, other| match (best.0, other.0) {
            (None, _) if !best.1 => best,
            (_, None) => other,
            (Some(one), Some(two)) if two.left() < one.left() => other,
            _ => best,
        });
        let is_disabled = upstream.switched().is_disabled();
        let disabled = is_disabled.then_some(Skipped::Disabled);
        let skipped = disabled.or(skipped);
        let mut servers = self.setup.upstreams.iter();
        let server = servers.find(|one| one.number == route.upstream);
        RouteStatus {
            upstream: server.map_or("", |one| &one.client.name).to_owned(),
            model: model.map(str::to_owned),
            tier: route.tier,
            weight: route.weight,
            calls,
            skipped: skipped.or(is_full.then_some(Skipped::Full)),
            is_trial,
            packed: route.pack.as_ref().map(|pack| pack.packed()),
        }
    }
}

/// Marks the routes that would take lines if no lower tier did.
fn pass_over_higher_tiers(routes: &mut [RouteStatus], spill: Spill) {
    let takes = |route: &RouteStatus| match (&route.skipped, spill) {
        // Whatever the lowest tier is like, the next one takes late lines alone.
        (_, Spill::Late) => true,
        _ if route.is_trial => false,
        (None, _) | (Some(Skipped::Full | Skipped::Limit { .. }), Spill::Closed) => true,
        (Some(_), _) => false,
    };
    let used = routes.iter().find(|route| takes(route));
    let Some(used) = used.map(|route| route.tier) else {
        return;
    };
    let higher = routes.iter_mut().filter(|route| route.tier > used);
    for route in higher.filter(|route| matches!(route.skipped, None | Some(Skipped::Full))) {
        route.skipped = Some(Skipped::Tier);
    }
}

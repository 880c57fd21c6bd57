//! Questions that change nothing: what is open, and what works.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backend::Backend;
use super::targets::{State, Targets};
use super::upstream::Upstream;
use crate::upstream::health::breaker::{Breaker, Room};
use crate::upstream::health::reason::Reason;
use crate::upstream::limits::concurrency::Limits;
use crate::upstream::route::{Routes, Target, Tier};
use crate::upstream::settings::Spill;

/// A breaker that let a call begin within this time counts as open. Callers ask once a second.
const RECENT: Duration = Duration::from_secs(2);

impl Targets {
    /// Whether lines could be sent, if there were places.
    #[must_use]
    pub fn is_open(&self, routes: &Routes) -> bool {
        self.lock().any_open(&routes.targets, Instant::now())
    }

    /// Whether lines can be sent, or could be sent a moment ago. A target that opens and closes by
    /// turns does take lines, and a caller that asks once a second must not take it for closed.
    #[must_use]
    pub fn was_open(&self, routes: &Routes) -> bool {
        let now = Instant::now();
        let is_recent = |target: &Target| {
            let mut backends = target.backends();
            backends.any(|backend| {
                let started = backend.breaker().last_start();
                started.is_some_and(|at| now.duration_since(at) < RECENT)
            })
        };
        (self.is_open(routes) || routes.targets.iter().any(is_recent)) && !self.are_spent(routes)
    }

    /// Since when all targets are closed. `None` while any of them is open.
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
            let upstream = &state.upstreams[target.upstream];
            let by_operators = upstream.switched().disabled_since();
            for backend in target.backends() {
                let breakers = upstream.breakers_by(backend.key());
                let of_backend = since(&backend.breaker());
                let of_all = breakers.filter_map(since).chain(of_backend);
                latest = latest.max(by_operators.into_iter().chain(of_all).min());
            }
        }
        latest
    }

    /// Whether no target is known to work: each is closed, or open for a trial only. A target that
    /// is full works.
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

    /// Whether calls succeed at any target, as far as this process knows.
    #[must_use]
    pub fn works(&self, routes: &Routes) -> bool {
        let state = self.lock();
        let mut targets = routes.targets.iter();
        targets.any(|target| {
            let upstream = &state.upstreams[target.upstream];
            let works = |backend: &Arc<Backend>| {
                let mut breakers = upstream.breakers_by(backend.key());
                breakers.all(|breaker| breaker.closure().is_none()) && backend.breaker().works()
            };
            !upstream.switched().is_disabled() && target.backends().any(works)
        })
    }

    /// Whether this process has a share of the limits of any open target, or, while all are closed,
    /// of any other: a target may open and close by turns. The share may be used up.
    #[must_use]
    pub fn has_share(&self, routes: &Routes) -> bool {
        let of_closed = || self.share_where(routes, |_, _| true);
        self.any_share(routes).or_else(of_closed) == Some(true)
    }

    /// Whether other processes have the whole limit of the model, or of every open upstream.
    #[must_use]
    pub fn lacks_share(&self, routes: &Routes) -> bool {
        self.any_share(routes) == Some(false)
    }

    /// Whether this process has a share of the limits of any target that lines could go to now.
    /// `None`: there is no such target, in whatever process.
    fn any_share(&self, routes: &Routes) -> Option<bool> {
        let now = Instant::now();
        self.share_where(routes, |state, target| state.is_open(target, now))
    }

    /// Whether this process has a share of the limits of any of these targets. `None`: there are
    /// none.
    fn share_where(
        &self,
        routes: &Routes,
        counts: impl Fn(&State, &Target) -> bool,
    ) -> Option<bool> {
        let in_reach = self.in_reach(routes);
        let state = self.lock();
        // A window may have no place at all.
        let takes = |target: &&Target| state.allowed(target) > 0 && counts(&state, target);
        // A process that could only send lines to the next tier would pay for all of them.
        let lowest = routes.tiers.first().filter(|_| routes.spill_late());
        let lowest = lowest.map(|tier| &routes.targets[tier.targets.clone()]);
        let lowest = lowest.filter(|targets| targets.iter().any(|target| takes(&target)));
        let takers = lowest.unwrap_or(in_reach).iter().filter(takes);
        let has_share = takers.map(|target| state.share(target) > 0);
        let has_share = has_share.reduce(|one, other| one || other);
        has_share.map(|has_share| has_share && state.limits.lane(routes.lane) > 0)
    }

    /// When the first of the closed models and upstreams may be tried.
    pub(in crate::upstream) fn next_opening(&self, now: Instant) -> Option<Instant> {
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
            let upstreams = upstreams.iter().filter(|one| !one.is_gone);
            let breakers = upstreams.flat_map(Upstream::breakers);
            let of_upstreams = breakers.filter_map(opens);
            of_upstreams.chain(of_backends).min()
        })
    }

    /// When an upstream is to be probed. `None`: it can be reached, or is disabled.
    pub(in crate::upstream) fn probe_due(&self, upstream: usize) -> Option<Instant> {
        self.read(|upstreams| {
            let one = &upstreams[upstream];
            let closure = one.breaker().closure();
            let closure = closure.filter(|_| !one.switched().is_disabled());
            let closure = closure.filter(|closure| closure.reason == Reason::Unreachable);
            closure.map(|closure| closure.until)
        })
    }

    /// The first key of an upstream that is not set aside, by its number.
    pub(in crate::upstream) fn key_to_ask_with(&self, upstream: usize) -> usize {
        self.read(|upstreams| {
            let mut keys = upstreams[upstream].keys().iter();
            let open = keys.position(|key| key.breaker.closure().is_none());
            open.unwrap_or(0)
        })
    }

    /// The places of these limits, in [`Limits::all`], of the targets that lines may go to. Those
    /// of a tier that is not used now are none of them.
    pub fn limits_in_reach(&self, limits: &Limits, routes: &Routes) -> impl Iterator<Item = usize> {
        let own = limits.of_lane(routes.lane);
        let targets = self.in_reach(routes).iter();
        let all = targets.flat_map(move |target| limits_of(limits, target));
        all.filter(move |limit| own != Some(*limit))
    }

    /// The targets that lines may go to: those of the tier that is used now, and of the tiers
    /// below, whose lines wait for them to open.
    pub(super) fn in_reach<'r>(&self, routes: &'r Routes) -> &'r [Target] {
        if routes.spill != Spill::Closed || routes.tiers.len() < 2 {
            return &routes.targets;
        }
        let state = self.lock();
        let is_used = |tier: &&Tier| {
            let mut targets = routes.targets[tier.targets.clone()].iter();
            targets.any(|target| state.is_proven(target))
        };
        let used = routes.tiers.iter().find(is_used);
        used.map_or(&routes.targets, |tier| &routes.targets[..tier.targets.end])
    }
}

impl State {
    /// How many calls at once this process may have in flight at a target.
    fn share(&self, target: &Target) -> usize {
        let limits = limits_of(&self.limits, target);
        let shares = limits.map(|limit| self.limits.share(limit));
        shares.fold(usize::MAX, usize::min)
    }

    /// How many calls at once all processes may have in flight at a target.
    fn allowed(&self, target: &Target) -> usize {
        let limits = limits_of(&self.limits, target);
        let allowed = limits.map(|limit| self.limits.allowed(limit));
        allowed.fold(usize::MAX, usize::min)
    }
}

/// The places of the limits that bound the calls to a target: of its route, of its window, of its
/// model, and of its upstream.
fn limits_of(limits: &Limits, target: &Target) -> impl Iterator<Item = usize> + use<> {
    let of_route = target.limit.map(|limit| limits.routes().start + limit);
    let window = target.window.map(|window| limits.windows().start + window);
    let of_model = limits.configured_of_lane(target.lane);
    let all = [of_route, window, of_model, Some(target.upstream)];
    all.into_iter().flatten()
}

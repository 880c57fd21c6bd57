//! Before a call: which target takes the line, or why none does.

use std::sync::Arc;

use tokio::time::Instant;

use super::permit::Permit;
use super::targets::{State, Targets};
use super::upstream::Upstream;
use crate::upstream::attempt::history::History;
use crate::upstream::balance::speed::Speed;
use crate::upstream::balance::{Avoid, Candidates, Load};
use crate::upstream::health::breaker::Room;
use crate::upstream::limits::concurrency::Limits;
use crate::upstream::route::{Routes, Target};
use crate::upstream::settings::Spill;

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

/// The targets of a tier, for one line.
struct ForLine<'a> {
    targets: &'a [Target],
    upstreams: &'a [Upstream],
    /// Calls in flight by the routes that have a limit.
    by_route: &'a [usize],
    limits: &'a Limits,
    history: &'a History,
    /// What the line avoids more than this does not take it.
    most: Avoid,
    now: Instant,
}

impl Candidates for ForLine<'_> {
    fn count(&self) -> usize {
        self.targets.len()
    }

    fn load(&self, index: usize) -> Option<Load> {
        let target = &self.targets[index];
        let upstream = target.backend.upstream();
        let one = &self.upstreams[upstream];
        let has_room = |limit: usize| self.by_route[limit] < self.limits.of_route(limit);
        let has_place =
            one.in_flight() < self.limits.share(upstream) && target.limit.is_none_or(has_room);
        if !has_place {
            return None;
        }
        let avoid = self.history.avoids(&target.backend);
        let room = one.room(&target.backend.breaker(), self.now);
        let takes = matches!(room, Room::Open { .. }) && avoid <= self.most;
        takes.then_some(Load {
            avoid,
            in_flight: one.in_flight(),
            weight: target.weight,
        })
    }

    fn speed(&self, index: usize) -> Speed {
        *self.targets[index].backend.speed()
    }
}

impl Targets {
    /// A free place at the best open target, or why there is none. Never blocks. `history`: what the
    /// line has been through, which says what it avoids. `batch`: the number of the line's batch.
    pub(in crate::upstream) fn try_acquire(
        self: &Arc<Self>,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
    ) -> Acquired {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(index) = self.choose(state, routes, history, now) else {
            return state.why_not(routes, now);
        };
        state.begun = state.begun.wrapping_add(1);
        let target = &routes.targets[index];
        if let Some(limit) = target.limit {
            state.by_route[limit] += 1;
        }
        let backend = &target.backend;
        let upstream = &mut state.upstreams[backend.upstream()];
        let flight = upstream.on_start(&mut backend.breaker(), now, batch);
        drop(guard);
        let (targets, routes) = (Arc::clone(self), Arc::clone(routes));
        Acquired::Permit(Permit::new(targets, routes, index, flight))
    }

    /// The target that takes the line, by its place among the routes' targets.
    fn choose(
        &self,
        state: &mut State,
        routes: &Routes,
        history: &History,
        now: Instant,
    ) -> Option<usize> {
        if state.is_hopeless() {
            return None;
        }
        let found = self.choose_up_to(Avoid::SameTarget, state, routes, (history, now));
        if found.is_none() && history.misses_its_model() {
            // Rather than to hold up the lines behind it, the line is told so once more.
            return self.choose_up_to(Avoid::ModelMissing, state, routes, (history, now));
        }
        found
    }

    /// A target of the lowest tier that has a place, as far as the lane lets lines go to higher ones.
    fn choose_up_to(
        &self,
        most: Avoid,
        state: &mut State,
        routes: &Routes,
        (history, now): (&History, Instant),
    ) -> Option<usize> {
        let last = routes.tiers.len().saturating_sub(1);
        for (place, tier) in routes.tiers.iter().enumerate() {
            let targets = &routes.targets[tier.targets.clone()];
            let for_line = ForLine {
                targets,
                upstreams: &state.upstreams,
                by_route: &state.by_route,
                limits: &self.limits,
                history,
                most,
                now,
            };
            if let Some(chosen) = state.balancers[tier.number].choose(&for_line, now) {
                return Some(tier.targets.start + chosen);
            }
            let waits_for = |target: &Target| {
                state.is_proven(target) && history.avoids(&target.backend) <= most
            };
            if place < last && routes.spill == Spill::Closed && targets.iter().any(waits_for) {
                return None;
            }
        }
        None
    }
}

impl State {
    /// Why no target takes a line. Where places are full, the next one that is freed is announced.
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

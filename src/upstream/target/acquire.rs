//! Before a call: which target takes the line, or why none does.

use std::sync::Arc;

use tokio::time::Instant;

use super::permit::Permit;
use super::targets::{State, Targets};
use crate::upstream::balance::Load;
use crate::upstream::health::breaker::Room;
use crate::upstream::route::Routes;

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

impl Targets {
    /// A free place at the best open target, or why there is none. Never blocks. `avoid`: the
    /// upstream of the last failed attempt, which is not chosen while another one has a place.
    /// `batch`: the number of the line's batch.
    pub(in crate::upstream) fn try_acquire(
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
        let (targets, routes) = (Arc::clone(self), Arc::clone(routes));
        Acquired::Permit(Permit::new(targets, routes, index, flight))
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

//! Before a call: which target takes the line, or why none does.

use std::sync::Arc;

use tokio::time::Instant;

use super::kept::Kept;
use super::permit::Permit;
use super::targets::{Counts, State, Targets};
use super::upstream::Upstream;
use crate::upstream::attempt::history::History;
use crate::upstream::balance::speed::Speed;
use crate::upstream::balance::{Avoid, Candidates, Load};
use crate::upstream::health::breaker::Room;
use crate::upstream::limits::concurrency::Limits;
use crate::upstream::limits::rate::{Gate, RateRequest, Standing};
use crate::upstream::route::{ByKey, Routes, Target};
use crate::upstream::settings::Spill;

/// Whether a line can be sent now.
#[derive(Debug)]
pub enum Acquired {
    Permit(Permit),
    /// No open upstream has a place: one will be freed.
    Full,
    /// Only rate limits keep the line. `until`: when it may be sent, if that is known.
    Limited {
        until: Option<Instant>,
    },
    /// Only rate limits of the line's tenant keep the line: lines of others may be sent. `until`:
    /// as above.
    TenantLimited {
        until: Option<Instant>,
    },
    /// The line needs more than a whole rate limit, wherever it goes. Why, in words for its user.
    TooLarge(String),
    /// No upstream is open. `until`: when the first one opens by itself, if that is known.
    Closed {
        until: Option<Instant>,
    },
}

/// How far a line may go where the routes' `spill` is `late`. Elsewhere it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::upstream) enum Reach {
    /// To the lowest tier that could ever take the line.
    Lowest,
    /// To any tier.
    Any,
}

/// The targets of a tier, for one line.
struct ForLine<'a> {
    targets: &'a [Target],
    counts: Counts<'a>,
    limits: &'a Limits,
    line: &'a Line<'a>,
    /// What the line avoids more than this does not take it.
    most: Avoid,
}

/// A line that asks for a place.
struct Line<'a> {
    history: &'a History,
    /// What rate limits say of the line, where its routes have any.
    gate: Option<&'a Gate<'a>>,
    now: Instant,
    reach: Reach,
    /// Some of the routes cannot take the line, so places are kept for it at the others.
    is_restricted: bool,
    /// The routes lead to one target only.
    has_one_target: bool,
    /// Some breaker may be closed or have a window, or an upstream is disabled.
    is_troubled: bool,
}

impl Line<'_> {
    /// What is kept from the line at a target, for lines that can go nowhere else. Nothing is kept
    /// from such a line itself.
    fn kept(&self, target: &Target, upstreams: &[Upstream]) -> Kept {
        if self.is_restricted || self.has_one_target {
            return Kept::default();
        }
        upstreams[target.upstream].kept.beside(target, self.now)
    }

    /// How much the line avoids a target by its best key.
    fn avoids(&self, target: &Target) -> Avoid {
        let avoids = target.backends().map(|one| self.history.avoids(one));
        avoids.min().unwrap_or(Avoid::No)
    }

    /// Whether the line needs more than a whole rate limit of a target. Those of all keys are
    /// alike.
    fn is_too_large(&self, target: &Target) -> bool {
        let is_so = |gate: &Gate<'_>| {
            let limits = &target.by_key[0].rate_limits;
            matches!(
                gate.standing(limits, target.tokens(gate.size)),
                Standing::Never(_)
            )
        };
        self.gate.is_some_and(is_so)
    }
}

impl ForLine<'_> {
    /// What is kept from the line at a target.
    fn kept(&self, target: &Target) -> Kept {
        self.line.kept(target, self.counts.upstreams)
    }

    /// The key by which the line goes to a target, and how much it avoids that. `None`: it cannot
    /// go there now.
    fn key(&self, target: &Target, kept: Kept) -> Option<(usize, Avoid)> {
        let (line, one) = (self.line, &self.counts.upstreams[target.upstream]);
        let gate = line.gate.map(|gate| (gate, target.tokens(gate.size)));
        let takes = |key: usize| {
            let ByKey {
                backend,
                rate_limits,
            } = &target.by_key[key];
            let is_open = !line.is_troubled || {
                let room = one.room_beside(kept, key, &backend.breaker(), line.now);
                matches!(room, Room::Open { .. })
            };
            is_open && gate.is_none_or(|(gate, tokens)| gate.fits(rate_limits, tokens))
        };
        let rank = |key: usize| {
            let avoid = line.history.avoids(&target.by_key[key].backend);
            (avoid, one.load_of_key(key), key)
        };
        // One key after the other, the best first: nearly always that one takes the line.
        let mut passed = None;
        loop {
            let ranks = (0..target.by_key.len()).map(rank);
            let left = ranks.filter(|rank| rank.0 <= self.most && Some(*rank) > passed);
            let best @ (avoid, _, key) = left.min()?;
            if takes(key) {
                return Some((key, avoid));
            }
            passed = Some(best);
        }
    }
}

impl Candidates for ForLine<'_> {
    fn count(&self) -> usize {
        self.targets.len()
    }

    fn load(&self, index: usize) -> Option<Load> {
        let target = &self.targets[index];
        let kept = self.kept(target);
        if !has_place(target, self.counts, self.limits, kept) {
            return None;
        }
        let (_, avoid) = self.key(target, kept)?;
        Some(Load {
            avoid,
            in_flight: self.counts.upstreams[target.upstream].in_flight(),
            weight: target.weight,
        })
    }

    fn speed(&self, index: usize) -> Speed {
        *self.targets[index].by_key[0].backend.speed()
    }
}

impl Targets {
    /// A free place at the best open target, or why there is none. Never blocks. `history`: what
    /// the line has been through, which says what it avoids. `batch`: the number of the line's
    /// batch.
    /// `rates`: what rate limits are asked, where the line's routes or its tenant have any.
    pub(in crate::upstream) fn try_acquire(
        self: &Arc<Self>,
        routes: &Arc<Routes>,
        history: &History,
        batch: u64,
        rates: Option<RateRequest<'_>>,
        reach: Reach,
    ) -> Acquired {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut gate = rates.map(|request| {
            let queue = Arc::as_ptr(routes).addr();
            self.rates.gate(now, queue, request)
        });
        let line = Line {
            history,
            gate: gate.as_ref(),
            now,
            reach,
            is_restricted: history.misses_its_model(),
            has_one_target: routes.targets.len() == 1,
            is_troubled: self.is_troubled(),
        };
        let (index, key) = match state.choose(routes, &line) {
            Ok(chosen) => chosen,
            Err(reach) => {
                let why = state.why_not(routes, now);
                return match &mut gate {
                    Some(gate) => self.limited(state, routes, reach, gate).unwrap_or(why),
                    None => why,
                };
            }
        };
        state.begun = state.begun.wrapping_add(1);
        let is_restricted = line.is_restricted;
        let target = &routes.targets[index];
        if let Some(limit) = target.limit {
            state.by_route[limit] += 1;
        }
        let stamp = target.window.map(|window| {
            let room = state.limits.of_window(window);
            state.meters[window].start(room)
        });
        state.by_lane[target.lane.index()] += 1;
        let charges = gate.map(|gate| {
            let tokens = target.tokens(gate.size);
            Box::new(gate.take(&target.by_key[key].rate_limits, tokens))
        });
        let backend = &target.by_key[key].backend;
        let upstream = &mut state.upstreams[target.upstream];
        if is_restricted && history.avoids(backend) <= Avoid::SameTarget {
            upstream.kept.take(target);
        }
        let flight = upstream.on_start(key, &mut backend.breaker(), now, batch);
        drop(guard);
        let (targets, routes) = (Arc::clone(self), Arc::clone(routes));
        Acquired::Permit(Permit::new(
            targets,
            (routes, index, key),
            (flight, stamp),
            charges,
        ))
    }
}

/// Whether fewer calls are in flight at a target than may be, beside the places that are kept.
pub(super) fn has_place(target: &Target, counts: Counts<'_>, limits: &Limits, kept: Kept) -> bool {
    let upstream = target.upstream;
    let by_route = |limit: usize| counts.by_route[limit] + kept.of_route < limits.of_route(limit);
    let in_window = |window: usize| {
        let in_flight = counts.meters[window].in_flight();
        in_flight + kept.of_window < limits.of_window(window)
    };
    let by_lane = counts.by_lane[target.lane.index()];
    let of_lane = |calls: usize| by_lane + kept.of_lane < calls;
    Upstream::calls_at(counts.upstreams, upstream) + kept.of_upstream < limits.share(upstream)
        && target.limit.is_none_or(by_route)
        && target.window.is_none_or(in_window)
        && limits.of_model(target.lane).is_none_or(of_lane)
}

impl State {
    /// The target that takes the line, by its place among the routes' targets, and the key of its
    /// upstream. Where none does: how many of these targets the line may go to at present.
    fn choose(&mut self, routes: &Routes, line: &Line<'_>) -> Result<(usize, usize), usize> {
        if self.is_hopeless() {
            return Err(0);
        }
        let found = self.choose_up_to(Avoid::SameTarget, routes, line);
        if found.is_err() && line.is_restricted {
            // Rather than to hold up the lines behind it, the line is told so once more, and waits.
            return self.choose_up_to(Avoid::ModelMissing, routes, line);
        }
        found
    }

    /// A target of the lowest tier that has a place, as far as the lane lets lines go to higher
    /// ones.
    fn choose_up_to(
        &mut self,
        most: Avoid,
        routes: &Routes,
        line: &Line<'_>,
    ) -> Result<(usize, usize), usize> {
        let last = routes.tiers.len().saturating_sub(1);
        for (place, tier) in routes.tiers.iter().enumerate() {
            let targets = &routes.targets[tier.targets.clone()];
            let for_line = ForLine {
                targets,
                counts: Counts {
                    upstreams: &self.upstreams,
                    by_route: &self.by_route,
                    by_lane: &self.by_lane,
                    meters: &self.meters,
                },
                limits: &self.limits,
                line,
                most,
            };
            let chosen = self.balancers[tier.number].choose(&for_line, line.now);
            // What other processes say may close a key between the two looks.
            let chosen = chosen.and_then(|chosen| {
                let target = &targets[chosen];
                let key = if target.by_key.len() == 1 {
                    0
                } else {
                    for_line.key(target, for_line.kept(target))?.0
                };
                Some((tier.targets.start + chosen, key))
            });
            if let Some(chosen) = chosen {
                return Ok(chosen);
            }
            let could_take =
                |target: &Target| line.avoids(target) <= most && !line.is_too_large(target);
            let waits_for = |target: &Target| match routes.spill {
                Spill::Full => false,
                Spill::Closed => self.is_proven(target) && could_take(target),
                // A tier that is closed opens again: until then its lines wait.
                Spill::Late => line.reach == Reach::Lowest && could_take(target),
            };
            if place < last && targets.iter().any(waits_for) {
                return Err(tier.targets.end);
            }
        }
        Err(routes.targets.len())
    }

    /// A line that some of its routes cannot take pauses. Where those that can are full, the next
    /// place at one of them is kept. True if it is kept for this line.
    pub(super) fn keep_a_place(
        &mut self,
        routes: &Routes,
        history: &History,
        now: Instant,
    ) -> bool {
        let limits = Arc::clone(&self.limits);
        let could_take = |target: &&Target| {
            let mut backends = target.backends();
            backends.any(|one| history.avoids(one) <= Avoid::SameTarget)
                && limits.share(target.upstream) > 0
        };
        for tier in &routes.tiers {
            let able = || {
                let targets = routes.targets[tier.targets.clone()].iter();
                targets.filter(could_take)
            };
            let mut open = able().filter(|target| self.is_open(target, now));
            let Some(first) = open.next() else {
                // No line spills late while a lower tier could ever take it.
                if routes.spill == Spill::Late && able().next().is_some() {
                    return false;
                }
                continue;
            };
            let counts = self.counts();
            let has_room = |target: &Target| {
                has_place(target, counts, &limits, Kept::default())
                    && matches!(self.room(target, now), Room::Open { .. })
            };
            let is_full = !std::iter::once(first).chain(open).any(has_room);
            return is_full && self.upstreams[first.upstream].kept.keep(first, now);
        }
        false
    }

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
                    self.upstreams[target.upstream].want();
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

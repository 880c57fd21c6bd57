//! The right to make one call, and the place that the call takes at an upstream.

use std::sync::Arc;

use tokio::time::Instant;

use super::backend::Backend;
use super::targets::Targets;
use super::upstream::Flight;
use crate::upstream::attempt::bill::Tariff;
use crate::upstream::limits::auto::{Ending, Stamp};
use crate::upstream::limits::rate::{Charges, LineSize};
use crate::upstream::route::{ByKey, Routes, Target};
use crate::upstream::settings::PackLimits;

/// A place at an upstream. A permit that is dropped gives the place back.
#[derive(Debug)]
pub struct Permit {
    pub(super) targets: Arc<Targets>,
    pub(super) routes: Arc<Routes>,
    /// Which of the routes' targets, and which key of its upstream.
    target: usize,
    key: usize,
    pub(super) flight: Flight,
    /// What the call's window is told of it, where there is one.
    pub(super) stamp: Option<Stamp>,
    /// The place is not given back yet.
    pub(super) is_held: bool,
    /// What rate limits were charged for the call.
    pub(super) charges: Option<Box<Charges>>,
    /// The request may have left this process.
    pub(super) is_sent: bool,
}

impl Permit {
    /// For a call that has been started: `flight`, `stamp`.
    pub(super) fn new(
        targets: Arc<Targets>,
        (routes, target, key): (Arc<Routes>, usize, usize),
        (flight, stamp): (Flight, Option<Stamp>),
        charges: Option<Box<Charges>>,
    ) -> Self {
        Self {
            targets,
            routes,
            target,
            key,
            flight,
            stamp,
            is_held: true,
            charges,
            is_sent: false,
        }
    }

    /// The upstream's number.
    #[must_use]
    pub fn upstream(&self) -> usize {
        self.target().upstream
    }

    /// The number of the key among the upstream's keys.
    pub(in crate::upstream) fn key(&self) -> usize {
        self.key
    }

    /// Whether the place is at a tier above the lowest.
    #[must_use]
    pub fn is_above_lowest_tier(&self) -> bool {
        let lowest = self.routes.tiers.first();
        lowest.is_some_and(|tier| self.target >= tier.targets.end)
    }

    /// At which its call is billed.
    #[must_use]
    pub fn tariff(&self) -> &Arc<Tariff> {
        &self.target().tariff
    }

    pub(in crate::upstream) fn target(&self) -> &Target {
        &self.routes.targets[self.target]
    }

    /// Which of the routes' targets.
    pub(super) fn place(&self) -> usize {
        self.target
    }

    /// The target, as the key leads there.
    pub(super) fn by_key(&self) -> &ByKey {
        &self.target().by_key[self.key]
    }

    pub(in crate::upstream) fn backend(&self) -> &Arc<Backend> {
        &self.by_key().backend
    }

    /// The call waits for its turn.
    pub(in crate::upstream) fn pause(&mut self) {
        let upstream = self.upstream();
        let mut state = self.targets.lock();
        state.upstreams[upstream].on_pause(&mut self.flight);
    }

    /// The call's turn has come.
    pub(in crate::upstream) fn resume(&mut self) {
        let upstream = self.upstream();
        let mut state = self.targets.lock();
        state.upstreams[upstream].on_resume(&mut self.flight, Instant::now());
    }

    /// Whether rate limits bound the call.
    pub(in crate::upstream) fn is_rate_limited(&self) -> bool {
        self.charges.is_some()
    }

    /// Whether the request may have left this process.
    pub(in crate::upstream) fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// How much lines that share the call have together at most. `None`: none shares it.
    #[must_use]
    pub fn pack_limits(&self) -> Option<PackLimits> {
        self.target().pack_limits()
    }

    /// Another line of `/v1/embeddings` is to share the call, whose input has so many bytes. False
    /// if a rate limit does not let it: then nothing is charged.
    pub fn extend(&mut self, bytes: u64) -> bool {
        let size = LineSize {
            bytes,
            is_input_only: true,
            ..LineSize::default()
        };
        let tokens = self.by_key().backend.estimate(size);
        let queue = Arc::as_ptr(&self.routes).addr();
        let Some(charges) = &mut self.charges else {
            return true;
        };
        let rates = &self.targets.rates;
        rates.extend(Instant::now(), queue, charges, (bytes, tokens))
    }

    /// So many lines share the call.
    pub fn count_lines(&self, lines: usize) {
        if let Some((pack, counted)) = &self.target().pack {
            pack.count(lines);
            counted.sent(lines);
        }
    }

    /// The request is sent from now on.
    pub(in crate::upstream) fn send(&mut self) {
        self.is_sent = true;
    }

    /// When the call began, or when its turn came.
    pub(in crate::upstream) fn begun(&self) -> Instant {
        self.flight.begun
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_held {
            self.targets.abandon(self);
        }
    }
}

impl Targets {
    /// A call was broken off before it showed anything.
    fn abandon(&self, permit: &Permit) {
        self.settle(permit, None);
        let backend = permit.backend();
        let mut state = self.lock();
        state.free(permit.target());
        if let Some((window, stamp)) = permit.target().window.zip(permit.stamp) {
            state.meters[window].end(stamp, Ending::Other);
        }
        let upstream = &mut state.upstreams[backend.upstream()];
        let changes = upstream.on_finish(permit.key, &mut backend.breaker(), permit.flight, None);
        drop(state);
        self.sharing.on_finish();
        if changes.frees_a_place {
            self.changed.notify_one();
        }
        if changes.is_drained {
            self.drained.notify_one();
        }
    }
}

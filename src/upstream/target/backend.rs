//! A model at an upstream: what is remembered of it, whichever routes lead there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::upstream::balance::speed::Speed;
use crate::upstream::health::breaker::Breaker;
use crate::upstream::health::evidence::Evidence;
use crate::upstream::limits::rate::{Learned, LineSize, Tokens};

/// With more backends than this, those of which nothing is known are forgotten: the names that
/// users write must not fill the memory.
const BACKENDS_MAX: usize = 1024;

/// A model at an upstream.
#[derive(Debug)]
pub struct Backend {
    upstream: usize,
    upstream_name: Arc<str>,
    model: Arc<str>,
    breaker: Mutex<Breaker>,
    /// Known where lines go to the fastest.
    speed: Mutex<Speed>,
    /// How many tokens its calls need; made where a rate limit asks.
    learned: OnceLock<Box<Mutex<Learned>>>,
}

impl Backend {
    /// The upstream's number, in the order of the configuration.
    #[must_use]
    pub fn upstream(&self) -> usize {
        self.upstream
    }

    #[must_use]
    pub fn upstream_name(&self) -> &str {
        &self.upstream_name
    }

    /// What the upstream calls the model.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The backend's breaker. Whoever needs the lock of [`Targets`](super::Targets), too, takes
    /// that first.
    pub(in crate::upstream) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How fast the backend answers. Locked for a moment, with no other lock taken meanwhile.
    pub(in crate::upstream) fn speed(&self) -> MutexGuard<'_, Speed> {
        self.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens that are reserved for a call.
    pub(in crate::upstream) fn estimate(&self, size: LineSize) -> Tokens {
        self.learned().estimate(size)
    }

    /// A call has used so many tokens.
    pub(in crate::upstream) fn learn(&self, size: LineSize, used: Tokens) {
        self.learned().learn(size, used);
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        let learned = self.learned.get_or_init(Box::default);
        learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::upstream) fn evidence(&self) -> Evidence {
        *self.breaker().evidence()
    }
}

/// All backends that are in use or must not be forgotten. There is one for each model at an
/// upstream, so that routes that are made anew find what is known.
#[derive(Debug)]
pub(in crate::upstream) struct Backends {
    /// The names of all upstreams, in their order.
    upstreams: Box<[Arc<str>]>,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    by_model: ByModel,
    /// How many were left when backends were last forgotten.
    kept: usize,
}

/// By upstream, and what that upstream calls the model.
type ByModel = HashMap<(usize, Arc<str>), Arc<Backend>>;

impl Backends {
    /// `upstreams`: the names of all, in their order.
    pub(in crate::upstream) fn new(upstreams: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            upstreams: upstreams.into_iter().collect(),
            all: Mutex::default(),
        }
    }

    /// An upstream's name.
    pub(in crate::upstream) fn name(&self, upstream: usize) -> &str {
        &self.upstreams[upstream]
    }

    /// The number of the upstream of this name.
    pub(in crate::upstream) fn upstream_named(&self, name: &str) -> Option<usize> {
        self.upstreams.iter().position(|known| **known == *name)
    }

    /// The backend of this model at this upstream.
    pub(in crate::upstream) fn get(&self, upstream: usize, model: &Arc<str>) -> Arc<Backend> {
        let mut all = self.lock();
        if let Some(backend) = all.by_model.get(&(upstream, Arc::clone(model))) {
            return Arc::clone(backend);
        }
        // Not at each new one: there may be thousands in use.
        if all.by_model.len() >= BACKENDS_MAX.max(2 * all.kept) {
            let now = tokio::time::Instant::now();
            all.by_model.retain(|_, backend| {
                Arc::strong_count(backend) > 1 || !backend.breaker().is_unremarkable(now)
            });
            all.kept = all.by_model.len();
        }
        let backend = Arc::new(Backend {
            upstream,
            upstream_name: Arc::clone(&self.upstreams[upstream]),
            model: Arc::clone(model),
            breaker: Mutex::default(),
            speed: Mutex::default(),
            learned: OnceLock::new(),
        });
        all.by_model
            .insert((upstream, Arc::clone(model)), Arc::clone(&backend));
        backend
    }

    /// The backend of this model at this upstream, where there is one already.
    pub(in crate::upstream) fn find(&self, upstream: usize, model: &str) -> Option<Arc<Backend>> {
        let all = self.lock();
        all.by_model.get(&(upstream, model.into())).map(Arc::clone)
    }

    /// All of them, or those of one upstream.
    pub(in crate::upstream) fn all(&self, upstream: Option<usize>) -> Vec<Arc<Backend>> {
        let all = self.lock();
        let all = all
            .by_model
            .values()
            .filter(|backend| upstream.is_none_or(|index| backend.upstream == index));
        all.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_of_which_nothing_is_known_are_forgotten_when_there_are_many() {
        let backends = Backends::new(["gpu".into()]);
        let held = backends.get(0, &"held".into());
        held.breaker().start(tokio::time::Instant::now());
        for model in 0..2 * BACKENDS_MAX {
            backends.get(0, &model.to_string().into());
        }
        assert!(backends.all(None).len() <= BACKENDS_MAX + 1);
        assert!(Arc::ptr_eq(&held, &backends.get(0, &"held".into())));
    }
}

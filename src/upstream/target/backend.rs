//! A model at an upstream: what is remembered of it, whichever routes lead there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::upstream::attempt::history::Evidence;
use crate::upstream::health::breaker::Breaker;

/// More backends than this are not remembered once nothing is to be said of them: what users
/// write must not fill the memory.
const BACKENDS_MAX: usize = 1024;

/// A model at an upstream.
#[derive(Debug)]
pub(in crate::upstream) struct Backend {
    /// The upstream's index.
    pub(in crate::upstream) upstream: usize,
    /// What that upstream calls the model.
    pub(in crate::upstream) model: Arc<str>,
    breaker: Mutex<Breaker>,
}

impl Backend {
    fn new(upstream: usize, model: Arc<str>) -> Self {
        Self {
            upstream,
            model,
            breaker: Mutex::default(),
        }
    }

    /// Its breaker. Taken after the pool's state where both are.
    pub(in crate::upstream) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::upstream) fn evidence(&self) -> Evidence {
        *self.breaker().evidence()
    }
}

/// All backends that are in use or must not be forgotten. One for each model at an upstream, so
/// that routes that are made anew find what is known.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Backends(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    by_model: ByModel,
    /// How many there were when those of which nothing is known were forgotten last.
    kept: usize,
}

/// By upstream, and what that upstream calls the model.
type ByModel = HashMap<(usize, Arc<str>), Arc<Backend>>;

impl Backends {
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
        let backend = Arc::new(Backend::new(upstream, Arc::clone(model)));
        all.by_model
            .insert((upstream, Arc::clone(model)), Arc::clone(&backend));
        backend
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_of_which_nothing_is_known_are_forgotten_when_there_are_many() {
        let backends = Backends::default();
        let held = backends.get(0, &"held".into());
        held.breaker().start(tokio::time::Instant::now());
        for model in 0..2 * BACKENDS_MAX {
            backends.get(0, &model.to_string().into());
        }
        assert!(backends.all(None).len() <= BACKENDS_MAX + 1);
        assert!(Arc::ptr_eq(&held, &backends.get(0, &"held".into())));
    }
}

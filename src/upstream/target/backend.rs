//! A model at an upstream, by one of its keys: what is remembered of it, whichever routes lead
//! there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::upstream::balance::speed::Speed;
use crate::upstream::health::breaker::Breaker;
use crate::upstream::health::evidence::Evidence;
use crate::upstream::limits::rate::{Learned, LineSize, Tokens};
use crate::upstream::settings::UpstreamSettings;

/// With more backends than this, those of which nothing is known are forgotten: the names that
/// users write must not fill the memory.
const BACKENDS_MAX: usize = 1024;

/// A model at an upstream, by one of its keys.
#[derive(Debug)]
pub struct Backend {
    upstream: usize,
    upstream_name: Arc<str>,
    /// The key's number among the upstream's keys.
    key: usize,
    /// `None`: the upstream has no other.
    key_name: Option<Arc<str>>,
    model: Arc<str>,
    breaker: Mutex<Breaker>,
    by_any_key: Arc<ByAnyKey>,
}

/// What is known of a model at an upstream, whichever key its calls are made with.
#[derive(Debug, Default)]
struct ByAnyKey {
    /// Known where lines go to the fastest.
    speed: Mutex<Speed>,
    /// How many tokens its calls need; made where a rate limit asks.
    learned: OnceLock<Box<Mutex<Learned>>>,
}

impl Backend {
    /// The upstream's number.
    #[must_use]
    pub fn upstream(&self) -> usize {
        self.upstream
    }

    #[must_use]
    pub fn upstream_name(&self) -> &str {
        &self.upstream_name
    }

    /// The number of the key among the upstream's keys.
    pub(in crate::upstream) fn key(&self) -> usize {
        self.key
    }

    /// What the key is called, where the upstream has several.
    pub(in crate::upstream) fn key_name(&self) -> Option<&str> {
        self.key_name.as_deref()
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
        self.by_any_key
            .speed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        let learned = self.by_any_key.learned.get_or_init(Box::default);
        learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::upstream) fn evidence(&self) -> Evidence {
        *self.breaker().evidence()
    }
}

/// All backends that are in use or must not be forgotten. There is one for each model at an
/// upstream, so that routes that are made anew find what is known.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Backends {
    all: Mutex<All>,
}

/// What an upstream and its keys are called.
#[derive(Debug)]
struct Named {
    name: Arc<str>,
    /// Empty where there are not several.
    keys: Box<[Arc<str>]>,
}

#[derive(Debug, Default)]
struct All {
    /// The names of the upstreams that are configured, by their numbers.
    upstreams: BTreeMap<usize, Named>,
    by_model: ByModel,
    /// How many were left when backends were last forgotten.
    kept: usize,
}

/// By upstream, by the number of its key, and by what that upstream calls the model.
type ByModel = HashMap<(usize, usize, Arc<str>), Arc<Backend>>;

impl Backends {
    /// These are the upstreams from now on, by their numbers. What is known of others is forgotten.
    pub(in crate::upstream) fn configure<'s>(
        &self,
        upstreams: impl Iterator<Item = (usize, &'s UpstreamSettings)>,
    ) {
        let named = upstreams.map(|(number, upstream)| {
            let keys = upstream.told_keys().iter();
            let named = Named {
                name: upstream.name.as_str().into(),
                keys: keys.map(|key| key.name.as_str().into()).collect(),
            };
            (number, named)
        });
        let named: BTreeMap<usize, Named> = named.collect();
        let mut all = self.lock();
        all.by_model.retain(|_, backend| {
            let named = named.get(&backend.upstream);
            named.is_some_and(|named| named.name == backend.upstream_name)
        });
        all.upstreams = named;
    }

    /// What the keys of an upstream are called, where it has several.
    pub(in crate::upstream) fn key_names(&self, upstream: usize) -> Box<[Arc<str>]> {
        let all = self.lock();
        let named = all.upstreams.get(&upstream);
        named.map(|named| named.keys.clone()).unwrap_or_default()
    }

    /// The number of the upstream of this name.
    pub(in crate::upstream) fn upstream_named(&self, name: &str) -> Option<usize> {
        let all = self.lock();
        let mut upstreams = all.upstreams.iter();
        let found = upstreams.find(|(_, known)| *known.name == *name);
        found.map(|(number, _)| *number)
    }

    /// The backend of this model at this upstream, by this key of it.
    pub(in crate::upstream) fn get(
        &self,
        upstream: usize,
        key: usize,
        model: &Arc<str>,
    ) -> Arc<Backend> {
        let mut all = self.lock();
        if let Some(backend) = all.by_model.get(&(upstream, key, Arc::clone(model))) {
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
        let named = all.upstreams.get(&upstream);
        let (name, keys) = named.map_or((Arc::default(), Box::default()), |named| {
            (Arc::clone(&named.name), named.keys.clone())
        });
        let mut others = (0..keys.len()).filter(|other| *other != key);
        let by_any_key = others.find_map(|other| {
            let other = all.by_model.get(&(upstream, other, Arc::clone(model)))?;
            Some(Arc::clone(&other.by_any_key))
        });
        let backend = Arc::new(Backend {
            upstream,
            upstream_name: name,
            key,
            key_name: keys.get(key).cloned(),
            model: Arc::clone(model),
            breaker: Mutex::default(),
            by_any_key: by_any_key.unwrap_or_default(),
        });
        all.by_model
            .insert((upstream, key, Arc::clone(model)), Arc::clone(&backend));
        backend
    }

    /// The backend of this model at this upstream by this key, where there is one already.
    pub(in crate::upstream) fn find(
        &self,
        upstream: usize,
        key: usize,
        model: &str,
    ) -> Option<Arc<Backend>> {
        let all = self.lock();
        let backend = all.by_model.get(&(upstream, key, model.into()));
        backend.map(Arc::clone)
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
    use crate::upstream::tests::upstream;

    #[test]
    fn backends_of_which_nothing_is_known_are_forgotten_when_there_are_many() {
        let backends = Backends::default();
        backends.configure([(0, &upstream("gpu", "http://gpu/v1"))].into_iter());
        let held = backends.get(0, 0, &"held".into());
        held.breaker().start(tokio::time::Instant::now());
        for model in 0..2 * BACKENDS_MAX {
            backends.get(0, 0, &model.to_string().into());
        }
        assert!(backends.all(None).len() <= BACKENDS_MAX + 1);
        assert!(Arc::ptr_eq(&held, &backends.get(0, 0, &"held".into())));
    }
}

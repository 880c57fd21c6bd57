//! Cooldowns: models at upstreams that are left alone for a while, as processes tell each other.

use std::time::Duration;

use tokio::time::Instant;

use super::reason::Reason;
use crate::upstream::target::backend::{Backend, Backends};

/// A cooldown is shared with the other processes if it lasts longer than this, or ends later by
/// this than they know.
const WORTH_SHARING: Duration = Duration::from_secs(1);
const SET_BY_ANOTHER: &str = "another process was told to wait";

/// A model at an upstream that is to be left alone.
#[derive(Clone, Debug)]
pub struct Cooldown {
    /// The upstream's name.
    pub upstream: String,
    /// By which of the upstream's keys, where it has several.
    pub key: Option<String>,
    /// What that upstream calls the model.
    pub model: String,
    pub until: Instant,
}

/// The cooldowns that other processes do not know yet.
pub(in crate::upstream) fn to_share(backends: &Backends) -> Vec<Cooldown> {
    let now = Instant::now();
    let unknown = backends.all(None).into_iter().filter_map(|backend| {
        let until = worth_sharing(&backend, now)?;
        Some(Cooldown {
            upstream: backend.upstream_name().to_owned(),
            key: backend.key_name().map(str::to_owned),
            model: backend.model().to_owned(),
            until,
        })
    });
    unknown.collect()
}

pub(in crate::upstream) fn any_to_share(backends: &Backends) -> bool {
    let now = Instant::now();
    let all = backends.all(None);
    all.iter()
        .any(|backend| worth_sharing(backend, now).is_some())
}

/// Leaves a model alone, as another process does. False if the upstream or its key is not known
/// here.
pub(in crate::upstream) fn follow(backends: &Backends, cooldown: &Cooldown) -> bool {
    let Some(upstream) = backends.upstream_named(&cooldown.upstream) else {
        return false;
    };
    let names = backends.key_names(upstream);
    let key = match &cooldown.key {
        None => names.is_empty().then_some(0),
        Some(key) => names.iter().position(|name| **name == **key),
    };
    let Some(key) = key else {
        return false;
    };
    let backend = backends.get(upstream, key, &cooldown.model.as_str().into());
    backend
        .breaker()
        .follow_cooldown(cooldown.until, Instant::now(), SET_BY_ANOTHER);
    true
}

/// When a backend opens, if the other processes should know.
fn worth_sharing(backend: &Backend, now: Instant) -> Option<Instant> {
    let breaker = backend.breaker();
    let closure = breaker.closure()?;
    let known = closure.shared_until.map_or(now, |shared| shared.max(now));
    // How long a server is down that says nothing of it, each process finds out for itself.
    let is_for_all = match closure.reason {
        Reason::Limited => true,
        Reason::Unavailable => closure.is_asked,
        _ => false,
    };
    (is_for_all && closure.until > known + WORTH_SHARING).then_some(closure.until)
}

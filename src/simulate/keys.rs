//! The keys that calls come with: which are known, which are refused, and what each may have.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::rate::{Dialect, LimitStats, RateLimit, RateLimits};

/// The status of a key that is not refused.
const ACCEPTED: u16 = 200;

/// A key that calls may come with.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// What the key is called where it is counted. The key itself is shown nowhere.
    pub name: String,
    pub key: SecretString,
    /// Whether calls with it are refused from the start.
    pub is_refused: bool,
}

/// How calls with a key went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyStats {
    pub name: String,
    pub calls: u64,
    /// Calls that came while the key was refused.
    pub refused: u64,
}

/// All keys. Where none is named there is one without a name, which every call comes with.
pub(super) struct Keys(Vec<Key>);

/// One key, and the limits that are its own.
pub(super) struct Key {
    given: Option<ApiKey>,
    status: AtomicU16,
    calls: AtomicU64,
    refused: AtomicU64,
    pub limits: Option<RateLimits>,
}

impl ApiKey {
    /// A key that is not refused.
    #[must_use]
    pub fn new(name: &str, key: impl Into<SecretString>) -> Self {
        Self {
            name: name.to_owned(),
            key: key.into(),
            is_refused: false,
        }
    }
}

impl Keys {
    pub(super) fn new(keys: &[ApiKey], limits: &[RateLimit], dialect: Dialect) -> Self {
        let key = |given: Option<&ApiKey>| Key {
            given: given.cloned(),
            status: AtomicU16::new(match given {
                Some(key) if key.is_refused => 401,
                _ => ACCEPTED,
            }),
            calls: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            limits: RateLimits::new(limits, dialect),
        };
        if keys.is_empty() {
            return Self(vec![key(None)]);
        }
        Self(keys.iter().map(|one| key(Some(one))).collect())
    }

    /// The key that a request came with; `None`: it came without one that is known.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<&Key> {
        let bearer = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // As Anthropic's clients send it.
        let plain = headers.get("x-api-key").map(HeaderValue::as_bytes);
        let sent = bearer.or(plain);
        self.0.iter().find(|key| match &key.given {
            Some(given) => sent == Some(given.key.expose_secret().as_bytes()),
            None => true,
        })
    }

    /// Answers calls with the key of this name with this status from now on; 200: as usual again.
    /// Says whether there is such a key.
    pub(super) fn set(&self, name: &str, status: u16) -> bool {
        let named = self.0.iter().find(|key| key.name() == Some(name));
        named.inspect(|key| key.status.store(status, Ordering::Relaxed));
        named.is_some()
    }

    /// How calls with each key went; `None`: no key is named.
    pub(super) fn stats(&self) -> Option<Vec<KeyStats>> {
        let stats = self.0.iter().map(|key| {
            Some(KeyStats {
                name: key.name()?.to_owned(),
                calls: key.calls.load(Ordering::Relaxed),
                refused: key.refused.load(Ordering::Relaxed),
            })
        });
        stats.collect()
    }

    /// What the limits have seen, those of each key; `None`: there are no limits.
    pub(super) fn limits(&self) -> Option<Vec<LimitStats>> {
        let limits = self.0.iter().map(|key| {
            let stats = key.limits.as_ref()?.stats().into_iter();
            let of_key = |limit| LimitStats {
                key: key.name().map(str::to_owned),
                ..limit
            };
            Some(stats.map(of_key).collect())
        });
        let limits: Option<Vec<Vec<LimitStats>>> = limits.collect();
        limits.map(|limits| limits.concat())
    }

    /// Counts from zero again. Who is refused stays so.
    pub(super) fn reset(&self) {
        for key in &self.0 {
            key.calls.store(0, Ordering::Relaxed);
            key.refused.store(0, Ordering::Relaxed);
            if let Some(limits) = &key.limits {
                limits.reset();
            }
        }
    }
}

impl Key {
    fn name(&self) -> Option<&str> {
        self.given.as_ref().map(|given| &*given.name)
    }

    /// With which status calls with the key are refused.
    pub(super) fn refusal(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status != ACCEPTED)
    }

    /// Counts a call, and returns with which status it is refused.
    pub(super) fn enter(&self) -> Option<u16> {
        let refusal = self.refusal();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.refused
            .fetch_add(refusal.is_some().into(), Ordering::Relaxed);
        refusal
    }
}

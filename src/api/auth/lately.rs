//! Keys that the database has confirmed within the last second: a client that looks again and again
//! costs no statement for its key each time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Caller;
use crate::domain::scope::Scopes;

/// For how long a key is not asked about again. A key that is revoked opens what it opened for so
/// much longer at the most.
const LATELY: Duration = Duration::from_secs(1);
/// So many keys are remembered at most. The others are asked about each time.
const KEYS_MAX: usize = 10_000;

/// Callers by the hash of their key.
#[derive(Debug, Default)]
pub struct Lately(Mutex<HashMap<String, Confirmed>>);

#[derive(Debug)]
struct Confirmed {
    caller: Caller,
    at: Instant,
    /// In milliseconds; `None` is never.
    expires_at: Option<i64>,
}

impl Lately {
    /// The caller whose key has that hash, if the key was confirmed within the last second and has
    /// not expired.
    pub(super) fn confirmed(&self, hash: &str, now_ms: i64) -> Option<Caller> {
        let keys = self.lock();
        let known = keys.get(hash)?;
        let is_over = known.expires_at.is_some_and(|at| at <= now_ms);
        (known.is_fresh() && !is_over).then(|| known.caller.clone())
    }

    /// The database has confirmed the key of that hash. Only keys that open nothing but their
    /// tenant's files and batches are remembered: clients look often, and operators do not.
    pub(super) fn note(&self, hash: &str, caller: &Caller, expires_at: Option<i64>) {
        if caller.scopes != Scopes::API {
            return;
        }
        let mut keys = self.lock();
        if keys.len() >= KEYS_MAX {
            keys.retain(|_, known| known.is_fresh());
        }
        if keys.len() < KEYS_MAX || keys.contains_key(hash) {
            let known = Confirmed {
                caller: caller.clone(),
                at: Instant::now(),
                expires_at,
            };
            keys.insert(hash.to_owned(), known);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Confirmed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Confirmed {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < LATELY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: Scopes) -> Caller {
        Caller {
            tenant: "acme".to_owned(),
            key_id: Some("key_1".to_owned()),
            scopes,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_asked_about_once_a_second() {
        let lately = Lately::default();
        lately.note("key", &caller(Scopes::API), None);
        tokio::time::advance(LATELY / 2).await;
        assert_eq!(lately.confirmed("key", 0), Some(caller(Scopes::API)));
        assert_eq!(lately.confirmed("another", 0), None);
        tokio::time::advance(LATELY / 2).await;
        assert_eq!(lately.confirmed("key", 0), None);
    }

    #[tokio::test]
    async fn a_key_that_has_expired_is_not_let_in() {
        let lately = Lately::default();
        lately.note("key", &caller(Scopes::API), Some(10));
        assert_eq!(lately.confirmed("key", 9), Some(caller(Scopes::API)));
        assert_eq!(lately.confirmed("key", 10), None);
    }

    #[tokio::test]
    async fn keys_that_open_more_are_asked_about_each_time() {
        let lately = Lately::default();
        for scopes in ["operator", "admin", "metrics", "api,operator"] {
            let scopes = Scopes::stored(scopes).unwrap();
            lately.note("key", &caller(scopes), None);
            assert_eq!(lately.confirmed("key", 0), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_keys_are_remembered_and_no_more() {
        let lately = Lately::default();
        for number in 0..KEYS_MAX {
            lately.note(&number.to_string(), &caller(Scopes::API), None);
        }
        lately.note("one more", &caller(Scopes::API), None);
        assert_eq!(lately.confirmed("one more", 0), None);
        tokio::time::advance(LATELY).await;
        lately.note("one more", &caller(Scopes::API), None);
        assert!(lately.confirmed("one more", 0).is_some());
        assert_eq!(lately.lock().len(), 1);
    }
}

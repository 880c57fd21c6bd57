//! Operators' keys that the database has confirmed. They open `/metrics` and `/admin/status` while
//! the database does not answer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Caller;

/// For how long a confirmed key is accepted without the database: long enough to look into an
/// outage, and no longer than a revoked key may go on opening anything.
const KNOWN_FOR: Duration = Duration::from_hours(1);

/// Operators by the hash of their key. There are at most as many as operators' keys.
#[derive(Debug, Default)]
pub struct Operators(Mutex<HashMap<String, Known>>);

#[derive(Debug)]
struct Known {
    caller: Caller,
    confirmed: Instant,
    /// In milliseconds; `None` is never.
    expires_at: Option<i64>,
}

impl Operators {
    /// The operator whose key has that hash, if the key was confirmed a short time ago and has not
    /// expired.
    pub(super) fn known(&self, hash: &str, now_ms: i64) -> Option<Caller> {
        let operators = self.lock();
        let known = operators.get(hash)?;
        let is_over = known.expires_at.is_some_and(|at| at <= now_ms);
        let is_fresh = known.confirmed.elapsed() < KNOWN_FOR;
        (is_fresh && !is_over).then(|| known.caller.clone())
    }

    /// The database has confirmed the key of that hash. Only operators' keys are kept.
    pub(super) fn note(&self, hash: String, caller: &Caller, expires_at: Option<i64>) {
        if caller.scopes.open_metrics() {
            let mut operators = self.lock();
            operators.retain(|_, known| known.confirmed.elapsed() < KNOWN_FOR);
            let known = Known {
                caller: caller.clone(),
                confirmed: Instant::now(),
                expires_at,
            };
            operators.insert(hash, known);
        }
    }

    /// The database does not accept the key of that hash any more.
    pub(super) fn forget(&self, hash: &str) {
        self.lock().remove(hash);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::scope::Scopes;

    fn operator() -> Caller {
        Caller {
            tenant: String::new(),
            key_id: Some("key_1".to_owned()),
            scopes: Scopes::parse("metrics").unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_was_not_confirmed_lately_is_not_known() {
        let operators = Operators::default();
        operators.note("one".to_owned(), &operator(), None);
        tokio::time::advance(KNOWN_FOR / 2).await;
        operators.note("other".to_owned(), &operator(), None);
        assert_eq!(operators.known("one", 0), Some(operator()));
        tokio::time::advance(KNOWN_FOR / 2).await;
        assert_eq!(operators.known("one", 0), None);
        assert_eq!(operators.known("other", 0), Some(operator()));
        operators.note("third".to_owned(), &operator(), None);
        assert_eq!(operators.lock().len(), 2, "what is over is not kept");
    }

    #[tokio::test]
    async fn a_key_that_has_expired_is_not_known() {
        let operators = Operators::default();
        operators.note("key".to_owned(), &operator(), Some(10));
        assert_eq!(operators.known("key", 9), Some(operator()));
        assert_eq!(operators.known("key", 10), None);
    }

    #[tokio::test]
    async fn only_operators_that_the_database_knows_are_known() {
        let operators = Operators::default();
        let other = Caller {
            scopes: Scopes::API,
            ..operator()
        };
        operators.note("other".to_owned(), &other, None);
        assert_eq!(operators.known("other", 0), None);
        operators.note("key".to_owned(), &operator(), None);
        operators.forget("key");
        assert_eq!(operators.known("key", 0), None);
    }
}

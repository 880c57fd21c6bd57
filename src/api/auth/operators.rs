//! Operators' keys that the database has confirmed, so that they open `/metrics` while it
//! does not answer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Caller;

/// How long a key counts that the database has confirmed and cannot be asked about: long enough to
/// look into an outage, and not much longer than a key should open anything once it is revoked.
const KNOWN_FOR: Duration = Duration::from_hours(1);

/// Operators by the hash of their key, and when it was last confirmed. As many as there are keys
/// of operators at the most.
#[derive(Debug, Default)]
pub struct Operators(Mutex<HashMap<String, (Caller, Instant)>>);

impl Operators {
    /// The operator with the key of that hash, if it was confirmed lately.
    pub(super) fn known(&self, hash: &str) -> Option<Caller> {
        let known = self.lock();
        let (caller, confirmed) = known.get(hash)?;
        (confirmed.elapsed() < KNOWN_FOR).then(|| caller.clone())
    }

    /// The database knows the key of that hash. Only operators' are kept.
    pub(super) fn note(&self, hash: String, caller: &Caller) {
        if caller.admin {
            let mut known = self.lock();
            known.retain(|_, (_, confirmed)| confirmed.elapsed() < KNOWN_FOR);
            known.insert(hash, (caller.clone(), Instant::now()));
        }
    }

    /// The database does not know the key of that hash any more.
    pub(super) fn forget(&self, hash: &str) {
        self.lock().remove(hash);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Caller, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator() -> Caller {
        Caller {
            tenant: "tenant".to_owned(),
            admin: true,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_was_not_confirmed_lately_is_not_known() {
        let operators = Operators::default();
        operators.note("one".to_owned(), &operator());
        tokio::time::advance(KNOWN_FOR / 2).await;
        operators.note("other".to_owned(), &operator());
        assert_eq!(operators.known("one"), Some(operator()));
        tokio::time::advance(KNOWN_FOR / 2).await;
        assert_eq!(operators.known("one"), None);
        assert_eq!(operators.known("other"), Some(operator()));
        operators.note("third".to_owned(), &operator());
        assert_eq!(operators.lock().len(), 2, "what is over is not kept");
    }

    #[tokio::test]
    async fn only_operators_that_the_database_knows_are_known() {
        let operators = Operators::default();
        let other = Caller {
            admin: false,
            ..operator()
        };
        operators.note("other".to_owned(), &other);
        assert_eq!(operators.known("other"), None);
        operators.note("key".to_owned(), &operator());
        operators.forget("key");
        assert_eq!(operators.known("key"), None);
    }
}

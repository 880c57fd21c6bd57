//! Operators' keys that the database has confirmed, so that they open `/metrics` while it is away.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Caller;

/// How long a key counts that the database has confirmed and cannot be asked about.
const KNOWN_FOR: Duration = Duration::from_hours(24);

/// Operators by the hash of their key, and when it was last confirmed. As many as there are keys
/// of operators at the most.
#[derive(Debug, Default)]
pub struct Operators(Mutex<HashMap<String, (Caller, Instant)>>);

impl Operators {
    /// The operator with the key of that hash, if it was confirmed within a day.
    pub(super) fn known(&self, hash: &str) -> Option<Caller> {
        let known = self.lock();
        let (caller, confirmed) = known.get(hash)?;
        (confirmed.elapsed() < KNOWN_FOR).then(|| caller.clone())
    }

    /// The database knows the key of that hash. Only operators' are kept.
    pub(super) fn note(&self, hash: String, caller: &Caller) {
        if caller.admin {
            let mut known = self.lock();
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

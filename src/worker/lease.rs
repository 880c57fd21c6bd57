//! This process's lease: renewed by one statement, trusted by a clock of its own.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::Settings;
use crate::domain::id;
use crate::store::{self, Store};

/// How often in its term a lease is renewed.
const RENEWALS_A_TERM: u32 = 3;

pub(super) struct Lease {
    name: String,
    term: Duration,
    token: RwLock<Arc<str>>,
    /// When the lease ends by this process's clock, which was started before the renewal was
    /// sent: so it never ends later here than in the database.
    ends: Mutex<Instant>,
}

impl Lease {
    pub(super) async fn join(store: &Store, settings: &Settings) -> store::Result<Lease> {
        let token = id::incarnation();
        let term = settings.worker.lease;
        let sent = Instant::now();
        store.join(&token, &settings.name, millis(term)).await?;
        if settings.exclusive {
            store.evict_others(&token).await?;
        }
        Ok(Lease {
            name: settings.name.clone(),
            term,
            token: RwLock::new(token.into()),
            ends: Mutex::new(sent + term),
        })
    }

    /// Which incarnation this process is at present.
    pub(super) fn token(&self) -> Arc<str> {
        self.token
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether nobody else can have taken this process's units.
    pub(super) fn holds(&self) -> bool {
        Instant::now() < *self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the lease. False if it was lost: this process was silent for too long, and others
    /// have taken its units.
    pub(super) async fn renew(&self, store: &Store) -> store::Result<bool> {
        let sent = Instant::now();
        let renewed = store.renew(&self.token(), millis(self.term)).await?;
        if renewed {
            self.set_end(sent + self.term);
        }
        Ok(renewed)
    }

    /// Begins anew, as somebody else.
    pub(super) async fn join_again(&self, store: &Store) -> store::Result<()> {
        let token = id::incarnation();
        let sent = Instant::now();
        store.join(&token, &self.name, millis(self.term)).await?;
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token.into();
        self.set_end(sent + self.term);
        Ok(())
    }

    /// How long a lease lasts.
    pub(super) fn term(&self) -> Duration {
        self.term
    }

    /// How long to wait between renewals.
    pub(super) fn pause(&self) -> Duration {
        self.term / RENEWALS_A_TERM
    }

    fn set_end(&self, end: Instant) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

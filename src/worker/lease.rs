//! This process's lease: renewed by one statement, trusted by a clock of its own.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Settings;
use super::dispatch::Dispatch;
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

    async fn renew(&self, store: &Store, dispatch: &Dispatch) -> store::Result<()> {
        let sent = Instant::now();
        if store.renew(&self.token(), millis(self.term)).await? {
            self.set_end(sent + self.term);
            return Ok(());
        }
        // Silent for too long: others have taken the units. Begin anew, as somebody else.
        tracing::warn!("the lease was lost to other replicas; their work is not done twice");
        dispatch.lose_all();
        let token = id::incarnation();
        let sent = Instant::now();
        store.join(&token, &self.name, millis(self.term)).await?;
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token.into();
        self.set_end(sent + self.term);
        Ok(())
    }

    fn set_end(&self, end: Instant) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Renews the lease, and takes over what others have let go.
pub(super) async fn run(
    lease: Arc<Lease>,
    store: Store,
    dispatch: Arc<Dispatch>,
    stop: CancellationToken,
) -> &'static str {
    let mut tick = tokio::time::interval(lease.term / RENEWALS_A_TERM);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let held_before = lease.holds();
        if let Err(error) = lease.renew(&store, &dispatch).await {
            tracing::warn!(%error, "the lease could not be renewed; it is tried again");
            continue;
        }
        if !held_before {
            dispatch.poke();
        }
        if let Err(error) = store.take_over().await {
            tracing::warn!(%error, "could not look for units of processes that are gone");
        }
    }
    "lease"
}

//! This process's lease: renewed by one statement, trusted by a clock of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Settings;
use super::uptime::Uptime;
use crate::domain::id;
use crate::domain::unit::UnitKey;
use crate::store::{self, Error, Incumbent, Replica, Store};

/// How often in its term a lease is renewed: a replica that dies right behind a renewal is missed
/// one term later, whatever this is, but the more renewals, the more of them may fail.
const RENEWALS_A_TERM: u32 = 10;
/// The same where nobody else can take over. Each renewal is a write to somebody's disk.
const RENEWALS_A_TERM_ALONE: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How much later than two beats a renewal may come, before its replica is taken for dead.
const BEAT_SLACK: Duration = Duration::from_millis(200);

pub(super) struct Lease {
    replica: Replica,
    token: Arc<str>,
    term: Duration,
    pause: Duration,
    /// Nobody else can hold a lease.
    exclusive: bool,
    renewals: Mutex<Renewals>,
}

/// All by this process's clock, read before a renewal was sent: so the lease never ends later
/// here than in the database.
struct Renewals {
    last: Uptime,
    /// Since when none was missing.
    unbroken: Uptime,
    /// Whether it is known what came of the last one.
    is_sure: bool,
}

impl Lease {
    /// Joins the replicas. What a dead process of the same name held waits again at once.
    pub(super) async fn join(store: &Store, settings: &Settings) -> store::Result<Lease> {
        let term = settings.worker.lease;
        let exclusive = settings.exclusive;
        let renewals = if exclusive {
            RENEWALS_A_TERM_ALONE
        } else {
            RENEWALS_A_TERM
        };
        let pause = (term / renewals).max(PAUSE_MIN);
        let name = settings.worker.name.clone();
        let replica = Replica {
            token: id::incarnation(),
            name: name.unwrap_or_else(id::incarnation),
            lease_ms: millis(term),
            beat_ms: millis(pause),
        };
        if exclusive {
            store.evict_others(&replica.token).await?;
        }
        let mut joined = Uptime::now();
        if let Some(incumbent) = store.join(&replica, None).await? {
            watch(&incumbent).await;
            joined = Uptime::now();
            if store.join(&replica, Some(&incumbent)).await?.is_some() {
                return Err(Error::Refused(format!(
                    "another process runs as worker.name = {:?}: stop it, or give this one a \
                     name of its own",
                    replica.name
                )));
            }
        }
        Ok(Lease {
            token: replica.token.as_str().into(),
            replica,
            term,
            pause,
            exclusive,
            renewals: Mutex::new(Renewals {
                last: joined,
                unbroken: joined,
                is_sure: true,
            }),
        })
    }

    /// Which incarnation this process is.
    pub(super) fn token(&self) -> Arc<str> {
        self.token.clone()
    }

    /// Whether nobody else can have taken this process's units.
    pub(super) fn holds(&self) -> bool {
        Uptime::now() < self.renewals().last + self.term
    }

    /// Whether it may take over from replicas whose lease has run out. Only after a term in which
    /// no renewal of its own was missing: when the database comes back from an outage, all leases
    /// have run out, and those who live come first, with the answers that they kept.
    pub(super) fn may_take_over(&self) -> bool {
        let renewals = self.renewals();
        !self.exclusive && renewals.last.since(renewals.unbroken) >= self.term
    }

    /// Renews the lease. Returns which of the units in hand are not this process's any more; the
    /// lease counts from [`Lease::renewed`] on, once they are let go.
    pub(super) async fn renew(
        &self,
        store: &Store,
        held: impl FnOnce() -> Vec<(UnitKey, i64)>,
    ) -> store::Result<Vec<(UnitKey, i64)>> {
        let was_sure = std::mem::replace(&mut self.renewals().is_sure, false);
        if was_sure && store.renew(&self.token, self.replica.lease_ms).await? {
            return Ok(Vec::new());
        }
        store.rejoin(&self.replica, &held()).await
    }

    /// A renewal that was sent at this moment has succeeded.
    pub(super) fn renewed(&self, sent: Uptime) {
        let (mut renewals, now) = (self.renewals(), Uptime::now());
        // While none is later than that, no live replica's lease runs out before its next one.
        if now.since(renewals.last) > self.term / 2 {
            renewals.unbroken = now;
        }
        renewals.last = sent;
        renewals.is_sure = true;
    }

    /// How long a lease lasts.
    pub(super) fn term(&self) -> Duration {
        self.term
    }

    /// How long to wait between renewals.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    fn renewals(&self) -> MutexGuard<'_, Renewals> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives who has the name the time to renew its lease, if it lives.
async fn watch(incumbent: &Incumbent) {
    let beat = Duration::from_millis(u64::try_from(incumbent.beat_ms).unwrap_or(0));
    tokio::time::sleep(beat * 2 + BEAT_SLACK).await;
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

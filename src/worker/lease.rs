//! This process's lease. One statement renews it, and a clock of this process says until when it
//! is trusted. The modules below keep the lease, and say what it allows.

pub(crate) mod authority;
pub(crate) mod clock;
pub(crate) mod heartbeat;
pub(crate) mod takeover;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::id;
use crate::domain::unit::UnitLease;
use crate::store::{self, Configuration, Error, Replica, Store};
use crate::worker::work::settings::Settings;
use clock::{Uptime, millis};

/// How often a lease is renewed within its lifetime. A replica that dies right after a renewal is
/// missed one lifetime later, however often it renews; but the more renewals there are, the more
/// of them may fail. Each renewal is a version of a row. With four, two tries may hang one after
/// the other.
const RENEWALS_PER_TTL: u32 = 4;
/// The same of a replica with a name. Its successor waits for as long as the replica trusts its
/// lease, which is longer the longer the time between two renewals is.
const RENEWALS_PER_TTL_NAMED: u32 = 10;
/// The same where no other process can take over. Each renewal is a write to somebody's disk.
const RENEWALS_PER_TTL_ALONE: u32 = 3;
/// How often, within a lease's lifetime, a process looks for leases that have run out, and tries
/// again after a renewal that has failed.
const LOOKS_PER_TTL: u32 = 10;
const RENEW_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// One try to renew the lease may take this part of the lease's lifetime, so that another
/// connection can be tried before the lifetime is over…
const ATTEMPTS_PER_TTL: u32 = 3;
/// …but no less than a busy database may need.
const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// A replica with a name renews its lease as often as if the lease's lifetime were no longer than
/// this. Its successor must wait for as long as the replica may go on without a renewal.
const NAMED_TTL_MAX: Duration = Duration::from_secs(4);
/// How much longer a namesake is watched than it trusts its lease. This covers clocks that do not
/// run equally fast, and the store, which keeps the interval in whole milliseconds.
const WATCH_SLACK: Duration = Duration::from_millis(200);

pub(crate) struct Lease {
    replica: Replica,
    token: Arc<str>,
    ttl: Duration,
    safe_ttl: Duration,
    renew_interval: Duration,
    look_interval: Duration,
    attempt_timeout: Duration,
    /// No other process can hold a lease.
    exclusive: bool,
    renewals: Mutex<Renewals>,
    configuration: Mutex<Told>,
}

/// Which configuration the process runs by, as operators are told.
struct Told {
    configuration: Configuration,
    /// Whether it stands with the lease.
    is_written: bool,
}

/// Moments by this process's clock, which is read before a renewal is sent. So the lease never
/// ends later here than in the database.
struct Renewals {
    last: Uptime,
    /// Since when no renewal was missing.
    unbroken: Uptime,
    /// Whether it is known what came of the last renewal.
    is_sure: bool,
}

impl Lease {
    /// Joins the replicas. A dead process of the same name makes way, and its units wait again, as
    /// soon as it could not send anything if it still lived.
    pub(crate) async fn join(store: &Store, settings: &Settings) -> store::Result<Lease> {
        let ttl = settings.lease;
        let exclusive = settings.exclusive;
        let name = settings.name.clone();
        let has_successor = name.is_some() && !exclusive;
        let pace = if has_successor {
            ttl.min(NAMED_TTL_MAX)
        } else {
            ttl
        };
        let renewals = match (exclusive, has_successor) {
            (true, _) => RENEWALS_PER_TTL_ALONE,
            (false, true) => RENEWALS_PER_TTL_NAMED,
            (false, false) => RENEWALS_PER_TTL,
        };
        let renew_interval = interval(pace, renewals);
        let safe_ttl = if has_successor { safe_ttl(pace) } else { ttl };
        let replica = Replica {
            token: id::incarnation(),
            name: name.unwrap_or_else(id::incarnation),
            lease_ms: millis(ttl),
            beat_ms: millis(renew_interval),
        };
        if exclusive {
            store.evict_others(&replica.token).await?;
        }
        let joined = enter(store, &replica).await?;
        Ok(Lease {
            token: replica.token.as_str().into(),
            replica,
            ttl,
            safe_ttl,
            renew_interval,
            look_interval: interval(pace, LOOKS_PER_TTL).min(renew_interval),
            attempt_timeout: attempt_timeout(pace),
            exclusive,
            renewals: Mutex::new(Renewals {
                last: joined,
                unbroken: joined,
                is_sure: true,
            }),
            configuration: Mutex::new(Told {
                configuration: settings.configuration.clone(),
                is_written: false,
            }),
        })
    }

    /// The token of this incarnation of the process.
    pub(crate) fn token(&self) -> Arc<str> {
        self.token.clone()
    }

    /// Whether no other process can have taken this process's units. Always true where the process
    /// has the database to itself, even while the database cannot be written.
    pub(crate) fn is_held(&self) -> bool {
        self.exclusive || Uptime::now() < self.renewals().last + self.safe_ttl
    }

    /// Whether this process may take over from replicas whose lease has lapsed. The process must
    /// have renewed its own lease for a whole lifetime without a gap. After an outage of the
    /// database all leases have lapsed, and processes that live come first, with the answers that
    /// they kept.
    pub(crate) fn may_take_over(&self) -> bool {
        let (renewals, now) = (self.renewals(), Uptime::now());
        let is_unbroken = now.since(renewals.last) <= self.gap_max();
        !self.exclusive && is_unbroken && renewals.last.since(renewals.unbroken) >= self.ttl
    }

    /// Renews the lease. Returns those of the leased units that are not this process's any more.
    /// The caller revokes them, and then the lease counts ([`Lease::on_renewed`]).
    pub(crate) async fn renew(
        &self,
        store: &Store,
        leased: impl FnOnce() -> Vec<UnitLease>,
    ) -> store::Result<Vec<UnitLease>> {
        let was_sure = std::mem::replace(&mut self.renewals().is_sure, false);
        if was_sure && store.renew(&self.token, self.replica.lease_ms).await? {
            return Ok(Vec::new());
        }
        let lost = store.rejoin(&self.replica, &leased()).await?;
        // The row may be a new one.
        self.told().is_written = false;
        Ok(lost)
    }

    /// The process runs by another configuration from now on. The next renewal tells that.
    pub(crate) fn runs_by(&self, configuration: Configuration) {
        *self.told() = Told {
            configuration,
            is_written: false,
        };
    }

    /// Tells operators which configuration the process runs by, where that is news.
    pub(crate) async fn tell_configuration(&self, store: &Store) -> store::Result<()> {
        let news = {
            let told = self.told();
            (!told.is_written).then(|| told.configuration.clone())
        };
        let Some(configuration) = news else {
            return Ok(());
        };
        store
            .note_configuration(&self.token, &configuration)
            .await?;
        let mut told = self.told();
        told.is_written = told.configuration == configuration;
        Ok(())
    }

    /// A renewal that was sent at this moment has succeeded.
    pub(crate) fn on_renewed(&self, sent: Uptime) {
        let (mut renewals, now) = (self.renewals(), Uptime::now());
        if now.since(renewals.last) > self.gap_max() {
            renewals.unbroken = now;
        }
        renewals.last = sent;
        renewals.is_sure = true;
    }

    /// How long a lease lasts.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// For how long after a renewal this process may act as if no other process could have what it
    /// holds. This is the lease's lifetime, or less where another process with the same name would
    /// not wait for so long.
    pub(crate) fn safe_ttl(&self) -> Duration {
        self.safe_ttl
    }

    /// While no renewal is later than that, no live replica's lease lapses before its next one.
    fn gap_max(&self) -> Duration {
        self.ttl / 2
    }

    /// How long one try to renew the lease may take.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// How long to wait between renewals.
    pub(crate) fn renew_interval(&self) -> Duration {
        self.renew_interval
    }

    /// How long to wait between looks for leases that have run out, and after a renewal that has
    /// failed.
    pub(crate) fn look_interval(&self) -> Duration {
        self.look_interval
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.configuration
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn renewals(&self) -> MutexGuard<'_, Renewals> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a replica's name, as soon as a namesake has left it or is known to be dead. Returns the
/// moment from which the replica has its lease.
async fn enter(store: &Store, replica: &Replica) -> store::Result<Uptime> {
    let mut since = Uptime::now();
    let Some(incumbent) = store.join(replica, None).await? else {
        return Ok(since);
    };
    let seen = Uptime::now();
    let refused = || {
        Error::Refused(format!(
            "another process runs as worker.name = {:?}: stop it, or give this one a name of its \
             own",
            replica.name
        ))
    };
    let interval = Duration::from_millis(u64::try_from(incumbent.beat_ms).unwrap_or(0));
    tracing::info!(
        name = replica.name,
        "a process had this name; waiting to see that it is gone"
    );
    // Counted from the answer: a lease that was renewed just before it is trusted that much longer.
    let end = seen + watch(interval);
    loop {
        let left = end.since(Uptime::now());
        tokio::time::sleep(left.min(interval.max(RENEW_INTERVAL_MIN))).await;
        since = Uptime::now();
        let dead = (since >= end).then_some(&incumbent);
        match store.join(replica, dead).await? {
            None => return Ok(since),
            Some(now) if now == incumbent && dead.is_none() => {}
            Some(_) => return Err(refused()),
        }
    }
}

/// How long to wait between so many renewals, or looks, in a lifetime of a lease.
fn interval(ttl: Duration, per_ttl: u32) -> Duration {
    (ttl / per_ttl).max(RENEW_INTERVAL_MIN)
}

/// How long a replica with a name waits between renewals.
fn named_interval(ttl: Duration) -> Duration {
    interval(ttl, RENEWALS_PER_TTL_NAMED)
}

fn attempt_timeout(ttl: Duration) -> Duration {
    (ttl / ATTEMPTS_PER_TTL).max(ATTEMPT_TIMEOUT_MIN)
}

/// For how long a replica with a name trusts its lease. One try to renew it may hang on a dead
/// connection, and the next try still succeed. This is shorter than the lease's lifetime, because
/// a process that is started again under the name must wait for as long.
fn safe_ttl(ttl: Duration) -> Duration {
    (attempt_timeout(ttl) + 2 * named_interval(ttl)).min(ttl)
}

/// How long a namesake that renews its lease at this interval is watched. If the lease was not
/// renewed in that time, the namesake is dead, or does not trust its lease any more.
fn watch(interval: Duration) -> Duration {
    safe_ttl(interval * RENEWALS_PER_TTL_NAMED) + WATCH_SLACK
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_namesake_is_watched_for_longer_than_it_trusts_its_lease(ms in 1_000_u64..100_000_000) {
            let ttl = Duration::from_millis(ms);
            // The interval as the store keeps it.
            let interval = millis(named_interval(ttl));
            let interval = Duration::from_millis(u64::try_from(interval).unwrap());
            prop_assert!(watch(interval) > safe_ttl(ttl));
            // No replica trusts its lease for longer than others wait.
            prop_assert!(safe_ttl(ttl) <= ttl);
        }

        #[test]
        fn one_renewal_may_hang_without_costing_the_lease(ms in 2_000_u64..100_000_000) {
            let ttl = Duration::from_millis(ms);
            // A renewal that comes in time hangs, and the next one has an interval's time.
            let hangs = named_interval(ttl) + attempt_timeout(ttl);
            prop_assert!(safe_ttl(ttl) >= hangs + named_interval(ttl));
        }
    }

    #[test]
    fn with_the_usual_lease_a_namesake_is_watched_for_less_than_the_lease() {
        let ttl = Duration::from_secs(10);
        assert!(watch(named_interval(ttl)) < ttl);
    }
}

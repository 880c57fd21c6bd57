//! This process's lease: renewed by one statement, trusted by a clock of its own.

pub(crate) mod clock;
pub(crate) mod heartbeat;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::id;
use crate::domain::unit::UnitLease;
use crate::store::{self, Error, Replica, Store};
use crate::worker::Settings;
use crate::worker::lease::clock::Uptime;

/// How often in its term a lease is renewed: a replica that dies right behind a renewal is missed
/// one term later, whatever this is, but the more renewals, the more of them may fail.
const RENEWALS_A_TERM: u32 = 10;
/// The same where nobody else can take over. Each renewal is a write to somebody's disk.
const RENEWALS_A_TERM_ALONE: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// A renewal may take this part of the lease's term, so that another connection can be tried
/// before the term is over…
const STEPS_A_TERM: u32 = 3;
/// …but no less than a busy database may need.
const STEP_MIN: Duration = Duration::from_secs(1);
/// A replica that was given a name keeps its lease at the pace of one that is no longer than this:
/// for as long as it may go on without a renewal, its successor must wait.
const NAMED_PACE_MAX: Duration = Duration::from_secs(4);
/// How much longer a namesake is watched than it trusts its lease: for clocks that do not run
/// equally fast, and for what is lost where a beat is written in whole milliseconds.
const WATCH_SLACK: Duration = Duration::from_millis(200);

pub(crate) struct Lease {
    replica: Replica,
    token: Arc<str>,
    term: Duration,
    trust: Duration,
    pause: Duration,
    step: Duration,
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
    /// Joins the replicas. A dead process of the same name makes way, and what it held waits again,
    /// as soon as it could not send anything if it lived.
    pub(crate) async fn join(store: &Store, settings: &Settings) -> store::Result<Lease> {
        let term = settings.worker.lease;
        let exclusive = settings.exclusive;
        let name = settings.worker.name.clone();
        let has_successor = name.is_some() && !exclusive;
        let pace = if has_successor {
            term.min(NAMED_PACE_MAX)
        } else {
            term
        };
        let pause = if exclusive {
            (term / RENEWALS_A_TERM_ALONE).max(PAUSE_MIN)
        } else {
            beat(pace)
        };
        let trust = if has_successor { trust(pace) } else { term };
        let replica = Replica {
            token: id::incarnation(),
            name: name.unwrap_or_else(id::incarnation),
            lease_ms: millis(term),
            beat_ms: millis(pause),
        };
        if exclusive {
            store.evict_others(&replica.token).await?;
        }
        let joined = enter(store, &replica).await?;
        Ok(Lease {
            token: replica.token.as_str().into(),
            replica,
            term,
            trust,
            pause,
            step: step(pace),
            exclusive,
            renewals: Mutex::new(Renewals {
                last: joined,
                unbroken: joined,
                is_sure: true,
            }),
        })
    }

    /// Which incarnation this process is.
    pub(crate) fn token(&self) -> Arc<str> {
        self.token.clone()
    }

    /// Whether nobody else can have taken this process's units: always, where it has the database
    /// to itself, however long that cannot be written.
    pub(crate) fn holds(&self) -> bool {
        self.exclusive || Uptime::now() < self.renewals().last + self.trust
    }

    /// Whether it may take over from replicas whose lease has run out. Only after a term in which
    /// no renewal of its own was missing: when the database comes back from an outage, all leases
    /// have run out, and those who live come first, with the answers that they kept.
    pub(crate) fn may_take_over(&self) -> bool {
        let (renewals, now) = (self.renewals(), Uptime::now());
        let is_unbroken = now.since(renewals.last) <= self.gap_max();
        !self.exclusive && is_unbroken && renewals.last.since(renewals.unbroken) >= self.term
    }

    /// Renews the lease. Returns which of the units in hand are not this process's any more; the
    /// lease counts from [`Lease::renewed`] on, once they are let go.
    pub(crate) async fn renew(
        &self,
        store: &Store,
        held: impl FnOnce() -> Vec<UnitLease>,
    ) -> store::Result<Vec<UnitLease>> {
        let was_sure = std::mem::replace(&mut self.renewals().is_sure, false);
        if was_sure && store.renew(&self.token, self.replica.lease_ms).await? {
            return Ok(Vec::new());
        }
        store.rejoin(&self.replica, &held()).await
    }

    /// A renewal that was sent at this moment has succeeded.
    pub(crate) fn renewed(&self, sent: Uptime) {
        let (mut renewals, now) = (self.renewals(), Uptime::now());
        if now.since(renewals.last) > self.gap_max() {
            renewals.unbroken = now;
        }
        renewals.last = sent;
        renewals.is_sure = true;
    }

    /// How long a lease lasts.
    pub(crate) fn term(&self) -> Duration {
        self.term
    }

    /// For how long from a renewal this process may go on as if nobody else could have what it
    /// holds: for the lease's term, or less where another one with its name would not wait for so
    /// long.
    pub(crate) fn trust(&self) -> Duration {
        self.trust
    }

    /// While no renewal is later than that, no live replica's lease runs out before its next one.
    fn gap_max(&self) -> Duration {
        self.term / 2
    }

    /// How long one try to renew the lease may take.
    pub(crate) fn step(&self) -> Duration {
        self.step
    }

    /// How long to wait between renewals.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }

    fn renewals(&self) -> MutexGuard<'_, Renewals> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a replica's name, as soon as a namesake leaves it or is known to be dead. Returns since
/// when it has its lease.
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
    let beat = Duration::from_millis(u64::try_from(incumbent.beat_ms).unwrap_or(0));
    tracing::info!(
        name = replica.name,
        "a process had this name; waiting to see that it is gone"
    );
    // From its answer on: what was renewed just before it is trusted that much longer.
    let end = seen + watch(beat);
    loop {
        let left = end.since(Uptime::now());
        tokio::time::sleep(left.min(beat.max(PAUSE_MIN))).await;
        since = Uptime::now();
        let dead = (since >= end).then_some(&incumbent);
        match store.join(replica, dead).await? {
            None => return Ok(since),
            Some(now) if now == incumbent && dead.is_none() => {}
            Some(_) => return Err(refused()),
        }
    }
}

/// How long to wait between renewals, where others can take over.
fn beat(term: Duration) -> Duration {
    (term / RENEWALS_A_TERM).max(PAUSE_MIN)
}

fn step(term: Duration) -> Duration {
    (term / STEPS_A_TERM).max(STEP_MIN)
}

/// For how long a replica that was given a name trusts its lease. One try to renew it may hang on
/// a dead connection, and the next succeed. It is not the whole term, because for as long a process
/// that is started again under its name must wait.
fn trust(term: Duration) -> Duration {
    (step(term) + 2 * beat(term)).min(term)
}

/// How long a namesake with such a beat is watched. If its lease has not been renewed in that
/// time, it is dead, or it does not trust its lease any more.
fn watch(beat: Duration) -> Duration {
    trust(beat * RENEWALS_A_TERM) + WATCH_SLACK
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_namesake_is_watched_for_longer_than_it_trusts_its_lease(ms in 1_000_u64..100_000_000) {
            let term = Duration::from_millis(ms);
            // As it stands in the store.
            let beat = Duration::from_millis(u64::try_from(millis(beat(term))).unwrap());
            prop_assert!(watch(beat) > trust(term));
            // It never trusts it for longer than others wait.
            prop_assert!(trust(term) <= term);
        }

        #[test]
        fn one_renewal_may_hang_without_costing_the_lease(ms in 2_000_u64..100_000_000) {
            let term = Duration::from_millis(ms);
            // A beat after the last renewal one hangs for a step; the next has a beat's time.
            prop_assert!(trust(term) >= beat(term) + step(term) + beat(term));
        }
    }

    #[test]
    fn with_the_usual_lease_a_namesake_is_watched_for_less_than_the_lease() {
        let term = Duration::from_secs(10);
        assert!(watch(beat(term)) < term);
    }
}

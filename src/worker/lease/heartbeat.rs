//! The heartbeat: renews this process's lease. Beside it, so that it never waits for it, what
//! others have let go is taken over.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::metrics::metrics;
use crate::store::{self, Error, Store};
use crate::worker::dispatch::Dispatch;
use crate::worker::lease::Lease;
use crate::worker::lease::clock::Uptime;

/// Beats until stopped, or until another process has this one's name.
pub(crate) async fn run(
    lease: Arc<Lease>,
    store: Store,
    dispatch: Arc<Dispatch>,
    stop: CancellationToken,
) -> &'static str {
    let mut tick = tokio::time::interval(lease.pause());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        // A connection that was cut without a word is not waited for until the lease has run out.
        let renewed = tokio::time::timeout(lease.step(), renew(&lease, &store, &dispatch)).await;
        match renewed.unwrap_or(Err(Error::TimedOut("the heartbeat"))) {
            Ok(()) => {}
            Err(Error::Refused(reason)) => {
                tracing::error!(reason, "this process cannot go on");
                break;
            }
            Err(error) => {
                tracing::warn!(%error, "the lease could not be renewed; it is tried again");
            }
        }
    }
    "heartbeat"
}

/// Takes over from the dead until stopped.
pub(crate) async fn take_over(
    lease: Arc<Lease>,
    store: Store,
    stop: CancellationToken,
) -> &'static str {
    let mut tick = tokio::time::interval(lease.pause());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if !lease.may_take_over() {
            continue;
        }
        // What hangs until an outage is over must not be done then: those who live come first.
        let taken = tokio::time::timeout(lease.step(), store.take_over()).await;
        if let Err(error) = taken.unwrap_or(Err(Error::TimedOut("a take-over"))) {
            tracing::warn!(%error, "dead replicas could not be looked for; it is tried again");
        }
    }
    "take-over"
}

async fn renew(lease: &Lease, store: &Store, dispatch: &Dispatch) -> store::Result<()> {
    let held_before = lease.holds();
    let sent = Uptime::now();
    let lost = lease.renew(store, || dispatch.held()).await?;
    if !lost.is_empty() {
        tracing::warn!(
            units.count = lost.len(),
            "units were lost to other replicas while this one was silent"
        );
        metrics().leases_lost(lost.len());
        dispatch.lose_units(&lost);
    }
    lease.renewed(sent);
    if !held_before {
        tracing::info!("holds its lease again");
        dispatch.poke();
    }
    Ok(())
}

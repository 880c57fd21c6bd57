//! The heartbeat: renews this process's lease, and takes over what others have let go.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatch;
use super::lease::Lease;
use super::uptime::Uptime;
use crate::observe::figures;
use crate::store::{self, Error, Store};

/// Beats until stopped, or until another process has this one's name.
pub(super) async fn run(
    lease: Arc<Lease>,
    store: Store,
    dispatch: Arc<Dispatch>,
    stop: CancellationToken,
) -> &'static str {
    let mut tick = tokio::time::interval(lease.pause());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        match within_step(&lease, renew(&lease, &store, &dispatch)).await {
            Ok(()) => {}
            Err(Error::Refused(reason)) => {
                tracing::error!(reason, "this process cannot go on");
                break;
            }
            Err(error) => {
                tracing::warn!(%error, "the lease could not be renewed; it is tried again");
                continue;
            }
        }
        if lease.may_take_over()
            && let Err(error) = within_step(&lease, store.take_over()).await
        {
            tracing::warn!(%error, "dead replicas could not be looked for; it is tried again");
        }
    }
    "heartbeat"
}

/// A connection that was cut without a word is not waited for until the lease has run out.
async fn within_step<T>(
    lease: &Lease,
    step: impl Future<Output = store::Result<T>>,
) -> store::Result<T> {
    let done = tokio::time::timeout(lease.step(), step).await;
    done.unwrap_or(Err(Error::TimedOut("the heartbeat")))
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
        figures().leases_lost(lost.len());
        dispatch.lose_units(&lost);
    }
    lease.renewed(sent);
    if !held_before {
        tracing::info!("holds its lease again");
        dispatch.poke();
    }
    Ok(())
}

//! The heartbeat: renews this process's lease, and takes over what others have let go.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatch;
use super::lease::Lease;
use crate::observe::figures;
use crate::store::{self, Store};

/// Beats until stopped.
pub(super) async fn run(
    lease: Arc<Lease>,
    store: Store,
    dispatch: Arc<Dispatch>,
    stop: CancellationToken,
) -> &'static str {
    let mut tick = tokio::time::interval(lease.pause());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        // A connection that was cut without a word is not waited for past the lease's end.
        let beat = tokio::time::timeout(lease.term(), beat(&lease, &store, &dispatch)).await;
        let outcome = beat.unwrap_or(Err(store::Error::TimedOut("the heartbeat")));
        if let Err(error) = outcome {
            tracing::warn!(%error, "the lease could not be renewed; it is tried again");
        }
    }
    "heartbeat"
}

async fn beat(lease: &Lease, store: &Store, dispatch: &Dispatch) -> store::Result<()> {
    let held_before = lease.holds();
    if !lease.renew(store).await? {
        tracing::warn!("the lease was lost to other replicas; their work is not done twice");
        figures().lease_lost();
        dispatch.lose_all();
        lease.join_again(store).await?;
    }
    if !held_before {
        dispatch.poke();
    }
    store.take_over().await.map(|_| ())
}

//! The heartbeat: renews this process's lease, and takes over what others have let go.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::dispatch::Dispatch;
use super::lease::Lease;
use super::uptime::Uptime;
use crate::observe::figures;
use crate::store::{self, Error, Store};

/// A step of a beat may take this part of the lease's term, so that another connection can be
/// tried before the term is over…
const STEPS_A_TERM: u32 = 3;
/// …but no less than a busy database may need.
const STEP_MIN: Duration = Duration::from_secs(1);

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
    let patience = (lease.term() / STEPS_A_TERM).max(STEP_MIN);
    let done = tokio::time::timeout(patience, step).await;
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

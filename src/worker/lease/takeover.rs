//! Taking over units from processes whose lease has lapsed. A loop of its own, so that the
//! heartbeat never waits for it.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Lease;
use crate::store::{Error, Store};

/// Takes over from dead processes until stopped.
pub(crate) async fn run(lease: Arc<Lease>, store: Store, stop: CancellationToken) -> &'static str {
    let mut tick = tokio::time::interval(lease.look_interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if !lease.may_take_over() {
            continue;
        }
        // A statement that hangs until an outage is over must not take effect then: processes that
        // live renew their leases first.
        let taken = tokio::time::timeout(lease.attempt_timeout(), store.take_over()).await;
        if let Err(error) = taken.unwrap_or(Err(Error::TimedOut("a take-over"))) {
            tracing::warn!(%error, "dead replicas could not be looked for; it is tried again");
        }
    }
    "take-over"
}

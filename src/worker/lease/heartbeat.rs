//! The heartbeat: renews this process's lease.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Lease;
use super::clock::Uptime;
use crate::metrics::metrics;
use crate::store::{self, Error, Store};
use crate::worker::dispatch::ownership::Ownership;

pub(crate) struct Heartbeat {
    pub lease: Arc<Lease>,
    pub store: Store,
    pub ownership: Arc<Ownership>,
}

impl Heartbeat {
    /// Renews the lease until stopped, or until another process has taken this one's name.
    pub(crate) async fn run(self, stop: CancellationToken) -> &'static str {
        let mut tick = tokio::time::interval(self.lease.renew_interval());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            // A connection that was cut without a word must not be waited for until the lease has
            // lapsed.
            let attempt_timeout = self.lease.attempt_timeout();
            let tried = Instant::now();
            let renewed = tokio::time::timeout(attempt_timeout, self.renew()).await;
            match renewed.unwrap_or(Err(Error::TimedOut("the heartbeat"))) {
                Ok(()) => {}
                Err(Error::Refused(reason)) => {
                    tracing::error!(reason, "this process cannot go on");
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease could not be renewed; it is tried again");
                    // At once after a try that hung, and soon after one that failed at once.
                    tick.reset_at(tried + self.lease.look_interval());
                }
            }
        }
        "heartbeat"
    }

    async fn renew(&self) -> store::Result<()> {
        let was_held = self.lease.is_held();
        let sent = Uptime::now();
        let leased = || self.ownership.leases();
        let lost = self.lease.renew(&self.store, leased).await?;
        if !lost.is_empty() {
            tracing::warn!(
                units.count = lost.len(),
                "units were lost to other replicas while this one was silent"
            );
            metrics().leases_lost(lost.len());
            self.ownership.revoke(&lost);
        }
        self.lease.on_renewed(sent);
        if !was_held {
            tracing::info!("holds its lease again");
            self.ownership.on_lease_regained();
        }
        // The lease holds either way, and the next renewal tells it.
        if let Err(error) = self.lease.tell_configuration(&self.store).await {
            tracing::debug!(%error, "operators are not told yet what this process runs by");
        }
        Ok(())
    }
}

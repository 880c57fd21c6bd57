//! Follows which batches are paused, so that no line of theirs begins.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{self, Store};
use crate::worker::dispatch::shared::SharedLedger;

/// A process goes without a look for no longer than this while it holds units: a pooler passes no
/// wake-up on. Less than the second for which a call may begin after a pause was answered.
const TICK: Duration = Duration::from_millis(500);

/// Which batches are paused, in one process.
pub(crate) struct Pauses {
    pub store: Store,
    pub ledger: Arc<SharedLedger>,
}

impl Pauses {
    /// Looks at each wake-up, and by itself from time to time, until stopped. Where the database is
    /// away, all stays as it is.
    pub(crate) async fn run(self, stop: CancellationToken) -> &'static str {
        let mut wakeups = self.store.wakeups(store::Who::Pauses);
        let go_on = async {
            loop {
                wakeups.mark_unchanged();
                if let Err(error) = self.follow().await {
                    tracing::debug!(%error, "which batches are paused could not be read");
                }
                tokio::select! {
                    Ok(()) = wakeups.changed() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(go_on).await;
        "pauses"
    }

    async fn follow(&self) -> store::Result<()> {
        // Also those whose text is not read yet.
        let ids: BTreeSet<String> = {
            let ledger = self.ledger.lock();
            ledger.leases().map(|lease| lease.key.batch_id).collect()
        };
        let paused = self.store.paused_among(&ids).await?;
        if self.ledger.lock().set_held(paused) {
            // Lines that are resumed may be sent, and units that are paused are given back.
            self.ledger.notify_scheduler();
            self.ledger.notify_supply();
        }
        Ok(())
    }
}

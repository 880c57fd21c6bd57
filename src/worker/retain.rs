//! Cleaning up: uploads that died, files that were deleted or have expired, old answers to
//! `Idempotency-Key`s.

use std::time::Duration;

use super::duty::Duty;
use crate::domain::clock::Clock;
use crate::store::{self, Store};

/// An upload that is alive shows a sign of life every minute.
const UPLOAD_SILENT_MS: i64 = 5 * 60 * 1000;
/// How long a hidden file's bytes stay: whoever is reading them may finish.
const HIDDEN_MS: i64 = 3600 * 1000;

pub(super) struct Retain {
    pub store: Store,
    pub clock: Clock,
}

impl Duty for Retain {
    const NAME: &'static str = "retain";
    const TICK: Duration = Duration::from_secs(60);
    const WAKES: bool = false;

    async fn round(&mut self) -> store::Result<bool> {
        let now = self.clock.now_ms();
        let swept = self.store.sweep_uploads(now - UPLOAD_SILENT_MS).await?;
        let purged = self.store.purge(now - HIDDEN_MS).await?;
        let forgotten = self.store.forget_claims().await?;
        self.store.forget_replicas().await?;
        self.store.sweep_units().await?;
        if swept > 0 || purged != store::Purged::default() || forgotten > 0 {
            tracing::info!(
                uploads.swept = swept,
                files.expired = purged.expired,
                files.purged = purged.removed,
                "cleaned up"
            );
        }
        Ok(purged.removed > 0)
    }
}

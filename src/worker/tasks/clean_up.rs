//! Cleaning up: uploads that died, files that were deleted or have expired, old answers to
//! `Idempotency-Key`s.

use std::time::Duration;

use super::task::{Duty, Look, Next};
use crate::store::{self, Purged, Store, Who};
use crate::worker::lease::millis;

/// An upload that is alive shows a sign of life every 20 s.
const UPLOAD_SILENT_MS: i64 = 5 * 60 * 1000;

pub(crate) struct Retain {
    pub store: Store,
    /// How long a hidden file's bytes stay: whoever is reading them may finish.
    pub grace: Duration,
}

impl Duty for Retain {
    const NAME: &'static str = "retain";
    const TICK: Duration = Duration::from_secs(60);
    const WHO: Option<Who> = None;

    async fn round(&mut self, _: Look) -> store::Result<Next> {
        let now = self.store.now().await?;
        // One chore that fails does not keep the others from being done.
        let swept = self.store.sweep_uploads(now - UPLOAD_SILENT_MS).await;
        let purged = self.store.purge(now - millis(self.grace)).await;
        let forgotten = self.store.forget_claims().await;
        let replicas = self.store.forget_replicas().await;
        let units = self.store.sweep_units().await;
        let space = self.store.give_back_space().await;

        let (swept, purged, forgotten) = (swept?, purged?, forgotten?);
        if swept > 0 || purged != Purged::default() || forgotten > 0 {
            tracing::info!(
                uploads.swept = swept,
                files.expired = purged.expired,
                files.purged = purged.removed,
                "cleaned up"
            );
        }
        replicas.and(units).and(space)?;
        Ok(if purged.removed > 0 {
            Next::AtOnce
        } else {
            Next::Later
        })
    }
}

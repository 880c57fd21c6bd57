//! Cleaning up: uploads that broke off, files that were deleted or have expired, old answers to
//! `Idempotency-Key`s, usage that is old, and what a process of an earlier version left of batches.

use std::time::Duration;

use super::task::{Look, Next, Task};
use crate::domain::current::Current;
use crate::store::{self, Purged, Store, Who};
use crate::worker::lease::clock::millis;
use crate::worker::work::settings::Rules;

/// An upload that goes on shows a sign of life every 20 s.
const UPLOAD_SILENT_MS: i64 = 5 * 60 * 1000;

pub(crate) struct CleanUp {
    pub store: Store,
    pub rules: Current<Rules>,
}

impl CleanUp {
    /// Moves usage of minutes into hours, and removes what is too old. Returns whether there may
    /// be more to do.
    async fn age_usage(&self, now: i64) -> store::Result<bool> {
        let has_more_minutes = self.store.roll_up_usage().await?;
        let has_more_hours = match self.rules.get().usage_kept {
            Some(kept) => self.store.forget_usage(now - millis(kept)).await?,
            None => false,
        };
        Ok(has_more_minutes || has_more_hours)
    }
}

impl Task for CleanUp {
    const NAME: &'static str = "clean_up";
    const TICK: Duration = Duration::from_mins(1);
    const WHO: Option<Who> = None;

    async fn round(&mut self, _: Look) -> store::Result<Next> {
        let now = self.store.now().await?;
        // A part that fails does not keep the others from being done.
        let swept = self.store.sweep_uploads(now - UPLOAD_SILENT_MS).await;
        let purged = self
            .store
            .purge(now - millis(self.rules.get().removal_grace))
            .await;
        let forgotten = self.store.forget_claims().await;
        let reuse = self.rules.get().reuse;
        let answers = self.store.remove_old_answers(millis(reuse.ttl)).await;
        // Less may be allowed now than when they were kept.
        let room = self.store.make_room(reuse.max_bytes).await;
        let replicas = self.store.forget_replicas().await;
        let units = self.store.sweep_units().await;
        let counts = self.store.settle_counts().await;
        let backlog = self.store.repair_backlog().await;
        let usage = self.age_usage(now).await;
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
        answers?;
        room?;
        let (settled, repaired, has_more_usage) = (counts?, backlog?, usage?);
        if repaired > 0 {
            tracing::warn!(
                batches = repaired,
                "batches whose units wait were in no backlog"
            );
        }
        Ok(if purged.removed > 0 || settled > 0 || has_more_usage {
            Next::AtOnce
        } else {
            Next::Later
        })
    }
}

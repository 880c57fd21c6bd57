//! When a flush is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::Pool;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::work::finished::{CompletionQueue, FULL_BYTES};

/// A flush is due so long after it has a first line and the flush before is through…
const INTERVAL: Duration = Duration::from_millis(100);
/// …or so long after its first line came, while few lines wait: that makes few commits. A line is
/// on disk a second after it came, and the rest of that second is for writing it.
const INTERVAL_QUIET: Duration = Duration::from_millis(800);
const FEW_LINES: usize = 64;
/// A batch of one unit that has finished waits so long for others like it, and so long lies between
/// two flushes. Somebody may be waiting for the batch, and a flush of many batches costs hardly
/// more than one of one batch.
const INTERVAL_WHOLE: Duration = Duration::from_millis(15);

/// What a flush writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    All,
    /// The batches of one unit that have finished. Lines of other batches wait for their own flush,
    /// so that few flushes write a unit.
    WholeBatches,
}

/// Waits until a flush is due. `earliest`: when a flush of all that waits is due at the earliest,
/// if that is known from before a flush of whole batches.
pub(super) async fn due(
    completions: &CompletionQueue,
    ledger: &SharedLedger,
    pool: &Pool,
    earliest: &mut Option<Instant>,
) -> Due {
    while completions.size().0 == 0 {
        *earliest = None;
        completions.changed().await;
    }
    let began = Instant::now();
    let earliest = *earliest.get_or_insert(began + INTERVAL);
    // The first line may have come while the flush before was written.
    let first = completions.first_at().unwrap_or(began);
    let latest = earliest.max(first + INTERVAL_QUIET);
    let mut next = earliest;
    loop {
        let (lines, bytes) = completions.size();
        // With nothing in flight, waiting would gather nothing.
        if bytes >= FULL_BYTES || ledger.is_idle() {
            return Due::All;
        }
        // Where the budget is full, other lines wait for the memory that these lines hold.
        let may_wait = lines < FEW_LINES && !pool.budget().is_full();
        let now = Instant::now();
        if now >= latest || (now >= earliest && !may_wait) {
            return Due::All;
        }
        let has_whole = completions.has_whole_batch();
        if has_whole && now >= began + INTERVAL_WHOLE {
            return Due::WholeBatches;
        }
        tokio::select! {
            () = completions.changed() => {}
            () = tokio::time::sleep_until(began + INTERVAL_WHOLE), if has_whole => {}
            () = tokio::time::sleep_until(next.min(latest)) => next += INTERVAL,
        }
    }
}

#[cfg(test)]
mod tests;

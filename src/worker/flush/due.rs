//! When a flush is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::Pool;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::work::finished::{CompletionQueue, FULL_BYTES};

/// A flush is due so long after it has a first line and the flush before is through…
const INTERVAL: Duration = Duration::from_millis(100);
/// …or so long after its first line came, while few lines wait: that makes few commits. A line is on
/// disk a second after it came, and the rest of that second is for writing it.
const INTERVAL_QUIET: Duration = Duration::from_millis(800);
const FEW_LINES: usize = 64;

/// Waits until a flush is due.
pub(super) async fn due(completions: &CompletionQueue, ledger: &SharedLedger, pool: &Pool) {
    while completions.size().0 == 0 {
        completions.changed().await;
    }
    let earliest = Instant::now() + INTERVAL;
    // The first line may have come while the flush before was written.
    let first = completions.first_at().unwrap_or_else(Instant::now);
    let latest = earliest.max(first + INTERVAL_QUIET);
    let mut next = earliest;
    loop {
        let (lines, bytes) = completions.size();
        // With nothing in flight, waiting would gather nothing.
        if bytes >= FULL_BYTES || ledger.is_idle() {
            return;
        }
        // Where the budget is full, other lines wait for the memory that these lines hold.
        let may_wait = lines < FEW_LINES && !pool.budget().is_full();
        let now = Instant::now();
        if now >= latest || (now >= earliest && !may_wait) {
            return;
        }
        tokio::select! {
            () = completions.changed() => {}
            () = tokio::time::sleep_until(next.min(latest)) => next += INTERVAL,
        }
    }
}

#[cfg(test)]
mod tests;

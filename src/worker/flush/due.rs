//! When a flush is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::Pool;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::work::finished::{CompletionQueue, FULL_BYTES};

/// A flush is due so long after its first line…
const INTERVAL: Duration = Duration::from_millis(100);
/// …or so long while few lines wait: that makes few commits, and answers are still durable within
/// a second.
const INTERVAL_QUIET: Duration = Duration::from_millis(400);
const FEW_LINES: usize = 64;

/// Waits until a flush is due.
pub(super) async fn due(completions: &CompletionQueue, ledger: &SharedLedger, pool: &Pool) {
    while completions.size().0 == 0 {
        completions.changed().await;
    }
    let first = Instant::now();
    let mut waited = Duration::ZERO;
    loop {
        let (lines, bytes) = completions.size();
        // With nothing in flight, waiting would gather nothing.
        if bytes >= FULL_BYTES || ledger.is_idle() {
            return;
        }
        // Where the budget is full, other lines wait for the memory that these lines hold.
        let may_wait = lines < FEW_LINES && !pool.budget().is_full();
        if waited >= INTERVAL_QUIET || (waited >= INTERVAL && !may_wait) {
            return;
        }
        tokio::select! {
            () = completions.changed() => {}
            () = tokio::time::sleep_until(first + waited + INTERVAL) => waited += INTERVAL,
        }
    }
}

//! Servers that die, fall silent or are cut off in the middle of a batch.

mod handovers;
mod kills;
mod names;
pub(super) mod outages;
mod poison;
mod refused;

use std::time::{Duration, Instant};

/// Waits until something holds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(
            Instant::now() < deadline,
            "it does not come to that: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

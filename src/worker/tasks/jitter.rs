//! Pauses that differ from process to process.

use std::time::Duration;

use rand::RngExt as _;

/// About so long. Processes that began together do not go on together.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

//! Waits that double.

use std::time::Duration;

use super::settings::RetrySettings;

/// How long to wait after the `attempt`th failure (from 1): exponential and capped, with full
/// jitter; `random` is in 0..1.
pub(super) fn backoff(attempt: u32, settings: &RetrySettings, random: f64) -> Duration {
    let ceiling = doubled(settings.initial_backoff, attempt.saturating_sub(1));
    ceiling
        .min(settings.max_backoff)
        .mul_f64(random.clamp(0.0, 1.0))
}

/// `first`, doubled so many times.
pub(super) fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
}

//! The clock by which a process trusts its lease, and how durations are told to the store.

use std::time::Duration;

pub(crate) use crate::domain::clock::Uptime;

/// A duration as the store takes it.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

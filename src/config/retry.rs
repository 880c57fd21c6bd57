//! `[retry]`: how often and how soon a line is sent again.

use std::time::Duration;

use super::reader::Reader;
use crate::upstream::RetrySettings;

const ATTEMPTS_MAX: u64 = 1_000;

/// Reads `[retry]`.
pub(super) fn read(mut reader: Reader<'_>) -> RetrySettings {
    let max_attempts = reader.whole("max_attempts", 1, ATTEMPTS_MAX);
    let initial = reader.duration("initial_backoff", Duration::from_millis(1));
    let max = reader.duration("max_backoff", Duration::from_millis(1));
    let longest_wait = reader.duration("longest_wait", Duration::from_millis(1));
    if max.is_some() && max < initial {
        reader.fault("`max_backoff` is less than `initial_backoff`");
    }
    reader.finish();
    RetrySettings {
        max_attempts: max_attempts.unwrap_or_default(),
        initial_backoff: initial.unwrap_or_default(),
        max_backoff: max.unwrap_or_default(),
        longest_wait: longest_wait.unwrap_or_default(),
    }
}

//! `[retry]`: how often and how soon a line is sent again.

use std::time::Duration;

use super::reader::Reader;

const ATTEMPTS_MAX: u64 = 1_000;

/// `[retry]`
#[derive(Clone, Debug)]
pub struct Retry {
    /// Calls that one line may cost, the first included: at least 1.
    pub max_attempts: u32,
    /// Before the second attempt; never zero.
    pub initial_backoff: Duration,
    /// Between any two attempts; at least `initial_backoff`.
    pub max_backoff: Duration,
    /// A server that asks to be left alone for longer is not believed: never zero.
    pub longest_wait: Duration,
}

impl Retry {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let max_attempts = reader.whole("max_attempts", 1, ATTEMPTS_MAX);
        let initial = reader.duration("initial_backoff", Duration::from_millis(1));
        let max = reader.duration("max_backoff", Duration::from_millis(1));
        let longest_wait = reader.duration("longest_wait", Duration::from_millis(1));
        if max.is_some() && max < initial {
            reader.fault("`max_backoff` is less than `initial_backoff`");
        }
        reader.finish();
        Self {
            max_attempts: max_attempts.unwrap_or_default(),
            initial_backoff: initial.unwrap_or_default(),
            max_backoff: max.unwrap_or_default(),
            longest_wait: longest_wait.unwrap_or_default(),
        }
    }
}

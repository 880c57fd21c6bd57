//! Warnings about what befalls many calls at once: one warning a minute, with a count.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two warnings.
const PAUSE: Duration = Duration::from_mins(1);

/// Something that is worth a warning, but not one warning for each call.
#[derive(Debug)]
pub(in crate::upstream) struct Notice(Mutex<State>);

#[derive(Debug)]
struct State {
    warned_at: Option<Instant>,
    /// Occurrences since then.
    times: u64,
}

impl Notice {
    pub(in crate::upstream) const fn new() -> Self {
        Self(Mutex::new(State {
            warned_at: None,
            times: 0,
        }))
    }

    /// Counts one occurrence. `Some`: it is time to warn, and the number is how often it has
    /// occurred since the last warning.
    pub(in crate::upstream) fn occurred(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.times += 1;
        let is_due = state
            .warned_at
            .is_none_or(|at| now.duration_since(at) >= PAUSE);
        is_due.then(|| {
            state.warned_at = Some(now);
            std::mem::take(&mut state.times)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_often_is_said_once_a_minute_with_how_often() {
        let notice = Notice::new();
        assert_eq!(notice.occurred(), Some(1));
        for _ in 0..9 {
            assert_eq!(notice.occurred(), None);
        }
        tokio::time::advance(PAUSE).await;
        assert_eq!(notice.occurred(), Some(10));
        assert_eq!(notice.occurred(), None);
    }
}

//! Warnings about what happens to many calls at once: said once in a while, with how often.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a warning is not repeated.
const PAUSE: Duration = Duration::from_secs(60);

/// Something that is worth a warning, but not one for each call.
#[derive(Debug)]
pub(in crate::upstream) struct Notice(Mutex<State>);

#[derive(Debug)]
struct State {
    said: Option<Instant>,
    /// Since then.
    times: u64,
}

impl Notice {
    pub(in crate::upstream) const fn new() -> Self {
        Self(Mutex::new(State {
            said: None,
            times: 0,
        }))
    }

    /// It has happened. `Some`: it is time to say so, and how often it has happened since it was
    /// said last.
    pub(in crate::upstream) fn happened(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.times += 1;
        let is_due = state
            .said
            .is_none_or(|said| now.duration_since(said) >= PAUSE);
        is_due.then(|| {
            state.said = Some(now);
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
        assert_eq!(notice.happened(), Some(1));
        for _ in 0..9 {
            assert_eq!(notice.happened(), None);
        }
        tokio::time::advance(PAUSE).await;
        assert_eq!(notice.happened(), Some(10));
        assert_eq!(notice.happened(), None);
    }
}

//! How often a call may begin, over all upstreams together.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::upstream::settings::CallRate;

/// Spaces the beginnings of calls, where a rate is set.
#[derive(Debug)]
pub(in crate::upstream) struct Interval {
    rate: Option<CallRate>,
    /// When the next call may begin.
    next: Mutex<Option<Instant>>,
}

impl Interval {
    pub(in crate::upstream) fn new(rate: Option<CallRate>) -> Self {
        Self {
            rate,
            next: Mutex::new(None),
        }
    }

    /// Whether calls may have to wait.
    pub(in crate::upstream) fn has_rate(&self) -> bool {
        self.rate.is_some()
    }

    /// Waits until a call may begin. `false`: no call may begin any more.
    pub(in crate::upstream) async fn turn(&self) -> bool {
        let Some(rate) = &self.rate else {
            return true;
        };
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + rate.interval);
            at
        };
        let turn = tokio::time::sleep_until(at);
        rate.stop.run_until_cancelled(turn).await.is_some()
    }
}

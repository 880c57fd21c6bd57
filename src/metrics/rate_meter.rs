//! How many there were lately: counts of the last seconds.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Events by second, over the last so many seconds.
#[derive(Debug)]
pub struct RateMeter<const SECONDS: usize> {
    began: Instant,
    state: Mutex<State<SECONDS>>,
}

#[derive(Debug)]
struct State<const SECONDS: usize> {
    /// The second that was counted in last.
    now: u64,
    counts: [u64; SECONDS],
}

impl<const SECONDS: usize> Default for RateMeter<SECONDS> {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            state: Mutex::new(State {
                now: 0,
                counts: [0; SECONDS],
            }),
        }
    }
}

impl<const SECONDS: usize> RateMeter<SECONDS> {
    pub fn add(&self, count: u64) {
        self.add_at(self.began.elapsed().as_secs(), count);
    }

    /// Events a second over all its seconds, or over the time since the beginning where that is
    /// shorter.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.per_second_at(self.began.elapsed().as_secs())
    }

    fn add_at(&self, second: u64, count: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance(second);
        state.counts[slot::<SECONDS>(second)] += count;
    }

    fn per_second_at(&self, second: u64) -> f64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance(second);
        let all: u64 = state.counts.iter().sum();
        // The second that runs is not over: counting it whole would understate the rate.
        let over = second.clamp(1, SECONDS as u64 - 1);
        all as f64 / over as f64
    }
}

impl<const SECONDS: usize> State<SECONDS> {
    /// Forgets what is too long ago.
    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.now).min(SECONDS as u64);
        for ahead in 1..=passed {
            self.counts[slot::<SECONDS>(self.now + ahead)] = 0;
        }
        if passed == SECONDS as u64 {
            self.counts = [0; SECONDS];
        }
        self.now = self.now.max(second);
    }
}

fn slot<const SECONDS: usize>(second: u64) -> usize {
    (second % SECONDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_half_minute() {
        let lately = RateMeter::<30>::default();
        assert_eq!(lately.per_second_at(0), 0.0);
        for second in 0..10 {
            lately.add_at(second, 100);
        }
        assert_eq!(lately.per_second_at(10), 100.0);
        assert_eq!(lately.per_second_at(20), 50.0);
        assert_eq!(lately.per_second_at(34), 500.0 / 29.0);
        assert_eq!(lately.per_second_at(40), 0.0);
        lately.add_at(1000, 29);
        assert_eq!(lately.per_second_at(1000), 1.0);
        assert_eq!(lately.per_second_at(100_000), 0.0);
    }
}

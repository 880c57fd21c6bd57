//! How fast the bytes of a file come.

use std::time::Duration;

/// What must come in each window of waiting for the client: 64 KiB a second. Slower than that, a
/// line of 16 MiB would keep its room for longer than four minutes.
const LEAST: usize = 640 << 10;
/// The first one is the client's to pick up speed.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts what comes while a file is waited for: not the time in which we are busy with what came,
/// nor that in which we wait for others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Of the window.
    waited: Duration,
    bytes: usize,
    /// Whether too little came in the window before, and has since.
    pub is_slow: bool,
}

impl Pace {
    /// Bytes have come.
    pub fn received(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= LEAST {
            self.is_slow = false;
        }
    }

    /// Bytes were waited for.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Begins another window where one is over. To be called before bytes are waited for, when
    /// those that came are counted.
    pub fn judge(&mut self) {
        if self.waited >= WINDOW {
            // Where it was many windows, nothing came in most of them.
            self.is_slow = self.bytes < LEAST || self.waited >= 2 * WINDOW;
            self.waited = Duration::ZERO;
            self.bytes = 0;
        }
    }

    /// For how long the next bytes may be waited for until the window is over.
    pub fn left(&self) -> Duration {
        WINDOW.saturating_sub(self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn who_sends_enough_in_each_window_is_not_slow() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.judge();
            assert!(!pace.is_slow);
            pace.waited(SECOND);
            pace.received(64 << 10);
        }
    }

    #[test]
    fn who_sends_too_little_is_slow_until_it_has_caught_up() {
        let mut pace = Pace::default();
        for _ in 0..9 {
            pace.judge();
            pace.waited(SECOND);
            pace.received(1);
        }
        pace.judge();
        assert!(!pace.is_slow, "the window is not over");
        assert_eq!(pace.left(), SECOND);
        pace.waited(SECOND);
        pace.judge();
        assert!(pace.is_slow);
        pace.received(LEAST - 1);
        assert!(pace.is_slow);
        pace.received(1);
        assert!(!pace.is_slow);
    }

    #[test]
    fn a_long_silence_is_slow_whatever_came_before_it() {
        let mut pace = Pace::default();
        pace.received(LEAST);
        pace.waited(2 * WINDOW);
        pace.judge();
        assert!(pace.is_slow);
    }
}

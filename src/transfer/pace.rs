//! How fast a client sends the bytes of a file.

use std::time::Duration;

/// Bytes that must come in each window of waiting for the client: 64 KiB a second. If a client were
/// slower, a line of 16 MiB would keep its room for longer than four minutes.
const WINDOW_BYTES_MIN: usize = 640 << 10;
/// How much waiting makes a window. In the first window a client may pick up speed.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts what comes in the time in which the server waits for this client. The time in which the
/// server works on what came, or waits for something else, does not count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// In this window.
    waited: Duration,
    bytes: usize,
    /// Whether too little came in the window before, and in this one so far.
    pub is_slow: bool,
}

impl Pace {
    /// Bytes have come.
    pub fn received(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= WINDOW_BYTES_MIN {
            self.is_slow = false;
        }
    }

    /// The server has waited so long for the client's bytes. This time counts towards the pace.
    pub fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Begins the next window if this one is over. The caller has counted all bytes that came, and
    /// is about to wait for more.
    pub fn begin_window(&mut self) {
        if self.waited >= WINDOW {
            // If it waited for two windows or more, nothing came in one of them.
            self.is_slow = self.bytes < WINDOW_BYTES_MIN || self.waited >= 2 * WINDOW;
            self.waited = Duration::ZERO;
            self.bytes = 0;
        }
    }

    /// How much waiting is left until this window is over.
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
            pace.begin_window();
            assert!(!pace.is_slow);
            pace.waited(SECOND);
            pace.received(64 << 10);
        }
    }

    #[test]
    fn who_sends_too_little_is_slow_until_it_has_caught_up() {
        let mut pace = Pace::default();
        for _ in 0..9 {
            pace.begin_window();
            pace.waited(SECOND);
            pace.received(1);
        }
        pace.begin_window();
        assert!(!pace.is_slow, "the window is not over");
        assert_eq!(pace.left(), SECOND);
        pace.waited(SECOND);
        pace.begin_window();
        assert!(pace.is_slow);
        pace.received(WINDOW_BYTES_MIN - 1);
        assert!(pace.is_slow);
        pace.received(1);
        assert!(!pace.is_slow);
    }

    #[test]
    fn a_long_silence_is_slow_whatever_came_before_it() {
        let mut pace = Pace::default();
        pace.received(WINDOW_BYTES_MIN);
        pace.waited(2 * WINDOW);
        pace.begin_window();
        assert!(pace.is_slow);
    }
}

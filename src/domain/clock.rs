//! Wall-clock time in milliseconds: the system's, set right by another clock, or moved by hand. And
//! moments of the uptime, which nobody sets.

use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// So far this clock may be from the one that is right before it is set by it.
const SET_FROM_MS: i64 = 1_000;

/// Gives the time. Cheap to clone; all clones are one clock.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How a test lets time pass, for all.
    offset_ms: AtomicI64,
    /// What the system's clock lacks.
    correction_ms: AtomicI64,
    /// By how much a test has the system's clock be wrong.
    wrong_ms: AtomicI64,
}

impl Clock {
    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        let correction = self.shared.correction_ms.load(Ordering::Relaxed);
        self.system_ms()
            .saturating_add(correction)
            .saturating_add(self.offset_ms())
    }

    /// What the system's clock says, right or wrong.
    #[must_use]
    pub fn system_ms(&self) -> i64 {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads the system's clock"
        )]
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        now.saturating_add(self.shared.wrong_ms.load(Ordering::Relaxed))
    }

    /// Sets this clock and all its clones by one that is right: that said `right_ms` at a moment
    /// between these two of the system's clock. Returns by how much that one is ahead; 0 where it
    /// may be right.
    #[must_use]
    pub fn set_by(&self, right_ms: i64, earliest_ms: i64, latest_ms: i64) -> i64 {
        let ahead = if earliest_ms > right_ms {
            earliest_ms - right_ms
        } else if latest_ms < right_ms {
            latest_ms - right_ms
        } else {
            0
        };
        let correction = if ahead.abs() < SET_FROM_MS { 0 } else { -ahead };
        self.shared
            .correction_ms
            .store(correction, Ordering::Relaxed);
        ahead
    }

    /// Moves this clock and all its clones forward: how a test lets a day pass.
    pub fn advance_ms(&self, by: i64) {
        self.shared.offset_ms.fetch_add(by, Ordering::Relaxed);
    }

    /// How far it was moved so.
    #[must_use]
    pub fn offset_ms(&self) -> i64 {
        self.shared.offset_ms.load(Ordering::Relaxed)
    }

    /// Has the system's clock be wrong by so much, as far as this clock and its clones know: how a
    /// test makes a machine whose clock is wrong.
    pub fn mistake_ms(&self, by: i64) {
        self.shared.wrong_ms.fetch_add(by, Ordering::Relaxed);
    }
}

/// A moment by a clock that nobody sets, and that goes on while the machine is suspended. Linux's
/// usual monotonic clock, behind [`std::time::Instant`], stands still during a suspension: with
/// it, a laptop that wakes or a virtual machine that is resumed would trust a lease that lapsed
/// hours ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(Duration);

impl Uptime {
    #[must_use]
    pub fn now() -> Self {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let clock = ClockId::Boottime;
        // On Apple's systems this clock goes on too. Elsewhere it is the nearest there is.
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let clock = ClockId::Monotonic;
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Uptime(Duration::new(seconds, nanoseconds))
    }

    /// The time from an earlier moment to this one; zero if it was not earlier.
    #[must_use]
    pub fn since(self, earlier: Uptime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Uptime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Uptime(self.0.saturating_add(duration))
    }
}

/// The Unix seconds that the API shows for a time in milliseconds.
#[must_use]
pub fn seconds(ms: i64) -> i64 {
    ms.div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_set_where_it_cannot_be_right() {
        let clock = Clock::default();
        assert_eq!(clock.set_by(5_000, 4_000, 6_000), 0);
        assert_eq!(clock.set_by(5_000, 5_400, 6_000), 400);
        assert!((clock.now_ms() - clock.system_ms()).abs() < 1_000);
        assert_eq!(clock.set_by(5_000, 86_405_000, 86_406_000), 86_400_000);
        let set_back = clock.system_ms() - clock.now_ms();
        assert!((set_back - 86_400_000).abs() < 1_000);
        assert_eq!(clock.set_by(90_000, 3_000, 4_000), -86_000);
    }
}

//! The clock by which a process trusts its lease, and how durations are told to the store.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment by a clock that nobody sets, and that goes on while the machine is suspended. Linux's
/// usual monotonic clock, behind [`std::time::Instant`], stands still during a suspension: with
/// it, a laptop that wakes or a virtual machine that is resumed would trust a lease that lapsed
/// hours ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Uptime(Duration);

impl Uptime {
    pub(crate) fn now() -> Self {
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
    pub(crate) fn since(self, earlier: Uptime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Uptime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Uptime(self.0.saturating_add(duration))
    }
}

/// A duration as the store takes it.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

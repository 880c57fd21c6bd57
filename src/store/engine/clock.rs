//! The database's clock. It decides what has ended or expired, because the clocks of processes may
//! be wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::clock::{Clock, Uptime};
use crate::metrics::metrics;

/// A process whose clock differs by more logs it.
const DIFFERS_MS: i64 = 5_000;

/// For so long after the database has told its time, the time is known without asking.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// A process's clock, which is set by the database's.
pub(super) struct StoreClock {
    clock: Clock,
    /// Whether the log says that this process's clock is wrong.
    is_logged: AtomicBool,
    /// What the database said last, and when.
    last: Mutex<Option<(i64, Uptime)>>,
}

impl StoreClock {
    pub(super) fn new(clock: Clock) -> Self {
        StoreClock {
            clock,
            is_logged: AtomicBool::new(false),
            last: Mutex::new(None),
        }
    }

    /// The database's time, if the database has told it just now. However this machine's clock is
    /// set meanwhile, the time stays right.
    pub(super) fn known(&self) -> Option<i64> {
        let (said, at) = (*self.last.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = Uptime::now().since(at);
        let passed = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        (since < KNOWN_FOR).then(|| said.saturating_add(passed))
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// What the system's clock says, right or wrong.
    pub(super) fn system_ms(&self) -> i64 {
        self.clock.system_ms()
    }

    /// How far a test has moved the clock.
    pub(super) fn offset_ms(&self) -> i64 {
        self.clock.offset_ms()
    }

    /// Sets this process's clock by the database's, which said `now` after the system's clock had
    /// said `earliest`.
    pub(super) fn set_by(&self, now: i64, earliest: i64) {
        let last = Some((now, Uptime::now()));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
        let ahead = self.clock.set_by(now, earliest, self.clock.system_ms());
        metrics().clock_differs(ahead);
        let differs = ahead.abs() > DIFFERS_MS;
        if differs != self.is_logged.swap(differs, Ordering::Relaxed) {
            let seconds = ahead / 1000;
            if differs {
                tracing::warn!(
                    clock.ahead_seconds = seconds,
                    "this machine's clock is not the database's, which is used instead: set it \
                     right"
                );
            } else {
                tracing::info!("this machine's clock is right again");
            }
        }
    }
}

//! The limit on requests a minute, as hosted providers enforce theirs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets so many requests through a minute, evenly: of what a minute allows, a second's worth
/// may come at once (and at least one request).
pub(super) struct RateLimit {
    interval: Duration,
    burst: Duration,
    /// When the requests let through so far will have been paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// A limit that lets through this many requests a minute, and at once what one second brings.
    pub(super) fn per_minute(requests: u64) -> Self {
        let nanoseconds = 60_000_000_000 / requests.max(1);
        let interval = Duration::from_nanos(nanoseconds);
        Self {
            interval,
            burst: Duration::from_secs(1).saturating_sub(interval),
            paid_until: Mutex::new(None),
        }
    }

    /// Lets a request through, or says after how long one will be.
    pub(super) fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut paid_until = self
            .paid_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = paid_until.map_or(now, |until| until.max(now));
        let ahead = start.saturating_duration_since(now);
        if ahead > self.burst {
            return Err(ahead.saturating_sub(self.burst));
        }
        *paid_until = Some(start + self.interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_may_come_at_once_and_the_rest_evenly() {
        let limit = RateLimit::per_minute(600);
        let start = Instant::now();
        let admitted = (0..100).filter(|_| limit.admit(start).is_ok()).count();
        assert_eq!(admitted, 10);
        assert_eq!(limit.admit(start), Err(Duration::from_millis(100)));
        assert!(limit.admit(start + Duration::from_millis(100)).is_ok());
        assert!(limit.admit(start + Duration::from_millis(150)).is_err());
    }

    #[test]
    fn a_slow_limit_lets_one_request_through_at_a_time() {
        let limit = RateLimit::per_minute(2);
        let start = Instant::now();
        assert!(limit.admit(start).is_ok());
        assert_eq!(limit.admit(start), Err(Duration::from_secs(30)));
        assert!(limit.admit(start + Duration::from_secs(30)).is_ok());
    }

    #[test]
    fn no_minute_has_more_than_its_requests_and_one_burst() {
        let limit = RateLimit::per_minute(60);
        let start = Instant::now();
        let admitted = (0..60_000)
            .filter(|ms| limit.admit(start + Duration::from_millis(*ms)).is_ok())
            .count();
        assert_eq!(admitted, 60);
    }
}

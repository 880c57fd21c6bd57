//! How far a batch has got, and how fast it gets on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rates are over this much of the past.
const TRAILING: Duration = Duration::from_secs(10);
/// A look at the past is kept this often.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// How far a batch has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Snapshot {
    /// Requests that have ended, the failed ones among them.
    pub done: u64,
    pub failed: u64,
    /// Requests whose answers are kept from an earlier run, among those that have ended.
    pub kept: u64,
    /// 0 where it is not known.
    pub total: u64,
    /// Tokens in and out, so far.
    pub tokens: u64,
}

/// How fast it gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) requests_per_second: f64,
    pub(super) tokens_per_second: f64,
}

/// What was done when: enough of it for the rates.
#[derive(Default)]
pub(super) struct Meter {
    first: Option<Sample>,
    /// Of the trailing time, the oldest in front.
    samples: VecDeque<Sample>,
    latest: Option<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    done: u64,
    tokens: u64,
}

impl Meter {
    pub(super) fn note(&mut self, snapshot: Snapshot, now: Instant) {
        let sample = Sample::new(snapshot, now);
        self.first.get_or_insert(sample);
        self.latest = Some(sample);
        let last = self.samples.back();
        if last.is_none_or(|last| now.saturating_duration_since(last.at) >= SAMPLE_EVERY) {
            self.samples.push_back(sample);
        }
        // The one in front is the last that is old enough, so that the time is never cut short.
        while self
            .samples
            .get(1)
            .is_some_and(|second| now.saturating_duration_since(second.at) >= TRAILING)
        {
            self.samples.pop_front();
        }
    }

    pub(super) fn trailing(&self) -> Rates {
        match (self.samples.front(), &self.latest) {
            (Some(from), Some(to)) => from.rates_until(to),
            _ => Rates::default(),
        }
    }

    pub(super) fn overall(&self, snapshot: Snapshot, now: Instant) -> (Rates, Duration) {
        let to = Sample::new(snapshot, now);
        let from = self.first.unwrap_or(to);
        let elapsed = now.saturating_duration_since(from.at);
        (from.rates_until(&to), elapsed)
    }
}

impl Sample {
    fn new(snapshot: Snapshot, at: Instant) -> Self {
        Self {
            at,
            done: snapshot.done,
            tokens: snapshot.tokens,
        }
    }

    fn rates_until(&self, later: &Self) -> Rates {
        let seconds = later.at.saturating_duration_since(self.at).as_secs_f64();
        let rate = |count: u64| {
            if seconds > 0.0 {
                float(count) / seconds
            } else {
                0.0
            }
        };
        Rates {
            requests_per_second: rate(later.done.saturating_sub(self.done)),
            tokens_per_second: rate(later.tokens.saturating_sub(self.tokens)),
        }
    }
}

/// Exact up to 2^53, which is more than any batch has.
#[expect(clippy::cast_precision_loss, reason = "rates are shown to two digits")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(done: u64, failed: u64, total: u64, tokens: u64) -> Snapshot {
        Snapshot {
            done,
            failed,
            kept: 0,
            total,
            tokens,
        }
    }

    #[test]
    fn rates_are_over_the_trailing_time_and_bounded_in_memory() {
        let mut meter = Meter::default();
        let start = Instant::now();
        let mut done = 500;
        // Ten a second for 60 seconds, then a hundred a second for 20, looked at every 10 ms.
        for step in 0..8000_u32 {
            let now = start + step * Duration::from_millis(10);
            meter.note(snapshot(done, 0, 9999, done * 2), now);
            done += if step < 6000 {
                u64::from(step % 10 == 0)
            } else {
                1
            };
        }
        let trailing = meter.trailing();
        assert!((trailing.requests_per_second - 100.0).abs() < 1.0);
        assert!((trailing.tokens_per_second - 200.0).abs() < 2.0);
        assert!(meter.samples.len() <= 53, "{}", meter.samples.len());

        let end = start + Duration::from_secs(80);
        let (overall, elapsed) = meter.overall(snapshot(done, 0, 9999, 0), end);
        assert!((overall.requests_per_second - 32.5).abs() < 0.1);
        assert_eq!(elapsed, Duration::from_secs(80));
    }

    #[test]
    fn what_was_done_before_the_first_look_is_in_no_rate() {
        let mut meter = Meter::default();
        let start = Instant::now();
        meter.note(snapshot(900, 0, 1000, 0), start);
        assert_eq!(meter.trailing(), Rates::default());
        meter.note(
            snapshot(910, 0, 1000, 0),
            start + Duration::from_millis(100),
        );
        assert!((meter.trailing().requests_per_second - 100.0).abs() < 0.01);
    }
}

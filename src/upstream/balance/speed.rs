//! How fast a model at an upstream answers, and how often it fails. Late calls count for more than
//! early ones.

use std::cmp::Ordering;
use std::time::Duration;

use tokio::time::Instant;

/// What the calls before a call count for beside it: about the last 32 are remembered.
const KEPT: f64 = 31.0 / 32.0;
/// What is known counts half when nothing was heard for so long.
pub(super) const OUTDATED_AFTER: Duration = Duration::from_secs(10);
/// So many calls show how fast a target is.
const EXPLORED_FROM: f64 = 4.0;
/// A target that fails more than one call in so many comes after those that do not.
const CALLS_A_FAILURE: f64 = 5.0;
/// A failed call counts as one that takes so many times as long as those that succeed.
const FAILURE_COUNTS_AS: f64 = 10.0;

/// All numbers are sums over calls.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::upstream) struct Speed {
    calls: f64,
    failures: f64,
    successes: f64,
    seconds: f64,
    /// Of those calls whose answers report tokens.
    tokens: f64,
    token_seconds: f64,
    heard: Option<Instant>,
}

impl Speed {
    /// A call has succeeded. `tokens`: how many the answer reports; none if it reports nothing.
    pub(in crate::upstream) fn succeeded(&mut self, took: Duration, tokens: u64, now: Instant) {
        self.hear(now);
        let seconds = took.as_secs_f64();
        self.successes += 1.0;
        self.seconds += seconds;
        if tokens > 0 {
            self.tokens += tokens as f64;
            self.token_seconds += seconds;
        }
    }

    /// A call has failed, and not through its line's own fault.
    pub(in crate::upstream) fn failed(&mut self, now: Instant) {
        self.hear(now);
        self.failures += 1.0;
    }

    fn hear(&mut self, now: Instant) {
        let last = self.heard.replace(now);
        let is_outdated = last.is_some_and(|last| now.duration_since(last) >= OUTDATED_AFTER);
        let kept = if is_outdated { KEPT / 2.0 } else { KEPT };
        for sum in [
            &mut self.calls,
            &mut self.failures,
            &mut self.successes,
            &mut self.seconds,
            &mut self.tokens,
            &mut self.token_seconds,
        ] {
            *sum *= kept;
        }
        self.calls += 1.0;
    }

    /// Whether too little is known to judge by.
    pub(super) fn is_unexplored(&self) -> bool {
        self.calls < EXPLORED_FROM
    }

    /// Whether it fails so often that another one is to be preferred.
    pub(super) fn is_failing(&self) -> bool {
        self.failures * CALLS_A_FAILURE > self.calls
    }

    /// Which of two is faster (`Less`), for each token where both report tokens, else for each
    /// call. What has never answered is slower than what has.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let pace = |one: &Self| {
            if self.tokens > 0.0 && other.tokens > 0.0 {
                one.token_seconds / one.tokens
            } else if one.successes > 0.0 {
                one.seconds / one.successes
            } else {
                f64::INFINITY
            }
        };
        let slowed = |one: &Self| pace(one) * (1.0 + (FAILURE_COUNTS_AS - 1.0) * one.failed_part());
        slowed(self).total_cmp(&slowed(other))
    }

    fn failed_part(&self) -> f64 {
        if self.calls > 0.0 {
            self.failures / self.calls
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(calls: &[(u64, u64)]) -> Speed {
        let (mut speed, now) = (Speed::default(), Instant::now());
        for &(ms, tokens) in calls {
            speed.succeeded(Duration::from_millis(ms), tokens, now);
        }
        speed
    }

    #[test]
    fn time_for_each_token_counts_where_both_report_tokens() {
        let (long, short) = (of(&[(1_000, 100)]), of(&[(200, 10)]));
        assert_eq!(long.compare(&short), Ordering::Less);
        let silent = of(&[(500, 0)]);
        assert_eq!(long.compare(&silent), Ordering::Greater, "by the call");
        assert_eq!(silent.compare(&short), Ordering::Greater);
        assert_eq!(Speed::default().compare(&silent), Ordering::Greater);
        assert_eq!(Speed::default().compare(&Speed::default()), Ordering::Equal);
    }

    #[test]
    fn what_was_slow_and_is_fast_is_found_to_be_fast() {
        let steady = of(&[(100, 10)]);
        let mut changed = of(&[(1_000, 10); 100]);
        assert_eq!(changed.compare(&steady), Ordering::Greater);
        let now = Instant::now();
        for _ in 0..200 {
            changed.succeeded(Duration::from_millis(50), 10, now);
        }
        assert_eq!(changed.compare(&steady), Ordering::Less);
    }

    #[test]
    fn failures_count_as_slow_and_more_than_one_in_five_is_failing() {
        let now = Instant::now();
        let with_failures = |every: usize| {
            let mut speed = Speed::default();
            for call in 1..=300 {
                if call % every == 0 {
                    speed.failed(now);
                } else {
                    speed.succeeded(Duration::from_millis(100), 10, now);
                }
            }
            speed
        };
        let (seldom, often) = (with_failures(10), with_failures(3));
        assert!(!seldom.is_failing() && often.is_failing());
        assert_eq!(of(&[(150, 10)]).compare(&seldom), Ordering::Less);
        assert_eq!(of(&[(250, 10)]).compare(&seldom), Ordering::Greater);
        assert!(!Speed::default().is_failing());
    }

    #[test]
    fn what_is_known_is_soon_outweighed_once_nothing_was_heard_for_long() {
        let start = Instant::now();
        let mut speed = Speed::default();
        for _ in 0..100 {
            speed.failed(start);
        }
        let mut later = start;
        let mut successes = 0;
        while speed.is_failing() {
            later += OUTDATED_AFTER;
            speed.succeeded(Duration::from_millis(1), 1, later);
            successes += 1;
        }
        assert!(successes <= 8, "{successes}");
    }
}

//! How long calls take for their tokens, as sums that processes can add up. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets for each doubling of a time: each is 2.2 % wide.
const PER_DOUBLING: f64 = 32.0;
/// The buckets begin at 2^-20 s for a token (1 µs) and end at 2^11 s (half an hour).
const DOUBLINGS_BELOW_A_SECOND: f64 = 20.0;
const BUCKETS: usize = 31 * 32;

/// The standard error of a median is so much of the quartiles' distance over the root of the
/// count: exact for a normal distribution.
const MEDIAN_ERROR: f64 = 0.93;

/// From so many calls on, a line through them is believed.
const TREND_CALLS_MIN: f64 = 8.0;
/// Calls whose number of tokens varies less than this, as a part of the mean, are all alike.
const TREND_SPREAD_MIN: f64 = 0.03;
/// No call is taken to have more of an overhead, in means of the tokens.
const OVERHEAD_MAX: f64 = 8.0;

/// What a process counts: there is room for every bucket, so that a call allocates nothing.
#[derive(Debug)]
pub(super) struct PaceCounts(Box<[u32; BUCKETS]>);

impl Default for PaceCounts {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl PaceCounts {
    /// A call took so long, with so much work: its tokens and the overhead.
    pub(super) fn count(&mut self, took: Duration, work: f64) {
        let seconds = took.as_secs_f64() / work.max(1.0);
        let place = (seconds.log2() + DOUBLINGS_BELOW_A_SECOND) * PER_DOUBLING;
        // What is out of range becomes the nearest number that is within.
        let bucket = (place as usize).min(BUCKETS - 1);
        self.0[bucket] = self.0[bucket].saturating_add(1);
    }

    /// What was counted. Counting begins anew.
    pub(super) fn take(&mut self) -> Paces {
        let counted = self.0.iter_mut().enumerate();
        let counted = counted.filter(|(_, count)| **count > 0);
        let counts = counted.map(|(bucket, count)| {
            let bucket = u16::try_from(bucket).unwrap_or(u16::MAX);
            (bucket, std::mem::take(count))
        });
        Paces(counts.collect())
    }
}

/// Seconds for each token of work, counted by bucket: those that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Paces(BTreeMap<u16, u32>);

impl Paces {
    pub(super) fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            let sum = self.0.entry(*bucket).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// The median, in seconds for a token. `None`: nothing was counted.
    #[must_use]
    pub(super) fn median(&self) -> Option<f64> {
        self.quantile(0.5)
    }

    /// How many calls must be counted until the median is known to `part` of itself, as far as
    /// their spread shows.
    #[must_use]
    pub(super) fn needed_for(&self, part: f64) -> f64 {
        let quartiles = self.quantile(0.25).zip(self.quantile(0.75));
        let spread = quartiles.map_or(0.0, |(low, high)| (high / low).ln());
        (MEDIAN_ERROR * spread / part).powi(2)
    }

    /// In seconds for a token; within a bucket, calls are taken to be spread evenly.
    fn quantile(&self, part: f64) -> Option<f64> {
        let all: f64 = self.0.values().map(|count| f64::from(*count)).sum();
        let mut below = 0.0;
        for (bucket, count) in &self.0 {
            let (rank, count) = (all * part, f64::from(*count));
            if count > 0.0 && below + count >= rank {
                let within = (rank - below) / count;
                let doublings = (f64::from(*bucket) + within) / PER_DOUBLING;
                return Some((doublings - DOUBLINGS_BELOW_A_SECOND).exp2());
            }
            below += count;
        }
        None
    }
}

/// Sums for a line through the calls: by how much they take longer that have more tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Trend {
    calls: f64,
    tokens: f64,
    squares: f64,
    seconds: f64,
    products: f64,
}

impl Trend {
    pub(super) fn count(&mut self, took: Duration, tokens: u64) {
        let (tokens, seconds) = (tokens as f64, took.as_secs_f64());
        self.calls += 1.0;
        self.tokens += tokens;
        self.squares += tokens * tokens;
        self.seconds += seconds;
        self.products += tokens * seconds;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.tokens += other.tokens;
        self.squares += other.squares;
        self.seconds += other.seconds;
        self.products += other.products;
    }

    /// Lets what was counted so far count less.
    pub(super) fn fade(&mut self, by: f64) {
        self.calls *= by;
        self.tokens *= by;
        self.squares *= by;
        self.seconds *= by;
        self.products *= by;
    }

    #[must_use]
    pub(super) fn calls(&self) -> f64 {
        self.calls
    }

    /// Tokens of a call.
    #[must_use]
    pub(super) fn mean(&self) -> f64 {
        self.tokens / self.calls.max(1.0)
    }

    /// How many tokens could be written in the time that a call takes beside its tokens: to be
    /// read, mostly. `None`: the calls do not tell.
    #[must_use]
    pub(super) fn overhead(&self) -> Option<f64> {
        let mean = self.mean();
        let variance = self.squares / self.calls.max(1.0) - mean * mean;
        if self.calls < TREND_CALLS_MIN || variance <= (TREND_SPREAD_MIN * mean).powi(2) {
            return None;
        }
        let seconds = self.seconds / self.calls;
        let slope = (self.products / self.calls - mean * seconds) / variance;
        let overhead = if slope > 0.0 {
            seconds / slope - mean
        } else {
            f64::INFINITY
        };
        Some(overhead.clamp(0.0, OVERHEAD_MAX * mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_two_processes_is_that_of_their_calls_together() {
        let (mut one, mut other) = (PaceCounts::default(), PaceCounts::default());
        for call in 1..=100_u32 {
            let counts = if call % 3 == 0 { &mut one } else { &mut other };
            counts.count(Duration::from_millis(u64::from(call)), 1.0);
        }
        let mut all = one.take();
        all.add(&other.take());
        let median = all.median().expect("calls were counted");
        assert!((0.049..0.052).contains(&median), "{median}");
        assert_eq!(one.take(), Paces::default());
    }

    #[test]
    fn a_wide_spread_asks_for_more_calls() {
        let needed = |spread: u64| {
            let mut counts = PaceCounts::default();
            for call in 0..100 {
                counts.count(Duration::from_millis(1_000 + call * spread), 10.0);
            }
            counts.take().needed_for(0.02)
        };
        assert!(needed(0) < 1.0);
        assert!(needed(10) > 100.0);
    }

    #[test]
    fn times_beyond_all_buckets_are_counted_in_the_last_ones() {
        let mut counts = PaceCounts::default();
        counts.count(Duration::ZERO, 1.0);
        counts.count(Duration::MAX, 1.0);
        let paces = counts.take();
        assert_eq!(paces.0.keys().copied().collect::<Vec<_>>(), [0, 991]);
    }

    #[test]
    fn what_a_call_takes_beside_its_tokens_is_told_from_calls_of_different_lengths() {
        let mut trend = Trend::default();
        for tokens in [10, 50, 200, 20, 90, 400, 30, 70, 15] {
            trend.count(Duration::from_millis(300 + 20 * tokens), tokens);
        }
        let overhead = trend.overhead().expect("the lengths differ");
        assert!((14.9..15.1).contains(&overhead), "{overhead}");
        let mut alike = Trend::default();
        for _ in 0..20 {
            alike.count(Duration::from_millis(500), 10);
        }
        assert_eq!(alike.overhead(), None);
    }
}

//! How old the calls in flight are: a count for each second in which calls began.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Calls in flight that have taken long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldCalls {
    pub count: usize,
    /// The age of the oldest call.
    pub oldest: Duration,
}

/// Counts the calls in flight by the second in which they began. A call that begins or ends
/// changes one number. The list is as long as the oldest call is old, in seconds, however many
/// calls there are.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Ages {
    /// When the first call began.
    origin: Option<Instant>,
    /// The second, from the origin, that the list begins with. In that second began a call that is
    /// still in flight, unless the list is empty.
    first: u64,
    counts: VecDeque<usize>,
}

/// The second in which a call began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Second(u64);

impl Ages {
    /// A call begins.
    pub(in crate::upstream) fn begin(&mut self, now: Instant) -> Second {
        self.origin.get_or_insert(now);
        let now = self.second(now);
        if self.counts.is_empty() {
            self.first = now;
        }
        // Two threads may come in another order than they looked at the clock.
        let second = now.max(self.first);
        let index = self.index(second);
        while self.counts.len() <= index {
            self.counts.push_back(0);
        }
        self.counts[index] += 1;
        Second(second)
    }

    /// A call has ended that began in this second.
    pub(in crate::upstream) fn end(&mut self, Second(second): Second) {
        let index = self.index(second);
        if let Some(count) = self.counts.get_mut(index) {
            *count = count.saturating_sub(1);
        }
        while self.counts.front() == Some(&0) {
            self.counts.pop_front();
            self.first += 1;
        }
    }

    /// The calls that are at least so old; `None` without one. Ages are told to the second.
    pub(in crate::upstream) fn older_than(&self, age: Duration, now: Instant) -> Option<OldCalls> {
        let now = self.second(now);
        let until = now.checked_sub(age.as_secs())?;
        let seconds = (self.first..=until).zip(&self.counts);
        let count = seconds.map(|(_, count)| count).sum();
        (count > 0).then(|| OldCalls {
            count,
            oldest: Duration::from_secs(now.saturating_sub(self.first)),
        })
    }

    fn second(&self, at: Instant) -> u64 {
        self.origin
            .map_or(0, |origin| at.saturating_duration_since(origin).as_secs())
    }

    fn index(&self, second: u64) -> usize {
        usize::try_from(second.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_call_is_found_and_the_list_is_as_long_as_it_is_old() {
        let start = Instant::now();
        let mut ages = Ages::default();
        assert_eq!(ages.older_than(Duration::ZERO, start), None);
        let old = ages.begin(start + seconds(100));
        let others: Vec<Second> = (0..60_000)
            .map(|call| ages.begin(start + seconds(103 + call % 2)))
            .collect();
        assert_eq!(ages.counts.len(), 5);
        let told = |count, oldest| {
            let oldest = seconds(oldest);
            Some(OldCalls { count, oldest })
        };
        assert_eq!(ages.older_than(seconds(10), start + seconds(109)), None);
        assert_eq!(
            ages.older_than(seconds(10), start + seconds(112)),
            told(1, 12)
        );
        assert_eq!(
            ages.older_than(seconds(8), start + seconds(112)),
            told(60_001, 12)
        );
        ages.end(old);
        assert_eq!(ages.counts.len(), 2);
        assert_eq!(
            ages.older_than(seconds(9), start + seconds(112)),
            told(30_000, 9)
        );
        for call in others {
            ages.end(call);
        }
        assert!(ages.counts.is_empty());
    }

    proptest! {
        #[test]
        fn it_tells_what_a_look_at_every_call_would(
            steps in proptest::collection::vec((0_u64..5, any::<bool>(), any::<prop::sample::Index>()), 1..200),
            age in 0_u64..20,
        ) {
            let start = Instant::now();
            let mut ages = Ages::default();
            let (mut now, mut calls) = (start, Vec::new());
            for (passed, begins, which) in steps {
                now += seconds(passed);
                if begins || calls.is_empty() {
                    calls.push((now, ages.begin(now)));
                } else {
                    let (_, second) = calls.swap_remove(which.index(calls.len()));
                    ages.end(second);
                }
                let old = calls.iter().map(|(begun, _)| now - *begun);
                let count = old.clone().filter(|&old| old >= seconds(age)).count();
                let oldest = old.max().unwrap_or_default();
                let expected = (count > 0).then_some(OldCalls { count, oldest });
                prop_assert_eq!(ages.older_than(seconds(age), now), expected);
            }
        }
    }
}

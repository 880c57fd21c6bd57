//! Round robin: one target after the other, whatever their weights.

use super::load::{Avoid, Candidates};

#[derive(Debug, Default)]
pub(in crate::upstream) struct RoundRobin {
    /// Whose turn it is.
    next: usize,
}

impl RoundRobin {
    /// The first target that can take the line, from the one on whose turn it is.
    pub(super) fn choose(&mut self, targets: &impl Candidates) -> Option<usize> {
        let count = targets.count();
        let mut first: Option<(Avoid, usize)> = None;
        for step in 0..count {
            let index = (self.next + step) % count;
            let Some(load) = targets.load(index) else {
                continue;
            };
            if first.is_none_or(|(avoid, _)| load.avoid < avoid) {
                first = Some((load.avoid, index));
            }
            if load.avoid == Avoid::No {
                break;
            }
        }
        let (_, chosen) = first?;
        self.next = (chosen + 1) % count;
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Field, spread, weights};
    use super::*;

    #[test]
    fn thirty_lines_over_three_targets_are_ten_each() {
        let mut balancer = RoundRobin::default();
        let mut field = Field::new(&[7, 1, 1], 100);
        let taken = spread(&mut field, 30, |field| balancer.choose(field));
        assert_eq!(taken, [10, 10, 10]);
    }

    proptest! {
        #[test]
        fn the_next_target_with_a_place_takes_the_line(
            weights in weights(),
            places in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..100),
        ) {
            let count = weights.len();
            let mut balancer = RoundRobin::default();
            let mut last = count - 1;
            for places in places {
                let mut field = Field::new(&weights, 1);
                for (in_flight, has_place) in field.in_flight.iter_mut().zip(&places) {
                    *in_flight = usize::from(!has_place);
                }
                let in_turn = (1..=count).map(|step| (last + step) % count);
                let expected = in_turn.into_iter().find(|&index| places[index]);
                prop_assert_eq!(balancer.choose(&field), expected);
                last = expected.unwrap_or(last);
            }
        }
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last() {
        let mut field = Field::new(&[1, 1], 1);
        field.failed_at = Some(0);
        let mut balancer = RoundRobin::default();
        assert_eq!(balancer.choose(&field), Some(1));
        assert_eq!(balancer.choose(&field), Some(1));
        field.in_flight[1] = 1;
        assert_eq!(balancer.choose(&field), Some(0));
    }
}

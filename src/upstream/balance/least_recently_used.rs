//! Least recently used: the target that was chosen longest ago, be its calls answered or not.

use super::load::Candidates;

#[derive(Debug)]
pub(in crate::upstream) struct LeastRecentlyUsed {
    /// By target: the number of the choice that fell on it last. Zero: none did.
    chosen: Box<[u64]>,
    made: u64,
}

impl LeastRecentlyUsed {
    pub(super) fn new(count: usize) -> Self {
        Self {
            chosen: vec![0; count].into(),
            made: 0,
        }
    }

    pub(super) fn choose(&mut self, targets: &impl Candidates) -> Option<usize> {
        let open = (0..targets.count()).filter_map(|index| {
            let load = targets.load(index)?;
            Some((load.avoid, self.chosen[index], index))
        });
        let (_, _, chosen) = open.min()?;
        self.made += 1;
        self.chosen[chosen] = self.made;
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
        let mut balancer = LeastRecentlyUsed::new(3);
        let mut field = Field::new(&[7, 1, 1], 100);
        let taken = spread(&mut field, 30, |field| balancer.choose(field));
        assert_eq!(taken, [10, 10, 10]);
    }

    proptest! {
        #[test]
        fn none_is_chosen_again_while_one_with_a_place_was_chosen_earlier(
            weights in weights(),
            places in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..100),
        ) {
            let mut balancer = LeastRecentlyUsed::new(weights.len());
            let mut order: Vec<usize> = (0..weights.len()).collect();
            for places in places {
                let mut field = Field::new(&weights, 1);
                for (in_flight, has_place) in field.in_flight.iter_mut().zip(&places) {
                    *in_flight = usize::from(!has_place);
                }
                let place = order.iter().position(|&index| places[index]);
                let expected = place.map(|place| order.remove(place));
                prop_assert_eq!(balancer.choose(&field), expected);
                order.extend(expected);
            }
        }
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last() {
        let mut field = Field::new(&[1, 1], 1);
        field.failed_at = Some(0);
        let mut balancer = LeastRecentlyUsed::new(2);
        assert_eq!(balancer.choose(&field), Some(1));
        assert_eq!(balancer.choose(&field), Some(1));
        field.in_flight[1] = 1;
        assert_eq!(balancer.choose(&field), Some(0));
    }
}

//! Random: by weight.

use super::load::{Candidates, Load, Loads};

#[derive(Debug)]
pub(in crate::upstream) struct Random {
    loads: Loads,
}

impl Random {
    pub(super) fn new(count: usize) -> Self {
        Self {
            loads: Loads::new(count),
        }
    }

    /// `below`: a random number from 0 to less than what it is given.
    pub(super) fn choose(
        &mut self,
        targets: &impl Candidates,
        below: impl FnOnce(u64) -> u64,
    ) -> Option<usize> {
        let mut loads = self.loads.least_avoided(targets);
        let weight = |(_, load): (usize, Load)| u64::from(load.weight);
        let total: u64 = loads.clone().map(weight).sum();
        let mut left = if total > 0 { below(total) } else { 0 };
        let chosen = loads.find(|&load| {
            let is_chosen = left < weight(load);
            left = left.saturating_sub(weight(load));
            is_chosen
        });
        chosen.map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Field, weights};
    use super::*;

    proptest! {
        #[test]
        fn each_target_with_a_place_is_as_likely_as_its_weight(
            weights in weights(),
            places in prop::collection::vec(any::<bool>(), 8),
        ) {
            let mut field = Field::new(&weights, 1);
            let mut expected = weights.clone();
            for (index, expected) in expected.iter_mut().enumerate() {
                if !places[index] {
                    field.in_flight[index] = 1;
                    *expected = 0;
                }
            }
            let mut balancer = Random::new(weights.len());
            let total: u32 = expected.iter().sum();
            // Each number that can be drawn is drawn once.
            let mut taken = vec![0; weights.len()];
            for number in 0..total {
                let chosen = balancer.choose(&field, |limit| {
                    assert_eq!(limit, u64::from(total));
                    u64::from(number)
                });
                taken[chosen.expect("a place")] += 1;
            }
            prop_assert_eq!(taken, expected);
            if total == 0 {
                prop_assert_eq!(balancer.choose(&field, |_| 0), None);
            }
        }
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last() {
        let mut field = Field::new(&[9, 1], 1);
        field.failed_at = Some(0);
        let mut balancer = Random::new(2);
        for number in 0..9 {
            let chosen = balancer.choose(&field, |limit| number % limit);
            assert_eq!(chosen, Some(1));
        }
        field.in_flight[1] = 1;
        assert_eq!(balancer.choose(&field, |limit| limit - 1), Some(0));
    }
}

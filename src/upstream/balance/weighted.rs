//! Weighted: smooth weighted round robin. Each choice gives every target credit by its weight, and
//! the target with the most credit takes the line and pays for it.
//!
//! Only targets that can take the line are given credit and pay. So what was full or closed for a
//! while has nothing to catch up on, and the proportion holds among the others meanwhile.

use super::load::{Candidates, Loads};

#[derive(Debug)]
pub(in crate::upstream) struct Weighted {
    /// By target. What a choice gives to all and takes from one is the same.
    credits: Box<[i64]>,
    loads: Loads,
}

impl Weighted {
    pub(super) fn new(count: usize) -> Self {
        Self {
            credits: vec![0; count].into(),
            loads: Loads::new(count),
        }
    }

    pub(super) fn choose(&mut self, targets: &impl Candidates) -> Option<usize> {
        let mut given = 0;
        let mut best: Option<usize> = None;
        for (index, load) in self.loads.least_avoided(targets) {
            let weight = i64::from(load.weight);
            self.credits[index] += weight;
            given += weight;
            if best.is_none_or(|best| self.credits[index] > self.credits[best]) {
                best = Some(index);
            }
        }
        let chosen = best?;
        self.credits[chosen] -= given;
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Field, spread, weights};
    use super::*;

    #[test]
    fn thirty_lines_go_by_weight() {
        let fill = |weights: &[u32]| {
            let mut balancer = Weighted::new(weights.len());
            let mut field = Field::new(weights, 100);
            spread(&mut field, 30, |field| balancer.choose(field))
        };
        assert_eq!(fill(&[1, 1, 1]), [10, 10, 10]);
        assert_eq!(fill(&[3, 2, 1]), [15, 10, 5]);
    }

    proptest! {
        #[test]
        fn each_target_is_within_two_lines_of_its_share_at_any_time(weights in weights()) {
            let mut balancer = Weighted::new(weights.len());
            let mut field = Field::new(&weights, usize::MAX);
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            let mut taken = vec![0_u64; weights.len()];
            for made in 1..=2_000_u64 {
                let chosen = balancer.choose(&field).expect("a place");
                field.in_flight[chosen] += 1;
                taken[chosen] += 1;
                for (taken, &weight) in taken.iter().zip(&weights) {
                    let share = (made * u64::from(weight)) as f64 / total as f64;
                    prop_assert!((*taken as f64 - share).abs() < 2.0, "{taken} of {share}");
                }
            }
        }

        #[test]
        fn none_is_skipped(weights in weights()) {
            let mut balancer = Weighted::new(weights.len());
            let field = Field::new(&weights, usize::MAX);
            let round: u32 = weights.iter().sum();
            // After as many lines as all weights together, each has had as many as its weight.
            for _ in 0..2 {
                let mut taken = vec![0; weights.len()];
                for _ in 0..round {
                    taken[balancer.choose(&field).expect("a place")] += 1;
                }
                prop_assert_eq!(&taken, &weights);
            }
        }

        #[test]
        fn where_targets_are_full_the_others_keep_their_proportion(
            weights in weights(),
            times_full in prop::collection::vec(0..4_usize, 1..8),
        ) {
            let mut balancer = Weighted::new(weights.len());
            let mut field = Field::new(&weights, 1);
            // One after the other is full for a while.
            for (round, times) in times_full.into_iter().enumerate() {
                let full = round % weights.len();
                field.in_flight[full] = 1;
                for _ in 0..times {
                    let chosen = balancer.choose(&field);
                    prop_assert_eq!(chosen.is_none(), weights.len() == 1);
                    prop_assert_ne!(chosen, Some(full));
                }
                field.in_flight[full] = 0;
            }
            let most = 2 * i64::from(weights.iter().sum::<u32>());
            prop_assert!(balancer.credits.iter().all(|credit| credit.abs() <= most));
            prop_assert_eq!(balancer.credits.iter().sum::<i64>(), 0);
        }
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last() {
        let mut field = Field::new(&[100, 1], 1);
        field.failed_at = Some(0);
        let mut balancer = Weighted::new(2);
        assert_eq!(balancer.choose(&field), Some(1));
        field.in_flight[1] = 1;
        assert_eq!(balancer.choose(&field), Some(0));
        field.in_flight[0] = 1;
        assert_eq!(balancer.choose(&field), None);
    }
}

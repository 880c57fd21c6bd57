//! Least busy: the target with the least in flight for its weight.

use super::load::{Candidates, Load};

/// Targets that are equally busy take turns.
#[derive(Debug, Default)]
pub(in crate::upstream) struct LeastBusy {
    turn: usize,
}

impl LeastBusy {
    pub(super) fn choose(&mut self, targets: &impl Candidates) -> Option<usize> {
        let count = targets.count();
        let mut best: Option<(usize, Load)> = None;
        for step in 0..count {
            let index = (self.turn % count + step) % count;
            if let Some(load) = targets.load(index)
                && best.is_none_or(|(_, least)| is_less_busy(load, least))
            {
                best = Some((index, load));
            }
        }
        let (chosen, _) = best?;
        self.turn = self.turn.wrapping_add(1);
        Some(chosen)
    }
}

/// Whether a target is less busy than another one. What the line avoids is busier than all else.
pub(super) fn is_less_busy(one: Load, other: Load) -> bool {
    let product = |load: Load, other: Load| load.in_flight as u64 * u64::from(other.weight);
    (one.avoid, product(one, other)) < (other.avoid, product(other, one))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::super::testing::{Field, spread};
    use super::*;

    proptest! {
        /// Whatever begins and ends, no target with a place has less in flight for its weight than
        /// the one that takes the line.
        #[test]
        fn the_least_busy_for_its_weight_takes_the_line(
            weights in proptest::collection::vec(1_u32..10, 1..6),
            places in 1_usize..20,
            steps in proptest::collection::vec(any::<(bool, Index)>(), 0..200),
        ) {
            let mut field = Field::new(&weights, places);
            let mut balancer = LeastBusy::default();
            for (ends, which) in steps {
                if ends {
                    let ended = &mut field.in_flight[which.index(weights.len())];
                    *ended = ended.saturating_sub(1);
                    continue;
                }
                let Some(chosen) = balancer.choose(&field) else {
                    prop_assert!(field.in_flight.iter().all(|calls| *calls == places));
                    continue;
                };
                for (other, &calls) in field.in_flight.iter().enumerate() {
                    let of_chosen = field.in_flight[chosen] * weights[other] as usize;
                    let of_other = calls * weights[chosen] as usize;
                    prop_assert!(calls == places || of_chosen <= of_other);
                }
                field.in_flight[chosen] += 1;
            }
        }
    }

    #[test]
    fn lines_spread_by_weight_as_far_as_there_are_places() {
        let fill = |weights: &[u32], places: usize, lines: usize| {
            let mut field = Field::new(weights, places);
            let mut balancer = LeastBusy::default();
            spread(&mut field, lines, |field| balancer.choose(field))
        };
        assert_eq!(fill(&[1, 1, 1], 100, 30), [10, 10, 10]);
        assert_eq!(fill(&[3, 1], 100, 40), [30, 10]);
        assert_eq!(fill(&[3, 1], 12, 20), [12, 8]);
        assert_eq!(fill(&[u32::MAX, 1], 100, 10)[1], 1);
    }

    #[test]
    fn equals_take_turns() {
        let field = Field::new(&[1, 1, 1], 1);
        let mut balancer = LeastBusy::default();
        let chosen = [0; 4].map(|_| balancer.choose(&field));
        assert_eq!(chosen, [Some(0), Some(1), Some(2), Some(0)]);
        balancer.turn = usize::MAX;
        assert_eq!(balancer.choose(&field), Some(usize::MAX % 3));
        assert_eq!(balancer.choose(&field), Some(0), "it begins anew");
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last() {
        let mut field = Field::new(&[1, 1], 10);
        field.failed_at = Some(0);
        field.in_flight[1] = 9;
        for turn in 0..2 {
            let mut balancer = LeastBusy { turn };
            assert_eq!(balancer.choose(&field), Some(1));
        }
        field.in_flight[1] = 10;
        assert_eq!(LeastBusy::default().choose(&field), Some(0));
        field.in_flight[0] = 10;
        assert_eq!(LeastBusy::default().choose(&field), None);
        assert_eq!(LeastBusy::default().choose(&Field::new(&[], 1)), None);
    }
}

//! Least busy: the target with the least in flight for its weight.

use super::load::Load;

/// Whether a target is less busy than another one. What is to be avoided is busier than all else.
fn is_less_busy(one: Load, other: Load) -> bool {
    let product = |load: Load, other: Load| load.in_flight as u64 * u64::from(other.weight);
    (one.avoid, product(one, other)) < (other.avoid, product(other, one))
}

/// The index of the least busy of `count` targets. The search begins at `turn`, so that targets
/// that are equally busy take turns.
pub(super) fn choose(
    count: usize,
    turn: usize,
    load: impl Fn(usize) -> Option<Load>,
) -> Option<usize> {
    let mut best: Option<(usize, Load)> = None;
    for step in 0..count {
        let index = (turn % count + step) % count;
        if let Some(load) = load(index)
            && best.is_none_or(|(_, least)| is_less_busy(load, least))
        {
            best = Some((index, load));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(weights: &[u32], limit: usize, lines: usize) -> Vec<usize> {
        let mut in_flight = vec![0; weights.len()];
        for turn in 0..lines {
            let chosen = choose(weights.len(), turn, |index| {
                (in_flight[index] < limit).then_some(Load {
                    avoid: false,
                    in_flight: in_flight[index],
                    weight: weights[index],
                })
            });
            in_flight[chosen.expect("a place")] += 1;
        }
        in_flight
    }

    #[test]
    fn lines_spread_by_weight_as_far_as_there_are_places() {
        assert_eq!(fill(&[1, 1, 1], 100, 30), [10, 10, 10]);
        assert_eq!(fill(&[3, 1], 100, 40), [30, 10]);
        assert_eq!(fill(&[3, 1], 12, 20), [12, 8]);
        assert_eq!(fill(&[u32::MAX, 1], 100, 10)[1], 1);
    }

    #[test]
    fn equals_take_turns() {
        let idle = Load {
            avoid: false,
            in_flight: 0,
            weight: 1,
        };
        let chosen = [0, 1, 2, 3, usize::MAX].map(|turn| choose(3, turn, |_| Some(idle)));
        assert_eq!(
            chosen,
            [Some(0), Some(1), Some(2), Some(0), Some(usize::MAX % 3)]
        );
    }

    #[test]
    fn the_target_of_the_last_failure_comes_last() {
        let load = |avoid, in_flight| Load {
            avoid,
            in_flight,
            weight: 1,
        };
        let loads = [load(true, 0), load(false, 9)];
        for turn in 0..2 {
            assert_eq!(choose(2, turn, |index| Some(loads[index])), Some(1));
            assert_eq!(
                choose(2, turn, |index| (index == 0).then_some(loads[0])),
                Some(0)
            );
        }
        assert_eq!(choose(2, 0, |_| None), None);
        assert_eq!(choose(0, 5, |_| None), None);
    }
}

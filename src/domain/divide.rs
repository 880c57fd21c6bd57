//! Dividing whole numbers without a remainder.

use std::cmp::Reverse;

/// Divides a whole number by weights: what is left over goes to those that the rounding took most
/// from. Where all weights are zero they count as equal.
#[must_use]
pub fn divide(total: u128, weights: &[u64]) -> Vec<u128> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let (all, are_equal) = match sum {
        0 => (weights.len().max(1) as u128, true),
        sum => (sum, false),
    };
    let (each, rest) = (total / all, total % all);
    // By parts, so that no product is too large.
    let parts = weights.iter().map(|&weight| {
        let weight = if are_equal { 1 } else { u128::from(weight) };
        let more = rest * weight;
        (each * weight + more / all, more % all)
    });
    let (mut parts, remainders): (Vec<u128>, Vec<u128>) = parts.unzip();
    let left = total - parts.iter().sum::<u128>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&place| Reverse(remainders[place]));
    // Fewer are left than there are parts.
    for &place in order.iter().take(usize::try_from(left).unwrap_or(0)) {
        parts[place] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_left_over_goes_to_those_that_lack_most() {
        assert_eq!(divide(10, &[5, 2]), [7, 3]);
        assert_eq!(divide(7, &[0, 0, 0]), [3, 2, 2]);
        assert_eq!(divide(7, &[0, 1, 0]), [0, 7, 0]);
        assert_eq!(divide(7, &[]), []);
    }

    proptest! {
        #[test]
        fn parts_add_up_and_none_is_off_by_one_or_more(
            total in 0_u128..10_u128.pow(28),
            weights in proptest::collection::vec(0_u64..1_000_000, 1..80),
        ) {
            let parts = divide(total, &weights);
            prop_assert_eq!(parts.iter().sum::<u128>(), total);
            let all: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
            for (&weight, &part) in weights.iter().zip(&parts) {
                let exact = total * u128::from(weight);
                prop_assert!(all == 0 || exact.abs_diff(part * all) < all);
            }
        }
    }
}

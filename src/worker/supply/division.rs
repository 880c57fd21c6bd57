//! How many lines each tenant should have ready: its part of those of the lane.

/// A tenant that has work in a lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    /// Its part of the fair share: at least 1.
    pub weight: u32,
    /// No more lines than this are to be ready: more could not be sent soon.
    pub most: usize,
}

/// Divides lines among tenants by weight, at least one for each. What is too much for one goes to
/// the others. The parts are in the order of the claims.
pub(super) fn divide(lines: usize, claims: &[Claim]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    // Whoever has the least room for its weight comes first: what it leaves is for the others.
    order.sort_by(|&a, &b| {
        let room = |one: usize, other: usize| {
            claims[one].most as u128 * u128::from(claims[other].weight.max(1))
        };
        room(a, b).cmp(&room(b, a))
    });
    let mut weights: usize = claims
        .iter()
        .map(|claim| claim.weight.max(1) as usize)
        .sum();
    let (mut left, mut parts) = (lines, vec![0; claims.len()]);
    for place in order {
        let Claim { weight, most } = claims[place];
        let weight = weight.max(1) as usize;
        let part = (left.saturating_mul(weight) / weights.max(1)).min(most);
        (left, weights) = (left - part, weights - weight);
        parts[place] = part.max(1);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{Claim, divide};

    fn claims(claims: &[(u32, usize)]) -> Vec<Claim> {
        let claims = claims.iter();
        claims
            .map(|&(weight, most)| Claim { weight, most })
            .collect()
    }

    #[test]
    fn lines_are_divided_by_weight() {
        let all = usize::MAX;
        assert_eq!(divide(128, &claims(&[(1, all), (1, all)])), [64, 64]);
        assert_eq!(divide(120, &claims(&[(1, all), (2, all)])), [40, 80]);
        assert_eq!(divide(2, &claims(&[(1, all); 3])), [1, 1, 1]);
        assert!(divide(128, &[]).is_empty());
    }

    #[test]
    fn what_a_limited_tenant_cannot_send_is_for_the_others() {
        let all = usize::MAX;
        assert_eq!(divide(128, &claims(&[(1, all), (1, 2)])), [126, 2]);
        // A hundred tenants that send one call at a time leave the rest to the one that is free.
        let mut many = claims(&[(1, 1); 100]);
        many.push(Claim {
            weight: 1,
            most: all,
        });
        assert_eq!(divide(1_000, &many).last(), Some(&900));
    }
}

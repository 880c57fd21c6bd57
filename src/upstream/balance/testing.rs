//! Targets that tests of strategies choose from.

use proptest::prelude::*;

use super::load::{Avoid, Candidates, Load};
use super::speed::Speed;

/// Targets with so many places each.
pub(super) struct Field {
    pub(super) weights: Vec<u32>,
    pub(super) places: usize,
    pub(super) in_flight: Vec<usize>,
    pub(super) speeds: Vec<Speed>,
    /// Where the line's last attempt failed.
    pub(super) failed_at: Option<usize>,
}

impl Field {
    pub(super) fn new(weights: &[u32], places: usize) -> Self {
        Self {
            weights: weights.to_vec(),
            places,
            in_flight: vec![0; weights.len()],
            speeds: vec![Speed::default(); weights.len()],
            failed_at: None,
        }
    }
}

impl Candidates for Field {
    fn count(&self) -> usize {
        self.weights.len()
    }

    fn load(&self, index: usize) -> Option<Load> {
        (self.in_flight[index] < self.places).then_some(Load {
            avoid: match self.failed_at {
                Some(last) if last == index => Avoid::SameTarget,
                _ => Avoid::No,
            },
            in_flight: self.in_flight[index],
            weight: self.weights[index],
        })
    }

    fn speed(&self, index: usize) -> Speed {
        self.speeds[index]
    }
}

/// Sends so many lines at once; how many each target got.
pub(super) fn spread(
    field: &mut Field,
    lines: usize,
    mut choose: impl FnMut(&Field) -> Option<usize>,
) -> Vec<usize> {
    for _ in 0..lines {
        let chosen = choose(field).expect("a place");
        field.in_flight[chosen] += 1;
    }
    field.in_flight.clone()
}

/// The weights of one to eight targets.
pub(super) fn weights() -> impl proptest::strategy::Strategy<Value = Vec<u32>> {
    prop::collection::vec(1..50_u32, 1..8)
}

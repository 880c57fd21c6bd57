//! What lines and their calls add up to: requests, tokens, cost.

use std::ops::AddAssign;

use super::price::Cost;
use super::usage::Usage;

/// What lines and their calls add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Lines that were sent and have ended.
    pub requests: i64,
    /// Those of them that have no good answer.
    pub failed: i64,
    /// Calls after which their line was sent again.
    pub retries: i64,
    /// Calls that may be billed, and whose answers nobody has: what they used is not known.
    pub lost: i64,
    /// Lines that got the answer of another line. They are no requests.
    pub reused: i64,
    /// Calls that were answered and whose cost is not known: their price or their usage is not.
    pub unpriced: i64,
    /// Of all calls, those whose answers were thrown away among them.
    pub usage: Usage,
    /// Of all calls whose cost is known.
    pub cost: Cost,
    /// Summed over the requests: each for its last call, in milliseconds.
    pub latency_ms: i64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        for (sum, part) in [
            (&mut self.requests, other.requests),
            (&mut self.failed, other.failed),
            (&mut self.retries, other.retries),
            (&mut self.lost, other.lost),
            (&mut self.reused, other.reused),
            (&mut self.unpriced, other.unpriced),
            (&mut self.latency_ms, other.latency_ms),
        ] {
            *sum = sum.saturating_add(part);
        }
        self.usage += other.usage;
        self.cost += other.cost;
    }
}

impl Totals {
    /// What all calls cost whose cost is known. `None`: it is known of none, and there were some.
    #[must_use]
    pub fn known_cost(&self) -> Option<Cost> {
        let is_unknown = self.cost == Cost::default() && self.unpriced > 0;
        (!is_unknown).then_some(self.cost)
    }
}

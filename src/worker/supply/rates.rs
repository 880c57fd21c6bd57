//! How fast lanes answer, and how many lines they should have ready.

use std::collections::HashMap;
use std::time::Instant;

use super::stock::Stock;
use crate::upstream::LaneId;

/// For each permit one line is kept ready, and another one for so many permits: what is beyond
/// would only take memory.
const READY_TWICE: usize = 1_024;
/// Lines are kept ready for so long: what leasing takes, with much to spare.
const READY_SECONDS: f64 = 0.5;
/// A rate is measured over this time at least.
const MEASURED_SECONDS_MIN: f64 = 0.2;

pub(super) struct Rates {
    /// Lines a second, by lane.
    rates: HashMap<LaneId, f64>,
    measured_at: Instant,
    /// Lines that were answered by then, by lane.
    answered: HashMap<LaneId, u64>,
}

impl Rates {
    pub(super) fn new() -> Self {
        Self {
            rates: HashMap::new(),
            measured_at: Instant::now(),
            answered: HashMap::new(),
        }
    }

    pub(super) fn measure(&mut self, stock: &Stock) {
        let elapsed = self.measured_at.elapsed().as_secs_f64();
        if elapsed < MEASURED_SECONDS_MIN {
            return;
        }
        let lanes = stock.lanes.iter();
        let answered: HashMap<LaneId, u64> = lanes.map(|(id, lane)| (*id, lane.answered)).collect();
        for (lane, answered) in &answered {
            let before = self.answered.get(lane).copied().unwrap_or(0);
            // A lane that was forgotten counts from nothing again.
            let since = answered.checked_sub(before).unwrap_or(*answered);
            let rate = since as f64 / elapsed;
            self.rates.insert(*lane, rate);
        }
        (self.measured_at, self.answered) = (Instant::now(), answered);
    }

    /// How many lines to have ready in a lane of which so many can be sent at once.
    pub(super) fn lines_wanted(&self, lane: LaneId, at_once: usize) -> usize {
        let rate = self.rates.get(&lane).copied().unwrap_or(0.0);
        ready_for(at_once).max((rate * READY_SECONDS) as usize)
    }
}

/// How many lines to have ready for so many permits, whatever the rate is.
pub(super) fn ready_for(permits: usize) -> usize {
    permits.saturating_add(permits.min(READY_TWICE))
}

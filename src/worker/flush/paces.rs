//! How many lines and tokens each batch had lately, as far as this process has written them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::metrics::RateMeter;

/// Seconds that are looked back on.
const SECONDS: usize = 60;

/// The pace of each batch of which anything was written lately.
#[derive(Default)]
pub(crate) struct Paces(Mutex<HashMap<Arc<str>, Pace>>);

#[derive(Default)]
struct Pace {
    lines: RateMeter<SECONDS>,
    tokens: RateMeter<SECONDS>,
}

impl Paces {
    /// Lines of a batch are on disk, which used so many tokens.
    pub(super) fn add(&self, batch: &Arc<str>, lines: i64, tokens: i64) {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = paces.entry(Arc::clone(batch)).or_default();
        pace.lines.add(count(lines));
        pace.tokens.add(count(tokens));
    }

    /// Lines and tokens a second over the last minute, by batch. Forgets the other batches. The pace
    /// of a batch counts from the first look at it: the time of its first calls is a part of it.
    pub(crate) fn of(&self, batches: &HashSet<Arc<str>>) -> HashMap<Arc<str>, (f64, f64)> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        paces.retain(|batch, _| batches.contains(batch));
        for batch in batches {
            paces.entry(Arc::clone(batch)).or_default();
        }
        let paces = paces.iter();
        paces
            .map(|(batch, pace)| {
                let pace = (pace.lines.per_second(), pace.tokens.per_second());
                (Arc::clone(batch), pace)
            })
            .collect()
    }
}

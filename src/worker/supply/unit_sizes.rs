//! How large units are. That is known once some of a batch and model were leased: a chunk whose
//! lines name many models is as many small units.

use std::collections::{HashMap, HashSet};

use super::candidates::LINES_PER_UNIT;
use crate::store::{Backlog, LeasedUnit};

/// Rows of the backlog of which the size of units is remembered, beyond those that are listed.
const REMEMBERED_MAX: usize = 4_096;

/// How large the units of each row of the backlog are, as far as this process has leased some.
#[derive(Default)]
pub(super) struct UnitSizes {
    /// Units and their lines, by batch and model.
    leased: HashMap<(String, i64), (i64, i64)>,
}

impl UnitSizes {
    pub(super) fn on_leased(&mut self, units: &[LeasedUnit]) {
        for unit in units {
            let key = &unit.lease.key;
            let row = (key.batch_id.clone(), key.model_no);
            let (units, lines) = self.leased.entry(row).or_default();
            *units += 1;
            *lines += unit.requests;
        }
    }

    /// How many lines a unit of a row has on average, if some were leased.
    pub(super) fn average(&self, row: &Backlog) -> Option<f64> {
        let leased = self.leased.get(&(row.batch_id.clone(), row.model_no));
        leased.map(|&(units, lines)| (lines as f64 / units.max(1) as f64).max(1.0))
    }

    /// How many lines a unit of a row is taken to have: as many as those that were leased, or else
    /// as many as a unit has at most.
    pub(super) fn lines_per_unit(&self, row: &Backlog) -> usize {
        let average = self.average(row);
        average.map_or(LINES_PER_UNIT, |average| average.ceil() as usize)
    }

    /// Forgets what is not listed any more, once that is much.
    pub(super) fn forget(&mut self, backlog: &[Backlog]) {
        if self.leased.len() <= REMEMBERED_MAX + backlog.len() {
            return;
        }
        let listed = backlog.iter().map(|row| (&row.batch_id, row.model_no));
        let listed: HashSet<(&String, i64)> = listed.collect();
        self.leased
            .retain(|(batch, model_no), _| listed.contains(&(batch, *model_no)));
    }
}

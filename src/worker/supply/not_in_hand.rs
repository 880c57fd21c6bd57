//! The lines that are not in hand, of models that spill late: by these, too, it is judged which
//! batches would be late.
//!
//! Units that nobody holds are counted by every process, each for its part of the lane's limits.
//! Units that another process holds are that process's. So all processes together count each line
//! once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::candidates::lines_of;
use super::load::UnreadUnit;
use crate::domain::batch::Status;
use crate::store::{Backlog, LeasedUnit};
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::ledger::NotInHand;

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

    /// How many lines the waiting units of a row have, at the average of those that were leased, or
    /// else at most. The last unit of a batch is what is left of its lines, and is leased last.
    fn lines_of(&self, row: &Backlog) -> f64 {
        let most = lines_of(row) as f64;
        let leased = self.leased.get(&(row.batch_id.clone(), row.model_no));
        leased.map_or(most, |&(units, lines)| {
            let average = (lines as f64 / units.max(1) as f64).max(1.0);
            let total = row.total as f64;
            let last = total - ((total / average).ceil() - 1.0) * average;
            let others = (row.waiting - 1).max(0) as f64;
            (average * others + last).min(most)
        })
    }

    /// Forgets what is not listed any more, once that is much.
    fn forget(&mut self, backlog: &[Backlog]) {
        if self.leased.len() <= REMEMBERED_MAX + backlog.len() {
            return;
        }
        let listed = backlog.iter().map(|row| (&row.batch_id, row.model_no));
        let listed: HashSet<(&String, i64)> = listed.collect();
        self.leased
            .retain(|(batch, model_no), _| listed.contains(&(batch, *model_no)));
    }

    /// The lines that are not in hand: those of the backlog, and those whose text is not read yet.
    pub(super) fn not_in_hand<'a>(
        &mut self,
        pool: &Pool,
        backlog: &[Backlog],
        unread: impl Iterator<Item = &'a UnreadUnit>,
    ) -> Vec<NotInHand> {
        self.forget(backlog);
        let mut known: HashMap<(Option<&str>, &str), Option<Arc<Routes>>> = HashMap::new();
        let mut lines = Vec::new();
        for row in backlog {
            let (task, model) = (row.task.as_deref(), row.model.as_str());
            let routes = known.entry((task, model)).or_insert_with(|| {
                let routes = pool.resolve_for(task, model);
                routes.filter(|routes| routes.spill_late())
            });
            if let (Some(routes), Status::InProgress) = (routes, row.state.status) {
                lines.push(NotInHand {
                    lane: routes.lane,
                    tenant: row.tenant.as_str().into(),
                    batch: row.batch_id.as_str().into(),
                    deadline: row.expires_at.unwrap_or(i64::MAX),
                    lines: self.lines_of(row) * part_of(pool, routes.lane),
                });
            }
        }
        let late = |unit: &&UnreadUnit| unit.routes.as_ref().is_some_and(|one| one.spill_late());
        lines.extend(unread.filter(late).filter_map(|unit| {
            let open = unit.leased.requests - i64::from(unit.leased.done.count());
            Some(NotInHand {
                lane: unit.routes.as_ref()?.lane,
                tenant: Arc::clone(&unit.batch.tenant),
                batch: Arc::clone(&unit.batch.id),
                deadline: unit.batch.deadline,
                lines: open as f64,
            })
        }));
        lines
    }
}

/// This process's part of what all processes may send in a lane.
fn part_of(pool: &Pool, lane: LaneId) -> f64 {
    let limits = pool.limits();
    limits.lane(lane) as f64 / limits.lane_allowed(lane).max(1) as f64
}

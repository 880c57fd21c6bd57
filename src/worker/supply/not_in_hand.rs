//! The lines that are not in hand, of models that spill late: by these, too, it is judged which
//! batches would be late.
//!
//! Units that nobody holds are counted by every process, each for its part of the lane's limits.
//! Units that another process holds are that process's. So all processes together count each line
//! once.

use std::collections::HashMap;
use std::sync::Arc;

use super::candidates::lines_of;
use super::load::UnreadUnit;
use super::unit_sizes::UnitSizes;
use crate::domain::batch::Status;
use crate::store::Backlog;
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::ledger::NotInHand;

/// The lines that are not in hand: those of the backlog, and those whose text is not read yet.
pub(super) fn not_in_hand<'a>(
    pool: &Pool,
    sizes: &UnitSizes,
    backlog: &[Backlog],
    unread: impl Iterator<Item = &'a UnreadUnit>,
) -> Vec<NotInHand> {
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
                lines: waiting_lines(sizes, row) * part_of(pool, routes.lane),
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

/// How many lines the waiting units of a row have, at the average of those that were leased, or
/// else at most. The last unit of a batch is what is left of its lines, and is leased last.
fn waiting_lines(sizes: &UnitSizes, row: &Backlog) -> f64 {
    let most = lines_of(row) as f64;
    sizes.average(row).map_or(most, |average| {
        let total = row.total as f64;
        let last = total - ((total / average).ceil() - 1.0) * average;
        let others = (row.waiting - 1).max(0) as f64;
        (average * others + last).min(most)
    })
}

/// This process's part of what all processes may send in a lane.
fn part_of(pool: &Pool, lane: LaneId) -> f64 {
    let limits = pool.limits();
    limits.lane(lane) as f64 / limits.lane_allowed(lane).max(1) as f64
}

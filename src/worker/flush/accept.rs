//! What follows from a flush that the store has accepted, or has not.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::domain::outcome::Failure;
use crate::metrics::{LineCounts, ModelMetrics};
use crate::store::{CountsDelta, FlushReply, Used};
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::scheduler::Scheduler;

use super::layout::Group;
use super::paces::Paces;

/// How many lines a process has written as failed, by cause.
#[derive(Default)]
pub(crate) struct FailureCounts(Mutex<BTreeMap<Failure, u64>>);

impl FailureCounts {
    /// Locks only for a group in which lines failed.
    fn add(&self, failures: &[Failure]) {
        if failures.is_empty() {
            return;
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for failure in failures {
            *counts.entry(*failure).or_default() += 1;
        }
    }

    /// Adds lines that ended without a line of their own.
    pub(crate) fn add_unreadable(&self, lines: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(Failure::Unreadable).or_default() += lines;
    }

    pub(crate) fn all(&self) -> Vec<(Failure, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter()
            .map(|(&failure, &count)| (failure, count))
            .collect()
    }
}

/// Takes in what the store made of groups: moves the units on that it accepted, and revokes the
/// others.
pub(super) fn accept(
    groups: Vec<Group>,
    reply: &FlushReply,
    ownership: &Ownership,
    scheduler: &Scheduler,
    (failures, paces): (&FailureCounts, &Paces),
) {
    if groups.iter().any(|group| group.flush.finished) {
        scheduler.on_unit_finished();
    }
    for group in groups {
        let unit = &group.unit;
        if !reply.accepted.contains(&unit.lease) {
            let key = &unit.lease.key;
            tracing::info!(unit.key = %key, "a unit is another replica's by now");
            ownership.revoke_unit(unit);
            continue;
        }
        count_written(&unit.metrics, &group.flush.counts);
        for Used { totals, .. } in &group.flush.usage {
            let cost = totals.cost.to_f64();
            unit.metrics.cost(cost, totals.unpriced, totals.lost);
        }
        let counts = &group.flush.counts;
        let tokens = counts.usage.input_tokens + counts.usage.output_tokens;
        paces.add(&unit.batch.id, counts.completed + counts.failed, tokens);
        failures.add(&group.failures);
        {
            let mut durable = unit.durable();
            durable.flush_no = group.flush.flush_no + 1;
            durable.open -= group.lines;
            durable.done = group.flush.done;
            durable.tail = group.flush.tail;
        }
        if group.flush.finished {
            ownership.forget(&unit.lease);
        }
        ownership.on_written(unit, group.flush.cleared);
    }
    for (batch_id, state) in &reply.states {
        if let Some(end_reason) = state.end_reason {
            scheduler.end_batch(batch_id, end_reason);
        }
    }
}

/// Adds lines that are on disk to the metrics of their model.
pub(crate) fn count_written(metrics: &ModelMetrics, counts: &CountsDelta) {
    metrics.wrote(LineCounts {
        completed: counts.completed,
        failed: counts.failed - counts.expired,
        cancelled: counts.cancelled,
        expired: counts.expired,
    });
    let usage = &counts.usage;
    metrics.used(
        usage.input_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
    );
}

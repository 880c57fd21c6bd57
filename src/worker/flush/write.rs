//! Writing groups, however often it takes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::accept::{FailureCounts, accept};
use super::layout::Group;
use super::paces::Paces;
use crate::metrics::{metrics, trace};
use crate::store::{self, FlushReply, Store, UnitFlush};
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::scheduler::Scheduler;
use crate::worker::dispatch::write_failures::WriteFailures;
use crate::worker::lease::Lease;

/// How often a group is tried before it is halved.
const TRIES_PER_GROUP: u32 = 3;
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Rows of counts that the processes of one store share.
const COUNT_SLOTS: u64 = 8;

pub(super) struct Writer {
    store: Store,
    lease: Arc<Lease>,
    ownership: Arc<Ownership>,
    scheduler: Arc<Scheduler>,
    failures: Arc<WriteFailures>,
    failed_lines: Arc<FailureCounts>,
    paces: Arc<Paces>,
    /// The row of counts that this process adds to.
    slot: i64,
}

impl Writer {
    pub(super) fn new(
        store: Store,
        lease: Arc<Lease>,
        ownership: Arc<Ownership>,
        scheduler: Arc<Scheduler>,
        failures: Arc<WriteFailures>,
    ) -> Self {
        let slot = slot_of(&lease.token());
        Self {
            store,
            lease,
            ownership,
            scheduler,
            failures,
            failed_lines: Arc::default(),
            paces: Arc::default(),
            slot,
        }
    }

    /// The lines that were written as failed.
    pub(super) fn failed_lines(&self) -> Arc<FailureCounts> {
        Arc::clone(&self.failed_lines)
    }

    /// How fast batches were lately.
    pub(super) fn paces(&self) -> Arc<Paces> {
        Arc::clone(&self.paces)
    }

    /// Writes groups until they are written. A group that keeps failing is halved, until what
    /// cannot be written stands alone. Then the unit is revoked, so that it holds up no other unit,
    /// and its lines run again. While the database is away everything waits; but a group for which
    /// the database does not have enough time is halved as well.
    pub(super) async fn write(&self, groups: Vec<Group>) {
        let mut todo = VecDeque::from([groups]);
        let mut failures = 0_u32;
        while let Some(mut groups) = todo.pop_front() {
            let (began, span) = (Instant::now(), span(&groups));
            let error = match self.try_write(&groups).instrument(span).await {
                Ok(reply) => {
                    let (lines, bytes) = size(&groups);
                    metrics().flushed(lines, bytes, began.elapsed());
                    failures = 0;
                    self.failures.on_written();
                    let (ownership, scheduler) = (&self.ownership, &self.scheduler);
                    let counts = (&*self.failed_lines, &*self.paces);
                    accept(groups, &reply, ownership, scheduler, counts);
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            metrics().flush_failed();
            // The lines come first. Their batch is ended by itself, and holds them up no more.
            for group in &mut groups {
                group.flush.ends_batch = false;
            }
            tracing::warn!(%error, units = groups.len(), "answers could not be written yet");
            let is_stubborn = failures >= TRIES_PER_GROUP;
            if is_stubborn && groups.len() > 1 && (!error.is_outage() || error.is_timeout()) {
                let half = groups.split_off(groups.len() / 2);
                todo.push_front(half);
                todo.push_front(groups);
                failures = 0;
            } else if is_stubborn && !error.is_outage() {
                // One unit: the group was halved until the unit stood alone.
                groups.retain(|group| !self.drop_unwritable(group, &error));
                failures = 0;
                if !groups.is_empty() {
                    todo.push_back(groups);
                    tokio::time::sleep(PAUSE_MAX).await;
                }
            } else {
                todo.push_front(groups);
                let pause = Duration::from_millis(50) * 2_u32.pow(failures.min(8));
                tokio::time::sleep(pause.min(PAUSE_MAX)).await;
            }
        }
    }

    async fn try_write(&self, groups: &[Group]) -> store::Result<FlushReply> {
        // Each ends with the flush.
        let ending = groups.iter().filter(|group| group.flush.ends_batch);
        let ending = ending.map(|group| trace::finish_batch(&group.unit.batch.id));
        let _spans: Vec<Span> = ending.collect();
        let flushes: Vec<&UnitFlush> = groups.iter().map(|group| &group.flush).collect();
        let token = self.lease.token();
        // The store gives up each statement that takes too long. Another try does no harm: what
        // was written is known by its flush number.
        self.store.flush(&token, self.slot, &flushes).await
    }

    /// Revokes a unit that cannot be written, unless the database is at fault. True if the unit
    /// was revoked.
    fn drop_unwritable(&self, group: &Group, error: &store::Error) -> bool {
        let unit = &group.unit;
        let may_drop = self.failures.may_drop(&unit.batch.id, &error.to_string());
        if may_drop {
            let key = &unit.lease.key;
            tracing::error!(
                unit.key = %key,
                %error,
                "a unit cannot be written; it is revoked, and its lines run again"
            );
            self.ownership.revoke_unit(unit);
        }
        may_drop
    }
}

/// The row of counts that a process adds to, by its token.
fn slot_of(token: &str) -> i64 {
    let bytes = token.bytes();
    let sum = bytes.fold(0, |sum, byte| sum * 31 % 8191 + u64::from(byte));
    i64::try_from(sum % COUNT_SLOTS).unwrap_or(0)
}

/// How many lines and bytes a flush holds.
fn size(groups: &[Group]) -> (usize, usize) {
    let lines = groups.iter().map(|group| group.lines).sum();
    let bytes = groups.iter().map(|group| &group.flush);
    let bytes: i64 = bytes
        .map(|flush| flush.output_bytes + flush.error_bytes)
        .sum();
    (lines, usize::try_from(bytes).unwrap_or(0))
}

fn span(groups: &[Group]) -> Span {
    tracing::trace_span!(
        target: trace::TARGET,
        parent: None,
        "flush",
        flush.units = groups.len(),
        flush.lines = size(groups).0,
        flush.bytes = size(groups).1,
    )
}

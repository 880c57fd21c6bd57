//! Group commit: what finished anywhere in the process goes to disk together.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::codec::segment::{self, Line};
use crate::domain::file::Kind;
use crate::domain::unit::Bitmap;
use crate::metrics::{LineCounts, ModelMetrics, metrics, trace};
use crate::store::{self, CountsDelta, FlushReply, Store, UnitFlush};
use crate::worker::dispatch::Dispatch;
use crate::worker::dispatch::result;
use crate::worker::lease::Lease;
use crate::worker::work::completions::{FULL_BYTES, Finished, Inbox};
use crate::worker::work::unit::HeldUnit;

/// A flush is due so long after its first line…
const INTERVAL: Duration = Duration::from_millis(100);
/// …or so long while little waits: few commits, and still durable within a second.
const INTERVAL_QUIET: Duration = Duration::from_millis(400);
const LITTLE_LINES: usize = 64;
/// Units written in one transaction, and bytes of their segments: after an outage there may be
/// much, and none of it may take longer than a statement has.
const UNITS_A_TRANSACTION: usize = 256;
const BYTES_A_TRANSACTION: usize = 8 << 20;
/// How often a group is tried before it is halved.
const TRIES_A_GROUP: u32 = 3;
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Rows of counts that the processes of one store share.
const SLOTS: u64 = 8;

pub(crate) struct Flusher {
    store: Store,
    dispatch: Arc<Dispatch>,
    inbox: Arc<Inbox>,
    lease: Arc<Lease>,
    slot: i64,
    /// One flush at a time in a process.
    turn: Mutex<()>,
}

/// What finished in one unit, on its way to the store.
struct Group {
    unit: Arc<HeldUnit>,
    lines: usize,
    flush: UnitFlush,
    /// Held until the answers are on disk.
    _charges: Vec<crate::upstream::Charge>,
}

impl Flusher {
    pub(crate) fn new(
        store: Store,
        dispatch: Arc<Dispatch>,
        inbox: Arc<Inbox>,
        lease: Arc<Lease>,
    ) -> Flusher {
        let slot = lease
            .token()
            .bytes()
            .fold(0, |sum, byte| sum * 31 % 8191 + u64::from(byte));
        let slot = i64::try_from(slot % SLOTS).unwrap_or(0);
        Flusher {
            store,
            dispatch,
            inbox,
            lease,
            slot,
            turn: Mutex::new(()),
        }
    }

    /// Writes all that has finished so far.
    pub(crate) async fn drain(&self) {
        while self.inbox.size().0 > 0 {
            self.flush().await;
        }
        // Another flush may have been under way with what finished before.
        drop(self.turn.lock().await);
    }

    async fn flush(&self) {
        let _turn = self.turn.lock().await;
        let finished = self.inbox.take();
        if finished.is_empty() {
            return;
        }
        let groups = self.compress(by_unit(finished)).await;
        for groups in into_transactions(groups) {
            self.write(groups).await;
        }
        // The budget has room again.
        self.dispatch.poke();
    }

    /// Lays out the segments of units. A unit of which nothing can be laid out is let go, and its
    /// lines run again.
    async fn compress(&self, finished: Vec<Vec<Finished>>) -> Vec<Group> {
        let units: Vec<_> = finished.iter().map(|lines| lines[0].unit.clone()).collect();
        let lay_out = move || -> Vec<Option<Group>> {
            let units = finished.into_iter();
            units.map(|lines| lay_out(lines, into_group)).collect()
        };
        let groups = match tokio::task::spawn_blocking(lay_out).await {
            Ok(groups) => groups,
            Err(error) => {
                tracing::error!(%error, "the thread that compresses answers failed");
                units.iter().for_each(|unit| self.dispatch.lose(unit));
                return Vec::new();
            }
        };
        let groups = units.iter().zip(groups).filter_map(|(unit, group)| {
            if group.is_none() {
                self.dispatch.lose(unit);
            }
            group
        });
        groups.collect()
    }

    /// Writes groups until they are written. A group that keeps failing is halved, until what
    /// cannot be written stands alone; then it is let go, so that the others are not held up: its
    /// lines run again. While the database is away, everything waits; but a group for which it has
    /// not enough time is halved as well.
    async fn write(&self, groups: Vec<Group>) {
        let mut todo = VecDeque::from([groups]);
        let mut failures = 0_u32;
        while let Some(mut groups) = todo.pop_front() {
            let (began, span) = (Instant::now(), span(&groups));
            let error = match self.try_write(&groups).instrument(span).await {
                Ok(reply) => {
                    let (lines, bytes) = size(&groups);
                    metrics().flushed(lines, bytes, began.elapsed());
                    failures = 0;
                    self.dispatch.has_written();
                    self.accept(groups, &reply);
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            metrics().flush_failed();
            tracing::warn!(%error, units = groups.len(), "answers could not be written yet");
            let is_stubborn = failures >= TRIES_A_GROUP;
            if is_stubborn && groups.len() > 1 && (!error.is_outage() || error.is_timeout()) {
                let half = groups.split_off(groups.len() / 2);
                todo.push_front(half);
                todo.push_front(groups);
                failures = 0;
            } else if is_stubborn && !error.is_outage() {
                let cause = error.to_string();
                // One unit: it was halved until it stood alone.
                groups.retain(|group| {
                    let is_kept = !self.dispatch.may_let_go(&group.unit, &cause);
                    if !is_kept {
                        let key = &group.unit.lease.key;
                        tracing::error!(unit.key = %key, %error, "a unit cannot be written; let go");
                        self.dispatch.lose(&group.unit);
                    }
                    is_kept
                });
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
        let flushes: Vec<&UnitFlush> = groups.iter().map(|group| &group.flush).collect();
        let token = self.lease.token();
        // The store gives up each statement that takes too long. Trying again does no harm: what
        // was written is known by its flush number.
        self.store.flush(&token, self.slot, &flushes).await
    }

    fn accept(&self, groups: Vec<Group>, reply: &FlushReply) {
        for group in groups {
            let unit = &group.unit;
            if !reply.accepted.contains(&unit.lease) {
                tracing::info!(unit.key = %unit.lease.key, "a unit is another replica's by now");
                self.dispatch.lose(unit);
                continue;
            }
            count(&unit.metrics, &group.flush.counts);
            {
                let mut durable = unit.durable.lock().unwrap_or_else(PoisonError::into_inner);
                durable.flush_no = group.flush.flush_no + 1;
                durable.open -= group.lines;
                durable.done = group.flush.done;
            }
            if group.flush.finished {
                self.dispatch.forget(&unit.lease);
            }
            self.dispatch.written(unit, group.flush.cleared);
        }
        for (batch_id, state) in &reply.states {
            if let Some(reason) = state.end_reason {
                self.dispatch.end_batch(batch_id, reason);
            }
        }
    }

    /// Waits until a flush is due.
    async fn due(&self) {
        while self.inbox.size().0 == 0 {
            self.inbox.arrived().await;
        }
        let first = Instant::now();
        let mut waited = Duration::ZERO;
        loop {
            let (lines, bytes) = self.inbox.size();
            // Nothing else is on its way: waiting would gather nothing.
            if bytes >= FULL_BYTES || self.dispatch.is_idle() {
                return;
            }
            // Where the budget is full, others wait for what these lines hold.
            let may_wait = lines < LITTLE_LINES && !self.dispatch.is_out_of_budget();
            if waited >= INTERVAL_QUIET || (waited >= INTERVAL && !may_wait) {
                return;
            }
            tokio::select! {
                () = self.inbox.arrived() => {}
                () = tokio::time::sleep_until(first + waited + INTERVAL) => waited += INTERVAL,
            }
        }
    }
}

/// Adds lines that are on disk to the metrics.
pub(crate) fn count(metrics: &ModelMetrics, counts: &CountsDelta) {
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

/// Divides what is to be written into transactions of a bounded size.
fn into_transactions(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let mut transactions: Vec<Vec<Group>> = Vec::new();
    let mut bytes = 0;
    for group in groups {
        let size = group.flush.segment.data.len();
        bytes += size;
        match transactions.last_mut() {
            Some(last) if last.len() < UNITS_A_TRANSACTION && bytes <= BYTES_A_TRANSACTION => {
                last.push(group);
            }
            _ => {
                bytes = size;
                transactions.push(vec![group]);
            }
        }
    }
    transactions
}

/// Gathers finished lines by unit, in the order in which the store locks units. No unit is without
/// a line.
fn by_unit(finished: Vec<Finished>) -> Vec<Vec<Finished>> {
    let mut by_unit: HashMap<u64, Vec<Finished>> = HashMap::new();
    for line in finished {
        by_unit.entry(line.unit.id).or_default().push(line);
    }
    let mut units: Vec<Vec<Finished>> = by_unit.into_values().collect();
    units.sort_by(|a, b| a[0].unit.lease.key.cmp(&b[0].unit.lease.key));
    units
}

/// Lays out what finished in a unit. Where the code panics at that, its lines end with an error
/// instead: run again, they would be paid for again, and the code would panic again, without end.
/// `None`: there is no memory for it now, or it panics even so.
fn lay_out(
    finished: Vec<Finished>,
    into_group: impl Fn(Vec<Finished>) -> io::Result<Group>,
) -> Option<Group> {
    let unit = finished[0].unit.clone();
    let places: Vec<u32> = finished.iter().map(|line| line.line.line).collect();
    let group = guarded(&unit, || into_group(finished)).or_else(|_| {
        guarded(&unit, || {
            let lines = places.into_iter().map(|place| {
                let line = unit.line(place).ok_or(io::ErrorKind::NotFound)?;
                Ok(result::mishandled(&unit, &line))
            });
            into_group(lines.collect::<io::Result<_>>()?)
        })
    });
    let group = group.ok()?;
    group
        .inspect_err(|error| {
            let key = &unit.lease.key;
            tracing::error!(unit.key = %key, %error, "what finished in a unit cannot be laid out");
        })
        .ok()
}

/// A panic costs no other unit anything.
fn guarded<T>(unit: &HeldUnit, work: impl FnOnce() -> T) -> std::thread::Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .inspect_err(|_| tracing::error!(unit.key = %unit.lease.key, "the code panicked at a unit"))
}

fn into_group(finished: Vec<Finished>) -> io::Result<Group> {
    let unit = finished[0].unit.clone();
    let mut counts = CountsDelta::default();
    finished
        .iter()
        .for_each(|finished| counts += finished.counts);
    // Of references: a finished line is large to move about.
    let mut lines: Vec<&Line> = finished.iter().map(|finished| &finished.line).collect();
    lines.sort_by_key(|line| line.line);
    let bytes = |kind| -> i64 {
        lines
            .iter()
            .filter(|line| line.kind == kind)
            .map(|line| line.bytes.len() as i64)
            .sum()
    };
    let (flush_no, mut done, open): (i64, Bitmap, usize) = {
        let durable = unit.durable.lock().unwrap_or_else(PoisonError::into_inner);
        (durable.flush_no, durable.done.clone(), durable.open)
    };
    for line in &lines {
        done.insert(line.line);
    }
    let cleared = unit
        .isolation()
        .is_none_or(|isolation| isolation.is_cleared_by(&done));
    let flush = UnitFlush {
        lease: unit.lease.clone(),
        flush_no,
        done,
        finished: open == lines.len(),
        cleared,
        segment: segment::encode(&lines)?,
        output_bytes: bytes(Kind::Output),
        error_bytes: bytes(Kind::Error),
        counts,
    };
    Ok(Group {
        unit,
        lines: lines.len(),
        flush,
        _charges: finished.into_iter().filter_map(|f| f.charge).collect(),
    })
}

/// Flushes until stopped.
pub(crate) async fn run(flusher: Arc<Flusher>, stop: CancellationToken) -> &'static str {
    while stop.run_until_cancelled(flusher.due()).await.is_some() {
        flusher.flush().await;
    }
    "flush"
}

#[cfg(test)]
mod tests;

//! Group commit: everything that finished in many units since the last flush, in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::isolation::CLEAR;
use super::units::{into_lease, reclaim};
use crate::codec::segment::Encoded;
use crate::domain::batch::BatchState;
use crate::domain::unit::{Bitmap, UnitLease};
use crate::domain::usage::Usage;
use crate::store::batches::{Changed, CountsSum, WholeBatch, remove_backlog, states_in};
use crate::store::engine::{Rows, Tx, Value, bind_rows, in_tx, sql};
use crate::store::files::{NewSegment, SegmentKey, has_segment, write_segments};
use crate::store::usage::{Used, add_usage};
use crate::store::{Result, Store};

/// What a group of finished lines adds to its batch's counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountsDelta {
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    /// How many of the failed lines were not sent before the window ended. Not stored.
    pub expired: i64,
    pub usage: Usage,
}

impl std::ops::AddAssign for CountsDelta {
    fn add_assign(&mut self, other: Self) {
        self.completed += other.completed;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.expired += other.expired;
        self.usage += other.usage;
    }
}

/// What finished in one unit.
#[derive(Clone, Debug)]
pub struct UnitFlush {
    pub lease: UnitLease,
    /// The unit's flush number before this flush: with the owner and the epoch, the fence.
    pub flush_no: i64,
    /// All lines that are done, those of this flush included.
    pub done: Bitmap,
    /// Whether no line is left.
    pub finished: bool,
    /// Whether the unit is all that its batch has, and this flush is all that the unit has. Then
    /// the batch ends with the flush, unless it is being ended otherwise.
    pub ends_batch: bool,
    /// Whether no line is left that may have killed its process. Then the take-overs so far do not
    /// count any more.
    pub cleared: bool,
    /// The unit's tail from now on: finished lines that are not worth a segment yet. They stand in
    /// the unit's row.
    pub tail: Option<Encoded>,
    /// Finished lines that are worth a segment, those of the tail before among them.
    pub segment: Option<Encoded>,
    /// The tail as the last flush left it, where no line is put to it: it becomes a segment.
    pub closed_tail: Option<Encoded>,
    /// Raw bytes of the lines of each kind.
    pub output_bytes: i64,
    pub error_bytes: i64,
    pub counts: CountsDelta,
    /// What the calls of the finished lines add up to.
    pub usage: Vec<Used>,
}

impl UnitFlush {
    /// How many bytes of lines it writes, compressed.
    #[must_use]
    pub fn size(&self) -> usize {
        let written = [&self.tail, &self.segment, &self.closed_tail];
        written.into_iter().flatten().map(Encoded::size).sum()
    }
}

/// What the store made of a flush.
#[derive(Clone, Debug, Default)]
pub struct FlushReply {
    /// The units that belonged to this owner, and are written. The other units belong to another
    /// owner by now, and nothing of them was written.
    pub accepted: HashSet<UnitLease>,
    /// The states of the batches of the flushed units: a replica learns from them that a batch is
    /// ending.
    pub states: Vec<(String, BatchState)>,
}

impl Store {
    /// Writes the finished lines of the units that still belong to this owner. May be repeated
    /// when the reply was lost: what the first attempt wrote is recognised by its flush number.
    ///
    /// # Errors
    /// When the database fails: then nothing of it may be written, or all.
    pub async fn flush(&self, owner: &str, slot: i64, units: &[&UnitFlush]) -> Result<FlushReply> {
        let mut last: Vec<&UnitFlush> = units.to_vec();
        last.retain(|unit| unit.ends_batch);
        let (mut tx, ended) = loop {
            let mut tx = self.begin().await?;
            if last.is_empty() {
                break (tx, Vec::new());
            }
            match self.end_batches(&mut tx, owner, units, &last).await? {
                Ended::Batches(ended) => break (tx, ended),
                // A unit that was lost keeps no other batch from its end. The batches that are left
                // are locked until the transaction is undone.
                Ended::Lost(batches) => {
                    tx.rollback().await?;
                    last.retain(|unit| !batches.contains(&unit.lease.key.batch_id));
                }
            }
        };
        let ended_ids: HashSet<&str> = ended.iter().map(Changed::batch_id).collect();
        let is_ended = |unit: &&&UnitFlush| ended_ids.contains(&*unit.lease.key.batch_id);
        let (whole, units): (Vec<&UnitFlush>, Vec<&UnitFlush>) = units.iter().partition(is_ended);
        let units = &units[..];
        let mut fresh = advance_units(&mut tx, owner, units).await?;
        if fresh.len() < units.len() {
            let missing = reclaim_missing(&mut tx, owner, units, &fresh).await?;
            // All missing units: a renewal may have reclaimed one between the two statements.
            fresh.extend(advance_units(&mut tx, owner, &missing).await?);
        }
        let (written, missing): (Vec<&UnitFlush>, Vec<&UnitFlush>) =
            units.iter().partition(|unit| fresh.contains(&unit.lease));
        insert_segments(&mut tx, &[&whole[..], &written[..]].concat()).await?;
        add_counts(&mut tx, slot, &written).await?;
        let used = whole.iter().chain(&written);
        let used = used.map(|unit| (&*unit.lease.key.batch_id, &*unit.usage));
        add_usage(&mut tx, (self.now_ms(), slot), used).await?;
        let batches = units
            .iter()
            .map(|unit| unit.lease.key.batch_id.as_str())
            .collect();
        let states = states_in(&mut tx, &batches).await?;

        let before = written_before(&mut tx, &missing).await?;
        tx.commit().await?;
        ended.into_iter().for_each(Changed::announce);
        let whole = whole.iter().map(|unit| unit.lease.clone());
        let accepted: HashSet<_> = fresh.into_iter().chain(before).chain(whole).collect();
        let finished: BTreeSet<String> = units
            .iter()
            .filter(|unit| unit.finished && accepted.contains(&unit.lease))
            .map(|unit| unit.lease.key.batch_id.clone())
            .collect();
        if !finished.is_empty() {
            // Within this process only: the process that writes a batch's last line also checks
            // whether that line is the last one.
            self.wake_handle().unit_finished(finished.into_iter());
        }
        Ok(FlushReply { accepted, states })
    }

    /// Ends the batches of units that are all that their batches have, and removes these units.
    /// Leaves out a batch that is being ended otherwise, or whose row another transaction has
    /// locked.
    async fn end_batches(
        &self,
        tx: &mut Tx,
        owner: &str,
        units: &[&UnitFlush],
        last: &[&UnitFlush],
    ) -> Result<Ended> {
        let whole = last.iter().map(|unit| {
            let counts = &unit.counts;
            let lines = [counts.completed, counts.failed, counts.cancelled];
            WholeBatch {
                id: &unit.lease.key.batch_id,
                chunk_no: unit.lease.key.chunk_no,
                bytes: [unit.output_bytes, unit.error_bytes],
                counts: CountsSum::of(lines, &counts.usage),
                total: lines.iter().sum(),
            }
        });
        let ended = self.end_whole(tx, &whole.collect::<Vec<_>>()).await?;
        if ended.is_empty() {
            return Ok(Ended::Batches(ended));
        }
        let ids: Vec<&str> = ended.iter().map(Changed::batch_id).collect();
        let removed = remove_whole(tx, owner, units, &ids).await?;
        if removed.len() < ids.len() {
            let lost = ids.into_iter().filter(|id| !removed.contains(*id));
            return Ok(Ended::Lost(lost.map(str::to_owned).collect()));
        }
        remove_backlog(tx, &ids).await?;
        Ok(Ended::Batches(ended))
    }
}

/// What became of batches that were to end with a flush.
enum Ended {
    Batches(Vec<Changed>),
    /// The units of these batches have not passed the fence: the transaction is to begin anew
    /// without their ends.
    Lost(HashSet<String>),
}

/// Removes the units of batches that end with a flush, where the units pass the fence. Locks all
/// units of the flush that pass the fence, in the order of their keys. Returns the batches whose
/// units were removed.
async fn remove_whole(
    tx: &mut Tx,
    owner: &str,
    units: &[&UnitFlush],
    batches: &[&str],
) -> Result<HashSet<String>> {
    let batches: HashSet<&str> = batches.iter().copied().collect();
    let rows = Rows::of(units.iter().map(|unit| {
        let ends = batches.contains(&*unit.lease.key.batch_id);
        [
            ("batch_id", Value::from(&unit.lease.key.batch_id)),
            ("chunk_no", unit.lease.key.chunk_no.into()),
            ("model_no", unit.lease.key.model_no.into()),
            ("epoch", unit.lease.epoch.into()),
            ("flush_no", unit.flush_no.into()),
            ("ends", i64::from(ends).into()),
        ]
    }));
    let sql = sql!(
        "-- flush_whole_units
         WITH {flushed},
         ours AS MATERIALIZED (
            SELECT batch_id, chunk_no, model_no FROM units
            WHERE owner = $1 AND state = 'leased'
                AND (batch_id, chunk_no, model_no, epoch, flush_no) IN
                    (SELECT batch_id, chunk_no, model_no, epoch, flush_no FROM v)
            ORDER BY batch_id, chunk_no, model_no {lock})
         DELETE FROM units WHERE (batch_id, chunk_no, model_no) IN (SELECT * FROM ours)
            AND batch_id IN (SELECT batch_id FROM v WHERE ends = 1)
         RETURNING batch_id",
        flushed = rows.table("v", 2, tx.engine()),
        lock = tx.engine().for_update()
    );
    let is_usual = units.len() == 1;
    let removed: Vec<(String,)> = in_tx!(tx, |c| {
        let remove = sqlx::query_as(sql).persistent(is_usual).bind(owner);
        bind_rows!(remove, rows).fetch_all(c).await?
    });
    Ok(removed.into_iter().map(|(batch_id,)| batch_id).collect())
}

/// Reclaims the units of a flush that were taken over but not leased again: nothing of them was
/// sent or written since, so the finished lines are still valid. Returns all units that have not
/// passed the fence so far.
async fn reclaim_missing<'a>(
    tx: &mut Tx,
    owner: &str,
    units: &[&'a UnitFlush],
    fresh: &HashSet<UnitLease>,
) -> Result<Vec<&'a UnitFlush>> {
    let missing: Vec<&UnitFlush> = units
        .iter()
        .copied()
        .filter(|unit| !fresh.contains(&unit.lease))
        .collect();
    let leases: Vec<_> = missing.iter().map(|unit| unit.lease.clone()).collect();
    reclaim(tx, owner, &leases).await?;
    Ok(missing)
}

/// Columns of a unit whose last lines are written. Where no unit of a flush is at its end, they are
/// left out: SQLite writes the indexes on a column that is set, whether its value changes or not.
const END: &str =
    "state = v.state, owner = CASE WHEN v.state = 'done' THEN NULL ELSE units.owner END,";

/// Writes the units that pass the fence. Returns them.
async fn advance_units(
    tx: &mut Tx,
    owner: &str,
    units: &[&UnitFlush],
) -> Result<HashSet<UnitLease>> {
    if units.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = Rows::of(units.iter().map(|unit| {
        let state = if unit.finished { "done" } else { "leased" };
        let tail = unit.tail.as_ref();
        [
            ("batch_id", Value::from(&unit.lease.key.batch_id)),
            ("chunk_no", unit.lease.key.chunk_no.into()),
            ("model_no", unit.lease.key.model_no.into()),
            ("epoch", unit.lease.epoch.into()),
            ("flush_no", unit.flush_no.into()),
            ("done", unit.done.as_bytes().into()),
            ("state", state.into()),
            ("cleared", i64::from(unit.cleared).into()),
            ("tail_entries", tail.map(|tail| &*tail.entries).into()),
            ("tail_data", tail.map(|tail| &*tail.data).into()),
            ("output", unit.output_bytes.into()),
            ("error", unit.error_bytes.into()),
        ]
    }));
    let sql = sql!(
        "-- flush_units
         WITH {flushed}
         UPDATE units SET flush_no = units.flush_no + 1, done = v.done,
            tail_entries = v.tail_entries, tail_data = v.tail_data,
            {end} {clear},
            output_bytes = units.output_bytes + v.output,
            error_bytes = units.error_bytes + v.error
         FROM v
         WHERE units.batch_id = v.batch_id AND units.chunk_no = v.chunk_no
           AND units.model_no = v.model_no AND units.state = 'leased'
           AND units.owner = $1 AND units.epoch = v.epoch AND units.flush_no = v.flush_no
         RETURNING units.batch_id, units.chunk_no, units.model_no, units.epoch",
        flushed = rows.table("v", 2, tx.engine()),
        end = if units.iter().any(|unit| unit.finished) {
            END
        } else {
            ""
        },
        clear = CLEAR
    );
    let rows: Vec<(String, i64, i64, i64)> = in_tx!(tx, |c| {
        let flush = sqlx::query_as(sql).persistent(false).bind(owner);
        bind_rows!(flush, rows).fetch_all(c).await?
    });
    Ok(rows.into_iter().map(into_lease).collect())
}

/// The units whose flush was written by an earlier attempt: their epoch is unchanged, so no other
/// owner wrote them, and their flush number is the one that this flush would make. A unit that was
/// at its end may have gone, with the end of its batch. Then its last segment is known by its
/// bytes, because no two answers have the same id.
async fn written_before(tx: &mut Tx, units: &[&UnitFlush]) -> Result<Vec<UnitLease>> {
    let mut found = Vec::new();
    for unit in units {
        let there: Option<(i64,)> = in_tx!(&mut *tx, |c| {
            sqlx::query_as(
                "-- written_before
                 SELECT CAST(1 AS BIGINT) FROM units
                 WHERE batch_id = $1 AND chunk_no = $2 AND model_no = $3
                    AND epoch = $4 AND flush_no = $5",
            )
            .bind(&unit.lease.key.batch_id)
            .bind(unit.lease.key.chunk_no)
            .bind(unit.lease.key.model_no)
            .bind(unit.lease.epoch)
            .bind(unit.flush_no + 1)
            .fetch_optional(c)
            .await?
        });
        let mut was_written = there.is_some();
        if let (false, true, Some(segment)) = (was_written, unit.finished, &unit.segment) {
            was_written = has_segment(tx, &new_segment(unit, unit.flush_no + 1, segment)).await?;
        }
        if was_written {
            found.push(unit.lease.clone());
        }
    }
    Ok(found)
}

async fn insert_segments(tx: &mut Tx, units: &[&UnitFlush]) -> Result<()> {
    let segments = units.iter().flat_map(|unit| {
        // The last flush wrote the tail and no segment, so its number is free.
        let closed = unit.closed_tail.iter().map(|tail| (unit.flush_no, tail));
        let new = unit.segment.iter();
        let new = new.map(|segment| (unit.flush_no + 1, segment));
        let all = closed.chain(new);
        all.map(|(flush_no, segment)| new_segment(unit, flush_no, segment))
    });
    let segments: Vec<NewSegment<'_>> = segments.collect();
    if segments.is_empty() {
        return Ok(());
    }
    write_segments(tx, &segments).await
}

fn new_segment<'a>(unit: &'a UnitFlush, flush_no: i64, segment: &'a Encoded) -> NewSegment<'a> {
    NewSegment {
        batch_id: &unit.lease.key.batch_id,
        key: SegmentKey {
            chunk_no: unit.lease.key.chunk_no,
            model_no: unit.lease.key.model_no,
            flush_no,
        },
        entries: &segment.entries,
        data: &segment.data,
    }
}

async fn add_counts(tx: &mut Tx, slot: i64, units: &[&UnitFlush]) -> Result<()> {
    // In the order of batch ids: count rows are locked in one order, everywhere.
    let mut by_batch: BTreeMap<&str, CountsDelta> = BTreeMap::new();
    for unit in units {
        *by_batch.entry(&unit.lease.key.batch_id).or_default() += unit.counts;
    }
    if by_batch.is_empty() {
        return Ok(());
    }
    let rows = Rows::of(by_batch.iter().map(|(batch_id, counts)| {
        [
            ("batch_id", Value::from(*batch_id)),
            ("slot", slot.into()),
            ("completed", counts.completed.into()),
            ("failed", counts.failed.into()),
            ("cancelled", counts.cancelled.into()),
            ("input_tokens", counts.usage.input_tokens.into()),
            ("cached_tokens", counts.usage.cached_tokens.into()),
            ("output_tokens", counts.usage.output_tokens.into()),
            ("reasoning_tokens", counts.usage.reasoning_tokens.into()),
            ("total_tokens", counts.usage.total_tokens.into()),
        ]
    }));
    let sql = sql!(
        "-- add_counts
         INSERT INTO batch_counts ({columns}) VALUES {rows}
         ON CONFLICT (batch_id, slot) DO UPDATE SET
            completed = batch_counts.completed + excluded.completed,
            failed = batch_counts.failed + excluded.failed,
            cancelled = batch_counts.cancelled + excluded.cancelled,
            input_tokens = batch_counts.input_tokens + excluded.input_tokens,
            cached_tokens = batch_counts.cached_tokens + excluded.cached_tokens,
            output_tokens = batch_counts.output_tokens + excluded.output_tokens,
            reasoning_tokens = batch_counts.reasoning_tokens + excluded.reasoning_tokens,
            total_tokens = batch_counts.total_tokens + excluded.total_tokens",
        columns = rows.columns(),
        rows = rows.parameters(1)
    );
    in_tx!(tx, |c| {
        let add = sqlx::query(sql).persistent(false);
        bind_rows!(add, rows).execute(c).await?;
    });
    Ok(())
}

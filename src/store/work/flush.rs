//! Group commit: everything that finished in many units since the last flush, in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::AssertSqlSafe;

use super::isolation::CLEAR;
use super::units::{into_lease, reclaim};
use crate::codec::segment::Encoded;
use crate::domain::batch::Stage;
use crate::domain::unit::{Bitmap, UnitLease};
use crate::domain::usage::Usage;
use crate::store::batches::stage;
use crate::store::engine::{Tx, on, typed_values, values, within};
use crate::store::{Result, Store, Who};

/// What a group of finished lines adds to its batch's counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    /// Those of the failed that were not sent before the window ended. Not stored.
    pub expired: i64,
    pub usage: Usage,
}

impl std::ops::AddAssign for Tally {
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
    /// Whether no line is left that may have killed its process, so that the take-overs so far
    /// do not count any more.
    pub cleared: bool,
    pub segment: Encoded,
    /// Raw bytes of the lines of each kind.
    pub output_bytes: i64,
    pub error_bytes: i64,
    pub tally: Tally,
}

/// What the store made of a flush.
#[derive(Clone, Debug, Default)]
pub struct FlushReply {
    /// Units that were this owner's, and are written. The others belong to
    /// somebody else now, and nothing of theirs was written.
    pub accepted: HashSet<UnitLease>,
    /// Where the batches of the flushed units stand: how a replica learns that one is ending.
    pub stages: Vec<(String, Stage)>,
}

impl Store {
    /// Writes what finished, for the units that are still this owner's. May be repeated when
    /// the reply was lost: what a first try wrote is recognised by its flush number.
    ///
    /// # Errors
    /// When the database fails: then nothing of it may be written, or all.
    pub async fn flush(&self, owner: &str, slot: i64, units: &[&UnitFlush]) -> Result<FlushReply> {
        let mut tx = self.begin().await?;
        let mut fresh = advance_units(&mut tx, self, owner, units).await?;
        if fresh.len() < units.len() {
            let missing = reclaim_missing(&mut tx, owner, units, &fresh).await?;
            // All of them: a renewal may have taken one back between the two statements.
            fresh.extend(advance_units(&mut tx, self, owner, &missing).await?);
        }
        let (written, missing): (Vec<&UnitFlush>, Vec<&UnitFlush>) =
            units.iter().partition(|unit| fresh.contains(&unit.lease));
        insert_segments(&mut tx, &written).await?;
        add_counts(&mut tx, slot, &written).await?;
        let batches = units
            .iter()
            .map(|unit| unit.lease.key.batch_id.as_str())
            .collect();
        let stages = stages_within(&mut tx, &batches).await?;

        let before = written_before(&mut tx, &missing).await?;
        tx.commit().await?;
        let accepted: HashSet<_> = fresh.into_iter().chain(before).collect();
        let finished: BTreeSet<String> = units
            .iter()
            .filter(|unit| unit.finished && accepted.contains(&unit.lease))
            .map(|unit| unit.lease.key.batch_id.clone())
            .collect();
        if !finished.is_empty() {
            // Here alone: whoever writes a batch's last line looks whether it is the last.
            self.wake_handle().unit_finished(finished.into_iter());
            self.wake(Who::Supplies);
        }
        Ok(FlushReply { accepted, stages })
    }
}

/// Takes back those units of a flush that were taken over, but that nobody has leased since: what
/// finished in them before their owner fell silent is as good as ever. Returns all that did not
/// pass the fence so far.
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

/// Moves the units past the fence, and says which were.
async fn advance_units(
    tx: &mut Tx,
    store: &Store,
    owner: &str,
    units: &[&UnitFlush],
) -> Result<HashSet<UnitLease>> {
    if units.is_empty() {
        return Ok(HashSet::new());
    }
    let bytes = store.engine().bytes_type();
    let types = [
        "TEXT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", bytes, "TEXT", "BIGINT", "BIGINT", "BIGINT",
    ];
    let sql = format!(
        "-- flush_units
         WITH v(batch_id, chunk_no, model_no, epoch, flush_no, done, state, cleared, output, error)
            AS (VALUES {})
         UPDATE units SET flush_no = units.flush_no + 1, done = v.done, state = v.state,
            owner = CASE WHEN v.state = 'done' THEN NULL ELSE units.owner END,
            {CLEAR},
            output_bytes = units.output_bytes + v.output,
            error_bytes = units.error_bytes + v.error
         FROM v
         WHERE units.batch_id = v.batch_id AND units.chunk_no = v.chunk_no
           AND units.model_no = v.model_no AND units.state = 'leased'
           AND units.owner = $1 AND units.epoch = v.epoch AND units.flush_no = v.flush_no
         RETURNING units.batch_id, units.chunk_no, units.model_no, units.epoch",
        typed_values(2, units.len(), &types)
    );
    let rows: Vec<(String, i64, i64, i64)> = within!(tx, c => {
        let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false).bind(owner);
        for unit in units {
            query = query
                .bind(&unit.lease.key.batch_id)
                .bind(unit.lease.key.chunk_no)
                .bind(unit.lease.key.model_no)
                .bind(unit.lease.epoch)
                .bind(unit.flush_no)
                .bind(unit.done.as_bytes())
                .bind(if unit.finished { "done" } else { "leased" })
                .bind(i64::from(unit.cleared))
                .bind(unit.output_bytes)
                .bind(unit.error_bytes);
        }
        query.fetch_all(c).await?
    });
    Ok(rows.into_iter().map(into_lease).collect())
}

/// Which units' flush is there already: their epoch is unchanged, so nobody else wrote them, and
/// their flush number is the one that this flush would have made.
async fn written_before(tx: &mut Tx, units: &[&UnitFlush]) -> Result<Vec<UnitLease>> {
    let mut found = Vec::new();
    for unit in units {
        let there: Option<(i64,)> = within!(&mut *tx, c => {
            sqlx::query_as(
                "-- written_before
                 SELECT CAST(1 AS BIGINT) FROM units WHERE batch_id = $1 AND chunk_no = $2 AND model_no = $3
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
        if there.is_some() {
            found.push(unit.lease.clone());
        }
    }
    Ok(found)
}

async fn insert_segments(tx: &mut Tx, units: &[&UnitFlush]) -> Result<()> {
    let units: Vec<_> = units
        .iter()
        .filter(|unit| !unit.segment.data.is_empty())
        .collect();
    if units.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "-- insert_segments
         INSERT INTO segments (batch_id, chunk_no, model_no, flush_no, entries, data) VALUES {}",
        values(1, units.len(), 6)
    );
    within!(tx, c => {
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for unit in units {
            query = query
                .bind(&unit.lease.key.batch_id)
                .bind(unit.lease.key.chunk_no)
                .bind(unit.lease.key.model_no)
                .bind(unit.flush_no + 1)
                .bind(&unit.segment.entries)
                .bind(&unit.segment.data);
        }
        query.execute(c).await?;
    });
    Ok(())
}

async fn add_counts(tx: &mut Tx, slot: i64, units: &[&UnitFlush]) -> Result<()> {
    // In the order of batch ids: count rows are locked in one order, everywhere.
    let mut by_batch: BTreeMap<&str, Tally> = BTreeMap::new();
    for unit in units {
        *by_batch.entry(&unit.lease.key.batch_id).or_default() += unit.tally;
    }
    if by_batch.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "-- add_counts
         INSERT INTO batch_counts (batch_id, slot, completed, failed, cancelled, input_tokens,
            cached_tokens, output_tokens, reasoning_tokens, total_tokens)
         VALUES {}
         ON CONFLICT (batch_id, slot) DO UPDATE SET
            completed = batch_counts.completed + excluded.completed,
            failed = batch_counts.failed + excluded.failed,
            cancelled = batch_counts.cancelled + excluded.cancelled,
            input_tokens = batch_counts.input_tokens + excluded.input_tokens,
            cached_tokens = batch_counts.cached_tokens + excluded.cached_tokens,
            output_tokens = batch_counts.output_tokens + excluded.output_tokens,
            reasoning_tokens = batch_counts.reasoning_tokens + excluded.reasoning_tokens,
            total_tokens = batch_counts.total_tokens + excluded.total_tokens",
        values(1, by_batch.len(), 10)
    );
    within!(tx, c => {
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for (batch_id, tally) in &by_batch {
            query = query
                .bind(*batch_id)
                .bind(slot)
                .bind(tally.completed)
                .bind(tally.failed)
                .bind(tally.cancelled)
                .bind(tally.usage.input_tokens)
                .bind(tally.usage.cached_tokens)
                .bind(tally.usage.output_tokens)
                .bind(tally.usage.reasoning_tokens)
                .bind(tally.usage.total_tokens);
        }
        query.execute(c).await?;
    });
    Ok(())
}

async fn stages_within(tx: &mut Tx, ids: &BTreeSet<&str>) -> Result<Vec<(String, Stage)>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = stages_sql(ids.len());
    let rows: Vec<StageRow> = within!(tx, c => {
        let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
        for id in ids {
            query = query.bind(*id);
        }
        query.fetch_all(c).await?
    });
    rows.into_iter().map(into_stage).collect()
}

type StageRow = (String, String, Option<String>);

fn stages_sql(batches: usize) -> String {
    format!(
        "-- stages\nSELECT id, status, ending FROM batches WHERE id IN {}",
        values(1, 1, batches)
    )
}

fn into_stage((id, status, ending): StageRow) -> Result<(String, Stage)> {
    Ok((id, stage(&status, ending.as_deref())?))
}

impl Store {
    /// Where batches stand.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stages(&self, ids: &BTreeSet<&str>) -> Result<Vec<(String, Stage)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let sql = stages_sql(ids.len());
        let rows: Vec<StageRow> = on!(self.reader(), c => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
            for id in ids {
                query = query.bind(*id);
            }
            query.fetch_all(c).await?
        });
        rows.into_iter().map(into_stage).collect()
    }
}

//! The steps of a batch's life that duties take once it runs: drained, published, at its window's
//! end.
//!
//! Queries over live batches repeat the condition of their partial index word for word: SQLite
//! uses it only then.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use super::read::{lock_free_stage, lock_stage, set_stage};
use crate::domain::batch::{Counts, Event, Status};
use crate::domain::file::{Kind, Purpose};
use crate::domain::id;
use crate::metrics::metrics;
use crate::store::engine::{Tx, on, values, within};
use crate::store::files::each;
use crate::store::files::encode_sizes;
use crate::store::{Result, Store, Who};

/// Batches looked at in one round of a duty.
const ROUND: i64 = 100;
/// Units removed in one transaction, once their batch is published.
const REMOVED_UNITS_MAX: i64 = 500;

/// Batches named in one statement.
const NAMED_BATCHES_MAX: usize = 500;

/// What came of a try to end a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    Ended,
    /// It has units that are open, or has ended already.
    NotYet,
    /// Somebody else has its row: to end it, or to cancel it.
    Busy,
}

impl Store {
    /// Ends the window of batches whose time is up: what has not run will not. Returns how many
    /// there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_windows(&self) -> Result<usize> {
        let sql = format!(
            "-- end_windows
             SELECT id FROM batches
             WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
               AND status IN ('validating', 'in_progress') AND ending IS NULL
               AND expires_at <= {} LIMIT $2",
            self.now_sql(1)
        );
        let ids: Vec<(String,)> = on!(self.reader(), c => {
            sqlx::query_as(AssertSqlSafe(sql))
            .bind(self.offset_ms())
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        let ended = each("end_windows", &ids, |id| self.end_window(id)).await;
        if !ids.is_empty() {
            // Whoever holds units of them concludes their lines.
            self.wake_all(Who::Supplies);
        }
        ended
    }

    async fn end_window(&self, id: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let step = self.step(&mut tx, id, Event::WindowEnded).await?;
        tx.commit().await?;
        if let Some(step) = step {
            step.tell(id, None);
        }
        Ok(())
    }

    /// Batches with nothing left to run that are not ended yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drained(&self) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- drained
                 SELECT id FROM batches b
                 WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                   AND status <> 'validating' AND NOT EXISTS
                    (SELECT 1 FROM units u WHERE u.batch_id = b.id AND u.state <> 'done')
                 LIMIT $1",
            )
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Which of these batches have nothing left to run, and are not ended yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drained_of(&self, batches: &BTreeSet<String>) -> Result<Vec<String>> {
        let batches: Vec<&String> = batches.iter().collect();
        let mut drained = Vec::new();
        for batches in batches.chunks(NAMED_BATCHES_MAX) {
            let sql = format!(
                "-- drained_of
                 SELECT id FROM batches b
                 WHERE id IN {} AND status IN ('in_progress', 'finalizing', 'cancelling')
                   AND NOT EXISTS
                    (SELECT 1 FROM units u WHERE u.batch_id = b.id AND u.state <> 'done')",
                values(1, 1, batches.len())
            );
            let rows: Vec<(String,)> = on!(self.reader(), c => {
                let mut query = sqlx::query_as(AssertSqlSafe(sql)).persistent(false);
                for batch in batches {
                    query = query.bind(*batch);
                }
                query.fetch_all(c).await?
            });
            drained.extend(rows.into_iter().map(|(id,)| id));
        }
        Ok(drained)
    }

    /// Brings a drained batch to its end: `finalizing` first where it ran to completion, then,
    /// in one transaction, its files and its last status. Repeating it changes nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish_batch(&self, batch_id: &str) -> Result<Finished> {
        let mut tx = self.begin().await?;
        // The batch's row is taken first: then nobody else is about to end it.
        let Some(mut stage) = lock_free_stage(&mut tx, self, batch_id).await? else {
            return Ok(Finished::Busy);
        };
        if stage.status.is_terminal() || !is_drained(&mut tx, batch_id).await? {
            return Ok(Finished::NotYet);
        }
        if let Some(next) = stage.after(Event::Drained) {
            set_stage(&mut tx, batch_id, stage, next, self.now_ms()).await?;
            tx.commit().await?;
            let (from, to) = (stage.status, next.status);
            Step { from, to }.tell(batch_id, None);
            tx = self.begin().await?;
            match lock_free_stage(&mut tx, self, batch_id).await? {
                Some(after) => stage = after,
                None => return Ok(Finished::Busy),
            }
        }
        // No unit is open, and none that is done is opened again.
        let Some(next) = stage.after(Event::Published) else {
            // It does not run yet, or another process has ended it, and removes its units as well.
            return Ok(Finished::NotYet);
        };
        set_stage(&mut tx, batch_id, stage, next, self.now_ms()).await?;
        self.publish_files(&mut tx, batch_id).await?;
        within!(&mut tx, c => {
            sqlx::query("-- finish_batch_backlog\nDELETE FROM backlog WHERE batch_id = $1")
                .bind(batch_id)
                .execute(c)
                .await?;
        });
        tx.commit().await?;
        // The batch has ended, whether its counts can be read for the log or not.
        let counts = self.counts(batch_id).await;
        let (from, to) = (stage.status, next.status);
        Step { from, to }.tell(batch_id, counts.as_ref().ok());
        self.remove_units(batch_id).await?;
        Ok(Finished::Ended)
    }

    /// Writes the rows of the output and the error file, each with how many of its bytes every
    /// chunk gave, so that a range can be found. A file of no bytes is not made.
    async fn publish_files(&self, tx: &mut Tx, batch_id: &str) -> Result<()> {
        let now = self.now_sql(6);
        let insert = format!(
            "-- publish_files
             INSERT INTO files (id, tenant, purpose, filename, bytes, created_at,
                expires_at, state, touched_at, batch_id, kind, chunk_sizes)
             SELECT $2, tenant, $3, $4, $5, {now},
                CASE WHEN output_expires_seconds > 0
                    THEN {now} + output_expires_seconds * 1000 END,
                'ready', {now}, id, $7, $8
             FROM batches WHERE id = $1"
        );
        let sizes: Vec<(i64, i64, i64)> = within!(&mut *tx, c => {
            sqlx::query_as(
                "-- publish_files_sizes
                 SELECT chunk_no, CAST(SUM(output_bytes) AS BIGINT),
                    CAST(SUM(error_bytes) AS BIGINT)
                 FROM units WHERE batch_id = $1 GROUP BY chunk_no ORDER BY chunk_no",
            )
            .bind(batch_id)
            .fetch_all(c)
            .await?
        });
        for kind in [Kind::Output, Kind::Error] {
            let sizes: Vec<(i64, i64)> = sizes
                .iter()
                .map(|&(chunk, output, error)| {
                    (chunk, if kind == Kind::Output { output } else { error })
                })
                .filter(|&(_, bytes)| bytes > 0)
                .collect();
            if sizes.is_empty() {
                continue;
            }
            let bytes: i64 = sizes.iter().map(|&(_, bytes)| bytes).sum();
            let file_id = id::file();
            let (name, column) = match kind {
                Kind::Output => ("output", "output_file_id"),
                Kind::Error => ("error", "error_file_id"),
            };
            let reference = format!(
                "-- publish_files_reference\nUPDATE batches SET {column} = $2 WHERE id = $1"
            );
            within!(&mut *tx, c => {
                sqlx::query(AssertSqlSafe(insert.clone()))
                .bind(batch_id)
                .bind(&file_id)
                .bind(Purpose::BatchOutput.as_str())
                .bind(format!("{batch_id}_{name}.jsonl"))
                .bind(bytes)
                .bind(self.offset_ms())
                .bind(name)
                .bind(encode_sizes(&sizes))
                .execute(&mut *c)
                .await?;
                sqlx::query(AssertSqlSafe(reference))
                    .bind(batch_id)
                    .bind(&file_id)
                    .execute(&mut *c)
                    .await?;
            });
        }
        Ok(())
    }

    /// Removes units of batches that have ended, where a process died before it had done so, or
    /// where the batch ended while it got its first ones.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn sweep_units(&self) -> Result<()> {
        let ended: Vec<(String,)> = on!(self.reader(), c => {
            sqlx::query_as(
                // From batch to batch along the index: as many steps as there are batches, not
                // units.
                "-- sweep_units
                 WITH RECURSIVE kept(batch_id) AS (
                    SELECT MIN(batch_id) FROM units
                    UNION ALL
                    SELECT (SELECT MIN(batch_id) FROM units WHERE batch_id > kept.batch_id)
                    FROM kept WHERE kept.batch_id IS NOT NULL)
                 SELECT b.id FROM kept JOIN batches b ON b.id = kept.batch_id
                 WHERE b.status IN ('completed', 'expired', 'cancelled', 'failed') LIMIT $1",
            )
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        each("sweep_units", &ended, |id| self.remove_units(id)).await?;
        Ok(())
    }

    /// Removes the units of a batch that has ended, in small transactions. They are done, or the
    /// batch ended before it had begun; after its end there come no more.
    async fn remove_units(&self, batch_id: &str) -> Result<()> {
        // Locked in the order of their keys: several processes may do this at once.
        let sql = format!(
            "-- remove_units
             WITH chosen AS MATERIALIZED
                (SELECT chunk_no, model_no FROM units WHERE batch_id = $1 AND EXISTS
                    (SELECT 1 FROM batches WHERE id = $1
                        AND status IN ('completed', 'expired', 'cancelled', 'failed'))
                 ORDER BY chunk_no, model_no LIMIT $2 {})
             DELETE FROM units
             WHERE batch_id = $1 AND (chunk_no, model_no) IN (SELECT * FROM chosen)",
            self.engine().for_update()
        );
        loop {
            let removed = on!(self.writer(), c => {
                sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(batch_id)
                .bind(REMOVED_UNITS_MAX)
                .execute(c)
                .await?
                .rows_affected()
            });
            // Fewer also where another process removes the same ones; what both leave is swept.
            if removed < REMOVED_UNITS_MAX as u64 {
                return Ok(());
            }
        }
    }

    /// Moves a batch as an event says; `None` where the event changes nothing. To be told once
    /// the transaction is committed.
    async fn step(&self, tx: &mut Tx, batch_id: &str, event: Event) -> Result<Option<Step>> {
        let Some(stage) = lock_stage(tx, self, batch_id).await? else {
            return Ok(None);
        };
        let Some(next) = stage.after(event) else {
            return Ok(None);
        };
        set_stage(tx, batch_id, stage, next, self.now_ms()).await?;
        Ok(Some(Step {
            from: stage.status,
            to: next.status,
        }))
    }
}

async fn is_drained(tx: &mut Tx, batch_id: &str) -> Result<bool> {
    let open: Option<(i64,)> = within!(tx, c => {
        sqlx::query_as(
            "-- is_drained
             SELECT CAST(1 AS BIGINT) FROM units WHERE batch_id = $1 AND state <> 'done' LIMIT 1",
        )
        .bind(batch_id)
        .fetch_optional(c)
        .await?
    });
    Ok(open.is_none())
}

/// A step of a batch's life that is on disk, for the log and the metrics.
#[must_use]
pub(in crate::store) struct Step {
    pub from: Status,
    pub to: Status,
}

impl Step {
    /// Tells of it, with the batch's counts where they are known.
    pub fn tell(self, batch_id: &str, counts: Option<&Counts>) {
        self.tell_why(batch_id, counts, None);
    }

    /// The same, with why the batch failed.
    pub fn tell_why(self, batch_id: &str, counts: Option<&Counts>, why: Option<&str>) {
        let Step { from, to } = self;
        if from == to {
            return;
        }
        if to.is_terminal() {
            metrics().batch_ended(to.as_str());
        }
        tracing::info!(
            batch.id = batch_id,
            batch.from = from.as_str(),
            batch.total = counts.map(|counts| counts.total),
            batch.completed = counts.map(|counts| counts.completed),
            batch.failed = counts.map(|counts| counts.failed),
            batch.cancelled = counts.map(|counts| counts.cancelled),
            batch.errors = why,
            "the batch is {to}"
        );
    }
}

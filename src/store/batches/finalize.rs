//! Bringing a batch to its end once all its lines are done: its files are published, and its units
//! are removed.
//!
//! Queries over live batches repeat the condition of their partial index word for word: SQLite
//! uses it only then.

use std::collections::BTreeSet;

use super::state::{self, IfLocked};
use crate::domain::batch::Event;
use crate::domain::file::{Kind, Purpose};
use crate::domain::id;
use crate::store::each::each;
use crate::store::engine::{Rows, Tx, Value, bind_each, bind_rows, in_tx, list, on_pool, sql};
use crate::store::files::encode_sizes;
use crate::store::{Result, Store};

/// Batches looked at in one round.
const ROUND: i64 = 100;
/// Units removed in one transaction, once their batch is published.
const REMOVED_UNITS_MAX: i64 = 500;

/// Batches named in one statement.
const NAMED_BATCHES_MAX: usize = 500;

/// The outcome of an attempt to end a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalized {
    Ended,
    /// The batch has open units, or has ended already.
    NotYet,
    /// Another transaction has locked the batch's row, to end the batch or to cancel it.
    Busy,
}

impl Store {
    /// Batches with nothing left to run that are not ended yet.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drained(&self) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = on_pool!(self.reader(), |c| {
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
            let sql = sql!(
                "-- drained_of
                 SELECT id FROM batches b
                 WHERE id IN {ids} AND status IN ('in_progress', 'finalizing', 'cancelling')
                   AND NOT EXISTS
                    (SELECT 1 FROM units u WHERE u.batch_id = b.id AND u.state <> 'done')",
                ids = list(1, batches.len())
            );
            let rows: Vec<(String,)> = on_pool!(self.reader(), |c| {
                let look = sqlx::query_as(sql).persistent(false);
                bind_each!(look, batches.iter().copied())
                    .fetch_all(c)
                    .await?
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
    pub async fn finalize_batch(&self, batch_id: &str) -> Result<Finalized> {
        let mut tx = self.begin().await?;
        // The batch's row is locked first: then nobody else is about to end the batch.
        let Some(mut batch) = state::lock(&mut tx, batch_id, IfLocked::Skip).await? else {
            return Ok(Finalized::Busy);
        };
        if batch.state.status.is_terminal() || !is_drained(&mut tx, batch_id).await? {
            return Ok(Finalized::NotYet);
        }
        let drained = state::advance(&mut tx, &batch, Event::Drained, self.now_ms()).await?;
        if let Some(drained) = drained {
            tx.commit().await?;
            drained.announce();
            tx = self.begin().await?;
            match state::lock(&mut tx, batch_id, IfLocked::Skip).await? {
                Some(again) => batch = again,
                None => return Ok(Finalized::Busy),
            }
        }
        // No unit is open, and none that is done is opened again.
        if batch.state.after(Event::Published).is_none() {
            // The batch does not run yet, or another process has ended it and removes its units.
            return Ok(Finalized::NotYet);
        }
        let [output, error] = self.publish_files(&mut tx, batch_id).await?;
        let files = [
            ("output_file_id", Value::from(&output)),
            ("error_file_id", Value::from(&error)),
        ];
        let step = [(&batch, files)];
        let ended = state::advance_all(&mut tx, Event::Published, self.now_ms(), &step).await?;
        in_tx!(&mut tx, |c| {
            sqlx::query("-- finalize_batch_backlog\nDELETE FROM backlog WHERE batch_id = $1")
                .bind(batch_id)
                .execute(c)
                .await?;
        });
        tx.commit().await?;
        // The batch has ended, whether its counts can be read for the log or not.
        let counts = self.counts(batch_id).await.ok();
        for ended in ended {
            ended.with_counts(counts).announce();
        }
        self.remove_units(batch_id).await?;
        Ok(Finalized::Ended)
    }

    /// Writes the rows of the output and the error file, each with how many of its bytes every
    /// chunk gave, so that a range can be found. Returns the two files' ids. A file of no
    /// bytes is not made.
    async fn publish_files(&self, tx: &mut Tx, batch_id: &str) -> Result<[Option<String>; 2]> {
        let sizes: Vec<(i64, i64, i64)> = in_tx!(&mut *tx, |c| {
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
        let mut ids = [None, None];
        for (id, kind) in ids.iter_mut().zip([Kind::Output, Kind::Error]) {
            let sizes: Vec<(i64, i64)> = sizes
                .iter()
                .map(|&(chunk, output, error)| {
                    (chunk, if kind == Kind::Output { output } else { error })
                })
                .filter(|&(_, bytes)| bytes > 0)
                .collect();
            if !sizes.is_empty() {
                *id = Some(self.publish_file(tx, batch_id, kind, &sizes).await?);
            }
        }
        Ok(ids)
    }

    /// Writes the row of one file. Returns its id.
    async fn publish_file(
        &self,
        tx: &mut Tx,
        batch_id: &str,
        kind: Kind,
        sizes: &[(i64, i64)],
    ) -> Result<String> {
        let file_id = id::file();
        let name = match kind {
            Kind::Output => "output",
            Kind::Error => "error",
        };
        let sizes_of_chunks = encode_sizes(sizes);
        let file = Rows::of([[
            ("id", Value::from(&file_id)),
            ("purpose", Purpose::BatchOutput.as_str().into()),
            ("filename", format!("{batch_id}_{name}.jsonl").into()),
            (
                "bytes",
                sizes.iter().map(|&(_, bytes)| bytes).sum::<i64>().into(),
            ),
            ("kind", name.into()),
            ("chunk_sizes", Value::from(&sizes_of_chunks)),
        ]]);
        let insert = sql!(
            "-- publish_files
             WITH {file}
             INSERT INTO files ({columns}, tenant, created_at, expires_at, state, touched_at,
                batch_id)
             SELECT v.*, b.tenant, {now},
                CASE WHEN b.output_expires_seconds > 0
                    THEN {now} + b.output_expires_seconds * 1000 END,
                'ready', {now}, b.id
             FROM v JOIN batches b ON b.id = $1",
            file = file.table("v", 3, tx.engine()),
            columns = file.columns(),
            now = self.now_sql(2)
        );
        in_tx!(tx, |c| {
            let insert = sqlx::query(insert).bind(batch_id).bind(self.offset_ms());
            bind_rows!(insert, file).execute(c).await?;
        });
        Ok(file_id)
    }

    /// Removes units of batches that have ended: of a batch whose process died before it removed
    /// them, or of a batch that ended while its units were being made.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn sweep_units(&self) -> Result<()> {
        let ended: Vec<(String,)> = on_pool!(self.reader(), |c| {
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
        each(
            "sweep_units",
            &ended,
            |(id,)| id,
            |(id,)| self.remove_units(id),
        )
        .await?;
        Ok(())
    }

    /// Removes the units of a batch that has ended, in small transactions. All of them are done, or
    /// the batch ended before it ran. No unit is made after a batch's end.
    async fn remove_units(&self, batch_id: &str) -> Result<()> {
        // Locked in the order of their keys: several processes may do this at once.
        let sql = sql!(
            "-- remove_units
             WITH chosen AS MATERIALIZED
                (SELECT chunk_no, model_no FROM units WHERE batch_id = $1 AND EXISTS
                    (SELECT 1 FROM batches WHERE id = $1
                        AND status IN ('completed', 'expired', 'cancelled', 'failed'))
                 ORDER BY chunk_no, model_no LIMIT $2 {lock})
             DELETE FROM units
             WHERE batch_id = $1 AND (chunk_no, model_no) IN (SELECT * FROM chosen)",
            lock = self.engine().for_update()
        );
        loop {
            let removed = on_pool!(self.writer(), |c| {
                sqlx::query(sql.clone())
                    .bind(batch_id)
                    .bind(REMOVED_UNITS_MAX)
                    .execute(c)
                    .await?
                    .rows_affected()
            });
            // Fewer were removed also where another process removes the same units. The sweep
            // removes what both leave.
            if removed < REMOVED_UNITS_MAX as u64 {
                return Ok(());
            }
        }
    }
}

async fn is_drained(tx: &mut Tx, batch_id: &str) -> Result<bool> {
    let open: Option<(i64,)> = in_tx!(tx, |c| {
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

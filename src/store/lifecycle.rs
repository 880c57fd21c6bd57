//! The steps of a batch's life that duties take: validated, drained, published, at its window's
//! end.
//!
//! Queries over live batches repeat the condition of their partial index word for word: SQLite
//! uses it only then.

use sqlx::AssertSqlSafe;

use super::batches::{lock_stage, set_stage};
use super::engine::{Tx, on, within};
use super::purge::each;
use super::segments::encode_sizes;
use super::{Error, Result, Store};
use crate::domain::batch::{Counts, Event, Status};
use crate::domain::file::{Kind, Purpose};
use crate::domain::findings::Findings;
use crate::domain::id;
use crate::intake::ModelReport;
use crate::observe::figures;

/// Batches looked at in one round of a duty.
const ROUND: i64 = 100;
/// Units removed in one transaction, once their batch is published.
const REMOVED_UNITS_MAX: i64 = 500;

/// A batch that waits to be validated, with what its input's upload found out.
#[derive(Clone, Debug)]
pub struct Unvalidated {
    pub batch_id: String,
    pub tenant: String,
    pub endpoint: String,
    pub input_file_id: String,
    /// `None` where the tenant has no such file for batches.
    pub input: Option<Input>,
}

#[derive(Clone, Debug)]
pub struct Input {
    pub requests: i64,
    pub findings: Findings,
    pub models: Vec<ModelReport>,
}

impl Store {
    /// Batches that wait to be validated, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unvalidated(&self) -> Result<Vec<Unvalidated>> {
        let rows: Vec<(String, String, String, String, i64)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- unvalidated
                 SELECT id, tenant, endpoint, input_file_id, created_at FROM batches
                 WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                   AND status = 'validating'
                 ORDER BY created_at, id LIMIT $1",
            )
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        let mut found = Vec::with_capacity(rows.len());
        for (batch_id, tenant, endpoint, input_file_id, created_at) in rows {
            match self.input(&tenant, &input_file_id, created_at).await {
                Ok(input) => {
                    found.push(Unvalidated {
                        batch_id,
                        tenant,
                        endpoint,
                        input_file_id,
                        input,
                    });
                }
                Err(error) if error.is_outage() => return Err(error),
                // The others need not wait for one that is damaged.
                Err(error) => tracing::error!(batch.id = batch_id, %error, "cannot be validated"),
            }
        }
        Ok(found)
    }

    /// What is known of a batch's input. A file that was there when the batch was created
    /// counts, even if it was deleted or has expired since.
    async fn input(&self, tenant: &str, file_id: &str, at: i64) -> Result<Option<Input>> {
        let row: Option<(i64, Option<String>)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- input
                 SELECT requests, findings FROM files
                 WHERE id = $1 AND tenant = $2 AND purpose = $3 AND batch_id IS NULL
                   AND (state = 'ready' OR (state = 'deleted' AND touched_at >= $4))
                   AND (expires_at IS NULL OR expires_at > $4)",
            )
            .bind(file_id)
            .bind(tenant)
            .bind(Purpose::Batch.as_str())
            .bind(at)
            .fetch_optional(c)
            .await?
        });
        let Some((requests, findings)) = row else {
            return Ok(None);
        };
        let damaged = |error| Error::corrupt(format!("report on {file_id}"), error);
        let findings = match findings {
            Some(findings) => serde_json::from_str(&findings).map_err(damaged)?,
            None => Findings::default(),
        };
        let rows: Vec<(String, i64, String)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- input_models
                 SELECT name, requests, first_lines FROM file_models WHERE file_id = $1
                 ORDER BY model_no",
            )
            .bind(file_id)
            .fetch_all(c)
            .await?
        });
        let mut models = Vec::with_capacity(rows.len());
        for (name, requests, lines) in rows {
            let first_lines = serde_json::from_str(&lines).map_err(damaged)?;
            models.push(ModelReport {
                name,
                requests: requests as u64,
                first_lines,
            });
        }
        Ok(Some(Input {
            requests,
            findings,
            models,
        }))
    }

    /// Ends a batch that cannot run. `errors` is a JSON list of findings. False if the batch is
    /// not validating any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reject_batch(&self, batch_id: &str, errors: &str) -> Result<bool> {
        let mut tx = self.begin().await?;
        let Some(step) = self.step(&mut tx, batch_id, Event::Rejected).await? else {
            return Ok(false);
        };
        within!(&mut tx, c => {
            sqlx::query("-- reject_batch\nUPDATE batches SET errors = $2 WHERE id = $1")
                .bind(batch_id)
                .bind(errors)
                .execute(c)
                .await?;
        });
        tx.commit().await?;
        step.tell(batch_id, None);
        Ok(true)
    }

    /// Lets a batch run: its units and its step to `in_progress` are one transaction. `model`
    /// is the one that all its lines name. False if it is not validating any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<bool> {
        let total = batch.input.as_ref().map_or(0, |input| input.requests);
        let units = format!(
            "-- accept_batch_units
             INSERT INTO units (batch_id, chunk_no, model_no, state, epoch, flush_no, takeovers,
                requests, chunk_bytes, done, output_bytes, error_bytes)
             SELECT CAST($1 AS TEXT), chunk_no, model_no, 'waiting', 0, 0, 0,
                requests, chunk_bytes, CAST($3 AS {}), 0, 0
             FROM chunk_models WHERE file_id = $2",
            self.engine().bytes_type()
        );
        let mut tx = self.begin().await?;
        let Some(step) = self.step(&mut tx, &batch.batch_id, Event::Accepted).await? else {
            return Ok(false);
        };
        within!(&mut tx, c => {
            sqlx::query(AssertSqlSafe(units))
                .bind(&batch.batch_id)
                .bind(&batch.input_file_id)
                .bind(Vec::<u8>::new())
                .execute(&mut *c)
                .await?;
            sqlx::query(
                "-- accept_batch_backlog
                 INSERT INTO backlog (batch_id, model_no, model, waiting)
                 SELECT CAST($1 AS TEXT), m.model_no, m.name, COUNT(*)
                 FROM chunk_models c
                 JOIN file_models m ON m.file_id = c.file_id AND m.model_no = c.model_no
                 WHERE c.file_id = $2 GROUP BY m.model_no, m.name",
            )
            .bind(&batch.batch_id)
            .bind(&batch.input_file_id)
            .execute(&mut *c)
            .await?;
            sqlx::query("-- accept_batch\nUPDATE batches SET total = $2, model = $3 WHERE id = $1")
                .bind(&batch.batch_id)
                .bind(total)
                .bind(model)
                .execute(&mut *c)
                .await?;
        });
        tx.commit().await?;
        let counts = Counts {
            total,
            ..Counts::default()
        };
        step.tell(&batch.batch_id, Some(&counts));
        self.wake();
        Ok(true)
    }

    /// Ends the window of batches whose time is up: what has not run will not. Returns how many
    /// there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_windows(&self) -> Result<usize> {
        let ids: Vec<(String,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- end_windows
                 SELECT id FROM batches
                 WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                   AND status IN ('validating', 'in_progress') AND ending IS NULL AND expires_at <= $1 LIMIT $2",
            )
            .bind(self.now_ms())
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        let ended = each("end_windows", &ids, |id| self.end_window(id)).await;
        if !ids.is_empty() {
            self.wake();
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

    /// Brings a drained batch to its end: `finalizing` first where it ran to completion, then,
    /// in one transaction, its files and its last status. Repeating it changes nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish_batch(&self, batch_id: &str) -> Result<()> {
        let mut tx = self.begin().await?;
        let mut drained = None;
        if self.is_drained(&mut tx, batch_id).await? {
            drained = self.step(&mut tx, batch_id, Event::Drained).await?;
        }
        tx.commit().await?;
        if let Some(step) = drained {
            step.tell(batch_id, None);
        }
        let mut tx = self.begin().await?;
        let mut published = None;
        if self.is_drained(&mut tx, batch_id).await? {
            published = self.step(&mut tx, batch_id, Event::Published).await?;
        }
        if published.is_some() {
            self.publish_files(&mut tx, batch_id).await?;
            within!(&mut tx, c => {
                sqlx::query("-- finish_batch_backlog\nDELETE FROM backlog WHERE batch_id = $1")
                    .bind(batch_id)
                    .execute(c)
                    .await?;
            });
        }
        tx.commit().await?;
        self.wake();
        let Some(step) = published else {
            // Not drained after all, or ended by another process, which removes its units as well.
            return Ok(());
        };
        // The batch has ended, whether its counts can be read for the log or not.
        let counts = self.counts(batch_id).await;
        step.tell(batch_id, counts.as_ref().ok());
        self.remove_units(batch_id).await
    }

    async fn is_drained(&self, tx: &mut Tx, batch_id: &str) -> Result<bool> {
        // The batch's row is taken first: then nobody else is about to end it.
        if lock_stage(tx, self, batch_id).await?.is_none() {
            return Ok(false);
        }
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

    /// Writes the rows of the output and the error file, each with how many of its bytes every
    /// chunk gave, so that a range can be found. A file of no bytes is not made.
    async fn publish_files(&self, tx: &mut Tx, batch_id: &str) -> Result<()> {
        let now = self.now_ms();
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
                sqlx::query(
                    "-- publish_files
                     INSERT INTO files (id, tenant, purpose, filename, bytes, created_at,
                        expires_at, state, touched_at, batch_id, kind, chunk_sizes)
                     SELECT $2, tenant, $3, $4, $5, $6,
                        CASE WHEN output_expires_seconds > 0
                            THEN $6 + output_expires_seconds * 1000 END,
                        'ready', $6, id, $7, $8
                     FROM batches WHERE id = $1",
                )
                .bind(batch_id)
                .bind(&file_id)
                .bind(Purpose::BatchOutput.as_str())
                .bind(format!("{batch_id}_{name}.jsonl"))
                .bind(bytes)
                .bind(now)
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

    /// Removes units of batches that have ended, where a process died before it had done so.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn sweep_units(&self) -> Result<()> {
        let ended: Vec<(String,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- sweep_units
                 SELECT DISTINCT u.batch_id FROM units u JOIN batches b ON b.id = u.batch_id
                 WHERE b.status IN ('completed', 'expired', 'cancelled', 'failed') LIMIT $1",
            )
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        each("sweep_units", &ended, |id| self.remove_units(id)).await?;
        Ok(())
    }

    /// Removes the units of a batch that has ended, in small transactions.
    async fn remove_units(&self, batch_id: &str) -> Result<()> {
        // Locked in the order of their keys: several processes may do this at once.
        let sql = format!(
            "-- remove_units
             WITH chosen AS MATERIALIZED
                (SELECT chunk_no, model_no FROM units WHERE batch_id = $1 AND state = 'done'
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
            if removed == 0 {
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

/// A step of a batch's life that is on disk, for the log and the figures.
#[must_use]
pub(super) struct Step {
    pub from: Status,
    pub to: Status,
}

impl Step {
    /// Tells of it, with the batch's counts where they are known.
    pub fn tell(self, batch_id: &str, counts: Option<&Counts>) {
        let Step { from, to } = self;
        if from == to {
            return;
        }
        if to.is_terminal() {
            figures().batch_ended(to.as_str());
        }
        tracing::info!(
            batch.id = batch_id,
            batch.from = from.as_str(),
            batch.total = counts.map(|counts| counts.total),
            batch.completed = counts.map(|counts| counts.completed),
            batch.failed = counts.map(|counts| counts.failed),
            batch.cancelled = counts.map(|counts| counts.cancelled),
            "the batch is {to}"
        );
    }
}

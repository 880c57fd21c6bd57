//! Batches that were validated: let run or refused, many at once.
//!
//! A batch whose input has many units gets them in ranges, each in a transaction of its own, while
//! the batch stays `validating`. The units that are there say how far the batch is, so any process
//! can go on. No unit can be leased before the batch's last transaction, which writes the backlog.

use std::ops::Range;

use super::state::{self, Changed, LockedBatch};
use super::validate::Unvalidated;
use crate::domain::batch::{Counts, Event};
use crate::domain::findings::{self, Finding};
use crate::store::engine::{Rows, Tx, Value, bind_rows, in_tx, on_pool, sql};
use crate::store::{Result, Store, Who};

/// Rows of the backlog written by one statement: a file may name a great many models.
const ROWS_A_STATEMENT: usize = 1_000;

/// What validation found of a batch.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It can run. `model` is the one that all its lines name.
    Accepted { model: Option<String> },
    /// It cannot: a JSON list of findings.
    Rejected { errors: String },
}

/// How far a batch is that gets its units in ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It has all its units, and runs.
    Runs,
    /// It has some more than before.
    Grows,
    /// It is not validating any more, or another process is at it.
    Elsewhere,
}

/// What became of a group of batches.
#[derive(Clone, Debug)]
pub struct Settled {
    /// How many were let run or refused.
    pub settled: usize,
    /// Those that run.
    pub batches: Vec<String>,
}

/// A batch that is let run.
#[derive(Clone, Copy)]
struct Accepted<'a> {
    batch: &'a Unvalidated,
    locked: &'a LockedBatch,
    model: Option<&'a str>,
}

/// A batch that is refused.
#[derive(Clone, Copy)]
struct Rejected<'a> {
    locked: &'a LockedBatch,
    /// A JSON list of findings.
    errors: &'a str,
}

impl Store {
    /// Lets batches run or refuses them, all in one transaction: their units, their backlog and
    /// their new state. Each has to be [small](Unvalidated::is_small). A batch that another process
    /// is at is left to that process, and a batch that is not validating any more is left alone.
    ///
    /// # Errors
    /// When the database fails: then none is settled.
    pub async fn settle_batches(&self, judged: &[(&Unvalidated, &Verdict)]) -> Result<Settled> {
        let mut tx = self.begin().await?;
        let ids: Vec<&str> = judged
            .iter()
            .map(|(batch, _)| batch.batch_id.as_str())
            .collect();
        let ours = state::lock_validating(&mut tx, &ids).await?;
        let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
        for (batch, verdict) in judged {
            let Some(locked) = ours.get(&batch.batch_id) else {
                continue;
            };
            match verdict {
                Verdict::Accepted { model } => accepted.push(Accepted {
                    batch,
                    locked,
                    model: model.as_deref(),
                }),
                Verdict::Rejected { errors } => rejected.push(Rejected { locked, errors }),
            }
        }
        if !accepted.is_empty() {
            make_units(&mut tx, &accepted).await?;
            make_backlog(&mut tx, &accepted).await?;
        }
        let mut changed = self.accept(&mut tx, &accepted).await?;
        changed.extend(self.reject(&mut tx, &rejected).await?);
        tx.commit().await?;
        changed.into_iter().for_each(Changed::announce);
        if !accepted.is_empty() {
            self.wake(Who::Supplies);
        }
        Ok(Settled {
            settled: accepted.len() + rejected.len(),
            batches: accepted
                .iter()
                .map(|accepted| accepted.batch.batch_id.clone())
                .collect(),
        })
    }

    /// Gives a batch with many units a range of them. The last range lets the batch run.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<Begun> {
        let mut tx = self.begin().await?;
        let Some(mut locked) = lock_one(&mut tx, batch).await? else {
            return Ok(Begun::Elsewhere);
        };
        let (made, next, last) = progress(&mut tx, batch).await?;
        if let Some(next) = next {
            let end = next.saturating_add(batch.chunks_at_once());
            make_range(&mut tx, batch, next..end).await?;
            if made.is_some() || last >= Some(end) {
                tx.commit().await?;
                return Ok(Begun::Grows);
            }
        }
        if made.is_some() {
            // No unit is missing. They are counted outside of the transaction: the input never
            // changes, and others want to write.
            tx.commit().await?;
            let waiting = self.units_by_model(&batch.input_file_id).await?;
            tx = self.begin().await?;
            match lock_one(&mut tx, batch).await? {
                Some(again) => locked = again,
                None => return Ok(Begun::Elsewhere),
            }
            insert_backlog(&mut tx, &batch.batch_id, &waiting).await?;
        }
        let accepted = [Accepted {
            batch,
            locked: &locked,
            model,
        }];
        if made.is_none() {
            make_backlog(&mut tx, &accepted).await?;
        }
        let changed = self.accept(&mut tx, &accepted).await?;
        tx.commit().await?;
        changed.into_iter().for_each(Changed::announce);
        self.wake(Who::Supplies);
        Ok(Begun::Runs)
    }

    /// Lets a batch run, however many units it has. False if it is not validating any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn accept_batch(&self, batch: &Unvalidated, model: Option<&str>) -> Result<bool> {
        loop {
            match self.begin_batch(batch, model).await? {
                Begun::Runs => return Ok(true),
                Begun::Elsewhere => return Ok(false),
                Begun::Grows => {}
            }
        }
    }

    async fn accept(&self, tx: &mut Tx, batches: &[Accepted<'_>]) -> Result<Vec<Changed>> {
        let steps: Vec<_> = batches
            .iter()
            .map(|accepted| {
                let total = ("total", accepted.batch.total().into());
                (accepted.locked, [total, ("model", accepted.model.into())])
            })
            .collect();
        let changed = state::advance_all(tx, Event::Accepted, self.now_ms(), &steps).await?;
        let changed = changed.into_iter().zip(batches);
        Ok(changed
            .map(|(changed, accepted)| {
                changed.with_counts(Some(Counts {
                    total: accepted.batch.total(),
                    ..Counts::default()
                }))
            })
            .collect())
    }

    async fn reject(&self, tx: &mut Tx, batches: &[Rejected<'_>]) -> Result<Vec<Changed>> {
        let steps: Vec<_> = batches
            .iter()
            .map(|rejected| (rejected.locked, [("errors", Value::from(rejected.errors))]))
            .collect();
        let changed = state::advance_all(tx, Event::Rejected, self.now_ms(), &steps).await?;
        let changed = changed.into_iter().zip(batches);
        Ok(changed
            .map(|(changed, rejected)| {
                let errors: Vec<Finding> =
                    serde_json::from_str(rejected.errors).unwrap_or_default();
                changed.because(findings::in_short(&errors))
            })
            .collect())
    }

    /// How many units of each model a batch of a file has, by number, with the model's name.
    async fn units_by_model(&self, file_id: &str) -> Result<Vec<(i64, String, i64)>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- units_by_model
                 SELECT m.model_no, m.name, c.units
                 FROM (SELECT model_no, COUNT(*) AS units FROM chunk_models WHERE file_id = $1
                    GROUP BY model_no) c
                 JOIN file_models m ON m.file_id = $1 AND m.model_no = c.model_no",
            )
            .bind(file_id)
            .fetch_all(c)
            .await?
        }))
    }
}

/// Locks a batch that is validating, if no other process is at it.
async fn lock_one(tx: &mut Tx, batch: &Unvalidated) -> Result<Option<LockedBatch>> {
    let mut locked = state::lock_validating(tx, &[&batch.batch_id]).await?;
    Ok(locked.remove(&batch.batch_id))
}

/// The columns of a unit that has only been made.
const UNIT: &str = "batch_id, chunk_no, model_no, state, epoch, flush_no, takeovers, requests,
                chunk_bytes, done, output_bytes, error_bytes";

/// A list of batches with their input files, for a statement.
fn inputs<'a>(batches: &[Accepted<'a>]) -> Rows<'a> {
    Rows::of(batches.iter().map(|accepted| {
        [
            ("batch_id", Value::from(&accepted.batch.batch_id)),
            ("file_id", Value::from(&accepted.batch.input_file_id)),
        ]
    }))
}

/// Makes all units of batches.
async fn make_units(tx: &mut Tx, batches: &[Accepted<'_>]) -> Result<()> {
    let inputs = inputs(batches);
    let sql = sql!(
        "-- accept_batch_units
         WITH {inputs}
         INSERT INTO units ({unit})
         SELECT v.batch_id, c.chunk_no, c.model_no, 'waiting', 0, 0, 0, c.requests,
            c.chunk_bytes, {no_lines}, 0, 0
         FROM v JOIN chunk_models c ON c.file_id = v.file_id",
        inputs = inputs.table("v", 1, tx.engine()),
        unit = UNIT,
        no_lines = tx.engine().no_bytes()
    );
    in_tx!(tx, |c| {
        let make = sqlx::query(sql).persistent(false);
        bind_rows!(make, inputs).execute(c).await?;
    });
    Ok(())
}

/// Makes the units of some chunks of a batch. The range has two ends, so that it costs the same
/// wherever it stands, even where Postgres knows nothing of the table yet.
async fn make_range(tx: &mut Tx, batch: &Unvalidated, chunks: Range<i64>) -> Result<()> {
    let sql = sql!(
        "-- accept_batch_range
         INSERT INTO units ({unit})
         SELECT CAST($1 AS TEXT), chunk_no, model_no, 'waiting', 0, 0, 0, requests,
            chunk_bytes, {no_lines}, 0, 0
         FROM chunk_models WHERE file_id = $2 AND chunk_no >= $3 AND chunk_no < $4",
        unit = UNIT,
        no_lines = tx.engine().no_bytes()
    );
    in_tx!(tx, |c| {
        sqlx::query(sql)
            .bind(&batch.batch_id)
            .bind(&batch.input_file_id)
            .bind(chunks.start)
            .bind(chunks.end)
            .execute(c)
            .await?;
    });
    Ok(())
}

/// Writes the backlog of batches that have all their units since this transaction.
async fn make_backlog(tx: &mut Tx, batches: &[Accepted<'_>]) -> Result<()> {
    let inputs = inputs(batches);
    let sql = sql!(
        "-- accept_batch_backlog
         WITH {inputs}
         INSERT INTO backlog (batch_id, model_no, model, waiting)
         SELECT v.batch_id, m.model_no, m.name, COUNT(*)
         FROM v JOIN chunk_models c ON c.file_id = v.file_id
         JOIN file_models m ON m.file_id = c.file_id AND m.model_no = c.model_no
         GROUP BY v.batch_id, m.model_no, m.name",
        inputs = inputs.table("v", 1, tx.engine())
    );
    in_tx!(tx, |c| {
        let make = sqlx::query(sql).persistent(false);
        bind_rows!(make, inputs).execute(c).await?;
    });
    Ok(())
}

/// Writes the backlog of a batch whose units were counted before.
async fn insert_backlog(tx: &mut Tx, batch_id: &str, waiting: &[(i64, String, i64)]) -> Result<()> {
    for waiting in waiting.chunks(ROWS_A_STATEMENT) {
        let rows = Rows::of(waiting.iter().map(|(model_no, model, units)| {
            [
                ("batch_id", Value::from(batch_id)),
                ("model_no", (*model_no).into()),
                ("model", Value::from(model)),
                ("waiting", (*units).into()),
            ]
        }));
        let sql = sql!(
            "-- insert_backlog\nINSERT INTO backlog ({columns}) VALUES {rows}",
            columns = rows.columns(),
            rows = rows.parameters(1)
        );
        in_tx!(&mut *tx, |c| {
            let insert = sqlx::query(sql).persistent(false);
            bind_rows!(insert, rows).execute(c).await?;
        });
    }
    Ok(())
}

/// The last chunk of which a batch has its units, the first one of which it has not, and the last
/// one of its input.
async fn progress(
    tx: &mut Tx,
    batch: &Unvalidated,
) -> Result<(Option<i64>, Option<i64>, Option<i64>)> {
    Ok(in_tx!(tx, |c| {
        sqlx::query_as(
            "-- begun_units
             SELECT (SELECT MAX(chunk_no) FROM units WHERE batch_id = $1),
                (SELECT MIN(chunk_no) FROM chunk_models WHERE file_id = $2 AND chunk_no >
                    COALESCE((SELECT MAX(chunk_no) FROM units WHERE batch_id = $1), -1)),
                (SELECT MAX(chunk_no) FROM chunk_models WHERE file_id = $2)",
        )
        .bind(&batch.batch_id)
        .bind(&batch.input_file_id)
        .fetch_one(c)
        .await?
    }))
}

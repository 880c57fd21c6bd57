//! Batches as users see them: created, found, listed, cancelled.

use sqlx::{AssertSqlSafe, FromRow};

use super::finalize::Step;
use crate::domain::batch::{Counts, Ending, Event, Stage, Status};
use crate::domain::usage::Usage;
use crate::store::engine::{Tx, on, within};
use crate::store::{Claim, Error, Page, Result, Store, Who};

/// What a user asks for.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub id: String,
    pub tenant: String,
    /// The key that it is created with; `None` where none is needed.
    pub key_id: Option<String>,
    pub endpoint: String,
    pub input_file_id: String,
    pub completion_window: String,
    /// How long its output and error file are kept, or [`NewBatch::KEPT_FOR_GOOD`].
    pub output_expires_seconds: i64,
    /// JSON, as given.
    pub metadata: Option<String>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
}

impl NewBatch {
    /// In place of a number of seconds.
    pub const KEPT_FOR_GOOD: i64 = 0;
}

/// A batch. Times are in milliseconds.
#[derive(Clone, Debug)]
pub struct Batch {
    pub row: BatchRow,
    pub stage: Stage,
    pub counts: Counts,
    pub usage: Usage,
}

#[derive(Clone, Debug, FromRow)]
pub struct BatchRow {
    pub id: String,
    pub tenant: String,
    pub endpoint: String,
    pub input_file_id: String,
    pub completion_window: String,
    pub output_expires_seconds: i64,
    pub metadata: Option<String>,
    pub status: String,
    pub ending: Option<String>,
    pub model: Option<String>,
    /// JSON: a list of findings.
    pub errors: Option<String>,
    pub total: i64,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub in_progress_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
}

/// What became of a request to cancel.
#[derive(Clone, Debug)]
pub enum Cancel {
    /// The batch as it is now.
    Granted(Box<Batch>),
    /// It has ended already.
    Refused(Status),
    NotFound,
}

/// The sums of a batch's slots: see [`summed`].
#[derive(Debug, FromRow)]
pub(in crate::store) struct CountsRow {
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    input_tokens: i64,
    cached_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
    total_tokens: i64,
}

/// The columns of a [`CountsRow`], from `batch_counts` by batch.
pub(in crate::store) fn summed() -> String {
    const SUMMED: [&str; 8] = [
        "completed",
        "failed",
        "cancelled",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "reasoning_tokens",
        "total_tokens",
    ];
    let sum = |name| format!("CAST(COALESCE(SUM(batch_counts.{name}), 0) AS BIGINT) AS {name}");
    SUMMED.map(sum).join(", ")
}

/// Batches with their sums, the newest first, of those that a statement gives the ids of. All in
/// one statement, so that a batch that is shown as completed is shown with all its lines.
fn select(name: &str, ids: &str) -> String {
    let summed = summed();
    format!(
        "-- {name}
         SELECT batches.*, {summed}
         FROM batches LEFT JOIN batch_counts ON batch_counts.batch_id = batches.id
         WHERE batches.id IN ({ids})
         GROUP BY batches.id ORDER BY batches.created_at DESC, batches.id DESC"
    )
}

/// A row of [`select`].
#[derive(FromRow)]
struct SelectedRow {
    #[sqlx(flatten)]
    batch: BatchRow,
    #[sqlx(flatten)]
    counts: CountsRow,
}

impl TryFrom<SelectedRow> for Batch {
    type Error = Error;

    fn try_from(selected: SelectedRow) -> Result<Self> {
        let SelectedRow { batch, counts } = selected;
        Ok(Batch {
            stage: stage(&batch.status, batch.ending.as_deref())?,
            counts: Counts {
                total: batch.total,
                completed: counts.completed,
                failed: counts.failed,
                cancelled: counts.cancelled,
            },
            usage: counts.usage(),
            row: batch,
        })
    }
}

impl CountsRow {
    pub(in crate::store) fn usage(&self) -> Usage {
        Usage {
            input_tokens: self.input_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            reasoning_tokens: self.reasoning_tokens,
            total_tokens: self.total_tokens,
        }
    }
}

impl Store {
    /// Creates a batch in `validating`, and remembers the answer for its `Idempotency-Key`.
    /// The input file's row is held while the reference to it is written, so that nobody
    /// purges it in between.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_batch(&self, new: &NewBatch, answer: Option<(&Claim, &str)>) -> Result<()> {
        let lock = format!(
            "-- create_batch_lock\nSELECT id FROM files WHERE id = $1 AND tenant = $2 {}",
            self.engine().for_share()
        );
        let mut tx = self.begin().await?;
        within!(&mut tx, c => {
            sqlx::query(AssertSqlSafe(lock))
                .bind(&new.input_file_id)
                .bind(&new.tenant)
                .execute(&mut *c).await?;
            sqlx::query(
                "-- create_batch
                 INSERT INTO batches (id, tenant, endpoint, input_file_id, completion_window,
                    output_expires_seconds, metadata, status, created_at, expires_at, key_id)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            )
            .bind(&new.id)
            .bind(&new.tenant)
            .bind(&new.endpoint)
            .bind(&new.input_file_id)
            .bind(&new.completion_window)
            .bind(new.output_expires_seconds)
            .bind(&new.metadata)
            .bind(Stage::CREATED.status.as_str())
            .bind(new.created_at)
            .bind(new.expires_at)
            .bind(&new.key_id)
            .execute(&mut *c)
            .await?;
        });
        if let Some((claim, body)) = answer {
            crate::store::tenants::remember(&mut tx, claim, 200, body, self.now_ms()).await?;
        }
        tx.commit().await?;
        self.wake_one(Who::Validators);
        Ok(())
    }

    /// A tenant's batch.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch(&self, tenant: &str, id: &str) -> Result<Option<Batch>> {
        let sql = select(
            "batch",
            "SELECT id FROM batches WHERE id = $1 AND tenant = $2",
        );
        let row: Option<SelectedRow> = on!(self.reader(), c => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(id)
                .bind(tenant)
                .fetch_optional(c)
                .await?
        });
        row.map(Batch::try_from).transpose()
    }

    /// The tenant that a batch belongs to.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owner_of_batch(&self, id: &str) -> Result<Option<String>> {
        Ok(on!(self.reader(), c => {
            sqlx::query_scalar("-- owner_of_batch\nSELECT tenant FROM batches WHERE id = $1")
                .bind(id)
                .fetch_optional(c)
                .await?
        }))
    }

    /// Where in its tenant's list a batch stands.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch_position(&self, tenant: &str, id: &str) -> Result<Option<(i64, String)>> {
        Ok(on!(self.reader(), c => {
            sqlx::query_as(
                "-- batch_position\nSELECT created_at, id FROM batches WHERE id = $1 AND tenant = $2",
            )
            .bind(id)
            .bind(tenant)
            .fetch_optional(c)
            .await?
        }))
    }

    /// A page of a tenant's batches, newest first, behind the position `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batches(
        &self,
        tenant: &str,
        after: Option<(i64, String)>,
        limit: i64,
    ) -> Result<Page<Batch>> {
        let (created_at, id) = after.unwrap_or((i64::MAX, "~".to_owned()));
        let sql = select(
            "batches",
            "SELECT id FROM batches WHERE tenant = $1 AND (created_at, id) < ($2, $3)
             ORDER BY created_at DESC, id DESC LIMIT $4",
        );
        let rows: Vec<SelectedRow> = on!(self.reader(), c => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(tenant)
                .bind(created_at)
                .bind(id)
                .bind(limit + 1)
                .fetch_all(c)
                .await?
        });
        let page = Page::cut(rows, limit);
        let items = page.items.into_iter().map(Batch::try_from);
        Ok(Page {
            items: items.collect::<Result<_>>()?,
            more: page.more,
        })
    }

    /// Begins to cancel a tenant's batch.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cancel_batch(&self, tenant: &str, id: &str) -> Result<Cancel> {
        // Asked before the row is locked: nobody makes another tenant wait.
        if self.batch_position(tenant, id).await?.is_none() {
            return Ok(Cancel::NotFound);
        }
        let mut tx = self.begin().await?;
        let Some(stage) = lock_stage(&mut tx, self, id).await? else {
            return Ok(Cancel::NotFound);
        };
        if stage.refuses_cancel() {
            return Ok(Cancel::Refused(stage.status));
        }
        let next = stage.after(Event::CancelRequested);
        if let Some(next) = next {
            set_stage(&mut tx, id, stage, next, self.now_ms()).await?;
        }
        tx.commit().await?;
        if let Some(next) = next {
            let (from, to) = (stage.status, next.status);
            Step { from, to }.tell(id, None);
            if !to.is_terminal() {
                // Whoever holds units of it concludes their lines.
                self.wake_all(Who::Supplies);
            }
        }
        let batch = self.batch(tenant, id).await?;
        Ok(batch.map_or(Cancel::NotFound, |batch| Cancel::Granted(Box::new(batch))))
    }
}

/// A stage from its columns.
pub(in crate::store) fn stage(status: &str, ending: Option<&str>) -> Result<Stage> {
    let unknown = || Error::corrupt("state of a batch", status);
    let status = Status::parse(status).ok_or_else(unknown)?;
    let ending = match ending {
        Some(ending) => Some(Ending::parse(ending).ok_or_else(unknown)?),
        None => None,
    };
    Ok(Stage { status, ending })
}

/// Reads a batch's stage and keeps others from changing it until the transaction ends.
pub(in crate::store) async fn lock_stage(
    tx: &mut Tx,
    store: &Store,
    id: &str,
) -> Result<Option<Stage>> {
    lock_by(tx, store.engine().for_update(), id).await
}

/// The same, but `None` where another transaction has the row.
pub(in crate::store) async fn lock_free_stage(
    tx: &mut Tx,
    store: &Store,
    id: &str,
) -> Result<Option<Stage>> {
    lock_by(tx, store.engine().skip_locked(), id).await
}

async fn lock_by(tx: &mut Tx, lock: &str, id: &str) -> Result<Option<Stage>> {
    let sql = format!("-- lock_stage\nSELECT status, ending FROM batches WHERE id = $1 {lock}");
    let row: Option<(String, Option<String>)> = within!(tx, c => {
        sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(c).await?
    });
    row.map(|(status, ending)| stage(&status, ending.as_deref()))
        .transpose()
}

/// Moves a batch to its next stage, with the time of it. The caller holds the row.
pub(in crate::store) async fn set_stage(
    tx: &mut Tx,
    id: &str,
    from: Stage,
    to: Stage,
    now: i64,
) -> Result<()> {
    let mut sql = "-- set_stage\nUPDATE batches SET status = $2, ending = $3".to_owned();
    let mut times = Vec::new();
    if from.status != to.status {
        times.push(to.status);
        // A batch that is cancelled before it ran was cancelling for no time.
        if to.status == Status::Cancelled && from.status != Status::Cancelling {
            times.push(Status::Cancelling);
        }
    }
    for status in times {
        sql.push_str(&format!(", {status}_at = $5"));
    }
    sql.push_str(" WHERE id = $1 AND status = $4 AND CAST($5 AS BIGINT) IS NOT NULL");
    let changed = within!(tx, c => {
        sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(to.status.as_str())
            .bind(to.ending.map(Ending::as_str))
            .bind(from.status.as_str())
            .bind(now)
            .execute(c)
            .await?
            .rows_affected()
    });
    if changed == 1 {
        Ok(())
    } else {
        Err(Error::Stale("the batch"))
    }
}

//! What an operator wants to know of all work at once. The queries read what the store keeps
//! anyway: a row for each live batch and each leased unit. They count no lines.
//!
//! Queries over live batches and over ended ones repeat the condition of their partial index word
//! for word: SQLite uses it only then.

use sqlx::FromRow;

use super::state;
use crate::domain::batch::{Counts, Status};
use crate::store::engine::{Sql, on_pool, sql};
use crate::store::{Error, Result, Store};

/// The units of one model that are not done.
#[derive(Clone, Debug, FromRow)]
pub struct Queue {
    /// The public name; empty where the lines name none.
    pub model: String,
    /// The task of the batches, where the lines name no model.
    pub task: Option<String>,
    pub waiting: i64,
    pub leased: i64,
    /// When the oldest batch with such a unit was created, in milliseconds; `None` without one.
    pub oldest: Option<i64>,
    /// The largest part of its completion window that a batch with such a unit has used; 1 is the
    /// end of the window. `None` without a batch that has a window.
    pub window_used: Option<f64>,
}

/// A process that holds a lease.
#[derive(Clone, Debug, FromRow)]
pub struct ReplicaLease {
    pub token: String,
    pub name: String,
    /// In milliseconds.
    pub started_at: i64,
    /// How long its lease lasts if it is not renewed, in milliseconds; less than 0 once it ran out.
    pub lease_left_ms: i64,
    /// Tells its configuration from others; `None`: it has not said so yet.
    pub config_hash: Option<String>,
    /// When it read that, in milliseconds by its clock.
    pub config_read_at: Option<i64>,
}

/// A batch as operators list it.
#[derive(Clone, Debug)]
pub struct ListedBatch {
    pub id: String,
    pub tenant: String,
    /// The key that it was created with.
    pub key_id: Option<String>,
    pub status: Status,
    /// The one that all its lines name.
    pub model: Option<String>,
    pub counts: Counts,
    /// In milliseconds, as the others.
    pub created_at: i64,
    pub in_progress_at: Option<i64>,
    pub expires_at: Option<i64>,
    /// `None`: it has not ended.
    pub ended_at: Option<i64>,
}

#[derive(FromRow)]
struct ListedRow {
    id: String,
    tenant: String,
    key_id: Option<String>,
    status: String,
    ending: Option<String>,
    model: Option<String>,
    total: i64,
    created_at: i64,
    in_progress_at: Option<i64>,
    expires_at: Option<i64>,
    ended_at: Option<i64>,
    completed: i64,
    failed: i64,
    cancelled: i64,
}

impl Store {
    /// How many batches there are in each state that is not final.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn live_statuses(&self) -> Result<Vec<(Status, i64)>> {
        let rows: Vec<(String, i64)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- live_statuses
                 SELECT status, COUNT(*) FROM batches
                 WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                 GROUP BY status",
            )
            .fetch_all(c)
            .await?
        });
        let of = |status: Status| {
            let row = rows.iter().find(|(name, _)| name == status.as_str());
            (status, row.map_or(0, |(_, count)| *count))
        };
        let live = Status::ALL.into_iter().filter(|s| !s.is_terminal());
        Ok(live.map(of).collect())
    }

    /// What waits and what is leased, by model. `now_ms`: the time by which the used part of a
    /// window is computed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn queues(&self, now_ms: i64) -> Result<Vec<Queue>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- queues
                 SELECT w.model, CASE WHEN w.model = '' THEN b.task END AS task,
                    CAST(SUM(w.waiting) AS BIGINT) AS waiting,
                    CAST(SUM(COALESCE(l.units, 0)) AS BIGINT) AS leased,
                    MIN(CASE WHEN w.waiting > 0 OR l.units > 0 THEN b.created_at END) AS oldest,
                    MAX(CASE WHEN w.waiting > 0 OR l.units > 0 THEN
                        CAST(CAST($1 AS BIGINT) - b.created_at AS DOUBLE PRECISION)
                            / NULLIF(b.expires_at - b.created_at, 0) END) AS window_used
                 FROM (SELECT batch_id, model_no, model, waiting FROM backlog
                    UNION ALL
                    -- Units that were leased directly have never waited.
                    SELECT DISTINCT u.batch_id, u.model_no, COALESCE(d.model, ''),
                        CAST(0 AS BIGINT)
                    FROM units u JOIN batches d ON d.id = u.batch_id
                    WHERE u.state = 'leased' AND NOT EXISTS (SELECT 1 FROM backlog n
                        WHERE n.batch_id = u.batch_id AND n.model_no = u.model_no)) w
                 JOIN batches b ON b.id = w.batch_id
                 LEFT JOIN (SELECT batch_id, model_no, COUNT(*) AS units FROM units
                    WHERE state = 'leased' GROUP BY batch_id, model_no) l
                   ON l.batch_id = w.batch_id AND l.model_no = w.model_no
                 GROUP BY 1, 2 ORDER BY 1, 2",
            )
            .bind(now_ms)
            .fetch_all(c)
            .await?
        }))
    }

    /// The processes that hold a lease, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn replicas(&self) -> Result<Vec<ReplicaLease>> {
        let sql = sql!(
            "-- replicas
             SELECT token, name, started_at, lease_until - {now} AS lease_left_ms, config_hash,
                config_read_at
             FROM replicas ORDER BY started_at, token",
            now = self.engine().now_ms()
        );
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(sql).fetch_all(c).await?
        }))
    }

    /// The oldest batches that have not ended, with their counts.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn live_batches(&self, limit: i64) -> Result<Vec<ListedBatch>> {
        let sql = sql!(
            "-- live_batches
             SELECT {columns} FROM (
                SELECT *, CAST(NULL AS BIGINT) AS ended_at FROM batches
                WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                ORDER BY created_at, id LIMIT $1) b
             {with_counts}
             ORDER BY b.created_at, b.id",
            columns = COLUMNS,
            with_counts = WITH_COUNTS
        );
        let rows: Vec<ListedRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql).bind(limit).fetch_all(c).await?
        });
        rows.into_iter().map(ListedBatch::try_from).collect()
    }

    /// The batches that have ended since a time, in milliseconds, with their counts: the last one
    /// first. It reads as many rows as it returns, however many batches there are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ended_batches(&self, since_ms: i64, limit: i64) -> Result<Vec<ListedBatch>> {
        let sql = ended_batches();
        let rows: Vec<ListedRow> = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql)
                .bind(limit)
                .bind(since_ms)
                .fetch_all(c)
                .await?
        });
        rows.into_iter().map(ListedBatch::try_from).collect()
    }
}

impl TryFrom<ListedRow> for ListedBatch {
    type Error = Error;

    fn try_from(row: ListedRow) -> Result<Self> {
        Ok(ListedBatch {
            status: state::from_columns(&row.status, row.ending.as_deref())?.status,
            id: row.id,
            tenant: row.tenant,
            key_id: row.key_id,
            model: row.model,
            counts: Counts {
                total: row.total,
                completed: row.completed,
                failed: row.failed,
                cancelled: row.cancelled,
            },
            created_at: row.created_at,
            in_progress_at: row.in_progress_at,
            expires_at: row.expires_at,
            ended_at: row.ended_at,
        })
    }
}

/// What is read of a batch `b`.
const COLUMNS: &str =
    "b.id, b.tenant, b.key_id, b.status, b.ending, b.model, b.total, b.created_at,
    b.in_progress_at, b.expires_at, b.ended_at,
    CAST(b.completed + COALESCE(SUM(s.completed), 0) AS BIGINT) AS completed,
    CAST(b.failed + COALESCE(SUM(s.failed), 0) AS BIGINT) AS failed,
    CAST(b.cancelled + COALESCE(SUM(s.cancelled), 0) AS BIGINT) AS cancelled";

/// Where a batch's counts are read from.
const WITH_COUNTS: &str = "LEFT JOIN batch_counts s ON s.batch_id = b.id
    GROUP BY b.id, b.tenant, b.key_id, b.status, b.ending, b.model, b.total, b.created_at,
        b.in_progress_at, b.expires_at, b.ended_at, b.completed, b.failed, b.cancelled";

fn ended_batches() -> Sql {
    sql!(
        "-- ended_batches
         SELECT {columns} FROM (
            SELECT *, COALESCE(completed_at, failed_at, expired_at, cancelled_at) AS ended_at
            FROM batches
            WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
                AND COALESCE(completed_at, failed_at, expired_at, cancelled_at) >= $2
            ORDER BY COALESCE(completed_at, failed_at, expired_at, cancelled_at) DESC, id DESC
            LIMIT $1) b
         {with_counts}
         ORDER BY b.ended_at DESC, b.id DESC",
        columns = COLUMNS,
        with_counts = WITH_COUNTS
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Clock;
    use crate::store::batches::state::A_BATCH;

    #[tokio::test]
    async fn lines_without_a_model_are_counted_by_their_task() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let opened = Store::open(&url, 1, Clock::default()).await;
        let store = opened.expect("opens");
        let rows = [
            ("a", Some("summary"), ""),
            ("b", Some("summary"), ""),
            ("c", Some("summary"), "large"),
            ("d", None, "large"),
            ("e", Some("rank"), ""),
        ];
        let fill = async || {
            for (id, task, model) in rows {
                on_pool!(store.writer(), |c| {
                    let query = sqlx::query(A_BATCH).bind(id).bind(task);
                    query.execute(c).await?.rows_affected()
                });
                let backlog = "INSERT INTO backlog VALUES ($1, 0, $2, 1)";
                on_pool!(store.writer(), |c| {
                    let query = sqlx::query(backlog).bind(id).bind(model);
                    query.execute(c).await?.rows_affected()
                });
            }
            store.queues(0).await
        };
        let queues = fill().await.expect("are read").into_iter();
        let queues: Vec<_> = queues
            .map(|queue| (queue.model, queue.task, queue.waiting))
            .collect();
        let queue = |model: &str, task: Option<&str>, waiting| {
            (model.to_owned(), task.map(str::to_owned), waiting)
        };
        let expected = [
            queue("", Some("rank"), 1),
            queue("", Some("summary"), 2),
            queue("large", None, 2),
        ];
        assert_eq!(queues, expected);
    }

    #[tokio::test]
    async fn ended_batches_are_found_by_when_they_ended() {
        let directory = tempfile::tempdir().expect("makes a directory");
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let opened = Store::open(&url, 1, Clock::default()).await;
        let store = opened.expect("opens");
        let plan = async || {
            let sql = sql!("EXPLAIN QUERY PLAN {query}", query = ended_batches());
            let rows: Vec<(i64, i64, i64, String)> = on_pool!(store.reader(), |c| {
                sqlx::query_as(sql).bind(50).bind(0).fetch_all(c).await?
            });
            Result::Ok(rows)
        };
        let plan = plan().await.expect("is explained");
        let steps: Vec<&str> = plan.iter().map(|(.., step)| step.as_str()).collect();
        let by_index = "SEARCH batches USING INDEX batches_ended (<expr>>?)";
        assert!(steps.contains(&by_index), "{steps:#?}");
        assert!(
            !steps.iter().any(|step| step.contains("SCAN batches")),
            "{steps:#?}"
        );
    }
}

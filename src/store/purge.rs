//! Removing what was deleted or has expired: hidden at once, removed later, in small transactions.

use super::engine::{Connection, on};
use super::{Result, Store};

/// Files handled in one round.
const ROUND: i64 = 20;
/// Chunks whose segments are removed in one transaction.
const REMOVED_CHUNKS_MAX: i64 = 64;
/// Pages given back to the file system in one go, on SQLite.
const VACUUM_PAGES: u32 = 2_000;

/// What a round of purging did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub expired: u64,
    pub removed: u64,
}

impl Store {
    /// Hides files that have expired, and removes the content of those that were hidden before
    /// `hidden_before` and that no live batch reads.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn purge(&self, hidden_before: i64) -> Result<Purged> {
        let now = self.now_ms();
        let expired = on!(self.writer(), c => {
            sqlx::query(
                "-- purge_expired
                 UPDATE files SET state = 'deleted', touched_at = $1
                 WHERE state = 'ready' AND expires_at <= $1",
            )
            .bind(now)
            .execute(c)
            .await?
            .rows_affected()
        });
        let hidden: Vec<(String, Option<String>)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- purge
                 SELECT id, batch_id FROM files f
                 WHERE state IN ('uploading', 'deleted') AND state = 'deleted'
                   AND touched_at < $1 AND NOT EXISTS
                    (SELECT 1 FROM batches b WHERE b.input_file_id = f.id
                        AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
                 LIMIT $2",
            )
            .bind(hidden_before)
            .bind(ROUND)
            .fetch_all(c)
            .await?
        });
        for (file_id, batch_id) in &hidden {
            match batch_id {
                None => self.remove_content(file_id).await?,
                Some(batch_id) => self.remove_segments(file_id, batch_id).await?,
            }
            on!(self.writer(), c => {
                sqlx::query(
                    "-- purge_content
                     UPDATE files SET state = 'purged', findings = NULL, chunk_sizes = NULL
                     WHERE id = $1 AND state = 'deleted'",
                )
                .bind(file_id)
                .execute(c)
                .await?;
            });
        }
        if !hidden.is_empty() {
            self.give_back_space().await?;
        }
        Ok(Purged {
            expired,
            removed: hidden.len() as u64,
        })
    }

    /// Removes a batch's segments, unless its other file still needs them.
    async fn remove_segments(&self, file_id: &str, batch_id: &str) -> Result<()> {
        let needed: Option<(i64,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- remove_segments_needed
                 SELECT CAST(1 AS BIGINT) FROM files
                 WHERE batch_id = $1 AND id <> $2 AND state IN ('ready', 'deleted') LIMIT 1",
            )
            .bind(batch_id)
            .bind(file_id)
            .fetch_optional(c)
            .await?
        });
        if needed.is_some() {
            return Ok(());
        }
        loop {
            let removed = on!(self.writer(), c => {
                sqlx::query(
                    "-- remove_segments
                     DELETE FROM segments WHERE batch_id = $1 AND chunk_no IN
                        (SELECT DISTINCT chunk_no FROM segments WHERE batch_id = $1
                         ORDER BY chunk_no LIMIT $2)",
                )
                .bind(batch_id)
                .bind(REMOVED_CHUNKS_MAX)
                .execute(c)
                .await?
                .rows_affected()
            });
            if removed == 0 {
                return Ok(());
            }
        }
    }

    /// Gives freed pages back to the file system. Postgres does so by itself.
    async fn give_back_space(&self) -> Result<()> {
        if let Connection::Sqlite(pool) = self.writer() {
            let sql = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
            // A step at a time, so that others may write in between; and only as long as it
            // helps: in a database that was not created with incremental vacuum it never does.
            let mut free_before = i64::MAX;
            loop {
                let (free,): (i64,) = sqlx::query_as("PRAGMA freelist_count")
                    .fetch_one(pool)
                    .await?;
                if free == 0 || free >= free_before {
                    break;
                }
                free_before = free;
                sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                    .fetch_all(pool)
                    .await?;
            }
        }
        Ok(())
    }
}

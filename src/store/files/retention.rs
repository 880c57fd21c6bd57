//! Removing what was deleted or has expired: hidden at once, removed later, in small transactions.
//!
//! Several processes may remove the same things at once: each deletes what it finds, and is done
//! when nothing is left, whoever deleted it. Rows are locked in the order of their keys before they
//! are deleted: two processes that took them in different orders would wait for each other.

use sqlx::AssertSqlSafe;

use crate::codec::segment::Table;
use crate::domain::file::Kind;
use crate::store::engine::{Connection, on, typed_values};
use crate::store::{Result, Store};

/// Files hidden by one statement.
const HIDDEN_MAX: i64 = 500;
/// Files handled in one round.
const ROUND: i64 = 20;
/// Segments that are looked into at once, where only some are to be removed.
const LOOKED_AT: i64 = 64;
/// Pages given back to the file system in one go, on SQLite: 4 MiB.
const VACUUM_PAGES: u32 = 1_000;
/// So many free pages are not worth it: they are used again.
const FREE_PAGES_KEPT: i64 = 250;

/// What a round of purging did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub expired: u64,
    pub removed: u64,
}

/// Rows of one table that go together with a file or batch.
pub(in crate::store) struct Rows {
    table: &'static str,
    /// Whose they are.
    of: &'static str,
    /// What tells them apart.
    key: &'static str,
    /// Rows removed in one transaction: small enough to hold nobody up.
    at_once: i64,
}

/// Each up to 1 MiB.
pub(in crate::store) const CHUNKS: Rows = Rows {
    table: "chunks",
    of: "file_id",
    key: "chunk_no, piece_no",
    at_once: 16,
};
pub(in crate::store) const CHUNK_MODELS: Rows = Rows {
    table: "chunk_models",
    of: "file_id",
    key: "chunk_no, model_no",
    at_once: 2_000,
};
pub(in crate::store) const FILE_MODELS: Rows = Rows {
    table: "file_models",
    of: "file_id",
    key: "model_no",
    at_once: 2_000,
};
/// What one flush wrote of one unit: seldom more than 1 MiB.
const SEGMENTS: Rows = Rows {
    table: "segments",
    of: "batch_id",
    key: "chunk_no, model_no, flush_no",
    at_once: 64,
};

/// A file that is to be removed.
type Hidden = (String, Option<String>, Option<String>);

/// Does something to each of several rows. One for which it fails does not keep the others from it,
/// but waits for the next round. Returns for how many it went well.
///
/// # Errors
/// When the database is away, or it went well for none.
pub(in crate::store) async fn each<'a, F>(
    what: &'static str,
    ids: &'a [(String,)],
    act: impl Fn(&'a str) -> F,
) -> Result<usize>
where
    F: Future<Output = Result<()>>,
{
    let (mut done, mut failed) = (0, None);
    for (id,) in ids {
        match act(id).await {
            Ok(()) => done += 1,
            Err(error) if error.is_outage() && !error.is_timeout() => return Err(error),
            Err(error) => {
                tracing::error!(what, id, %error, "it fails for one; the others go on");
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if done == 0 => Err(error),
        _ => Ok(done),
    }
}

impl Store {
    /// Hides files that have expired, and removes the content of those that were hidden before
    /// `hidden_before` and that no live batch reads.
    ///
    /// # Errors
    /// When the database fails; the next round goes on. A file that cannot be removed does not
    /// keep the others from it.
    pub async fn purge(&self, hidden_before: i64) -> Result<Purged> {
        let expired = self.hide_expired().await?;
        let hidden: Vec<Hidden> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- purge
                 SELECT id, batch_id, kind FROM files f
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
        let (mut removed, mut failed) = (0, None);
        for file in &hidden {
            match self.purge_file(file, hidden_before).await {
                Ok(()) => removed += 1,
                Err(error) if error.is_outage() && !error.is_timeout() => return Err(error),
                Err(error) => {
                    tracing::error!(file.id = file.0, %error, "a file cannot be removed");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if removed == 0 => Err(error),
            _ => Ok(Purged { expired, removed }),
        }
    }

    /// Hides files past their expiry: to requests they are gone already.
    async fn hide_expired(&self) -> Result<u64> {
        let now = self.now_sql(1);
        let sql = format!(
            "-- hide_expired
             WITH chosen AS MATERIALIZED
                (SELECT id FROM files WHERE state = 'ready' AND expires_at <= {now}
                 ORDER BY expires_at, id LIMIT $2 {})
             UPDATE files SET state = 'deleted', touched_at = {now}
             WHERE state = 'ready' AND id IN (SELECT id FROM chosen)",
            self.engine().for_update()
        );
        let mut expired = 0;
        loop {
            let hidden = on!(self.writer(), c => {
                sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(self.offset_ms())
                .bind(HIDDEN_MAX)
                .execute(c)
                .await?
                .rows_affected()
            });
            expired += hidden;
            if hidden == 0 {
                return Ok(expired);
            }
        }
    }

    /// Removes the content of a hidden file. Its row stays, and says so.
    async fn purge_file(&self, file: &Hidden, hidden_before: i64) -> Result<()> {
        let (id, batch_id, kind) = file;
        match batch_id {
            None => self.remove_content(id).await?,
            Some(batch_id) => {
                let kind = kind.as_deref().unwrap_or_default();
                self.remove_made(batch_id, kind, hidden_before).await?;
            }
        }
        on!(self.writer(), c => {
            sqlx::query(
                "-- purge_file
                 UPDATE files SET state = 'purged', findings = NULL, chunk_sizes = NULL
                 WHERE id = $1 AND state = 'deleted'",
            )
            .bind(id)
            .execute(c)
            .await?;
        });
        Ok(())
    }

    /// Removes the segments of one of a batch's two files. Those that have a line of the other one
    /// stay for as long as that one does.
    async fn remove_made(&self, batch_id: &str, kind: &str, hidden_before: i64) -> Result<()> {
        // A file that is to go in the same round is no reason to keep anything: two processes
        // could each leave the segments to the other.
        let kept: Option<(i64,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- remove_made
                 SELECT CAST(1 AS BIGINT) FROM files WHERE batch_id = $1 AND kind <> $2
                    AND (state = 'ready' OR (state = 'deleted' AND touched_at >= $3)) LIMIT 1",
            )
            .bind(batch_id)
            .bind(kind)
            .bind(hidden_before)
            .fetch_optional(c)
            .await?
        });
        if kept.is_none() {
            return self.remove_rows(&SEGMENTS, batch_id).await;
        }
        let other = if kind == "output" {
            Kind::Error
        } else {
            Kind::Output
        };
        self.remove_segments_without(batch_id, other).await
    }

    /// Removes the segments that have no line of a kind.
    async fn remove_segments_without(&self, batch_id: &str, kind: Kind) -> Result<()> {
        let mut after = (-1, -1, -1);
        loop {
            let rows: Vec<(i64, i64, i64, Vec<u8>)> = on!(self.reader(), c => {
                sqlx::query_as(
                    "-- segments_without
                     SELECT chunk_no, model_no, flush_no, entries FROM segments
                     WHERE batch_id = $1 AND (chunk_no, model_no, flush_no) > ($2, $3, $4)
                     ORDER BY chunk_no, model_no, flush_no LIMIT $5",
                )
                .bind(batch_id)
                .bind(after.0)
                .bind(after.1)
                .bind(after.2)
                .bind(LOOKED_AT)
                .fetch_all(c)
                .await?
            });
            let Some(&(chunk, model, flush, _)) = rows.last() else {
                return Ok(());
            };
            after = (chunk, model, flush);
            let mut without = Vec::new();
            for (chunk, model, flush, entries) in &rows {
                // What cannot be read stays until the other file goes, too.
                let Ok(table) = Table::decode(entries) else {
                    continue;
                };
                if table.entries.iter().all(|entry| entry.kind != kind) {
                    without.push((*chunk, *model, *flush));
                }
            }
            self.remove_segments(batch_id, &without).await?;
        }
    }

    async fn remove_segments(&self, batch_id: &str, keys: &[(i64, i64, i64)]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "-- remove_segments
             WITH chosen AS MATERIALIZED
                (SELECT chunk_no, model_no, flush_no FROM segments
                 WHERE batch_id = $1 AND (chunk_no, model_no, flush_no) IN (VALUES {})
                 ORDER BY chunk_no, model_no, flush_no {})
             DELETE FROM segments
             WHERE batch_id = $1 AND (chunk_no, model_no, flush_no) IN (SELECT * FROM chosen)",
            typed_values(2, keys.len(), &["BIGINT"; 3]),
            self.engine().for_update()
        );
        on!(self.writer(), c => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(batch_id);
            for (chunk, model, flush) in keys {
                query = query.bind(chunk).bind(model).bind(flush);
            }
            query.execute(c).await?;
        });
        Ok(())
    }

    /// Removes a file's chunks and what is known of them.
    pub(in crate::store) async fn remove_content(&self, file_id: &str) -> Result<()> {
        for rows in [&CHUNKS, &CHUNK_MODELS, &FILE_MODELS] {
            self.remove_rows(rows, file_id).await?;
        }
        Ok(())
    }

    /// Removes all rows of a file or batch from a table, in small transactions.
    pub(in crate::store) async fn remove_rows(&self, rows: &Rows, id: &str) -> Result<()> {
        let Rows { table, of, key, .. } = rows;
        let remove = format!(
            "-- remove_rows
             WITH chosen AS MATERIALIZED
                (SELECT {key} FROM {table} WHERE {of} = $1 ORDER BY {key} LIMIT $2 {})
             DELETE FROM {table} WHERE {of} = $1 AND ({key}) IN (SELECT * FROM chosen)",
            self.engine().for_update()
        );
        let left = format!(
            "-- remove_rows_left\nSELECT CAST(1 AS BIGINT) FROM {table} WHERE {of} = $1 LIMIT 1"
        );
        loop {
            let removed = on!(self.writer(), c => {
                sqlx::query(AssertSqlSafe(remove.clone()))
                    .bind(id)
                    .bind(rows.at_once)
                    .execute(c)
                    .await?
                    .rows_affected()
            });
            if removed > 0 {
                continue;
            }
            // None were removed also where another process removed the same ones first.
            let left: Option<(i64,)> = on!(self.writer(), c => {
                sqlx::query_as(AssertSqlSafe(left.clone()))
                    .bind(id)
                    .fetch_optional(c)
                    .await?
            });
            if left.is_none() {
                return Ok(());
            }
        }
    }

    /// Gives freed pages back to the file system, where there are enough of them to be worth it.
    /// Postgres does so by itself.
    ///
    /// # Errors
    /// When the database fails; the next round goes on.
    pub async fn give_back_space(&self) -> Result<()> {
        let Connection::Sqlite(pool) = self.writer() else {
            return Ok(());
        };
        let sql = format!("PRAGMA incremental_vacuum({VACUUM_PAGES})");
        // A step at a time, so that others may write in between; and only as long as it
        // helps: in a database that was not created with incremental vacuum it never does.
        let mut free_before = i64::MAX;
        loop {
            let (free,): (i64,) = sqlx::query_as("PRAGMA freelist_count")
                .fetch_one(pool)
                .await?;
            if free <= FREE_PAGES_KEPT || free >= free_before {
                return Ok(());
            }
            free_before = free;
            sqlx::query(AssertSqlSafe(sql.clone()))
                .fetch_all(pool)
                .await?;
        }
    }
}

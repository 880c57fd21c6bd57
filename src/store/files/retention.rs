//! Removing files that were deleted or have expired: hidden at once, and removed later in small
//! transactions.

use super::bytes::{self, SegmentKey};
use super::removal::{Owned, remove_rows};
use crate::codec::segment::Table;
use crate::domain::file::Kind;
use crate::store::each::each;
use crate::store::engine::{Connection, Sql, bind_each, counted, in_tx, list, on_pool, sql};
use crate::store::{Error, Result, Store};
use sqlx::FromRow;

/// Files hidden by one statement.
const HIDDEN_MAX: i64 = 500;
/// Files handled in one round.
const ROUND: i64 = 200;
/// Bytes of files that are removed in one transaction, where each is one chunk.
const GROUP_BYTES: i64 = 16 << 20;
/// Segments that are looked into at once, where only some are to be removed.
const SEGMENTS_AT_ONCE: i64 = 64;
/// Pages given back to the file system in one go, on SQLite: 4 MiB.
const VACUUM_PAGES: u32 = 1_000;
/// So many free pages stay in the file, and are used again.
const FREE_PAGES_KEPT: i64 = 250;

/// What a round of purging did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub expired: u64,
    pub removed: u64,
}

const CHUNK_MODELS: Owned = Owned {
    table: "chunk_models",
    owner: "file_id",
    key: "chunk_no, model_no",
    at_once: 2_000,
};
/// A file that is to be removed.
#[derive(FromRow)]
struct Hidden {
    id: String,
    batch_id: Option<String>,
    kind: Option<String>,
    bytes: i64,
    is_one_chunk: i64,
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
        let hidden: Vec<Hidden> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- purge
                 SELECT id, batch_id, kind, bytes, is_one_chunk FROM files f
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
        let uploads = hidden.iter().filter(|file| file.batch_id.is_none());
        let uploads: Vec<&str> = uploads.map(|file| file.id.as_str()).collect();
        self.remove_answers_of(&uploads).await?;
        let (small, mut single): (Vec<_>, Vec<_>) = hidden
            .into_iter()
            .partition(|file| file.is_one_chunk == 1 && file.bytes <= GROUP_BYTES);
        let mut removed = 0;
        for group in into_groups(small) {
            match self.purge_group(&group).await {
                Ok(()) => removed += group.len(),
                Err(error) if error.is_outage() && !error.is_timeout() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "files could not be removed together; one at a time");
                    single.extend(group);
                }
            }
        }
        removed += each(
            "purge",
            &single,
            |file| &file.id,
            |file| self.purge_file(file, hidden_before),
        )
        .await?;
        Ok(Purged {
            expired,
            removed: removed as u64,
        })
    }

    /// Removes the content of hidden files that are one chunk each, by one transaction.
    async fn purge_group(&self, files: &[Hidden]) -> Result<()> {
        // Several processes may do this at once: whoever locks the rows first does it.
        let lock = sql!(
            "-- lock_hidden
             SELECT id FROM files WHERE id IN {ids} AND state = 'deleted' ORDER BY id {lock}",
            ids = list(1, files.len()),
            lock = self.engine().for_update()
        );
        let mut tx = self.begin().await?;
        let ids: Vec<(String,)> = in_tx!(&mut tx, |c| {
            let lock = sqlx::query_as(lock).persistent(false);
            let ids = files.iter().map(|file| &file.id);
            bind_each!(lock, ids).fetch_all(c).await?
        });
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = ids.iter().map(|(id,)| id.as_str()).collect();
        bytes::remove_chunks_of(&mut tx, &ids).await?;
        let sql = mark_purged(ids.len());
        in_tx!(&mut tx, |c| {
            let mark = sqlx::query(sql).persistent(false);
            bind_each!(mark, ids.iter().copied()).execute(c).await?;
        });
        tx.commit().await
    }

    /// Hides files past their expiry. Requests do not see them even before.
    async fn hide_expired(&self) -> Result<u64> {
        let now = self.now_sql(1);
        let sql = sql!(
            "-- hide_expired
             WITH chosen AS MATERIALIZED
                (SELECT id FROM files WHERE state = 'ready' AND expires_at <= {now}
                 ORDER BY expires_at, id LIMIT $2 {lock})
             UPDATE files SET state = 'deleted', touched_at = {now}
             WHERE state = 'ready' AND id IN (SELECT id FROM chosen)",
            now,
            lock = self.engine().for_update()
        );
        let mut expired = 0;
        loop {
            let hidden = on_pool!(self.writer(), |c| {
                sqlx::query(sql.clone())
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

    /// Removes the content of a hidden file. Its row stays, in the state `purged`.
    async fn purge_file(&self, file: &Hidden, hidden_before: i64) -> Result<()> {
        match &file.batch_id {
            None => remove_content(self, &file.id).await?,
            Some(batch_id) => {
                let kind = file.kind.as_deref().unwrap_or_default();
                self.remove_made(batch_id, kind, hidden_before).await?;
            }
        }
        let sql = mark_purged(1);
        on_pool!(self.writer(), |c| {
            sqlx::query(sql).bind(&file.id).execute(c).await?;
        });
        Ok(())
    }

    /// Removes the segments of one of a batch's two files. A segment that also has a line of the
    /// other file stays until that file is removed.
    async fn remove_made(&self, batch_id: &str, kind: &str, hidden_before: i64) -> Result<()> {
        // If the other file is due to be removed as well, no segment is kept for it: otherwise two
        // processes could each leave the segments to the other.
        let kept: Option<(i64,)> = on_pool!(self.reader(), |c| {
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
            return bytes::remove_all_segments(self, batch_id).await;
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
        let mut after = SegmentKey {
            chunk_no: -1,
            model_no: -1,
            flush_no: -1,
        };
        loop {
            let rows = tables_behind(self, batch_id, after).await?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            after = last.key;
            let without = rows.iter().filter(|row| {
                // A segment that cannot be read stays until the other file is removed as well.
                Table::decode(&row.entries)
                    .is_ok_and(|table| table.entries.iter().all(|entry| entry.kind != kind))
            });
            let without: Vec<SegmentKey> = without.map(|row| row.key).collect();
            bytes::remove_segments(self, batch_id, &without).await?;
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
        let sql = sql!(
            "PRAGMA incremental_vacuum({vacuum_pages})",
            vacuum_pages = VACUUM_PAGES
        );
        // A step at a time, so that others can write in between. Only while a step frees pages: in
        // a database that was created without incremental vacuum no step does.
        let mut free_before = i64::MAX;
        loop {
            let free = sqlx::query_as("PRAGMA freelist_count").fetch_one(pool);
            let (free,): (i64,) = counted(free.await.map_err(Error::from))?;
            if free <= FREE_PAGES_KEPT || free >= free_before {
                return Ok(());
            }
            free_before = free;
            let step = sqlx::query(sql.clone()).fetch_all(pool);
            counted(step.await.map_err(Error::from))?;
        }
    }
}

/// Divides files into groups that one transaction removes.
fn into_groups(files: Vec<Hidden>) -> Vec<Vec<Hidden>> {
    let mut groups: Vec<Vec<Hidden>> = Vec::new();
    let mut bytes = 0;
    for file in files {
        bytes += file.bytes;
        match groups.last_mut() {
            Some(group) if bytes <= GROUP_BYTES => group.push(file),
            _ => {
                bytes = file.bytes;
                groups.push(vec![file]);
            }
        }
    }
    groups
}

/// Writes that so many hidden files have no content any more.
fn mark_purged(files: usize) -> Sql {
    sql!(
        "-- mark_purged
         UPDATE files SET state = 'purged', findings = NULL, models = NULL, chunk_sizes = NULL
         WHERE id IN {ids} AND state = 'deleted'",
        ids = list(1, files)
    )
}

/// A segment's table.
#[derive(FromRow)]
struct TableRow {
    #[sqlx(flatten)]
    key: SegmentKey,
    entries: Vec<u8>,
}

/// The tables of the next segments of a batch behind a key.
async fn tables_behind(store: &Store, batch_id: &str, key: SegmentKey) -> Result<Vec<TableRow>> {
    Ok(on_pool!(store.reader(), |c| {
        sqlx::query_as(
            "-- segments_without
             SELECT chunk_no, model_no, flush_no, entries FROM segments
             WHERE batch_id = $1 AND (chunk_no, model_no, flush_no) > ($2, $3, $4)
             ORDER BY chunk_no, model_no, flush_no LIMIT $5",
        )
        .bind(batch_id)
        .bind(key.chunk_no)
        .bind(key.model_no)
        .bind(key.flush_no)
        .bind(SEGMENTS_AT_ONCE)
        .fetch_all(c)
        .await?
    }))
}

/// Removes a file's chunks and what is known of them.
pub(super) async fn remove_content(store: &Store, file_id: &str) -> Result<()> {
    bytes::remove_chunks(store, file_id).await?;
    remove_rows(store, &CHUNK_MODELS, file_id).await
}

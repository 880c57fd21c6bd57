//! Rows that belong to nothing, and bytes that do. Each statement sees one moment, and no
//! transaction ever leaves such a row.

use super::report::{Audit, count};
use crate::store::Result;
use crate::store::engine::{in_tx, on_pool, sql};

/// What a row of which kind is a fault, by the id of what it should belong to. Each query gives
/// that id and a number of rows.
const ORPHANS: [(&str, &str, &str); 12] = [
    (
        "file",
        "chunk of a file that is not there, or whose content was removed",
        "SELECT c.file_id, c.total FROM
            (SELECT file_id, COUNT(*) AS total FROM chunks GROUP BY file_id) c WHERE NOT EXISTS
            (SELECT 1 FROM files f WHERE f.id = c.file_id AND f.state <> 'purged')",
    ),
    (
        "file",
        "row of chunk_models of a file that is not there, or whose content was removed",
        "SELECT c.file_id, c.total FROM
            (SELECT file_id, COUNT(*) AS total FROM chunk_models GROUP BY file_id) c
         WHERE NOT EXISTS
            (SELECT 1 FROM files f WHERE f.id = c.file_id AND f.state <> 'purged')",
    ),
    (
        "file",
        "output or error file of a batch that is not there",
        "SELECT f.id, COUNT(*) FROM files f WHERE f.batch_id IS NOT NULL AND NOT EXISTS
            (SELECT 1 FROM batches b WHERE b.id = f.batch_id)
         GROUP BY f.id",
    ),
    (
        "batch",
        "segment of a batch that is not there, or whose files were removed",
        "SELECT s.batch_id, s.total FROM
            (SELECT batch_id, COUNT(*) AS total FROM segments GROUP BY batch_id) s WHERE NOT EXISTS
            (SELECT 1 FROM batches b WHERE b.id = s.batch_id
                AND b.status IN ('in_progress', 'finalizing', 'cancelling'))
            AND NOT EXISTS (SELECT 1 FROM files f WHERE f.batch_id = s.batch_id
                AND f.state <> 'purged')",
    ),
    (
        "batch",
        "row of counts of a batch that is not there, or has not begun",
        "SELECT c.batch_id, c.total FROM
            (SELECT batch_id, COUNT(*) AS total FROM batch_counts GROUP BY batch_id) c
         WHERE NOT EXISTS
            (SELECT 1 FROM batches b WHERE b.id = c.batch_id AND b.in_progress_at IS NOT NULL)",
    ),
    (
        "batch",
        "row of the backlog of a batch that is not live",
        "SELECT w.batch_id, w.total FROM
            (SELECT batch_id, COUNT(*) AS total FROM backlog GROUP BY batch_id) w WHERE NOT EXISTS
            (SELECT 1 FROM batches b WHERE b.id = w.batch_id
                AND b.status IN ('in_progress', 'finalizing', 'cancelling'))",
    ),
    (
        "batch",
        "unit of a batch that is not there",
        "SELECT u.batch_id, u.total FROM
            (SELECT batch_id, COUNT(*) AS total FROM units GROUP BY batch_id) u WHERE NOT EXISTS
            (SELECT 1 FROM batches b WHERE b.id = u.batch_id)",
    ),
    // A batch that gets many units has some before it runs, and may end before it does; then
    // nobody has ever had one of them.
    (
        "batch",
        "unit of a batch that has not begun, and yet it was leased",
        "SELECT u.batch_id, COUNT(*) FROM units u
         WHERE (u.state <> 'waiting' OR u.epoch <> 0) AND EXISTS
            (SELECT 1 FROM batches b WHERE b.id = u.batch_id AND b.in_progress_at IS NULL)
         GROUP BY u.batch_id",
    ),
    (
        "batch",
        "open unit of a batch that has ended",
        "SELECT u.batch_id, COUNT(*) FROM units u WHERE u.state <> 'done' AND EXISTS
            (SELECT 1 FROM batches b WHERE b.id = u.batch_id AND b.in_progress_at IS NOT NULL
                AND b.status IN ('completed', 'expired', 'cancelled'))
         GROUP BY u.batch_id",
    ),
    (
        "tenant",
        "byte of its files that are not counted, or are counted and not there",
        "SELECT c.tenant, CAST(ABS(SUM(c.bytes)) AS BIGINT) FROM
            (SELECT tenant, bytes FROM tenant_storage
             UNION ALL
             SELECT tenant, -bytes FROM files WHERE state = 'ready') c
         GROUP BY c.tenant HAVING SUM(c.bytes) <> 0",
    ),
    (
        "file",
        "answer of a file that is not there, or whose content was removed",
        "SELECT a.file_id, a.total FROM
            (SELECT file_id, COUNT(*) AS total FROM answers GROUP BY file_id) a WHERE NOT EXISTS
            (SELECT 1 FROM files f WHERE f.id = a.file_id AND f.state <> 'purged')",
    ),
    (
        "tenant",
        "byte of its kept answers that are not counted, or are counted and not there",
        "SELECT c.tenant, CAST(ABS(SUM(c.bytes)) + ABS(SUM(c.answers)) AS BIGINT) FROM
            (SELECT tenant, bytes, answers FROM answer_totals
             UNION ALL
             SELECT tenant, -stored_bytes, -1 FROM answers) c
         GROUP BY c.tenant HAVING SUM(c.bytes) <> 0 OR SUM(c.answers) <> 0",
    ),
];

impl Audit<'_> {
    /// Looks for rows whose file or batch is gone.
    pub(super) async fn orphans(&mut self) -> Result<()> {
        for (owner, what, sql) in ORPHANS {
            let mut tx = self.store.begin_snapshot().await?;
            let sql = sql!("-- audit_orphans\n{sql}", sql);
            let rows: Vec<(String, i64)> =
                in_tx!(&mut tx, |c| sqlx::query_as(sql).fetch_all(c).await?);
            tx.commit().await?;
            for (id, rows) in rows {
                // The noun is the first word.
                let (noun, rest) = what.split_once(" of ").unwrap_or((what, ""));
                self.fault(format!("{owner} {id}: {} of {rest}", count(rows, noun)));
            }
        }
        self.unnamed_owners().await
    }

    /// A unit that is leased names who holds it.
    async fn unnamed_owners(&mut self) -> Result<()> {
        let rows: Vec<(String, i64)> = on_pool!(self.store.reader(), |c| {
            sqlx::query_as(
                "-- audit_unnamed
                 SELECT batch_id, COUNT(*) FROM units
                 WHERE state = 'leased' AND owner IS NULL GROUP BY batch_id",
            )
            .fetch_all(c)
            .await?
        });
        for (batch_id, units) in rows {
            self.fault(format!(
                "batch {batch_id}: {} leased by nobody",
                count(units, "unit")
            ));
        }
        Ok(())
    }
}

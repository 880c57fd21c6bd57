//! Uploaded files: is all of their content there, can it be read, and does it fit what the upload
//! found out?

use sqlx::FromRow;

use super::report::{Audit, count};
use crate::codec;
use crate::domain::findings::Findings;
use crate::store::Result;
use crate::store::engine::{Tx, in_tx};
use crate::store::files::{models_from, read_pieces_in};

/// Pieces of a file that are read at once: each has at most 1 MiB of raw bytes.
const PIECES: i64 = 16;

/// All that should have their content: those that are shown, and those that a live batch reads.
const LIST_FILES: &str = "-- audit_files
    SELECT id FROM files f
    WHERE id > $1 AND batch_id IS NULL AND created_at <= $2
      AND (state = 'ready' OR EXISTS (SELECT 1 FROM batches b
           WHERE b.input_file_id = f.id
           AND b.status IN ('in_progress', 'finalizing', 'cancelling')))
    ORDER BY id LIMIT $3";

#[derive(FromRow)]
struct FileRow {
    bytes: i64,
    requests: i64,
    findings: Option<String>,
    models: Option<String>,
    is_one_chunk: i64,
}

impl Audit<'_> {
    pub(super) async fn files(&mut self) -> Result<()> {
        let mut after = String::new();
        loop {
            let ids = self.page(LIST_FILES, &after).await?;
            let Some(last) = ids.last() else {
                return Ok(());
            };
            after.clone_from(last);
            for id in &ids {
                self.file(id).await?;
                self.progress();
            }
        }
    }

    async fn file(&mut self, id: &str) -> Result<()> {
        let mut tx = self.store.begin_snapshot().await?;
        // Looked at again: it may have gone since it was listed.
        let row: Option<FileRow> = in_tx!(&mut tx, |c| {
            sqlx::query_as(
                "-- audit_file
                 SELECT bytes, requests, findings, models, is_one_chunk FROM files f
                 WHERE id = $1 AND (state = 'ready' OR EXISTS (SELECT 1 FROM batches b
                    WHERE b.input_file_id = f.id
                    AND b.status IN ('in_progress', 'finalizing', 'cancelling')))",
            )
            .bind(id)
            .fetch_optional(c)
            .await?
        });
        let Some(row) = row else { return Ok(()) };
        let size = row.bytes;
        let (mut chunk, mut piece, mut offset) = (0, -1, 0);
        loop {
            let rows = read_pieces_in(&mut tx, id, (chunk, piece), PIECES).await?;
            let Some(last) = rows.last() else { break };
            (chunk, piece) = (last.chunk_no, last.piece_no);
            for row in &rows {
                if row.byte_offset != offset {
                    self.fault(format!(
                        "file {id}: chunk {}/{} begins at byte {}, but the one before it ends at \
                         {offset}",
                        row.chunk_no, row.piece_no, row.byte_offset
                    ));
                }
                offset = row.byte_offset + row.bytes;
                let size = usize::try_from(row.bytes).unwrap_or(0);
                if let Err(error) = codec::decompress(&row.data, size) {
                    self.fault(format!(
                        "file {id}: chunk {}/{} cannot be read: {error}",
                        row.chunk_no, row.piece_no
                    ));
                }
                self.audited.file_bytes_stored += row.data.len() as u64;
            }
        }
        self.models(id, &row);
        if row.is_one_chunk == 1 {
            self.only_chunk(&mut tx, id, chunk).await?;
        }
        tx.commit().await?;
        if offset != size {
            self.fault(format!(
                "file {id}: it has {size} bytes, but its chunks end at {offset}"
            ));
        }
        self.audited.files += 1;
        self.audited.file_bytes += u64::try_from(size).unwrap_or(0);
        Ok(())
    }

    /// The models of a file come to as many requests as the file has.
    fn models(&mut self, id: &str, row: &FileRow) {
        let models = row.models.as_deref().map(models_from).transpose();
        let findings = row
            .findings
            .as_deref()
            .map(serde_json::from_str::<Findings>);
        let (models, findings) = match (models, findings.transpose()) {
            (Ok(models), Ok(findings)) => {
                (models.unwrap_or_default(), findings.unwrap_or_default())
            }
            (Err(error), _) => {
                return self.fault(format!("file {id}: its models cannot be read: {error}"));
            }
            (_, Err(error)) => {
                return self.fault(format!("file {id}: its findings cannot be read: {error}"));
            }
        };
        let of_models: u64 = models.iter().map(|model| model.requests).sum();
        let requests = u64::try_from(row.requests).unwrap_or(0);
        let is_less = of_models < requests && findings.has_lines_of_no_model();
        if of_models != requests && !is_less {
            self.fault(format!(
                "file {id}: it has {}, its models {of_models}",
                count(row.requests, "request")
            ));
        }
    }

    /// A file that is said to be one chunk has no other, and no rows of `chunk_models`.
    async fn only_chunk(&mut self, tx: &mut Tx, id: &str, last: i64) -> Result<()> {
        let (rows,): (i64,) = in_tx!(tx, |c| {
            sqlx::query_as(
                "-- audit_only_chunk\nSELECT COUNT(*) FROM chunk_models WHERE file_id = $1",
            )
            .bind(id)
            .fetch_one(c)
            .await?
        });
        if last != 0 {
            self.fault(format!(
                "file {id}: it is said to be one chunk, and has chunk {last}"
            ));
        }
        if rows > 0 {
            self.fault(format!(
                "file {id}: it is said to be one chunk, and has {} of chunk_models",
                count(rows, "row")
            ));
        }
        Ok(())
    }
}

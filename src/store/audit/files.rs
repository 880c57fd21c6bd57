//! Uploaded files: is all of their content there, and can it be read?

use super::report::Audit;
use crate::codec;
use crate::store::Result;
use crate::store::engine::in_tx;
use crate::store::files::read_pieces_in;

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
        let size: Option<(i64,)> = in_tx!(&mut tx, |c| {
            sqlx::query_as(
                "-- audit_file
                 SELECT bytes FROM files f
                 WHERE id = $1 AND (state = 'ready' OR EXISTS (SELECT 1 FROM batches b
                    WHERE b.input_file_id = f.id
                    AND b.status IN ('in_progress', 'finalizing', 'cancelling')))",
            )
            .bind(id)
            .fetch_optional(c)
            .await?
        });
        let Some((size,)) = size else { return Ok(()) };
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
}

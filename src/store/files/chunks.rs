//! The content of uploaded files: pieces, chunks, and the lines in them.

use super::bytes::{self, StoredPiece};
use crate::codec;
use crate::store::engine::on_pool;
use crate::store::{Error, Result, Store};

/// One stored piece of a file, decompressed.
#[derive(Clone, Debug)]
pub struct RawPiece {
    /// Where the piece's first byte stands in the file.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Where the next piece is looked for.
    pub next: (i64, i64),
}

/// A whole chunk, decompressed.
#[derive(Clone, Debug)]
pub struct StoredChunk {
    /// The number of the first line that begins in the chunk, from 1.
    pub first_line: u64,
    pub bytes: Vec<u8>,
}

fn decompressed(row: &StoredPiece, file_id: &str) -> Result<Vec<u8>> {
    codec::decompress(&row.data, usize::try_from(row.bytes).unwrap_or(0))
        .map_err(|error| Error::corrupt(format!("chunk {} of {file_id}", row.chunk_no), error))
}

impl Store {
    /// The place of the piece that holds the byte at `offset`; `None` past the end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn piece_at(&self, file_id: &str, offset: u64) -> Result<Option<(i64, i64)>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- piece_at
                 SELECT chunk_no, piece_no FROM chunks WHERE file_id = $1 AND byte_offset <= $2
                 ORDER BY byte_offset DESC LIMIT 1",
            )
            .bind(file_id)
            .bind(offset as i64)
            .fetch_optional(c)
            .await?
        }))
    }

    /// The first piece at or behind a place; `None` at the end of the file.
    ///
    /// # Errors
    /// When the database fails or the bytes are damaged.
    pub async fn piece(&self, file_id: &str, place: (i64, i64)) -> Result<Option<RawPiece>> {
        let Some(row) = bytes::read_piece(self, file_id, place).await? else {
            return Ok(None);
        };
        Ok(Some(RawPiece {
            offset: row.byte_offset as u64,
            bytes: decompressed(&row, file_id)?,
            next: (row.chunk_no, row.piece_no + 1),
        }))
    }

    /// A whole chunk; `None` where the file has no such chunk (any more).
    ///
    /// # Errors
    /// When the database fails or the bytes are damaged.
    pub async fn chunk(&self, file_id: &str, chunk_no: i64) -> Result<Option<StoredChunk>> {
        let rows = bytes::read_chunk(self, file_id, chunk_no).await?;
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let first_line = first.first_line as u64;
        let size = rows.iter().map(|row| row.bytes).sum::<i64>();
        let mut whole = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        for row in &rows {
            whole.extend_from_slice(&decompressed(row, file_id)?);
        }
        Ok(Some(StoredChunk {
            first_line,
            bytes: whole,
        }))
    }

    /// The numbers of a file's chunks, each with its first line (1-based); without chunks in which
    /// no line begins.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn first_lines(&self, file_id: &str) -> Result<Vec<(i64, i64)>> {
        Ok(on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- first_lines
                 SELECT chunk_no, first_line FROM chunks
                 WHERE file_id = $1 AND piece_no = 0 AND lines > 0 ORDER BY chunk_no",
            )
            .bind(file_id)
            .fetch_all(c)
            .await?
        }))
    }

    /// The number of the chunk in which a line (1-based) begins.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn chunk_of_line(&self, file_id: &str, line: u64) -> Result<Option<i64>> {
        let row: Option<(i64,)> = on_pool!(self.reader(), |c| {
            sqlx::query_as(
                "-- chunk_of_line
                 SELECT chunk_no FROM chunks
                 WHERE file_id = $1 AND piece_no = 0 AND first_line <= $2 AND lines > 0
                 ORDER BY chunk_no DESC LIMIT 1",
            )
            .bind(file_id)
            .bind(line as i64)
            .fetch_optional(c)
            .await?
        });
        Ok(row.map(|(chunk_no,)| chunk_no))
    }
}

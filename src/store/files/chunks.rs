//! The bytes of uploaded files.

use sqlx::FromRow;

use crate::codec;
use crate::store::engine::on;
use crate::store::{Error, Result, Store};

/// One stored piece of a file, decompressed.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Of its first byte in the file.
    pub offset: u64,
    pub bytes: Vec<u8>,
    /// Where the next piece is looked for.
    pub next: (i64, i64),
}

/// A whole chunk, decompressed.
#[derive(Clone, Debug)]
pub struct StoredChunk {
    /// 1-based.
    pub first_line: u64,
    pub bytes: Vec<u8>,
}

#[derive(FromRow)]
struct PieceRow {
    chunk_no: i64,
    piece_no: i64,
    byte_offset: i64,
    bytes: i64,
    first_line: i64,
    data: Vec<u8>,
}

impl PieceRow {
    fn decompress(&self, file_id: &str) -> Result<Vec<u8>> {
        codec::decompress(&self.data, usize::try_from(self.bytes).unwrap_or(0))
            .map_err(|error| Error::corrupt(format!("chunk {} of {file_id}", self.chunk_no), error))
    }
}

impl Store {
    /// The place of the piece that holds the byte at `offset`; `None` past the end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn piece_at(&self, file_id: &str, offset: u64) -> Result<Option<(i64, i64)>> {
        Ok(on!(self.reader(), c => {
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
    pub async fn piece(&self, file_id: &str, place: (i64, i64)) -> Result<Option<Piece>> {
        let row: Option<PieceRow> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- piece
                 SELECT chunk_no, piece_no, byte_offset, bytes, first_line, data FROM chunks
                 WHERE file_id = $1 AND (chunk_no, piece_no) >= ($2, $3)
                 ORDER BY chunk_no, piece_no LIMIT 1",
            )
            .bind(file_id)
            .bind(place.0)
            .bind(place.1)
            .fetch_optional(c)
            .await?
        });
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Piece {
            offset: row.byte_offset as u64,
            bytes: row.decompress(file_id)?,
            next: (row.chunk_no, row.piece_no + 1),
        }))
    }

    /// A whole chunk; `None` where the file has no such chunk (any more).
    ///
    /// # Errors
    /// When the database fails or the bytes are damaged.
    pub async fn chunk(&self, file_id: &str, chunk_no: i64) -> Result<Option<StoredChunk>> {
        let rows: Vec<PieceRow> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- chunk
                 SELECT chunk_no, piece_no, byte_offset, bytes, first_line, data FROM chunks
                 WHERE file_id = $1 AND chunk_no = $2 ORDER BY piece_no",
            )
            .bind(file_id)
            .bind(chunk_no)
            .fetch_all(c)
            .await?
        });
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let first_line = first.first_line as u64;
        let size = rows.iter().map(|row| row.bytes).sum::<i64>();
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        for row in &rows {
            bytes.extend_from_slice(&row.decompress(file_id)?);
        }
        Ok(Some(StoredChunk { first_line, bytes }))
    }

    /// The numbers of a file's chunks, each with its first line (1-based); without chunks in which
    /// no line begins.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn first_lines(&self, file_id: &str) -> Result<Vec<(i64, i64)>> {
        Ok(on!(self.reader(), c => {
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
        let row: Option<(i64,)> = on!(self.reader(), c => {
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

//! The content of output and error files: a batch's segments, chunk by chunk. While the batch runs,
//! its units' tails are read as segments, too.

use std::ops::RangeInclusive;

use super::bytes::{self, SegmentKey};
use super::file::StoredFile;
use crate::store::engine::on_pool;
use crate::store::{Error, Result, Store};

/// One segment of a chunk.
#[derive(Clone, Debug)]
pub struct Segment {
    pub chunk_no: i64,
    pub model_no: i64,
    pub flush_no: i64,
    /// The segment's table, as [`Table::decode`](crate::codec::segment::Table::decode) reads it.
    pub entries: Vec<u8>,
    /// `None`: not read.
    pub data: Option<Vec<u8>>,
}

impl Store {
    /// How many bytes of an output or error file each chunk gave, in the file's order. A statement
    /// only where the file does not know ([`Store::file_to_read`]).
    ///
    /// # Errors
    /// When the database fails or the bytes are damaged.
    pub async fn chunk_sizes(&self, file: &StoredFile) -> Result<Vec<(i64, i64)>> {
        let read;
        let sizes = if let Some(known) = &file.chunk_sizes {
            known
        } else {
            let row: Option<(Option<Vec<u8>>,)> = on_pool!(self.reader(), |c| {
                sqlx::query_as("-- chunk_sizes\nSELECT chunk_sizes FROM files WHERE id = $1")
                    .bind(&file.id)
                    .fetch_optional(c)
                    .await?
            });
            read = row.and_then(|(sizes,)| sizes).unwrap_or_default();
            &read
        };
        decode_sizes(sizes)
            .ok_or_else(|| Error::corrupt(format!("table of {}", file.id), "odd length"))
    }

    /// The segments of a row of chunks, in any order; with their data if it has at most `data_max`
    /// compressed bytes in all. The tails of units are among them, always with their data.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn segments(
        &self,
        batch_id: &str,
        chunks: RangeInclusive<i64>,
        data_max: usize,
    ) -> Result<Vec<Segment>> {
        let rows = bytes::read_segments(self, batch_id, chunks, data_max).await?;
        let segments = rows.into_iter().map(|row| Segment {
            chunk_no: row.key.chunk_no,
            model_no: row.key.model_no,
            flush_no: row.key.flush_no,
            entries: row.entries,
            data: row.data,
        });
        Ok(segments.collect())
    }

    /// The data of one segment.
    ///
    /// # Errors
    /// When the database fails, or the segment is gone.
    pub async fn segment_data(
        &self,
        batch_id: &str,
        chunk_no: i64,
        model_no: i64,
        flush_no: i64,
    ) -> Result<Vec<u8>> {
        let key = SegmentKey {
            chunk_no,
            model_no,
            flush_no,
        };
        bytes::read_segment(self, batch_id, key).await
    }
}

/// Pairs of a chunk's number and its bytes, as 64-bit numbers, lowest byte first.
pub(in crate::store) fn encode_sizes(sizes: &[(i64, i64)]) -> Vec<u8> {
    sizes
        .iter()
        .flat_map(|(chunk, bytes)| [chunk.to_le_bytes(), bytes.to_le_bytes()].concat())
        .collect()
}

pub(in crate::store) fn decode_sizes(bytes: &[u8]) -> Option<Vec<(i64, i64)>> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let (pairs, odd) = numbers.as_chunks::<2>();
    let whole = rest.is_empty() && odd.is_empty();
    whole.then(|| {
        pairs
            .iter()
            .map(|[chunk, size]| (i64::from_le_bytes(*chunk), i64::from_le_bytes(*size)))
            .collect()
    })
}

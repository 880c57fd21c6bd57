//! The content of output and error files: a batch's segments, chunk by chunk.

use std::ops::RangeInclusive;

use crate::store::engine::on;
use crate::store::{Error, Result, Store};

/// One segment of a chunk.
#[derive(Clone, Debug)]
pub struct Segment {
    pub chunk_no: i64,
    pub model_no: i64,
    pub flush_no: i64,
    /// Its table, as [`Table::decode`](crate::codec::segment::Table::decode) reads it.
    pub entries: Vec<u8>,
    /// `None`: not read.
    pub data: Option<Vec<u8>>,
}

/// As the database has it.
type SegmentRow = (i64, i64, i64, Vec<u8>, Option<Vec<u8>>);

impl Store {
    /// How many bytes of an output or error file each chunk gave, in the file's order.
    ///
    /// # Errors
    /// When the database fails or the bytes are damaged.
    pub async fn chunk_sizes(&self, file_id: &str) -> Result<Vec<(i64, i64)>> {
        let row: Option<(Option<Vec<u8>>,)> = on!(self.reader(), c => {
            sqlx::query_as("-- chunk_sizes\nSELECT chunk_sizes FROM files WHERE id = $1")
                .bind(file_id)
                .fetch_optional(c)
                .await?
        });
        let bytes = row.and_then(|(bytes,)| bytes).unwrap_or_default();
        decode_sizes(&bytes)
            .ok_or_else(|| Error::corrupt(format!("table of {file_id}"), "odd length"))
    }

    /// The segments of a row of chunks, in the order of chunk, model and flush; with their data if
    /// it has at most `data_max` compressed bytes in all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn segments(
        &self,
        batch_id: &str,
        chunks: RangeInclusive<i64>,
        data_max: usize,
    ) -> Result<Vec<Segment>> {
        let rows: Vec<SegmentRow> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- segments
                 SELECT chunk_no, model_no, flush_no, entries,
                     CASE WHEN (SELECT sum(length(data)) FROM segments
                         WHERE batch_id = $1 AND chunk_no BETWEEN $2 AND $3) <= $4 THEN data END
                 FROM segments WHERE batch_id = $1 AND chunk_no BETWEEN $2 AND $3
                 ORDER BY chunk_no, model_no, flush_no",
            )
            .bind(batch_id)
            .bind(*chunks.start())
            .bind(*chunks.end())
            .bind(i64::try_from(data_max).unwrap_or(i64::MAX))
            .fetch_all(c)
            .await?
        });
        let segment = |(chunk_no, model_no, flush_no, entries, data): SegmentRow| Segment {
            chunk_no,
            model_no,
            flush_no,
            entries,
            data,
        };
        Ok(rows.into_iter().map(segment).collect())
    }

    /// The data of one segment.
    ///
    /// # Errors
    /// When the database fails, or the segment is gone.
    pub async fn segment_data(
        &self,
        batch_id: &str,
        chunk: i64,
        model_no: i64,
        flush_no: i64,
    ) -> Result<Vec<u8>> {
        let row: Option<(Vec<u8>,)> = on!(self.reader(), c => {
            sqlx::query_as(
                "-- segment_data
                 SELECT data FROM segments
                 WHERE batch_id = $1 AND chunk_no = $2 AND model_no = $3 AND flush_no = $4",
            )
            .bind(batch_id)
            .bind(chunk)
            .bind(model_no)
            .bind(flush_no)
            .fetch_optional(c)
            .await?
        });
        row.map(|(data,)| data).ok_or(Error::Stale("the segment"))
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

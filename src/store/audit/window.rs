//! A few chunks of a batch at a time: their units, segments and tails, read in the batch's
//! snapshot.

use std::collections::BTreeMap;
use std::ops::Range;

use sqlx::FromRow;

use super::lines::{self, ChunkLines};
use super::report::Audit;
use crate::codec::segment::Table;
use crate::domain::unit::Bitmap;
use crate::domain::usage::Usage;
use crate::store::Result;
use crate::store::engine::{Tx, in_tx};
use crate::store::files::{SegmentKey, SegmentTable, read_data_in, read_tables_in};

/// Chunks in a window.
const CHUNKS: i64 = 16;
/// Compressed bytes that are read at once; a segment that is larger is read alone.
const BYTES: i64 = 4 << 20;

/// What is stored of a unit.
#[derive(Debug, FromRow)]
pub(super) struct UnitRow {
    pub chunk_no: i64,
    pub model_no: i64,
    pub state: String,
    pub flush_no: i64,
    pub requests: i64,
    pub done: Vec<u8>,
    pub output_bytes: i64,
    pub error_bytes: i64,
    pub tail_entries: Option<Vec<u8>>,
    pub tail_data: Option<Vec<u8>>,
}

/// Some chunks of a batch.
#[derive(Default)]
pub(super) struct Window {
    pub chunks: BTreeMap<i64, ChunkLines>,
    pub units: Vec<UnitRow>,
    /// What the answers in the window report.
    pub usage: Usage,
}

/// The first chunk from `from` on that has units or segments.
pub(super) async fn next_chunk(tx: &mut Tx, batch_id: &str, from: i64) -> Result<Option<i64>> {
    let (chunk,): (Option<i64>,) = in_tx!(tx, |c| {
        sqlx::query_as(
            "-- audit_next_chunk
             SELECT MIN(chunk_no) FROM
                (SELECT MIN(chunk_no) AS chunk_no FROM units
                 WHERE batch_id = $1 AND chunk_no >= $2
                 UNION ALL
                 SELECT MIN(chunk_no) FROM segments WHERE batch_id = $1 AND chunk_no >= $2) AS n",
        )
        .bind(batch_id)
        .bind(from)
        .fetch_one(c)
        .await?
    });
    Ok(chunk)
}

impl Audit<'_> {
    /// Reads the chunks from `first` on; also says where the next window begins.
    pub(super) async fn window(
        &mut self,
        tx: &mut Tx,
        batch_id: &str,
        first: i64,
    ) -> Result<(Window, i64)> {
        let end = first.saturating_add(CHUNKS);
        let mut window = Window::default();
        let units = units(tx, batch_id, first..end).await?;
        for unit in &units {
            self.tail(&mut window, batch_id, unit);
        }
        window.units = units;
        let rows = read_tables_in(tx, batch_id, first..end).await?;
        let mut rows = rows.as_slice();
        while !rows.is_empty() {
            let mut bytes = 0;
            let fits = rows.iter().take_while(|row| {
                bytes += row.bytes;
                bytes <= BYTES
            });
            let (these, rest) = rows.split_at(fits.count().max(1));
            rows = rest;
            let Some(last) = these.last() else { break };
            let data = read_data_in(tx, batch_id, these[0].key..=last.key).await?;
            for (row, data) in these.iter().zip(&data) {
                self.segment(&mut window, batch_id, row, data);
            }
        }
        Ok((window, end))
    }

    fn segment(&mut self, window: &mut Window, batch_id: &str, row: &SegmentTable, data: &[u8]) {
        let key = row.key;
        let at = format!(
            "batch {batch_id}: segment {}/{}/{}",
            key.chunk_no, key.model_no, key.flush_no
        );
        self.lines(window, key, &row.entries, data, &at);
        self.audited.segments += 1;
    }

    fn tail(&mut self, window: &mut Window, batch_id: &str, unit: &UnitRow) {
        let (Some(entries), Some(data)) = (&unit.tail_entries, &unit.tail_data) else {
            return;
        };
        let key = SegmentKey {
            chunk_no: unit.chunk_no,
            model_no: unit.model_no,
            flush_no: unit.flush_no,
        };
        let at = format!(
            "batch {batch_id}: tail of {}/{}",
            key.chunk_no, key.model_no
        );
        self.lines(window, key, entries, data, &at);
    }

    /// The lines of a segment, or of a tail.
    fn lines(
        &mut self,
        window: &mut Window,
        key: SegmentKey,
        entries: &[u8],
        data: &[u8],
        at: &str,
    ) {
        let table = match Table::decode(entries) {
            Ok(table) => table,
            Err(error) => return self.fault(format!("{at} cannot be read: {error}")),
        };
        match lines::read(&table, data) {
            Ok(usage) => window.usage += usage,
            Err(error) => self.fault(format!("{at} cannot be read: {error}")),
        }
        let chunk = window.chunks.entry(key.chunk_no).or_default();
        for fault in chunk.add(key.model_no, key.flush_no, &table) {
            self.fault(format!("{at}: {fault}"));
        }
        self.audited.segment_bytes_stored += data.len() as u64;
        self.audited.segment_bytes += table.size() as u64;
    }
}

impl UnitRow {
    /// Whether the same lines are done here and there. A bitmap may be longer than it need be.
    pub fn is_done_as(&self, done: &Bitmap) -> bool {
        let strip = |bytes: &[u8]| {
            let end = bytes.iter().rposition(|&byte| byte != 0);
            bytes[..end.map_or(0, |last| last + 1)].to_vec()
        };
        strip(&self.done) == strip(done.as_bytes())
    }
}

async fn units(tx: &mut Tx, batch_id: &str, chunks: Range<i64>) -> Result<Vec<UnitRow>> {
    Ok(in_tx!(tx, |c| {
        sqlx::query_as(
            "-- audit_units
             SELECT chunk_no, model_no, state, flush_no, requests, done, output_bytes, error_bytes,
                tail_entries, tail_data
             FROM units WHERE batch_id = $1 AND chunk_no >= $2 AND chunk_no < $3
             ORDER BY chunk_no, model_no",
        )
        .bind(batch_id)
        .bind(chunks.start)
        .bind(chunks.end)
        .fetch_all(c)
        .await?
    }))
}

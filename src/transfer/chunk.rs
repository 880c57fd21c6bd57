//! One chunk of an output or error file: the segments of its units, merged by line number.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::damaged;
use crate::codec::segment::Entry;
use crate::domain::file::Kind;
use crate::store::{Error, Result, SegmentTable, Store};

/// A chunk whose segments are together at most this large (compressed) is fetched at once.
const FETCHED_BYTES_MAX: usize = 4 << 20;
/// Decompressed frames that are kept for lines to come. One frame may be larger, and is then
/// kept alone.
const FRAMES_BYTES_MAX: usize = 16 << 20;
/// Lines are handed out in blocks of about this size.
const BLOCK_BYTES: usize = 256 << 10;
/// Decompressing up to this much is cheaper than asking another thread to.
const DECOMPRESSED_HERE_MAX: usize = 64 << 10;

/// The lines of one kind within a chunk, read in their order.
pub(super) struct Chunk {
    batch_id: String,
    number: i64,
    segments: Vec<Arc<SegmentTable>>,
    /// Those still to be read, with the segment that each stands in.
    lines: VecDeque<(usize, Entry)>,
    /// Bytes of the next line that are not wanted.
    skip: usize,
    data: Data,
    frames: Frames,
}

/// The compressed bytes of segments.
enum Data {
    /// Of each.
    All(Vec<Bytes>),
    /// Of the one that was needed last: lines of a segment often stand together.
    Last(Option<(usize, Bytes)>),
}

impl Chunk {
    /// Looks up where the lines stand, and reads none yet.
    pub(super) async fn open(
        store: &Store,
        batch_id: &str,
        number: i64,
        kind: Kind,
    ) -> Result<Chunk> {
        let tables = store.segment_tables(batch_id, number).await?;
        let mut lines: Vec<(usize, Entry)> = Vec::new();
        for (segment, table) in tables.iter().enumerate() {
            let of_kind = table.table.entries.iter().filter(|e| e.kind == kind);
            lines.extend(of_kind.map(|&entry| (segment, entry)));
        }
        lines.sort_unstable_by_key(|(_, entry)| entry.line);
        if lines.windows(2).any(|two| two[0].1.line == two[1].1.line) {
            return Err(damaged(
                format!("chunk {number} of {batch_id}"),
                "a line stands there twice",
            ));
        }
        let size: usize = tables.iter().map(|table| table.data_bytes).sum();
        let data = if size <= FETCHED_BYTES_MAX && !lines.is_empty() {
            Data::All(fetch_all(store, batch_id, number, &tables).await?)
        } else {
            Data::Last(None)
        };
        Ok(Chunk {
            batch_id: batch_id.to_owned(),
            number,
            segments: tables.into_iter().map(Arc::new).collect(),
            lines: lines.into(),
            skip: 0,
            data,
            frames: Frames::default(),
        })
    }

    /// How many bytes are still to be read.
    pub(super) fn size(&self) -> u64 {
        let lines: u64 = self.lines.iter().map(|(_, entry)| entry.len as u64).sum();
        lines - self.skip as u64
    }

    /// Passes over bytes, without reading them.
    pub(super) fn skip(&mut self, bytes: u64) {
        let mut bytes = bytes + self.skip as u64;
        while let Some((_, entry)) = self.lines.front() {
            if bytes < entry.len as u64 {
                break;
            }
            bytes -= entry.len as u64;
            self.lines.pop_front();
        }
        // Less than the next line, or nothing where none is left.
        self.skip = usize::try_from(bytes).unwrap_or(0);
    }

    /// The next block; `None` at the end.
    pub(super) async fn next(&mut self, store: &Store) -> Result<Option<Bytes>> {
        let mut block = BytesMut::new();
        while let Some(&(segment, entry)) = self.lines.front() {
            if !block.is_empty() && block.len() + entry.len > BLOCK_BYTES {
                break;
            }
            let frame = self.frame(store, segment, entry.frame).await?;
            let line = frame.slice(entry.offset + self.skip..entry.offset + entry.len);
            self.lines.pop_front();
            self.skip = 0;
            if line.len() > BLOCK_BYTES {
                return Ok(Some(line));
            }
            block.extend_from_slice(&line);
        }
        Ok((!block.is_empty()).then(|| block.freeze()))
    }

    /// A frame's raw bytes.
    async fn frame(&mut self, store: &Store, segment: usize, frame: usize) -> Result<Bytes> {
        if let Some(bytes) = self.frames.get((segment, frame)) {
            return Ok(bytes);
        }
        let table = Arc::clone(&self.segments[segment]);
        let data = self.data(store, segment).await?;
        let size = table.table.frames.get(frame).map_or(0, |frame| frame.size);
        // Room first: the new frame is not to come on top of the old ones.
        self.frames.make_room(size);
        let raw = if size <= DECOMPRESSED_HERE_MAX {
            table.table.frame(&data, frame)
        } else {
            tokio::task::spawn_blocking(move || table.table.frame(&data, frame))
                .await
                .unwrap_or_else(|panic| Err(panic.into()))
        };
        let bytes = Bytes::from(raw.map_err(|error| self.damaged(error))?);
        self.frames.put((segment, frame), bytes.clone());
        Ok(bytes)
    }

    /// A segment's compressed bytes.
    async fn data(&mut self, store: &Store, segment: usize) -> Result<Bytes> {
        match &mut self.data {
            Data::All(all) => Ok(all[segment].clone()),
            Data::Last(Some((of, data))) if *of == segment => Ok(data.clone()),
            Data::Last(last) => {
                *last = None;
                let of = &self.segments[segment];
                let data = store
                    .segment_data(&self.batch_id, self.number, of.model_no, of.flush_no)
                    .await?;
                let data = Bytes::from(data);
                *last = Some((segment, data.clone()));
                Ok(data)
            }
        }
    }

    fn damaged(&self, cause: impl ToString) -> Error {
        damaged(
            format!("segment of {}/{}", self.batch_id, self.number),
            cause,
        )
    }
}

async fn fetch_all(
    store: &Store,
    batch_id: &str,
    number: i64,
    tables: &[SegmentTable],
) -> Result<Vec<Bytes>> {
    let all = store.segments_data(batch_id, number).await?;
    let sizes = all.iter().map(Vec::len);
    if sizes.eq(tables.iter().map(|table| table.data_bytes)) {
        Ok(all.into_iter().map(Bytes::from).collect())
    } else {
        Err(Error::Stale("the batch's output"))
    }
}

/// Decompressed frames, the one used last at the end.
#[derive(Default)]
struct Frames {
    frames: VecDeque<((usize, usize), Bytes)>,
    bytes: usize,
}

impl Frames {
    fn get(&mut self, key: (usize, usize)) -> Option<Bytes> {
        let place = self.frames.iter().rposition(|(of, _)| *of == key)?;
        let frame = self.frames.remove(place)?;
        let bytes = frame.1.clone();
        self.frames.push_back(frame);
        Some(bytes)
    }

    /// Drops what was not used for longest, until `bytes` more fit.
    fn make_room(&mut self, bytes: usize) {
        while self.bytes + bytes > FRAMES_BYTES_MAX {
            let Some((_, dropped)) = self.frames.pop_front() else {
                break;
            };
            self.bytes -= dropped.len();
        }
    }

    fn put(&mut self, key: (usize, usize), bytes: Bytes) {
        self.bytes += bytes.len();
        self.frames.push_back((key, bytes));
    }
}

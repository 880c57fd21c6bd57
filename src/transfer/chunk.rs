//! One chunk of an output or error file: the segments of its units, merged by line number.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use super::damaged::damaged;
use crate::codec::segment::{Entry, Table};
use crate::domain::file::Kind;
use crate::store::{Error, Result, Segment, Store};

/// The segments of a few chunks are read with their data if they have at most so many compressed
/// bytes together; else one by one, when their lines come.
pub(super) const FETCHED_BYTES_MAX: usize = 2 << 20;
/// Decompressed frames that are kept for blocks to come.
const FRAMES_BYTES_MAX: usize = 2 << 20;
/// Lines are handed out in blocks of at most this size, but for one line that is longer. A frame is
/// read once for each block that has lines of it, unless it is kept.
const BLOCK_BYTES: usize = 1 << 20;
/// Decompressing up to this much, in a fraction of a millisecond, costs less than asking another
/// thread to.
const DECOMPRESSED_HERE_MAX: usize = 512 << 10;

/// The lines of one kind, or of both, within a chunk, read in their order.
pub(super) struct Chunk {
    batch_id: String,
    number: i64,
    segments: Vec<Arc<Opened>>,
    /// Those still to be read, with the segment that each stands in.
    lines: VecDeque<(usize, Entry)>,
    /// Bytes of the next line that are not wanted.
    skip: usize,
    /// The data of the segment that was read last: lines of one often stand together.
    last: Option<(usize, Bytes)>,
    /// Frames that have lines still to be read: as many as there is room for, and the others are
    /// read again.
    frames: Vec<(FrameKey, Bytes)>,
}

/// A segment with its table decoded.
struct Opened {
    table: Table,
    segment: Segment,
}

/// A segment's place in the chunk, and a frame's in the segment.
type FrameKey = (usize, usize);

/// Lines that stand together, on their way from a frame into a block.
struct Part {
    frame: FrameKey,
    /// Where they stand in the frame.
    from: Range<usize>,
    /// Where they begin in the block.
    to: usize,
}

impl Chunk {
    /// Reads the segments of a row of chunks, by chunk; with their data if it has at most
    /// `data_max` compressed bytes in all.
    pub(super) async fn segments(
        store: &Store,
        batch_id: &str,
        numbers: RangeInclusive<i64>,
        data_max: usize,
    ) -> Result<BTreeMap<i64, Vec<Segment>>> {
        let mut chunks: BTreeMap<i64, Vec<Segment>> = BTreeMap::new();
        for segment in store.segments(batch_id, numbers, data_max).await? {
            chunks.entry(segment.chunk_no).or_default().push(segment);
        }
        Ok(chunks)
    }

    /// Looks up where the lines of one chunk stand in its segments; without a kind, those of both.
    pub(super) fn open(
        batch_id: &str,
        number: i64,
        kind: Option<Kind>,
        segments: Vec<Segment>,
    ) -> Result<Chunk> {
        let mut lines: Vec<(usize, Entry)> = Vec::new();
        let mut opened = Vec::with_capacity(segments.len());
        for (place, segment) in segments.into_iter().enumerate() {
            let table = Table::decode(&segment.entries)
                .map_err(|error| damaged(format!("segment of {batch_id}/{number}"), error))?;
            let of_kind = table
                .entries
                .iter()
                .filter(|e| kind.is_none_or(|kind| e.kind == kind));
            lines.extend(of_kind.map(|&entry| (place, entry)));
            opened.push(Arc::new(Opened { table, segment }));
        }
        lines.sort_unstable_by_key(|(_, entry)| entry.line);
        if lines.windows(2).any(|two| two[0].1.line == two[1].1.line) {
            return Err(damaged(
                format!("chunk {number} of {batch_id}"),
                "a line stands there twice",
            ));
        }
        Ok(Chunk {
            batch_id: batch_id.to_owned(),
            number,
            segments: opened,
            lines: lines.into(),
            skip: 0,
            last: None,
            frames: Vec::new(),
        })
    }

    /// The place in the chunk, and the kind, of the next line.
    pub(super) fn peek(&self) -> Option<(u32, Kind)> {
        let (_, entry) = self.lines.front()?;
        Some((entry.line, entry.kind))
    }

    /// Passes over the next line, without reading it.
    pub(super) fn pass(&mut self) {
        self.lines.pop_front();
        self.skip = 0;
    }

    /// The places in the chunk of the lines that are still to be read.
    pub(super) fn places(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.lines.iter().map(|(_, entry)| entry.line)
    }

    /// Leaves out the lines that are not wanted, by their places.
    pub(super) fn retain(&mut self, mut is_wanted: impl FnMut(u32) -> bool) {
        self.lines.retain(|(_, entry)| is_wanted(entry.line));
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

    /// The next block; `None` at the end. It need not be longer than `wanted`, in bytes.
    pub(super) async fn next(&mut self, store: &Store, wanted: usize) -> Result<Option<Bytes>> {
        let (parts, size) = self.take_parts(wanted);
        let block = match &parts[..] {
            [] => return Ok(None),
            [part] => {
                let frame = self.frame(store, part.frame).await?;
                // A slice holds its whole frame for as long as the client takes.
                if size * 2 >= frame.len() {
                    frame.slice(part.from.clone())
                } else {
                    Bytes::copy_from_slice(&frame[part.from.clone()])
                }
            }
            _ => self.gather(store, parts, size).await?,
        };
        let lines = &self.lines;
        self.frames.retain(|(frame, _)| needed(lines, *frame));
        Ok(Some(block))
    }

    /// Puts lines together. Those of many segments take turns, so each frame is read once for all
    /// that it has of them.
    async fn gather(&mut self, store: &Store, mut parts: Vec<Part>, size: usize) -> Result<Bytes> {
        parts.sort_by_key(|part| part.frame);
        let mut block = vec![0; size];
        for parts in parts.chunk_by(|one, next| one.frame == next.frame) {
            let frame = self.frame(store, parts[0].frame).await?;
            for part in parts {
                let line = &frame[part.from.clone()];
                block[part.to..part.to + line.len()].copy_from_slice(line);
            }
        }
        Ok(block.into())
    }

    /// Takes out the lines of the next block, and says how long they are together.
    fn take_parts(&mut self, wanted: usize) -> (Vec<Part>, usize) {
        let (mut parts, mut size): (Vec<Part>, usize) = (Vec::new(), 0);
        while let Some(&(segment, entry)) = self.lines.front() {
            let len = entry.len - self.skip;
            if size > 0 && (size >= wanted || size + len > BLOCK_BYTES) {
                break;
            }
            let skip = mem::take(&mut self.skip);
            let frame = (segment, entry.frame);
            let from = entry.offset + skip..entry.offset + entry.len;
            match parts.last_mut() {
                Some(Part {
                    frame: last,
                    from: before,
                    ..
                }) if *last == frame && before.end == from.start => {
                    before.end = from.end;
                }
                _ => parts.push(Part {
                    frame,
                    from,
                    to: size,
                }),
            }
            size += len;
            self.lines.pop_front();
        }
        (parts, size)
    }

    /// A frame's raw bytes.
    async fn frame(&mut self, store: &Store, key: FrameKey) -> Result<Bytes> {
        if let Some((_, bytes)) = self.frames.iter().find(|(kept, _)| *kept == key) {
            return Ok(bytes.clone());
        }
        let (place, frame) = key;
        let opened = Arc::clone(&self.segments[place]);
        let read = match opened.segment.data {
            Some(_) => Bytes::new(),
            None => self.data(store, place).await?,
        };
        let size = opened.table.frames.get(frame).map_or(0, |frame| frame.size);
        let decompress = move || {
            let data = opened.segment.data.as_deref().unwrap_or(&read);
            opened.table.frame(data, frame)
        };
        let raw = if size <= DECOMPRESSED_HERE_MAX {
            decompress()
        } else {
            tokio::task::spawn_blocking(decompress)
                .await
                .unwrap_or_else(|panic| Err(panic.into()))
        };
        let bytes = Bytes::from(raw.map_err(|error| self.damaged(error))?);
        let kept: usize = self.frames.iter().map(|(_, bytes)| bytes.len()).sum();
        if kept + bytes.len() <= FRAMES_BYTES_MAX && needed(&self.lines, key) {
            self.frames.push((key, bytes.clone()));
        }
        Ok(bytes)
    }

    /// The data of a segment that was too large to be read with others.
    async fn data(&mut self, store: &Store, place: usize) -> Result<Bytes> {
        if let Some((last, data)) = &self.last
            && *last == place
        {
            return Ok(data.clone());
        }
        self.last = None;
        let of = &self.segments[place].segment;
        let data = store.segment_data(&self.batch_id, self.number, of.model_no, of.flush_no);
        let data = Bytes::from(data.await?);
        self.last = Some((place, data.clone()));
        Ok(data)
    }

    fn damaged(&self, cause: impl ToString) -> Error {
        damaged(
            format!("segment of {}/{}", self.batch_id, self.number),
            cause,
        )
    }
}

/// Whether a frame has any of the lines.
fn needed(lines: &VecDeque<(usize, Entry)>, (segment, frame): FrameKey) -> bool {
    lines
        .iter()
        .any(|(of, entry)| *of == segment && entry.frame == frame)
}

//! The layout of a segment: finished lines, compressed in frames, and a table of which line of
//! the chunk stands where.
//!
//! `data` is the frames, one behind the other. A line never spans two frames.
//!
//! `entries` is the table, a row of varints: the number of frames, then for each frame its size raw
//! and compressed, then for each line the step from the line before, and its length with its kind
//! in the lowest bit. All lines of such a table were written by the segment's own flush.
//!
//! A table of a later version begins with a zero, which is no number of frames, and with its
//! version. Behind each line stands its age: by how many flushes of the unit the line is older than
//! the segment.
//!
//! | version | is of a segment |
//! |---|---|
//! | none | with lines of one flush |
//! | 2 | with lines of several flushes |
//! | 3 | of one frame, which is small, and compressed with the dictionary |

use std::borrow::Borrow;
use std::io;

use super::Dictionary;
use crate::domain::file::Kind;

/// A frame is closed once it has this many bytes, so that a reader holds little at once.
const FRAME_BYTES: usize = 1 << 20;
/// Answers are compressed while users wait for them: the fastest of zstd's usual levels.
const LEVEL: i32 = 1;
/// The version of a table whose lines have ages.
const WITH_AGES: u64 = 2;
/// The version of a table whose lines have ages, and whose frame needs the dictionary.
const WITH_DICTIONARY: u64 = 3;
/// What answers look like, without what differs from answer to answer. In a segment of few lines
/// this is a part of what has to be said. It is part of the format: another dictionary is another
/// version.
static DICTIONARY: Dictionary = Dictionary::new(include_bytes!("segment/dictionary.txt"), LEVEL);
/// A segment of more raw bytes says by itself what answers look like.
const DICTIONARY_RAW_MAX: usize = 64 << 10;

/// A finished line: its place in the chunk, its kind, and its bytes with the line end.
#[derive(Clone, Debug)]
pub struct Line {
    pub line: u32,
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// A segment as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    pub entries: Vec<u8>,
    pub data: Vec<u8>,
}

/// Lays out lines, or references to lines, which must be in rising order of `line`.
///
/// # Errors
/// When zstd fails.
pub fn encode(lines: &[impl Borrow<Line>]) -> io::Result<Encoded> {
    let lines: Vec<Placed<'_>> = lines
        .iter()
        .map(|line| Placed::new(line.borrow()))
        .collect();
    lay_out(&lines)
}

/// Lays out lines together with those of a segment that the unit's flush before wrote. Both must be
/// in rising order of `line`, and have no line in common.
///
/// # Errors
/// When zstd fails.
pub fn merge(earlier: &Decoded, lines: &[impl Borrow<Line>]) -> io::Result<Encoded> {
    let mut merged: Vec<Placed<'_>> = earlier.lines().collect();
    merged.extend(lines.iter().map(|line| Placed::new(line.borrow())));
    merged.sort_by_key(|line| line.line);
    lay_out(&merged)
}

/// A line on its way into a segment.
struct Placed<'a> {
    line: u32,
    kind: Kind,
    age: u32,
    bytes: &'a [u8],
}

impl<'a> Placed<'a> {
    /// A line of the segment's own flush.
    fn new(line: &'a Line) -> Self {
        Placed {
            line: line.line,
            kind: line.kind,
            age: 0,
            bytes: &line.bytes,
        }
    }
}

fn lay_out(lines: &[Placed<'_>]) -> io::Result<Encoded> {
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let mut data = Vec::new();
    let mut raw = Vec::new();
    let size: usize = lines.iter().map(|line| line.bytes.len()).sum();
    let compress: fn(&[u8]) -> io::Result<Vec<u8>> = if size <= DICTIONARY_RAW_MAX {
        |raw: &[u8]| DICTIONARY.compress(raw)
    } else {
        |raw: &[u8]| super::compress(raw, LEVEL)
    };
    for line in lines {
        if !raw.is_empty() && raw.len() + line.bytes.len() > FRAME_BYTES {
            frames.push(close(&mut raw, &mut data, compress)?);
        }
        raw.extend_from_slice(line.bytes);
    }
    if !raw.is_empty() {
        frames.push(close(&mut raw, &mut data, compress)?);
    }
    let version = if size <= DICTIONARY_RAW_MAX {
        Some(WITH_DICTIONARY)
    } else {
        let has_ages = lines.iter().any(|line| line.age > 0);
        has_ages.then_some(WITH_AGES)
    };
    let mut entries = Vec::with_capacity(8 + lines.len() * 5);
    if let Some(version) = version {
        put(&mut entries, 0);
        put(&mut entries, version);
    }
    put(&mut entries, frames.len() as u64);
    for (size, compressed) in frames {
        put(&mut entries, size as u64);
        put(&mut entries, compressed as u64);
    }
    let mut before = 0;
    for line in lines {
        put(&mut entries, u64::from(line.line - before));
        put(
            &mut entries,
            (line.bytes.len() as u64) << 1 | u64::from(line.kind == Kind::Error),
        );
        if version.is_some() {
            put(&mut entries, u64::from(line.age));
        }
        before = line.line;
    }
    Ok(Encoded { entries, data })
}

fn close(
    raw: &mut Vec<u8>,
    data: &mut Vec<u8>,
    compress: fn(&[u8]) -> io::Result<Vec<u8>>,
) -> io::Result<(usize, usize)> {
    let frame = compress(raw)?;
    data.extend_from_slice(&frame);
    let sizes = (raw.len(), frame.len());
    raw.clear();
    Ok(sizes)
}

impl Encoded {
    /// How many bytes it has as it is stored.
    #[must_use]
    pub fn size(&self) -> usize {
        self.entries.len() + self.data.len()
    }

    /// How many bytes its lines have, not compressed, according to its table. `None` if the table
    /// cannot be read.
    #[must_use]
    pub fn raw_size(&self) -> Option<usize> {
        Table::decode(&self.entries).ok().map(|table| table.size())
    }

    /// Decompresses all lines.
    ///
    /// # Errors
    /// When the bytes are not such a segment.
    pub fn decode(&self) -> io::Result<Decoded> {
        let table = Table::decode(&self.entries)?;
        let frames = (0..table.frames.len()).map(|frame| table.frame(&self.data, frame));
        let frames = frames.collect::<io::Result<_>>()?;
        Ok(Decoded { table, frames })
    }
}

/// A segment's lines, decompressed.
#[derive(Debug)]
pub struct Decoded {
    table: Table,
    frames: Vec<Vec<u8>>,
}

impl Decoded {
    /// How many bytes its lines have, not compressed.
    #[must_use]
    pub fn size(&self) -> usize {
        self.table.size()
    }

    /// Its lines as part of the next flush's segment.
    fn lines(&self) -> impl Iterator<Item = Placed<'_>> {
        self.table.entries.iter().map(|entry| Placed {
            line: entry.line,
            kind: entry.kind,
            age: entry.age.saturating_add(1),
            // `Table::decode` saw that the line is within its frame.
            bytes: &self.frames[entry.frame][entry.offset..entry.offset + entry.len],
        })
    }
}

/// Where a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub line: u32,
    pub kind: Kind,
    /// By how many of the unit's flushes the line is older than its segment. The segment's flush
    /// number less this is the number of the flush that wrote the line first.
    pub age: u32,
    pub frame: usize,
    /// Of the line in its frame's raw bytes.
    pub offset: usize,
    pub len: usize,
}

/// One frame within a segment's data.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub size: usize,
    /// Of its compressed bytes in the data.
    pub start: usize,
    pub compressed: usize,
}

/// A segment's table, decoded.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub frames: Vec<Frame>,
    pub entries: Vec<Entry>,
    /// The frames are compressed with the dictionary.
    has_dictionary: bool,
}

impl Table {
    /// # Errors
    /// When the bytes are not such a table.
    pub fn decode(bytes: &[u8]) -> io::Result<Table> {
        let mut rest = bytes;
        let mut count = take(&mut rest)?;
        let has_ages = count == 0 && !rest.is_empty();
        let mut has_dictionary = false;
        if has_ages {
            match take(&mut rest)? {
                WITH_AGES => {}
                WITH_DICTIONARY => has_dictionary = true,
                _ => return Err(corrupt()),
            }
            count = take(&mut rest)?;
        }
        let mut frames = Vec::new();
        let mut start = 0;
        for _ in 0..count {
            let size = size(take(&mut rest)?)?;
            let compressed = self::size(take(&mut rest)?)?;
            frames.push(Frame {
                size,
                start,
                compressed,
            });
            start += compressed;
        }
        let mut entries = Vec::new();
        let (mut line, mut frame, mut offset) = (0_u32, 0, 0);
        while !rest.is_empty() {
            let step = u32::try_from(take(&mut rest)?).map_err(|_| corrupt())?;
            let tagged = take(&mut rest)?;
            let age = if has_ages { take(&mut rest)? } else { 0 };
            let age = u32::try_from(age).map_err(|_| corrupt())?;
            let len = size(tagged >> 1)?;
            line = line.checked_add(step).ok_or_else(corrupt)?;
            if frames.get(frame).is_some_and(|f: &Frame| offset == f.size) {
                (frame, offset) = (frame + 1, 0);
            }
            if frames.get(frame).is_none_or(|f| offset + len > f.size) {
                return Err(corrupt());
            }
            let kind = if tagged & 1 == 1 {
                Kind::Error
            } else {
                Kind::Output
            };
            entries.push(Entry {
                line,
                kind,
                age,
                frame,
                offset,
                len,
            });
            offset += len;
        }
        Ok(Table {
            frames,
            entries,
            has_dictionary,
        })
    }

    /// How many bytes the lines have, not compressed.
    #[must_use]
    pub fn size(&self) -> usize {
        self.frames.iter().map(|frame| frame.size).sum()
    }

    /// The raw bytes of one frame.
    ///
    /// # Errors
    /// When the data is not what the table says.
    pub fn frame(&self, data: &[u8], frame: usize) -> io::Result<Vec<u8>> {
        let frame = self.frames.get(frame).ok_or_else(corrupt)?;
        let compressed = data.get(frame.start..frame.start + frame.compressed);
        let compressed = compressed.ok_or_else(corrupt)?;
        if self.has_dictionary {
            DICTIONARY.decompress(compressed, frame.size)
        } else {
            super::decompress(compressed, frame.size)
        }
    }
}

fn corrupt() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a segment's table is damaged")
}

fn size(number: u64) -> io::Result<usize> {
    usize::try_from(number)
        .ok()
        .filter(|&n| n <= super::DECOMPRESSED_BYTES_MAX)
        .ok_or_else(corrupt)
}

/// A number in 7-bit groups, lowest first, as LEB128 has it.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number of variable length from the front.
fn take(rest: &mut &[u8]) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or_else(corrupt)?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(corrupt())
}

#[cfg(test)]
mod tests;

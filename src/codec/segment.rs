//! The layout of a segment: finished lines, compressed in frames, and a table of which line of
//! the chunk stands where.
//!
//! `entries` is a row of varints: the number of frames, then for each frame its size raw and
//! compressed, then for each line the step from the line before, and its length with its kind
//! in the lowest bit. `data` is the frames, one behind the other. A line never spans two frames.

use std::borrow::Borrow;
use std::io;

use crate::domain::file::Kind;

/// A frame is closed once it has this many bytes, so that a reader holds little at once.
const FRAME_BYTES: usize = 1 << 20;
/// Answers are compressed while users wait for them: the fastest of zstd's usual levels.
const LEVEL: i32 = 1;

/// A finished line: its place in the chunk, its kind, and its bytes with the line end.
#[derive(Clone, Debug)]
pub struct Line {
    pub line: u32,
    pub kind: Kind,
    pub bytes: Vec<u8>,
}

/// A segment as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    pub entries: Vec<u8>,
    pub data: Vec<u8>,
}

/// Lays out lines, or references to lines, which must be in rising order of `line`.
///
/// # Errors
/// When zstd fails.
pub fn encode(lines: &[impl Borrow<Line>]) -> io::Result<Encoded> {
    let lines = || lines.iter().map(Borrow::borrow);
    let mut frames: Vec<(usize, usize)> = Vec::new();
    let mut data = Vec::new();
    let mut raw = Vec::new();
    for line in lines() {
        if !raw.is_empty() && raw.len() + line.bytes.len() > FRAME_BYTES {
            frames.push(close(&mut raw, &mut data)?);
        }
        raw.extend_from_slice(&line.bytes);
    }
    if !raw.is_empty() {
        frames.push(close(&mut raw, &mut data)?);
    }
    let mut entries = Vec::with_capacity(8 + lines().len() * 4);
    put(&mut entries, frames.len() as u64);
    for (size, compressed) in frames {
        put(&mut entries, size as u64);
        put(&mut entries, compressed as u64);
    }
    let mut before = 0;
    for line in lines() {
        put(&mut entries, u64::from(line.line - before));
        put(
            &mut entries,
            (line.bytes.len() as u64) << 1 | u64::from(line.kind == Kind::Error),
        );
        before = line.line;
    }
    Ok(Encoded { entries, data })
}

fn close(raw: &mut Vec<u8>, data: &mut Vec<u8>) -> io::Result<(usize, usize)> {
    let frame = super::compress(raw, LEVEL)?;
    data.extend_from_slice(&frame);
    let sizes = (raw.len(), frame.len());
    raw.clear();
    Ok(sizes)
}

/// Where a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub line: u32,
    pub kind: Kind,
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
}

impl Table {
    /// # Errors
    /// When the bytes are not such a table.
    pub fn decode(bytes: &[u8]) -> io::Result<Table> {
        let mut rest = bytes;
        let mut frames = Vec::new();
        let mut start = 0;
        for _ in 0..take(&mut rest)? {
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
                frame,
                offset,
                len,
            });
            offset += len;
        }
        Ok(Table { frames, entries })
    }

    /// The raw bytes of one frame.
    ///
    /// # Errors
    /// When the data is not what the table says.
    pub fn frame(&self, data: &[u8], frame: usize) -> io::Result<Vec<u8>> {
        let frame = self.frames.get(frame).ok_or_else(corrupt)?;
        let compressed = data.get(frame.start..frame.start + frame.compressed);
        super::decompress(compressed.ok_or_else(corrupt)?, frame.size)
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_read_again(
            sizes in proptest::collection::vec((1_u32..40, any::<bool>(), 1_usize..400_000), 0..20),
        ) {
            let mut number = 0;
            let lines: Vec<Line> = sizes.iter().map(|&(step, output, len)| {
                number += step;
                let kind = if output { Kind::Output } else { Kind::Error };
                Line { line: number, kind, bytes: vec![step as u8; len] }
            }).collect();
            let segment = encode(&lines).unwrap();
            let table = Table::decode(&segment.entries).unwrap();
            prop_assert_eq!(table.entries.len(), lines.len());
            for (entry, line) in table.entries.iter().zip(&lines) {
                let frame = table.frame(&segment.data, entry.frame).unwrap();
                prop_assert_eq!((entry.line, entry.kind), (line.line, line.kind));
                prop_assert_eq!(&frame[entry.offset..entry.offset + entry.len], &line.bytes[..]);
            }
        }

        #[test]
        fn damaged_tables_are_errors_not_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Table::decode(&bytes);
        }
    }
}

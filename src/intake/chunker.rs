//! Cuts a file's bytes into chunks, and compresses them.

use std::io;
use std::mem;

use zstd::bulk::Compressor;

use super::inspector::Line;
use super::nouns::{PIECE_BYTES, Piece};
use crate::domain::file::{CHUNK_LINES_MAX, CHUNK_REQUESTS_MAX};

/// A chunk is complete with the line that brings it to so many bytes, to [`CHUNK_REQUESTS_MAX`]
/// lines that are not blank, or to [`CHUNK_LINES_MAX`] lines of any kind. Blank lines are no work,
/// so many of them are no reason for many chunks.
const CHUNK_BYTES: usize = 256 * 1024;

/// The fastest of zstd's usual levels: an upload waits for it.
const LEVEL: i32 = 1;

/// Cuts bytes into chunks. It holds the bytes that are not cut yet: whole lines, then the line that
/// has not ended.
pub(super) struct Chunker {
    /// Created with the first chunk: an empty file needs none.
    compressor: Option<Compressor<'static>>,
    bytes: Vec<u8>,
    /// Where in `bytes` the unfinished line begins.
    line_start: usize,
    /// What the next chunk will say of itself.
    no: i64,
    offset: u64,
    first_line: u64,
    lines: u32,
    /// How many of the lines are not blank.
    filled_lines: u32,
    requests: Vec<(u16, u32)>,
}

impl Chunker {
    pub fn new() -> Self {
        Self {
            compressor: None,
            bytes: Vec::new(),
            line_start: 0,
            no: 0,
            offset: 0,
            first_line: 1,
            lines: 0,
            filled_lines: 0,
            requests: Vec::new(),
        }
    }

    /// The unfinished line, as far as it has come.
    pub fn line(&self) -> &[u8] {
        &self.bytes[self.line_start..]
    }

    /// How many bytes of the file were taken, cut or not.
    pub fn taken_bytes(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// How many bytes of the file are cut.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Adds to the line. If it is long, the lines before it become a chunk of their own, so that
    /// chunks of many lines are small.
    pub fn extend_line(&mut self, bytes: &[u8], out: &mut Vec<Piece>) -> io::Result<()> {
        let held = self.bytes.len();
        if held > PIECE_BYTES && held + bytes.len() > self.bytes.capacity() {
            // `Vec` would double its capacity, which for a long line is too much at once.
            self.bytes.reserve_exact(bytes.len().max(held / 8));
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > PIECE_BYTES && self.line_start > 0 {
            self.cut(self.line_start, out)?;
        }
        Ok(())
    }

    /// Ends the line: what comes next begins another, or is the rest of one that is too long.
    pub fn end_line(&mut self, line: Line, out: &mut Vec<Piece>) -> io::Result<()> {
        self.line_start = self.bytes.len();
        self.lines += 1;
        self.filled_lines += u32::from(line != Line::Blank);
        if let Line::Request { model_no } = line {
            match self.requests.iter_mut().find(|(no, _)| *no == model_no) {
                Some((_, count)) => *count += 1,
                None => self.requests.push((model_no, 1)),
            }
        }
        if self.bytes.len() >= CHUNK_BYTES
            || self.filled_lines >= CHUNK_REQUESTS_MAX
            || self.lines >= CHUNK_LINES_MAX
        {
            self.cut_all(out)?;
        }
        Ok(())
    }

    /// Adds bytes that belong to no line as far as they fit, and says how many did. What is full
    /// is cut.
    pub fn fill(&mut self, bytes: &[u8], out: &mut Vec<Piece>) -> io::Result<usize> {
        let room = PIECE_BYTES.saturating_sub(self.bytes.len());
        let taken = room.min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.line_start = self.bytes.len();
        if self.bytes.len() >= PIECE_BYTES {
            self.cut_all(out)?;
        }
        Ok(taken)
    }

    /// Ends the rest of a line that is too long. A chunk that begins within the line ends with it:
    /// so every other chunk begins with a line of its own, and its lines can be counted. A chunk
    /// that began before the line goes on, so that many such lines are not many chunks.
    pub fn end_long_line(&mut self, out: &mut Vec<Piece>) -> io::Result<()> {
        self.line_start = self.bytes.len();
        if self.lines == 0 || self.bytes.len() >= CHUNK_BYTES {
            self.cut_all(out)?;
        }
        Ok(())
    }

    /// Makes a chunk of all there is, if there is anything.
    pub fn cut_all(&mut self, out: &mut Vec<Piece>) -> io::Result<()> {
        self.line_start = self.bytes.len();
        self.cut(self.bytes.len(), out)
    }

    /// Makes a chunk of the first bytes, and all lines that have ended.
    fn cut(&mut self, length: usize, out: &mut Vec<Piece>) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            empty => empty.insert(Compressor::new(LEVEL)?),
        };
        let mut lines = mem::take(&mut self.lines);
        self.filled_lines = 0;
        let mut requests = mem::take(&mut self.requests);
        let (mut chunk_bytes, first_line) = (length as u64, self.first_line);
        self.first_line += u64::from(lines);
        for (piece_no, raw) in (0..).zip(self.bytes[..length].chunks(PIECE_BYTES)) {
            let mut data = compressor.compress(raw)?;
            // The compressor reserves room for bytes that it cannot make smaller. Chunks wait in
            // memory until they are written, so that room is given back.
            data.shrink_to_fit();
            out.push(Piece {
                chunk_no: self.no,
                piece_no,
                offset: self.offset,
                first_line,
                lines: mem::take(&mut lines),
                bytes: raw.len() as u32,
                data,
                requests: mem::take(&mut requests),
                chunk_bytes: mem::take(&mut chunk_bytes),
            });
            self.offset += raw.len() as u64;
        }
        self.no += 1;
        self.bytes.drain(..length);
        self.line_start -= length;
        // Memory that a long line needed is not held for the rest of the file.
        self.bytes.shrink_to(2 * PIECE_BYTES);
        Ok(())
    }
}

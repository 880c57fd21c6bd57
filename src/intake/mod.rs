//! Takes in an uploaded file: bytes in any pieces become compressed chunks and, for a batch file,
//! a report of what is in its lines.
//!
//! It is CPU and a little temporary disk: no async, so run it on a thread that may block. In
//! memory it holds one chunk and one line, however long the file is. What comes out depends on
//! the bytes alone, not on how they were pushed.

mod chunker;
mod duplicates;
mod inspector;
mod nouns;

use std::io;

use memchr::memchr;

pub use nouns::{Contents, Limits, MayHold, ModelReport, Piece, Report, Suspect};

use chunker::Chunker;
use inspector::{Inspector, Line};

/// An upload on its way in.
pub struct Intake {
    max_line_bytes: usize,
    mode: Mode,
    chunker: Chunker,
    inspector: Inspector,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Lines are held until they end, and checked.
    Lines,
    /// Within a line that is too long: it has been found wrong, and is not held any more.
    LongLine,
    /// Not a batch file: nothing is known of lines.
    Unchecked,
}

impl Intake {
    /// An empty file so far.
    #[must_use]
    pub fn new(limits: Limits, contents: Contents) -> Self {
        Self::within(limits, contents, Box::new(|_| true))
    }

    /// The same, where `may_hold` decides how much memory the hashes of ids may take.
    #[must_use]
    pub fn within(limits: Limits, contents: Contents, may_hold: MayHold) -> Self {
        Self {
            max_line_bytes: limits.max_line_bytes,
            mode: match contents {
                Contents::Requests => Mode::Lines,
                Contents::Opaque => Mode::Unchecked,
            },
            chunker: Chunker::new(),
            inspector: Inspector::new(limits.max_models, limits.endpoints, may_hold),
        }
    }

    /// Takes the file's next bytes, and adds the chunks that they complete to `out`.
    ///
    /// # Errors
    /// When something cannot be compressed, or written to temporary disk.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Piece>) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.mode {
                Mode::Lines => self.take_line(rest, out)?,
                Mode::LongLine => self.take_long_line(rest, out)?,
                Mode::Unchecked => self.chunker.fill(rest, out)?,
            };
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Does not look into the file's lines. To be called before the first bytes.
    pub fn leave_unchecked(&mut self) {
        self.mode = Mode::Unchecked;
    }

    /// How many bytes were taken so far.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.chunker.taken_bytes()
    }

    /// How many bytes of a line are held because it has not ended.
    #[must_use]
    pub fn line_bytes(&self) -> usize {
        self.chunker.line().len()
    }

    /// Ends the file: its last line needs no line end.
    ///
    /// # Errors
    /// As of [`Intake::push`].
    pub fn finish(mut self, out: &mut Vec<Piece>) -> io::Result<Report> {
        if self.mode == Mode::Lines && !self.chunker.line().is_empty() {
            self.end_line(out)?;
        }
        self.chunker.cut_all(out)?;
        let mut report = self.inspector.finish()?;
        report.bytes = self.chunker.offset();
        Ok(report)
    }

    /// Takes bytes up to the end of the line, or until it is too long; says how many.
    fn take_line(&mut self, bytes: &[u8], out: &mut Vec<Piece>) -> io::Result<usize> {
        // One byte beyond the limit shows that the line is too long, unless it is the line end.
        let room = self.max_line_bytes.saturating_add(1) - self.chunker.line().len();
        let window = &bytes[..room.min(bytes.len())];
        let end = memchr(b'\n', window);
        let taken = end.map_or(window.len(), |end| end + 1);
        self.chunker.extend_line(&window[..taken], out)?;
        if end.is_some() {
            self.end_line(out)?;
        } else if taken == room {
            self.inspector.long_line(self.max_line_bytes);
            self.chunker.end_line(Line::Faulty, out)?;
            self.mode = Mode::LongLine;
        }
        Ok(taken)
    }

    /// Takes bytes of a line that is too long, up to its end; says how many.
    fn take_long_line(&mut self, bytes: &[u8], out: &mut Vec<Piece>) -> io::Result<usize> {
        let end = memchr(b'\n', bytes).map(|end| end + 1);
        let window = &bytes[..end.unwrap_or(bytes.len())];
        let taken = self.chunker.fill(window, out)?;
        if end == Some(taken) {
            self.chunker.end_long_line(out)?;
            self.mode = Mode::Lines;
        }
        Ok(taken)
    }

    fn end_line(&mut self, out: &mut Vec<Piece>) -> io::Result<()> {
        let line = self.inspector.line(self.chunker.line())?;
        self.chunker.end_line(line, out)
    }
}

#[cfg(test)]
mod tests;

//! What a batch's segments and tails come to, counted line by line. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::codec::segment::{Entry, Table};
use crate::domain::file::{CHUNK_LINES_MAX, Kind};
use crate::domain::json;
use crate::domain::unit::Bitmap;
use crate::domain::usage::{self, Usage};

/// Something of each of a batch's two kinds of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ByKind {
    pub output: i64,
    pub error: i64,
}

impl ByKind {
    pub fn add(&mut self, kind: Kind, number: i64) {
        *match kind {
            Kind::Output => &mut self.output,
            Kind::Error => &mut self.error,
        } += number;
    }

    pub fn of(self, kind: Kind) -> i64 {
        match kind {
            Kind::Output => self.output,
            Kind::Error => self.error,
        }
    }
}

/// What the segments and the tail of one unit hold.
#[derive(Debug, Default)]
pub(super) struct UnitLines {
    pub done: Bitmap,
    pub bytes: ByKind,
    /// The numbers of the flushes that wrote its lines.
    pub flushes: BTreeSet<i64>,
}

impl UnitLines {
    /// Whether its flushes are numbered from 1 on without a gap.
    pub fn is_contiguous(&self) -> bool {
        let last = self.flushes.last().copied().unwrap_or(0);
        self.flushes.first().is_none_or(|&first| first == 1) && last == self.flushes.len() as i64
    }
}

/// What the segments and tails of one chunk hold.
#[derive(Debug, Default)]
pub(super) struct ChunkLines {
    done: Bitmap,
    pub lines: ByKind,
    pub bytes: ByKind,
    pub units: BTreeMap<i64, UnitLines>,
}

impl ChunkLines {
    /// Counts the lines of a segment or a tail in, by its table. Lines that must not be there come
    /// back.
    pub fn add(&mut self, model_no: i64, flush_no: i64, table: &Table) -> Vec<String> {
        let unit = self.units.entry(model_no).or_default();
        let mut faults = Vec::new();
        for entry in &table.entries {
            if entry.line >= CHUNK_LINES_MAX {
                faults.push(format!("line {} is in no chunk", entry.line));
                continue;
            }
            if !self.done.insert(entry.line) {
                faults.push(format!("line {} is there twice", entry.line));
            }
            unit.done.insert(entry.line);
            unit.flushes.insert(flush_no - i64::from(entry.age));
            let len = entry.len as i64;
            self.lines.add(entry.kind, 1);
            self.bytes.add(entry.kind, len);
            unit.bytes.add(entry.kind, len);
        }
        faults
    }
}

/// Reads all of a segment's data: every frame, every line. Adds up the usage that its answers
/// report.
///
/// # Errors
/// When the data is not what the table says.
pub(super) fn read(table: &Table, data: &[u8]) -> io::Result<Usage> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut usage = Usage::default();
    let mut lines = table.entries.as_slice();
    for (number, frame) in table.frames.iter().enumerate() {
        let raw = table.frame(data, number)?;
        let of_frame = lines.iter().take_while(|line| line.frame == number);
        let (these, rest) = lines.split_at(of_frame.count());
        lines = rest;
        if these.iter().map(|line| line.len).sum::<usize>() != frame.size {
            return Err(damaged("a frame has bytes that belong to no line"));
        }
        for line in these {
            let text = text(&raw, line).ok_or_else(|| damaged("a line is no text"))?;
            usage += usage_of(text).ok_or_else(|| damaged("a line is no JSON object"))?;
        }
    }
    let last = table.frames.last();
    if last.map_or(0, |frame| frame.start + frame.compressed) != data.len() {
        return Err(damaged("it has bytes that belong to no frame"));
    }
    Ok(usage)
}

/// A line without its line end.
fn text<'a>(raw: &'a [u8], line: &Entry) -> Option<&'a str> {
    let bytes = raw.get(line.offset..line.offset + line.len)?;
    std::str::from_utf8(bytes.strip_suffix(b"\n")?).ok()
}

/// What a line of an output or error file adds to its batch's usage: what it reports, or nothing
/// where it got the answer of another line.
fn usage_of(line: &str) -> Option<Usage> {
    let (mut response, mut body, mut extension) = ("null", "null", "null");
    json::members(line, |key, value| match key {
        "response" => response = value,
        "nightshift" => extension = value,
        _ => {}
    })?;
    let mut is_cached = false;
    json::members(extension, |key, value| {
        is_cached |= key == "cached" && value == "true";
    });
    if is_cached {
        return Some(Usage::default());
    }
    json::members(response, |key, value| {
        if key == "body" {
            body = value;
        }
    });
    let usage = usage::read(body.as_bytes()).unwrap_or_default();
    // A batch does not count what was written to a cache by itself.
    Some(Usage {
        cache_written_tokens: 0,
        ..usage
    })
}

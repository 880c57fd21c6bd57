//! What becomes of the finished lines of a unit: a segment, or the unit's tail as long as they are
//! not worth a segment.

use std::io;

use crate::codec::segment::{self, Encoded, Line};

/// A tail is no larger than this, as it is stored. Then a unit's row has at most half of a page of
/// Postgres, and its next version has its place beside it; and on SQLite the row needs no second
/// page. The same is true of the row of the segment that the tail becomes. A larger tail would be
/// written again more often before it becomes a segment.
const TAIL_BYTES_MAX: usize = 3_700;
/// A tail of so many bytes is worth a segment of its own, where the new lines are at most such a
/// part of all: otherwise a segment of both is one row instead of two.
const TAIL_BYTES_FULL: usize = 3_000;
const FEW_OF_ALL: usize = 4;
/// A tail has at most so many bytes when it is decompressed, which each flush does.
const TAIL_RAW_BYTES_MAX: usize = 64 << 10;

/// What a flush writes of a unit's finished lines.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub tail: Option<Encoded>,
    pub segment: Option<Encoded>,
    /// The tail as it was, which becomes a segment by itself because the new lines have no place in
    /// it, or because it cannot be read.
    pub closed_tail: Option<Encoded>,
}

/// Puts lines to a unit's tail. `is_last`: the unit has no other line left.
///
/// # Errors
/// When zstd fails.
pub(super) fn settle(tail: Option<Encoded>, lines: &[&Line], is_last: bool) -> io::Result<Settled> {
    let mut settled = Settled::default();
    let added: usize = lines.iter().map(|line| line.bytes.len()).sum();
    let mut raw = added;
    let mut earlier = None;
    if let Some(tail) = &tail {
        match tail.decode() {
            Ok(decoded) => {
                raw += decoded.size();
                earlier = Some(decoded);
            }
            Err(error) => {
                tracing::error!(%error, "a unit's tail is damaged; its lines cannot be read");
                settled.closed_tail = Some(tail.clone());
            }
        }
    }
    let is_too_large =
        |raw: usize, encoded: &Encoded| raw > TAIL_RAW_BYTES_MAX || encoded.size() > TAIL_BYTES_MAX;
    let mut rest = match &earlier {
        Some(earlier) => segment::merge(earlier, lines)?,
        None => segment::encode(lines)?,
    };
    if is_too_large(raw, &rest) {
        let are_few = earlier.is_some() && added * FEW_OF_ALL <= raw;
        let full = tail.filter(|tail| are_few && tail.size() >= TAIL_BYTES_FULL);
        let alone = full.is_some().then(|| segment::encode(lines)).transpose()?;
        match alone {
            // A segment that is no larger than a tail has its place beside another on a page.
            Some(alone) if !is_too_large(added, &alone) => {
                settled.closed_tail = full;
                rest = alone;
            }
            _ => {
                settled.segment = Some(rest);
                return Ok(settled);
            }
        }
    }
    if is_last {
        settled.segment = Some(rest);
    } else {
        settled.tail = Some(rest);
    }
    Ok(settled)
}

#[cfg(test)]
mod tests;

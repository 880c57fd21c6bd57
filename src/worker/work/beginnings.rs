//! How the lines of a unit begin, where lines that begin alike are sent one after the other.

use bytes::Bytes;

use super::line::OpenLine;
use crate::domain::beginning::beginning;
use crate::domain::line;

/// How lines begin, in the order of their numbers: see [`beginning`].
#[derive(Debug, Default)]
pub(crate) struct Beginnings(Vec<(u32, u64)>);

impl Beginnings {
    /// Reads the lines, and puts them in the order of their beginnings. Lines that begin alike stay
    /// in the order of the file.
    pub(super) fn of(text: &Bytes, lines: &mut [OpenLine]) -> Self {
        let begins = |line: &OpenLine| (line.index, read(text, line).unwrap_or_default());
        let beginnings = Self(lines.iter().map(begins).collect());
        lines.sort_by_cached_key(|line| beginnings.get(line));
        beginnings
    }

    /// How a line begins.
    pub(crate) fn get(&self, line: &OpenLine) -> u64 {
        let found = self
            .0
            .binary_search_by_key(&line.index, |(index, _)| *index);
        found.map_or(0, |place| self.0[place].1)
    }
}

fn read(text: &Bytes, line: &OpenLine) -> Option<u64> {
    let line = std::str::from_utf8(text.get(line.range.clone())?).ok()?;
    Some(beginning(line::read(line)?.body))
}

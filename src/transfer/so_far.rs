//! The finished lines of a batch, of one kind and in input order, while the batch runs.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::stream::{self, Stream};

use super::chunk::{Chunk, FETCHED_BYTES_MAX};
use crate::domain::file::Kind;
use crate::store::{Result, Store};

/// One statement looks up the tables of so many chunks, to find lines.
const SURVEYED: usize = 64;
/// One statement looks up so many chunks, to read their lines.
const READ: usize = 16;

/// Which lines of a batch are wanted. A line's number is its number in the input file, from 1.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub batch_id: String,
    pub input_file_id: String,
    pub kind: Kind,
    /// Lines behind this one.
    pub after: u64,
    /// At most so many. `None`: all.
    pub limit: Option<usize>,
}

/// The lines that were finished when it was looked.
#[derive(Debug)]
pub struct SoFar {
    /// The number of the last line. `None`: there is no line.
    pub last: Option<u64>,
    /// Whether no finished line was behind the last one.
    pub is_whole: bool,
    wanted: Wanted,
    /// Chunks that are not read yet: the number and the first line of each.
    chunks: VecDeque<(i64, u64)>,
    /// The numbers of the lines, where their number is limited.
    only: Option<Vec<u64>>,
}

impl SoFar {
    /// Looks which lines are finished. `None` where the input file is gone, and with it the numbers
    /// of its lines.
    ///
    /// # Errors
    /// When the database fails, or what is stored is damaged.
    pub async fn look(store: &Store, wanted: Wanted) -> Result<Option<SoFar>> {
        let chunks = store.first_lines(&wanted.input_file_id).await?;
        if chunks.is_empty() {
            return Ok(None);
        }
        let chunks = chunks.into_iter();
        let chunks: Vec<(i64, u64)> = chunks
            .map(|(chunk, first)| (chunk, first.unsigned_abs()))
            .collect();
        let begins = chunks.partition_point(|(_, first)| *first <= wanted.after.saturating_add(1));
        let chunks = &chunks[begins.saturating_sub(1)..];
        let mut found = SoFar {
            last: None,
            is_whole: true,
            chunks: VecDeque::new(),
            only: None,
            wanted,
        };
        if let Some(limit) = found.wanted.limit {
            found.find_first(store, chunks, limit).await?;
        } else {
            found.find_last(store, chunks).await?;
        }
        let Some(last) = found.last else {
            return Ok(Some(found));
        };
        let chunks = chunks.iter().filter(|(_, first)| *first <= last);
        found.chunks = chunks.copied().collect();
        Ok(Some(found))
    }

    /// Finds the first lines.
    async fn find_first(
        &mut self,
        store: &Store,
        chunks: &[(i64, u64)],
        limit: usize,
    ) -> Result<()> {
        let mut lines = Vec::new();
        'look: for group in chunks.chunks(SURVEYED) {
            for (first, chunk) in self.wanted.open(store, group, 0).await? {
                for number in chunk.places().map(|place| first + u64::from(place)) {
                    if number <= self.wanted.after {
                        continue;
                    }
                    if lines.len() == limit {
                        self.is_whole = false;
                        break 'look;
                    }
                    lines.push(number);
                }
            }
        }
        self.last = lines.last().copied();
        self.only = Some(lines);
        Ok(())
    }

    /// Finds the last line. Lines that are finished before it meanwhile are given out, too.
    async fn find_last(&mut self, store: &Store, chunks: &[(i64, u64)]) -> Result<()> {
        for group in chunks.rchunks(SURVEYED) {
            for (first, chunk) in self.wanted.open(store, group, 0).await?.into_iter().rev() {
                let last = chunk.places().next_back();
                let last = last.map(|place| first + u64::from(place));
                if let Some(last) = last.filter(|last| *last > self.wanted.after) {
                    self.last = Some(last);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The bytes of the lines, in blocks of about 1 MiB at most. A longer line is one block. No
    /// connection is held between two blocks.
    pub fn blocks(self, store: Store) -> impl Stream<Item = Result<Bytes>> + Send {
        let reading = Reading {
            store,
            of: self,
            open: VecDeque::new(),
        };
        stream::try_unfold(reading, |mut reading| async move {
            let block = reading.next().await?;
            Ok(block.map(|block| (block, reading)))
        })
    }
}

impl Wanted {
    /// Looks up where the lines of some chunks stand: for each chunk its first line with it.
    async fn open(
        &self,
        store: &Store,
        chunks: &[(i64, u64)],
        data_max: usize,
    ) -> Result<Vec<(u64, Chunk)>> {
        let (Some((from, _)), Some((to, _))) = (chunks.first(), chunks.last()) else {
            return Ok(Vec::new());
        };
        let mut found = Chunk::segments(store, &self.batch_id, *from..=*to, data_max).await?;
        let chunks = chunks.iter().filter_map(|(number, first)| {
            let segments = found.remove(number)?;
            let chunk = Chunk::open(&self.batch_id, *number, Some(self.kind), segments);
            Some(chunk.map(|chunk| (*first, chunk)))
        });
        chunks.collect()
    }
}

/// How far the lines are read.
struct Reading {
    store: Store,
    of: SoFar,
    open: VecDeque<Chunk>,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            while let Some(chunk) = self.open.front_mut() {
                if let Some(block) = chunk.next(&self.store, usize::MAX).await? {
                    return Ok(Some(block));
                }
                self.open.pop_front();
            }
            let group = READ.min(self.of.chunks.len());
            if group == 0 {
                return Ok(None);
            }
            let group: Vec<(i64, u64)> = self.of.chunks.drain(..group).collect();
            let wanted = &self.of.wanted;
            let opened = wanted.open(&self.store, &group, FETCHED_BYTES_MAX);
            for (first, mut chunk) in opened.await? {
                chunk.retain(|place| self.of.has(first + u64::from(place)));
                self.open.push_back(chunk);
            }
        }
    }
}

impl SoFar {
    fn has(&self, number: u64) -> bool {
        match &self.only {
            Some(only) => only.binary_search(&number).is_ok(),
            None => number > self.wanted.after && self.last.is_some_and(|last| number <= last),
        }
    }
}

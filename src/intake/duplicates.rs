//! Finds lines that probably have the `custom_id` of an earlier line, in bounded memory: only a
//! keyed hash of each id is kept, in sorted runs on temporary disk where there are many. Equal
//! ids have equal hashes, so none is missed; that the ids are equal is for the caller to confirm.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

/// How many suspects are reported, and how many earlier lines of each.
const MAX_REPORTED: usize = 128;
/// How many hashes are held before they go to disk: 4 MiB of them.
const HELD: usize = 256 * 1024;
/// How much of a run is read at once: a whole number of entries.
const READ_BYTES: u64 = 16 * 1024;

/// A line whose `custom_id` has the hash of earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub line: u64,
    /// The first 128 earlier lines with that hash, ascending.
    pub earlier: Vec<u64>,
}

/// The hash of an id, and its line.
type Entry = (u64, u64);
const ENTRY_BYTES: usize = size_of::<Entry>();

/// The ids seen so far. It holds `CAPACITY` of them in memory.
pub(super) struct Duplicates<S = RandomState, const CAPACITY: usize = HELD> {
    hasher: S,
    held: Vec<Entry>,
    spilled: Option<Spilled>,
}

impl<S: BuildHasher, const CAPACITY: usize> Duplicates<S, CAPACITY> {
    pub fn new(hasher: S) -> Self {
        Self {
            hasher,
            held: Vec::new(),
            spilled: None,
        }
    }

    /// Adds a line's id. Fails if temporary disk cannot be written.
    pub fn insert(&mut self, custom_id: &str, line: u64) -> io::Result<()> {
        if self.held.len() >= CAPACITY {
            self.spill()?;
        }
        self.held.push((self.hasher.hash_one(custom_id), line));
        Ok(())
    }

    /// The suspects with the smallest line numbers, ascending. Fails if temporary disk cannot be
    /// read.
    pub fn finish(mut self) -> io::Result<Vec<Suspect>> {
        if self.spilled.is_some() {
            self.spill()?;
        }
        self.held.sort_unstable();
        let mut groups = Groups::default();
        match self.spilled {
            Some(spilled) => spilled.merge(|entry| groups.add(entry))?,
            None => self.held.into_iter().for_each(|entry| groups.add(entry)),
        }
        Ok(groups.into_suspects())
    }

    fn spill(&mut self) -> io::Result<()> {
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            empty => empty.insert(Spilled::new()?),
        };
        self.held.sort_unstable();
        spilled.push_run(&self.held)?;
        self.held.clear();
        Ok(())
    }
}

/// Sorted runs, one behind the other in a file without a name.
struct Spilled {
    file: File,
    /// Where each run ends; the next one begins there.
    ends: Vec<u64>,
}

impl Spilled {
    fn new() -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile()?,
            ends: Vec::new(),
        })
    }

    fn push_run(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut file = BufWriter::new(&self.file);
        for (hash, line) in entries {
            file.write_all(&hash.to_le_bytes())?;
            file.write_all(&line.to_le_bytes())?;
        }
        file.flush()?;
        let start = self.ends.last().copied().unwrap_or_default();
        self.ends.push(start + (entries.len() * ENTRY_BYTES) as u64);
        Ok(())
    }

    /// Shows all entries of all runs in order.
    fn merge(&self, mut each: impl FnMut(Entry)) -> io::Result<()> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let mut runs: Vec<Run> = starts
            .zip(&self.ends)
            .map(|(start, &end)| Run::new(start, end))
            .collect();
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (no, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next(&self.file)?.map(|entry| Reverse((entry, no))));
        }
        while let Some(Reverse((entry, no))) = heads.pop() {
            each(entry);
            heads.extend(runs[no].next(&self.file)?.map(|entry| Reverse((entry, no))));
        }
        Ok(())
    }
}

/// A run that is being read.
struct Run {
    /// What of it has not been read from the file.
    start: u64,
    end: u64,
    buffer: Vec<u8>,
    /// What of the buffer has been shown.
    shown: usize,
}

impl Run {
    fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            buffer: Vec::new(),
            shown: 0,
        }
    }

    fn next(&mut self, mut file: &File) -> io::Result<Option<Entry>> {
        if self.shown == self.buffer.len() {
            let length = (self.end - self.start).min(READ_BYTES);
            self.buffer.resize(length as usize, 0);
            self.shown = 0;
            file.seek(SeekFrom::Start(self.start))?;
            file.read_exact(&mut self.buffer)?;
            self.start += length;
        }
        let entry = self.buffer[self.shown..].split_first_chunk();
        Ok(entry.and_then(|(&hash, rest)| {
            self.shown += ENTRY_BYTES;
            let line = *rest.first_chunk()?;
            Some((u64::from_le_bytes(hash), u64::from_le_bytes(line)))
        }))
    }
}

/// Entries in order, seen as groups of one hash.
#[derive(Default)]
struct Groups {
    hash: u64,
    /// The first lines of the group.
    lines: Vec<u64>,
    /// The smallest suspects of all groups, with their earlier lines.
    suspects: BTreeMap<u64, Vec<u64>>,
}

impl Groups {
    fn add(&mut self, (hash, line): Entry) {
        if self.hash != hash {
            self.hash = hash;
            self.lines.clear();
        }
        if !self.lines.is_empty() && self.wants(line) {
            self.suspects.insert(line, self.lines.clone());
            if self.suspects.len() > MAX_REPORTED {
                self.suspects.pop_last();
            }
        }
        if self.lines.len() < MAX_REPORTED {
            self.lines.push(line);
        }
    }

    fn wants(&self, line: u64) -> bool {
        let last = self.suspects.last_key_value();
        self.suspects.len() < MAX_REPORTED || last.is_some_and(|(&last, _)| line < last)
    }

    fn into_suspects(self) -> Vec<Suspect> {
        let suspects = self.suspects.into_iter();
        suspects
            .map(|(line, earlier)| Suspect { line, earlier })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::hash::{BuildHasherDefault, Hasher};

    use proptest::prelude::*;

    use super::*;

    /// Hashes all ids of one length alike.
    #[derive(Default)]
    struct Length(u64);

    impl Hasher for Length {
        fn write(&mut self, bytes: &[u8]) {
            self.0 += bytes.len() as u64;
        }

        fn finish(&self) -> u64 {
            self.0
        }
    }

    type Colliding = BuildHasherDefault<Length>;

    fn suspects<S: BuildHasher, const CAPACITY: usize>(
        hasher: S,
        ids: &[impl AsRef<str>],
    ) -> Vec<Suspect> {
        let mut duplicates = Duplicates::<S, CAPACITY>::new(hasher);
        for (line, id) in (1..).zip(ids) {
            duplicates.insert(id.as_ref(), line).expect("inserted");
        }
        duplicates.finish().expect("finished")
    }

    /// The same, with everything remembered.
    fn expected<K: std::hash::Hash + Eq>(keys: impl IntoIterator<Item = K>) -> Vec<Suspect> {
        let mut seen: HashMap<K, Vec<u64>> = HashMap::new();
        let mut suspects = Vec::new();
        for (line, key) in (1..).zip(keys) {
            let lines = seen.entry(key).or_default();
            if !lines.is_empty() {
                let earlier = lines.iter().copied().take(MAX_REPORTED).collect();
                suspects.push(Suspect { line, earlier });
            }
            lines.push(line);
        }
        suspects.truncate(MAX_REPORTED);
        suspects
    }

    #[test]
    fn few_ids_stay_in_memory() {
        let mut duplicates: Duplicates = Duplicates::new(RandomState::new());
        for line in 1..1000 {
            duplicates.insert("same", line).expect("inserted");
        }
        assert!(duplicates.spilled.is_none());
    }

    #[test]
    fn many_ids_in_runs_longer_than_a_read_are_merged() {
        let ids: Vec<String> = (0..50_000).map(|no| (no % 49_800).to_string()).collect();
        let found = suspects::<_, 7_000>(RandomState::new(), &ids);
        assert_eq!(found, expected(&ids));
        assert_eq!(found.len(), MAX_REPORTED);
        assert_eq!(
            found[0],
            Suspect {
                line: 49_801,
                earlier: vec![1]
            }
        );
    }

    #[test]
    fn a_group_without_end_keeps_its_first_lines() {
        let ids = vec!["same"; 1000];
        let found = suspects::<_, 64>(RandomState::new(), &ids);
        assert_eq!(found, expected(&ids));
        assert_eq!(
            found[127],
            Suspect {
                line: 129,
                earlier: (1..=128).collect()
            }
        );
    }

    proptest! {
        #[test]
        fn equal_ids_are_suspects(ids in proptest::collection::vec("[a-c]{0,4}", 0..300)) {
            let expected = expected(&ids);
            prop_assert_eq!(&suspects::<_, HELD>(RandomState::new(), &ids), &expected);
            prop_assert_eq!(&suspects::<_, 7>(RandomState::new(), &ids), &expected);
        }

        #[test]
        fn equal_hashes_are_suspects(ids in proptest::collection::vec("[a-c]{0,9}", 0..300)) {
            let expected = expected(ids.iter().map(String::len));
            prop_assert_eq!(&suspects::<_, HELD>(Colliding::default(), &ids), &expected);
            prop_assert_eq!(&suspects::<_, 7>(Colliding::default(), &ids), &expected);
        }
    }
}

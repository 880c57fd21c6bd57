//! Finds lines that probably have the `custom_id` of an earlier line: the *suspects*. Memory is
//! bounded: only a keyed hash of each id is kept, and where there are many, the hashes go to
//! temporary disk, in sorted runs. Equal ids have equal hashes, so no line is missed. Whether the
//! ids are really equal is for the caller to confirm.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem;
use std::ops::Range;

use super::nouns::{MayHold, Suspect};

/// How many suspects are reported at most, and how many earlier lines for each.
const REPORTED_MAX: usize = 128;
/// How many entries are held in memory at most (4 MiB) before they are spilled to disk.
const HELD_MAX: usize = 256 * 1024;
/// How many entries are held in any case (64 KiB). For more, [`MayHold`] is asked.
const UNASKED_MAX: usize = 4096;
/// How many bytes of a run are read at once: a whole number of entries.
const READ_BYTES: u64 = 4 * 1024;
/// How many bytes of a run are written at once.
const WRITE_BYTES: usize = 64 * 1024;
/// When there are so many runs of about one length, they are merged into a longer run. That leaves
/// few runs to be read together at the end, however short they were when they were spilled.
const RUNS_OF_A_LENGTH: usize = 64;

/// The hash of an id, and the line that has the id.
type Entry = (u64, u64);
const ENTRY_BYTES: usize = size_of::<Entry>();

/// The ids seen so far. It holds at most `CAPACITY` of them in memory, or as many as [`MayHold`]
/// allows.
pub(super) struct Duplicates<S = RandomState, const CAPACITY: usize = HELD_MAX> {
    hasher: S,
    held: Vec<Entry>,
    /// How many entries may be held in memory now.
    room: usize,
    may_hold: MayHold,
    spilled: Option<Spilled>,
}

impl<S: BuildHasher, const CAPACITY: usize> Duplicates<S, CAPACITY> {
    pub fn new(hasher: S, may_hold: MayHold) -> Self {
        Self {
            hasher,
            held: Vec::new(),
            room: CAPACITY.min(UNASKED_MAX),
            may_hold,
            spilled: None,
        }
    }

    /// Adds a line's id.
    ///
    /// # Errors
    /// When temporary disk cannot be written.
    pub fn insert(&mut self, custom_id: &str, line: u64) -> io::Result<()> {
        if self.held.len() >= self.room && !self.grow() {
            self.spill()?;
        }
        self.held.push((self.hasher.hash_one(custom_id), line));
        Ok(())
    }

    /// The suspects with the smallest line numbers, ascending.
    ///
    /// # Errors
    /// When temporary disk cannot be written or read.
    pub fn finish(mut self) -> io::Result<Vec<Suspect>> {
        let mut groups = Groups::default();
        if self.spilled.is_some() {
            self.spill()?;
            self.held = Vec::new();
        }
        self.held.sort_unstable();
        match &self.spilled {
            Some(spilled) => spilled.merge(&spilled.runs(), |entry| {
                groups.add(entry);
                Ok(())
            })?,
            None => self.held.into_iter().for_each(|entry| groups.add(entry)),
        }
        Ok(groups.into_suspects())
    }

    /// Doubles the room, if [`MayHold`] and `CAPACITY` allow it. False if they do not.
    fn grow(&mut self) -> bool {
        let more = (self.room * 2).min(CAPACITY);
        let grows = more > self.room && (self.may_hold)(more * ENTRY_BYTES);
        if grows {
            self.room = more;
            self.held.reserve_exact(more - self.held.len());
        }
        grows
    }

    /// Writes all entries in memory to disk, as one sorted run.
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

/// Sorted runs in a file without a name.
struct Spilled {
    file: File,
    /// Where the file ends.
    end: u64,
    /// Where each run stands in the file. Level 0 has the runs as they were spilled. Each run of a
    /// higher level was merged from [`RUNS_OF_A_LENGTH`] runs of the level below it.
    levels: Vec<Vec<Range<u64>>>,
}

impl Spilled {
    fn new() -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile()?,
            end: 0,
            levels: Vec::new(),
        })
    }

    /// All runs of all levels, as ranges of bytes in the file.
    fn runs(&self) -> Vec<Range<u64>> {
        self.levels.iter().flatten().cloned().collect()
    }

    /// Writes a run, and merges the runs of each level that is full.
    fn push_run(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut writer = Writer::new(&self.file, self.end);
        for entry in entries {
            writer.push(*entry)?;
        }
        let mut run = writer.finish()?;
        self.end = run.end;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let runs = &mut self.levels[level];
            runs.push(run);
            if runs.len() < RUNS_OF_A_LENGTH {
                break;
            }
            let runs = mem::take(runs);
            let mut writer = Writer::new(&self.file, self.end);
            self.merge(&runs, |entry| writer.push(entry))?;
            run = writer.finish()?;
            self.end = run.end;
        }
        Ok(())
    }

    /// Calls `each` with every entry of these runs, in the order of all entries.
    fn merge(
        &self,
        runs: &[Range<u64>],
        mut each: impl FnMut(Entry) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut runs: Vec<Run> = runs.iter().map(Run::new).collect();
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (no, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next(&self.file)?.map(|entry| Reverse((entry, no))));
        }
        while let Some(Reverse((entry, no))) = heads.pop() {
            each(entry)?;
            heads.extend(runs[no].next(&self.file)?.map(|entry| Reverse((entry, no))));
        }
        Ok(())
    }
}

/// A run that is being written, while others may be read from the same file.
struct Writer<'a> {
    file: &'a File,
    run: Range<u64>,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, start: u64) -> Self {
        Self {
            file,
            run: start..start,
            buffer: Vec::with_capacity(WRITE_BYTES),
        }
    }

    fn push(&mut self, (hash, line): Entry) -> io::Result<()> {
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(&hash.to_le_bytes());
        self.buffer.extend_from_slice(&line.to_le_bytes());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.run.end))?;
        self.file.write_all(&self.buffer)?;
        self.run.end += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<Range<u64>> {
        self.flush()?;
        Ok(self.run)
    }
}

/// A run that is being read.
struct Run {
    /// From `start` to `end` the run has not been read from the file.
    start: u64,
    end: u64,
    buffer: Vec<u8>,
    /// How many bytes of the buffer were returned as entries.
    returned: usize,
}

impl Run {
    fn new(run: &Range<u64>) -> Self {
        Self {
            start: run.start,
            end: run.end,
            buffer: Vec::new(),
            returned: 0,
        }
    }

    /// The next entry; `None` at the end of the run.
    fn next(&mut self, mut file: &File) -> io::Result<Option<Entry>> {
        if self.returned == self.buffer.len() {
            let length = (self.end - self.start).min(READ_BYTES);
            self.buffer.resize(length as usize, 0);
            self.returned = 0;
            file.seek(SeekFrom::Start(self.start))?;
            file.read_exact(&mut self.buffer)?;
            self.start += length;
        }
        let entry = self.buffer[self.returned..].split_first_chunk();
        Ok(entry.and_then(|(&hash, rest)| {
            self.returned += ENTRY_BYTES;
            let line = *rest.first_chunk()?;
            Some((u64::from_le_bytes(hash), u64::from_le_bytes(line)))
        }))
    }
}

/// Finds the suspects among entries that come in order: entries of equal hash make a group.
#[derive(Default)]
struct Groups {
    hash: u64,
    /// The first lines of the present group.
    lines: Vec<u64>,
    /// The suspects of all groups with the smallest line numbers, each with its earlier lines.
    suspects: BTreeMap<u64, Vec<u64>>,
}

impl Groups {
    /// Adds the next entry. A line that is not the first of its group is a suspect.
    fn add(&mut self, (hash, line): Entry) {
        if self.hash != hash {
            self.hash = hash;
            self.lines.clear();
        }
        if !self.lines.is_empty() && self.wants(line) {
            self.suspects.insert(line, self.lines.clone());
            if self.suspects.len() > REPORTED_MAX {
                self.suspects.pop_last();
            }
        }
        if self.lines.len() < REPORTED_MAX {
            self.lines.push(line);
        }
    }

    /// Whether the line is among the first [`REPORTED_MAX`] suspects so far.
    fn wants(&self, line: u64) -> bool {
        let last = self.suspects.last_key_value();
        self.suspects.len() < REPORTED_MAX || last.is_some_and(|(&last, _)| line < last)
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
        let mut duplicates = Duplicates::<S, CAPACITY>::new(hasher, Box::new(|_| true));
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
                let earlier = lines.iter().copied().take(REPORTED_MAX).collect();
                suspects.push(Suspect { line, earlier });
            }
            lines.push(line);
        }
        suspects.truncate(REPORTED_MAX);
        suspects
    }

    #[test]
    fn few_ids_stay_in_memory() {
        let mut duplicates: Duplicates = Duplicates::new(RandomState::new(), Box::new(|_| true));
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
        assert_eq!(found.len(), REPORTED_MAX);
        assert_eq!(
            found[0],
            Suspect {
                line: 49_801,
                earlier: vec![1]
            }
        );
    }

    #[test]
    fn what_may_not_be_held_is_spilled_and_found_all_the_same() {
        let ids: Vec<String> = (0..50_000).map(|no| (no % 49_800).to_string()).collect();
        let (tell, told) = std::sync::mpsc::channel();
        let may_hold = Box::new(move |bytes| {
            tell.send(bytes).unwrap();
            bytes <= 16_384 * ENTRY_BYTES
        });
        let mut duplicates: Duplicates = Duplicates::new(RandomState::new(), may_hold);
        for (line, id) in (1..).zip(&ids) {
            duplicates.insert(id, line).unwrap();
            assert!(duplicates.held.capacity() <= 16_384);
        }
        let asked: Vec<usize> = told.try_iter().collect();
        let first = [8_192, 16_384, 32_768].map(|entries| entries * ENTRY_BYTES);
        assert_eq!(asked[..3], first, "it asks as it grows");
        assert_eq!(duplicates.finish().unwrap(), expected(&ids));
    }

    #[test]
    fn short_runs_become_longer_ones_so_that_few_are_read_at_once() {
        // Two entries a run: the longest are merged of 64 times 64.
        let ids: Vec<String> = (0..20_001).map(|no| (no % 19_950).to_string()).collect();
        let mut duplicates = Duplicates::<_, 2>::new(RandomState::new(), Box::new(|_| true));
        for (line, id) in (1..).zip(&ids) {
            duplicates.insert(id, line).unwrap();
        }
        let runs = duplicates.spilled.as_ref().unwrap().runs().len();
        assert!(runs < 192, "{runs} of 10,000 are left");
        assert_eq!(duplicates.finish().unwrap(), expected(&ids));
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
            prop_assert_eq!(&suspects::<_, HELD_MAX>(RandomState::new(), &ids), &expected);
            prop_assert_eq!(&suspects::<_, 7>(RandomState::new(), &ids), &expected);
        }

        #[test]
        fn equal_hashes_are_suspects(ids in proptest::collection::vec("[a-c]{0,9}", 0..300)) {
            let expected = expected(ids.iter().map(String::len));
            prop_assert_eq!(&suspects::<_, HELD_MAX>(Colliding::default(), &ids), &expected);
            prop_assert_eq!(&suspects::<_, 7>(Colliding::default(), &ids), &expected);
        }
    }
}

//! What a run knows of each line of its input: what the line asks for, and where its answer comes
//! from. It is kept in files, so that memory does not grow with the input.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

/// Records that are matched at once: some 20 MB of memory.
const WINDOW: usize = 250_000;
const RECORD_BYTES: usize = 40;

pub(in crate::cli::run) type Hash = [u8; 16];

/// What two lines must have in common for one's answer to be the other's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cli::run) struct Key {
    custom_id: Hash,
    /// Of the endpoint, of the body as it is sent, and of what is filled in.
    request: Hash,
}

impl Key {
    pub(in crate::cli::run) fn new(custom_id: &str, request: &[&[u8]]) -> Key {
        Key {
            custom_id: hash(&[custom_id.as_bytes()]),
            request: hash(request),
        }
    }

    pub(in crate::cli::run) fn custom_id(&self) -> Hash {
        self.custom_id
    }

    /// Whether it is of a line that can have an answer.
    fn is_known(&self) -> bool {
        *self != Key::default()
    }
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut sha = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts are one text.
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    let mut hash = Hash::default();
    hash.copy_from_slice(&sha.finalize()[..16]);
    hash
}

/// Where the answer of a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::run) enum Source {
    /// The line is blank.
    Blank,
    /// It is sent.
    Sent,
    /// It stands at this byte of the kept answers.
    Kept(u64),
}

/// A line, or an answer that is kept (then its source is where it stands).
#[derive(Clone, Copy, Debug)]
pub(in crate::cli::run) struct Record {
    pub(in crate::cli::run) key: Key,
    pub(in crate::cli::run) source: Source,
}

impl Record {
    /// Whether the line has an answer already.
    pub(in crate::cli::run) fn is_kept(&self) -> bool {
        matches!(self.source, Source::Kept(_))
    }

    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..16].copy_from_slice(&self.key.custom_id);
        bytes[16..32].copy_from_slice(&self.key.request);
        let source = match self.source {
            Source::Blank => 0,
            Source::Sent => 1,
            Source::Kept(at) => at + 2,
        };
        bytes[32..].copy_from_slice(&source.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Record {
        let mut key = Key::default();
        key.custom_id.copy_from_slice(&bytes[..16]);
        key.request.copy_from_slice(&bytes[16..32]);
        let mut source = [0; 8];
        source.copy_from_slice(&bytes[32..]);
        Record {
            key,
            source: match u64::from_le_bytes(source) {
                0 => Source::Blank,
                1 => Source::Sent,
                at => Source::Kept(at - 2),
            },
        }
    }
}

/// Writes records, one behind the other.
pub(in crate::cli::run) struct Writer(BufWriter<File>);

impl Writer {
    pub(in crate::cli::run) fn create(path: &Path) -> anyhow::Result<Writer> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Writer(BufWriter::new(file)))
    }

    /// Goes on behind what is there.
    pub(in crate::cli::run) fn append(path: &Path) -> anyhow::Result<Writer> {
        let file = File::options().append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Writer(BufWriter::new(file)))
    }

    pub(in crate::cli::run) fn push(&mut self, record: Record) -> std::io::Result<()> {
        self.0.write_all(&record.to_bytes())
    }

    pub(in crate::cli::run) fn finish(self) -> anyhow::Result<()> {
        let file = self
            .0
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        Ok(file.sync_all()?)
    }
}

/// Reads records, one after the other.
pub(in crate::cli::run) struct Reader(BufReader<File>);

impl Reader {
    pub(in crate::cli::run) fn open(path: &Path) -> anyhow::Result<Reader> {
        let file = File::open(path);
        let damaged = || format!("cannot read {}; --restart begins anew", path.display());
        Ok(Reader(BufReader::new(file.with_context(damaged)?)))
    }

    pub(in crate::cli::run) fn next(&mut self) -> std::io::Result<Option<Record>> {
        let mut bytes = [0; RECORD_BYTES];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(Record::from_bytes(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is known of one line, by its number from 1.
pub(in crate::cli::run) fn key_of(lines: &File, number: u64) -> std::io::Result<Key> {
    let mut bytes = [0; RECORD_BYTES];
    lines.read_exact_at(&mut bytes, (number - 1) * RECORD_BYTES as u64)?;
    Ok(Record::from_bytes(&bytes).key)
}

/// Finds the lines whose answers are kept, notes where these stand, and returns how many there
/// are. Where two lines have one `custom_id`, neither keeps an answer: the check of the input is
/// to see both.
pub(in crate::cli::run) fn match_kept(lines: &Path, kept: &Path) -> anyhow::Result<u64> {
    let mut kept = Reader::open(kept)?;
    let mut found = 0;
    loop {
        let mut window: HashMap<Hash, (Record, u32)> = HashMap::new();
        let mut read = 0;
        while read < WINDOW
            && let Some(record) = kept.next()?
        {
            read += 1;
            if record.key.is_known() {
                window.insert(record.key.custom_id, (record, 0));
            }
        }
        if read == 0 {
            return Ok(found);
        }
        let mut reader = Reader::open(lines)?;
        while let Some(line) = reader.next()? {
            if let Some((_, uses)) = window.get_mut(&line.key.custom_id) {
                *uses += 1;
            }
        }
        found += note(lines, &window)?;
    }
}

fn note(lines: &Path, window: &HashMap<Hash, (Record, u32)>) -> anyhow::Result<u64> {
    let file = File::options().read(true).write(true).open(lines)?;
    let mut reader = BufReader::new(file.try_clone()?);
    let mut bytes = [0; RECORD_BYTES];
    let (mut at, mut found) = (0, 0);
    while reader.read_exact(&mut bytes).is_ok() {
        let line = Record::from_bytes(&bytes);
        if let Some((kept, 1)) = window.get(&line.key.custom_id)
            && kept.key == line.key
        {
            found += u64::from(line.source == Source::Sent);
            let record = Record {
                source: kept.source,
                ..line
            };
            file.write_all_at(&record.to_bytes(), at)?;
        }
        at += RECORD_BYTES as u64;
    }
    // Before the journal counts on what was noted.
    file.sync_all()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(custom_id: &str, body: &str, source: Source) -> Record {
        Record {
            key: Key::new(custom_id, &[body.as_bytes()]),
            source,
        }
    }

    fn written(directory: &Path, name: &str, records: &[Record]) -> std::path::PathBuf {
        let path = directory.join(name);
        let mut writer = Writer::create(&path).unwrap();
        for record in records {
            writer.push(*record).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    #[test]
    fn an_answer_is_kept_for_the_line_with_its_id_and_its_request() {
        let directory = tempfile::tempdir().unwrap();
        let blank = Record {
            key: Key::default(),
            source: Source::Blank,
        };
        let kept = [
            record("a", "1", Source::Kept(0)),
            record("b", "1", Source::Kept(10)),
            record("c", "1", Source::Kept(20)),
            record("d", "1", Source::Kept(30)),
            // The later of two answers counts.
            record("d", "1", Source::Kept(40)),
        ];
        let lines = [
            record("d", "1", Source::Sent),
            blank,
            record("a", "changed", Source::Sent),
            record("b", "1", Source::Sent),
            record("c", "1", Source::Sent),
            // Twice: it is not valid, and the check is to see both.
            record("c", "1", Source::Sent),
            record("new", "1", Source::Sent),
        ];
        let kept = written(directory.path(), "kept", &kept);
        let path = written(directory.path(), "lines", &lines);
        assert_eq!(match_kept(&path, &kept).unwrap(), 2);
        let mut reader = Reader::open(&path).unwrap();
        let mut sources = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            sources.push(record.source);
        }
        let sent = Source::Sent;
        assert_eq!(
            sources,
            [
                Source::Kept(40),
                Source::Blank,
                sent,
                Source::Kept(10),
                sent,
                sent,
                sent
            ]
        );
        let file = File::open(&path).unwrap();
        assert_eq!(key_of(&file, 7).unwrap(), lines[6].key);
    }

    #[test]
    fn parts_of_a_request_are_told_apart() {
        assert_ne!(Key::new("a", &[b"bc", b"d"]), Key::new("a", &[b"b", b"cd"]));
    }
}

//! The answers of a run in the order of its input: those kept from earlier runs, and those of its
//! batch, as far as they are there.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;

use crate::cli::run::generation::TENANT;
use crate::cli::run::input::lines::{Reader, Record, Source};
use crate::cli::run::journal::Journal;
use crate::domain::file::Kind;
use crate::store::Store;
use crate::transfer::FinishedChunk;

/// Answers are written in blocks of this size.
pub(in crate::cli::run) const WRITE_BYTES: usize = 256 << 10;

/// What comes next in the order of the input.
pub(in crate::cli::run) enum Next {
    /// A line of the result, with its line end.
    Line(Bytes),
    /// A line that is not finished yet.
    Missing,
    End,
}

/// Reads the answers, or the lines that failed, one by one.
pub(in crate::cli::run) struct Answers {
    store: Store,
    kind: Kind,
    batch_id: Option<String>,
    /// The batch's chunks, each with its first line.
    chunks: Vec<(i64, i64)>,
    /// The chunk that holds the line to come.
    at: usize,
    open: Option<FinishedChunk>,
    lines: Reader,
    /// The number of the last line that was read.
    number: i64,
    /// A line that was not finished when it was looked up.
    missing: Option<Record>,
    kept: Option<Kept>,
}

/// The answers of earlier runs.
struct Kept {
    file: BufReader<File>,
    at: u64,
}

/// What the answers are read from.
pub(in crate::cli::run) struct Sources {
    store: Store,
    /// `None`: nothing is sent.
    batch_id: Option<String>,
    lines: PathBuf,
    kept: Option<PathBuf>,
}

impl Sources {
    pub(in crate::cli::run) fn of(store: &Store, journal: &Journal) -> Sources {
        let generation = journal.generation();
        Sources {
            store: store.clone(),
            batch_id: journal.batch_id().map(str::to_owned),
            lines: generation.lines(),
            kept: Some(generation.kept()).filter(|kept| kept.exists()),
        }
    }
}

impl Answers {
    pub(in crate::cli::run) async fn open(
        sources: &Sources,
        kind: Kind,
    ) -> anyhow::Result<Answers> {
        let store = &sources.store;
        let mut chunks = Vec::new();
        if let Some(batch_id) = &sources.batch_id {
            let batch = store.batch(TENANT, batch_id).await?;
            let batch = batch.context("the state directory does not hold the batch")?;
            chunks = store.first_lines(&batch.row.input_file_id).await?;
        }
        let kept = sources.kept.as_ref().map(File::open).transpose();
        let kept = kept.context("the kept answers are gone; --restart begins anew")?;
        Ok(Answers {
            store: store.clone(),
            kind,
            batch_id: sources.batch_id.clone(),
            chunks,
            at: 0,
            open: None,
            lines: Reader::open(&sources.lines)?,
            number: 0,
            missing: None,
            kept: kept.map(|file| Kept {
                file: BufReader::new(file),
                at: 0,
            }),
        })
    }

    /// The next answer. Where the batch has ended, a line that is not finished never will be, and
    /// is passed over.
    pub(in crate::cli::run) async fn next(&mut self, has_ended: bool) -> anyhow::Result<Next> {
        loop {
            let record = if let Some(record) = self.missing.take() {
                // What is finished by now may be more than when it was looked up.
                self.open = None;
                record
            } else {
                let Some(record) = self.lines.next()? else {
                    return Ok(Next::End);
                };
                self.number += 1;
                record
            };
            match record.source {
                Source::Blank => {}
                Source::Kept(_) if self.kind == Kind::Error => {}
                Source::Kept(at) => {
                    let kept = self.kept.as_mut().context("the kept answers are gone")?;
                    return Ok(Next::Line(kept.line(at)?.into()));
                }
                Source::Sent => {
                    if !self.is_finished().await? {
                        if has_ended {
                            continue;
                        }
                        self.missing = Some(record);
                        return Ok(Next::Missing);
                    }
                    let Some(open) = &mut self.open else { continue };
                    if open.peek().is_some_and(|(_, kind)| kind == self.kind) {
                        if let Some(line) = open.next(&self.store).await? {
                            return Ok(Next::Line(line));
                        }
                    } else {
                        open.pass();
                    }
                }
            }
        }
    }

    /// Whether the line of this number is the next one in the open chunk.
    async fn is_finished(&mut self) -> anyhow::Result<bool> {
        let Some(batch_id) = &self.batch_id else {
            return Ok(false);
        };
        let begins = |at: usize| self.chunks.get(at).map(|(_, first)| *first);
        while begins(self.at + 1).is_some_and(|first| first <= self.number) {
            self.at += 1;
            self.open = None;
        }
        let Some((chunk, first)) = self.chunks.get(self.at) else {
            return Ok(false);
        };
        let place = u32::try_from(self.number - first).unwrap_or(u32::MAX);
        let open = if let Some(open) = &mut self.open {
            open
        } else {
            let open = FinishedChunk::open(&self.store, batch_id, *chunk).await?;
            self.open.insert(open)
        };
        open.pass_to(place);
        Ok(open.peek().is_some_and(|(line, _)| line == place))
    }
}

impl Kept {
    /// The line that begins at a byte. Most follow each other.
    fn line(&mut self, at: u64) -> std::io::Result<Vec<u8>> {
        if at != self.at {
            self.file.seek(SeekFrom::Start(at))?;
        }
        let mut line = Vec::new();
        self.file.read_until(b'\n', &mut line)?;
        self.at = at + line.len() as u64;
        Ok(line)
    }
}

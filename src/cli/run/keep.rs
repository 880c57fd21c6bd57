//! Answers of an earlier run that are kept, and the lines of the input that they are for.

use std::fs::File;
use std::io::{BufWriter, Write as _};

use anyhow::Context as _;

use super::generation::{Generation, TENANT};
use super::input::Input;
use super::input::feed::{Feed, limits};
use super::input::lines::{self, Reader, Record, Source};
use super::input::reshape::{self, Reshape};
use super::journal::Journal;
use crate::config::Config;
use crate::domain::file::Kind;
use crate::store::Store;
use crate::transfer::FinishedChunk;

/// What of an earlier run is noted in the next generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Each answer, and what it answers.
    Answers,
    /// What each answer answers, and no answer: nothing is to be written with it.
    Marks,
    /// The same of all lines that have ended, those that failed among them.
    MarksOfAll,
}

/// What an input comes to.
pub(super) struct Found {
    pub(super) kept: u64,
    pub(super) sent: u64,
    pub(super) sha256: String,
}

/// Notes the answers that there are in the next generation, and returns how many there are.
pub(super) async fn keep_answers(
    journal: &Journal,
    new: &Generation,
    store: &Store,
    keep: Keep,
) -> anyhow::Result<u64> {
    let old = journal.generation();
    let copies = keep == Keep::Answers;
    for (from, to, is_copied) in [
        (old.kept(), new.kept(), copies),
        (old.index(), new.index(), true),
    ] {
        if is_copied && from.exists() {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    let kept = File::options().append(true).create(true).open(new.kept())?;
    let mut at = kept.metadata()?.len();
    let mut kept = BufWriter::new(kept);
    let mut index = lines::Writer::append(&new.index())?;
    if let Some(batch_id) = journal.batch_id()
        && let Some(batch) = store.batch(TENANT, batch_id).await?
    {
        let of_lines = File::open(old.lines())?;
        for (chunk, first) in store.first_lines(&batch.row.input_file_id).await? {
            let mut open = FinishedChunk::open(store, batch_id, chunk).await?;
            while let Some((place, kind)) = open.peek() {
                if kind == Kind::Error && keep != Keep::MarksOfAll {
                    open.pass();
                    continue;
                }
                let number = u64::try_from(first).unwrap_or(0) + u64::from(place);
                index.push(Record {
                    key: lines::key_of(&of_lines, number)?,
                    source: Source::Kept(at),
                })?;
                if copies {
                    let Some(line) = open.next(store).await? else {
                        break;
                    };
                    kept.write_all(&line)?;
                    at += line.len() as u64;
                } else {
                    open.pass();
                }
            }
        }
    }
    kept.into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .sync_all()?;
    index.finish()?;
    let mut reader = Reader::open(&new.index())?;
    let mut answers = 0;
    while reader.next()?.is_some() {
        answers += 1;
    }
    Ok(answers)
}

/// Notes what each line of the input asks for, and whether its answer is kept.
pub(super) async fn survey(
    new: &Generation,
    reshape: &Reshape,
    config: &Config,
    input: &Input,
) -> anyhow::Result<Found> {
    let mut writer = lines::Writer::create(&new.lines())?;
    let mut requests = 0;
    let mut note = |line: &[u8]| -> anyhow::Result<()> {
        let record = reshape::record(line, &config.models);
        requests += u64::from(record.source == Source::Sent);
        Ok(writer.push(record)?)
    };
    let mut feed = Feed::open(input, reshape, limits(config)).await?;
    while feed.read(|line, _| note(&line)).await? {}
    let sha256 = feed.finish(|line, _| note(&line))?;
    writer.finish()?;
    let kept = lines::match_kept(&new.lines(), &new.index())?;
    Ok(Found {
        kept,
        sent: requests - kept,
        sha256,
    })
}

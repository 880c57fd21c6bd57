//! Answers of an earlier run that are kept, and the lines of the input that they are for.

use std::fs::File;
use std::io::{BufWriter, Write as _};

use anyhow::Context as _;
use tokio::io::AsyncReadExt as _;

use super::generation::{Generation, TENANT};
use super::input::{Input, READ_BYTES};
use super::journal::Journal;
use super::lines::{self, Reader, Record, Source};
use super::reshape::{self, Reshape, Splitter};
use crate::config::Config;
use crate::domain::file::Kind;
use crate::intake::Limits;
use crate::store::Store;
use crate::transfer::FinishedChunk;

/// What an input comes to.
pub(super) struct Found {
    pub(super) kept: u64,
    pub(super) sent: u64,
    pub(super) sha256: String,
}

/// Copies the answers that there are into the next generation, each with what it answers.
pub(super) async fn keep_answers(
    journal: &Journal,
    old: &Generation,
    new: &Generation,
    store: &Store,
) -> anyhow::Result<u64> {
    for (from, to) in [(old.kept(), new.kept()), (old.index(), new.index())] {
        if from.exists() {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    let kept = File::options().append(true).create(true).open(new.kept())?;
    let mut at = kept.metadata()?.len();
    let mut kept = BufWriter::new(kept);
    let mut index = lines::Writer::append(&new.index())?;
    if let Some(batch_id) = &journal.batch_id
        && let Some(batch) = store.batch(TENANT, batch_id).await?
    {
        let of_lines = File::open(old.lines())?;
        for (chunk, first) in store.first_lines(&batch.row.input_file_id).await? {
            let mut open = FinishedChunk::open(store, batch_id, chunk).await?;
            while let Some((place, kind)) = open.peek() {
                if kind == Kind::Error {
                    open.pass();
                    continue;
                }
                let number = u64::try_from(first).unwrap_or(0) + u64::from(place);
                let Some(line) = open.next(store).await? else {
                    break;
                };
                kept.write_all(&line)?;
                index.push(Record {
                    key: lines::key_of(&of_lines, number)?,
                    source: Source::Kept(at),
                })?;
                at += line.len() as u64;
            }
        }
    }
    kept.into_inner()
        .map_err(|error| error.into_error())?
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
    limits: Limits,
) -> anyhow::Result<Found> {
    let mut writer = lines::Writer::create(&new.lines())?;
    let mut requests = 0;
    let mut note = |line: &[u8], number: u64| -> anyhow::Result<()> {
        let record = reshape::record(&reshape.line(line, number), &config.models);
        requests += u64::from(record.source == Source::Sent);
        Ok(writer.push(record)?)
    };
    let mut splitter = Splitter::new(limits.max_line_bytes, reshape.limit);
    let mut reader = input.open().await?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    while reader.read_buf(&mut buffer).await? > 0 {
        splitter.push(&buffer, &mut note)?;
        buffer.clear();
    }
    let sha256 = splitter.finish(&mut note)?;
    writer.finish()?;
    let kept = lines::match_kept(&new.lines(), &new.index())?;
    Ok(Found {
        kept,
        sent: requests - kept,
        sha256,
    })
}

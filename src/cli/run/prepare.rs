//! What comes before the calls: the batch of an earlier run is gone on with, or a batch is made of
//! what has no answer yet.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use super::journal::{Generation, Hashing, Journal, must_be_unused};
use super::lines::{self, Key, Reader, Record, Source};
use super::reshape::{self, Gathered, Reshape, Splitter};
use super::target::Target;
use super::{NOT_VALID, Places, RunArgs, TENANT, files};
use crate::app;
use crate::cli::OrExit as _;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::domain::endpoint;
use crate::domain::file::{Kind, Purpose};
use crate::domain::findings::LISTED;
use crate::domain::id;
use crate::domain::line::{self, Check};
use crate::intake::{Intake, Limits};
use crate::store::{Batch, NewBatch, Store};
use crate::transfer::{self, Finish, FinishedChunk, Ingest, UploadBudget};
use crate::upstream::{Pool, PoolSettings};

const READ_BYTES: usize = 256 << 10;
/// Ids that are remembered while faults are counted: some 32 MB of memory. Among lines beyond
/// them, those that repeat an id are not counted.
const SEEN_MAX: usize = 1_000_000;

/// An input that may be read more than once.
struct Input {
    /// What messages call it.
    name: PathBuf,
    /// Where its bytes are: the file itself, or a copy of what cannot be read again.
    path: Option<PathBuf>,
}

impl Input {
    fn of(path: &Path) -> anyhow::Result<Input> {
        if path.as_os_str() == "-" {
            return Ok(Input {
                name: path.to_owned(),
                path: None,
            });
        }
        let cannot = || format!("cannot open {}", path.display());
        // Opened first: what cannot be read is told before anything is done.
        File::open(path).with_context(cannot)?;
        let is_file = path.metadata().with_context(cannot)?.is_file();
        if path.is_dir() {
            bail!("{} is a directory: name a file", path.display());
        }
        Ok(Input {
            name: path.to_owned(),
            path: is_file.then(|| path.to_owned()),
        })
    }

    async fn open(&self) -> anyhow::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let path = match &self.path {
            None if self.name.as_os_str() == "-" => return Ok(Box::new(tokio::io::stdin())),
            None => &self.name,
            Some(path) => path,
        };
        let file = tokio::fs::File::open(path).await;
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Box::new(file))
    }

    /// Hashes the input. One that cannot be read again is copied meanwhile.
    async fn hash(&mut self, copy: &Path) -> anyhow::Result<String> {
        let mut input = self.open().await?;
        let mut copied = match self.path {
            Some(_) => None,
            None => Some(BufWriter::new(File::create(copy)?)),
        };
        let mut hashing = Hashing::default();
        let mut buffer = Vec::with_capacity(READ_BYTES);
        while input.read_buf(&mut buffer).await? > 0 {
            hashing.update(&buffer);
            if let Some(copied) = &mut copied {
                copied.write_all(&buffer)?;
            }
            buffer.clear();
        }
        if let Some(mut copied) = copied {
            copied.flush()?;
            self.path = Some(copy.to_owned());
        }
        Ok(hashing.finish())
    }
}

/// Finds the batch of an earlier run on the same input, or begins one. `None`: interrupted.
pub(super) async fn prepare(
    args: &RunArgs,
    places: &Places,
    reshape: &Reshape,
    config: &mut Config,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Journal>> {
    let state = &places.state;
    let mut input = Input::of(&args.input).or_exit(NOT_VALID)?;
    let earlier = match Journal::read(state) {
        Err(_) if args.restart => None,
        earlier => earlier?,
    };
    let wrote = |wrote: fn(&Journal, &Target) -> bool, target: &Target| {
        earlier
            .as_ref()
            .is_some_and(|earlier| wrote(earlier, target))
    };
    let wrote_output = wrote(Journal::wrote_output, &places.output);
    if !wrote_output {
        files::must_be_free(&places.output, args.restart).or_exit(NOT_VALID)?;
    }
    if !wrote(Journal::wrote_errors, &places.errors) {
        files::must_be_free(&places.errors, args.restart).or_exit(NOT_VALID)?;
    }
    for target in [&places.output, &places.errors] {
        files::must_be_writable(target).or_exit(NOT_VALID)?;
    }
    if args.restart && wrote_output {
        files::remove_partial(&places.output)?;
    }
    let prepared = stop.run_until_cancelled(async {
        let Some(journal) = earlier else {
            Journal::clear(state)?;
            return begin(&Generation::first(state), reshape, config, &input, None).await;
        };
        if args.restart {
            must_be_unused(state)?;
            // Beside the old one, which is whole until the new one is noted.
            let new = journal.generation(state).next();
            new.remove();
            let begun = begin(&new, reshape, config, &input, None).await;
            if begun.is_err() {
                new.remove();
            }
            return Ok(begun?.after(journal));
        }
        let copy = state.join(super::journal::INPUT_COPY);
        let hash = input.hash(&copy).await?;
        let is_changed = hash != journal.input_sha256 || reshape.name() != journal.reshape;
        go_on(args, journal, is_changed, reshape, config, &input).await
    });
    let prepared = prepared.await;
    let _ = std::fs::remove_file(state.join(super::journal::INPUT_COPY));
    let Some(prepared) = prepared else {
        return Ok(None);
    };
    let mut journal = prepared?;
    // Noted first: only what a run of this state wrote is ever overwritten.
    journal.note_output(&places.output);
    journal.write(state)?;
    journal.generation(state).remove_others();
    config
        .database
        .move_to(&journal.generation(state).database());
    Ok(Some(journal))
}

/// Decides whether an earlier run's batch is gone on with, or what it lacks is sent anew.
async fn go_on(
    args: &RunArgs,
    mut journal: Journal,
    is_changed: bool,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
) -> anyhow::Result<Journal> {
    let state = journal.state.clone();
    let old = journal.generation(&state);
    config.database.move_to(&old.database());
    let store = app::open_store_alone(config, Clock::default()).await?;
    let batch = match &journal.batch_id {
        Some(batch_id) => store.batch(TENANT, batch_id).await?,
        None => None,
    };
    let failed = batch.map_or(0, |batch| batch.counts.failed);
    let is_elsewhere = !journal.is_upstream(config);
    let is_anew = is_changed || args.retry_failed || (failed > 0 && is_elsewhere);
    if !is_anew {
        store.close().await;
        journal.note_upstream(config);
        return Ok(journal);
    }
    let new = old.next();
    new.remove();
    let answers = keep_answers(&journal, &old, &new, &store).await;
    store.close().await;
    let answers = answers?;
    let limits = Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
    };
    let found = survey(&new, reshape, config, input, limits).await?;
    if is_changed && answers > 0 && found.kept == 0 {
        new.remove();
        return Err(anyhow::anyhow!(
            "{} belongs to a run on another input, of which no line is in this one; use another \
             output, or --restart to throw its answers away",
            state.display()
        ))
        .or_exit(NOT_VALID);
    }
    let why = if is_changed {
        "The input has changed"
    } else if args.retry_failed {
        "What failed is sent again"
    } else {
        "The upstream or its key has changed, so what failed is sent again"
    };
    args.say(&format!(
        "{why}: {} answers are kept, {} requests are sent.",
        found.kept, found.sent
    ));
    let begun = begin(&new, reshape, config, input, Some(found)).await?;
    Ok(begun.after(journal))
}

/// What an input comes to.
struct Found {
    kept: u64,
    sent: u64,
    sha256: String,
}

/// Copies the answers that there are into the next generation, each with what it answers.
async fn keep_answers(
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
async fn survey(
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

/// Reads the input into a store of its own and creates its batch. Where it was surveyed, the lines
/// whose answers are kept are blank in the store, so that all others keep their numbers.
async fn begin(
    generation: &Generation,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
    found: Option<Found>,
) -> anyhow::Result<Journal> {
    config.database.move_to(&generation.database());
    if let Some(found) = &found
        && found.sent == 0
    {
        let mut journal = Journal::new(generation, found.sha256.clone(), None, reshape.name());
        journal.kept = found.kept;
        journal.note_upstream(config);
        return Ok(journal);
    }
    let store = app::open_store_alone(config, Clock::default()).await?;
    let begun = ingest(generation, reshape, config, input, found.as_ref(), &store).await;
    store.close().await;
    let (sha256, batch_id) = begun?;
    if let Some(found) = &found
        && found.sha256 != sha256
    {
        bail!("{} has changed while it was read", input.name.display());
    }
    let mut journal = Journal::new(generation, sha256, Some(batch_id), reshape.name());
    journal.kept = found.map_or(0, |found| found.kept);
    journal.note_upstream(config);
    Ok(journal)
}

async fn ingest(
    generation: &Generation,
    reshape: &Reshape,
    config: &Config,
    input: &Input,
    found: Option<&Found>,
    store: &Store,
) -> anyhow::Result<(String, String)> {
    let limits = Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
    };
    // One file alone never waits for others.
    let budget = UploadBudget::new(limits.max_line_bytes);
    let mut ingest = Ingest::begin(store, TENANT, limits, true, &budget).await?;
    let mut writer = match found {
        None => Some(lines::Writer::create(&generation.lines())?),
        Some(_) => None,
    };
    let mut sources = match found {
        None => None,
        Some(_) => Some(Reader::open(&generation.lines())?),
    };
    let mut gathered = Gathered::default();
    let mut take = |gathered: &mut Gathered, line: &[u8], number: u64| -> anyhow::Result<()> {
        let line = reshape.line(line, number);
        let record = match (&mut sources, &mut writer) {
            (Some(sources), _) => sources.next()?,
            (None, Some(writer)) => {
                let record = reshape::record(&line, &config.models);
                writer.push(record)?;
                Some(record)
            }
            (None, None) => None,
        };
        let is_kept = record.is_some_and(|record| matches!(record.source, Source::Kept(_)));
        gathered.line(if is_kept { b"" } else { &line });
        Ok(())
    };
    let mut splitter = Splitter::new(limits.max_line_bytes, reshape.limit);
    let mut reader = input.open().await?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let read = reader.read_buf(&mut buffer).await;
        if read.with_context(|| format!("cannot read {}", input.name.display()))? == 0 {
            break;
        }
        splitter.push(&buffer, |line, number| take(&mut gathered, line, number))?;
        buffer.clear();
        ingest.write(gathered.take()).await?;
    }
    let sha256 = splitter.finish(|line, number| take(&mut gathered, line, number))?;
    ingest.write(gathered.take()).await?;
    if let Some(writer) = writer {
        writer.finish()?;
    }
    let created_at = Clock::default().now_ms();
    let name = input.name.file_name().unwrap_or_default();
    let finish = Finish {
        purpose: Purpose::Batch,
        filename: name.to_string_lossy().into_owned(),
        created_at,
        expires_at: None,
    };
    let file = match ingest.finish(finish, None).await {
        Err(transfer::Error::NotJsonl(what)) => Err(anyhow::anyhow!(
            "{} is empty, or its first line is not JSON: it must be a JSONL file of requests. {}",
            input.name.display(),
            what.hint()
        ))
        .or_exit(NOT_VALID)?,
        file => file?,
    };
    let batch = NewBatch {
        id: id::batch(),
        tenant: TENANT.to_owned(),
        key_id: None,
        endpoint: endpoint::ANY.path.to_owned(),
        input_file_id: file.id,
        completion_window: "none".to_owned(),
        // They are copied out as soon as they are there; the state is kept as long as the user
        // keeps it.
        output_expires_seconds: NewBatch::KEPT_FOR_GOOD,
        metadata: None,
        created_at,
        expires_at: None,
    };
    store.create_batch(&batch, None).await?;
    Ok((sha256, batch.id))
}

/// How many lines of a batch's input are at fault, where only the first are listed.
pub(super) async fn count_faults(store: &Store, batch: &Batch) -> anyhow::Result<usize> {
    let mut seen = HashSet::new();
    let mut count = 0;
    for (chunk, _) in store.first_lines(&batch.row.input_file_id).await? {
        let Some(chunk) = store.chunk(&batch.row.input_file_id, chunk).await? else {
            break;
        };
        for line in chunk.bytes.split(|&byte| byte == b'\n') {
            count += usize::from(match line::check(line) {
                Check::Blank => false,
                Check::Fault(_) => true,
                Check::Request(request) => {
                    let is_seen = seen.len() < SEEN_MAX
                        && !seen.insert(Key::new(&request.custom_id, &[]).custom_id());
                    is_seen || request.fault.is_some() || request.endpoint.is_none()
                }
            });
        }
    }
    Ok(count.max(LISTED))
}

/// Says what a run would send, and what is wrong with its input.
pub(super) async fn dry_run(args: &RunArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let reshape = args.reshape();
    let input = Input::of(&args.input)?;
    // What is wrong with a certificate shows here.
    Pool::new(config, PoolSettings::default())?;
    let limits = Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
    };
    let mut intake = Intake::new(limits, true);
    let mut gathered = Gathered::default();
    let mut splitter = Splitter::new(limits.max_line_bytes, reshape.limit);
    let mut reader = input.open().await?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let take = |gathered: &mut Gathered, line: &[u8], number: u64| -> anyhow::Result<()> {
        gathered.line(&reshape.line(line, number));
        Ok(())
    };
    while reader.read_buf(&mut buffer).await? > 0 {
        splitter.push(&buffer, |line, number| take(&mut gathered, line, number))?;
        buffer.clear();
        intake.push(&gathered.take(), &mut Vec::new())?;
    }
    splitter.finish(|line, number| take(&mut gathered, line, number))?;
    intake.push(&gathered.take(), &mut Vec::new())?;
    let report = intake.finish(&mut Vec::new())?;
    if report.requests == 0 {
        bail!("{} has no request", input.name.display());
    }
    let faults = report.findings.for_endpoint(endpoint::ANY.path);
    if !faults.is_empty() || !report.suspects.is_empty() {
        super::print_faults(&faults, faults.len());
        for suspect in &report.suspects {
            tell!(
                "  line {}: its custom_id seems to stand on an earlier line",
                suspect.line
            );
        }
        return Ok(ExitCode::from(NOT_VALID));
    }
    let mut out = std::io::stdout();
    writeln!(out, "{} requests would be sent", report.requests)?;
    for model in &report.models {
        let name = if model.name.is_empty() {
            "(no model)"
        } else {
            &model.name
        };
        writeln!(out, "  {:>10}  {name}", model.requests)?;
    }
    for upstream in &config.upstreams {
        writeln!(out, "to {}: {}", upstream.name, upstream.base_url)?;
    }
    Ok(ExitCode::SUCCESS)
}

//! `nightshift run`: one batch without a server.
//!
//! It runs on the same store and duties as a server, in a directory beside the output. What that
//! directory says decides what happens at the next start: go on, or nothing.

mod files;
mod journal;
mod target;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use super::OrExit as _;
use super::progress::{Progress, Snapshot};
use crate::config::{Config, Overrides};
use crate::domain::batch::Status;
use crate::domain::clock::Clock;
use crate::domain::endpoint::ENDPOINTS;
use crate::domain::file::Purpose;
use crate::domain::findings::Finding;
use crate::domain::{id, line};
use crate::intake::Limits;
use crate::shutdown::{self, Hangup};
use crate::store::{Batch, NewBatch, Store};
use crate::transfer::{self, Finish, Ingest, UploadBudget};
use crate::upstream::{FailFast, Pool, PoolSettings, UpstreamState, UpstreamStatus};
use crate::worker::Worker;
use crate::{app, telemetry};
use journal::{Hashing, Journal};
use target::Target;

const EXAMPLE: &str = "\
Examples:
  nightshift run -i requests.jsonl -o answers.jsonl --upstream http://localhost:8000/v1
  cat requests.jsonl | nightshift run -i - -o answers.jsonl --config nightshift.toml

Stopped and started again it goes on where it was, and sends nothing twice.

Exit codes:
  0    every request succeeded
  1    some requests failed, or the run could not be finished: the message says which
  2    the command line is wrong
  3    the input or the configuration is not valid: nothing was sent
  4    no upstream answered, or the upstreams refuse every request
  130  interrupted (SIGINT)
  143  terminated (SIGTERM or SIGHUP)";

/// Exit codes, as the help explains them.
const NOT_VALID: u8 = 3;
const NO_ANSWER: u8 = 4;

/// The tenant of a store that belongs to one user.
const TENANT: &str = "default";
/// The errors file of an output that is no file, in the state directory.
const ERRORS: &str = "errors.jsonl";
const READ_BYTES: usize = 256 << 10;
const POLL: Duration = Duration::from_millis(100);
/// How long upstreams may be silent before the command gives up, from its start.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// After so many calls that all fail alike, as only a person can mend it, the command stops.
const ALIKE_MAX: usize = 20;
/// Faults of an input that are printed.
const PRINTED_FAULTS: usize = 20;

/// Run one batch without a server, from a file to a file.
///
/// The output has one line for each request that succeeded, in input order; requests that failed
/// are in the errors file.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct RunArgs {
    /// The JSONL file of requests; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,

    /// Where the answers go: a file, a pipe or a device; - writes to standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Where failed requests go, if any [default: the output's name with .errors.jsonl; where the
    /// output is no file, errors.jsonl in the state directory]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,

    /// The directory for what is needed to go on later [default: the output's name with
    /// .nightshift; where the output is no file, a new one in the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Send every model to this server, instead of what the configuration says
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    /// The environment variable that holds the key of --upstream
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,

    /// Calls at once to each upstream
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,

    /// The TOML file to read [default: nightshift.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Forget what an earlier run of this output did, and begin anew
    #[arg(long)]
    restart: bool,
}

/// How a run came out.
enum Ended {
    Batch(Box<Batch>),
    Interrupted,
}

/// Where a run reads and writes.
struct Places {
    output: Target,
    errors: Target,
    state: PathBuf,
    /// Nobody named the state directory: it is removed once nothing is left to go on with.
    state_is_temporary: bool,
}

impl Places {
    fn of(args: &RunArgs) -> anyhow::Result<Places> {
        let output = Target::of(&args.output)?;
        let is_file = output.file().is_some();
        let errors = match &args.errors {
            Some(errors) => Some(Target::of(errors)?),
            None if is_file => Some(Target::of(&files::errors_path(&args.output))?),
            None => None,
        };
        files::must_differ(&args.input, &output, errors.as_ref())?;
        let (state, state_is_temporary) = match (&args.state, output.file()) {
            (Some(state), _) => (state.clone(), false),
            (None, Some(file)) => (files::beside(file, ".nightshift"), false),
            (None, None) => (journal::temporary()?, true),
        };
        let errors = errors.unwrap_or_else(|| Target::within(&state.join(ERRORS)));
        Ok(Places {
            output,
            errors,
            state,
            state_is_temporary,
        })
    }

    /// What the next command needs to go on with this run.
    fn how_to_go_on(&self) -> String {
        if self.state_is_temporary {
            format!(
                "The same command with --state {} goes on where this one stopped.",
                self.state.display()
            )
        } else {
            "The same command goes on where this one stopped.".to_owned()
        }
    }
}

pub(super) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let places = Places::of(&args).or_exit(NOT_VALID)?;
    let code = run_in(&args, &places).await;
    if places.state_is_temporary {
        if matches!(code, Ok(code) if code == ExitCode::SUCCESS) {
            journal::remove(&places.state);
        } else if places.state.exists() {
            eprintln!(
                "What is needed to go on is kept: add --state {}.",
                places.state.display()
            );
        }
    }
    code
}

async fn run_in(args: &RunArgs, places: &Places) -> anyhow::Result<ExitCode> {
    let state = &places.state;
    let overrides = Overrides {
        config: args.config.clone(),
        upstream: args.upstream.clone(),
        api_key_env: args.api_key_env.clone(),
        concurrency: args.concurrency,
        database_file: Some(state.join(journal::DATABASE)),
        ..Overrides::default()
    };
    let mut config = configure(&overrides).or_exit(NOT_VALID)?;
    if config.log.filter == "info" {
        // The progress says what there is to say.
        "warn".clone_into(&mut config.log.filter);
    }
    telemetry::start(&config.log);
    let stopping = shutdown::on_signal(Hangup::Stops)?;
    let stop = stopping.token().clone();
    let _claim = journal::claim(state)?;
    let prepared = prepare(args, places, &config, &stop).await;
    let Ok(Some(mut journal)) = prepared else {
        journal::discard(state);
        return prepared.map(|_| ExitCode::from(stopping.code()));
    };
    let store = app::open_store_alone(&config, Clock::default()).await?;
    let ended = work(&config, &store, &journal.batch_id, stop).await?;
    let code = match ended {
        Ended::Interrupted => {
            eprintln!("Interrupted. {}", places.how_to_go_on());
            ExitCode::from(stopping.code())
        }
        Ended::Batch(batch) => conclude(places, &store, &batch, &mut journal).await?,
    };
    store.close().await;
    Ok(code)
}

/// Reads the configuration, which must name an upstream.
fn configure(overrides: &Overrides) -> anyhow::Result<Config> {
    let config = super::load(overrides)?;
    if config.upstreams.is_empty() {
        bail!("there is no upstream to send to: give one with --upstream URL or a configuration");
    }
    Ok(config)
}

/// Finds the batch of an earlier run on the same input, or begins one. `None`: interrupted.
async fn prepare(
    args: &RunArgs,
    places: &Places,
    config: &Config,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Journal>> {
    let state = &places.state;
    let mut input = open_input(&args.input).await.or_exit(NOT_VALID)?;
    let earlier = Journal::read(state)?;
    let errors_files = earlier.as_ref().map(|journal| journal.errors_files.clone());
    if earlier.is_none() && !args.restart {
        files::must_be_free(&places.output).or_exit(NOT_VALID)?;
    }
    let is_ours = earlier
        .as_ref()
        .is_some_and(|journal| journal.wrote(&places.errors));
    if !is_ours && !args.restart {
        files::must_be_free(&places.errors).or_exit(NOT_VALID)?;
    }
    if let Some(journal) = earlier
        && !args.restart
    {
        let Some(hash) = stop.run_until_cancelled(hash(&mut input)).await else {
            return Ok(None);
        };
        if hash? != journal.input_sha256 {
            bail!(
                "{} belongs to a run on another input; use another output, or --restart to throw \
                 its answers away",
                state.display()
            );
        }
        return Ok(Some(journal));
    }
    // Left by a run that was stopped before it had read its input, or to be forgotten.
    Journal::clear(state)?;
    let store = app::open_store_alone(config, Clock::default()).await?;
    let begun = stop
        .run_until_cancelled(begin(&store, config, &args.input, input))
        .await;
    store.close().await;
    let Some(begun) = begun else { return Ok(None) };
    let journal = Journal {
        errors_files: errors_files.unwrap_or_default(),
        ..begun?
    };
    journal.write(state)?;
    Ok(Some(journal))
}

/// Reads the input into the store and creates its batch.
async fn begin(
    store: &Store,
    config: &Config,
    path: &Path,
    mut input: Box<dyn AsyncRead + Send + Unpin>,
) -> anyhow::Result<Journal> {
    let limits = Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
    };
    // One file alone never waits for others.
    let budget = UploadBudget::new(limits.max_line_bytes);
    let mut ingest = Ingest::begin(store, TENANT, limits, true, &budget).await?;
    let mut hashing = Hashing::default();
    loop {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let read = input.read_buf(&mut buffer).await;
        if read.with_context(|| format!("cannot read {}", path.display()))? == 0 {
            break;
        }
        hashing.update(&buffer);
        ingest.write(Bytes::from(buffer)).await?;
    }
    let created_at = Clock::default().now_ms();
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let finish = Finish {
        purpose: Purpose::Batch,
        filename: name,
        created_at,
        expires_at: None,
    };
    let file = ingest.finish(finish, None).await;
    let file = match file {
        Err(transfer::Error::NotJsonl(what)) => Err(anyhow::anyhow!(
            "{} is empty, or its first line is not JSON: it must be a JSONL file of requests. {}",
            path.display(),
            what.hint()
        ))
        .or_exit(NOT_VALID)?,
        file => file?,
    };
    let batch = NewBatch {
        id: id::batch(),
        tenant: TENANT.to_owned(),
        key_id: None,
        endpoint: first_url(store, &file.id).await?,
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
    Ok(Journal {
        input_sha256: hashing.finish(),
        batch_id: batch.id,
        errors_files: Vec::new(),
    })
}

/// The endpoint that the input's first readable request names; all others must name the same.
async fn first_url(store: &Store, file_id: &str) -> anyhow::Result<String> {
    for chunk_no in 0.. {
        let Some(chunk) = store.chunk(file_id, chunk_no).await? else {
            break;
        };
        let text = String::from_utf8_lossy(&chunk.bytes);
        if let Some(request) = text.lines().find_map(line::read) {
            return Ok(request.url.into_owned());
        }
    }
    // There is none: validation lists what is wrong with each line.
    Ok(ENDPOINTS[0].path.to_owned())
}

/// Works until the batch ends or the user interrupts.
async fn work(
    config: &Config,
    store: &Store,
    batch_id: &str,
    stop: CancellationToken,
) -> anyhow::Result<Ended> {
    let batch = find(store, batch_id).await?;
    if batch.stage.status.is_terminal() {
        eprintln!("This run had ended before: nothing is sent. --restart begins anew.");
        return Ok(Ended::Batch(Box::new(batch)));
    }
    let settings = PoolSettings {
        fail_fast: Some(FailFast {
            calls: ALIKE_MAX,
            has_succeeded: batch.counts.completed > 0,
        }),
        ..PoolSettings::default()
    };
    let pool = Pool::new(config, settings)?;
    let duties = app::settings(config, store);
    let mut worker = Worker::start(store.clone(), pool.clone(), Clock::default(), duties).await?;
    let watched = tokio::select! {
        watched = watch(store, &pool, batch_id, &stop) => watched,
        name = worker.failed() => Err(anyhow::anyhow!("the duty {name} failed")),
    };
    if stop.is_cancelled() {
        eprintln!("Stopping: waiting for calls in flight. Ctrl-C again stops at once.");
    }
    worker.stop().await;
    watched
}

/// Shows how the batch gets on, until it ends, or the user interrupts, or it cannot begin.
async fn watch(
    store: &Store,
    pool: &Arc<Pool>,
    batch_id: &str,
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    let started = Instant::now();
    let mut progress = Progress::new(None);
    let mut is_counted = false;
    loop {
        let batch = find(store, batch_id).await?;
        let snapshot = snapshot(&batch);
        if !is_counted && batch.counts.total > 0 {
            is_counted = true;
            pool.has_lines(usize::try_from(batch.counts.open()).unwrap_or(usize::MAX));
        }
        if batch.stage.status.is_terminal() {
            progress.finish(snapshot, Instant::now());
            return Ok(Ended::Batch(Box::new(batch)));
        }
        let status = pool.status();
        progress.update(snapshot, waits_for(&status).as_deref(), Instant::now());
        if let Some(cause) = pool.hopeless() {
            progress.finish(snapshot, Instant::now());
            return Err(anyhow::anyhow!(
                "stopped, because no request can succeed: {cause}. Nothing was lost: mend it and \
                 run the same command again, which goes on where this one stopped"
            ))
            .or_exit(NO_ANSWER);
        }
        let is_silent = status
            .iter()
            .all(|upstream| !upstream.answered && upstream.in_flight == 0);
        if is_silent && started.elapsed() >= FIRST_ANSWER_WITHIN {
            progress.finish(snapshot, Instant::now());
            let causes = status
                .into_iter()
                .filter_map(|upstream| Some(format!("{}: {}", upstream.name, upstream.cause?)));
            return Err(anyhow::anyhow!(
                "no upstream has answered within {} s ({}); the same command tries again",
                FIRST_ANSWER_WITHIN.as_secs(),
                causes.collect::<Vec<_>>().join("; ")
            ))
            .or_exit(NO_ANSWER);
        }
        if stop
            .run_until_cancelled(tokio::time::sleep(POLL))
            .await
            .is_none()
        {
            progress.finish(snapshot, Instant::now());
            return Ok(Ended::Interrupted);
        }
    }
}

/// Which upstreams take no lines now, and why.
fn waits_for(upstreams: &[UpstreamStatus]) -> Option<String> {
    let shut = upstreams
        .iter()
        .filter(|upstream| upstream.state != UpstreamState::Up || !upstream.models.is_empty())
        .filter_map(|upstream| {
            let model = upstream.models.first();
            let cause = upstream
                .cause
                .as_ref()
                .or(model.map(|model| &model.cause))?;
            Some(format!("{}: {cause}", upstream.name))
        });
    let shut: Vec<_> = shut.collect();
    (!shut.is_empty()).then(|| format!("waiting for {}", shut.join("; ")))
}

async fn find(store: &Store, batch_id: &str) -> anyhow::Result<Batch> {
    store
        .batch(TENANT, batch_id)
        .await?
        .context("the state directory does not hold the batch")
}

fn snapshot(batch: &Batch) -> Snapshot {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    Snapshot {
        done: count(batch.counts.completed + batch.counts.failed),
        failed: count(batch.counts.failed),
        total: count(batch.counts.total),
        tokens: count(batch.usage.total_tokens),
    }
}

/// Writes the files of a batch that has ended, and says how it went.
async fn conclude(
    places: &Places,
    store: &Store,
    batch: &Batch,
    journal: &mut Journal,
) -> anyhow::Result<ExitCode> {
    let Places {
        output,
        errors,
        state,
        ..
    } = places;
    if batch.stage.status == Status::Failed {
        let errors = batch.row.errors.as_deref().unwrap_or("[]");
        let faults: Vec<Finding> = serde_json::from_str(errors)?;
        eprintln!("The input is not valid:");
        for fault in faults.iter().take(PRINTED_FAULTS) {
            let place = fault
                .line
                .map_or(String::new(), |line| format!("line {line}: "));
            eprintln!("  {place}{} ({})", fault.message, fault.code);
        }
        if faults.len() > PRINTED_FAULTS {
            eprintln!("  … and {} more", faults.len() - PRINTED_FAULTS);
        }
        // Nothing was sent: once the input is mended, there is nothing to go on with.
        Journal::forget(state)?;
        return Ok(ExitCode::from(NOT_VALID));
    }
    files::write(store, batch.row.output_file_id.as_deref(), output).await?;
    let is_ours = journal.wrote(errors);
    if batch.row.error_file_id.is_some() {
        // Noted first: only what a run of this output wrote is ever removed.
        if !is_ours && let Some(file) = errors.file() {
            journal.errors_files.push(file.to_owned());
            journal.write(state)?;
        }
        files::write(store, batch.row.error_file_id.as_deref(), errors).await?;
    } else if is_ours {
        files::remove(errors)?;
    }
    let counts = &batch.counts;
    eprintln!(
        "{} of {} requests succeeded: {output}",
        counts.completed, counts.total
    );
    if counts.failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} failed: {errors}", counts.failed);
    if let Some(file_id) = &batch.row.error_file_id
        && let Some(cause) = files::first_cause(store, file_id).await
    {
        eprintln!("The first: {cause}");
    }
    Ok(ExitCode::FAILURE)
}

async fn open_input(path: &Path) -> anyhow::Result<Box<dyn AsyncRead + Send + Unpin>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let file = tokio::fs::File::open(path).await;
    Ok(Box::new(file.with_context(|| {
        format!("cannot open {}", path.display())
    })?))
}

async fn hash(input: &mut (dyn AsyncRead + Send + Unpin)) -> anyhow::Result<String> {
    let mut hashing = Hashing::default();
    let mut buffer = Vec::with_capacity(READ_BYTES);
    while input.read_buf(&mut buffer).await? > 0 {
        hashing.update(&buffer);
        buffer.clear();
    }
    Ok(hashing.finish())
}

//! `nightshift run`: one batch without a server.
//!
//! It runs on the same store and duties as a server, in a directory beside the output. What that
//! directory says decides what happens at the next start: go on, or nothing.

mod answers;
mod files;
mod flags;
mod journal;
mod lines;
mod prepare;
mod reshape;
mod summary;
mod target;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use super::OrExit as _;
use super::progress::{Progress, Snapshot, short};
use crate::config::{Config, Environment, Overrides, parse_duration};
use crate::domain::batch::{Counts, Status};
use crate::domain::clock::Clock;
use crate::domain::file::Kind;
use crate::domain::findings::{Finding, TOO_MANY_ERRORS};
use crate::shutdown::{self, Hangup};
use crate::store::{Batch, Store};
use crate::upstream::{
    CallRate, FailFast, Pool, PoolSettings, Reason, UpstreamState, UpstreamStatus,
};
use crate::worker::Worker;
use crate::{app, telemetry};
use answers::Sources;
use files::{Partial, STATE};
use journal::{Generation, Journal};
use reshape::Reshape;
use summary::Summary;
use target::Target;

const EXAMPLE: &str = "\
Examples:
  nightshift run -i requests.jsonl -o answers.jsonl --upstream http://localhost:8000/v1
  cat requests.jsonl | nightshift run -i - -o answers.jsonl --config nightshift.toml
  nightshift run -i texts.jsonl -o - --ids --model bge-m3 --upstream http://localhost:8000/v1

Stopped and started again it goes on where it was, and sends nothing twice. Where the input has
changed, lines keep the answers that they have, by custom_id and body. Meanwhile the answers so far
are in the output's name with .partial.

Without --upstream and without configured upstreams, the variable OPENAI_BASE_URL says where to send,
and OPENAI_API_KEY, where it is set, with which key. An address given by --upstream gets no key but
the one of --api-key-env.

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

/// What OpenAI's clients read.
const BASE_URL: &str = "OPENAI_BASE_URL";
const API_KEY: &str = "OPENAI_API_KEY";

/// The tenant of a store that belongs to one user.
const TENANT: &str = "default";
/// The errors file of an output that is no file, in the state directory.
const ERRORS: &str = "errors.jsonl";
const POLL: Duration = Duration::from_millis(100);
/// How long upstreams may be silent before the command gives up, from its start.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// After so many calls that all fail alike, as only a person can mend it, the command stops.
const ALIKE_MAX: usize = 20;
/// Faults of an input that are printed.
const PRINTED_FAULTS: usize = 20;
/// A wait that is told with its length.
const WORTH_TELLING: Duration = Duration::from_secs(5);
/// Causes of failures that are printed.
const PRINTED_CAUSES: usize = 5;

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

    /// The directory for what is needed to go on later: a new one, an empty one, or that of an
    /// earlier run [default: the output's name with .nightshift; where the output is no file, a new
    /// one in the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Send every model to this server, instead of what the configuration says
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,

    /// The environment variable that holds the key of --upstream
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,

    /// Send this header with each call (may be repeated); a key is better named by --api-key-env
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = flags::header)]
    headers: Vec<(String, String)>,

    /// Calls at once to each upstream
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,

    /// Begin no more calls than this, such as 10/s, 600/m or 5000/h
    #[arg(long, value_name = "N/UNIT", value_parser = flags::rate)]
    rate: Option<Duration>,

    /// How long one call may take, such as 30s or 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// How many calls one request may cost, the first included
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    max_attempts: Option<u32>,

    /// Ask this model, whatever the requests name
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Put a value into the body of every request (may be repeated), in place of what is there
    #[arg(long = "set", value_name = "KEY=JSON", value_parser = flags::set)]
    set: Vec<(String, serde_json::Value)>,

    /// Take lines without a custom_id, which become line-1, line-2 and so on by their number, and
    /// bare bodies: {"messages": …}, {"prompt": …}, {"input": …} (embeddings)
    #[arg(long)]
    ids: bool,

    /// Send the first N requests only; without it later, the others follow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// Stop once N requests have failed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_failures: Option<u64>,

    /// Check the input and the configuration, say what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,

    /// Show no progress, and say nothing but what is wrong
    #[arg(short, long)]
    quiet: bool,

    /// Print a summary as JSON when the run ends: on standard output, or on standard error where
    /// the answers go to standard output
    #[arg(long)]
    json: bool,

    /// The TOML file to read [default: nightshift.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Send again what failed in an earlier run of this output; its answers are kept
    #[arg(long, conflicts_with = "restart")]
    retry_failed: bool,

    /// Forget what an earlier run of this output did, and begin anew
    #[arg(long)]
    restart: bool,
}

impl RunArgs {
    /// Tells the user something that is no error.
    fn say(&self, text: &str) {
        if !self.quiet {
            tell!("{text}");
        }
    }

    fn reshape(&self) -> Reshape {
        let mut set: serde_json::Map<_, _> = self.set.iter().cloned().collect();
        if let Some(model) = &self.model {
            set.insert("model".to_owned(), model.clone().into());
        }
        Reshape {
            ids: self.ids,
            set,
            limit: self.limit,
        }
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            upstream: self.upstream.clone(),
            api_key_env: self.api_key_env.clone(),
            concurrency: self.concurrency,
            headers: self.headers.clone(),
            timeout: self.timeout,
            max_attempts: self.max_attempts,
            ..Overrides::default()
        }
    }

    /// Prints how the run went, where that is asked for.
    fn report(&self, output: &Target, summary: &Summary<'_>) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string(summary)?;
        if output.is_stdout() {
            tell!("{text}");
        } else {
            let mut out = std::io::stdout();
            writeln!(out, "{text}")?;
        }
        Ok(())
    }
}

/// How a run came out.
enum Ended {
    /// `None`: there was nothing to send.
    Batch(Option<Box<Batch>>),
    /// With the file that has the answers so far.
    Interrupted(Option<PathBuf>),
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
            (None, Some(file)) => (files::beside(file, STATE), false),
            (None, None) => (journal::temporary(), true),
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
    if args.dry_run {
        let overrides = Overrides {
            // Nothing is stored.
            database_file: Some(PathBuf::new()),
            ..args.overrides()
        };
        let config = configure(&args, overrides).or_exit(NOT_VALID)?;
        return prepare::dry_run(&args, &config).await.or_exit(NOT_VALID);
    }
    let places = Places::of(&args).or_exit(NOT_VALID)?;
    let state = &places.state;
    let overrides = Overrides {
        database_file: Some(Generation::first(state).database()),
        ..args.overrides()
    };
    let config = configure(&args, overrides).or_exit(NOT_VALID)?;
    let claim = journal::claim(state).map_err(|error| match places.state_is_temporary {
        true => error.context("cannot keep what is needed to go on: name a directory with --state"),
        false => error,
    })?;
    let code = run_in(&args, &places, config).await;
    if !matches!(Journal::read(state), Ok(None)) {
        if !places.state_is_temporary {
            return code;
        }
        if matches!(code, Ok(code) if code == ExitCode::SUCCESS) {
            claim.remove(state);
        } else {
            let state = state.display();
            tell!("What is needed to go on is kept: add --state {state}.");
        }
        return code;
    }
    // Nothing was sent, so there is nothing to go on with.
    claim.discard(state);
    code
}

async fn run_in(args: &RunArgs, places: &Places, mut config: Config) -> anyhow::Result<ExitCode> {
    let state = &places.state;
    let started = Instant::now();
    if config.log.filter == "info" {
        // The progress says what there is to say.
        "warn".clone_into(&mut config.log.filter);
    }
    telemetry::start(&config.log);
    let stopping = shutdown::on_signal(Hangup::Stops)?;
    let stop = stopping.token().clone();
    let reshape = args.reshape();
    let prepared = prepare::prepare(args, places, &reshape, &mut config, &stop).await?;
    let Some(mut journal) = prepared else {
        return Ok(ExitCode::from(stopping.code()));
    };
    if places.state_is_temporary {
        // Said now: a process that is killed says nothing.
        let state = state.display();
        args.say(&format!(
            "If this run is stopped, it goes on with --state {state}."
        ));
    }
    let store = app::open_store_alone(&config, Clock::default()).await?;
    let output = &places.output;
    let ended = work(args, &config, &store, &journal, output, stop.clone()).await;
    let batch = match (&ended, &journal.batch_id) {
        (Ok(Ended::Batch(_)), _) | (_, None) => None,
        (_, Some(batch_id)) => Some(find(&store, batch_id).await?),
    };
    let kept = journal.kept;
    let summary =
        |status: &'static str| Summary::new(status, batch.as_ref(), kept, started.elapsed());
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            args.report(&places.output, &summary("stopped"))?;
            return Err(error);
        }
    };
    let interrupted = |summary: &Summary<'_>, partial: Option<PathBuf>| {
        args.say(&format!("Interrupted. {}", places.how_to_go_on()));
        if let Some(partial) = partial {
            args.say(&format!("The answers so far: {}", partial.display()));
        }
        args.report(output, summary)?;
        anyhow::Ok(ExitCode::from(stopping.code()))
    };
    let code = match ended {
        Ended::Interrupted(partial) => interrupted(&summary("interrupted"), partial),
        Ended::Batch(batch) => {
            let batch = batch.as_deref();
            // A pipe may have no reader, or one that does not read.
            let concluded = conclude(args, places, &store, batch, &mut journal, started);
            match stop.run_until_cancelled(concluded).await {
                Some(code) => code,
                None => {
                    let summary = Summary::new("interrupted", batch, kept, started.elapsed());
                    interrupted(&summary, None)
                }
            }
        }
    };
    store.close().await;
    code
}

/// Reads the configuration, which must name an upstream; else the environment may, as it does for
/// OpenAI's clients.
fn configure(args: &RunArgs, overrides: Overrides) -> anyhow::Result<Config> {
    let environment = Environment::capture();
    let load =
        |overrides: &Overrides| Config::load(overrides, &environment).map_err(super::has_mistakes);
    let is_named = overrides.upstream.is_some() || environment.get("NIGHTSHIFT_UPSTREAM").is_some();
    // A key without an address of its own is judged with the address of the environment.
    let own_key = Overrides {
        api_key_env: overrides.api_key_env.clone().filter(|_| is_named),
        ..overrides.clone()
    };
    let config = load(&own_key)?;
    // Only now is it known which variables the configuration names.
    super::warn_of(&environment.near_misses());
    if !config.upstreams.is_empty() {
        return if is_named {
            Ok(config)
        } else {
            load(&overrides)
        };
    }
    let Some(url) = environment.get(BASE_URL) else {
        bail!(
            "there is no upstream to send to: give one with --upstream URL, a configuration, or \
             the variable {BASE_URL}"
        );
    };
    let key = overrides.api_key_env.clone();
    let key = key.or_else(|| environment.get(API_KEY).map(|_| API_KEY.to_owned()));
    let with = key.as_deref().map_or_else(
        || "without a key".to_owned(),
        |name| format!("with the key in {name}"),
    );
    args.say(&format!("Sending to {url}, as {BASE_URL} says, {with}."));
    load(&Overrides {
        upstream: Some(url.to_owned()),
        api_key_env: key,
        ..overrides
    })
}

/// Works until the batch ends or the user interrupts.
async fn work(
    args: &RunArgs,
    config: &Config,
    store: &Store,
    journal: &Journal,
    output: &Target,
    stop: CancellationToken,
) -> anyhow::Result<Ended> {
    let Some(batch_id) = &journal.batch_id else {
        return Ok(Ended::Batch(None));
    };
    let batch = find(store, batch_id).await?;
    if batch.stage.status.is_terminal() {
        let hint = if batch.counts.failed > 0 {
            "--retry-failed sends what failed again, and "
        } else {
            ""
        };
        if batch.stage.status != Status::Failed {
            let text = "This run had ended before: nothing is sent";
            args.say(&format!("{text}; {hint}--restart begins anew."));
        }
        return Ok(Ended::Batch(Some(Box::new(batch))));
    }
    let paths = Paths::of(journal);
    let mut partial = Partial::of(&paths.sources(store, journal), output).await?;
    let settings = PoolSettings {
        fail_fast: Some(FailFast {
            calls: ALIKE_MAX,
            has_succeeded: batch.counts.completed > 0,
        }),
        rate: args.rate.map(|interval| CallRate {
            interval,
            stop: stop.clone(),
        }),
        ..PoolSettings::default()
    };
    let pool = Pool::new(config, settings);
    let pool = pool.map_err(anyhow::Error::from).or_exit(NOT_VALID)?;
    let duties = app::settings(config, store);
    let mut worker = Worker::start(store.clone(), pool.clone(), Clock::default(), duties).await?;
    let watched = tokio::select! {
        watched = watch(args, store, &pool, journal, &mut partial, &stop) => watched,
        name = worker.failed() => Err(anyhow::anyhow!("the duty {name} failed")),
    };
    if stop.is_cancelled() {
        args.say("Stopping: waiting for calls in flight. Ctrl-C again stops at once.");
    }
    worker.stop().await;
    match watched {
        Ok(Some(batch)) => Ok(Ended::Batch(Some(Box::new(batch)))),
        ended => {
            let has_answers = find(store, batch_id).await?.counts.completed > 0;
            let left = match partial {
                Some(partial) if has_answers => partial.leave().await,
                _ => None,
            };
            ended.map(|_| Ended::Interrupted(left))
        }
    }
}

/// The files that the answers of a run are read from.
struct Paths {
    lines: PathBuf,
    kept: Option<PathBuf>,
}

impl Paths {
    fn of(journal: &Journal) -> Paths {
        let generation = journal.generation(&journal.state);
        Paths {
            lines: generation.lines(),
            kept: Some(generation.kept()).filter(|kept| kept.exists()),
        }
    }

    fn sources<'a>(&'a self, store: &'a Store, journal: &'a Journal) -> Sources<'a> {
        Sources {
            store,
            batch_id: journal.batch_id.as_deref(),
            lines: &self.lines,
            kept: self.kept.as_deref(),
        }
    }
}

/// Shows how the batch gets on, until it ends, or the user interrupts, or it cannot begin. `None`:
/// the user interrupted.
async fn watch(
    args: &RunArgs,
    store: &Store,
    pool: &Arc<Pool>,
    journal: &Journal,
    partial: &mut Option<Partial>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Batch>> {
    let batch_id = journal.batch_id.as_deref().unwrap_or_default();
    let started = Instant::now();
    let mut progress = if args.quiet {
        Progress::silent()
    } else {
        Progress::new(None)
    };
    let mut is_counted = false;
    let mut failed_before = None;
    loop {
        let batch = find(store, batch_id).await?;
        let snapshot = snapshot(&batch, journal.kept);
        if !is_counted && batch.counts.total > 0 {
            is_counted = true;
            pool.has_lines(usize::try_from(batch.counts.open()).unwrap_or(usize::MAX));
        }
        if batch.stage.status.is_terminal() {
            progress.finish(snapshot, Instant::now());
            return Ok(Some(batch));
        }
        if let Some(partial) = partial {
            partial.grow(snapshot.done - snapshot.kept).await;
        }
        let failed_before = *failed_before.get_or_insert(snapshot.failed);
        if let Some(most) = args.max_failures
            && snapshot.failed.saturating_sub(failed_before) >= most
        {
            progress.finish(snapshot, Instant::now());
            bail!(
                "stopped, because {most} requests have failed (--max-failures). Nothing was lost: \
                 the same command goes on, and --retry-failed sends what failed again"
            );
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
            return Ok(None);
        }
    }
}

/// Which upstreams take no lines now, or fewer than they could, and why.
fn waits_for(upstreams: &[UpstreamStatus]) -> Option<String> {
    let shut = upstreams
        .iter()
        .filter(|upstream| upstream.state != UpstreamState::Up || !upstream.models.is_empty())
        .filter_map(|upstream| {
            let name = &upstream.name;
            let model = upstream.models.first();
            if let Some(cause) = &upstream.cause {
                return Some(format!("waiting for {name}: {cause}"));
            }
            let model = model?;
            let cause = &model.cause;
            if model.reason == Reason::Limited && upstream.in_flight > 0 {
                let (calls, limit) = (upstream.in_flight, upstream.limit);
                return Some(format!(
                    "{name} is rate limited: {calls} of {limit} calls get through ({cause})"
                ));
            }
            let left = match model.left {
                left if left >= WORTH_TELLING => format!(", tried again in {}", short(left)),
                _ => String::new(),
            };
            Some(format!("waiting for {name}: {cause}{left}"))
        });
    let shut: Vec<_> = shut.collect();
    (!shut.is_empty()).then(|| shut.join("; "))
}

async fn find(store: &Store, batch_id: &str) -> anyhow::Result<Batch> {
    store
        .batch(TENANT, batch_id)
        .await?
        .context("the state directory does not hold the batch")
}

fn snapshot(batch: &Batch, kept: u64) -> Snapshot {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    Snapshot {
        done: count(batch.counts.completed + batch.counts.failed) + kept,
        failed: count(batch.counts.failed),
        kept,
        // 0 is not known yet.
        total: match count(batch.counts.total) {
            0 => 0,
            total => total + kept,
        },
        tokens: count(batch.usage.total_tokens),
    }
}

/// Writes the files of a run whose batch has ended, and says how it went.
async fn conclude(
    args: &RunArgs,
    places: &Places,
    store: &Store,
    batch: Option<&Batch>,
    journal: &mut Journal,
    started: Instant,
) -> anyhow::Result<ExitCode> {
    let Places { output, errors, .. } = places;
    let kept = journal.kept;
    let summary = |status: &'static str| Summary::new(status, batch, kept, started.elapsed());
    if let Some(batch) = batch
        && batch.stage.status == Status::Failed
    {
        args.report(output, &summary("invalid"))?;
        return refuse(store, batch, journal).await;
    }
    let paths = Paths::of(journal);
    files::write(&paths.sources(store, journal), Kind::Output, output).await?;
    let is_ours = journal.wrote_errors(errors);
    let error_file = batch.and_then(|batch| batch.row.error_file_id.as_deref());
    if error_file.is_some() {
        // Noted first: only what a run of this output wrote is ever removed.
        if !is_ours {
            journal.note_errors(errors);
            journal.write(&places.state)?;
        }
        files::write(&paths.sources(store, journal), Kind::Error, errors).await?;
    } else if is_ours {
        files::remove(errors)?;
    } else if errors.is_fifo() {
        // Its reader waits for an end.
        errors.open_stream().await?;
    }
    let failures = match error_file {
        Some(file_id) => summary::failures(store, file_id).await?,
        None => Vec::new(),
    };
    let mut summary = summary("completed");
    args.say(&format!(
        "{} of {} requests succeeded: {output}",
        summary.completed, summary.total
    ));
    if summary.failed > 0 {
        args.say(&format!("{} failed: {errors}", summary.failed));
        for failures in failures.iter().take(PRINTED_CAUSES) {
            let (cause, first) = (&failures.cause, &failures.custom_id);
            args.say(&format!("  {} like {first}: {cause}", failures.count));
        }
        if failures.len() > PRINTED_CAUSES {
            args.say(&format!(
                "  … and {} more causes",
                failures.len() - PRINTED_CAUSES
            ));
        }
    }
    summary.output = (!output.is_stdout()).then(|| output.to_string());
    summary.errors = error_file.map(|_| errors.to_string());
    summary.failures = failures;
    args.report(output, &summary)?;
    let counts = batch.map_or(Counts::default(), |batch| batch.counts);
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Says what is wrong with an input.
async fn refuse(store: &Store, batch: &Batch, journal: &Journal) -> anyhow::Result<ExitCode> {
    let errors = batch.row.errors.as_deref().unwrap_or("[]");
    let faults: Vec<Finding> = serde_json::from_str(errors)?;
    let count = match faults.last() {
        Some(last) if last.line.is_none() && last.code == TOO_MANY_ERRORS => {
            prepare::count_faults(store, batch).await?
        }
        _ => faults.len(),
    };
    print_faults(&faults, count);
    // Nothing was sent: once the input is mended, there is nothing to go on with, but for the
    // answers of earlier inputs.
    if journal.kept == 0 {
        Journal::forget(&journal.state)?;
    }
    Ok(ExitCode::from(NOT_VALID))
}

/// Prints the first of so many faults.
fn print_faults(faults: &[Finding], count: usize) {
    tell!("The input is not valid:");
    for fault in faults.iter().take(PRINTED_FAULTS) {
        let place = fault
            .line
            .map_or(String::new(), |line| format!("line {line}: "));
        tell!("  {place}{} ({})", fault.message, fault.code);
    }
    if count > PRINTED_FAULTS {
        tell!("  … and {} more", count - PRINTED_FAULTS);
    }
}

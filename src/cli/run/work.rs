//! The engine at work on the batch of a run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use super::answers::Sources;
use super::args::RunArgs;
use super::exit::{NO_ANSWER, NOT_VALID};
use super::files::Partial;
use super::generation::TENANT;
use super::journal::Journal;
use super::target::Target;
use crate::app;
use crate::cli::OrExit as _;
use crate::cli::progress::{Progress, Snapshot, short};
use crate::config::Config;
use crate::domain::batch::Status;
use crate::domain::clock::Clock;
use crate::store::{Batch, Store};
use crate::upstream::{CallRate, FailFast, Options, Pool, Reason, UpstreamState, UpstreamStatus};
use crate::worker::Worker;

const POLL: Duration = Duration::from_millis(100);
/// How long upstreams may be silent before the command gives up, from its start.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// After so many calls that all fail alike, as only a person can mend it, the command stops.
const ALIKE_MAX: usize = 20;
/// A wait that is told with its length.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// How a run came out.
pub(super) enum Ended {
    /// `None`: there was nothing to send.
    Batch(Option<Box<Batch>>),
    /// With the file that has the answers so far.
    Interrupted(Option<PathBuf>),
}

/// Works until the batch ends or the user interrupts.
pub(super) async fn work(
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
    if batch.state.status.is_terminal() {
        let hint = if batch.counts.failed > 0 {
            "--retry-failed sends what failed again, and "
        } else {
            ""
        };
        if batch.state.status != Status::Failed {
            let text = "This run had ended before: nothing is sent";
            args.say(&format!("{text}; {hint}--restart begins anew."));
        }
        return Ok(Ended::Batch(Some(Box::new(batch))));
    }
    let mut partial = Partial::of(&Sources::of(store, journal), output).await?;
    let options = Options {
        fail_fast: Some(FailFast {
            calls: ALIKE_MAX,
            has_succeeded: batch.counts.completed > 0,
        }),
        rate: args.rate.map(|interval| CallRate {
            interval,
            stop: stop.clone(),
        }),
        ..Options::default()
    };
    let pool = Pool::new(&config.upstream_settings(), options);
    let pool = pool.map_err(anyhow::Error::from).or_exit(NOT_VALID)?;
    let duties = app::settings(config, store);
    let mut worker = Worker::start(store.clone(), pool.clone(), Clock::default(), duties).await?;
    let watched = tokio::select! {
        watched = watch(args, store, &pool, journal, &mut partial, &stop) => watched,
        name = worker.failed() => Err(anyhow::anyhow!("the task {name} failed")),
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
            pool.targets()
                .has_lines(usize::try_from(batch.counts.open()).unwrap_or(usize::MAX));
        }
        if batch.state.status.is_terminal() {
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
        let status = pool.snapshot();
        progress.update(snapshot, waits_for(&status).as_deref(), Instant::now());
        if let Some(cause) = pool.targets().hopeless() {
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

pub(super) async fn find(store: &Store, batch_id: &str) -> anyhow::Result<Batch> {
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

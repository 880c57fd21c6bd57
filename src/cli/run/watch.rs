//! How the batch of a run gets on, for people, and when it is time to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::generation::TENANT;
use super::growing::Growing;
use super::journal::Journal;
use super::target::Target;
use crate::cli::progress::{Progress, Snapshot, short};
use crate::domain::batch::Status;
use crate::store::{Batch, Store};
use crate::upstream::{Pool, Reason, UpstreamState, UpstreamStatus};

const POLL: Duration = Duration::from_millis(100);
/// How long upstreams may be silent before the command gives up, from its start.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A wait that is told with its length.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// How the work came out.
pub(super) enum Ended {
    /// The batch has ended, or there was none to work on.
    Batch,
    /// The batch has not ended.
    Stopped(Stopped),
}

/// Why a run stopped before its batch had ended.
pub(super) enum Stopped {
    Interrupted,
    /// Whoever read the output has gone.
    ReaderGone,
    /// As many requests have failed as the user allows.
    TooManyFailed(u64),
    /// No request can succeed, for this reason.
    Hopeless(String),
    /// No upstream has answered in that time, for these reasons.
    Silent {
        seconds: u64,
        causes: String,
    },
    /// Something else went wrong.
    Fault(anyhow::Error),
}

/// Looks at a batch until it ends, or the user interrupts, or it is of no use to go on.
pub(super) struct Watch<'a> {
    pub args: &'a RunArgs,
    pub store: &'a Store,
    pub pool: &'a Arc<Pool>,
    pub journal: &'a Journal,
    pub output: &'a Target,
    pub stop: &'a CancellationToken,
}

impl Watch<'_> {
    pub(super) async fn run(&self, growing: &mut Growing) -> anyhow::Result<Ended> {
        let batch_id = self.journal.batch_id.as_deref().unwrap_or_default();
        let started = Instant::now();
        // Shown once the input is known to be valid.
        let mut progress = None;
        let mut failed_before = None;
        loop {
            let batch = find(self.store, batch_id).await?;
            let snapshot = snapshot(&batch, self.journal.kept);
            if batch.state.status == Status::Failed {
                return Ok(Ended::Batch);
            }
            let is_known = batch.state.status != Status::Validating && batch.counts.total > 0;
            if is_known && progress.is_none() {
                let open = usize::try_from(batch.counts.open()).unwrap_or(usize::MAX);
                self.pool.targets().has_lines(open);
                progress = Some(self.progress());
            }
            let ended = if batch.state.status.is_terminal() {
                Some(Ended::Batch)
            } else {
                let failed_before = *failed_before.get_or_insert(snapshot.failed);
                let failed = snapshot.failed.saturating_sub(failed_before);
                let stopped = self.reason_to_stop(failed, started.elapsed());
                let grown = growing.grow(snapshot.done - snapshot.kept).await;
                stopped.or(grown.err().map(stopped_by)).map(Ended::Stopped)
            };
            if let Some(ended) = ended {
                if let Some(progress) = progress {
                    progress.finish(snapshot, Instant::now());
                }
                return Ok(ended);
            }
            if let Some(progress) = &mut progress {
                let held_up = waits_for(&self.pool.snapshot());
                progress.update(snapshot, held_up.as_deref(), Instant::now());
            }
            let paused = self.stop.run_until_cancelled(tokio::time::sleep(POLL));
            if paused.await.is_none() {
                if let Some(progress) = progress {
                    progress.finish(snapshot, Instant::now());
                }
                return Ok(Ended::Stopped(Stopped::Interrupted));
            }
        }
    }

    fn progress(&self) -> Progress {
        if self.args.quiet {
            Progress::silent()
        } else if self.output.is_terminal() {
            // A bar would stand among the answers.
            Progress::lines()
        } else {
            Progress::new(None)
        }
    }

    fn reason_to_stop(&self, failed: u64, elapsed: Duration) -> Option<Stopped> {
        if let Some(most) = self.args.max_failures
            && failed >= most
        {
            return Some(Stopped::TooManyFailed(most));
        }
        if let Some(cause) = self.pool.targets().hopeless() {
            return Some(Stopped::Hopeless(cause));
        }
        let status = self.pool.snapshot();
        let is_silent = status
            .iter()
            .all(|upstream| !upstream.answered && upstream.in_flight == 0);
        if !is_silent || elapsed < FIRST_ANSWER_WITHIN {
            return None;
        }
        let causes = status
            .into_iter()
            .filter_map(|upstream| Some(format!("{}: {}", upstream.name, upstream.cause?)));
        Some(Stopped::Silent {
            seconds: FIRST_ANSWER_WITHIN.as_secs(),
            causes: causes.collect::<Vec<_>>().join("; "),
        })
    }
}

/// Why an output took no more.
pub(super) fn stopped_by(error: anyhow::Error) -> Stopped {
    let cause = error.downcast_ref::<std::io::Error>();
    match cause.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::BrokenPipe) => Stopped::ReaderGone,
        _ => Stopped::Fault(error),
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

//! How the batch of a run gets on, for people, and when it is time to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::generation::TENANT;
use super::journal::Journal;
use super::places::Places;
use super::result::growing::Growing;
use super::result::target::Unwritable;
use crate::cli::progress::{Details, Progress, Snapshot};
use crate::domain::batch::Status;
use crate::domain::clock::Clock;
use crate::store::{Batch, Store};
use crate::upstream::Pool;
use crate::worker::Observer;

const POLL: Duration = Duration::from_millis(100);
/// How long upstreams may be silent before the command gives up, from its start.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(30);

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
    /// Whoever read a result, which is named here, has gone.
    ReaderGone(String),
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
    pub(super) args: &'a RunArgs,
    pub(super) store: &'a Store,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) observer: &'a Observer,
    /// How far the batch was before this process worked on it.
    pub(super) before: Snapshot,
    pub(super) journal: &'a Journal,
    pub(super) places: &'a Places,
    pub(super) stop: &'a CancellationToken,
}

impl Watch<'_> {
    pub(super) async fn run(&self, growing: &mut Growing) -> anyhow::Result<Ended> {
        let batch_id = self.journal.batch_id().unwrap_or_default();
        let started = Instant::now();
        // Shown once the input is known to be valid.
        let mut progress = None;
        let clock = Clock::default();
        loop {
            let batch = find(self.store, batch_id).await?;
            let snapshot = snapshot(&batch, self.journal.kept());
            if batch.state.status == Status::Failed {
                return Ok(Ended::Batch);
            }
            let is_known = batch.state.status != Status::Validating && batch.counts.total > 0;
            if is_known && progress.is_none() {
                let open = usize::try_from(batch.counts.open()).unwrap_or(usize::MAX);
                self.pool.targets().has_lines(open);
                let mut shown = self.progress();
                shown.begin(self.before, started);
                progress = Some(shown);
            }
            let ended = if batch.state.status.is_terminal() {
                Some(Ended::Batch)
            } else {
                let failed = snapshot.failed.saturating_sub(self.before.failed);
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
                let details = self.details(progress, clock.now_ms());
                progress.update(snapshot, &details, Instant::now());
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

    fn details(&self, progress: &Progress, now_ms: i64) -> Details {
        let upstreams = self.pool.snapshot();
        let in_flight = upstreams.iter().map(|upstream| upstream.in_flight).sum();
        let age = progress.notable_age(in_flight);
        Details {
            failures: self.observer.failures(),
            failed_before: self.before.failed,
            old_calls: self.pool.calls_older_than(age),
            upstreams,
            now_ms,
        }
    }

    fn progress(&self) -> Progress {
        if self.args.quiet {
            Progress::silent()
        } else if self.places.output.is_terminal() || self.places.errors.is_terminal() {
            // A bar would stand among the results.
            Progress::lines()
        } else {
            Progress::new(None)
        }
    }

    fn reason_to_stop(&self, failed: u64, elapsed: Duration) -> Option<Stopped> {
        if let Some(most) = self.args.max_failures
            && failed >= most
        {
            return Some(Stopped::TooManyFailed(failed));
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

/// Why a result took no more.
pub(super) fn stopped_by(error: anyhow::Error) -> Stopped {
    match error.downcast_ref::<Unwritable>() {
        Some(unwritable) if unwritable.has_no_reader() => {
            Stopped::ReaderGone(unwritable.target.clone())
        }
        _ => Stopped::Fault(error),
    }
}

pub(super) async fn find(store: &Store, batch_id: &str) -> anyhow::Result<Batch> {
    store
        .batch(TENANT, batch_id)
        .await?
        .context("the state directory does not hold the batch")
}

pub(super) fn snapshot(batch: &Batch, kept: u64) -> Snapshot {
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

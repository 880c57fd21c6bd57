//! Group commit: what finished anywhere in the process goes to disk together.

pub(crate) mod accept;
mod due;
mod layout;
pub(crate) mod paces;
mod tail;
mod write;

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::store::Store;
use crate::upstream::Pool;
use crate::worker::dispatch::Dispatch;
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::lease::Lease;
use crate::worker::work::finished::{CompletionQueue, FinishedLine};
use accept::FailureCounts;
use due::Due;
use layout::Group;
use paces::Paces;
use write::Writer;

/// To lay out so few bytes takes less time than a change of threads.
const LAID_OUT_HERE_MAX: usize = 64 << 10;

pub(crate) struct Flusher {
    completions: Arc<CompletionQueue>,
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    ownership: Arc<Ownership>,
    writer: Writer,
    /// A process runs one flush at a time.
    turn: Mutex<()>,
}

impl Flusher {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: &Dispatch,
        completions: Arc<CompletionQueue>,
        lease: Arc<Lease>,
    ) -> Flusher {
        let writer = Writer::new(
            store,
            lease,
            Arc::clone(&dispatch.ownership),
            Arc::clone(&dispatch.scheduler),
            Arc::clone(&dispatch.write_failures),
        );
        Flusher {
            completions,
            pool,
            ledger: Arc::clone(&dispatch.ledger),
            ownership: Arc::clone(&dispatch.ownership),
            writer,
            turn: Mutex::new(()),
        }
    }

    /// Flushes whenever a flush is due, until stopped.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> &'static str {
        let mut earliest = None;
        loop {
            let due = due::due(&self.completions, &self.ledger, &self.pool, &mut earliest);
            let Some(due) = stop.run_until_cancelled(due).await else {
                break;
            };
            self.flush(due).await;
            if due == Due::All {
                earliest = None;
            }
        }
        "flush"
    }

    /// Writes all that has finished so far.
    pub(crate) async fn drain(&self) {
        while self.completions.size().0 > 0 {
            self.flush(Due::All).await;
        }
        // Another flush may be under way with lines that finished before.
        drop(self.turn.lock().await);
    }

    /// How fast batches were lately.
    pub(crate) fn paces(&self) -> Arc<Paces> {
        self.writer.paces()
    }

    /// The lines that this process has written as failed.
    pub(crate) fn failed_lines(&self) -> Arc<FailureCounts> {
        self.writer.failed_lines()
    }

    async fn flush(&self, due: Due) {
        let _turn = self.turn.lock().await;
        let finished = match due {
            Due::All => self.completions.take(),
            Due::WholeBatches => self.completions.take_whole_batches(),
        };
        if finished.is_empty() {
            return;
        }
        let groups = self.lay_out(layout::by_unit(finished)).await;
        for groups in layout::into_transactions(groups) {
            self.writer.write(groups).await;
        }
        // The budget has room again.
        self.ledger.notify_scheduler();
    }

    /// Lays out the segments and tails of units. A unit of which nothing can be laid out is
    /// revoked, and its lines run again.
    async fn lay_out(&self, finished: Vec<Vec<FinishedLine>>) -> Vec<Group> {
        let units: Vec<_> = finished.iter().map(|lines| lines[0].unit.clone()).collect();
        let bytes: usize = finished.iter().map(|lines| layout::raw_size(lines)).sum();
        let lay_out = move || layout::lay_out_all(finished);
        let groups = if bytes <= LAID_OUT_HERE_MAX {
            Ok(lay_out())
        } else {
            tokio::task::spawn_blocking(lay_out).await
        };
        let groups = match groups {
            Ok(groups) => groups,
            Err(error) => {
                tracing::error!(%error, "the thread that compresses answers failed");
                let units = units.iter();
                units.for_each(|unit| self.ownership.revoke_unit(unit));
                return Vec::new();
            }
        };
        let groups = units.iter().zip(groups).filter_map(|(unit, group)| {
            if group.is_none() {
                self.ownership.revoke_unit(unit);
            }
            group
        });
        groups.collect()
    }
}

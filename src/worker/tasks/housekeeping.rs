//! Which process keeps house. Tasks are mostly notified of what there is to do; but a process may
//! die before it has notified them, and windows end by themselves. One process looks for all of
//! that. The others look only whether one does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::jitter::jittered;
use crate::store::Store;

const TASK: &str = "housekeeping";
/// How often a process looks whether it keeps house, or whether nobody does.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a process that stops tries to leave the house to another.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// Whether this process keeps house.
pub(crate) struct Housekeeping {
    is_ours: AtomicBool,
}

impl Housekeeping {
    /// `alone`: there are no other processes.
    pub(crate) fn new(alone: bool) -> Housekeeping {
        Housekeeping {
            is_ours: AtomicBool::new(alone),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.is_ours.load(Ordering::Relaxed)
    }
}

/// Takes the housekeeping when nobody has it, until stopped. The process that has it keeps it while
/// its lease runs, and leaves it to others when it begins to stop.
pub(crate) async fn run(
    housekeeping: Arc<Housekeeping>,
    store: Store,
    holder: Arc<str>,
    stop: CancellationToken,
) -> &'static str {
    let keep = async {
        loop {
            let was_ours = housekeeping.is_ours();
            match store.hold_task(TASK, &holder).await {
                Ok(is_ours) => {
                    if is_ours != was_ours {
                        tracing::debug!(is_ours, "the housekeeping has changed hands");
                    }
                    housekeeping.is_ours.store(is_ours, Ordering::Relaxed);
                }
                // A process that keeps house goes on. Two that do so at once do no harm.
                Err(error) => tracing::debug!(%error, "it is not known who keeps house"),
            }
            tokio::time::sleep(jittered(LOOK_INTERVAL)).await;
        }
    };
    stop.run_until_cancelled(keep).await;
    if housekeeping.is_ours() {
        let left = tokio::time::timeout(LEAVE_MAX, store.give_up_task(TASK, &holder)).await;
        if !matches!(left, Ok(Ok(()))) {
            tracing::debug!("nobody keeps house until the lease of this process has ended");
        }
    }
    "housekeeping"
}

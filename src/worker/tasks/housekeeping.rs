//! Who looks for what nobody has told of. What duties do is mostly told to who is to do it; but a
//! process may die before it has told, and windows end by themselves. One process looks for all
//! of that, and the others only whether somebody does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::task::jittered;
use crate::store::Store;
use crate::worker::lease::millis;

const TASK: &str = "housekeeping";
/// How often who has the task says so, and how long it has it from then on.
const BEAT: Duration = Duration::from_secs(1);
const TERM: Duration = Duration::from_secs(3);
/// How often the others look whether it is free.
const LOOK: Duration = Duration::from_secs(2);

/// Whether this process is the one.
pub(crate) struct Housekeeping {
    is_ours: AtomicBool,
}

impl Housekeeping {
    /// `alone`: there are no others.
    pub(crate) fn new(alone: bool) -> Housekeeping {
        Housekeeping {
            is_ours: AtomicBool::new(alone),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.is_ours.load(Ordering::Relaxed)
    }
}

/// Has the task while it can, until stopped.
pub(crate) async fn run(
    housekeeping: Arc<Housekeeping>,
    store: Store,
    holder: Arc<str>,
    stop: CancellationToken,
) -> &'static str {
    let keep = async {
        loop {
            let was_ours = housekeeping.is_ours();
            let held = store.hold_task(TASK, &holder, millis(TERM), was_ours).await;
            match held {
                Ok(is_ours) => {
                    if is_ours != was_ours {
                        tracing::debug!(is_ours, "the housekeeping has changed hands");
                    }
                    housekeeping.is_ours.store(is_ours, Ordering::Relaxed);
                }
                // Whoever has it may go on: two who do are no harm.
                Err(error) => tracing::debug!(%error, "it is not known who keeps house"),
            }
            let pause = if housekeeping.is_ours() { BEAT } else { LOOK };
            tokio::time::sleep(jittered(pause)).await;
        }
    };
    stop.run_until_cancelled(keep).await;
    "housekeeping"
}

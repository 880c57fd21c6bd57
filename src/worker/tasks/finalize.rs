//! Ending batches that have nothing left to run. The process that writes the last line of a batch
//! ends the batch, and notifies no other process. Where the process dies in between, another
//! process finds the batch.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::Instrument as _;

use super::attempts::Attempts;
use super::task::{Look, Next, Task};
use crate::metrics::trace;
use crate::store::{self, Finalized, Store, Who};

/// How soon a batch is tried again whose row another process had.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Finalize {
    store: Store,
    /// Batches that are to be looked at again.
    again: BTreeSet<String>,
}

impl Finalize {
    pub(crate) fn new(store: Store) -> Finalize {
        Finalize {
            store,
            again: BTreeSet::new(),
        }
    }
}

impl Task for Finalize {
    const NAME: &'static str = "finalize";
    const TICK: Duration = Duration::from_secs(2);
    const WHO: Option<Who> = Some(Who::Finishers);

    async fn round(&mut self, look: Look) -> store::Result<Next> {
        self.again.append(&mut self.store.take_finished());
        let drained = match look {
            Look::Notified => self.store.drained_of(&self.again).await?,
            Look::All => self.store.drained().await?,
        };
        // A batch that has units left is notified of again by the flush of the last one.
        self.again.clear();
        let mut attempts = Attempts::default();
        for batch_id in drained {
            match finalize(&self.store, &batch_id, &mut attempts).await? {
                Some(Finalized::Ended) => attempts.succeeded(),
                Some(Finalized::Busy) => drop(self.again.insert(batch_id)),
                Some(Finalized::NotYet) | None => {}
            }
        }
        let have_failed = attempts.have_failed();
        // A batch that fails again and again does not hold up the others.
        let has_ended = attempts.finish()?;
        Ok(if look == Look::All && has_ended {
            Next::AtOnce
        } else if !self.again.is_empty() || have_failed {
            Next::After(BUSY_PAUSE)
        } else {
            Next::Later
        })
    }
}

/// Ends the batches that are drained, once, where the process stops.
pub(crate) async fn finalize_drained(store: &Store) -> store::Result<()> {
    let mut attempts = Attempts::default();
    for batch_id in store.drained().await? {
        if finalize(store, &batch_id, &mut attempts).await?.is_some() {
            attempts.succeeded();
        }
    }
    attempts.finish().map(drop)
}

async fn finalize(
    store: &Store,
    batch_id: &str,
    attempts: &mut Attempts,
) -> store::Result<Option<Finalized>> {
    let span = tracing::trace_span!(
        target: trace::TARGET,
        parent: None,
        "finish batch",
        batch.id = batch_id,
    );
    let finished = store.finalize_batch(batch_id).instrument(span).await;
    attempts.take(finished, |error| {
        tracing::error!(batch.id = batch_id, %error, "a batch cannot be ended");
    })
}

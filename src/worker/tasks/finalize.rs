//! Ending batches that have nothing left to run. The process that writes the last line of a batch
//! ends the batch, and notifies no other process. Where the process dies in between, another
//! process finds the batch.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::Span;

use super::attempts::Attempts;
use super::task::{Look, Next, Task};
use crate::metrics::trace;
use crate::store::{self, Drained, Finalized, Store, Who};

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
        for group in Drained::into_groups(drained) {
            for (batch_id, finalized) in finalize(&self.store, group, &mut attempts).await? {
                match finalized {
                    Finalized::Ended => attempts.succeeded(),
                    Finalized::Busy => drop(self.again.insert(batch_id)),
                    Finalized::NotYet => {}
                }
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
    for group in Drained::into_groups(store.drained().await?) {
        if !finalize(store, group, &mut attempts).await?.is_empty() {
            attempts.succeeded();
        }
    }
    attempts.finish().map(drop)
}

/// Ends a group of batches in one transaction, or each batch by itself where that fails. Leaves out
/// those that fail by themselves.
async fn finalize(
    store: &Store,
    group: Vec<String>,
    attempts: &mut Attempts,
) -> store::Result<Vec<(String, Finalized)>> {
    match finalize_together(store, &group).await {
        Ok(finalized) => return Ok(group.into_iter().zip(finalized).collect()),
        Err(error) if group.len() > 1 && (!error.is_outage() || error.is_timeout()) => {
            tracing::warn!(%error, "batches could not be ended together; one at a time");
        }
        Err(error) => {
            let failed = attempts.take::<()>(Err(error), |error| {
                tracing::error!(batch.id = group[0], %error, "a batch cannot be ended");
            });
            return failed.map(|_| Vec::new());
        }
    }
    let mut all = Vec::with_capacity(group.len());
    for batch_id in group {
        let finalized = finalize_together(store, std::slice::from_ref(&batch_id)).await;
        let finalized = attempts.take(finalized, |error| {
            tracing::error!(batch.id = batch_id, %error, "a batch cannot be ended; the others are");
        })?;
        all.extend(
            finalized
                .into_iter()
                .flatten()
                .map(|one| (batch_id.clone(), one)),
        );
    }
    Ok(all)
}

async fn finalize_together(store: &Store, group: &[String]) -> store::Result<Vec<Finalized>> {
    // Each ends when the batches are ended.
    let _spans: Vec<Span> = group.iter().map(|id| trace::finish_batch(id)).collect();
    let ids: Vec<&str> = group.iter().map(String::as_str).collect();
    store.finalize_batches(&ids).await
}

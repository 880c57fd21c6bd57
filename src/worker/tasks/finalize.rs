//! Ending batches that have nothing left to run. Who writes the last line of a batch ends it, and
//! tells nobody else; where that process dies in between, another finds the batch.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::Instrument as _;

use super::task::{Duty, Look, Next};
use crate::metrics::trace;
use crate::store::{self, Finalized, Store, Who};

/// How soon a batch is tried again whose row somebody else had.
const BUSY_PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Finish {
    store: Store,
    /// Batches that are to be looked at again.
    again: BTreeSet<String>,
}

impl Finish {
    pub(crate) fn new(store: Store) -> Finish {
        Finish {
            store,
            again: BTreeSet::new(),
        }
    }
}

impl Duty for Finish {
    const NAME: &'static str = "finish";
    const TICK: Duration = Duration::from_secs(2);
    const WHO: Option<Who> = Some(Who::Finishers);

    async fn round(&mut self, look: Look) -> store::Result<Next> {
        self.again.append(&mut self.store.take_finished());
        let drained = match look {
            Look::Told => self.store.drained_of(&self.again).await?,
            Look::All => self.store.drained().await?,
        };
        // What is not drained now is told again when it is.
        self.again.clear();
        let (mut ended, mut failed) = (false, None);
        for batch_id in drained {
            let span = tracing::trace_span!(
                target: trace::TARGET,
                parent: None,
                "finish batch",
                batch.id = batch_id,
            );
            match self.store.finalize_batch(&batch_id).instrument(span).await {
                Ok(Finalized::Ended) => ended = true,
                Ok(Finalized::NotYet) => {}
                Ok(Finalized::Busy) => drop(self.again.insert(batch_id)),
                Err(error) if error.is_outage() && !error.is_timeout() => return Err(error),
                Err(error) => {
                    tracing::error!(batch.id = batch_id, %error, "a batch cannot be ended");
                    failed = Some(error);
                }
            }
        }
        match failed {
            // The others are not held up by one that fails again and again.
            Some(error) if !ended => Err(error),
            _ if look == Look::All && ended => Ok(Next::AtOnce),
            _ if !self.again.is_empty() || failed.is_some() => Ok(Next::After(BUSY_PAUSE)),
            _ => Ok(Next::Later),
        }
    }
}

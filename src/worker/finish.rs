//! Ending batches that have nothing left to run.

use std::time::Duration;

use tracing::Instrument as _;

use super::duty::{self, Duty};
use crate::observe::trace;
use crate::store::{self, Store};

pub(super) struct Finish {
    pub store: Store,
}

impl Duty for Finish {
    const NAME: &'static str = "finish";
    const TICK: Duration = Duration::from_secs(2);

    async fn round(&mut self) -> store::Result<bool> {
        let drained = self.store.drained().await?;
        duty::each(&drained, |batch_id| {
            let span = tracing::trace_span!(
                target: trace::TARGET,
                parent: None,
                "finish batch",
                batch.id = batch_id,
            );
            self.store.finish_batch(batch_id).instrument(span)
        })
        .await?;
        Ok(!drained.is_empty())
    }
}

//! Ending the completion windows of batches whose time is over.

use std::time::Duration;

use super::task::{Look, Next, Task};
use crate::store::{self, Store, Who};

pub(crate) struct ExpireBatches {
    pub store: Store,
}

impl Task for ExpireBatches {
    const NAME: &'static str = "expire_batches";
    const TICK: Duration = Duration::from_secs(1);
    const WHO: Option<Who> = None;

    async fn round(&mut self, _: Look) -> store::Result<Next> {
        Ok(match self.store.expire_batches().await? {
            0 => Next::Later,
            _ => Next::AtOnce,
        })
    }
}

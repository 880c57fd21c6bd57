//! Ending completion windows.

use std::time::Duration;

use super::task::{Duty, Look, Next};
use crate::store::{self, Store, Who};

pub(crate) struct Windows {
    pub store: Store,
}

impl Duty for Windows {
    const NAME: &'static str = "windows";
    const TICK: Duration = Duration::from_secs(1);
    const WHO: Option<Who> = None;

    async fn round(&mut self, _: Look) -> store::Result<Next> {
        Ok(match self.store.expire_batches().await? {
            0 => Next::Later,
            _ => Next::AtOnce,
        })
    }
}

//! Ending completion windows.

use std::time::Duration;

use super::duty::Duty;
use crate::store::{self, Store};

pub(super) struct Windows {
    pub store: Store,
}

impl Duty for Windows {
    const NAME: &'static str = "windows";
    const TICK: Duration = Duration::from_secs(1);
    const WAKES: bool = false;

    async fn round(&mut self) -> store::Result<bool> {
        Ok(self.store.end_windows().await? > 0)
    }
}

//! The deadline of a call.

use std::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer for calls that are made one after the other: to reset a timer costs less than to make
/// another one.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Sets the timer anew.
    pub(super) fn set(&mut self, deadline: Instant) -> Pin<&mut Sleep> {
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        sleep.as_mut().reset(deadline);
        sleep.as_mut()
    }
}

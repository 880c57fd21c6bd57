//! Waiting until something is so.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Between two looks. The first looks follow each other faster.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// What one look of [`eventually`] says: whether it is so (`bool`), what was found (`Option`), or
/// what was found or else was seen instead (`Result`).
pub trait Look {
    type Found;

    /// What was found, or what to show if nothing better comes.
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "it is not so".to_owned())
    }
}

impl<T> Look for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "there is none".to_owned())
    }
}

impl<T, E: Display> Look for Result<T, E> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.map_err(|seen| seen.to_string())
    }
}

/// Looks again and again until it is so; returns what was found. The one way to wait for anything
/// in these tests: nothing that is waited for may take a time that the test knows.
pub async fn eventually<L: Look>(what: &str, mut look: impl AsyncFnMut() -> L) -> L::Found {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    let mut seen = "no look has ended".to_owned();
    loop {
        let looked = tokio::time::timeout_at(deadline.into(), look()).await;
        match looked.map(Look::found) {
            Ok(Ok(found)) => return found,
            Ok(Err(instead)) => seen = instead,
            Err(_) => {}
        }
        assert!(Instant::now() < deadline, "not in time: {what}: {seen}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

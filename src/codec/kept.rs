//! Contexts of zstd, kept to be used again: to make one costs as much as to decompress some tens
//! of kilobytes, or to compress a few.

use std::io;
use std::sync::{Mutex, PoisonError};

/// So many are kept at most. Those that are used at once may be more.
const KEPT_MAX: usize = 8;

pub(super) struct Kept<T>(Mutex<Vec<T>>);

impl<T> Kept<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Lends a context for one piece of work; one that failed is not kept.
    pub(super) fn with<R>(
        &self,
        make: impl FnOnce() -> io::Result<T>,
        work: impl FnOnce(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        let kept = self.lock().pop();
        let mut context = kept.map_or_else(make, Ok)?;
        let done = work(&mut context)?;
        let mut kept = self.lock();
        if kept.len() < KEPT_MAX {
            kept.push(context);
        }
        Ok(done)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<T>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_used_again_but_not_after_a_failure() {
        let kept = Kept::new();
        let mut made = 0;
        for (work, expected) in [(Ok(()), 1), (Err(()), 1), (Ok(()), 2), (Ok(()), 2)] {
            let make = || {
                made += 1;
                Ok(made)
            };
            let work = |_: &mut i32| work.map_err(|()| io::Error::other("failed"));
            let _ = kept.with(make, work);
            assert_eq!(made, expected);
        }
    }

    #[test]
    fn only_so_many_contexts_are_kept() {
        fn all_at_once(kept: &Kept<()>, left: usize) -> io::Result<()> {
            match left {
                0 => Ok(()),
                left => kept.with(|| Ok(()), |()| all_at_once(kept, left - 1)),
            }
        }
        let kept = Kept::new();
        all_at_once(&kept, 2 * KEPT_MAX).unwrap();
        assert_eq!(kept.lock().len(), KEPT_MAX);
    }
}

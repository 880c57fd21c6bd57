//! How it went for each of several things. A thing that fails does not keep the others from being
//! done, and is no reason to wait for long where others went well.

use crate::store::{Error, Result};

#[derive(Default)]
pub(crate) struct Attempts {
    has_succeeded: bool,
    failed: Option<Error>,
}

impl Attempts {
    /// Takes in how it went for one thing. `None`: it failed, and the others go on.
    ///
    /// # Errors
    /// When the database is away: then the others would fail as well.
    pub(crate) fn take<T>(
        &mut self,
        attempt: Result<T>,
        say: impl FnOnce(&Error),
    ) -> Result<Option<T>> {
        match attempt {
            Ok(outcome) => Ok(Some(outcome)),
            Err(error) if error.is_outage() && !error.is_timeout() => Err(error),
            Err(error) => {
                say(&error);
                self.failed = Some(error);
                Ok(None)
            }
        }
    }

    /// Something was done.
    pub(crate) fn succeeded(&mut self) {
        self.has_succeeded = true;
    }

    pub(crate) fn have_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether something was done.
    ///
    /// # Errors
    /// When something failed and nothing was done.
    pub(crate) fn finish(self) -> Result<bool> {
        match self.failed {
            Some(error) if !self.has_succeeded => Err(error),
            _ => Ok(self.has_succeeded),
        }
    }
}

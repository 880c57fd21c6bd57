//! The codes that commands exit with, and errors that have one. The help of `nightshift run`
//! explains them.

/// Some requests of a run failed, or the run could not be finished.
pub(super) const FAILED: u8 = 1;
/// The command line is wrong; `clap` exits so, too.
pub(super) const USAGE: u8 = 2;
/// The input or the configuration of a run is not valid: nothing was sent.
pub(super) const NOT_VALID: u8 = 3;
/// No upstream answered, or the upstreams refuse every request.
pub(super) const NO_ANSWER: u8 = 4;
/// What a shell shows of a process that SIGPIPE ended.
pub(super) const READER_GONE: u8 = 141;

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
pub(super) struct Exit {
    pub(super) code: u8,
    pub(super) error: anyhow::Error,
}

/// Gives the error of a result an exit code, unless it has one.
pub(super) trait OrExit<T> {
    fn or_exit(self, code: u8) -> anyhow::Result<T>;
}

impl<T> OrExit<T> for anyhow::Result<T> {
    fn or_exit(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| match error.downcast::<Exit>() {
            Ok(exit) => exit.into(),
            Err(error) => Exit { code, error }.into(),
        })
    }
}

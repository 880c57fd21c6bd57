//! Why no answer came, found at the bottom of the errors of two HTTP clients.

use std::error::Error as StdError;
use std::fs::File;
use std::io;

use rustix::io::Errno;

/// Of this process, and of all processes together.
const NO_DESCRIPTOR: [Errno; 2] = [Errno::MFILE, Errno::NFILE];

/// Why no answer, or no more of it, came; in words without addresses.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream) enum Error {
    /// The request was not sent.
    #[error("its name cannot be resolved: {0}")]
    Resolve(String),
    #[error("no connection in time")]
    ConnectTimeout,
    #[error("no connection: {0}")]
    Connect(String),
    /// This process, or this machine, has no file descriptor left for it.
    #[error("no file descriptor is left for a connection")]
    NoDescriptor,
    /// It may have been.
    #[error("the connection was lost before the answer was whole: {0}")]
    Lost(String),
    /// It was answered, in a content coding that cannot be undone.
    #[error("{0}")]
    Undecodable(String),
}

/// An error and what lies below it, down to the bottom. An `io::Error` is looked into, for it does
/// not give what it holds as its source.
pub(super) fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let held = error.downcast_ref::<io::Error>();
        match held.and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        }
    })
}

/// Whether there is no connection because this side has no file descriptor left.
pub(super) fn lacks_descriptor(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|error| {
        let io = error.downcast_ref::<io::Error>();
        let code = io.and_then(io::Error::raw_os_error);
        code.is_some_and(|code| NO_DESCRIPTOR.contains(&Errno::from_raw_os_error(code)))
    })
}

/// The same for an error that does not tell its reason, as that of resolving a name: whether there
/// is none left now.
pub(super) fn none_is_left() -> bool {
    File::open("/dev/null").is_err_and(|error| lacks_descriptor(&error))
}

/// What lies at the bottom of an error: the layers above add nothing, or an address.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let innermost = causes(error).last();
    innermost.map(ToString::to_string).unwrap_or_default()
}

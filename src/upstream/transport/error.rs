//! Why no answer came, found at the bottom of the errors of two HTTP clients.

use std::error::Error as StdError;
use std::fs::File;
use std::io;

use rustix::io::Errno;

/// Why no answer, or no more of it, came; in words without addresses.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// This machine has no port left for a connection to the server's address, or no way there.
    #[error("no local port is left for a connection")]
    NoPort,
    /// The server has surely not worked on the request.
    #[error("the server did not take the request: {0}")]
    Refused(String),
    /// The request may have been sent.
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

/// What this side lacks for a connection, where that is why there is none.
pub(super) fn lack(error: &(dyn StdError + 'static)) -> Option<Error> {
    causes(error).find_map(|error| {
        let code = error.downcast_ref::<io::Error>()?.raw_os_error()?;
        match Errno::from_raw_os_error(code) {
            // Of this process, and of all processes together.
            Errno::MFILE | Errno::NFILE => Some(Error::NoDescriptor),
            Errno::ADDRNOTAVAIL => Some(Error::NoPort),
            _ => None,
        }
    })
}

/// For an error that does not tell its reason, as that of resolving a name: whether no descriptor
/// is left now.
pub(super) fn none_is_left() -> bool {
    File::open("/dev/null").is_err_and(|error| lack(&error).is_some())
}

/// What lies at the bottom of an error: the layers above add nothing, or an address.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let innermost = causes(error).last();
    innermost.map(ToString::to_string).unwrap_or_default()
}

//! File descriptors: each connection takes one, and a shell gives a process few.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the number of descriptors that the process may have to the most that the system allows.
/// Systems set the usual number low (1,024, or 256 on macOS), for the sake of programs that cannot
/// take more. This one can.
pub(super) fn raise() {
    let mut limits = getrlimit(Resource::Nofile);
    if limits.current == limits.maximum {
        return;
    }
    limits.current = limits.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limits) {
        // Some systems have a lower bound that they do not report. What there is may be enough.
        tracing::debug!(%error, "the number of file descriptors cannot be raised");
    }
}

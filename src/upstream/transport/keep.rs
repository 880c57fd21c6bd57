//! How long connections are kept, and how it is seen that the other side is gone.

use std::time::Duration;

/// Idle connections are dropped before servers drop them (uvicorn and Node do so after 5 s): a
/// line sent into a connection that is just being closed would lose an attempt.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(4);

/// A connection that says nothing for so long is asked whether it is still there, so that neither a
/// firewall forgets it nor a call waits for a machine that is gone…
pub(super) const KEEPALIVE: Duration = Duration::from_secs(15);
/// …and is given up when it has not answered so often, or has not taken what was sent.
pub(super) const KEEPALIVE_RETRIES: u32 = 3;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// Over HTTP/2 the server itself is asked as often, and must say something within so long. Long: a
/// server that computes in the thread that reads its connections answers nothing meanwhile.
pub(super) const SILENT_MAX: Duration = Duration::from_mins(2);

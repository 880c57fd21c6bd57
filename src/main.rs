//! The binary: everything is in the library, so that tests can start it in their own process.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// A read or a write that is under way at the end gets so long. One of a pipe may never end.
const LAST_READ_OR_WRITE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(nightshift::cli::main());
    runtime.shutdown_timeout(LAST_READ_OR_WRITE);
    code
}

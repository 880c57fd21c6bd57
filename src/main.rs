//! The binary: everything is in the library, so that tests can start it in their own process.

use std::process::ExitCode;

/// Each line's answer is a few short-lived allocations, often freed on another thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    nightshift::cli::main().await
}

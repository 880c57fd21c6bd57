//! Being asked to stop: the first signal asks politely, the second is final.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell expects of a process that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// A token that SIGINT or SIGTERM cancels. A second signal ends the process at once: what was
/// flushed is safe, and what was not is sent again.
///
/// # Errors
/// When the operating system refuses to hand signals over.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        asked.cancel();
        either(&mut interrupt, &mut terminate).await;
        std::process::exit(i32::from(INTERRUPTED));
    });
    Ok(stop)
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

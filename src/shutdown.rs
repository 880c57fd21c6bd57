//! Being asked to stop: the first signal asks politely, the second is final.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a shell expects of a process that was interrupted.
const INTERRUPTED: u8 = 130;
/// What a shell expects of a process that was terminated.
const TERMINATED: u8 = 143;

/// What SIGHUP means to a command: a terminal that is closed sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// The same as SIGTERM.
    Stops,
    /// The command goes on, and reads its configuration again.
    Reloads,
}

/// Whether the process was asked to stop, and how.
#[derive(Clone, Debug)]
pub struct Stop {
    token: CancellationToken,
    code: Arc<AtomicU8>,
    reloads: Arc<Notify>,
}

impl Stop {
    /// Notified by each SIGHUP, where that asks to read the configuration again.
    #[must_use]
    pub fn reloads(&self) -> &Arc<Notify> {
        &self.reloads
    }

    /// Cancelled by the first signal.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The exit code of a process that the first signal ended.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code.load(Ordering::Relaxed)
    }
}

/// Listens for SIGINT, SIGTERM and SIGHUP. A second signal ends the process at once: what was
/// flushed is safe, and what was not is sent again. A second SIGHUP does not: a terminal that is
/// closed sends several. SIGHUP is left alone where the process was started to outlive its
/// terminal, as by `nohup`.
///
/// # Errors
/// When the operating system refuses to hand signals over.
pub fn on_signal(hangup: Hangup) -> std::io::Result<Stop> {
    let mut signals = Signals {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
        hangup: if hangup_is_ignored() {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        },
        meaning: hangup,
        reloads: Arc::default(),
        has_stopped: false,
    };
    let stop = Stop {
        token: CancellationToken::new(),
        code: Arc::new(AtomicU8::new(INTERRUPTED)),
        reloads: Arc::clone(&signals.reloads),
    };
    let asked = stop.clone();
    tokio::spawn(async move {
        asked.code.store(signals.next().await, Ordering::Relaxed);
        asked.token.cancel();
        signals.has_stopped = true;
        std::process::exit(i32::from(signals.next().await));
    });
    Ok(stop)
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
    meaning: Hangup,
    reloads: Arc<Notify>,
    /// The process was asked to stop before.
    has_stopped: bool,
}

impl Signals {
    /// Waits for a signal that asks to stop; the exit code of a process that it ends.
    async fn next(&mut self) -> u8 {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = hangup => {}
                _ = self.interrupt.recv() => return INTERRUPTED,
                _ = self.terminate.recv() => return TERMINATED,
            }
            if self.has_stopped {
                continue;
            }
            if self.meaning == Hangup::Stops {
                return TERMINATED;
            }
            self.reloads.notify_one();
        }
    }
}

/// Whether the process was started with SIGHUP ignored. Only Linux shows that.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The first bit is signal number 1.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

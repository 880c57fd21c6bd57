//! The loop that a task runs in. A task looks when it is notified that there is something to do,
//! and in the process that keeps house also by itself, from time to time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::housekeeping::Housekeeping;
use super::jitter::jittered;
use crate::store::{self, Store, Who};

/// How long a task waits after an error, at most.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a task looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// What this process was notified of.
    Notified,
    /// All that there may be: at the start, after an error, and from time to time.
    All,
}

/// When a task is to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There may be more to do.
    AtOnce,
    /// There will be something to do, even if nobody notifies the task.
    After(Duration),
    /// When the task is notified, or from time to time.
    Later,
}

/// One task. It takes no input, and repeating it does no harm.
pub(crate) trait Task: Send + 'static {
    const NAME: &'static str;
    /// How long the task may go without a look for all.
    const TICK: Duration;
    /// Whose wake-ups notify the task. `None`: the task is never notified.
    const WHO: Option<Who>;

    /// Does what there is to do. It may be cut off at any point.
    fn round(&mut self, look: Look) -> impl Future<Output = store::Result<Next>> + Send;
}

/// Runs a task until it is stopped; returns its name.
pub(crate) async fn run<T: Task>(
    mut task: T,
    store: Store,
    housekeeping: Arc<Housekeeping>,
    stop: CancellationToken,
) -> &'static str {
    let go_on = async {
        let mut wakeups = T::WHO.map(|who| store.wakeups(who));
        let mut failures = 0_u32;
        let mut look = Look::All;
        let mut tick = Instant::now() + jittered(T::TICK);
        loop {
            // Before the look: what happens during the look is looked at again.
            if let Some(wakeups) = &mut wakeups {
                wakeups.mark_unchanged();
            }
            let (mut soon, mut ignores_wakeups) = (None, false);
            match task.round(look).await {
                Ok(Next::AtOnce) => continue,
                Ok(next) => {
                    failures = 0;
                    if let Next::After(pause) = next {
                        soon = Some(Instant::now() + pause);
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(task = T::NAME, %error, "a task failed; it is tried again");
                    let pause = Duration::from_millis(100) * 2_u32.pow(failures.min(10));
                    soon = Some(Instant::now() + PAUSE_MAX.min(pause));
                    // While the database is away, one more try helps nobody.
                    ignores_wakeups = error.is_outage();
                }
            }
            look = loop {
                let until = soon.map_or(tick, |soon| soon.min(tick));
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = notified(&mut wakeups), if !ignores_wakeups => break Look::Notified,
                }
                if soon.is_some_and(|soon| soon <= until) {
                    break if failures > 0 {
                        Look::All
                    } else {
                        Look::Notified
                    };
                }
                tick = Instant::now() + jittered(T::TICK);
                if failures == 0 && housekeeping.is_ours() {
                    break Look::All;
                }
            };
        }
    };
    stop.run_until_cancelled(go_on).await;
    T::NAME
}

async fn notified(wakeups: &mut Option<watch::Receiver<u64>>) {
    if let Some(wakeups) = wakeups
        && wakeups.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

//! The loop that a simple duty runs in: at each wake-up, and by itself from time to time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{self, Store};

/// How long a duty waits after an error, at the most.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// One duty. It takes no input, and repeating it does no harm.
pub(super) trait Duty: Send + 'static {
    const NAME: &'static str;
    /// How long it may go without a look.
    const TICK: Duration;
    /// Whether it cares for wake-ups.
    const WAKES: bool = true;

    /// Does what there is to do. True if there may be more at once.
    fn round(&mut self) -> impl Future<Output = store::Result<bool>> + Send;
}

/// Runs a duty until it is stopped; returns its name.
pub(super) async fn run<D: Duty>(
    mut duty: D,
    store: Store,
    stop: CancellationToken,
) -> &'static str {
    let mut wakeups = store.wakeups();
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        // Seen before the look: what happens during it is looked at again.
        wakeups.mark_unchanged();
        let pause = match duty.round().await {
            Ok(true) => continue,
            Ok(false) => {
                failures = 0;
                D::TICK
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(duty = D::NAME, %error, "a duty failed; it is tried again");
                PAUSE_MAX.min(Duration::from_millis(100) * 2_u32.pow(failures.min(10)))
            }
        };
        let listens = D::WAKES && failures == 0;
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
            Ok(()) = wakeups.changed(), if listens => {}
        }
    }
    D::NAME
}

/// Does something for each of several things: one that fails does not keep the others from being
/// done. The first error comes back at the end.
pub(super) async fn each<'a, T, F>(things: &'a [T], act: impl Fn(&'a T) -> F) -> store::Result<()>
where
    F: Future<Output = store::Result<()>>,
{
    let mut outcome = Ok(());
    for thing in things {
        let done = act(thing).await;
        if outcome.is_ok() {
            outcome = done;
        }
    }
    outcome
}

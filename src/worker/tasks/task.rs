//! The loop that a simple duty runs in: when it is told that there is something to do, and by
//! itself from time to time, where this process is the one that does so.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::housekeeping::Housekeeping;
use crate::store::{self, Store, Who};

/// How long a duty waits after an error, at the most.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a duty looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// What this process was told of.
    Told,
    /// All that there may be, told or not: at the start, after an error, and from time to time.
    All,
}

/// When a duty is to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There may be more.
    AtOnce,
    /// There will be something, even if nobody tells.
    After(Duration),
    /// When it is told, or from time to time.
    Later,
}

/// One duty. It takes no input, and repeating it does no harm.
pub(crate) trait Duty: Send + 'static {
    const NAME: &'static str;
    /// How long it may go without a look for all.
    const TICK: Duration;
    /// Among whom it is told.
    const WHO: Option<Who>;

    /// Does what there is to do. It may be cut off at any point.
    fn round(&mut self, look: Look) -> impl Future<Output = store::Result<Next>> + Send;
}

/// Runs a duty until it is stopped; returns its name.
pub(crate) async fn run<D: Duty>(
    mut duty: D,
    store: Store,
    housekeeping: Arc<Housekeeping>,
    stop: CancellationToken,
) -> &'static str {
    let go_on = async {
        let mut wakeups = D::WHO.map(|who| store.wakeups(who));
        let mut failures = 0_u32;
        let mut look = Look::All;
        let mut tick = Instant::now() + jittered(D::TICK);
        loop {
            // Seen before the look: what happens during it is looked at again.
            wakeups
                .iter_mut()
                .for_each(|wakeups| wakeups.mark_unchanged());
            let (mut soon, mut is_deaf) = (None, false);
            match duty.round(look).await {
                Ok(Next::AtOnce) => continue,
                Ok(next) => {
                    failures = 0;
                    if let Next::After(pause) = next {
                        soon = Some(Instant::now() + pause);
                    }
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(duty = D::NAME, %error, "a duty failed; it is tried again");
                    let pause = Duration::from_millis(100) * 2_u32.pow(failures.min(10));
                    soon = Some(Instant::now() + PAUSE_MAX.min(pause));
                    // While the database is away, nobody is helped by one more try.
                    is_deaf = error.is_outage();
                }
            }
            look = loop {
                let until = soon.map_or(tick, |soon| soon.min(tick));
                tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = told(&mut wakeups), if !is_deaf => break Look::Told,
                }
                if soon.is_some_and(|soon| soon <= until) {
                    break if failures > 0 { Look::All } else { Look::Told };
                }
                tick = Instant::now() + jittered(D::TICK);
                if failures == 0 && housekeeping.is_ours() {
                    break Look::All;
                }
            };
        }
    };
    stop.run_until_cancelled(go_on).await;
    D::NAME
}

async fn told(wakeups: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    if let Some(wakeups) = wakeups
        && wakeups.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// About so long: processes that began together do not go on together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}

/// Does something for each of several things: one that fails does not keep the others from being
/// done, nor is it reason to wait for long, where others went well.
pub(crate) async fn each<'a, T: 'a, F>(
    things: impl IntoIterator<Item = &'a T>,
    act: impl Fn(&'a T) -> F,
) -> store::Result<()>
where
    F: Future<Output = store::Result<()>>,
{
    let (mut done, mut failed) = (0_usize, None);
    for thing in things {
        match act(thing).await {
            Ok(()) => done += 1,
            Err(error) if error.is_outage() && !error.is_timeout() => return Err(error),
            Err(error) => {
                tracing::error!(%error, "a duty failed for one; it goes on with the others");
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if done == 0 => Err(error),
        _ => Ok(()),
    }
}

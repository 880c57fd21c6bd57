//! This process's turns at the windows of calls at once that are found out, where the process
//! shares limits with no other. Where it does, its turn is a part of the exchange of
//! [shares](super::shares).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::metrics;
use crate::store::{self, Store, WindowBook, WindowRow};
use crate::upstream::{Pool, StoredWindow, WindowChange};
use crate::worker::dispatch::ledger::run_queues::LaneLimit;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::lease::Lease;
use crate::worker::lease::clock::millis;

/// Between two turns, and after one that failed.
const TICK: Duration = Duration::from_secs(1);
/// Between two turns at least: calls may be short.
const PAUSE_MIN: Duration = Duration::from_millis(50);

pub(crate) struct Windows {
    store: Store,
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    token: Arc<str>,
    attempt_timeout: Duration,
}

impl Windows {
    pub(crate) fn new(
        store: &Store,
        pool: &Arc<Pool>,
        ledger: &Arc<SharedLedger>,
        lease: &Lease,
    ) -> Self {
        Self {
            store: store.clone(),
            pool: pool.clone(),
            ledger: ledger.clone(),
            token: lease.token(),
            attempt_timeout: lease.attempt_timeout(),
        }
    }

    /// Takes a turn once a second while there is something to tell, and sooner where a measurement
    /// may be complete, until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) -> &'static str {
        loop {
            if self.pool.targets().has_window_news()
                && let Err(error) = self.turn().await
            {
                tracing::warn!(%error, "windows could not be measured; it is tried again");
            }
            let next = async {
                tokio::time::sleep(PAUSE_MIN).await;
                tokio::select! {
                    () = self.pool.targets().window_due() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            };
            if stop.run_until_cancelled(next).await.is_none() {
                return "windows";
            }
        }
    }

    async fn turn(&self) -> store::Result<()> {
        let targets = self.pool.targets();
        let patience = millis(self.attempt_timeout / 2);
        let names = targets.window_names();
        let decide = |book: &WindowBook| take_turn(&self.pool, &self.token, &names, book);
        let exchange = self.store.exchange_windows(patience, &names, decide);
        let exchanged = tokio::time::timeout(self.attempt_timeout, exchange).await;
        let changes = match exchanged {
            Ok(exchanged) => exchanged?,
            Err(_) => return Err(store::Error::TimedOut("the turn at windows")),
        };
        if !changes.is_empty() {
            let limit = |lane| LaneLimit::of(&self.pool, lane);
            self.ledger.lock().set_limits(limit);
            self.ledger.notify_scheduler();
            self.ledger.notify_supply();
        }
        announce(&changes);
        Ok(())
    }
}

/// Takes this process's turn at the windows of these names: what is to be stored, and what has
/// changed.
pub(super) fn take_turn(
    pool: &Pool,
    token: &str,
    names: &[String],
    book: &WindowBook,
) -> (Vec<WindowRow>, Vec<WindowChange>) {
    let stored = book.rows.iter().map(|row| StoredWindow {
        name: row.name.clone(),
        state: row.state.clone(),
    });
    let stored: Vec<StoredWindow> = stored.collect();
    let targets = pool.targets();
    let turn = targets.take_window_turn(token, book.now_ms, names, &stored);
    let (entries, changes) = turn;
    let rows = entries.into_iter().map(|entry| WindowRow {
        name: entry.name,
        state: entry.state,
    });
    (rows.collect(), changes)
}

/// Says what has changed.
pub(super) fn announce(changes: &[WindowChange]) {
    for change in changes {
        metrics().window_changed(change.reason);
        tracing::debug!(
            window.name = change.name,
            before = change.before,
            after = change.after,
            reason = change.reason,
            "a window of calls at once has changed"
        );
    }
}

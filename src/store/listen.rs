//! Wake-ups: somebody changed something that a duty may care about.
//!
//! A wake-up says nothing but "look again"; it may be lost, doubled or late without harm, since
//! every duty also looks by itself from time to time. Within a process it is a watch channel;
//! between processes on Postgres it is LISTEN and NOTIFY. NOTIFY serialises the commits of
//! transactions that use it, so it runs by itself, after the commit, and never more often than
//! [`NOTIFY_PAUSE`].

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::engine::{Database, lent, limited};
use super::{Result, Store};

const CHANNEL: &str = "nightshift";
/// For those who share limits only: they look more often than there is work.
const SHARES_CHANNEL: &str = "nightshift_shares";
const NOTIFY_PAUSE: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long nothing may come before the connection is asked whether it is still there, and how
/// long that may take. A connection that was cut without a word looks like one on which nothing
/// happens.
const QUIET_MAX: Duration = Duration::from_secs(15);
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub(super) struct Wake {
    signal: watch::Sender<u64>,
    shares: watch::Sender<u64>,
    /// Asks for a NOTIFY to the other processes, where there can be any.
    outward: Option<Arc<Outward>>,
}

#[derive(Default)]
struct Outward {
    signal: Notify,
    shares: Notify,
}

impl Wake {
    pub(super) fn local() -> Self {
        Wake {
            signal: watch::Sender::new(0),
            shares: watch::Sender::new(0),
            outward: None,
        }
    }

    pub(super) fn across_processes(database: Database, stop: CancellationToken) -> Self {
        let (signal, shares) = (watch::Sender::new(0), watch::Sender::new(0));
        let outward = Arc::new(Outward::default());
        let listening = listen(database.clone(), signal.clone(), shares.clone());
        let asked = outward.clone();
        tokio::spawn(async move {
            let notifying = notify(&database, CHANNEL, &asked.signal);
            let sharing = notify(&database, SHARES_CHANNEL, &asked.shares);
            stop.run_until_cancelled(async { tokio::join!(listening, notifying, sharing) })
                .await;
        });
        Wake {
            signal,
            shares,
            outward: Some(outward),
        }
    }
}

impl Store {
    /// Tells all duties, here and in other processes, to look again.
    pub fn wake(&self) {
        let wake = self.wake_handle();
        wake.signal.send_modify(|count| *count += 1);
        if let Some(outward) = &wake.outward {
            outward.signal.notify_one();
        }
    }

    /// Tells other processes that share limits to look again.
    pub fn wake_shares(&self) {
        if let Some(outward) = &self.wake_handle().outward {
            outward.shares.notify_one();
        }
    }

    /// As [`wakeups`](Self::wakeups), of [`wake_shares`](Self::wake_shares).
    #[must_use]
    pub fn share_wakeups(&self) -> watch::Receiver<u64> {
        self.wake_handle().shares.subscribe()
    }

    /// Changes at each wake-up. Mark it as seen before looking, then wait for the next change:
    /// so none is missed.
    #[must_use]
    pub fn wakeups(&self) -> watch::Receiver<u64> {
        self.wake_handle().signal.subscribe()
    }
}

async fn notify(database: &Database, channel: &str, asked: &Notify) {
    loop {
        asked.notified().await;
        if let Err(error) = notify_once(database, channel).await {
            tracing::debug!(%error, "a wake-up could not be sent; the others look by themselves");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn notify_once(database: &Database, channel: &str) -> Result<()> {
    let mut lent = database.lend().await?;
    lent!(&mut lent, c => {
        sqlx::query("-- notify\nSELECT pg_notify($1, '')").bind(channel).execute(c).await?;
    });
    lent.done().await
}

async fn listen(database: Database, signal: watch::Sender<u64>, shares: watch::Sender<u64>) {
    loop {
        if let Err(error) = listen_once(&database, &signal, &shares).await {
            tracing::debug!(%error, "no wake-ups from other processes; listening again");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Listens until the connection is lost.
async fn listen_once(
    database: &Database,
    signal: &watch::Sender<u64>,
    shares: &watch::Sender<u64>,
) -> Result<()> {
    // A connection of its own, so that the pool's are all for work; and a pool of its own, since
    // a listener that is dropped may hold on to its connection for as long as that is silent.
    let own = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ANSWER_MAX)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(database.options().clone());
    let mut listener = PgListener::connect_with(&own).await?;
    listener.eager_reconnect(false);
    let channels = listener.listen_all([CHANNEL, SHARES_CHANNEL]);
    limited(ANSWER_MAX, async { Ok(channels.await?) }).await?;
    // What happened before LISTEN took effect, or while the connection was lost, is unknown.
    signal.send_modify(|count| *count += 1);
    shares.send_modify(|count| *count += 1);
    loop {
        match tokio::time::timeout(QUIET_MAX, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                let woken = match notification.channel() {
                    SHARES_CHANNEL => shares,
                    _ => signal,
                };
                woken.send_modify(|count| *count += 1);
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                let ping = sqlx::query("-- ping\nSELECT 1").execute(&mut listener);
                limited(ANSWER_MAX, async { Ok(ping.await?) }).await?;
            }
        }
    }
}

//! Wake-ups: somebody changed something that a duty may care about.
//!
//! A wake-up says nothing but "look again"; it may be lost, doubled or late without harm, since
//! every duty also looks by itself from time to time. Within a process it is a watch channel;
//! between processes on Postgres it is LISTEN and NOTIFY. NOTIFY serialises the commits of
//! transactions that use it, so it runs by itself, after the commit, and never more often than
//! [`NOTIFY_PAUSE`].

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Store;

const CHANNEL: &str = "nightshift";
/// For those who share limits only: they look more often than there is work.
const SHARES_CHANNEL: &str = "nightshift_shares";
const NOTIFY_PAUSE: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

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

    pub(super) fn across_processes(
        pool: PgPool,
        options: PgConnectOptions,
        stop: CancellationToken,
    ) -> Self {
        let (signal, shares) = (watch::Sender::new(0), watch::Sender::new(0));
        let outward = Arc::new(Outward::default());
        // A connection of its own, so that the pool's are all for work.
        let own = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None);
        let own = own.connect_lazy_with(options);
        let listening = listen(own, signal.clone(), shares.clone());
        let asked = outward.clone();
        tokio::spawn(async move {
            let notifying = notify(&pool, CHANNEL, &asked.signal);
            let sharing = notify(&pool, SHARES_CHANNEL, &asked.shares);
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

async fn notify(pool: &PgPool, channel: &str, asked: &Notify) {
    loop {
        asked.notified().await;
        let sent = sqlx::query("-- notify\nSELECT pg_notify($1, '')")
            .bind(channel)
            .execute(pool);
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a wake-up could not be sent; the others look by themselves");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn listen(pool: PgPool, signal: watch::Sender<u64>, shares: watch::Sender<u64>) {
    loop {
        if let Err(error) = listen_once(&pool, &signal, &shares).await {
            tracing::debug!(%error, "no wake-ups from other processes; listening again");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn listen_once(
    pool: &PgPool,
    signal: &watch::Sender<u64>,
    shares: &watch::Sender<u64>,
) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([CHANNEL, SHARES_CHANNEL]).await?;
    loop {
        // What happened before LISTEN took effect, or while the connection was lost, is unknown.
        signal.send_modify(|count| *count += 1);
        shares.send_modify(|count| *count += 1);
        while let Some(notification) = listener.try_recv().await? {
            let woken = match notification.channel() {
                SHARES_CHANNEL => shares,
                _ => signal,
            };
            woken.send_modify(|count| *count += 1);
        }
    }
}

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
const NOTIFY_PAUSE: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Wake {
    signal: watch::Sender<u64>,
    /// Asks for a NOTIFY to the other processes, where there can be any.
    outward: Option<Arc<Notify>>,
}

impl Wake {
    pub(super) fn local() -> Self {
        Wake {
            signal: watch::Sender::new(0),
            outward: None,
        }
    }

    pub(super) fn across_processes(
        pool: PgPool,
        options: PgConnectOptions,
        stop: CancellationToken,
    ) -> Self {
        let signal = watch::Sender::new(0);
        let outward = Arc::new(Notify::new());
        // A connection of its own, so that the pool's are all for work.
        let own = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None);
        let listening = listen(own.connect_lazy_with(options), signal.clone());
        let notifying = notify(pool, outward.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(async { tokio::join!(listening, notifying) })
                .await;
        });
        Wake {
            signal,
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
            outward.notify_one();
        }
    }

    /// Changes at each wake-up. Mark it as seen before looking, then wait for the next change:
    /// so none is missed.
    #[must_use]
    pub fn wakeups(&self) -> watch::Receiver<u64> {
        self.wake_handle().signal.subscribe()
    }
}

async fn notify(pool: PgPool, asked: Arc<Notify>) {
    loop {
        asked.notified().await;
        let sent = sqlx::query("-- notify\nSELECT pg_notify($1, '')")
            .bind(CHANNEL)
            .execute(&pool);
        if let Err(error) = sent.await {
            tracing::debug!(%error, "a wake-up could not be sent; the others look by themselves");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn listen(pool: PgPool, signal: watch::Sender<u64>) {
    loop {
        if let Err(error) = listen_once(&pool, &signal).await {
            tracing::debug!(%error, "no wake-ups from other processes; listening again");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn listen_once(pool: &PgPool, signal: &watch::Sender<u64>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // What happened before LISTEN took effect, or while the connection was lost, is unknown.
        signal.send_modify(|count| *count += 1);
        while listener.try_recv().await?.is_some() {
            signal.send_modify(|count| *count += 1);
        }
    }
}

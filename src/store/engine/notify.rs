//! Wake-ups: a change that somebody may have to act on. Each wake-up is for the tasks that do one
//! thing ([`Who`]), so that no other task looks for nothing.
//!
//! A wake-up says nothing but "look again". It may be lost, doubled or late without harm, since
//! each task also looks from time to time. Within a process a wake-up is a watch channel. Between
//! processes on Postgres a wake-up is NOTIFY, and is sent only where this process cannot do, or has
//! not done, what there is to do. NOTIFY serialises the commits of transactions that use it, so it
//! runs in a transaction of its own, after the commit, at most once in [`NOTIFY_PAUSE`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{Database, counted, limited, on_checkout};
use crate::store::Result;

const NOTIFY_PAUSE: Duration = Duration::from_millis(50);
/// Work that one process can do alone is heard of by each process at a moment of its own within
/// this time: the first process does the work, and the others find nothing.
const SPREAD: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long a connection may be quiet before it is pinged. A connection that was cut without a word
/// looks like one on which nothing happens.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// How long the answer to a ping may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Who is to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Tasks that validate: a batch was created.
    Validators,
    /// Tasks that lease units: there is work, or a batch is being ended.
    Supplies,
    /// Tasks that finalize batches: a batch may have no open unit any more. Within a process only.
    Finishers,
    /// Tasks that exchange shares of limits.
    Sharers,
    /// Tasks that follow what operators set for upstreams.
    Switches,
    /// Tasks that follow which batches are paused.
    Pauses,
}

impl Who {
    const ALL: [Who; 6] = [
        Who::Validators,
        Who::Supplies,
        Who::Finishers,
        Who::Sharers,
        Who::Switches,
        Who::Pauses,
    ];

    /// The tasks that other processes can wake.
    const ABROAD: [Who; 5] = [
        Who::Validators,
        Who::Supplies,
        Who::Sharers,
        Who::Switches,
        Who::Pauses,
    ];

    /// The name of the channel between processes.
    fn channel(self) -> &'static str {
        match self {
            Who::Validators => "nightshift_validators",
            Who::Supplies => "nightshift_supplies",
            Who::Finishers => "nightshift_finishers",
            Who::Sharers => "nightshift_shares",
            Who::Switches => "nightshift_switches",
            Who::Pauses => "nightshift_pauses",
        }
    }
}

pub(in crate::store) struct Wake {
    here: Arc<Signals>,
    /// Asks for a NOTIFY to the other processes, where there can be any.
    abroad: Option<Arc<[Notify; Who::ALL.len()]>>,
    /// Batches of which this process has finished a unit, for the task that finalizes batches.
    finished: Mutex<BTreeSet<String>>,
}

/// The wake-ups within this process.
#[derive(Default)]
struct Signals([watch::Sender<u64>; Who::ALL.len()]);

impl Signals {
    fn of(&self, who: Who) -> &watch::Sender<u64> {
        &self.0[who as usize]
    }

    fn send(&self, who: Who) {
        self.of(who).send_modify(|count| *count += 1);
    }
}

impl Wake {
    pub(in crate::store) fn local() -> Self {
        Wake {
            here: Arc::default(),
            abroad: None,
            finished: Mutex::default(),
        }
    }

    pub(in crate::store) fn across_processes(database: Database, stop: CancellationToken) -> Self {
        let here = Arc::<Signals>::default();
        let abroad = Arc::<[Notify; Who::ALL.len()]>::default();
        let listening = listen(database.clone(), here.clone());
        let asked = abroad.clone();
        tokio::spawn(async move {
            let notifying = Who::ABROAD.map(|who| notify(&database, who, &asked[who as usize]));
            let notifying = futures::future::join_all(notifying);
            stop.run_until_cancelled(async { tokio::join!(listening, notifying) })
                .await;
        });
        Wake {
            here,
            abroad: Some(abroad),
            ..Wake::local()
        }
    }

    /// Wakes tasks of the other processes.
    pub(in crate::store) fn send_abroad(&self, who: Who) {
        if let Some(abroad) = &self.abroad {
            abroad[who as usize].notify_one();
        }
    }

    /// Wakes tasks of this process.
    pub(in crate::store) fn send_here(&self, who: Who) {
        self.here.send(who);
    }

    /// Whether this process has such a task.
    pub(in crate::store) fn is_heard_here(&self, who: Who) -> bool {
        self.here.of(who).receiver_count() > 0
    }

    pub(in crate::store) fn subscribe(&self, who: Who) -> watch::Receiver<u64> {
        self.here.of(who).subscribe()
    }

    /// This process has finished a unit of each of these batches.
    pub(in crate::store) fn unit_finished(&self, batches: impl Iterator<Item = String>) {
        if !self.is_heard_here(Who::Finishers) {
            return;
        }
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.extend(batches);
        drop(finished);
        self.here.send(Who::Finishers);
    }

    /// The batches that were named to [`unit_finished`](Self::unit_finished) since the last call.
    pub(in crate::store) fn take_finished(&self) -> BTreeSet<String> {
        let finished = self.finished.lock();
        std::mem::take(&mut *finished.unwrap_or_else(PoisonError::into_inner))
    }
}

async fn notify(database: &Database, who: Who, asked: &Notify) {
    loop {
        asked.notified().await;
        if let Err(error) = notify_once(database, who.channel()).await {
            tracing::debug!(%error, "a wake-up could not be sent; the others look by themselves");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn notify_once(database: &Database, channel: &str) -> Result<()> {
    let mut checkout = database.checkout().await?;
    let notify = sqlx::query("-- notify\nSELECT pg_notify($1, '')");
    on_checkout!(&mut checkout, |c| {
        notify.bind(channel).execute(c).await?;
    });
    checkout.done().await
}

async fn listen(database: Database, here: Arc<Signals>) {
    loop {
        if let Err(error) = counted(listen_once(&database, &here).await) {
            tracing::debug!(%error, "no wake-ups from other processes; listening again");
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Listens until the connection is lost.
async fn listen_once(database: &Database, here: &Arc<Signals>) -> Result<()> {
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
    let channels = listener.listen_all(Who::ABROAD.map(Who::channel));
    limited(ANSWER_MAX, async { Ok(channels.await?) }).await?;
    // What happened before LISTEN took effect, or while the connection was lost, is unknown.
    for who in Who::ABROAD {
        here.send(who);
    }
    loop {
        match tokio::time::timeout(QUIET_MAX, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => {
                let channel = notification.channel();
                if let Some(who) = Who::ABROAD.into_iter().find(|who| who.channel() == channel) {
                    hear(here, who);
                }
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

/// Passes on the wake-up of another process. Validators hear of it after a short random pause, so
/// that one process does the work and the others find none.
fn hear(here: &Arc<Signals>, who: Who) {
    if who != Who::Validators {
        return here.send(who);
    }
    let here = here.clone();
    let pause = rand::rng().random_range(Duration::ZERO..SPREAD);
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        here.send(who);
    });
}

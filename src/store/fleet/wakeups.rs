//! Wake-ups: somebody changed something that others may care about. Each is for those who do one
//! thing ([`Who`]), so that nobody looks for nothing.
//!
//! A wake-up says nothing but "look again"; it may be lost, doubled or late without harm, since
//! somebody also looks from time to time. Within a process it is a watch channel; between
//! processes on Postgres it is LISTEN and NOTIFY, and only where this process cannot do, or has
//! not done, what there is to do. NOTIFY serialises the commits of transactions that use it, so it
//! runs by itself, after the commit, and never more often than [`NOTIFY_PAUSE`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::store::engine::{Database, lent, limited};
use crate::store::{Result, Store};

const NOTIFY_PAUSE: Duration = Duration::from_millis(50);
/// What one process can do alone reaches each at a moment of its own within this time: the first
/// does it, and the others find nothing.
const SPREAD: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long nothing may come before the connection is asked whether it is still there, and how
/// long that may take. A connection that was cut without a word looks like one on which nothing
/// happens.
const QUIET_MAX: Duration = Duration::from_secs(15);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Who is to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Those who validate: a batch was created.
    Validators,
    /// Those who lease units, or hold some: there is work, or a batch is being ended.
    Supplies,
    /// Those who finish batches: a batch may have no open unit any more. Only within a process.
    Finishers,
    /// Those who share limits.
    Sharers,
}

impl Who {
    const ALL: [Who; 4] = [Who::Validators, Who::Supplies, Who::Finishers, Who::Sharers];

    /// Those whom other processes can wake.
    const ABROAD: [Who; 3] = [Who::Validators, Who::Supplies, Who::Sharers];

    /// The name of their channel between processes.
    fn channel(self) -> &'static str {
        match self {
            Who::Validators => "nightshift_validators",
            Who::Supplies => "nightshift_supplies",
            Who::Finishers => "nightshift_finishers",
            Who::Sharers => "nightshift_shares",
        }
    }
}

pub(in crate::store) struct Wake {
    here: Arc<Signals>,
    /// Asks for a NOTIFY to the other processes, where there can be any.
    abroad: Option<Arc<[Notify; Who::ALL.len()]>>,
    /// Batches a unit of which was finished here, for those who finish batches.
    finished: Mutex<BTreeSet<String>>,
}

/// Of this process.
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

    fn send_abroad(&self, who: Who) {
        if let Some(abroad) = &self.abroad {
            abroad[who as usize].notify_one();
        }
    }

    /// A unit of each of these batches was finished here.
    pub(in crate::store) fn unit_finished(&self, batches: impl Iterator<Item = String>) {
        if self.here.of(Who::Finishers).receiver_count() == 0 {
            return;
        }
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.extend(batches);
        drop(finished);
        self.here.send(Who::Finishers);
    }
}

impl Store {
    /// Tells this process.
    pub fn wake(&self, who: Who) {
        self.wake_handle().here.send(who);
    }

    /// Tells the other processes.
    pub fn wake_others(&self, who: Who) {
        self.wake_handle().send_abroad(who);
    }

    /// Tells this process and the others.
    pub fn wake_all(&self, who: Who) {
        self.wake(who);
        self.wake_others(who);
    }

    /// Tells this process, or the others where nobody here would hear it: for what is done by one.
    pub fn wake_one(&self, who: Who) {
        if self.wake_handle().here.of(who).receiver_count() > 0 {
            self.wake(who);
        } else {
            self.wake_others(who);
        }
    }

    /// Changes at each wake-up. Mark it as seen before looking, then wait for the next change:
    /// so none is missed.
    #[must_use]
    pub fn wakeups(&self, who: Who) -> watch::Receiver<u64> {
        self.wake_handle().here.of(who).subscribe()
    }

    /// Batches a unit of which was finished here since this was asked last.
    #[must_use]
    pub fn take_finished(&self) -> BTreeSet<String> {
        let finished = self.wake_handle().finished.lock();
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
    let mut lent = database.lend().await?;
    lent!(&mut lent, c => {
        sqlx::query("-- notify\nSELECT pg_notify($1, '')").bind(channel).execute(c).await?;
    });
    lent.done().await
}

async fn listen(database: Database, here: Arc<Signals>) {
    loop {
        if let Err(error) = listen_once(&database, &here).await {
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

/// Passes on what another process has told.
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

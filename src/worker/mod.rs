//! The duties: validate, lease, send, flush, finish, expire, clean up. Each is a loop that may be
//! killed at any line, and that goes on where the store says it stopped.
//!
//! This room knows nothing of HTTP's server side: it meets `api` in the store and its wake-ups.

mod dispatch;
mod flush;
mod lease;
mod supply;
mod tasks;
#[cfg(test)]
mod testing;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::domain::clock::Clock;
use crate::store::{self, Store};
use crate::upstream::{LaneId, Pool, RetrySettings};
use dispatch::Dispatch;
use flush::Flusher;
use lease::{Lease, heartbeat};
use tasks::housekeeping::{self, Housekeeping};
use tasks::{clean_up, expire, finalize, shares, task, validate};
use work::completions::Inbox;

/// How long each of the last steps at a stop may take when the database does not answer.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// What the duties are told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub retry: RetrySettings,
    pub worker: config::Worker,
    pub retention: config::Retention,
    /// Requests that a batch may have.
    pub max_requests: u64,
    /// Nobody else can hold a lease on this store: whatever is leased was left by a dead process.
    pub exclusive: bool,
}

/// The simple duties, as they are begun.
struct Duties<'a> {
    tasks: &'a mut JoinSet<&'static str>,
    store: &'a Store,
    housekeeping: &'a Arc<Housekeeping>,
    stop: &'a CancellationToken,
}

impl Duties<'_> {
    fn begin(&mut self, duty: impl task::Duty) {
        self.tasks.spawn(task::run(
            duty,
            self.store.clone(),
            self.housekeeping.clone(),
            self.stop.clone(),
        ));
    }
}

/// All duties of one process.
pub struct Worker {
    store: Store,
    dispatch: Arc<Dispatch>,
    flusher: Arc<Flusher>,
    lease: Arc<Lease>,
    /// Under which name it holds shares of limits, where there are others to share with.
    shares_as: Option<Arc<str>>,
    running: Arc<AtomicBool>,
    grace: Duration,
    tasks: JoinSet<&'static str>,
    /// Ends what makes new work.
    quiet: CancellationToken,
    /// Ends everything.
    stop: CancellationToken,
}

impl Worker {
    /// Joins the replicas and starts the duties.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn start(
        store: Store,
        pool: Arc<Pool>,
        clock: Clock,
        settings: Settings,
    ) -> store::Result<Worker> {
        let lease = Arc::new(Lease::join(&store, &settings).await?);
        let inbox = Arc::new(Inbox::default());
        let dispatch = Dispatch::new(
            store.clone(),
            pool.clone(),
            inbox.clone(),
            lease.clone(),
            clock.clone(),
            &settings,
        );
        let flusher = Arc::new(Flusher::new(
            store.clone(),
            dispatch.clone(),
            inbox.clone(),
            lease.clone(),
        ));
        let (quiet, stop) = (CancellationToken::new(), CancellationToken::new());

        let mut tasks = JoinSet::new();
        tasks.spawn(heartbeat::run(
            lease.clone(),
            store.clone(),
            dispatch.clone(),
            stop.clone(),
        ));
        if !settings.exclusive {
            tasks.spawn(heartbeat::take_over(
                lease.clone(),
                store.clone(),
                stop.clone(),
            ));
        }
        // Where others cannot be, or nothing is called, there is nothing to share.
        let shares_limits = !settings.exclusive && pool.limits().all().next().is_some();
        let shares_as = shares_limits.then(|| lease.token());
        if shares_as.is_some() {
            let shares = shares::Shares::new(
                store.clone(),
                pool.clone(),
                dispatch.clone(),
                &lease,
                &settings,
            );
            tasks.spawn(shares::run(shares, stop.clone()));
        }
        tasks.spawn(flush::run(flusher.clone(), stop.clone()));
        tasks.spawn(dispatch::run(dispatch.clone(), stop.clone()));
        tasks.spawn(supply::run(
            supply::Supply::new(
                store.clone(),
                pool.clone(),
                dispatch.clone(),
                inbox.clone(),
                lease.clone(),
            ),
            quiet.clone(),
        ));
        let housekeeping = Arc::new(Housekeeping::new(settings.exclusive));
        if !settings.exclusive {
            tasks.spawn(housekeeping::run(
                housekeeping.clone(),
                store.clone(),
                lease.token(),
                quiet.clone(),
            ));
        }
        let mut duties = Duties {
            tasks: &mut tasks,
            store: &store,
            housekeeping: &housekeeping,
            stop: &quiet,
        };
        let max_requests = settings.max_requests;
        duties.begin(validate::Validate::new(
            store.clone(),
            pool.clone(),
            max_requests,
        ));
        duties.begin(finalize::Finish::new(store.clone()));
        duties.begin(expire::Windows {
            store: store.clone(),
        });
        duties.begin(clean_up::Retain {
            store: store.clone(),
            grace: settings.retention.grace,
        });
        {
            let (pool, stop) = (pool, stop.clone());
            tasks.spawn(async move {
                pool.run(stop).await;
                "upstreams"
            });
        }
        let running = Arc::new(AtomicBool::new(true));
        let grace = settings.worker.shutdown_grace;
        Ok(Worker {
            store,
            dispatch,
            flusher,
            lease,
            shares_as,
            running,
            grace,
            tasks,
            quiet,
            stop,
        })
    }

    /// Whether the duties run: for `/readyz`.
    #[must_use]
    pub fn running(&self) -> Arc<AtomicBool> {
        self.running.clone()
    }

    /// Tells the calls in flight, by lane.
    pub fn in_flight(&self) -> impl Fn() -> HashMap<LaneId, usize> + Send + Sync + 'static {
        let dispatch = self.dispatch.clone();
        move || dispatch.in_flight_by_lane()
    }

    /// Tells what somebody must mend.
    pub fn alarms(&self) -> impl Fn() -> Vec<String> + Send + Sync + 'static {
        let dispatch = self.dispatch.clone();
        move || dispatch.alarms()
    }

    /// Tells under which token this process holds its units.
    pub fn token(&self) -> impl Fn() -> Arc<str> + Send + Sync + 'static {
        let lease = self.lease.clone();
        move || lease.token()
    }

    /// Waits until a duty ends that should not: its name. Then the process cannot go on.
    pub async fn failed(&mut self) -> String {
        let ended = self.tasks.join_next().await;
        self.running.store(false, Ordering::Relaxed);
        match ended {
            Some(Ok(name)) => name.to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "no duty runs".to_owned(),
        }
    }

    /// Stops leasing, lets calls in flight finish for the grace period, writes their answers,
    /// and gives the rest back. While the database is away that is tried for a moment only: what
    /// is not written is sent again.
    pub async fn stop(mut self) {
        self.running.store(false, Ordering::Relaxed);
        self.quiet.cancel();
        self.dispatch.close();
        if tokio::time::timeout(self.grace, self.dispatch.idle())
            .await
            .is_err()
        {
            tracing::warn!("calls are still in flight after the grace period; they are cut off");
            self.dispatch.abort_all();
            self.dispatch.idle().await;
        }
        if tokio::time::timeout(LAST_WRITES, self.flusher.drain())
            .await
            .is_err()
        {
            tracing::error!("the database is away; answers that are not written are sent again");
        }
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
        self.leave().await;
        // Last of all: others wait for what was given back, and can end batches themselves.
        if let Ok(Err(error)) = tokio::time::timeout(LAST_WRITES, self.finish()).await {
            tracing::warn!(%error, "batches could not be ended; another process ends them");
        }
    }

    /// Gives back all that this process holds: its units with its lease, and its shares. One that
    /// cannot be given back now does not hold up the other.
    async fn leave(&self) {
        self.dispatch.drop_all();
        let token = self.lease.token();
        let lease = async {
            let left = tokio::time::timeout(LAST_WRITES, self.store.leave(&token));
            if let Ok(Err(error)) = left.await {
                tracing::warn!(%error, "the lease could not be ended; it lapses by itself");
            }
        };
        let shares = async {
            let Some(token) = &self.shares_as else { return };
            let forgotten = tokio::time::timeout(LAST_WRITES, self.store.forget_shares(token));
            if let Ok(Err(error)) = forgotten.await {
                tracing::warn!(%error, "shares of limits could not be given back; they lapse");
            }
        };
        tokio::join!(lease, shares);
    }

    /// Ends what the last flush has finished.
    async fn finish(&self) -> store::Result<()> {
        let drained = self.store.drained().await?;
        task::each(&drained, async |batch_id| {
            self.store.finalize_batch(batch_id).await.map(drop)
        })
        .await
    }
}

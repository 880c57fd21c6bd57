//! The working half: validates batches, leases their units, sends the lines, writes the answers,
//! and ends the batches. Each of its loops may be killed at any line, and goes on where the store
//! says it stopped.
//!
//! | folder | has |
//! |---|---|
//! | `work` | nouns: settings, the leased unit, its lines, finished lines |
//! | `lease` | what this process may act on, and until when |
//! | `dispatch` | which line is sent next, and what becomes of it |
//! | `flush` | finished lines on their way to disk |
//! | `supply` | which units are leased, and given back |
//! | `tasks` | validate, finalize, expire, clean up, share limits |
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

use crate::domain::clock::Clock;
use crate::domain::outcome::Failure;
use crate::store::{self, Store};
use crate::upstream::{LaneId, Pool};
use dispatch::Dispatch;
use dispatch::demand::Demand;
use dispatch::scheduler::Scheduler;
use dispatch::shared::SharedLedger;
use dispatch::standing;
use dispatch::tenants::Tenants;
use dispatch::write_failures::WriteFailures;
use flush::Flusher;
use flush::accept::FailureCounts;
use lease::Lease;
use lease::authority::Authority;
use lease::heartbeat::Heartbeat;
use lease::takeover;
use supply::Supply;
use supply::direct::DirectLeases;
use supply::load::Loader;
use tasks::clean_up::CleanUp;
use tasks::expire::ExpireBatches;
use tasks::finalize::{self, Finalize};
use tasks::housekeeping::{self, Housekeeping};
use tasks::pauses::Pauses;
use tasks::progress::Progress;
use tasks::rates::Rates;
use tasks::shares::Shares;
pub use tasks::switches::Switches;
use tasks::task::{self, Task};
use tasks::validate::Validate;
use tasks::windows::Windows;
use work::finished::CompletionQueue;

pub use dispatch::late::Verdict as Late;
pub use dispatch::standing::{TenantStanding, WaitsFor};
pub use work::settings::{Rules, Settings};

/// How long each of the last steps at a stop may take when the database does not answer.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Everything that one process works with.
pub struct Worker {
    store: Store,
    scheduler: Arc<Scheduler>,
    ledger: Arc<SharedLedger>,
    tenants: Arc<Tenants>,
    demand: Arc<Demand>,
    write_failures: Arc<WriteFailures>,
    flusher: Arc<Flusher>,
    lease: Arc<Lease>,
    /// The token under which the process holds shares of limits, where it shares them with others.
    shares_as: Option<Arc<str>>,
    running: Arc<AtomicBool>,
    shutdown_grace: Duration,
    tasks: JoinSet<&'static str>,
    /// Ends what makes new work.
    quiet: CancellationToken,
    /// Ends everything.
    stop: CancellationToken,
}

/// Looks into a worker while it runs.
#[derive(Clone)]
pub struct Observer {
    ledger: Arc<SharedLedger>,
    tenants: Arc<Tenants>,
    demand: Arc<Demand>,
    write_failures: Arc<WriteFailures>,
    failed_lines: Arc<FailureCounts>,
    lease: Arc<Lease>,
}

/// Has a worker run by another configuration.
#[derive(Clone)]
pub struct Rerouter {
    scheduler: Arc<Scheduler>,
    lease: Arc<Lease>,
}

impl Rerouter {
    /// Leads the lines in hand by the configuration of now: to be called after [`Pool::reload`].
    /// When this returns, no line begins by the routes before.
    pub fn reroute(&self, configuration: store::Configuration) {
        self.scheduler.reroute();
        self.lease.runs_by(configuration);
    }
}

/// How things stand in a worker at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The token under which this process holds its units.
    pub token: Arc<str>,
    /// Calls in flight, by lane.
    pub in_flight: HashMap<LaneId, usize>,
    /// Batches that would miss their window, and those of which lines went to a higher tier, where
    /// models spill late. In no order.
    pub late: Vec<Late>,
    /// The tenants that have anything to send here, at most a hundred: those that wait for nothing
    /// but their turn first, in the order of their turns.
    pub tenants: Vec<TenantStanding>,
    /// What somebody must mend.
    pub alarms: Vec<String>,
}

impl Observer {
    /// How many lines this process has written as failed, by cause.
    #[must_use]
    pub fn failures(&self) -> Vec<(Failure, u64)> {
        self.failed_lines.all()
    }

    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let ledger = self.ledger.lock();
        let lanes = ledger.run_queues().lanes();
        let in_flight = lanes.map(|(id, lane)| (id, lane.in_flight())).collect();
        let late = ledger.lateness().verdicts().collect();
        let tenants = standing::of_tenants(&ledger, &self.tenants, &self.demand);
        drop(ledger);
        Snapshot {
            token: self.lease.token(),
            in_flight,
            late,
            tenants,
            alarms: self.write_failures.alarms(),
        }
    }
}

/// The tasks that run in the loop of [`task`], as they are started.
struct Starter<'a> {
    tasks: &'a mut JoinSet<&'static str>,
    store: &'a Store,
    housekeeping: &'a Arc<Housekeeping>,
    stop: &'a CancellationToken,
}

impl Starter<'_> {
    fn start(&mut self, task: impl Task) {
        self.tasks.spawn(task::run(
            task,
            self.store.clone(),
            self.housekeeping.clone(),
            self.stop.clone(),
        ));
    }
}

impl Worker {
    /// Joins the replicas and starts everything.
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
        let authority = Arc::new(Authority::new(lease.clone(), pool.clone()));
        let completions = Arc::new(CompletionQueue::default());
        let dispatch = Dispatch::new(
            &store,
            &pool,
            &completions,
            &lease,
            &authority,
            &clock,
            &settings,
        );
        let demand = Arc::new(Demand::new(
            dispatch.ledger.clone(),
            pool.clone(),
            dispatch.tenants.clone(),
        ));
        let flusher = Arc::new(Flusher::new(
            store.clone(),
            pool.clone(),
            &dispatch,
            completions.clone(),
            lease.clone(),
        ));
        let direct = Arc::new(DirectLeases::new(
            pool.clone(),
            dispatch.ledger.clone(),
            dispatch.ownership.clone(),
            dispatch.tenants.clone(),
            lease.clone(),
        ));
        let loader = Arc::new(Loader::new(
            store.clone(),
            pool.clone(),
            &dispatch,
            lease.clone(),
            flusher.failed_lines(),
        ));
        let supply = Supply::new(&supply::Parts {
            store: &store,
            pool: &pool,
            dispatch: &dispatch,
            demand: &demand,
            direct: &direct,
            completions: &completions,
            lease: &lease,
            loader: &loader,
            authority: &authority,
            clock: &clock,
        });
        let (quiet, stop) = (CancellationToken::new(), CancellationToken::new());

        // Before anything is sent: what an operator has disabled stays disabled.
        let switches = Switches::new(store.clone(), pool.clone(), Some(lease.token())).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(switches.run(stop.clone()));
        let heartbeat = Heartbeat {
            lease: lease.clone(),
            store: store.clone(),
            ownership: dispatch.ownership.clone(),
        };
        tasks.spawn(heartbeat.run(stop.clone()));
        if !settings.exclusive {
            tasks.spawn(takeover::run(lease.clone(), store.clone(), stop.clone()));
        }
        // Without other processes there is nothing to share.
        let shares_as = (!settings.exclusive).then(|| lease.token());
        if shares_as.is_some() {
            let shares = Shares::new(
                store.clone(),
                pool.clone(),
                dispatch.ledger.clone(),
                (demand.clone(), dispatch.tenants.clone()),
                (&lease, authority),
                &settings,
            );
            tasks.spawn(shares.run(stop.clone()));
        } else {
            let windows = Windows::new(&store, &pool, &dispatch.ledger, &lease);
            tasks.spawn(windows.run(stop.clone()));
        }
        let rates = Rates::new(&store, &pool, &dispatch.ledger, &lease);
        tasks.spawn(rates.run(stop.clone()));
        tasks.spawn(flusher.clone().run(stop.clone()));
        tasks.spawn(dispatch.scheduler.clone().run(stop.clone()));
        tasks.spawn(dispatch.reuse.clone().read(stop.clone()));
        tasks.spawn(dispatch.reuse.clone().write(stop.clone()));
        let pauses = Pauses {
            store: store.clone(),
            ledger: dispatch.ledger.clone(),
        };
        tasks.spawn(pauses.run(stop.clone()));
        let progress = Progress {
            store: store.clone(),
            pool: pool.clone(),
            ledger: dispatch.ledger.clone(),
            tenants: dispatch.tenants.clone(),
            paces: flusher.paces(),
            lease: lease.clone(),
        };
        tasks.spawn(progress.run(stop.clone()));
        tasks.spawn(supply.run(quiet.clone()));
        tasks.spawn(direct.clone().run(loader, quiet.clone()));
        let housekeeping = Arc::new(Housekeeping::new(settings.exclusive));
        if !settings.exclusive {
            tasks.spawn(housekeeping::run(
                housekeeping.clone(),
                store.clone(),
                lease.token(),
                quiet.clone(),
            ));
        }
        let mut starter = Starter {
            tasks: &mut tasks,
            store: &store,
            housekeeping: &housekeeping,
            stop: &quiet,
        };
        starter.start(Validate::new(
            store.clone(),
            pool.clone(),
            direct,
            settings.rules.clone(),
            settings.tenants.clone(),
        ));
        starter.start(Finalize::new(store.clone()));
        starter.start(ExpireBatches {
            store: store.clone(),
        });
        starter.start(CleanUp {
            store: store.clone(),
            rules: settings.rules.clone(),
        });
        {
            let (pool, stop) = (pool, stop.clone());
            tasks.spawn(async move {
                pool.run(stop).await;
                "upstreams"
            });
        }
        let running = Arc::new(AtomicBool::new(true));
        let shutdown_grace = settings.shutdown_grace;
        Ok(Worker {
            store,
            scheduler: dispatch.scheduler,
            ledger: dispatch.ledger,
            tenants: dispatch.tenants,
            demand,
            write_failures: dispatch.write_failures,
            flusher,
            lease,
            shares_as,
            running,
            shutdown_grace,
            tasks,
            quiet,
            stop,
        })
    }

    /// By which the worker is told of another configuration.
    #[must_use]
    pub fn rerouter(&self) -> Rerouter {
        Rerouter {
            scheduler: self.scheduler.clone(),
            lease: self.lease.clone(),
        }
    }

    /// Whether everything runs: for `/readyz`.
    #[must_use]
    pub fn running(&self) -> Arc<AtomicBool> {
        self.running.clone()
    }

    /// Looks into this worker, for as long as it runs.
    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer {
            ledger: self.ledger.clone(),
            tenants: self.tenants.clone(),
            demand: self.demand.clone(),
            write_failures: self.write_failures.clone(),
            failed_lines: self.flusher.failed_lines(),
            lease: self.lease.clone(),
        }
    }

    /// Waits until a task ends that should not, and returns its name. Then the process cannot go
    /// on.
    pub async fn failed(&mut self) -> String {
        let ended = self.tasks.join_next().await;
        self.running.store(false, Ordering::Relaxed);
        match ended {
            Some(Ok(name)) => name.to_owned(),
            Some(Err(error)) => error.to_string(),
            None => "no task runs".to_owned(),
        }
    }

    /// Stops leasing, lets calls in flight finish for the grace period, writes their answers, and
    /// gives the rest back. While the database is away that is tried for a moment only. Lines
    /// whose answers are not written are sent again.
    pub async fn stop(mut self) {
        self.running.store(false, Ordering::Relaxed);
        self.quiet.cancel();
        self.scheduler.close();
        if tokio::time::timeout(self.shutdown_grace, self.ledger.idle())
            .await
            .is_err()
        {
            tracing::warn!("calls are still in flight after the grace period; they are cut off");
            self.scheduler.cut_all();
            self.ledger.idle().await;
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
        let finalized = finalize::finalize_drained(&self.store);
        if let Ok(Err(error)) = tokio::time::timeout(LAST_WRITES, finalized).await {
            tracing::warn!(%error, "batches could not be ended; another process ends them");
        }
    }

    /// Gives back all that this process holds: its units with its lease, and its shares. Where one
    /// of the two cannot be given back now, it does not hold up the other.
    async fn leave(&self) {
        self.ledger.lock().revoke_all();
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
}

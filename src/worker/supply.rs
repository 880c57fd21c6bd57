//! The supply: keeps just enough units in hand that permits never run dry.
//!
//! Each round looks at the [stock](stock), gives back the [surplus](surplus), finds the
//! [candidates](candidates) in the backlog, and [fetches](fetch) units by their
//! [ranking](ranking). Their text is read as soon as the memory budget has room
//! ([prefetch](prefetch)).

mod candidates;
pub(crate) mod direct;
mod division;
mod fetch;
pub(crate) mod load;
mod not_in_hand;
mod prefetch;
mod ranking;
mod rates;
mod reconcile;
mod stock;
mod surplus;
mod unit_sizes;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::domain::clock::Clock;
use crate::domain::endpoint;
use crate::store::{self, Backlog, Store};
use crate::upstream::Pool;
use crate::worker::dispatch::Dispatch;
use crate::worker::dispatch::demand::Demand;
use crate::worker::dispatch::late::Verdict;
use crate::worker::dispatch::scheduler::Scheduler;
use crate::worker::dispatch::shared::{Left, SharedLedger};
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::lease::Lease;
use crate::worker::lease::authority::Authority;
use crate::worker::work::finished::CompletionQueue;
use candidates::{Selector, lines_waiting};
use direct::DirectLeases;
use fetch::Fetch;
use load::Loader;
use not_in_hand::not_in_hand;
use rates::Rates;
use reconcile::Reconciler;
use stock::Stock;

/// The supply looks at least this often.
const TICK: Duration = Duration::from_secs(1);
/// The supply looks this often for room in the budget, while units wait for room.
const BUDGET_TICK: Duration = Duration::from_millis(20);
/// No more lines a call are kept ready, however many may share one: their texts fill the memory.
const LINES_PER_CALL_MAX: usize = 64;
/// After so many rounds they are counted anew.
const ROUNDS_MAX: usize = 1 << 30;
/// Where there is no room for units of others, units are given back at most this often, and at
/// most so many.
const RELEASE_EVERY: Duration = Duration::from_millis(250);
const RELEASED_MAX: usize = 8;

pub(crate) struct Supply {
    store: Store,
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    scheduler: Arc<Scheduler>,
    demand: Arc<Demand>,
    tenants: Arc<Tenants>,
    lease: Arc<Lease>,
    authority: Arc<Authority>,
    clock: Clock,
    reconciler: Reconciler,
    rates: Rates,
    selector: Selector,
    fetch: Fetch,
    direct: Arc<DirectLeases>,
    /// Counts rounds. Each lane leases first in its turn, so that none always finds the budget
    /// taken.
    round: usize,
    /// When units were given back for others.
    released_at: Instant,
}

/// What the supply works with.
pub(crate) struct Parts<'a> {
    pub store: &'a Store,
    pub pool: &'a Arc<Pool>,
    pub dispatch: &'a Dispatch,
    pub demand: &'a Arc<Demand>,
    pub direct: &'a Arc<DirectLeases>,
    pub completions: &'a Arc<CompletionQueue>,
    pub lease: &'a Arc<Lease>,
    pub loader: &'a Arc<Loader>,
    pub authority: &'a Arc<Authority>,
    pub clock: &'a Clock,
}

impl Supply {
    pub(crate) fn new(parts: &Parts<'_>) -> Supply {
        let (store, pool, dispatch) = (parts.store, parts.pool, parts.dispatch);
        let lease = parts.lease;
        Supply {
            store: store.clone(),
            pool: pool.clone(),
            ledger: dispatch.ledger.clone(),
            scheduler: dispatch.scheduler.clone(),
            demand: parts.demand.clone(),
            tenants: dispatch.tenants.clone(),
            lease: lease.clone(),
            authority: parts.authority.clone(),
            clock: parts.clock.clone(),
            reconciler: Reconciler::new(
                store.clone(),
                lease.clone(),
                dispatch.ownership.clone(),
                parts.direct.clone(),
            ),
            rates: Rates::new(),
            selector: Selector::new(
                pool.clone(),
                dispatch.tenants.clone(),
                dispatch.write_failures.clone(),
            ),
            fetch: Fetch::new(
                store.clone(),
                pool.clone(),
                dispatch,
                parts.completions.clone(),
                lease.clone(),
                Arc::clone(parts.loader),
                parts.clock.clone(),
            ),
            direct: parts.direct.clone(),
            round: 0,
            released_at: Instant::now(),
        }
    }

    /// Looks at each wake-up, when units run short, and by itself from time to time, until
    /// stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> &'static str {
        let mut wakeups = self.store.wakeups(store::Who::Supplies);
        loop {
            wakeups.mark_unchanged();
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "units could not be leased; it is tried again");
                tokio::select! {
                    () = stop.cancelled() => return "supply",
                    () = tokio::time::sleep(TICK) => {}
                }
            }
            let next_round = tokio::time::Instant::now() + self.pause();
            loop {
                // While units wait for room, only the room is looked at, not all that there is to
                // lease.
                let pause = if self.fetch.prefetch.is_empty() {
                    TICK
                } else {
                    BUDGET_TICK
                };
                let look = tokio::time::Instant::now() + pause;
                tokio::select! {
                    () = stop.cancelled() => return "supply",
                    Ok(()) = wakeups.changed() => break,
                    () = self.ledger.supply_notified() => break,
                    () = tokio::time::sleep_until(look.min(next_round)) => {}
                }
                let is_due = tokio::time::Instant::now() >= next_round;
                if is_due || self.fetch.prefetch.read().await.is_err() {
                    break;
                }
            }
        }
    }

    /// One look: reads the text of units that are leased, then leases the units that are missing.
    async fn round(&mut self) -> store::Result<()> {
        let stock = Stock::of(&self.ledger, &self.pool);
        self.rates.measure(&stock);
        self.fetch.take_direct(self.direct.take_unread());
        self.end_batches(&stock).await?;
        if !self.lease.is_held() {
            return Ok(());
        }
        self.reconciler.reconcile().await?;
        self.fetch.prefetch.read().await?;
        self.release_surplus().await?;
        let turn = i64::try_from(self.round).unwrap_or(0);
        let began = Instant::now();
        let backlog = self.store.backlog(turn).await?;
        let looked = began.elapsed();
        let (ended, live): (Vec<_>, Vec<_>) = backlog
            .into_iter()
            .partition(|row| row.end_reason().is_some());
        for row in &ended {
            self.fetch.lease_ended(row).await?;
        }
        self.fetch.sizes.forget(&live);
        self.judge_lateness(&live);
        self.fetch.begin_round(&stock.batches, looked);
        let waiting = lines_waiting(&live);
        let candidates = self.selector.select(live);
        let on_offer = candidates.units();
        self.demand.set_on_offer(candidates.on_offer);
        let mut by_lane: Vec<_> = candidates.by_lane.into_iter().collect();
        self.round = self.round.wrapping_add(1) % ROUNDS_MAX;
        let lanes = by_lane.len();
        if lanes > 0 {
            by_lane.rotate_left(self.round % lanes);
        }
        let mut wanted = HashMap::new();
        for (lane, candidates) in by_lane {
            let permits = self.pool.limits().lane(lane);
            // The routes of a lane are alike in that.
            let mut embeddings = candidates.values().flatten().filter(|one| {
                [endpoint::EMBEDDINGS, endpoint::ANY.path].contains(&&*one.backlog.endpoint)
            });
            let per_call = embeddings
                .next()
                .map_or(1, |one| one.routes.lines_per_call());
            let per_call = per_call.min(LINES_PER_CALL_MAX);
            let lines = self
                .rates
                .lines_wanted(lane, permits.saturating_mul(per_call));
            let filled = self.fetch.fill(lane, lanes, lines, candidates, &stock);
            let shares = filled.await?.into_iter();
            wanted.extend(shares.map(|(name, share)| ((lane, name), share)));
        }
        let are_left = on_offer
            .into_iter()
            .filter(|(tenant, units)| self.fetch.leased_units(tenant) < *units);
        self.ledger.set_left(Left {
            tenants: are_left.map(|(tenant, _)| tenant).collect(),
            ended: !ended.is_empty(),
            unread: !self.fetch.prefetch.is_empty(),
        });
        let mut ledger = self.ledger.lock();
        ledger.set_low_water(&wanted);
        ledger.set_needs(&waiting, self.clock.now_ms());
        Ok(())
    }

    /// Judges which batches would be late, where models spill late. Before units are leased: what
    /// is in the backlog is not in hand.
    fn judge_lateness(&mut self, backlog: &[Backlog]) {
        if !self.pool.spills_late() {
            return;
        }
        let (sizes, unread) = (&self.fetch.sizes, self.fetch.prefetch.unread());
        let not_in_hand = not_in_hand(&self.pool, sizes, backlog, unread);
        let mut ledger = self.ledger.lock();
        let (now, now_ms) = (Instant::now(), self.clock.now_ms());
        let changed = ledger.judge_lateness(not_in_hand, now, now_ms);
        let may_spill = ledger.lateness().allows_some();
        drop(ledger);
        for verdict in changed {
            tell(&verdict);
        }
        if may_spill {
            self.ledger.notify_scheduler();
        }
    }

    /// Tells the scheduler of batches that are being ended. The lines of their units whose text is
    /// not read yet get their outcome.
    async fn end_batches(&mut self, stock: &Stock) -> store::Result<()> {
        let unread = self.fetch.prefetch.batches();
        let ids = stock.batches.iter().chain(&unread);
        let ids: BTreeSet<&str> = ids.map(String::as_str).collect();
        for (batch_id, state) in self.store.batch_states(&ids).await? {
            if let Some(end_reason) = state.end_reason {
                let unread = self.fetch.prefetch.take(&batch_id);
                self.fetch.prefetch.load_unsent(unread).await?;
                self.scheduler.end_batch(&batch_id, end_reason);
            }
        }
        Ok(())
    }

    /// Gives back units for which other replicas have the whole limit. While units wait for room
    /// in the budget, also gives back units that wait for their upstream, or for their turn.
    async fn release_surplus(&mut self) -> store::Result<()> {
        let (ledger, pool) = (&*self.ledger, &*self.pool);
        let mut released = Vec::new();
        if self.authority.holds_shares() {
            released.extend(surplus::release_without_share(ledger, pool, &self.tenants));
            released.extend(self.fetch.prefetch.take_without_share(&self.tenants));
        }
        released.extend(surplus::release_held(ledger));
        released.extend(self.fetch.prefetch.take_held());
        released.extend(surplus::release_stuck(ledger, pool));
        released.extend(surplus::release_unserved(ledger));
        if !self.fetch.prefetch.is_empty() {
            released.extend(surplus::release_closed(ledger, pool));
            if self.released_at.elapsed() >= RELEASE_EVERY {
                self.released_at = Instant::now();
                for (batch, routes) in self.fetch.prefetch.first_of_each_lane() {
                    let units = surplus::release_for(ledger, pool, &batch, &routes, RELEASED_MAX);
                    released.extend(units);
                }
            }
        }
        if !released.is_empty() {
            let token = self.lease.token();
            self.store.release_units(&token, &released).await?;
        }
        Ok(())
    }

    /// How long until the next round, if nothing happens before.
    fn pause(&self) -> Duration {
        // Without the lease nothing is leased, however much there is.
        if self.fetch.is_cut_short() && self.lease.is_held() {
            Duration::ZERO
        } else {
            let looks = if self.fetch.prefetch.is_empty() {
                TICK
            } else {
                RELEASE_EVERY
            };
            if self.pool.spills_late() {
                looks.min(self.ledger.lock().lateness().judged_every())
            } else {
                looks
            }
        }
    }
}

/// Writes a verdict to the log.
fn tell(verdict: &Verdict) {
    let message = if verdict.is_late {
        "the batch would miss its window at the present rate: lines of it go to the next tier"
    } else if verdict.lines > 0.0 {
        "the batch would make its window: no more lines of it go to the next tier"
    } else {
        "no line of the batch waits any more: the batch is not late"
    };
    tracing::info!(
        batch.id = &*verdict.batch,
        tenant.name = &*verdict.tenant,
        batch.to_send = verdict.lines.round(),
        batch.deficit = verdict.deficit.round(),
        batch.spilled = verdict.spilled,
        lane.lines_per_second = verdict.rate,
        lane.latency_seconds = verdict.latency.as_secs_f64(),
        batch.seconds_left = verdict.left.as_secs_f64(),
        "{message}"
    );
}

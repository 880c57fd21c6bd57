//! Leasing units: how many of which tenant and batch.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::candidates::{ByTenant, Candidate, LINES_PER_UNIT, batches_of, leave_for_others};
use super::division::{Claim, divide};
use super::load::{Loader, UnreadUnit};
use super::prefetch::Prefetch;
use super::ranking::Ranking;
use super::rates::ready_for;
use super::stock::{Stock, TenantStock};
use super::surplus;
use super::unit_sizes::UnitSizes;
use crate::domain::clock::Clock;
use crate::domain::endpoint;
use crate::store::{self, Backlog, Store};
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::Dispatch;
use crate::worker::dispatch::ledger::run_queues::{RunQueues, Tenant};
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::scheduler::Scheduler;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::lease::Lease;
use crate::worker::work::finished::CompletionQueue;
use crate::worker::work::unit::BatchContext;

/// After so long a round leases nothing more, and the next round follows at once: others may have
/// come in the meantime whose turn it is. Where the look at the backlog took longer, the round
/// leases for as long as the look: where very many batches wait, at least half of the time is for
/// leasing.
const LEASING_MAX: Duration = Duration::from_millis(200);
/// Lines whose units are leased by one statement…
const LINES_PER_LEASE: usize = 8 * LINES_PER_UNIT;
/// …and so many units at most: the text of each is up to a chunk.
const UNITS_PER_LEASE: usize = 64;
/// Units of ended batches that are leased by one statement. Their lines are only written.
const ENDED_UNITS_PER_LEASE: i64 = 8;
/// No more of those units are read while so many lines wait to be written.
const QUEUED_LINES_MAX: usize = 8_192;
/// For so long a batch keeps units in hand before they are given back for other batches of its
/// tenant: leasing units and reading their text again costs as much as many lines.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Where several processes share the work, each holds its part of the tenants, and of a tenant's
/// batches, times this.
const PART_FACTOR: f64 = 1.25;
/// How often a process takes one batch more of each tenant than its part. Where all processes hold
/// their part already, a new batch would otherwise wait until one of the held batches has ended.
const EXTRA_BATCH_EVERY: Duration = Duration::from_secs(1);

/// A tenant whose rate limits let few lines through has so many ready at least.
const READY_LIMITED_MIN: usize = 8;

pub(super) struct Fetch {
    store: Store,
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    tenants: Arc<Tenants>,
    ownership: Arc<Ownership>,
    scheduler: Arc<Scheduler>,
    completions: Arc<CompletionQueue>,
    lease: Arc<Lease>,
    clock: Clock,
    pub(super) prefetch: Prefetch,
    pub(super) sizes: UnitSizes,
    /// Since when batches have units in hand.
    held_since: HashMap<Arc<str>, Instant>,
    /// Until when the present round may lease, and whether it would have leased more.
    lease_until: Instant,
    is_cut_short: bool,
    /// How many units the present round has leased, by tenant.
    leased_units: HashMap<Arc<str>, i64>,
    /// When a round took more than this process's part of the batches, and whether the present
    /// round may.
    extra_batch_at: Instant,
    may_take_extra: bool,
}

/// What there is room for in a lane.
struct Room {
    /// This process's part of the lane's limit.
    part: f64,
    /// So many tenants may get their first unit in hand.
    new_tenants: usize,
    /// The lane has used up its part of the memory budget. Then only one unit is leased, for a
    /// tenant that has nothing in hand, and others make room for it.
    is_full: bool,
    exceptions: usize,
}

impl Fetch {
    pub(super) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: &Dispatch,
        completions: Arc<CompletionQueue>,
        lease: Arc<Lease>,
        loader: Arc<Loader>,
        clock: Clock,
    ) -> Self {
        let now = Instant::now();
        let prefetch = Prefetch::new(pool.clone(), dispatch, loader);
        Self {
            store,
            pool,
            ledger: Arc::clone(&dispatch.ledger),
            tenants: Arc::clone(&dispatch.tenants),
            ownership: Arc::clone(&dispatch.ownership),
            scheduler: Arc::clone(&dispatch.scheduler),
            completions,
            lease,
            clock,
            prefetch,
            sizes: UnitSizes::default(),
            held_since: HashMap::new(),
            lease_until: now,
            is_cut_short: false,
            leased_units: HashMap::new(),
            extra_batch_at: now,
            may_take_extra: false,
        }
    }

    /// A round begins to lease. `in_hand`: the batches of which units are in hand. `looked`: how
    /// long the look at the backlog took.
    pub(super) fn begin_round(&mut self, in_hand: &BTreeSet<String>, looked: Duration) {
        self.held_since.retain(|id, _| in_hand.contains(&**id));
        for id in in_hand {
            // Others were leased directly.
            if !self.held_since.contains_key(&**id) {
                self.held_since.insert(id.as_str().into(), Instant::now());
            }
        }
        (self.lease_until, self.is_cut_short) = (Instant::now() + LEASING_MAX.max(looked), false);
        self.leased_units.clear();
        self.may_take_extra = self.extra_batch_at.elapsed() >= EXTRA_BATCH_EVERY;
        if self.may_take_extra {
            self.extra_batch_at = Instant::now();
        }
    }

    /// Takes in hand units that were leased directly, for whose text there was no room.
    pub(super) fn take_direct(&mut self, units: Vec<(LaneId, UnreadUnit)>) {
        for (lane, unread) in units {
            self.prefetch.push(lane, unread);
        }
    }

    /// How many units the present round has leased of a tenant.
    pub(super) fn leased_units(&self, tenant: &str) -> i64 {
        self.leased_units.get(tenant).copied().unwrap_or(0)
    }

    /// Whether the last round would have leased more, had it had more time.
    pub(super) fn is_cut_short(&self) -> bool {
        self.is_cut_short
    }

    /// Leases for one of so many lanes: every tenant that has work gets its share of the lines that
    /// are to be ready, the tenant first whose turn it is. Returns these shares.
    pub(super) async fn fill(
        &mut self,
        lane: LaneId,
        lanes: usize,
        lines_wanted: usize,
        candidates: ByTenant,
        stock: &Stock,
    ) -> store::Result<HashMap<Arc<str>, usize>> {
        let in_hand = stock.tenants.iter();
        let in_hand: HashMap<&str, &TenantStock> = in_hand
            .filter(|((of, _), tenant)| *of == lane && !tenant.ready.is_empty())
            .map(|((_, name), tenant)| (&**name, tenant))
            .collect();
        let new = candidates.keys();
        let new = new.filter(|name| !in_hand.contains_key(&***name)).count();
        let bytes = stock.lanes.get(&lane).map_or(0, |lane| lane.bytes);
        let mut room = self.room(lane, lanes, lines_wanted, (in_hand.len(), new), bytes);

        let shares = self.shares(lines_wanted, &candidates, &in_hand);
        let mut surplus = Vec::new();
        for (name, mut candidates) in self.in_turn(lane, candidates) {
            let share = shares.get(&name).copied().unwrap_or(1);
            let of_tenant = in_hand.get(&*name).copied();
            if of_tenant.is_none() {
                if room.new_tenants == 0 {
                    continue;
                }
                room.new_tenants -= 1;
            }
            let seconds = stock.lanes.get(&lane).and_then(|lane| lane.seconds);
            self.choose(&mut candidates, of_tenant, (&room, share), seconds);
            let chosen = candidates.iter().map(|one| &*one.backlog.batch_id);
            let chosen: HashSet<&str> = chosen.collect();
            if let Some(tenant) = of_tenant {
                surplus.extend(self.surplus_of(tenant, &chosen, share));
            }
            let lines_each = (share / chosen.len().max(1)).max(1);
            self.lease_for(lane, (&name, of_tenant), &candidates, lines_each, &mut room)
                .await?;
        }
        if !surplus.is_empty() {
            let released = surplus::release_batches(&self.ledger, &surplus);
            let token = self.lease.token();
            self.store.release_units(&token, &released).await?;
        }
        Ok(shares)
    }

    /// Lines that each tenant with candidates should have ready.
    fn shares(
        &self,
        lines_wanted: usize,
        candidates: &ByTenant,
        in_hand: &HashMap<&str, &TenantStock>,
    ) -> HashMap<Arc<str>, usize> {
        let others = in_hand
            .keys()
            .filter(|name| !candidates.contains_key(**name));
        let names = candidates.keys().map(|name| &**name);
        let ledger = self.ledger.lock();
        let claims = names.chain(others.copied()).map(|name| Claim {
            weight: self.tenants.weight(name),
            most: self.most_ready(name, ledger.run_queues()),
        });
        let claims: Vec<Claim> = claims.collect();
        drop(ledger);
        let parts = divide(lines_wanted, &claims);
        candidates.keys().cloned().zip(parts).collect()
    }

    /// The most lines that a tenant should have ready, where its limits let it send few. What its
    /// rate limits let through, its calls in flight show.
    fn most_ready(&self, tenant: &str, run_queues: &RunQueues) -> usize {
        let by_calls = self.tenants.calls(tenant).map_or(usize::MAX, ready_for);
        if !self.tenants.has_rate_limits(tenant) {
            return by_calls;
        }
        let known = run_queues.tenant_named(tenant);
        let in_flight = known.map_or(0, Tenant::in_flight);
        by_calls.min(ready_for(in_flight).max(READY_LIMITED_MIN))
    }

    fn room(
        &self,
        lane: LaneId,
        lanes: usize,
        lines_wanted: usize,
        (in_hand, new): (usize, usize),
        bytes: usize,
    ) -> Room {
        let limits = self.pool.limits();
        let tenants = in_hand + new;
        let is_full = bytes > 0 && bytes >= self.pool.budget().limit() / lanes;
        // The rest is for other processes.
        let part = limits.lane(lane) as f64 / limits.lane_allowed(lane).max(1) as f64;
        let most = lines_wanted.max((tenants as f64 * part * PART_FACTOR).ceil() as usize);
        Room {
            part,
            new_tenants: most.saturating_sub(in_hand),
            is_full,
            exceptions: usize::from(is_full),
        }
    }

    /// The tenants in the order of their turns.
    fn in_turn(&self, lane: LaneId, candidates: ByTenant) -> Vec<(Arc<str>, Vec<Candidate>)> {
        let domain = self.pool.limits().domain(lane);
        let ledger = self.ledger.lock();
        let run_queues = ledger.run_queues();
        let mut tenants: Vec<_> = candidates.into_iter().collect();
        tenants.sort_by_cached_key(|(name, _)| run_queues.turn_of_tenant(name, domain));
        tenants
    }

    /// Leaves the candidates of a tenant that may be leased, the next one first.
    fn choose(
        &self,
        candidates: &mut Vec<Candidate>,
        of_tenant: Option<&TenantStock>,
        (room, share): (&Room, usize),
        seconds: Option<f64>,
    ) {
        if let Some(tenant) = of_tenant {
            let is_blocked = |candidate: &Candidate| {
                let mut blocked = tenant.blocked.iter();
                blocked.any(|routes| Arc::ptr_eq(routes, &candidate.routes))
            };
            candidates.retain(|candidate| !is_blocked(candidate));
        }
        let ready = of_tenant.map(|tenant| &tenant.ready);
        let batches = batches_of(candidates, ready);
        let turns: Vec<_> = {
            let ledger = self.ledger.lock();
            let ids = candidates.iter().map(|one| &one.backlog.batch_id);
            ids.map(|id| ledger.run_queues().turn_of_batch(id))
                .collect()
        };
        let keeps = |id: &str| {
            let since = self.held_since.get(id);
            ready.is_some_and(|ready| ready.contains_key(id))
                && since.is_some_and(|since| since.elapsed() < KEPT_FOR)
        };
        let ranking = Ranking {
            share,
            turns: &turns,
            seconds,
            now_ms: self.clock.now_ms(),
            keeps,
        };
        ranking.rank(candidates);
        if room.part < 1.0 {
            let mut most = (batches as f64 * room.part * PART_FACTOR).ceil() as usize;
            if self.may_take_extra {
                most = most.max(ready.map_or(0, HashMap::len)) + 1;
            }
            leave_for_others(candidates, ready, share, most);
        }
    }

    /// Batches of a tenant whose units are to be given back, because it is the turn of others and
    /// more batches are in hand than the share allows.
    fn surplus_of(
        &self,
        tenant: &TenantStock,
        chosen: &HashSet<&str>,
        share: usize,
    ) -> Vec<Arc<str>> {
        let too_many = tenant.ready.len().saturating_sub(share);
        let had_its_time = |id: &&Arc<str>| {
            let since = self.held_since.get(&**id);
            since.is_none_or(|since| since.elapsed() >= KEPT_FOR)
        };
        let behind = tenant.ready.keys().filter(|id| !chosen.contains(&***id));
        let behind = behind.filter(had_its_time).take(too_many);
        behind.cloned().collect()
    }

    /// Leases units of a tenant's batches until each batch has so many lines ready.
    async fn lease_for(
        &mut self,
        lane: LaneId,
        (tenant, in_hand): (&str, Option<&TenantStock>),
        candidates: &[Candidate],
        lines_each: usize,
        room: &mut Room,
    ) -> store::Result<()> {
        let mut leased: HashMap<String, usize> = HashMap::new();
        for candidate in candidates {
            let id = &candidate.backlog.batch_id;
            let before = in_hand.and_then(|tenant| tenant.ready.get(&**id)).copied();
            let mut lines = before.unwrap_or(0) + leased.get(id).copied().unwrap_or(0);
            let mut waiting = candidate.backlog.waiting;
            while lines < lines_each && waiting > 0 && !self.prefetch.has_unit_of(lane, tenant) {
                if Instant::now() >= self.lease_until {
                    self.is_cut_short = true;
                    break;
                }
                let missing = (lines_each - lines).min(LINES_PER_LEASE);
                let each = self.sizes.lines_per_unit(&candidate.backlog);
                let mut units = missing.div_ceil(each).min(UNITS_PER_LEASE);
                if room.is_full {
                    if room.exceptions == 0 || lines > 0 || before.is_some() {
                        break;
                    }
                    (room.exceptions, units) = (0, 1);
                }
                let (leased_units, added) = self.lease(candidate, units as i64).await?;
                if added == 0 {
                    break;
                }
                waiting -= leased_units;
                lines += added;
                *leased.entry(id.clone()).or_default() += added;
                self.held_since
                    .entry(id.as_str().into())
                    .or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    /// Leases units and reads their text. Returns how many units and lines are coming.
    async fn lease(&mut self, candidate: &Candidate, units: i64) -> store::Result<(i64, usize)> {
        let row = &candidate.backlog;
        let batch = context(row);
        let routes = Some(&candidate.routes);
        let leased = self.lease_units(row, &batch, routes, units).await?;
        let (units, mut lines) = (leased.len() as i64, 0);
        let of_tenant = Arc::clone(&batch.tenant);
        *self.leased_units.entry(of_tenant).or_default() += units;
        for unread in leased {
            lines += usize::try_from(unread.leased.requests).unwrap_or(0);
            self.prefetch.push(candidate.routes.lane, unread);
        }
        self.prefetch.read().await?;
        Ok((units, lines))
    }

    /// Leases units of a batch that is being ended. Their lines get their outcome unsent.
    pub(super) async fn lease_ended(&mut self, row: &Backlog) -> store::Result<()> {
        let Some(end_reason) = row.end_reason() else {
            return Ok(());
        };
        let batch = context(row);
        loop {
            if self.completions.size().0 > QUEUED_LINES_MAX {
                // The flush wakes the supply, which goes on then.
                return Ok(());
            }
            let units = self.lease_units(row, &batch, None, ENDED_UNITS_PER_LEASE);
            let units = units.await?;
            if units.is_empty() {
                return Ok(());
            }
            self.prefetch.load_unsent(units).await?;
            self.scheduler.end_batch(&row.batch_id, end_reason);
        }
    }

    async fn lease_units(
        &mut self,
        row: &Backlog,
        batch: &Arc<BatchContext>,
        routes: Option<&Arc<Routes>>,
        units: i64,
    ) -> store::Result<Vec<UnreadUnit>> {
        if !self.lease.is_held() {
            return Ok(Vec::new());
        }
        let token = self.lease.token();
        let leased = self
            .store
            .lease_units(&token, &row.batch_id, row.model_no, units)
            .await?;
        self.sizes.on_leased(&leased);
        let unread = leased.into_iter().map(|leased| {
            self.ownership.on_leased(&leased.lease);
            UnreadUnit {
                leased,
                model: row.model.clone(),
                file_id: row.input_file_id.clone(),
                batch: batch.clone(),
                routes: routes.cloned(),
            }
        });
        Ok(unread.collect())
    }
}

pub(super) fn context(row: &Backlog) -> Arc<BatchContext> {
    Arc::new(BatchContext::new(row, endpoint::of_batch(&row.endpoint)))
}

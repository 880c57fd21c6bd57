//! Leasing: just enough units in hand that permits never run dry.

mod prefetch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::domain::batch::Status;
use crate::domain::endpoint;
use crate::store::{self, Backlog, Store};
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::{Dispatch, InHand, TenantInHand, needed};
use crate::worker::lease::Lease;
use crate::worker::work::completions::Inbox;
use crate::worker::work::unit::BatchContext;
use prefetch::{Texts, Unread};

/// How long the supply may go without a look.
const TICK: Duration = Duration::from_secs(1);
/// How soon it looks again for room in the budget, while units wait for some.
const BUDGET_TICK: Duration = Duration::from_millis(20);
/// Permits' worth of lines to have ready, beside what the rate asks for.
const READY_A_PERMIT: usize = 2;
/// Time for which lines are kept ready: what leasing takes, with much to spare.
const AHEAD_SECONDS: f64 = 0.5;
/// Over how long the rate is measured, at least.
const RATE_OVER_SECONDS: f64 = 0.2;
/// Lines that a unit is taken to have until it is read.
const LINES_A_UNIT: usize = 512;
/// After so long a round leases nothing more, and the next one follows at once: others may have
/// come meanwhile whose turn it is.
const LEASING_MAX: Duration = Duration::from_millis(200);
/// Models of a batch that are ranked at once.
const MODELS_A_BATCH: usize = 16;
/// After so many rounds they are counted anew.
const TURNS: usize = 1 << 30;
/// Units leased by one statement.
const UNITS_A_LEASE: usize = 8;
/// Units of ended batches handled in one go: their lines are only written.
const ENDED_UNITS: i64 = 8;
/// No more of them are read while so many lines wait to be written.
const INBOX_LINES_MAX: usize = 8_192;
/// How often in a lease's term what the store says is ours is compared with what is in hand.
const COMPARISONS_A_TERM: u32 = 2;

/// For how long a batch keeps units in hand before they are given back for others of its tenant:
/// to lease them and to read their text again costs as much as many lines.
const SLICE: Duration = Duration::from_secs(10);
/// How often units are given back at most where there is no room for those of others, and how many.
const SHED_EVERY: Duration = Duration::from_millis(250);
const SHED_MAX: usize = 8;
/// What a process holds beside its part of the tenants, and of a tenant's batches, where several
/// share them.
const HELD_BESIDE: f64 = 1.25;
/// How often a process takes one batch more of each tenant than its part. Where all processes hold
/// their part already, a new batch would otherwise wait until one of them has ended.
const BESIDE_EVERY: Duration = Duration::from_secs(1);

/// Units of one model in one batch that could be leased.
struct Offer {
    backlog: Backlog,
    routes: Arc<Routes>,
}

/// What there is to lease in a lane, by tenant.
type Offers = HashMap<Arc<str>, Vec<Offer>>;

pub(crate) struct Supply {
    store: Store,
    pool: Arc<Pool>,
    dispatch: Arc<Dispatch>,
    inbox: Arc<Inbox>,
    lease: Arc<Lease>,
    texts: Texts,
    /// Lines a second by lane, lately.
    rates: HashMap<LaneId, f64>,
    measured: (Instant, HashMap<LaneId, u64>),
    compared: Instant,
    /// Models that were warned about.
    unserved: HashSet<String>,
    /// Which lane leases first: each in its turn, so that none always finds the budget taken.
    turn: usize,
    /// Since when batches have units in hand.
    taken: HashMap<Arc<str>, Instant>,
    /// When units were given back for others.
    shed_at: Instant,
    /// Until when the present round may lease, and whether it would have leased more.
    lease_until: Instant,
    is_cut_short: bool,
    /// When a round took more than this process's part of the batches, and whether the present one
    /// may.
    beside_at: Instant,
    may_take_beside: bool,
}

impl Supply {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: Arc<Dispatch>,
        inbox: Arc<Inbox>,
        lease: Arc<Lease>,
    ) -> Supply {
        let now = Instant::now();
        let texts = Texts::new(store.clone(), pool.clone(), dispatch.clone(), lease.clone());
        Supply {
            store,
            pool,
            dispatch,
            inbox,
            lease,
            texts,
            rates: HashMap::new(),
            measured: (now, HashMap::new()),
            compared: now,
            unserved: HashSet::new(),
            turn: 0,
            taken: HashMap::new(),
            shed_at: now,
            lease_until: now,
            is_cut_short: false,
            beside_at: now,
            may_take_beside: false,
        }
    }

    /// One look: reads what is leased, then leases what is missing.
    async fn round(&mut self) -> store::Result<()> {
        let in_hand = self.dispatch.in_hand();
        self.measure(&in_hand);
        self.end_batches(&in_hand).await?;
        if !self.lease.holds() {
            return Ok(());
        }
        self.compare().await?;
        self.texts.read().await?;
        self.shed().await?;
        let turn = i64::try_from(self.turn).unwrap_or(0);
        let backlog = self.store.backlog(turn).await?;
        let (ended, live): (Vec<_>, Vec<_>) = backlog
            .into_iter()
            .partition(|row| row.end_reason().is_some());
        for row in &ended {
            self.lease_ended(row).await?;
        }
        let in_hand_ids = &in_hand.batches;
        self.taken.retain(|id, _| in_hand_ids.contains(&**id));
        (self.lease_until, self.is_cut_short) = (Instant::now() + LEASING_MAX, false);
        self.may_take_beside = self.beside_at.elapsed() >= BESIDE_EVERY;
        if self.may_take_beside {
            self.beside_at = Instant::now();
        }
        let waiting = lines_waiting(&live);
        let offers = self.offers(live);
        let lanes = offers.len();
        let mut wanted = HashMap::new();
        let mut offers: Vec<_> = offers.into_iter().collect();
        self.turn = self.turn.wrapping_add(1) % TURNS;
        if lanes > 0 {
            offers.rotate_left(self.turn % lanes);
        }
        for (lane, offers) in offers {
            let names: Vec<Arc<str>> = offers.keys().cloned().collect();
            let share = self.fill(lane, lanes, offers, &in_hand).await?;
            wanted.extend(names.into_iter().map(|name| ((lane, name), share)));
        }
        self.dispatch.ask(&wanted, &waiting);
        Ok(())
    }

    /// What can be leased, by lane and tenant. Units that no upstream takes at present are left for
    /// later, or for replicas that see it otherwise.
    fn offers(&mut self, backlog: Vec<Backlog>) -> BTreeMap<LaneId, Offers> {
        let mut offers: BTreeMap<LaneId, Offers> = BTreeMap::new();
        let mut open: HashMap<(LaneId, Vec<usize>), Arc<Routes>> = HashMap::new();
        // By model, for many batches name the same: its routes, if they are open, and whether
        // this process has a share.
        let mut known: HashMap<String, Option<(Arc<Routes>, bool)>> = HashMap::new();
        for row in backlog {
            if row.state.status != Status::InProgress || self.dispatch.is_unwritable(&row.batch_id)
            {
                continue;
            }
            if !known.contains_key(&row.model) {
                let routes = self.pool.resolve(&row.model);
                match &routes {
                    Some(_) => drop(self.unserved.remove(&row.model)),
                    None => self.warn_unserved(&row),
                }
                // One that closes again and again is open for a moment now and then.
                let routes = routes.filter(|routes| self.pool.was_open(routes));
                let routes = routes.map(|routes| {
                    let has_share = self.pool.has_share(&routes);
                    (routes, has_share)
                });
                known.insert(row.model.clone(), routes);
            }
            let Some(Some((routes, has_share))) = known.get(&row.model) else {
                continue;
            };
            open.entry((routes.lane, routes.upstreams().collect()))
                .or_insert_with(|| routes.clone());
            // Who has a share leases it; who has none asks for one.
            if *has_share {
                let of_lane = offers.entry(routes.lane).or_default();
                let tenant = row.tenant.as_str();
                if !of_lane.contains_key(tenant) {
                    of_lane.insert(tenant.into(), Vec::new());
                }
                if let Some(of_tenant) = of_lane.get_mut(tenant) {
                    of_tenant.push(Offer {
                        routes: routes.clone(),
                        backlog: row,
                    });
                }
            }
        }
        self.dispatch.note_offered(open.into_values().collect());
        offers
    }

    fn warn_unserved(&mut self, row: &Backlog) {
        if self.unserved.insert(row.model.clone()) {
            tracing::warn!(
                model.name = row.model,
                batch.id = row.batch_id,
                "no upstream serves this model any more; its lines wait until one does, or until \
                 their window ends"
            );
        }
    }

    /// Leases for one lane: every tenant that has work gets its share of what is kept ready, the
    /// one whose turn it is first. Returns that share.
    async fn fill(
        &mut self,
        lane: LaneId,
        lanes: usize,
        offers: Offers,
        in_hand: &InHand,
    ) -> store::Result<usize> {
        let permits = self.pool.limits().lane(lane);
        let wanted = self.wanted(lane, permits);
        let served = in_hand.tenants.iter();
        let served: HashMap<&str, &TenantInHand> = served
            .filter(|((of, _), tenant)| *of == lane && !tenant.ready.is_empty())
            .map(|((_, name), tenant)| (&**name, tenant))
            .collect();
        let others = offers.keys().filter(|name| !served.contains_key(&***name));
        let tenants = served.len() + others.count();
        let share = (wanted / tenants.max(1)).max(1);
        let bytes = in_hand.lanes.get(&lane).map_or(0, |lane| lane.bytes);
        // Then only somebody without anything in hand gets a unit, for which others make room.
        let is_full = bytes > 0 && bytes >= self.pool.budget().limit() / lanes;
        let mut exceptions = usize::from(is_full);
        // Other processes are to find something, too.
        let part = permits as f64 / self.pool.limits().lane_allowed(lane).max(1) as f64;
        let mut places = wanted.max((tenants as f64 * part * HELD_BESIDE).ceil() as usize);
        places = places.saturating_sub(served.len());

        let mut tenants: Vec<(Arc<str>, Vec<Offer>)> = offers.into_iter().collect();
        let names = tenants.iter().map(|(name, _)| &**name);
        let turns = self.dispatch.turns(lane, names);
        let mut order: Vec<usize> = (0..tenants.len()).collect();
        order.sort_by_key(|&at| turns[at]);
        let mut surplus = Vec::new();
        for at in order {
            let (name, offers) = &mut tenants[at];
            let of_tenant = served.get(&**name);
            if of_tenant.is_none() {
                if places == 0 {
                    continue;
                }
                places -= 1;
            }
            if let Some(tenant) = of_tenant {
                let blocked = |offer: &Offer| {
                    let mut blocked = tenant.blocked.iter();
                    blocked.any(|routes| Arc::ptr_eq(routes, &offer.routes))
                };
                offers.retain(|offer| !blocked(offer));
            }
            let ready = of_tenant.map(|tenant| &tenant.ready);
            let batches = batches_of(offers, ready);
            self.rank(lane, offers, share, ready, in_hand);
            if part < 1.0 {
                let mut most = (batches as f64 * part * HELD_BESIDE).ceil() as usize;
                if self.may_take_beside {
                    most = most.max(ready.map_or(0, HashMap::len)) + 1;
                }
                leave_for_others(offers, ready, share, most);
            }
            let first: HashSet<&str> = offers.iter().map(|o| &*o.backlog.batch_id).collect();
            if let Some(ready) = ready
                && ready.len() > share
            {
                let has_had = |id: &&Arc<str>| {
                    let taken = self.taken.get(&**id);
                    taken.is_none_or(|taken| taken.elapsed() >= SLICE)
                };
                let behind = ready.keys().filter(|id| !first.contains(&***id));
                surplus.extend(behind.filter(has_had).take(ready.len() - share).cloned());
            }
            let each = (share / first.len().max(1)).max(1);
            let mut leased: HashMap<String, usize> = HashMap::new();
            for offer in &*offers {
                let id = &offer.backlog.batch_id;
                let before = ready.and_then(|ready| ready.get(&**id)).copied();
                let mut lines = before.unwrap_or(0) + leased.get(id).copied().unwrap_or(0);
                while lines < each && !self.texts.wait_of(lane, name) {
                    if Instant::now() >= self.lease_until {
                        self.is_cut_short = true;
                        break;
                    }
                    let mut units = (each - lines).div_ceil(LINES_A_UNIT).min(UNITS_A_LEASE);
                    if is_full {
                        if exceptions == 0 || lines > 0 || before.is_some() {
                            break;
                        }
                        (exceptions, units) = (0, 1);
                    }
                    let added = self.lease(offer, units as i64).await?;
                    if added == 0 {
                        break;
                    }
                    lines += added;
                    *leased.entry(id.clone()).or_default() += added;
                    self.taken
                        .entry(id.as_str().into())
                        .or_insert_with(Instant::now);
                }
            }
        }
        if !surplus.is_empty() {
            let shed = self.dispatch.shed_batches(&surplus);
            self.store.release_units(&self.lease.token(), &shed).await?;
        }
        Ok(share)
    }

    /// Leaves the offers of as many batches of a tenant as may have units in hand: those whose turn
    /// it is, the next one first.
    fn rank(
        &self,
        lane: LaneId,
        offers: &mut Vec<Offer>,
        share: usize,
        ready: Option<&HashMap<Arc<str>, usize>>,
        in_hand: &InHand,
    ) {
        let ids = offers.iter().map(|offer| &*offer.backlog.batch_id);
        let turns = self.dispatch.turns_of_batches(ids);
        let seconds = in_hand.lanes.get(&lane).and_then(|lane| lane.seconds);
        let now_ms = self.dispatch.now_ms();
        let mut ranked: Vec<_> = std::mem::take(offers)
            .into_iter()
            .zip(turns)
            .map(|(offer, (_, last))| {
                let row = &offer.backlog;
                let deadline = row.expires_at.unwrap_or(i64::MAX);
                let lines = (row.waiting * LINES_A_UNIT as i64).min(row.total);
                let needs = needed(lines as f64, seconds, deadline.saturating_sub(now_ms));
                // To take turns costs something: who has units in hand keeps them for a while.
                let taken = self.taken.get(&*row.batch_id);
                let stays = ready.is_some_and(|ready| ready.contains_key(&*row.batch_id))
                    && taken.is_some_and(|taken| taken.elapsed() < SLICE);
                let waits = last > 0 && !stays;
                let place = (deadline, row.created_at, row.batch_id.clone(), row.model_no);
                let key = (needs < 1.0, -row.priority, waits, last, place);
                (key, offer)
            })
            .collect();
        // Of thousands only the first need be in order.
        let most = share.saturating_mul(MODELS_A_BATCH);
        if ranked.len() > most {
            ranked.select_nth_unstable_by(most, |a, b| a.0.cmp(&b.0));
            ranked.truncate(most);
        }
        ranked.sort_by(|a, b| a.0.cmp(&b.0));
        let mut batches: HashSet<String> = HashSet::new();
        for (_, offer) in ranked {
            let id = &offer.backlog.batch_id;
            if batches.contains(id) || batches.len() < share {
                batches.insert(id.clone());
                offers.push(offer);
            }
        }
    }

    /// Lines to have ready in a lane of so many permits.
    fn wanted(&self, lane: LaneId, permits: usize) -> usize {
        let rate = self.rates.get(&lane).copied().unwrap_or(0.0);
        permits
            .saturating_mul(READY_A_PERMIT)
            .max((rate * AHEAD_SECONDS) as usize)
    }

    /// Leases units and reads their text; returns how many lines are coming.
    async fn lease(&mut self, offer: &Offer, units: i64) -> store::Result<usize> {
        let row = &offer.backlog;
        let Some(batch) = context(row) else {
            return Ok(0);
        };
        let mut lines = 0;
        for unread in self
            .lease_units(row, &batch, Some(&offer.routes), units)
            .await?
        {
            lines += usize::try_from(unread.leased.requests).unwrap_or(0);
            self.texts.push(offer.routes.lane, unread);
        }
        self.texts.read().await?;
        Ok(lines)
    }

    /// Leases units of a batch that is being ended: their lines get their outcome unsent.
    async fn lease_ended(&mut self, row: &Backlog) -> store::Result<()> {
        let (Some(reason), Some(batch)) = (row.end_reason(), context(row)) else {
            return Ok(());
        };
        loop {
            if self.inbox.size().0 > INBOX_LINES_MAX {
                // The flush wakes the supply, which goes on then.
                return Ok(());
            }
            let units = self.lease_units(row, &batch, None, ENDED_UNITS).await?;
            if units.is_empty() {
                return Ok(());
            }
            self.texts.open_unsent(units).await?;
            self.dispatch.end_batch(&row.batch_id, reason);
        }
    }

    async fn lease_units(
        &mut self,
        row: &Backlog,
        batch: &Arc<BatchContext>,
        routes: Option<&Arc<Routes>>,
        units: i64,
    ) -> store::Result<Vec<Unread>> {
        if !self.lease.holds() {
            return Ok(Vec::new());
        }
        let token = self.lease.token();
        let leased = self
            .store
            .lease_units(&token, &row.batch_id, row.model_no, units)
            .await?;
        let unread = leased.into_iter().map(|leased| {
            self.dispatch.note_leased(&leased.lease);
            Unread {
                leased,
                model: row.model.clone(),
                file_id: row.input_file_id.clone(),
                batch: batch.clone(),
                routes: routes.cloned(),
            }
        });
        Ok(unread.collect())
    }

    /// Tells the dispatch of batches that are being ended, and gives the lines of units that
    /// were to be sent, but are not read yet, their outcome.
    async fn end_batches(&mut self, in_hand: &InHand) -> store::Result<()> {
        let unread = self.texts.batches();
        let ids: BTreeSet<&str> = in_hand
            .batches
            .iter()
            .chain(&unread)
            .map(String::as_str)
            .collect();
        for (batch_id, state) in self.store.batch_states(&ids).await? {
            if let Some(reason) = state.end_reason {
                let unread = self.texts.take(&batch_id);
                self.texts.open_unsent(unread).await?;
                self.dispatch.end_batch(&batch_id, reason);
            }
        }
        Ok(())
    }

    /// Gives back units that other replicas have the whole limit for; and those that wait for
    /// their upstream, where others wait for the budget.
    async fn shed(&mut self) -> store::Result<()> {
        let mut shed = self.dispatch.shed_without_share();
        if self.dispatch.shares_hold() {
            shed.extend(self.texts.take_without_share());
        }
        shed.extend(self.dispatch.shed_stuck());
        if self.texts.wait() {
            shed.extend(self.dispatch.shed());
            if self.shed_at.elapsed() >= SHED_EVERY {
                self.shed_at = Instant::now();
                for (batch, routes) in self.texts.first_waiting() {
                    shed.extend(self.dispatch.shed_for(&batch, &routes, SHED_MAX));
                }
            }
        }
        if !shed.is_empty() {
            self.store.release_units(&self.lease.token(), &shed).await?;
        }
        Ok(())
    }

    /// Compares what the store says is ours with what is in hand. What nobody here holds is given
    /// back: a lease whose reply was lost. What is in hand but not ours is let go. Nothing is
    /// leased meanwhile; what is finished meanwhile looks like either, and is harmed by neither.
    async fn compare(&mut self) -> store::Result<()> {
        if self.compared.elapsed() < self.lease.term() / COMPARISONS_A_TERM {
            return Ok(());
        }
        self.compared = Instant::now();
        let token = self.lease.token();
        let held: HashSet<_> = self.dispatch.held().into_iter().collect();
        let leased: HashSet<_> = self.store.leased_units(&token).await?.into_iter().collect();
        let strays: Vec<_> = leased.difference(&held).cloned().collect();
        if !strays.is_empty() {
            tracing::warn!(
                units.count = strays.len(),
                "gives back units that nobody here holds"
            );
            self.store.release_units(&token, &strays).await?;
        }
        let mut astray: Vec<_> = held.difference(&leased).cloned().collect();
        astray.retain(|lease| self.dispatch.holds(lease));
        if !astray.is_empty() {
            let lost = self.store.reclaim_units(&token, &astray).await?;
            tracing::info!(
                units.count = lost.len(),
                "lets go of units that are not its own any more"
            );
            self.dispatch.lose_units(&lost);
        }
        Ok(())
    }

    /// How long until the next round, if nothing happens before.
    fn pause(&self) -> Duration {
        if self.is_cut_short {
            Duration::ZERO
        } else if self.texts.wait() {
            SHED_EVERY
        } else {
            TICK
        }
    }

    fn measure(&mut self, in_hand: &InHand) {
        let elapsed = self.measured.0.elapsed().as_secs_f64();
        if elapsed < RATE_OVER_SECONDS {
            return;
        }
        let answered: HashMap<LaneId, u64> = in_hand
            .lanes
            .iter()
            .map(|(id, lane)| (*id, lane.answered))
            .collect();
        for (lane, answered) in &answered {
            let before = self.measured.1.get(lane).copied().unwrap_or(0);
            self.rates
                .insert(*lane, (answered - before) as f64 / elapsed);
        }
        self.measured = (Instant::now(), answered);
    }
}

/// Batches of a tenant that have units here, or units that nobody holds.
fn batches_of(offers: &[Offer], ready: Option<&HashMap<Arc<str>, usize>>) -> usize {
    let offered = offers.iter().map(|offer| &*offer.backlog.batch_id);
    let held = ready.into_iter().flat_map(HashMap::keys).map(|id| &**id);
    offered.chain(held).collect::<HashSet<&str>>().len()
}

/// Drops offers of a tenant that other processes are to find. Kept are, in the order of their
/// turns: more units of the batches in hand, batches until `share` lines are ready, and batches
/// until `most` are in hand. A process that took all small batches of a tenant at once would send
/// them by its own share of the limits alone, while other processes have nothing to send.
fn leave_for_others(
    offers: &mut Vec<Offer>,
    ready: Option<&HashMap<Arc<str>, usize>>,
    share: usize,
    most: usize,
) {
    let mut lines: usize = ready.map_or(0, |ready| ready.values().sum());
    let held = ready.into_iter().flat_map(HashMap::keys);
    let mut batches: HashSet<Arc<str>> = held.cloned().collect();
    offers.retain(|offer| {
        let row = &offer.backlog;
        if batches.contains(&*row.batch_id) {
            return true;
        }
        if batches.len() >= most && lines >= share {
            return false;
        }
        let units = usize::try_from(row.waiting).unwrap_or(0);
        let total = usize::try_from(row.total).unwrap_or(0);
        lines += units.saturating_mul(LINES_A_UNIT).min(total);
        batches.insert(row.batch_id.as_str().into());
        true
    });
}

/// Lines of units that nobody holds, by batch, at most.
fn lines_waiting(backlog: &[Backlog]) -> HashMap<String, usize> {
    let mut waiting: HashMap<String, usize> = HashMap::new();
    for row in backlog {
        let of_batch = waiting.entry(row.batch_id.clone()).or_default();
        let total = usize::try_from(row.total).unwrap_or(0);
        let units = usize::try_from(row.waiting).unwrap_or(0);
        *of_batch = (*of_batch + units.saturating_mul(LINES_A_UNIT)).min(total);
    }
    waiting
}

fn context(row: &Backlog) -> Option<Arc<BatchContext>> {
    let endpoint = endpoint::of_batch(&row.endpoint);
    if endpoint.is_none() {
        tracing::error!(
            batch.id = row.batch_id,
            "a batch has an endpoint that is not known"
        );
    }
    Some(Arc::new(BatchContext::new(row, endpoint?)))
}

/// Looks at each wake-up, when the dispatch runs short, and by itself from time to time.
pub(crate) async fn run(mut supply: Supply, stop: CancellationToken) -> &'static str {
    let mut wakeups = supply.store.wakeups(store::Who::Supplies);
    loop {
        wakeups.mark_unchanged();
        if let Err(error) = supply.round().await {
            tracing::warn!(%error, "units could not be leased; it is tried again");
            tokio::select! {
                () = stop.cancelled() => return "supply",
                () = tokio::time::sleep(TICK) => {}
            }
        }
        let next_round = tokio::time::Instant::now() + supply.pause();
        loop {
            // While units wait for room, only that is looked at, not all that there is to lease.
            let pause = if supply.texts.wait() {
                BUDGET_TICK
            } else {
                TICK
            };
            let look = tokio::time::Instant::now() + pause;
            tokio::select! {
                () = stop.cancelled() => return "supply",
                Ok(()) = wakeups.changed() => break,
                () = supply.dispatch.hungry() => break,
                () = tokio::time::sleep_until(look.min(next_round)) => {}
            }
            if tokio::time::Instant::now() >= next_round || supply.texts.read().await.is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;

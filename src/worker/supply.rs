//! Leasing: just enough units in hand that permits never run dry.

mod texts;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::dispatch::{Dispatch, InHand};
use super::held::BatchContext;
use super::inbox::Inbox;
use super::lease::Lease;
use crate::domain::batch::Status;
use crate::domain::endpoint;
use crate::store::{self, Backlog, Store};
use crate::upstream::{LaneId, Pool, Routes};
use texts::{Texts, Unread};

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
/// Units leased by one statement.
const UNITS_A_LEASE: usize = 8;
/// Units of ended batches handled in one go: their lines are only written.
const ENDED_UNITS: i64 = 8;
/// No more of them are read while so many lines wait to be written.
const INBOX_LINES_MAX: usize = 8_192;
/// How often in a lease's term what the store says is ours is compared with what is in hand.
const COMPARISONS_A_TERM: u32 = 2;

/// Units of one model in one batch that could be leased.
struct Offer {
    backlog: Backlog,
    routes: Arc<Routes>,
}

pub(super) struct Supply {
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
}

impl Supply {
    pub(super) fn new(
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
        let backlog = self.store.backlog().await?;
        let (ended, live): (Vec<_>, Vec<_>) =
            backlog.into_iter().partition(|row| row.ending().is_some());
        for row in &ended {
            self.lease_ended(row).await?;
        }
        let offers = self.offers(live);
        let lanes = offers.len();
        let mut wanted = HashMap::new();
        let mut offers: Vec<_> = offers.into_iter().collect();
        if lanes > 0 {
            self.turn = (self.turn + 1) % lanes;
            offers.rotate_left(self.turn);
        }
        for (lane, offers) in offers {
            let lines = self.wanted(lane, self.pool.limits().lane(lane));
            wanted.insert(lane, lines);
            self.fill(lane, lanes, lines, offers, &in_hand).await?;
        }
        self.dispatch.ask(&wanted, &self.dispatch.in_hand());
        Ok(())
    }

    /// What can be leased, by lane. Units that no upstream takes at present are left for later,
    /// or for replicas that see it otherwise.
    fn offers(&mut self, backlog: Vec<Backlog>) -> BTreeMap<LaneId, Vec<Offer>> {
        let mut offers: BTreeMap<LaneId, Vec<Offer>> = BTreeMap::new();
        let mut open: Vec<Arc<Routes>> = Vec::new();
        for row in backlog {
            if row.stage.status != Status::InProgress {
                continue;
            }
            let Some(routes) = self.pool.resolve(&row.model) else {
                self.warn_unserved(&row);
                continue;
            };
            self.unserved.remove(&row.model);
            if !self.pool.may_take(&routes) {
                continue;
            }
            if !open.iter().any(|other| Arc::ptr_eq(other, &routes)) {
                open.push(routes.clone());
            }
            // Who has a share leases it; who has none asks for one.
            if self.pool.has_share(&routes) {
                offers.entry(routes.lane).or_default().push(Offer {
                    backlog: row,
                    routes,
                });
            }
        }
        self.dispatch.note_offered(open);
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
    /// one with the least in flight first.
    async fn fill(
        &mut self,
        lane: LaneId,
        lanes: usize,
        wanted: usize,
        offers: Vec<Offer>,
        in_hand: &InHand,
    ) -> store::Result<()> {
        let bytes = in_hand.bytes.get(&lane).copied().unwrap_or(0);
        if bytes > 0 && bytes >= self.pool.budget().limit() / lanes {
            return Ok(());
        }
        let mut by_tenant: BTreeMap<Arc<str>, Vec<Offer>> = BTreeMap::new();
        for offer in offers {
            by_tenant
                .entry(offer.backlog.tenant.as_str().into())
                .or_default()
                .push(offer);
        }
        let share = (wanted / by_tenant.len().max(1)).max(1);
        let mut tenants: Vec<_> = by_tenant.into_iter().collect();
        tenants.sort_by_key(|(tenant, _)| in_hand.tenants.get(tenant).copied().unwrap_or(0));
        for (tenant, mut offers) in tenants {
            let mut ready = in_hand.ready.get(&(lane, tenant)).copied().unwrap_or(0);
            offers.sort_by_key(|offer| {
                let row = &offer.backlog;
                let deadline = row.expires_at.unwrap_or(i64::MAX);
                (
                    -row.priority,
                    deadline,
                    row.created_at,
                    row.batch_id.clone(),
                    row.model_no,
                )
            });
            for offer in &offers {
                while ready < share && !self.texts.wait_of(lane) {
                    let units = (share - ready).div_ceil(LINES_A_UNIT).min(UNITS_A_LEASE);
                    let added = self.lease(offer, units as i64).await?;
                    if added == 0 {
                        break;
                    }
                    ready += added;
                }
            }
        }
        Ok(())
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
        let (Some(ending), Some(batch)) = (row.ending(), context(row)) else {
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
            self.dispatch.end_batch(&row.batch_id, ending);
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
            self.dispatch.note_leased(&leased.key, leased.epoch);
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
        for (batch_id, stage) in self.store.stages(&ids).await? {
            if let Some(ending) = stage.ending {
                let unread = self.texts.take(&batch_id);
                self.texts.open_unsent(unread).await?;
                self.dispatch.end_batch(&batch_id, ending);
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
        if self.texts.wait() {
            shed.extend(self.dispatch.shed());
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
        astray.retain(|(key, epoch)| self.dispatch.holds(key, *epoch));
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

    fn measure(&mut self, in_hand: &InHand) {
        let elapsed = self.measured.0.elapsed().as_secs_f64();
        if elapsed < RATE_OVER_SECONDS {
            return;
        }
        for (lane, answered) in &in_hand.answered {
            let before = self.measured.1.get(lane).copied().unwrap_or(0);
            self.rates
                .insert(*lane, (answered - before) as f64 / elapsed);
        }
        self.measured = (Instant::now(), in_hand.answered.clone());
    }
}

fn context(row: &Backlog) -> Option<Arc<BatchContext>> {
    let endpoint = endpoint::find(&row.endpoint);
    if endpoint.is_none() {
        tracing::error!(
            batch.id = row.batch_id,
            "a batch has an endpoint that is not known"
        );
    }
    Some(Arc::new(BatchContext::new(row, endpoint?)))
}

/// Looks at each wake-up, when the dispatch runs short, and by itself from time to time.
pub(super) async fn run(mut supply: Supply, stop: CancellationToken) -> &'static str {
    let mut wakeups = supply.store.wakeups(store::Who::Supplies);
    loop {
        wakeups.mark_unchanged();
        let mut pause = TICK;
        if let Err(error) = supply.round().await {
            tracing::warn!(%error, "units could not be leased; it is tried again");
            tokio::select! {
                () = stop.cancelled() => return "supply",
                () = tokio::time::sleep(TICK) => {}
            }
        }
        if supply.texts.wait() {
            pause = BUDGET_TICK;
        }
        tokio::select! {
            () = stop.cancelled() => return "supply",
            Ok(()) = wakeups.changed() => {}
            () = supply.dispatch.hungry() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

//! Leasing: just enough units in hand that permits never run dry.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::dispatch::{Dispatch, InHand};
use super::held::{BatchContext, HeldUnit};
use super::lease::Lease;
use crate::domain::batch::Status;
use crate::domain::endpoint;
use crate::store::{self, Backlog, LeasedUnit, Store};
use crate::upstream::{Charge, LaneId, Pool, Routes};

/// How long the supply may go without a look.
const TICK: Duration = Duration::from_secs(1);
/// How soon it looks again for room in the budget, while units wait for some.
const BUDGET_TICK: Duration = Duration::from_millis(20);
/// Permits' worth of lines to have ready, beside what the rate asks for.
const READY_A_PERMIT: usize = 2;
/// Time for which lines are kept ready: what leasing takes, with much to spare.
const AHEAD_SECONDS: f64 = 0.5;
/// Lines that a unit is taken to have until it is read.
const LINES_A_UNIT: usize = 512;
/// Units leased by one statement.
const UNITS_A_LEASE: usize = 8;
/// Units of ended batches handled in one round: their lines are only written.
const ENDED_A_ROUND: i64 = 32;
/// How often what the store says is ours is compared with what is in hand.
const COMPARE_EVERY: Duration = Duration::from_secs(5);

/// Units of one model in one batch that could be leased.
struct Offer {
    backlog: Backlog,
    routes: Arc<Routes>,
}

/// A leased unit whose text is not read yet.
struct Unread {
    leased: LeasedUnit,
    model: String,
    file_id: String,
    batch: Arc<BatchContext>,
    routes: Option<Arc<Routes>>,
}

pub(super) struct Supply {
    store: Store,
    pool: Arc<Pool>,
    dispatch: Arc<Dispatch>,
    lease: Arc<Lease>,
    unread: VecDeque<Unread>,
    /// Lines a second, lately.
    rate: f64,
    measured: (Instant, u64),
    compared: Instant,
    /// Models that were warned about.
    unserved: HashSet<String>,
}

impl Supply {
    pub(super) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: Arc<Dispatch>,
        lease: Arc<Lease>,
    ) -> Supply {
        let now = Instant::now();
        Supply {
            store,
            pool,
            dispatch,
            lease,
            unread: VecDeque::new(),
            rate: 0.0,
            measured: (now, 0),
            compared: now,
            unserved: HashSet::new(),
        }
    }

    /// One look: reads what is leased, then leases what is missing.
    async fn round(&mut self) -> store::Result<()> {
        self.compare().await?;
        let in_hand = self.dispatch.in_hand();
        self.measure(&in_hand);
        self.end_batches(&in_hand).await?;
        if !self.lease.holds() {
            return Ok(());
        }
        self.read().await?;
        let backlog = self.store.backlog().await?;
        let (ended, live): (Vec<_>, Vec<_>) =
            backlog.into_iter().partition(|row| row.ending().is_some());
        for row in ended {
            self.lease_ended(row).await?;
        }
        let offers = self.offers(live);
        for (lane, offers) in offers {
            self.fill(lane, offers).await?;
        }
        Ok(())
    }

    /// What can be leased, by lane.
    fn offers(&mut self, backlog: Vec<Backlog>) -> BTreeMap<LaneId, Vec<Offer>> {
        let mut offers: BTreeMap<LaneId, Vec<Offer>> = BTreeMap::new();
        for row in backlog {
            if row.stage.status != Status::InProgress {
                continue;
            }
            match self.pool.resolve(&row.model) {
                Some(routes) => {
                    self.unserved.remove(&row.model);
                    offers.entry(routes.lane).or_default().push(Offer {
                        backlog: row,
                        routes,
                    });
                }
                None => self.warn_unserved(&row),
            }
        }
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

    /// Leases for one lane: every tenant that has work gets its share of what is kept ready.
    async fn fill(&mut self, lane: LaneId, offers: Vec<Offer>) -> store::Result<()> {
        let mut by_tenant: HashMap<Arc<str>, Vec<Offer>> = HashMap::new();
        for offer in offers {
            let tenant = offer.backlog.tenant.as_str().into();
            by_tenant.entry(tenant).or_default().push(offer);
        }
        let in_hand = self.dispatch.in_hand();
        let mut tenants: Vec<_> = by_tenant.into_iter().collect();
        // The one with the least in flight is served first.
        tenants.sort_by_key(|(tenant, _)| {
            (
                in_hand.tenants.get(tenant).copied().unwrap_or(0),
                tenant.clone(),
            )
        });
        let share = |limit: usize, tenants: usize| (limit / tenants.max(1)).max(1);
        let count = tenants.len();
        for (tenant, mut offers) in tenants {
            let limit = offers.first().map_or(0, |offer| offer.routes.lane_limit);
            let wanted = share(self.wanted(limit), count);
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
                while ready < wanted && self.unread.is_empty() {
                    let units = (wanted - ready).div_ceil(LINES_A_UNIT).min(UNITS_A_LEASE);
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

    /// Lines to have ready for a lane of so many permits.
    fn wanted(&self, limit: usize) -> usize {
        limit
            .saturating_mul(READY_A_PERMIT)
            .max((self.rate * AHEAD_SECONDS) as usize)
    }

    /// Leases units and reads their text; returns how many lines there are now, or are coming.
    async fn lease(&mut self, offer: &Offer, units: i64) -> store::Result<usize> {
        let row = &offer.backlog;
        let Some(batch) = context(row) else {
            return Ok(0);
        };
        let token = self.lease.token();
        let leased = self
            .store
            .lease_units(&token, &row.batch_id, row.model_no, units)
            .await?;
        let mut lines = 0;
        for leased in leased {
            self.dispatch.note_leased(&leased.key, leased.epoch);
            lines += usize::try_from(leased.requests).unwrap_or(0);
            self.unread.push_back(Unread {
                leased,
                model: row.model.clone(),
                file_id: row.input_file_id.clone(),
                batch: batch.clone(),
                routes: Some(offer.routes.clone()),
            });
        }
        self.read().await?;
        Ok(lines)
    }

    /// Reads the text of leased units, as far as the budget has room for it.
    async fn read(&mut self) -> store::Result<()> {
        while let Some(unread) = self.unread.front() {
            let bytes = usize::try_from(unread.leased.chunk_bytes).unwrap_or(0);
            let Some(charge) = self.pool.budget().try_reserve(bytes) else {
                return Ok(());
            };
            self.open(charge.into()).await?;
        }
        Ok(())
    }

    /// Reads the first unread unit and hands it to the dispatch.
    async fn open(&mut self, charge: Option<Charge>) -> store::Result<()> {
        let Some(unread) = self.unread.front() else {
            return Ok(());
        };
        let chunk = self
            .store
            .chunk(&unread.file_id, unread.leased.key.chunk_no)
            .await?;
        let Some(unread) = self.unread.pop_front() else {
            return Ok(());
        };
        let key = unread.leased.key.clone();
        let Some(chunk) = chunk else {
            return Err(store::Error::Stale("a batch's input"));
        };
        let (unit, lines) = HeldUnit::open(
            self.dispatch.unit_id(),
            unread.leased,
            &unread.model,
            unread.batch,
            unread.routes,
            chunk.bytes,
            charge,
        );
        tracing::debug!(unit.key = %key, unit.lines = lines.len(), "holds a unit");
        self.dispatch.add(unit, lines);
        Ok(())
    }

    /// Leases units of a batch that is being ended: their lines get their outcome unsent.
    async fn lease_ended(&mut self, row: Backlog) -> store::Result<()> {
        let (Some(ending), Some(batch)) = (row.ending(), context(&row)) else {
            return Ok(());
        };
        let token = self.lease.token();
        let leased = self
            .store
            .lease_units(&token, &row.batch_id, row.model_no, ENDED_A_ROUND)
            .await?;
        let more = leased.len() as i64 == ENDED_A_ROUND;
        for leased in leased {
            self.dispatch.note_leased(&leased.key, leased.epoch);
            self.unread.push_front(Unread {
                leased,
                model: row.model.clone(),
                file_id: row.input_file_id.clone(),
                batch: batch.clone(),
                routes: None,
            });
            // Not charged: one text at a time, and gone as soon as its lines are written.
            self.open(None).await?;
            self.dispatch.end_batch(&row.batch_id, ending);
        }
        if more {
            self.store.wake();
        }
        Ok(())
    }

    /// Tells the dispatch of batches that are being ended.
    async fn end_batches(&mut self, in_hand: &InHand) -> store::Result<()> {
        let ids: BTreeSet<&str> = in_hand.batches.iter().map(String::as_str).collect();
        for (batch_id, stage) in self.store.stages(&ids).await? {
            if let Some(ending) = stage.ending {
                self.dispatch.end_batch(&batch_id, ending);
            }
        }
        Ok(())
    }

    /// Gives back what the store says is ours but nobody here holds: a lease whose reply was lost.
    async fn compare(&mut self) -> store::Result<()> {
        if self.compared.elapsed() < COMPARE_EVERY {
            return Ok(());
        }
        self.compared = Instant::now();
        let token = self.lease.token();
        let strays = self
            .dispatch
            .not_held(self.store.leased_units(&token).await?);
        if !strays.is_empty() {
            tracing::warn!(
                units.count = strays.len(),
                "gives back units that nobody here holds"
            );
            self.store.release_units(&token, &strays).await?;
        }
        Ok(())
    }

    fn measure(&mut self, in_hand: &InHand) {
        let elapsed = self.measured.0.elapsed().as_secs_f64();
        if elapsed >= 0.2 {
            self.rate = (in_hand.ended - self.measured.1) as f64 / elapsed;
            self.measured = (Instant::now(), in_hand.ended);
        }
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
    let mut wakeups = supply.store.wakeups();
    loop {
        wakeups.mark_unchanged();
        let mut pause = TICK;
        if let Err(error) = supply.round().await {
            tracing::warn!(%error, "units could not be leased; it is tried again");
            tokio::time::sleep(TICK).await;
        }
        if !supply.unread.is_empty() {
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

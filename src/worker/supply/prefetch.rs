//! Units that are leased but whose text is not read yet: they wait for room in the memory budget.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::load::{Loader, UnreadUnit};
use crate::domain::unit::UnitLease;
use crate::store;
use crate::upstream::{LaneId, Pool, Reservation, Routes};
use crate::worker::dispatch::Dispatch;
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::work::unit::BatchContext;

/// The units that wait to be read, by lane: a lane whose lines are large holds up no other lane.
pub(super) struct Prefetch {
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    ownership: Arc<Ownership>,
    loader: Arc<Loader>,
    unread: BTreeMap<LaneId, VecDeque<UnreadUnit>>,
}

impl Prefetch {
    pub(super) fn new(pool: Arc<Pool>, dispatch: &Dispatch, loader: Arc<Loader>) -> Self {
        Prefetch {
            pool,
            ledger: Arc::clone(&dispatch.ledger),
            ownership: Arc::clone(&dispatch.ownership),
            loader,
            unread: BTreeMap::new(),
        }
    }

    pub(super) fn push(&mut self, lane: LaneId, unread: UnreadUnit) {
        self.unread.entry(lane).or_default().push_back(unread);
    }

    /// Whether no unit waits to be read.
    pub(super) fn is_empty(&self) -> bool {
        self.unread.values().all(VecDeque::is_empty)
    }

    /// Whether a unit of a tenant waits to be read in a lane.
    pub(super) fn has_unit_of(&self, lane: LaneId, tenant: &str) -> bool {
        let mut units = self.unread.get(&lane).into_iter().flatten();
        units.any(|unread| *unread.batch.tenant == *tenant)
    }

    /// Of each lane the unit that is read next, if one waits: its batch and its routes.
    pub(super) fn first_of_each_lane(&self) -> Vec<(Arc<BatchContext>, Arc<Routes>)> {
        let lanes = self.unread.iter();
        let first = lanes.filter_map(|(lane, units)| {
            let unread = &units[self.first_of(*lane)?];
            Some((unread.batch.clone(), unread.routes.clone()?))
        });
        first.collect()
    }

    /// The unit of a lane that is read next: the unit of the tenant, and of the tenant's batch,
    /// whose turn it is.
    fn first_of(&self, lane: LaneId) -> Option<usize> {
        let units = self.unread.get(&lane)?;
        if units.len() < 2 {
            return (!units.is_empty()).then_some(0);
        }
        let domain = self.pool.limits().domain(lane);
        let ledger = self.ledger.lock();
        let run_queues = ledger.run_queues();
        (0..units.len()).min_by_key(|&at| {
            let batch = &units[at].batch;
            let of_tenant = run_queues.turn_of_tenant(&batch.tenant, domain);
            (of_tenant, run_queues.turn_of_batch(&batch.id))
        })
    }

    /// The units that wait to be read.
    pub(super) fn unread(&self) -> impl Iterator<Item = &UnreadUnit> {
        self.unread.values().flatten()
    }

    /// The batches whose units wait to be read.
    pub(super) fn batches(&self) -> BTreeSet<String> {
        self.unread
            .values()
            .flatten()
            .map(|unread| unread.batch.id.to_string())
            .collect()
    }

    /// Takes a batch's units out.
    pub(super) fn take(&mut self, batch_id: &str) -> Vec<UnreadUnit> {
        let mut taken = Vec::new();
        for units in self.unread.values_mut() {
            let (of_batch, others) = std::mem::take(units)
                .into_iter()
                .partition(|unread| *unread.batch.id == *batch_id);
            *units = others;
            taken.extend::<VecDeque<UnreadUnit>>(of_batch);
        }
        taken
    }

    /// Takes out the units for which other replicas have the whole limit, to be given back.
    pub(super) fn take_without_share(&mut self, tenants: &Tenants) -> Vec<UnitLease> {
        let pool = Arc::clone(&self.pool);
        self.take_out(|unread| {
            let routes = unread.routes.as_ref();
            routes.is_some_and(|routes| {
                let has_share = tenants.has_share(&unread.batch.tenant);
                !has_share || pool.targets().lacks_share(routes)
            })
        })
    }

    /// Takes out the units of batches that are paused, to be given back.
    pub(super) fn take_held(&mut self) -> Vec<UnitLease> {
        let held = self.ledger.lock().run_queues().held().clone();
        if held.is_empty() {
            return Vec::new();
        }
        self.take_out(|unread| held.contains(&*unread.batch.id))
    }

    fn take_out(&mut self, is_taken: impl Fn(&UnreadUnit) -> bool) -> Vec<UnitLease> {
        let mut taken = Vec::new();
        for units in self.unread.values_mut() {
            units.retain(|unread| {
                let is_taken = is_taken(unread);
                if is_taken {
                    taken.push(unread.leased.lease.clone());
                }
                !is_taken
            });
        }
        for lease in &taken {
            self.ownership.forget(lease);
        }
        taken
    }

    /// Reads the units for which the budget has room.
    pub(super) async fn read(&mut self) -> store::Result<()> {
        let lanes: Vec<LaneId> = self.unread.keys().copied().collect();
        for lane in lanes {
            while let Some((unread, reservation)) = self.next(lane) {
                self.loader.load(unread, Some(reservation)).await?;
            }
        }
        Ok(())
    }

    fn next(&mut self, lane: LaneId) -> Option<(UnreadUnit, Reservation)> {
        let first = self.first_of(lane)?;
        let units = self.unread.get_mut(&lane)?;
        let bytes = usize::try_from(units.get(first)?.leased.chunk_bytes).unwrap_or(0);
        let reservation = self.pool.budget().try_reserve(bytes)?;
        Some((units.remove(first)?, reservation))
    }

    /// Reads units whose lines are not to be sent. If the database fails, the units behind are
    /// forgotten as well, because nothing else would come back to them.
    pub(super) async fn load_unsent(
        &self,
        units: impl IntoIterator<Item = UnreadUnit>,
    ) -> store::Result<()> {
        let mut units = units.into_iter();
        while let Some(mut unread) = units.next() {
            unread.routes = None;
            if let Err(error) = self.loader.load(unread, None).await {
                for unread in units {
                    self.ownership.forget(&unread.leased.lease);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

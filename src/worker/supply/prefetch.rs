//! Units that are leased but whose text is not read yet: they wait for room in the budget.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::codec::segment::Encoded;
use crate::domain::unit::UnitLease;
use crate::metrics::ModelMetrics;
use crate::store::{self, CountsDelta, Error, LeasedUnit, Store, UnitFlush};
use crate::upstream::{Charge, LaneId, Pool, Routes};
use crate::worker::dispatch::Dispatch;
use crate::worker::flush::count;
use crate::worker::lease::Lease;
use crate::worker::work::unit::{BatchContext, HeldUnit};

/// A leased unit whose text is not read yet.
pub(crate) struct Unread {
    pub leased: LeasedUnit,
    pub model: String,
    pub file_id: String,
    pub batch: Arc<BatchContext>,
    /// `None`: its lines are not to be sent.
    pub routes: Option<Arc<Routes>>,
}

/// What waits to be read, by lane: one whose lines are large holds up no other.
pub(crate) struct Texts {
    store: Store,
    pool: Arc<Pool>,
    dispatch: Arc<Dispatch>,
    lease: Arc<Lease>,
    unread: BTreeMap<LaneId, VecDeque<Unread>>,
}

impl Texts {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: Arc<Dispatch>,
        lease: Arc<Lease>,
    ) -> Self {
        Texts {
            store,
            pool,
            dispatch,
            lease,
            unread: BTreeMap::new(),
        }
    }

    pub(crate) fn push(&mut self, lane: LaneId, unread: Unread) {
        self.unread.entry(lane).or_default().push_back(unread);
    }

    /// Whether any unit waits to be read.
    pub(crate) fn wait(&self) -> bool {
        self.unread.values().any(|units| !units.is_empty())
    }

    /// Whether a unit of a tenant waits to be read in this lane.
    pub(crate) fn wait_of(&self, lane: LaneId, tenant: &str) -> bool {
        let mut units = self.unread.get(&lane).into_iter().flatten();
        units.any(|unread| *unread.batch.tenant == *tenant)
    }

    /// Of each lane the unit that is read next, if one waits: its batch, and where its lines go.
    pub(crate) fn first_waiting(&self) -> Vec<(Arc<BatchContext>, Arc<Routes>)> {
        let lanes = self.unread.iter();
        let first = lanes.filter_map(|(lane, units)| {
            let unread = &units[self.first_of(*lane)?];
            Some((unread.batch.clone(), unread.routes.clone()?))
        });
        first.collect()
    }

    /// The unit of a lane that is read next: that of the tenant, and of the tenant's batch, whose
    /// turn it is.
    fn first_of(&self, lane: LaneId) -> Option<usize> {
        let units = self.unread.get(&lane)?;
        if units.len() < 2 {
            return (!units.is_empty()).then_some(0);
        }
        let tenants = units.iter().map(|unread| &*unread.batch.tenant);
        let tenants = self.dispatch.turns(lane, tenants);
        let batches = units.iter().map(|unread| &*unread.batch.id);
        let batches = self.dispatch.turns_of_batches(batches);
        (0..units.len()).min_by_key(|&at| (tenants[at], batches[at]))
    }

    /// Whose units wait to be read.
    pub(crate) fn batches(&self) -> BTreeSet<String> {
        self.unread
            .values()
            .flatten()
            .map(|unread| unread.batch.id.to_string())
            .collect()
    }

    /// Takes a batch's units out.
    pub(crate) fn take(&mut self, batch_id: &str) -> Vec<Unread> {
        let mut taken = Vec::new();
        for units in self.unread.values_mut() {
            let (of_batch, others) = std::mem::take(units)
                .into_iter()
                .partition(|unread| *unread.batch.id == *batch_id);
            *units = others;
            taken.extend::<VecDeque<Unread>>(of_batch);
        }
        taken
    }

    /// Takes out the units for which other replicas have the whole limit, to be given back.
    pub(crate) fn take_without_share(&mut self) -> Vec<UnitLease> {
        let mut taken = Vec::new();
        for units in self.unread.values_mut() {
            units.retain(|unread| {
                let routes = unread.routes.as_ref();
                let stays = routes.is_none_or(|routes| !self.pool.lacks_share(routes));
                if !stays {
                    taken.push(unread.leased.lease.clone());
                }
                stays
            });
        }
        for lease in &taken {
            self.dispatch.forget(lease);
        }
        taken
    }

    /// Reads what there is room for in the budget.
    pub(crate) async fn read(&mut self) -> store::Result<()> {
        let lanes: Vec<LaneId> = self.unread.keys().copied().collect();
        for lane in lanes {
            while let Some((unread, charge)) = self.next(lane) {
                self.open(unread, Some(charge)).await?;
            }
        }
        Ok(())
    }

    fn next(&mut self, lane: LaneId) -> Option<(Unread, Charge)> {
        let first = self.first_of(lane)?;
        let units = self.unread.get_mut(&lane)?;
        let bytes = usize::try_from(units.get(first)?.leased.chunk_bytes).unwrap_or(0);
        let charge = self.pool.budget().try_reserve(bytes)?;
        Some((units.remove(first)?, charge))
    }

    /// Reads units whose lines are not to be sent. If the database fails, those that come after
    /// are forgotten as well: nothing else would ever come back to them.
    pub(crate) async fn open_unsent(
        &self,
        units: impl IntoIterator<Item = Unread>,
    ) -> store::Result<()> {
        let mut units = units.into_iter();
        while let Some(mut unread) = units.next() {
            unread.routes = None;
            if let Err(error) = self.open(unread, None).await {
                for unread in units {
                    self.dispatch.forget(&unread.leased.lease);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Reads one unit and hands it to the dispatch. If the database fails the unit is forgotten,
    /// and is given back at the next comparison with the store.
    pub(crate) async fn open(&self, unread: Unread, charge: Option<Charge>) -> store::Result<()> {
        let Unread {
            leased,
            model,
            file_id,
            batch,
            routes,
        } = unread;
        let metrics = crate::metrics::metrics().model(&self.pool.label(&model));
        let key = leased.lease.key.clone();
        if !self.dispatch.holds(&leased.lease) {
            // Lost to another replica since it was leased.
            return Ok(());
        }
        let chunk = match self.store.chunk(&file_id, key.chunk_no).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return self.give_up(&leased, &metrics, "its input is gone").await,
            Err(error @ Error::Corrupt { .. }) => {
                return self.give_up(&leased, &metrics, &error.to_string()).await;
            }
            Err(error) => {
                self.dispatch.forget(&leased.lease);
                return Err(error);
            }
        };
        let id = self.dispatch.unit_id();
        let (unit, lines) = HeldUnit::open(
            id,
            leased.clone(),
            (&model, metrics.clone()),
            batch,
            routes,
            chunk.bytes,
            charge,
        );
        if lines.is_empty() {
            return self
                .give_up(&leased, &metrics, "its text has none of its lines")
                .await;
        }
        tracing::debug!(unit.key = %key, unit.lines = lines.len(), "holds a unit");
        self.dispatch.add(unit, lines);
        Ok(())
    }

    /// Ends a unit whose lines cannot be read, so that its batch can end. They count as failed,
    /// but have no line in the error file: not even their ids are known.
    async fn give_up(
        &self,
        leased: &LeasedUnit,
        metrics: &ModelMetrics,
        cause: &str,
    ) -> store::Result<()> {
        let lost = leased.requests - i64::from(leased.done.count());
        tracing::error!(
            unit.key = %leased.lease.key,
            unit.lines = lost,
            cause,
            "stored requests cannot be read; they end as failed, without a line"
        );
        let flush = UnitFlush {
            lease: leased.lease.clone(),
            flush_no: leased.flush_no,
            done: leased.done.clone(),
            finished: true,
            cleared: true,
            segment: Encoded::default(),
            output_bytes: 0,
            error_bytes: 0,
            counts: CountsDelta {
                failed: lost,
                ..CountsDelta::default()
            },
        };
        let written = self.store.flush(&self.lease.token(), 0, &[&flush]).await;
        // If it was not written, the unit is nobody's here, and is given back.
        self.dispatch.forget(&leased.lease);
        if !written?.accepted.is_empty() {
            count(metrics, &flush.counts);
        }
        Ok(())
    }
}

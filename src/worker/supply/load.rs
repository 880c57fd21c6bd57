//! Reading the text of a leased unit, and handing the unit to the scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::endpoint;
use crate::metrics::ModelMetrics;
use crate::store::{self, CountsDelta, Error, LeasedUnit, Store, UnitFlush};
use crate::upstream::{Order, Pool, Reservation, Routes};
use crate::worker::dispatch::Dispatch;
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::scheduler::Scheduler;
use crate::worker::flush::accept::{FailureCounts, count_written};
use crate::worker::lease::Lease;
use crate::worker::work::unit::{BatchContext, LoadedUnit};

/// A leased unit whose text is not read yet.
pub(crate) struct UnreadUnit {
    pub(super) leased: LeasedUnit,
    pub(super) model: String,
    pub(super) file_id: String,
    pub(super) batch: Arc<BatchContext>,
    /// `None`: the unit's lines are not to be sent.
    pub(super) routes: Option<Arc<Routes>>,
}

/// Reads units' text.
pub(crate) struct Loader {
    store: Store,
    pool: Arc<Pool>,
    ownership: Arc<Ownership>,
    scheduler: Arc<Scheduler>,
    lease: Arc<Lease>,
    failed_lines: Arc<FailureCounts>,
    /// Numbers the units that are loaded.
    next_id: AtomicU64,
}

impl Loader {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: &Dispatch,
        lease: Arc<Lease>,
        failed_lines: Arc<FailureCounts>,
    ) -> Self {
        Self {
            store,
            pool,
            ownership: Arc::clone(&dispatch.ownership),
            scheduler: Arc::clone(&dispatch.scheduler),
            lease,
            failed_lines,
            next_id: AtomicU64::new(0),
        }
    }

    /// Reads one unit's text, and hands the unit to the scheduler. If the database fails the unit
    /// is forgotten, and is given back when the store is next compared with what is in hand.
    pub(super) async fn load(
        &self,
        unread: UnreadUnit,
        reservation: Option<Reservation>,
    ) -> store::Result<()> {
        let UnreadUnit {
            leased,
            model,
            file_id,
            batch,
            routes,
        } = unread;
        let label = self.pool.label_for(batch.task.as_deref(), &model);
        let metrics = crate::metrics::metrics().model(&label);
        if !self.ownership.owns(&leased.lease) {
            // Lost to another replica since it was leased.
            return Ok(());
        }
        let key = leased.lease.key.clone();
        let chunk = match self.store.chunk(&file_id, key.chunk_no).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return self.give_up(&leased, &metrics, "its input is gone").await,
            Err(error @ Error::Corrupt { .. }) => {
                return self.give_up(&leased, &metrics, &error.to_string()).await;
            }
            Err(error) => {
                self.ownership.forget(&leased.lease);
                return Err(error);
            }
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (mut unit, mut lines) = LoadedUnit::load(
            id,
            leased.clone(),
            (&model, metrics.clone()),
            batch,
            chunk.bytes,
            reservation,
        );
        if lines.is_empty() {
            let cause = "its text has none of its lines";
            return self.give_up(&leased, &metrics, cause).await;
        }
        if let Some(routes) = &routes {
            if routes.pack() {
                unit.pack(&mut lines);
            }
            // Lines stand in one order. Embeddings save nothing by how they begin.
            let path = unit.batch.endpoint.path;
            let is_free = unit.packing().is_none() && path != endpoint::EMBEDDINGS;
            if routes.order() == Order::Prefix && is_free {
                unit.order(&mut lines);
            }
        }
        tracing::debug!(unit.key = %key, unit.lines = lines.len(), "holds a unit");
        self.scheduler.admit(unit, routes, lines);
        Ok(())
    }

    /// Ends a unit whose lines cannot be read, so that its batch can end. The lines count as
    /// failed, but the error file has no line for them: not even their ids are known.
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
            ends_batch: false,
            cleared: true,
            tail: None,
            segment: None,
            closed_tail: leased.tail.clone(),
            output_bytes: 0,
            error_bytes: 0,
            counts: CountsDelta {
                failed: lost,
                ..CountsDelta::default()
            },
            usage: Vec::new(),
        };
        let written = self.store.flush(&self.lease.token(), 0, &[&flush]).await;
        // If the flush was not written, the unit is given back at the next comparison.
        self.ownership.forget(&leased.lease);
        if !written?.accepted.is_empty() {
            count_written(metrics, &flush.counts);
            let lost = u64::try_from(lost).unwrap_or(0);
            self.failed_lines.add_unreadable(lost);
        }
        Ok(())
    }
}

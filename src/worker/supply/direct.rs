//! Direct leases: the unit of a small batch is leased by the transaction that makes it, and its
//! text is read next. So a small batch that this process validates need not be looked for in the
//! backlog.
//!
//! Nobody's turn is taken. A unit is leased directly only where the supply has left no unit that
//! could be leased, and where there is room for its lines in hand.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::fetch::context;
use super::prefetch::UnreadUnit;
use super::rates::ready_for;
use crate::store::{LeasedUnit, Unvalidated};
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::ledger::run_queues::{Lane, Tenant};
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::lease::Lease;

pub(crate) struct DirectLeases {
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    ownership: Arc<Ownership>,
    tenants: Arc<Tenants>,
    lease: Arc<Lease>,
    /// Held while units are leased directly, and while the store is compared with what is in hand:
    /// meanwhile the store has units that this process does not know of yet.
    turn: tokio::sync::Mutex<()>,
    leased: Mutex<Vec<(LaneId, UnreadUnit)>>,
    changed: Notify,
}

/// The batches whose units are to be leased directly, and by which routes their lines go.
#[derive(Default)]
pub(crate) struct Chosen {
    pub ids: HashSet<String>,
    routes: HashMap<String, Arc<Routes>>,
}

impl DirectLeases {
    pub(crate) fn new(
        pool: Arc<Pool>,
        ledger: Arc<SharedLedger>,
        ownership: Arc<Ownership>,
        tenants: Arc<Tenants>,
        lease: Arc<Lease>,
    ) -> Self {
        Self {
            pool,
            ledger,
            ownership,
            tenants,
            lease,
            turn: tokio::sync::Mutex::default(),
            leased: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// To be held while units are leased directly, or compared.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The token under which units are leased.
    pub(crate) fn owner(&self) -> Arc<str> {
        self.lease.token()
    }

    /// Which of these batches are to be leased directly, in their order.
    pub(crate) fn choose<'a>(&self, batches: impl Iterator<Item = &'a Unvalidated>) -> Chosen {
        let mut chosen = Chosen::default();
        if self.ledger.has_more() || self.pool.budget().is_full() || !self.lease.is_held() {
            return chosen;
        }
        let (mut rooms, mut of_tenants) = (HashMap::new(), HashMap::new());
        for batch in batches {
            let task = batch.task.as_deref();
            let model = batch.only_model();
            let routes = model.and_then(|model| self.pool.resolve_for(task, model));
            let targets = self.pool.targets();
            let Some(routes) =
                routes.filter(|routes| targets.was_open(routes) && targets.has_share(routes))
            else {
                continue;
            };
            let room = rooms
                .entry(routes.lane)
                .or_insert_with(|| self.room(routes.lane));
            let of_tenant = of_tenants
                .entry(batch.tenant.as_str())
                .or_insert_with(|| self.room_of(&batch.tenant));
            let lines = usize::try_from(batch.total()).unwrap_or(usize::MAX);
            if let (Some(left), Some(of_tenant_left)) =
                (room.checked_sub(lines), of_tenant.checked_sub(lines))
            {
                (*room, *of_tenant) = (left, of_tenant_left);
                chosen.ids.insert(batch.batch_id.clone());
                chosen.routes.insert(batch.batch_id.clone(), routes);
            }
        }
        chosen
    }

    /// How many more lines of a lane are to be in hand. Where other processes could send them, only
    /// as many as can be sent now.
    fn room(&self, lane: LaneId) -> usize {
        let limits = self.pool.limits();
        let permits = limits.lane(lane);
        let wanted = if limits.are_shared() {
            permits
        } else {
            ready_for(permits)
        };
        let ledger = self.ledger.lock();
        if ledger.is_closed() {
            return 0;
        }
        let in_hand = ledger.run_queues().lane(lane).map_or(0, Lane::in_hand);
        drop(ledger);
        let leased = self.leased();
        let unread = leased.iter().filter(|(of, _)| *of == lane);
        let unread = unread.map(|(_, unit)| unit.leased.requests).sum::<i64>();
        wanted.saturating_sub(in_hand + usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// How many more lines of a tenant are to be in hand: where its calls are limited, as many as can
    /// be sent now.
    fn room_of(&self, tenant: &str) -> usize {
        let Some(calls) = self.tenants.calls(tenant) else {
            return usize::MAX;
        };
        let ledger = self.ledger.lock();
        let known = ledger.run_queues().tenant_named(tenant);
        calls.saturating_sub(known.map_or(0, Tenant::in_flight))
    }

    /// Hands over to the supply the units that were leased, of these batches.
    pub(crate) fn hand_over<'a>(
        &self,
        leased: Vec<LeasedUnit>,
        chosen: &Chosen,
        batches: impl Iterator<Item = &'a Unvalidated>,
    ) {
        if leased.is_empty() {
            return;
        }
        let batches = batches.map(|batch| (&*batch.batch_id, batch));
        let batches: HashMap<&str, &Unvalidated> = batches.collect();
        let mut units = Vec::with_capacity(leased.len());
        for unit in leased {
            let id = &*unit.lease.key.batch_id;
            let (Some(batch), Some(routes)) = (batches.get(id), chosen.routes.get(id)) else {
                continue;
            };
            let row = batch.as_backlog();
            let Some(context) = context(&row) else {
                continue;
            };
            self.ownership.on_leased(&unit.lease);
            let unread = UnreadUnit {
                leased: unit,
                model: row.model,
                file_id: row.input_file_id,
                batch: context,
                routes: Some(Arc::clone(routes)),
            };
            units.push((routes.lane, unread));
        }
        self.leased().extend(units);
        self.changed.notify_one();
    }

    /// Takes the units that were leased directly.
    pub(super) fn take(&self) -> Vec<(LaneId, UnreadUnit)> {
        std::mem::take(&mut *self.leased())
    }

    /// Waits until there are such units.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn leased(&self) -> MutexGuard<'_, Vec<(LaneId, UnreadUnit)>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

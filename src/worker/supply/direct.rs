//! Direct leases: the unit of a small batch is leased by the transaction that makes it, and its
//! text is read next. So a small batch that this process validates need not be looked for in the
//! backlog.
//!
//! Nobody's turn is taken. A unit is leased directly where the supply has left no unit that could
//! be leased, and where there is room for its lines in hand. A unit is also leased directly where
//! its tenant has no units left, and has no more in hand than its equal part of the permits. Such a
//! tenant comes next anyway, and need not wait for a look at the thousands of units of another one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::fetch::context;
use super::load::{Loader, UnreadUnit};
use super::rates::ready_for;
use crate::store::{LeasedUnit, Unvalidated};
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::ledger::run_queues::{Lane, Tenant};
use crate::worker::dispatch::ownership::Ownership;
use crate::worker::dispatch::shared::{Left, SharedLedger};
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
    leased: Mutex<ByTurns<(LaneId, UnreadUnit)>>,
    /// Units for whose text there was no room. The supply reads it.
    without_room: Mutex<Vec<(LaneId, UnreadUnit)>>,
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
            without_room: Mutex::default(),
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
        if self.pool.budget().is_full() || !self.lease.is_held() || self.ledger.lock().is_closed() {
            return chosen;
        }
        let unread = self.unread();
        let (nobody_waits, mut others) = {
            let left = self.ledger.left();
            if left.unread {
                return chosen;
            }
            (!left.is_any(), Others::new(&left, &self.ledger))
        };
        for (tenant, lines) in unread {
            others.add(tenant, lines);
        }
        let (mut rooms, mut of_tenants) = (HashMap::new(), HashMap::new());
        for batch in batches {
            if batch.is_held {
                continue;
            }
            let task = batch.task.as_deref();
            let model = batch.only_model();
            let routes = model.and_then(|model| self.pool.resolve_for(task, model));
            let targets = self.pool.targets();
            let Some(routes) =
                routes.filter(|routes| targets.was_open(routes) && targets.has_share(routes))
            else {
                continue;
            };
            let of_tenant = of_tenants
                .entry(batch.tenant.as_str())
                .or_insert_with(|| self.room_of(&batch.tenant));
            let lines = usize::try_from(batch.total()).unwrap_or(usize::MAX);
            let Some(of_tenant_left) = of_tenant.checked_sub(lines) else {
                continue;
            };
            let room = rooms
                .entry(routes.lane)
                .or_insert_with(|| self.room(routes.lane));
            let permits = self.pool.limits().lane(routes.lane);
            let has_room = nobody_waits && lines <= *room;
            if has_room || others.let_pass(&batch.tenant, lines, permits) {
                *room = room.saturating_sub(lines);
                *of_tenant = of_tenant_left;
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
        let in_hand = ledger.run_queues().lane(lane).map_or(0, Lane::in_hand);
        drop(ledger);
        let leased = self.leased();
        let unread = leased.iter().filter(|(of, _)| *of == lane);
        let unread = unread.map(|(_, unit)| unit.leased.requests).sum::<i64>();
        wanted.saturating_sub(in_hand + usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// How many more lines of a tenant are to be in hand: where its calls are limited, as many as
    /// can be sent now.
    fn room_of(&self, tenant: &str) -> usize {
        if self.tenants.is_spent(tenant) {
            return 0;
        }
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
            let context = context(&row);
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
        let mut leased = self.leased();
        for (lane, unread) in units {
            let tenant = Arc::clone(&unread.batch.tenant);
            leased.push(tenant, (lane, unread));
        }
        drop(leased);
        self.changed.notify_one();
    }

    /// Reads the text of units that were leased directly, as they come, until stopped. A round of
    /// the supply may take long where there is much to lease, and these units need not wait for it.
    pub(crate) async fn run(
        self: Arc<Self>,
        loader: Arc<Loader>,
        stop: CancellationToken,
    ) -> &'static str {
        let read = async {
            loop {
                self.changed.notified().await;
                self.read(&loader).await;
            }
        };
        stop.run_until_cancelled(read).await;
        "direct leases"
    }

    async fn read(&self, loader: &Loader) {
        loop {
            let Some((lane, unread)) = self.leased().pop() else {
                return;
            };
            let bytes = usize::try_from(unread.leased.chunk_bytes).unwrap_or(0);
            let Some(reservation) = self.pool.budget().try_reserve(bytes) else {
                self.without_room().push((lane, unread));
                self.ledger.notify_supply();
                continue;
            };
            if let Err(error) = loader.load(unread, Some(reservation)).await {
                tracing::warn!(%error, "a unit's text could not be read; the unit is given back");
            }
        }
    }

    /// Takes the units for whose text there was no room.
    pub(super) fn take_unread(&self) -> Vec<(LaneId, UnreadUnit)> {
        std::mem::take(&mut *self.without_room())
    }

    /// The tenants of the units that are leased and not read yet, with how many lines.
    fn unread(&self) -> Vec<(Arc<str>, usize)> {
        let leased = self.leased();
        let units = leased.iter().map(|(_, unit)| {
            let lines = usize::try_from(unit.leased.requests).unwrap_or(0);
            (Arc::clone(&unit.batch.tenant), lines)
        });
        units.collect()
    }

    fn leased(&self) -> MutexGuard<'_, ByTurns<(LaneId, UnreadUnit)>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn without_room(&self) -> MutexGuard<'_, Vec<(LaneId, UnreadUnit)>> {
        let without_room = self.without_room.lock();
        without_room.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits to be read, by tenant. The tenants take turns.
struct ByTurns<T> {
    by_tenant: BTreeMap<Arc<str>, VecDeque<T>>,
    /// Who had the last turn.
    last: Option<Arc<str>>,
}

impl<T> Default for ByTurns<T> {
    fn default() -> Self {
        Self {
            by_tenant: BTreeMap::new(),
            last: None,
        }
    }
}

impl<T> ByTurns<T> {
    fn push(&mut self, tenant: Arc<str>, item: T) {
        self.by_tenant.entry(tenant).or_default().push_back(item);
    }

    /// The first of the tenant whose name comes after that of the last turn.
    fn pop(&mut self) -> Option<T> {
        let behind = |last: &Arc<str>| {
            let after = (Bound::Excluded(Arc::clone(last)), Bound::Unbounded);
            let mut after = self.by_tenant.range(after);
            after.next().map(|(tenant, _)| Arc::clone(tenant))
        };
        let next = self.last.as_ref().and_then(behind);
        let next = next.or_else(|| self.by_tenant.keys().next().cloned())?;
        let items = self.by_tenant.get_mut(&next)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.by_tenant.remove(&next);
        }
        self.last = Some(next);
        item
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_tenant.values().flatten()
    }
}

/// Who has units left, or in hand.
struct Others {
    /// Lines in hand and in flight, in any lane.
    lines: HashMap<Arc<str>, usize>,
    /// Tenants with units that wait.
    left: HashSet<Arc<str>>,
}

impl Others {
    fn new(left: &Left, ledger: &SharedLedger) -> Self {
        let ledger = ledger.lock();
        let run_queues = ledger.run_queues();
        let tenants = run_queues.tenants().filter(|tenant| !tenant.is_idle());
        let mut lines: HashMap<Arc<str>, usize> = tenants
            .map(|tenant| (Arc::clone(tenant.name()), tenant.in_flight()))
            .collect();
        for (_, queue) in run_queues.queues() {
            for (_, flow) in queue.flows() {
                let name = run_queues.tenant(flow.tenant()).name();
                *lines.entry(Arc::clone(name)).or_default() += flow.resting().all();
            }
        }
        for tenant in &left.tenants {
            lines.entry(Arc::clone(tenant)).or_default();
        }
        Self {
            lines,
            left: left.tenants.clone(),
        }
    }

    /// Counts so many more lines of a tenant as in hand.
    fn add(&mut self, tenant: Arc<str>, lines: usize) {
        *self.lines.entry(tenant).or_default() += lines;
    }

    /// Whether so many lines of a tenant come next, in a lane of so many permits, however many
    /// units of others wait: the tenant has no units left, and no more in hand with these lines
    /// than its equal part. Then they count as in hand.
    fn let_pass(&mut self, tenant: &str, lines: usize, permits: usize) -> bool {
        if self.left.contains(tenant) {
            return false;
        }
        let in_hand = self.lines.get(tenant).copied();
        let tenants = self.lines.len() + usize::from(in_hand.is_none());
        let with_these = in_hand.unwrap_or(0).saturating_add(lines);
        let comes_next = with_these <= permits / tenants;
        if comes_next {
            self.lines.insert(tenant.into(), with_these);
        }
        comes_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(lines: &[(&str, usize)], left: &[&str]) -> Others {
        Others {
            lines: lines
                .iter()
                .map(|&(name, lines)| (name.into(), lines))
                .collect(),
            left: left.iter().map(|&name| name.into()).collect(),
        }
    }

    #[test]
    fn what_is_leased_directly_is_read_by_turns_of_the_tenants() {
        let mut waiting = ByTurns::default();
        for item in ["a1", "a2", "a3", "b1", "c1", "c2"] {
            waiting.push(item[..1].into(), item);
        }
        assert_eq!(waiting.iter().count(), 6);
        let read = |waiting: &mut ByTurns<&'static str>, count: usize| {
            let read = (0..count).filter_map(|_| waiting.pop());
            read.collect::<Vec<_>>()
        };
        assert_eq!(read(&mut waiting, 2), ["a1", "b1"]);
        waiting.push("b".into(), "b2");
        assert_eq!(read(&mut waiting, 9), ["c1", "a2", "b2", "c2", "a3"]);
    }

    #[test]
    fn a_tenant_passes_up_to_its_equal_part() {
        let mut others = others(&[("hostile", 128)], &["hostile"]);
        assert!(!others.let_pass("quiet", 33, 64));
        assert!(others.let_pass("quiet", 30, 64));
        assert!(others.let_pass("quiet", 2, 64));
        assert!(!others.let_pass("quiet", 1, 64));
        // There are three now.
        assert!(!others.let_pass("third", 22, 64));
        assert!(others.let_pass("third", 21, 64));
    }

    #[test]
    fn units_that_are_leased_and_not_read_yet_count_as_in_hand() {
        let mut others = others(&[("hostile", 128)], &["hostile"]);
        others.add("quiet".into(), 20);
        others.add("quiet".into(), 10);
        assert!(!others.let_pass("quiet", 3, 64));
        assert!(others.let_pass("quiet", 2, 64));
    }

    #[test]
    fn a_tenant_passes_none_of_its_own_units() {
        let mut others = others(&[("hostile", 0)], &["hostile"]);
        assert!(!others.let_pass("hostile", 1, 64));
    }

    #[test]
    fn more_tenants_than_permits_take_turns() {
        let names: Vec<String> = (0..64).map(|number| format!("tenant-{number}")).collect();
        let lines: Vec<(&str, usize)> = names.iter().map(|name| (&**name, 1)).collect();
        assert!(!others(&lines, &[]).let_pass("one more", 1, 64));
    }
}

//! What there is to lease.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::domain::batch::Status;
use crate::domain::file::CHUNK_REQUESTS_MAX;
use crate::store::Backlog;
use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::demand::OnOffer;
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::dispatch::write_failures::WriteFailures;

/// How many lines a unit is taken to have until its text is read: as many as a chunk has at most.
pub(super) const LINES_PER_UNIT: usize = CHUNK_REQUESTS_MAX as usize;

/// The units of one model in one batch that could be leased.
pub(super) struct Candidate {
    pub backlog: Backlog,
    pub routes: Arc<Routes>,
}

/// What there is to lease in a lane, by tenant.
pub(super) type ByTenant = HashMap<Arc<str>, Vec<Candidate>>;

/// Open routes by model, and whether this process has a share of their limits. `None`: they are not
/// open.
type ByModel = HashMap<String, Option<(Arc<Routes>, bool)>>;

/// What there is to lease.
pub(super) struct Candidates {
    pub by_lane: BTreeMap<LaneId, ByTenant>,
    /// What could be leased, whether this process has a share of the limits or not.
    pub on_offer: OnOffer,
}

impl Candidates {
    /// How many units of each tenant could be leased.
    pub(super) fn units(&self) -> HashMap<Arc<str>, i64> {
        let mut units: HashMap<Arc<str>, i64> = HashMap::new();
        for (tenant, candidates) in self.by_lane.values().flatten() {
            let waiting: i64 = candidates.iter().map(|one| one.backlog.waiting).sum();
            *units.entry(Arc::clone(tenant)).or_default() += waiting;
        }
        units
    }
}

/// Whether a tenant's lines may be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TenantState {
    Free,
    /// Its calls at once are limited, and this process has a share of the limit or not.
    Limited {
        allowed: usize,
        has_share: bool,
    },
    /// Its rate limits keep its lines for a while.
    Spent,
}

/// Routes that are open, and for whom.
struct Open {
    routes: Arc<Routes>,
    /// Calls at once that their lines could have.
    calls: usize,
    /// The tenants that are counted.
    limited: HashSet<String>,
}

impl Open {
    fn new(routes: &Arc<Routes>) -> Self {
        Self {
            routes: Arc::clone(routes),
            calls: 0,
            limited: HashSet::new(),
        }
    }

    fn add(&mut self, tenant: &str, state: TenantState) {
        match state {
            TenantState::Free => self.calls = usize::MAX,
            TenantState::Limited { allowed, .. } => {
                if !self.limited.contains(tenant) {
                    self.limited.insert(tenant.to_owned());
                    self.calls = self.calls.saturating_add(allowed);
                }
            }
            TenantState::Spent => {}
        }
    }

    fn into_demand(self) -> (Arc<Routes>, usize) {
        (self.routes, self.calls)
    }
}

/// Finds what there is to lease.
pub(super) struct Selector {
    pool: Arc<Pool>,
    tenants: Arc<Tenants>,
    write_failures: Arc<WriteFailures>,
    /// Models that no upstream serves, and that were warned about: by task and model, because a
    /// task may lack a model that others have.
    unserved: HashSet<(Option<String>, String)>,
}

impl Selector {
    pub(super) fn new(
        pool: Arc<Pool>,
        tenants: Arc<Tenants>,
        write_failures: Arc<WriteFailures>,
    ) -> Self {
        Self {
            pool,
            tenants,
            write_failures,
            unserved: HashSet::new(),
        }
    }

    /// What can be leased of a backlog. Units that no upstream takes at present are left for later,
    /// or for replicas that see the upstream otherwise.
    pub(super) fn select(&mut self, backlog: Vec<Backlog>) -> Candidates {
        let mut by_lane: BTreeMap<LaneId, ByTenant> = BTreeMap::new();
        let mut open: HashMap<(LaneId, Vec<usize>), Open> = HashMap::new();
        // Many batches name the same model, so the answer is kept by task and model: its routes, if
        // they are open, and whether this process has a share of their limits.
        let mut known: HashMap<Option<String>, ByModel> = HashMap::new();
        let mut tenants: HashMap<String, TenantState> = HashMap::new();
        for row in backlog {
            if row.state.status != Status::InProgress
                || self.write_failures.is_unwritable(&row.batch_id)
            {
                continue;
            }
            if !known.contains_key(&row.task) {
                known.insert(row.task.clone(), ByModel::new());
            }
            let Some(of_task) = known.get_mut(&row.task) else {
                continue;
            };
            if !of_task.contains_key(&row.model) {
                let routes = self.open_routes(&row).map(|routes| {
                    let has_share = self.pool.targets().has_share(&routes);
                    (routes, has_share)
                });
                of_task.insert(row.model.clone(), routes);
            }
            let Some(Some((routes, has_share))) = of_task.get(&row.model) else {
                continue;
            };
            let tenant = row.tenant.as_str();
            if !tenants.contains_key(tenant) {
                tenants.insert(tenant.to_owned(), self.state_of(tenant));
            }
            let state = tenants.get(tenant).copied().unwrap_or(TenantState::Free);
            if state == TenantState::Spent {
                continue;
            }
            open.entry((routes.lane, routes.upstreams().collect()))
                .or_insert_with(|| Open::new(routes))
                .add(tenant, state);
            // A process without a share leases nothing. It asks for a share instead.
            let may_send = !matches!(
                state,
                TenantState::Limited {
                    has_share: false,
                    ..
                }
            );
            if *has_share && may_send {
                let of_lane = by_lane.entry(routes.lane).or_default();
                if !of_lane.contains_key(tenant) {
                    of_lane.insert(tenant.into(), Vec::new());
                }
                if let Some(of_tenant) = of_lane.get_mut(tenant) {
                    of_tenant.push(Candidate {
                        routes: routes.clone(),
                        backlog: row,
                    });
                }
            }
        }
        let limited = tenants.into_iter().filter_map(|(tenant, state)| {
            matches!(state, TenantState::Limited { .. }).then(|| tenant.into())
        });
        let on_offer = OnOffer {
            open: open.into_values().map(Open::into_demand).collect(),
            limited: limited.collect(),
        };
        Candidates { by_lane, on_offer }
    }

    fn state_of(&self, tenant: &str) -> TenantState {
        match self.tenants.allowed(tenant) {
            _ if self.tenants.is_spent(tenant) => TenantState::Spent,
            None => TenantState::Free,
            Some(allowed) => TenantState::Limited {
                allowed,
                has_share: self.tenants.has_share(tenant),
            },
        }
    }

    /// The routes of a row's model, if they are open.
    fn open_routes(&mut self, row: &Backlog) -> Option<Arc<Routes>> {
        let routes = self.pool.resolve_for(row.task.as_deref(), &row.model);
        let key = (row.task.clone(), row.model.clone());
        if routes.is_some() {
            self.unserved.remove(&key);
        } else if self.unserved.insert(key) {
            tracing::warn!(
                model.name = row.model,
                task.name = row.task,
                batch.id = row.batch_id,
                "no upstream serves this model any more; its lines wait until one does, or until \
                 their window ends"
            );
        }
        // An upstream that closes again and again is open for a moment now and then.
        routes.filter(|routes| self.pool.targets().was_open(routes))
    }
}

/// How many batches of a tenant have units in hand, or units that nobody holds.
pub(super) fn batches_of(
    candidates: &[Candidate],
    ready: Option<&HashMap<Arc<str>, usize>>,
) -> usize {
    let candidates = candidates.iter().map(|one| &*one.backlog.batch_id);
    let in_hand = ready.into_iter().flat_map(HashMap::keys).map(|id| &**id);
    candidates.chain(in_hand).collect::<HashSet<&str>>().len()
}

/// Drops candidates of a tenant that other processes are to find. Kept are, in the order of their
/// turns: more units of the batches in hand, batches until `share` lines are ready, and batches
/// until `most` are in hand. A process that took all small batches of a tenant at once would send
/// them by its own share of the limits alone, while other processes have nothing to send.
pub(super) fn leave_for_others(
    candidates: &mut Vec<Candidate>,
    ready: Option<&HashMap<Arc<str>, usize>>,
    share: usize,
    most: usize,
) {
    let mut lines: usize = ready.map_or(0, |ready| ready.values().sum());
    let in_hand = ready.into_iter().flat_map(HashMap::keys);
    let mut batches: HashSet<Arc<str>> = in_hand.cloned().collect();
    candidates.retain(|candidate| {
        let row = &candidate.backlog;
        if batches.contains(&*row.batch_id) {
            return true;
        }
        if batches.len() >= most && lines >= share {
            return false;
        }
        lines += lines_of(row);
        batches.insert(row.batch_id.as_str().into());
        true
    });
}

/// How many lines the waiting units have at most, by batch.
pub(super) fn lines_waiting(backlog: &[Backlog]) -> HashMap<String, usize> {
    let mut waiting: HashMap<String, usize> = HashMap::new();
    for row in backlog {
        let of_batch = waiting.entry(row.batch_id.clone()).or_default();
        let total = usize::try_from(row.total).unwrap_or(0);
        let units = usize::try_from(row.waiting).unwrap_or(0);
        *of_batch = (*of_batch + units.saturating_mul(LINES_PER_UNIT)).min(total);
    }
    waiting
}

/// How many lines the waiting units of a row have at most.
pub(super) fn lines_of(row: &Backlog) -> usize {
    let units = usize::try_from(row.waiting).unwrap_or(0);
    let total = usize::try_from(row.total).unwrap_or(0);
    units.saturating_mul(LINES_PER_UNIT).min(total)
}

#[cfg(test)]
mod tests;

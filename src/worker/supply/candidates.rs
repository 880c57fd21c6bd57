//! What there is to lease.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::domain::batch::Status;
use crate::domain::file::CHUNK_REQUESTS_MAX;
use crate::store::Backlog;
use crate::upstream::{LaneId, Pool, Routes};
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

/// What there is to lease.
pub(super) struct Candidates {
    pub by_lane: BTreeMap<LaneId, ByTenant>,
    /// The routes that are open, one entry a lane and set of upstreams, whether this process has a
    /// share of their limits or not.
    pub open: Vec<Arc<Routes>>,
}

/// Finds what there is to lease.
pub(super) struct Selector {
    pool: Arc<Pool>,
    write_failures: Arc<WriteFailures>,
    /// Models that no upstream serves, and that were warned about.
    unserved: HashSet<String>,
}

impl Selector {
    pub(super) fn new(pool: Arc<Pool>, write_failures: Arc<WriteFailures>) -> Self {
        Self {
            pool,
            write_failures,
            unserved: HashSet::new(),
        }
    }

    /// What can be leased of a backlog. Units that no upstream takes at present are left for later,
    /// or for replicas that see the upstream otherwise.
    pub(super) fn select(&mut self, backlog: Vec<Backlog>) -> Candidates {
        let mut by_lane: BTreeMap<LaneId, ByTenant> = BTreeMap::new();
        let mut open: HashMap<(LaneId, Vec<usize>), Arc<Routes>> = HashMap::new();
        // Many batches name the same model, so the answer is kept by model: its routes, if they
        // are open, and whether this process has a share of their limits.
        let mut known: HashMap<String, Option<(Arc<Routes>, bool)>> = HashMap::new();
        for row in backlog {
            if row.state.status != Status::InProgress
                || self.write_failures.is_unwritable(&row.batch_id)
            {
                continue;
            }
            if !known.contains_key(&row.model) {
                let routes = self.open_routes(&row).map(|routes| {
                    let has_share = self.pool.targets().has_share(&routes);
                    (routes, has_share)
                });
                known.insert(row.model.clone(), routes);
            }
            let Some(Some((routes, has_share))) = known.get(&row.model) else {
                continue;
            };
            open.entry((routes.lane, routes.upstreams().collect()))
                .or_insert_with(|| routes.clone());
            // A process without a share leases nothing. It asks for a share instead.
            if *has_share {
                let of_lane = by_lane.entry(routes.lane).or_default();
                let tenant = row.tenant.as_str();
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
        let open = open.into_values().collect();
        Candidates { by_lane, open }
    }

    /// The routes of a row's model, if they are open.
    fn open_routes(&mut self, row: &Backlog) -> Option<Arc<Routes>> {
        let routes = self.pool.resolve(&row.model);
        if routes.is_some() {
            self.unserved.remove(&row.model);
        } else if self.unserved.insert(row.model.clone()) {
            tracing::warn!(
                model.name = row.model,
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

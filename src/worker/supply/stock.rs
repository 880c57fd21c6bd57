//! What is in hand, by which the supply decides what to lease.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::upstream::{LaneId, Pool, Routes};
use crate::worker::dispatch::order;
use crate::worker::dispatch::shared::SharedLedger;

/// What is in hand.
#[derive(Default)]
pub(super) struct Stock {
    /// By lane and tenant, of the routes that some upstream takes at present.
    pub tenants: HashMap<(LaneId, Arc<str>), TenantStock>,
    pub lanes: HashMap<LaneId, LaneStock>,
    /// Batches of which units are in hand.
    pub batches: BTreeSet<String>,
}

/// What a tenant has in hand in a lane.
#[derive(Default)]
pub(super) struct TenantStock {
    /// Routes on which so many of the tenant's lines wait for another attempt that no fresh line
    /// is sent.
    pub blocked: Vec<Arc<Routes>>,
    /// Lines ready to be sent, by batch.
    pub ready: HashMap<Arc<str>, usize>,
}

#[derive(Default)]
pub(super) struct LaneStock {
    /// Bytes of text.
    pub bytes: usize,
    /// Lines that were ever answered.
    pub answered: u64,
    /// How long a call takes, as far as is known.
    pub seconds: Option<f64>,
}

impl Stock {
    pub(super) fn of(ledger: &SharedLedger, pool: &Arc<Pool>) -> Stock {
        let ledger = ledger.lock();
        let mut stock = Stock::default();
        for active in ledger.units() {
            let unit = active.unit();
            if !stock.batches.contains(&*unit.batch.id) {
                stock.batches.insert(unit.batch.id.to_string());
            }
            let Some(routes) = active.routes() else {
                continue;
            };
            stock.lanes.entry(routes.lane).or_default().bytes += unit.text.len();
            // Lines that must wait for their upstream are no work in hand.
            if pool.targets().is_troubled() && !pool.targets().was_open(routes) {
                continue;
            }
            let key = (routes.lane, unit.batch.tenant.clone());
            let tenant = stock.tenants.entry(key).or_default();
            *tenant.ready.entry(unit.batch.id.clone()).or_default() += active.sendable();
        }
        let run_queues = ledger.run_queues();
        for (_, queue) in run_queues.queues() {
            let routes = queue.routes();
            let Some(lane) = run_queues.lane(routes.lane) else {
                continue;
            };
            let most = order::waiting_max(pool, routes, lane.limit());
            for (_, flow) in queue.flows() {
                if flow.resting().waiting >= most {
                    let name = run_queues.tenant(flow.tenant()).name().clone();
                    let tenant = stock.tenants.entry((routes.lane, name)).or_default();
                    tenant.blocked.push(routes.clone());
                }
            }
        }
        for (id, lane) in run_queues.lanes() {
            let of_lane = stock.lanes.entry(id).or_default();
            of_lane.answered = lane.answered();
            of_lane.seconds = lane.seconds();
        }
        stock
    }
}

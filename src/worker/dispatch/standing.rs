//! How tenants stand: who waits for what, and who comes before whom. For operators.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::demand::Demand;
use super::ledger::Ledger;
use super::ledger::run_queues::{Lane, Resting, Turn};
use super::tenants::Tenants;
use crate::upstream::{LaneId, LaneStatus, RouteStatus, Skipped};

/// How many tenants are told of.
const TOLD_MAX: usize = 100;

/// Why lines of a tenant that could be sent are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// The turns of others, or a place of the model or at an upstream.
    Turn,
    /// The end of one of its calls: it has as many as it may have.
    Concurrency,
    /// Other processes have all the calls that it may have.
    Share,
    /// Its rate limits. `left`: until one of its lines may be sent.
    Limit { left: Duration },
}

impl WaitsFor {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WaitsFor::Turn => "turn",
            WaitsFor::Concurrency => "concurrency",
            WaitsFor::Share => "share",
            WaitsFor::Limit { .. } => "limit",
        }
    }

    /// How long until that is over, where it is known.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        match self {
            WaitsFor::Limit { left } => Some(left),
            _ => None,
        }
    }
}

/// How a tenant stands in this process.
#[derive(Clone, Debug)]
pub struct TenantStanding {
    pub name: Arc<str>,
    pub in_flight: usize,
    /// Calls at once that this process may make for it, and all processes together. `None`: there
    /// is no limit.
    pub calls: Option<(usize, usize)>,
    /// Lines in hand that could be sent, and that wait for another attempt.
    pub ready: usize,
    pub waiting: usize,
    /// `None`: it has no line that could be sent.
    pub waits_for: Option<WaitsFor>,
}

/// How the tenants stand that have anything to send here. Those that wait for nothing but their
/// turn come first, in the order of their turns.
pub(crate) fn of_tenants(
    ledger: &Ledger,
    tenants: &Tenants,
    demand: &Demand,
) -> Vec<TenantStanding> {
    let run_queues = ledger.run_queues();
    let mut resting: BTreeMap<usize, Resting> = BTreeMap::new();
    for (_, queue) in run_queues.queues() {
        for (_, flow) in queue.flows() {
            let of_tenant = resting.entry(flow.tenant()).or_default();
            of_tenant.add(flow.resting());
        }
    }
    let mut found: Vec<((bool, Turn), TenantStanding)> = Vec::new();
    for (key, tenant) in run_queues.keyed_tenants() {
        let resting = resting.get(&key).copied().unwrap_or_default();
        if tenant.in_flight() == 0 && resting.all() == 0 {
            continue;
        }
        let name = Arc::clone(tenant.name());
        let waits_for = (resting.ready() > 0).then(|| {
            if let Some(left) = tenants.spent_for(&name) {
                WaitsFor::Limit { left }
            } else if tenant.limit().calls == 0 {
                WaitsFor::Share
            } else if tenant.is_full() {
                WaitsFor::Concurrency
            } else {
                WaitsFor::Turn
            }
        });
        let standing = TenantStanding {
            in_flight: tenant.in_flight(),
            calls: tenants.calls(&name).zip(tenants.allowed(&name)),
            ready: resting.ready(),
            waiting: resting.waiting,
            waits_for,
            name,
        };
        let key = (waits_for != Some(WaitsFor::Turn), tenant.turn_of_all());
        found.push((key, standing));
    }
    // What waits to be leased, and this process has no share for.
    for name in demand.limited_on_offer() {
        if tenants.has_share(&name) || found.iter().any(|(_, one)| one.name == name) {
            continue;
        }
        let standing = TenantStanding {
            in_flight: 0,
            calls: tenants.calls(&name).zip(tenants.allowed(&name)),
            ready: 0,
            waiting: 0,
            waits_for: Some(WaitsFor::Share),
            name,
        };
        found.push(((true, Turn::default()), standing));
    }
    found.sort_by_key(|one| one.0);
    found.truncate(TOLD_MAX);
    found.into_iter().map(|(_, standing)| standing).collect()
}

/// How a batch stands in this process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchStanding {
    pub in_flight: usize,
    /// What lines that could be sent wait for, in words. `None`: nothing holds them up.
    pub waits_for: Option<String>,
}

/// How the batches stand of which units are in hand. `lanes`: where lines go at this moment.
pub(crate) fn of_batches(
    ledger: &Ledger,
    tenants: &Tenants,
    lanes: &[LaneStatus],
) -> BTreeMap<Arc<str>, BatchStanding> {
    let lanes: BTreeMap<LaneId, &LaneStatus> = lanes.iter().map(|lane| (lane.id, lane)).collect();
    let mut found: BTreeMap<Arc<str>, BatchStanding> = BTreeMap::new();
    for active in ledger.units() {
        let batch = &active.unit().batch;
        let standing = found.entry(Arc::clone(&batch.id)).or_default();
        standing.in_flight += active.in_flight();
        let resting = active.resting();
        if standing.waits_for.is_some() || resting.all() == 0 {
            continue;
        }
        let lane = active.lane().and_then(|id| {
            let status = lanes.get(&id)?;
            Some((*status, ledger.run_queues().lane(id)?))
        });
        standing.waits_for = if resting.ready() == 0 {
            Some("the next attempt of lines that have failed".to_owned())
        } else if let Some((status, lane)) = lane {
            of_tenant(ledger, tenants, &batch.tenant).or_else(|| of_lane(status, lane))
        } else {
            Some("an upstream that serves the model".to_owned())
        };
    }
    found
}

/// What holds up a tenant's lines, whichever they are.
fn of_tenant(ledger: &Ledger, tenants: &Tenants, name: &str) -> Option<String> {
    if let Some(left) = tenants.spent_for(name) {
        return Some(format!("a rate limit of the tenant{}", for_so_long(left)));
    }
    let tenant = ledger.run_queues().tenant_named(name)?;
    if tenant.limit().calls == 0 {
        Some("calls of the tenant that other servers have".to_owned())
    } else if tenant.is_full() {
        Some("the limit of the tenant's calls at once".to_owned())
    } else {
        None
    }
}

/// What holds up the lines of a model.
fn of_lane(status: &LaneStatus, lane: &Lane) -> Option<String> {
    let name = &status.name;
    if status.routes.iter().all(|route| route.skipped.is_some()) {
        // A route that is full takes the next line; else the first is the one that lines go by.
        let is_full = |route: &&RouteStatus| {
            matches!(route.skipped, Some(Skipped::Full | Skipped::Limit { .. }))
        };
        let mut routes = status.routes.iter();
        let route = routes.find(is_full).or(status.routes.first());
        return route.and_then(|route| of_route(route, name));
    }
    lane.is_full()
        .then(|| format!("the limit of the model {name}"))
}

fn of_route(route: &RouteStatus, model: &str) -> Option<String> {
    let upstream = &route.upstream;
    let words = match route.skipped? {
        Skipped::Ejected { left } => {
            format!(
                "the upstream {upstream}, which refuses calls{}",
                for_so_long(left)
            )
        }
        Skipped::Down { left } => {
            format!(
                "the upstream {upstream}, which is down{}",
                for_so_long(left)
            )
        }
        Skipped::Cooldown { left } => {
            format!("a cooldown at the upstream {upstream}{}", for_so_long(left))
        }
        Skipped::Limit { left } => {
            format!(
                "a rate limit of the model {model} at {upstream}{}",
                for_so_long(left)
            )
        }
        Skipped::Full => format!("the limit of the model {model} at {upstream}"),
        Skipped::Tier => return None,
        Skipped::Disabled => format!("the upstream {upstream}, which is disabled"),
    };
    Some(words)
}

fn for_so_long(left: Duration) -> String {
    match left.as_secs() {
        0 => String::new(),
        seconds => format!(", for {seconds} s more"),
    }
}

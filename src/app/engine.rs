//! The engine of this process, as the API sees it: the upstreams, and the worker where the process
//! has one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::api;
use crate::api::model_object::ModelObject;
use crate::metrics::{
    ClosedSnapshot, KeySnapshot, Lane, LateSnapshot, ProcessSnapshot, RateSnapshot, RouteSnapshot,
    SwitchSnapshot, TenantSnapshot, UpstreamSnapshot, WindowSnapshot,
};
use crate::upstream::{
    KeyStatus, LaneId, ModelInfo, Packed, Pool, RateStatus, RouteStatus, Skipped,
};
use crate::worker::{Late, Observer, Snapshot, WaitsFor, Worker};

pub(super) struct Engine {
    pool: Arc<Pool>,
    /// `None` in a process that serves the API alone.
    worker: Option<(Observer, Arc<AtomicBool>)>,
}

impl Engine {
    pub(super) fn new(pool: Arc<Pool>, worker: Option<&Worker>) -> Self {
        let worker = worker.map(|worker| (worker.observer(), worker.running()));
        Self { pool, worker }
    }
}

impl api::engine::Engine for Engine {
    fn snapshot(&self) -> ProcessSnapshot {
        let pool = &self.pool;
        let worker = self.worker.as_ref().map(|(worker, _)| worker.snapshot());
        let in_flight = worker.as_ref().map(|worker| &worker.in_flight);
        ProcessSnapshot {
            upstreams: upstreams(pool),
            lanes: in_flight
                .map(|in_flight| lanes(pool, in_flight))
                .unwrap_or_default(),
            rate_limits: rate_limits(pool),
            windows: in_flight.map(|_| windows(pool)).unwrap_or_default(),
            late: worker
                .as_ref()
                .map(|worker| late(pool, &worker.late))
                .unwrap_or_default(),
            tenants: worker.as_ref().map(tenants).unwrap_or_default(),
            budget_used: pool.budget().used(),
            budget_limit: pool.budget().limit(),
            token: worker.as_ref().map(|worker| worker.token.clone()),
            alarms: worker.map(|worker| worker.alarms).unwrap_or_default(),
        }
    }

    fn models(&self) -> Vec<ModelObject> {
        self.pool.models().into_iter().map(shown).collect()
    }

    fn label(&self, task: Option<&str>, model: &str) -> String {
        self.pool.label_for(task, model)
    }

    fn currency(&self) -> String {
        self.pool.currency()
    }

    fn is_running(&self) -> bool {
        let running = self.worker.as_ref();
        running.is_none_or(|(_, running)| running.load(Ordering::Relaxed))
    }

    fn reset(&self, upstream: &str) -> bool {
        self.pool.targets().reset(upstream)
    }
}

fn upstreams(pool: &Pool) -> Vec<UpstreamSnapshot> {
    let upstreams = pool.snapshot().into_iter();
    upstreams
        .map(|upstream| UpstreamSnapshot {
            name: upstream.name,
            state: upstream.state.as_str(),
            cause: upstream.cause,
            in_flight: upstream.in_flight,
            share: upstream.share,
            limit: upstream.limit,
            configured: upstream.configured,
            set: upstream.set.map(|set| SwitchSnapshot {
                by: set.by,
                at_ms: set.at_ms,
            }),
            closed: upstream
                .models
                .into_iter()
                .map(|model| ClosedSnapshot {
                    model: model.model,
                    key: model.key,
                    reason: model.reason.as_str(),
                    cause: model.cause,
                    left: model.left,
                })
                .collect(),
            keys: upstream.keys.into_iter().map(key).collect(),
        })
        .collect()
}

fn key(key: KeyStatus) -> KeySnapshot {
    KeySnapshot {
        name: key.name,
        state: key.state.as_str(),
        cause: key.cause,
        left: key.left,
        in_flight: key.in_flight,
    }
}

/// Each lane, with the calls of it that are in flight in this process.
fn lanes(pool: &Pool, in_flight: &HashMap<LaneId, usize>) -> Vec<Lane> {
    let limits = pool.limits();
    // Calls of a task fill the limits of its models, so they count for the models, too.
    let of_models = pool.targets().in_flight_by_lane();
    let calls = |id: LaneId| {
        let of_lines = in_flight.get(&id).copied().unwrap_or(0);
        of_lines.max(of_models.get(id.index()).copied().unwrap_or(0))
    };
    let (parts, lanes): (Vec<_>, Vec<_>) = pool.lanes().into_iter().partition(|one| one.is_part);
    // The lines of a task that name one of its models have a lane of their own.
    let mut of_parts: HashMap<String, usize> = HashMap::new();
    for part in parts {
        if let Some(task) = part.task {
            *of_parts.entry(task).or_default() += calls(part.id);
        }
    }
    let lanes = lanes.into_iter().map(|status| Lane {
        is_task: status.task.is_some(),
        in_flight: calls(status.id) + of_parts.get(&status.name).copied().unwrap_or(0),
        share: limits.lane(status.id),
        limit: limits.lane_allowed(status.id),
        model: status.name,
        balance: status.balance.as_str(),
        spill: status.spill.as_str(),
        routes: status.routes.into_iter().map(route).collect(),
    });
    lanes.collect()
}

fn route(route: RouteStatus) -> RouteSnapshot {
    let calls = route.calls;
    RouteSnapshot {
        upstream: route.upstream,
        model: route.model,
        tier: route.tier,
        weight: route.weight,
        calls: calls.map(|calls| [calls.in_flight, calls.share, calls.limit]),
        skipped: route.skipped.map(Skipped::as_str),
        left: route.skipped.and_then(Skipped::left),
        packed: route.packed.map(|packed| {
            let Packed {
                inputs_max,
                calls,
                lines,
            } = packed;
            (inputs_max, calls, lines)
        }),
    }
}

/// Which batches would be late, the one with the least time left first.
fn late(pool: &Pool, late: &[Late]) -> Vec<LateSnapshot> {
    let lanes = pool.lanes().into_iter().map(|lane| (lane.id, lane.name));
    let names: HashMap<LaneId, String> = lanes.collect();
    let snapshot = |late: &Late| LateSnapshot {
        batch: late.batch.to_string(),
        tenant: late.tenant.to_string(),
        model: names.get(&late.lane).cloned().unwrap_or_default(),
        is_late: late.is_late,
        lines: late.lines,
        deficit: late.deficit,
        rate: late.rate,
        latency: late.latency,
        left: late.left,
        spilled: late.spilled,
    };
    let mut late: Vec<LateSnapshot> = late.iter().map(snapshot).collect();
    late.sort_by_key(|late| late.left);
    late
}

fn tenants(worker: &Snapshot) -> Vec<TenantSnapshot> {
    let tenants = worker.tenants.iter();
    tenants
        .map(|one| TenantSnapshot {
            tenant: one.name.to_string(),
            in_flight: one.in_flight,
            calls: one.calls.map(|(share, limit)| [share, limit]),
            ready: one.ready,
            waiting: one.waiting,
            waits_for: one.waits_for.map(WaitsFor::as_str),
            left: one.waits_for.and_then(WaitsFor::left),
        })
        .collect()
}

fn rate_limits(pool: &Pool) -> Vec<RateSnapshot> {
    let limits = pool.rate_limits().status();
    let snapshot = |limit: RateStatus| RateSnapshot {
        scope: limit.scope,
        name: limit.name,
        kind: limit.kind.as_str(),
        limit: limit.limit,
        period: limit.period,
        saturation: limit.saturation,
        reserved: limit.reserved,
        opens: limit.opens,
    };
    limits.into_iter().map(snapshot).collect()
}

fn windows(pool: &Pool) -> Vec<WindowSnapshot> {
    let windows = pool.targets().window_status().into_iter();
    windows
        .map(|window| WindowSnapshot {
            upstream: window.upstream,
            model: window.model,
            window: window.window,
            most: window.most,
            in_flight: window.in_flight,
            share: window.share,
            generation: window.generation,
            reason: window.reason,
        })
        .collect()
}

/// A model as the API lists it.
fn shown(model: ModelInfo) -> ModelObject {
    ModelObject {
        id: model.id,
        object: "model",
        created: model.created,
        owned_by: model.owned_by,
        shutdown_date: model.shutdown_date,
    }
}

//! How things stand in this process, put together for those who look.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::inside::Inside;
use crate::metrics::{ClosedSnapshot, Lane, ProcessSnapshot, UpstreamSnapshot};
use crate::upstream::{LaneId, Pool};
use crate::worker::{Observer, Worker};

/// What `/metrics` and `/admin/status` tell of this process. `worker`: `None` where it has none.
#[must_use]
pub fn inside(pool: &Arc<Pool>, worker: Option<&Worker>) -> Inside {
    let worker = worker.map(Worker::observer);
    let labels = pool.clone();
    let pool = pool.clone();
    let look = move || {
        let worker = worker.as_ref().map(Observer::snapshot);
        let in_flight = worker.as_ref().map(|worker| &worker.in_flight);
        ProcessSnapshot {
            upstreams: upstreams(&pool),
            lanes: in_flight
                .map(|in_flight| lanes(&pool, in_flight))
                .unwrap_or_default(),
            budget_used: pool.budget().used(),
            budget_limit: pool.budget().limit(),
            token: worker.as_ref().map(|worker| worker.token.clone()),
            alarms: worker.map(|worker| worker.alarms).unwrap_or_default(),
        }
    };
    Inside::new(Box::new(look), Box::new(move |model| labels.label(model)))
}

fn upstreams(pool: &Pool) -> Vec<UpstreamSnapshot> {
    let (limits, status) = (pool.limits(), pool.snapshot());
    let upstreams = status.into_iter().enumerate();
    upstreams
        .map(|(index, upstream)| UpstreamSnapshot {
            name: upstream.name,
            state: upstream.state.as_str(),
            cause: upstream.cause,
            in_flight: upstream.in_flight,
            share: limits.share(index),
            limit: upstream.limit,
            closed: upstream
                .models
                .into_iter()
                .map(|model| ClosedSnapshot {
                    model: model.model,
                    reason: model.reason.as_str(),
                    cause: model.cause,
                    left: model.left,
                })
                .collect(),
        })
        .collect()
}

fn lanes(pool: &Pool, in_flight: &HashMap<LaneId, usize>) -> Vec<Lane> {
    let limits = pool.limits();
    let lane = |(id, name): (LaneId, &str)| Lane {
        model: name.to_owned(),
        in_flight: in_flight.get(&id).copied().unwrap_or(0),
        share: limits.lane(id),
        limit: limits.lane_allowed(id),
    };
    limits.lanes().map(lane).collect()
}

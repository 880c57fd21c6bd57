//! How things stand in this process, put together for those who look.

use std::sync::Arc;

use crate::api::inside::Inside;
use crate::config::Config;
use crate::observe::{Lane, ProcessReading, UpstreamReading};
use crate::upstream::{LaneId, Pool};
use crate::worker::Worker;

/// What `/metrics` and `/admin/status` tell of this process. `worker`: `None` where it has none.
#[must_use]
pub fn inside(config: &Config, pool: &Arc<Pool>, worker: Option<&Worker>) -> Inside {
    let names_and_limits = lanes(config);
    let lanes_in_use = worker.map(Worker::lanes);
    let token = worker.map(Worker::token);
    let labels = pool.clone();
    let pool = pool.clone();
    let look = move || ProcessReading {
        token: token.as_ref().map(|token| token()),
        upstreams: upstreams(&pool),
        lanes: lanes_in_use
            .as_ref()
            .map(|in_use| readings(&names_and_limits, &in_use()))
            .unwrap_or_default(),
        budget_used: pool.budget().used(),
        budget_limit: pool.budget().limit(),
    };
    Inside::new(Box::new(look), Box::new(move |model| labels.label(model)))
}

fn upstreams(pool: &Pool) -> Vec<UpstreamReading> {
    let status = pool.status().into_iter();
    status
        .map(|upstream| UpstreamReading {
            name: upstream.name,
            state: upstream.state.as_str(),
            cause: upstream.cause,
            in_flight: upstream.in_flight,
            limit: upstream.limit,
        })
        .collect()
}

/// The name and the configured limit of each lane.
fn lanes(config: &Config) -> Vec<(String, usize)> {
    let allowed = |name: &str| {
        let mut upstreams = config.upstreams.iter();
        let upstream = upstreams.find(|upstream| upstream.name == name);
        upstream.map_or(0, |upstream| upstream.concurrency)
    };
    let mut lanes: Vec<_> = config
        .models
        .iter()
        .map(|model| {
            let mut upstreams: Vec<&str> = model
                .routes
                .iter()
                .map(|route| route.upstream.as_str())
                .collect();
            upstreams.sort_unstable();
            upstreams.dedup();
            let all = upstreams.into_iter().map(allowed).sum();
            (model.name.clone(), model.concurrency.unwrap_or(all))
        })
        .collect();
    if lanes.is_empty() && !config.upstreams.is_empty() {
        let all = config.upstreams.iter().map(|upstream| upstream.concurrency);
        lanes.push(("*".to_owned(), all.sum()));
    }
    lanes
}

fn readings(lanes: &[(String, usize)], in_use: &[(LaneId, usize, usize)]) -> Vec<Lane> {
    let reading = |(index, (model, limit)): (usize, &(String, usize))| {
        let used = in_use.iter().find(|(lane, _, _)| lane.0 == index);
        let (in_flight, limit) = used.map_or((0, *limit), |&(_, n, limit)| (n, limit));
        Lane {
            model: model.clone(),
            in_flight,
            limit,
        }
    };
    lanes.iter().enumerate().map(reading).collect()
}

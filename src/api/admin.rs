//! `/admin/status`: an operator's picture of the whole.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Admin;
use super::cache::{self, CacheStatus};
use super::configuration::Loaded;
use super::snapshots::{self, Overview};
use super::upstreams::UndrainedReplica;
use super::{Api, error};
use crate::domain::clock::seconds;
use crate::domain::tenant::ANY_OTHER;
use crate::metrics::{ProcessSnapshot, RouteSnapshot, metrics};
use crate::store::{Engine, ListedBatch, ReplicaLease};

/// How many live batches are listed at most, and how many ended ones.
const BATCHES_MAX: i64 = 50;
/// How many batches are listed at most that would be late.
const LATE_MAX: usize = 50;
/// For how long a batch is listed after its end.
const ENDED_WITHIN_MS: i64 = 3_600_000;

/// How things stand. Times are in Unix seconds.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The version of the process that answers.
    pub version: String,
    pub now: i64,
    pub database: DatabaseStatus,
    /// What the process that answers runs by.
    #[serde(default)]
    pub configuration: Loaded,
    /// The processes that work on this store. What they have in flight, only they know.
    pub replicas: Vec<ReplicaStatus>,
    /// As the process that answers sees them.
    pub upstreams: Vec<UpstreamStatus>,
    pub models: Vec<ModelStatus>,
    /// The limits on requests and tokens in a time.
    #[serde(default)]
    pub rate_limits: Vec<RateLimitStatus>,
    /// How many calls at once there may be, where that is found out (`concurrency = "auto"`).
    #[serde(default)]
    pub windows: Vec<WindowStatus>,
    /// Where a model's `spill` is `late`: the batches that would miss their window, and those of
    /// which lines went to a higher tier, as the process that answers sees its own part of their
    /// lines. The one with the least time left first, at most 50.
    #[serde(default)]
    pub late: Vec<LateStatus>,
    /// The tenants that have something to send in the process that answers, and those that the
    /// configuration names. Those that wait for nothing but their turn come first, in the order of
    /// their turns.
    #[serde(default)]
    pub tenants: Vec<TenantStatus>,
    /// How many batches have not ended, by status.
    pub batches: BTreeMap<String, i64>,
    /// The oldest of them, at most 50.
    pub live_batches: Vec<BatchStatus>,
    /// The batches that have ended within the last hour, the last one first, at most 50.
    #[serde(default)]
    pub ended_batches: Vec<BatchStatus>,
    /// Lines a second that the process that answers wrote over the last half minute.
    pub lines_per_second: f64,
    pub budget: BudgetStatus,
    /// Which answers are kept to be given to equal requests. `null` where nothing is reused, or the
    /// database does not answer.
    #[serde(default)]
    pub reuse: Option<CacheStatus>,
    /// What somebody must mend, in words.
    #[serde(default)]
    pub alarms: Vec<String>,
}

#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DatabaseStatus {
    /// `sqlite` or `postgres`.
    pub engine: String,
    /// Whether it answers. Where it does not, what is read from it is left out.
    pub answers: bool,
}

/// A process with a lease.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReplicaStatus {
    pub name: String,
    pub started_at: i64,
    /// How long its lease lasts if it is not renewed; less than 0 once it ran out.
    pub lease_seconds_left: f64,
    /// Whether it is the process that answers.
    pub answers: bool,
    /// The hash of the configuration that it runs by, as in `configuration`; `null`: it has not
    /// said so yet. Processes with different ones run by different configurations.
    #[serde(default)]
    pub configuration: Option<String>,
    /// When it read that.
    #[serde(default)]
    pub loaded_at: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UpstreamStatus {
    pub name: String,
    /// `up`, `down`, `ejected` (it refuses our key or account), `disabled`, or `unknown`: no call
    /// to it has ended yet in the process that answers.
    pub state: String,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    /// Calls that the process that answers has in flight.
    pub in_flight: usize,
    /// How many it may have: its part of the limit.
    pub share: usize,
    /// How many all processes may have together.
    pub limit: usize,
    /// Who has enabled or disabled it at run time: the id of a key, or words. `null`: it is as the
    /// configuration has it.
    #[serde(default)]
    pub changed_by: Option<String>,
    /// When that was.
    #[serde(default)]
    pub changed_at: Option<i64>,
    /// Where an operator has disabled it: the processes that may have calls in flight there.
    #[serde(default)]
    pub waits_for: Vec<UndrainedReplica>,
    /// Its models that take no lines now, or that are being tried with one.
    #[serde(default)]
    pub closed: Vec<ClosedModelStatus>,
    /// Its keys, where it has several.
    #[serde(default)]
    pub keys: Vec<KeyStatus>,
}

/// A key of several that an upstream has.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyStatus {
    /// The variable or the file that holds it.
    pub name: String,
    /// `up`, `down`, or `ejected`: it is refused or its account is to be paid, and calls are made
    /// with the others.
    pub state: String,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    /// When a line is tried with it; `null` where it is up.
    pub until: Option<i64>,
    /// Calls that the process that answers has in flight.
    pub in_flight: usize,
}

/// A model at an upstream that takes no lines now, or that is being tried with one.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ClosedModelStatus {
    /// What the upstream calls the model.
    pub model: String,
    /// By which of the upstream's keys, where it has several.
    #[serde(default)]
    pub key: Option<String>,
    /// `limited`, `unavailable`, `failing`, `key_refused`, `refused`, `unpaid` or `misdirected`.
    pub reason: String,
    /// Why, in words.
    pub cause: String,
    /// When a line is tried.
    pub until: i64,
}

/// A limit on requests or tokens in a time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RateLimitStatus {
    /// What it is of: `upstream`, `key`, `model`, `route` or `tenant`.
    pub scope: String,
    /// The name of the upstream, model or tenant, `UPSTREAM by KEY`, or `MODEL at UPSTREAM` of a
    /// route.
    pub name: String,
    /// `requests`, `tokens`, `input_tokens` or `output_tokens`.
    pub r#type: String,
    pub limit: u64,
    /// How long the time is.
    pub period_seconds: f64,
    /// Used in the trailing period over the limit, over all processes, as far as the process that
    /// answers knows.
    pub saturation: f64,
    /// Reserved by the calls that the process that answers has in flight.
    pub reserved: u64,
    /// `limit`: it is spent, and keeps lines from what it is of. `null`: it does not.
    pub reason: Option<String>,
    /// When lines may be sent again, where it keeps them.
    pub until: Option<i64>,
}

/// How many calls at once a model at an upstream takes, where that is found out.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WindowStatus {
    pub upstream: String,
    /// What the upstream calls the model, or the pattern that its models have in common.
    pub model: String,
    /// Calls at once over all processes.
    pub window: u32,
    /// The most that are tried.
    pub limit: u32,
    /// Calls that the process that answers has in flight.
    pub in_flight: usize,
    /// How many it may have: its part of the window.
    pub share: usize,
    /// Grows with each change.
    pub generation: u64,
    /// Of the last change: `start`, `growth`, `no_gain`, `knee`, `probe`, `refused`, `cooldown`,
    /// `slow_start`, `ceiling`, `queue`, `cache`, `preemption` or `yield`.
    pub reason: String,
}

/// What was decided of a batch whose lines go to a higher tier only where they would be late.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LateStatus {
    pub batch_id: String,
    pub tenant: String,
    /// The `[[models]]` entry.
    pub model: String,
    /// Whether the batch would miss its window at the present rate of the lowest tier.
    pub late: bool,
    /// Lines that are still to be sent.
    pub lines: u64,
    /// How many of them the lowest tier would not send in time.
    pub deficit: u64,
    /// Lines of the tenant that the lowest tier answers in a second.
    pub lines_per_second: f64,
    /// The 95th percentile of how long a call of the lowest tier takes.
    pub latency_seconds: f64,
    /// Until the window ends.
    pub seconds_left: f64,
    /// Calls that went to a higher tier so far.
    pub spilled: u64,
}

/// A tenant.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TenantStatus {
    pub tenant: String,
    /// Its part of the fair share.
    pub weight: u32,
    /// Calls that the process that answers has in flight.
    pub in_flight: usize,
    /// How many it may have: its part of the limit. `null`, as the next, where there is no limit.
    pub share: Option<usize>,
    /// How many all processes may have together.
    pub limit: Option<usize>,
    /// Lines that the process that answers has in hand and could send.
    pub ready: usize,
    /// Lines there that wait for another attempt.
    pub waiting: usize,
    /// What such lines wait for: `turn` (others come first, or no place is free), `concurrency` (it
    /// has as many calls as it may have), `share` (other processes have them all), or `limit` (a
    /// rate limit of its own is spent). `null`: there are none.
    pub waits_for: Option<String>,
    /// When that is over, where it is known.
    pub until: Option<i64>,
    /// Requests of its batches that run, and estimated input tokens, over all processes. `null`
    /// where the database does not answer.
    pub enqueued_requests: Option<u64>,
    pub enqueued_tokens: Option<u64>,
    /// How many of them there may be. `null`: any number.
    pub max_enqueued_requests: Option<u64>,
    pub max_enqueued_tokens: Option<u64>,
    /// Bytes of its files. `null` where the database does not answer.
    pub stored_bytes: Option<u64>,
    /// How many they may have. `null`: any number.
    pub max_storage_bytes: Option<u64>,
}

/// A model. `*` stands for the limit of all models without one of their own, `other` for the
/// lines of models that nobody has named.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ModelStatus {
    pub model: String,
    /// Whether it is a task, which its models do together. Its calls count for the limits of these
    /// models, too.
    #[serde(default)]
    pub task: bool,
    /// Calls that the process that answers has in flight; `null`, as the next two, where the
    /// model has no limit of its own.
    pub in_flight: Option<usize>,
    /// How many it may have: its part of the limit.
    pub share: Option<usize>,
    /// How many all processes may have together.
    pub limit: Option<usize>,
    /// Which of its routes takes the next line: `least_busy` and so on; `null` where the
    /// configuration does not name the model.
    #[serde(default)]
    pub balance: Option<String>,
    /// When lines go to the routes of the next tier: `closed`, `full` or `late`.
    #[serde(default)]
    pub spill: Option<String>,
    /// Where its lines go, as the process that answers sees it: the lowest tier first.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    /// Units of work (up to 512 lines each) that nobody holds, over all processes.
    pub waiting_units: i64,
    /// Units that a process holds.
    pub leased_units: i64,
    /// The age of the oldest batch with such a unit.
    pub oldest_seconds: f64,
    /// Lines a second that the process that answers wrote over the last half minute.
    pub lines_per_second: f64,
}

/// A way of a model's lines to an upstream.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RouteStatus {
    pub upstream: String,
    /// What the upstream calls the model; `null`: what the line calls it.
    pub model: Option<String>,
    pub tier: u32,
    pub weight: u32,
    /// Calls that the process that answers has in flight by this route; `null`, as the next two,
    /// where the route has no limit of its own.
    pub in_flight: Option<usize>,
    /// How many it may have: its part of the limit.
    pub share: Option<usize>,
    /// How many all processes may have together.
    pub limit: Option<usize>,
    /// Why no line goes by this route now: `disabled` (the configuration or an operator says so),
    /// `ejected` (the upstream refuses our key or account), `down`, `cooldown` (it asked to be left
    /// alone), `limit` (a rate limit is spent), `full`, or `tier` (a lower tier takes the lines).
    /// `null`: it takes lines.
    pub skipped: Option<String>,
    /// When a line is tried there, where that is known.
    pub until: Option<i64>,
    /// How lines of `/v1/embeddings` share calls by this route; `null`: they do not.
    #[serde(default)]
    pub pack: Option<PackStatus>,
}

/// How lines share calls by a route.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PackStatus {
    /// Inputs that a call may have.
    pub inputs_max: usize,
    /// Calls of lines that may share one, since the process that answers has read its
    /// configuration; those of a single line included.
    pub calls: u64,
    /// The lines of these calls.
    pub lines: u64,
    /// How many lines a call had, on average. `null`: there was no call.
    pub lines_per_call: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BatchStatus {
    pub id: String,
    pub tenant: String,
    /// The key that it was created with: an id that `nightshift keys list` shows, `bootstrap`, or
    /// `null` where no key was needed.
    #[serde(default)]
    pub key_id: Option<String>,
    pub status: String,
    /// The model that all its lines name.
    pub model: Option<String>,
    pub total: i64,
    /// Lines with an outcome, without those that a cancellation left out.
    pub done: i64,
    pub failed: i64,
    /// Over the last minute as far as there were looks before, else since it began; of an ended
    /// batch, from its beginning to its end; over all processes.
    pub lines_per_second: f64,
    /// When the rest is done at that rate; `null` where nothing moves, or the batch has ended.
    pub eta_seconds: Option<f64>,
    pub created_at: i64,
    /// When its first lines could be sent; `null` where it never came to that.
    #[serde(default)]
    pub in_progress_at: Option<i64>,
    /// When its window ends.
    pub expires_at: Option<i64>,
    /// `null`: it has not ended.
    #[serde(default)]
    pub ended_at: Option<i64>,
}

/// Bytes of requests and answers that the process that answers holds in memory.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BudgetStatus {
    pub used_bytes: usize,
    pub limit_bytes: usize,
}

/// Shows how things stand, for operators.
///
/// Where keys are needed, it needs one of the scope `admin`.
#[utoipa::path(
    get,
    path = "/admin/status",
    operation_id = "status",
    tag = "Operators",
    responses(
        (status = 200, description = "How things stand.", body = Status),
        (status = 403, description = "The key has not the scope `admin`.", body = error::Envelope),
    ),
)]
pub async fn status(State(api): State<Api>, _: Admin) -> Json<Status> {
    let now_ms = api.clock.now_ms();
    let overview = api.snapshots.overview(&api.store, now_ms).await;
    let since_ms = now_ms - ENDED_WITHIN_MS;
    let batches = match &overview {
        Some(_) => {
            api.snapshots
                .batches(&api.store, since_ms, BATCHES_MAX)
                .await
        }
        None => None,
    };
    let process = api.snapshots.process();
    let rates = metrics().rates();
    let engine = match api.store.engine() {
        Engine::Sqlite => "sqlite",
        Engine::Postgres => "postgres",
    };
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: seconds(now_ms),
        database: DatabaseStatus {
            engine: engine.to_owned(),
            answers: batches.is_some(),
        },
        configuration: api.reload.loaded(),
        models: models(&process, overview.as_deref(), &rates, seconds(now_ms)),
        // Not `sum`: of nothing, that is -0.0.
        lines_per_second: rates.iter().fold(0.0, |sum, (_, rate)| sum + rate),
        budget: BudgetStatus {
            used_bytes: process.budget_used,
            limit_bytes: process.budget_limit,
        },
        ..Status::default()
    };
    if let Some(overview) = overview {
        let replicas = overview.replicas.iter();
        status.replicas = replicas
            .map(|replica| {
                let answers = process.token.as_deref() == Some(replica.token.as_str());
                let own = answers.then_some(&status.configuration);
                replica_status(replica, own)
            })
            .collect();
        status.reuse = cache::of_status(&api, &overview.kept);
        let statuses = overview.statuses.iter();
        status.batches = statuses
            .map(|(status, count)| (status.as_str().to_owned(), *count))
            .collect();
    }
    let (live, ended) = batches.unwrap_or_default();
    let rates = api.snapshots.rates(&live, now_ms);
    status.live_batches = live
        .into_iter()
        .zip(rates)
        .map(|(batch, rate)| batch_status(batch, rate))
        .collect();
    status.ended_batches = ended
        .into_iter()
        .map(|batch| {
            let rate = snapshots::rate_of_ended(&batch);
            batch_status(batch, rate)
        })
        .collect();
    status.alarms.clone_from(&process.alarms);
    status.rate_limits = rate_limits(&process, status.now);
    status.windows = windows(&process);
    status.late = late(&process);
    status.tenants = tenants(&api, &process, status.now).await;
    let waits_for = waits_for(&api, &process).await;
    status.upstreams = upstreams(process, waits_for, status.now);
    Json(status)
}

/// Who may have calls in flight at each upstream that an operator has disabled.
async fn waits_for(api: &Api, process: &ProcessSnapshot) -> HashMap<String, Vec<UndrainedReplica>> {
    let mut all = HashMap::new();
    for upstream in &process.upstreams {
        let is_disabled = upstream.state == "disabled";
        if let Some(set) = upstream.set.as_ref().filter(|_| is_disabled) {
            let undrained = api
                .snapshots
                .undrained(&api.store, &upstream.name, set.at_ms)
                .await;
            let undrained = undrained.into_iter().flatten().map(Into::into);
            all.insert(upstream.name.clone(), undrained.collect());
        }
    }
    all
}

fn upstreams(
    process: ProcessSnapshot,
    mut waits_for: HashMap<String, Vec<UndrainedReplica>>,
    now: i64,
) -> Vec<UpstreamStatus> {
    let upstreams = process.upstreams.into_iter();
    upstreams
        .map(|upstream| UpstreamStatus {
            waits_for: waits_for.remove(&upstream.name).unwrap_or_default(),
            name: upstream.name,
            state: upstream.state.to_owned(),
            cause: upstream.cause,
            in_flight: upstream.in_flight,
            share: upstream.share,
            limit: upstream.limit,
            changed_at: upstream.set.as_ref().map(|set| seconds(set.at_ms)),
            changed_by: upstream.set.map(|set| set.by),
            closed: upstream
                .closed
                .into_iter()
                .map(|model| ClosedModelStatus {
                    model: model.model,
                    key: model.key,
                    reason: model.reason.to_owned(),
                    cause: model.cause,
                    until: now + i64::try_from(model.left.as_secs()).unwrap_or(0),
                })
                .collect(),
            keys: upstream
                .keys
                .into_iter()
                .map(|key| KeyStatus {
                    until: key
                        .cause
                        .as_ref()
                        .map(|_| now + i64::try_from(key.left.as_secs()).unwrap_or(0)),
                    name: key.name,
                    state: key.state.to_owned(),
                    cause: key.cause,
                    in_flight: key.in_flight,
                })
                .collect(),
        })
        .collect()
}

async fn tenants(api: &Api, process: &ProcessSnapshot, now: i64) -> Vec<TenantStatus> {
    let allowed = api.tenants.get();
    let mut all: Vec<TenantStatus> = process
        .tenants
        .iter()
        .map(|one| TenantStatus {
            tenant: one.tenant.clone(),
            in_flight: one.in_flight,
            share: one.calls.map(|[share, _]| share),
            ready: one.ready,
            waiting: one.waiting,
            waits_for: one.waits_for.map(str::to_owned),
            until: one
                .left
                .map(|left| now + i64::try_from(left.as_secs()).unwrap_or(0) + 1),
            ..TenantStatus::default()
        })
        .collect();
    for (name, _) in allowed.configured() {
        if name != ANY_OTHER && all.iter().all(|one| one.tenant != name) {
            all.push(TenantStatus {
                tenant: name.to_owned(),
                ..TenantStatus::default()
            });
        }
    }
    let names: Vec<&str> = all.iter().map(|one| &*one.tenant).collect();
    let held = api.snapshots.tenants(&api.store, &names).await;
    for one in &mut all {
        let allowance = allowed.of(&one.tenant);
        one.weight = allowance.weight;
        one.limit = allowance.concurrency;
        one.max_enqueued_requests = allowance.max_enqueued_requests;
        one.max_enqueued_tokens = allowance.max_enqueued_tokens;
        one.max_storage_bytes = allowance.max_storage_bytes;
        let Some(held) = &held else { continue };
        let held = held.get(&one.tenant).copied().unwrap_or_default();
        one.enqueued_requests = Some(held.enqueued.requests);
        one.enqueued_tokens = Some(held.enqueued.tokens);
        one.stored_bytes = Some(held.stored_bytes);
    }
    all
}

fn rate_limits(process: &ProcessSnapshot, now: i64) -> Vec<RateLimitStatus> {
    let limits = process.rate_limits.iter();
    limits
        .map(|limit| RateLimitStatus {
            scope: limit.scope.to_owned(),
            name: limit.name.clone(),
            r#type: limit.kind.to_owned(),
            limit: limit.limit,
            period_seconds: limit.period.as_secs_f64(),
            saturation: limit.saturation,
            reserved: limit.reserved,
            reason: limit.opens.map(|_| "limit".to_owned()),
            until: limit
                .opens
                .map(|opens| now + i64::try_from(opens.as_secs()).unwrap_or(0) + 1),
        })
        .collect()
}

fn windows(process: &ProcessSnapshot) -> Vec<WindowStatus> {
    let windows = process.windows.iter();
    windows
        .map(|window| WindowStatus {
            upstream: window.upstream.clone(),
            model: window.model.clone(),
            window: window.window,
            limit: window.most,
            in_flight: window.in_flight,
            share: window.share,
            generation: window.generation,
            reason: window.reason.to_owned(),
        })
        .collect()
}

fn late(process: &ProcessSnapshot) -> Vec<LateStatus> {
    let late = process.late.iter().take(LATE_MAX);
    late.map(|late| LateStatus {
        batch_id: late.batch.clone(),
        tenant: late.tenant.clone(),
        model: late.model.clone(),
        late: late.is_late,
        lines: late.lines.round() as u64,
        deficit: late.deficit.round() as u64,
        lines_per_second: late.rate,
        latency_seconds: late.latency.as_secs_f64(),
        seconds_left: late.left.as_secs_f64(),
        spilled: late.spilled,
    })
    .collect()
}

/// `own`: what the process that answers runs by, if the replica is that.
fn replica_status(replica: &ReplicaLease, own: Option<&Loaded>) -> ReplicaStatus {
    ReplicaStatus {
        name: replica.name.clone(),
        started_at: seconds(replica.started_at),
        lease_seconds_left: replica.lease_left_ms as f64 / 1000.0,
        answers: own.is_some(),
        configuration: own
            .map(|own| own.hash.clone())
            .or_else(|| replica.config_hash.clone()),
        loaded_at: own
            .map(|own| own.loaded_at)
            .or_else(|| replica.config_read_at.map(seconds)),
    }
}

fn route_status(route: &RouteSnapshot, now: i64) -> RouteStatus {
    let count = |place: usize| route.calls.map(|calls| calls[place]);
    let seconds = |left: Duration| i64::try_from(left.as_secs()).unwrap_or(0);
    RouteStatus {
        upstream: route.upstream.clone(),
        model: route.model.clone(),
        tier: route.tier,
        weight: route.weight,
        in_flight: count(0),
        share: count(1),
        limit: count(2),
        skipped: route.skipped.map(str::to_owned),
        until: route.left.map(|left| now + seconds(left)),
        pack: route.packed.map(|(inputs_max, calls, lines)| PackStatus {
            inputs_max,
            calls,
            lines,
            lines_per_call: (calls > 0).then(|| lines as f64 / calls as f64),
        }),
    }
}

/// What is known of each model, from wherever it is known.
fn models(
    process: &ProcessSnapshot,
    overview: Option<&Overview>,
    rates: &[(String, f64)],
    now: i64,
) -> Vec<ModelStatus> {
    let mut models: BTreeMap<&str, ModelStatus> = BTreeMap::new();
    for lane in &process.lanes {
        let model = models.entry(&lane.model).or_default();
        model.task = lane.is_task;
        model.in_flight = Some(lane.in_flight);
        model.share = Some(lane.share);
        model.limit = Some(lane.limit);
        model.balance = Some(lane.balance.to_owned());
        model.spill = Some(lane.spill.to_owned());
        let routes = lane.routes.iter();
        model.routes = routes.map(|route| route_status(route, now)).collect();
    }
    for queue in overview.iter().flat_map(|overview| &overview.queues) {
        let model = models.entry(&queue.model).or_default();
        model.waiting_units = queue.waiting_units;
        model.leased_units = queue.leased_units;
        model.oldest_seconds = queue.oldest_seconds;
    }
    for (label, rate) in rates {
        models.entry(label).or_default().lines_per_second = *rate;
    }
    let named = models.into_iter();
    named
        .map(|(name, model)| ModelStatus {
            model: name.to_owned(),
            ..model
        })
        .collect()
}

fn batch_status(batch: ListedBatch, rate: f64) -> BatchStatus {
    let open = batch.counts.open();
    let moves = rate > 0.0 && batch.ended_at.is_none();
    BatchStatus {
        id: batch.id,
        tenant: batch.tenant,
        key_id: batch.key_id,
        status: batch.status.as_str().to_owned(),
        model: batch.model,
        total: batch.counts.total,
        done: batch.counts.completed + batch.counts.failed,
        failed: batch.counts.failed,
        lines_per_second: rate,
        eta_seconds: moves.then(|| open as f64 / rate),
        created_at: seconds(batch.created_at),
        in_progress_at: batch.in_progress_at.map(seconds),
        expires_at: batch.expires_at.map(seconds),
        ended_at: batch.ended_at.map(seconds),
    }
}

//! What is read when it is asked for: how things stand, rather than what has happened. Made anew
//! for each look, so that what is gone is not shown any more.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::process::{self, Process};
use super::registry::{Catalogue, Listing, counted, metrics};

type Float = Gauge<f64, std::sync::atomic::AtomicU64>;

/// How things stand.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What the database answered. `None` where it did not answer.
    pub database: Option<Database>,
    pub process: ProcessSnapshot,
}

/// How things stand in this process.
#[derive(Clone, Debug, Default)]
pub struct ProcessSnapshot {
    /// The token of its lease, where it works. Not to be shown.
    pub token: Option<std::sync::Arc<str>>,
    pub upstreams: Vec<UpstreamSnapshot>,
    pub lanes: Vec<Lane>,
    pub rate_limits: Vec<RateSnapshot>,
    pub windows: Vec<WindowSnapshot>,
    /// Batches that would miss their window, and those of which lines went to a higher tier, where
    /// models spill late. The one with the least time left first.
    pub late: Vec<LateSnapshot>,
    /// Those that wait for nothing but their turn first, in the order of their turns.
    pub tenants: Vec<TenantSnapshot>,
    pub budget_used: usize,
    pub budget_limit: usize,
    /// What somebody must mend, in words.
    pub alarms: Vec<String>,
}

/// What the database says of the work of all processes.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// Batches in each state that is not final.
    pub batches: Vec<(&'static str, i64)>,
    pub queue: Vec<QueueOfModel>,
    /// Processes with a lease.
    pub replicas: usize,
    /// Answers that are kept to be given to equal requests, and their bytes.
    pub kept_answers: i64,
    pub kept_bytes: i64,
}

/// The units of one model that are not done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueOfModel {
    /// One of a bounded number: see [`super::labels::OTHER`].
    pub model: String,
    pub waiting_units: i64,
    pub leased_units: i64,
    /// Since the oldest batch with such a unit was created.
    pub oldest_seconds: f64,
    /// How much of its window the batch with such a unit has used that is nearest to its end.
    pub window_used: f64,
}

/// How an upstream is, as this process sees it.
#[derive(Clone, Debug)]
pub struct UpstreamSnapshot {
    pub name: String,
    /// `unknown`, `up`, `down`, `ejected` or `disabled`.
    pub state: &'static str,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    pub in_flight: usize,
    /// How many this process may have.
    pub share: usize,
    /// How many all processes may have together.
    pub limit: usize,
    /// Whether the configuration says that lines are sent there.
    pub configured: bool,
    pub set: Option<SwitchSnapshot>,
    pub closed: Vec<ClosedSnapshot>,
    /// Its keys, where it has several.
    pub keys: Vec<KeySnapshot>,
}

/// A key of several that an upstream has.
#[derive(Clone, Debug)]
pub struct KeySnapshot {
    /// The variable or the file that holds it.
    pub name: String,
    /// `up`, `down` or `ejected`.
    pub state: &'static str,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    /// How long until a line is tried with it.
    pub left: Duration,
    pub in_flight: usize,
}

/// What an operator has set for an upstream.
#[derive(Clone, Debug)]
pub struct SwitchSnapshot {
    pub by: String,
    pub at_ms: i64,
}

/// A model at an upstream that takes no lines now, or that is being tried with one.
#[derive(Clone, Debug)]
pub struct ClosedSnapshot {
    pub model: String,
    /// By which of the upstream's keys, where it has several.
    pub key: Option<String>,
    pub reason: &'static str,
    pub cause: String,
    pub left: Duration,
}

/// How a limit on requests or tokens in a time stands.
#[derive(Clone, Debug)]
pub struct RateSnapshot {
    /// `upstream`, `key`, `model`, `route` or `tenant`.
    pub scope: &'static str,
    /// Of the upstream, the model, the tenant, `UPSTREAM by KEY`, or `MODEL at UPSTREAM`.
    pub name: String,
    /// `requests`, `tokens`, `input_tokens` or `output_tokens`.
    pub kind: &'static str,
    pub limit: u64,
    pub period: Duration,
    /// Used in the trailing period over the limit, over all processes.
    pub saturation: f64,
    /// Reservations of this process's calls in flight.
    pub reserved: u64,
    /// How long until lines may be sent again, where the limit is spent.
    pub opens: Option<Duration>,
}

/// How a window of calls at once stands that is found out.
#[derive(Clone, Debug)]
pub struct WindowSnapshot {
    pub upstream: String,
    /// What the upstream calls the model, or the pattern that its models have in common.
    pub model: String,
    /// Calls at once over all processes, and the most that are tried.
    pub window: u32,
    pub most: u32,
    pub in_flight: usize,
    /// How many this process may have.
    pub share: usize,
    pub generation: u64,
    /// Of its last change.
    pub reason: &'static str,
}

/// What was decided of a batch in one lane, where lines go to a higher tier only if they would be
/// late otherwise.
#[derive(Clone, Debug)]
pub struct LateSnapshot {
    pub batch: String,
    pub tenant: String,
    /// As the lane is called.
    pub model: String,
    /// Whether it would miss its window at the present rate.
    pub is_late: bool,
    /// Lines that this process has to send.
    pub lines: f64,
    /// Those of them that the lowest tier would not send in time.
    pub deficit: f64,
    /// Lines a second that the lowest tier answers of the tenant in this process.
    pub rate: f64,
    /// The 95th percentile of how long a call of the lowest tier takes.
    pub latency: Duration,
    pub left: Duration,
    /// Calls that went to a higher tier so far.
    pub spilled: u64,
}

/// A tenant that has anything to send in this process.
#[derive(Clone, Debug)]
pub struct TenantSnapshot {
    pub tenant: String,
    pub in_flight: usize,
    /// This process's part of the limit on calls at once, and the limit, where there is one.
    pub calls: Option<[usize; 2]>,
    /// Lines in hand that could be sent, and that wait for another attempt.
    pub ready: usize,
    pub waiting: usize,
    /// `turn`, `concurrency`, `share` or `limit`. `None`: it has no line that could be sent.
    pub waits_for: Option<&'static str>,
    /// How long until that is over, where it is known.
    pub left: Option<Duration>,
}

/// Calls in flight that count against one model's limit. `*` stands for all models without one
/// of their own.
#[derive(Clone, Debug)]
pub struct Lane {
    pub model: String,
    /// Whether it is a task, and no model.
    pub is_task: bool,
    pub in_flight: usize,
    /// How many this process may have.
    pub share: usize,
    /// How many all processes may have together.
    pub limit: usize,
    /// Which of its routes takes the next line, and when lines go to the next tier.
    pub balance: &'static str,
    pub spill: &'static str,
    /// The lowest tier first.
    pub routes: Vec<RouteSnapshot>,
}

/// A route of a model, and why lines do not go by it.
#[derive(Clone, Debug)]
pub struct RouteSnapshot {
    pub upstream: String,
    /// What the upstream calls the model; `None`: what the line calls it.
    pub model: Option<String>,
    pub tier: u32,
    pub weight: u32,
    /// Calls in flight, this process's part of the limit, and the limit, where the route has one.
    pub calls: Option<[usize; 3]>,
    /// `ejected`, `down`, `cooldown`, `limit`, `full` or `tier`; `None`: it takes lines.
    pub skipped: Option<&'static str>,
    /// How long until a line is tried there, where that is known.
    pub left: Option<Duration>,
    /// How many inputs a call may have, how many calls there were, and of how many lines, where
    /// lines share calls.
    pub packed: Option<(usize, u64, u64)>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Model {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelState {
    model: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Upstream {
    upstream: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamModel {
    upstream: String,
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Tenant {
    tenant: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RateLabels {
    scope: &'static str,
    name: String,
    r#type: &'static str,
    period_seconds: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamState {
    upstream: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Key {
    upstream: String,
    key: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeyState {
    upstream: String,
    key: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

/// All metrics of this process in the OpenMetrics text format.
///
/// # Errors
/// When the text cannot be written, which does not happen with a string.
pub fn exposition(snapshot: &Snapshot) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(16 << 10);
    encode_registry(&mut text, metrics().registry())?;
    encode_registry(&mut text, &list(snapshot, process::read()).registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// All metrics that there are: those that are counted, and those that are read when somebody asks.
#[must_use]
pub fn catalogue() -> Catalogue {
    let full = Process {
        cpu_seconds: Some(0.0),
        resident_bytes: Some(0),
        open_fds: Some(0),
    };
    let snapshot = Snapshot {
        database: Some(Database::default()),
        ..Snapshot::default()
    };
    let mut all = counted();
    all.extend(list(&snapshot, full).catalogue);
    all
}

fn list(snapshot: &Snapshot, process: Process) -> Listing {
    let mut list = Listing::default();
    list.add(
        "nightshift_database_up",
        "Whether the database answered: 1 or 0. Where it is 0, what is read from it is left out.",
        gauge(f64::from(u8::from(snapshot.database.is_some()))),
    );
    if let Some(database) = &snapshot.database {
        list_database(&mut list, database);
    }
    let of_process = &snapshot.process;
    list_upstreams(&mut list, &of_process.upstreams);
    list_keys(&mut list, &of_process.upstreams);
    list_lanes(&mut list, &of_process.lanes, &of_process.late);
    list_tenants(&mut list, &of_process.tenants);
    list_rate_limits(&mut list, &of_process.rate_limits);
    list_windows(&mut list, &of_process.windows);
    list.add(
        "nightshift_alarms",
        "What somebody must mend before this process goes on with it: see alarms in /admin/status.",
        gauge(of_process.alarms.len() as f64),
    );
    list.add(
        "nightshift_budget_used_bytes",
        "Bytes of requests and answers held in memory.",
        gauge(of_process.budget_used as f64),
    );
    list.add(
        "nightshift_budget_limit_bytes",
        "Bytes of requests and answers that may be held in memory.",
        gauge(of_process.budget_limit as f64),
    );
    list_process(&mut list, process);
    list
}

fn list_database(list: &mut Listing, database: &Database) {
    let batches = Family::<Status, Gauge>::default();
    for &(status, count) in &database.batches {
        batches.get_or_create(&Status { status }).set(count);
    }
    list.add(
        "nightshift_batches",
        "Batches that have not ended, by status, over all processes.",
        batches,
    );
    list.add(
        "nightshift_reuse_answers",
        "Answers that are kept to be given to equal requests, over all processes.",
        gauge(database.kept_answers as f64),
    );
    list.add(
        "nightshift_reuse_bytes",
        "Bytes of the answers that are kept to be given to equal requests, as they are stored, over \
         all processes.",
        gauge(database.kept_bytes as f64),
    );
    let units = Family::<ModelState, Gauge>::default();
    let oldest = Family::<Model, Float>::default();
    let window_used = Family::<Model, Float>::default();
    for queue in &database.queue {
        let of_state = |state| ModelState {
            model: queue.model.clone(),
            state,
        };
        units
            .get_or_create(&of_state("waiting"))
            .set(queue.waiting_units);
        units
            .get_or_create(&of_state("leased"))
            .set(queue.leased_units);
        let model = queue.model.clone();
        oldest
            .get_or_create(&Model { model })
            .set(queue.oldest_seconds);
        let model = queue.model.clone();
        window_used
            .get_or_create(&Model { model })
            .set(queue.window_used);
    }
    list.add(
        "nightshift_queue_units",
        "Units of work (up to 512 lines each) that are not done, by model and state (waiting, \
         leased), over all processes.",
        units,
    );
    list.add(
        "nightshift_queue_oldest_seconds",
        "Age of the oldest batch with a line that is not done, by model, over all processes.",
        oldest,
    );
    list.add(
        "nightshift_queue_window_used_ratio",
        "How much of its window the batch with a line that is not done has used that is nearest to \
         its end, by model: 1 is the end, over all processes.",
        window_used,
    );
    list.add(
        "nightshift_replicas",
        "Processes that hold a lease.",
        gauge(database.replicas as f64),
    );
}

fn list_upstreams(list: &mut Listing, upstreams: &[UpstreamSnapshot]) {
    let states = Family::<UpstreamState, Gauge>::default();
    let [in_flight, share, limit] = [(); 3].map(|()| Family::<Upstream, Gauge>::default());
    for upstream in upstreams {
        let labels = Upstream {
            upstream: upstream.name.clone(),
        };
        in_flight
            .get_or_create(&labels)
            .set(whole(upstream.in_flight));
        share.get_or_create(&labels).set(whole(upstream.share));
        limit.get_or_create(&labels).set(whole(upstream.limit));
        // Nothing is known against an upstream that was not called yet: it must raise no alarm.
        let shown = match upstream.state {
            "unknown" => "up",
            state => state,
        };
        for state in ["up", "down", "ejected", "disabled"] {
            let labels = UpstreamState {
                upstream: upstream.name.clone(),
                state,
            };
            let is_so = i64::from(state == shown);
            states.get_or_create(&labels).set(is_so);
        }
    }
    list.add(
        "nightshift_upstream_state",
        "1 for the state that an upstream is in (up, also before its first call; down; ejected: it \
         refuses our key; or disabled: the configuration or an operator says so), else 0.",
        states,
    );
    list.add(
        "nightshift_upstream_in_flight",
        "Calls that this process has in flight, by upstream.",
        in_flight,
    );
    list.add(
        "nightshift_upstream_share",
        "Calls that this process may have in flight: its part of the limit, by upstream.",
        share,
    );
    list.add(
        "nightshift_upstream_limit",
        "Calls that all processes may have in flight together, by upstream.",
        limit,
    );
}

fn list_keys(list: &mut Listing, upstreams: &[UpstreamSnapshot]) {
    let states = Family::<KeyState, Gauge>::default();
    let in_flight = Family::<Key, Gauge>::default();
    let keys = upstreams.iter().flat_map(|upstream| {
        let keys = upstream.keys.iter();
        keys.map(|key| (upstream.name.clone(), key))
    });
    for (upstream, key) in keys {
        for state in ["up", "down", "ejected"] {
            let labels = KeyState {
                upstream: upstream.clone(),
                key: key.name.clone(),
                state,
            };
            let is_so = i64::from(state == key.state);
            states.get_or_create(&labels).set(is_so);
        }
        let labels = Key {
            upstream,
            key: key.name.clone(),
        };
        in_flight.get_or_create(&labels).set(whole(key.in_flight));
    }
    list.add(
        "nightshift_upstream_key_state",
        "1 for the state that a key is in (up; down; or ejected: it is refused or its account is to be \
         paid), else 0. Of upstreams with several keys, by the variable or file that holds the key.",
        states,
    );
    list.add(
        "nightshift_upstream_key_in_flight",
        "Calls that this process has in flight, by key, of upstreams with several keys.",
        in_flight,
    );
}

fn list_late(list: &mut Listing, late: &[LateSnapshot]) {
    let (batches, deficit) = (
        Family::<Model, Gauge>::default(),
        Family::<Model, Float>::default(),
    );
    for verdict in late {
        let labels = Model {
            model: verdict.model.clone(),
        };
        let count = i64::from(verdict.is_late);
        batches.get_or_create(&labels).inc_by(count);
        let lines = if verdict.is_late {
            verdict.deficit
        } else {
            0.0
        };
        deficit.get_or_create(&labels).inc_by(lines);
    }
    list.add(
        "nightshift_late_batches",
        "Batches that would miss their window at the present rate of the lowest tier, as this \
         process sees it, by model.",
        batches,
    );
    list.add(
        "nightshift_late_lines",
        "Lines that this process has to send and that the lowest tier would not send in time, by \
         model.",
        deficit,
    );
}

fn list_lanes(list: &mut Listing, lanes: &[Lane], late: &[LateSnapshot]) {
    let [in_flight, share, limit] = [(); 3].map(|()| Family::<Model, Gauge>::default());
    for lane in lanes {
        let labels = Model {
            model: lane.model.clone(),
        };
        in_flight.get_or_create(&labels).set(whole(lane.in_flight));
        share.get_or_create(&labels).set(whole(lane.share));
        limit.get_or_create(&labels).set(whole(lane.limit));
    }
    list_late(list, late);
    list.add(
        "nightshift_model_in_flight",
        "Calls that this process has in flight, by model. Calls for a task count for the task and \
         for the model that does it.",
        in_flight,
    );
    list.add(
        "nightshift_model_share",
        "Calls that this process may have in flight: its part of the limit, by model.",
        share,
    );
    list.add(
        "nightshift_model_limit",
        "Calls that all processes may have in flight together, by model.",
        limit,
    );
}

/// Tenants whose calls at once are limited, and that have anything to send.
fn list_tenants(list: &mut Listing, tenants: &[TenantSnapshot]) {
    let [in_flight, share, limit] = [(); 3].map(|()| Family::<Tenant, Gauge>::default());
    for tenant in tenants {
        let Some([of_process, of_all]) = tenant.calls else {
            continue;
        };
        let labels = Tenant {
            tenant: tenant.tenant.clone(),
        };
        let calls = whole(tenant.in_flight);
        in_flight.get_or_create(&labels).set(calls);
        share.get_or_create(&labels).set(whole(of_process));
        limit.get_or_create(&labels).set(whole(of_all));
    }
    list.add(
        "nightshift_tenant_in_flight",
        "Calls that this process has in flight, by tenant whose calls are limited, of those that \
         have anything to send.",
        in_flight,
    );
    list.add(
        "nightshift_tenant_share",
        "Calls that this process may have in flight: its part of the limit, by tenant.",
        share,
    );
    list.add(
        "nightshift_tenant_limit",
        "Calls that all processes may have in flight together, by tenant.",
        limit,
    );
}

fn list_rate_limits(list: &mut Listing, limits: &[RateSnapshot]) {
    let saturation = Family::<RateLabels, Float>::default();
    let reserved = Family::<RateLabels, Gauge>::default();
    for limit in limits {
        let labels = RateLabels {
            scope: limit.scope,
            name: limit.name.clone(),
            r#type: limit.kind,
            period_seconds: limit.period.as_secs(),
        };
        saturation.get_or_create(&labels).set(limit.saturation);
        let amount = i64::try_from(limit.reserved).unwrap_or(i64::MAX);
        reserved.get_or_create(&labels).set(amount);
    }
    list.add(
        "nightshift_limit_saturation",
        "How much of a rate limit the trailing period has used, by scope, name, type and period: 1 \
         is all of it, over all processes.",
        saturation,
    );
    list.add(
        "nightshift_limit_reserved",
        "What this process's calls in flight have reserved of a rate limit, by scope, name, type \
         and period.",
        reserved,
    );
}

fn list_windows(list: &mut Listing, windows: &[WindowSnapshot]) {
    let sizes = Family::<UpstreamModel, Gauge>::default();
    for window in windows {
        let labels = UpstreamModel {
            upstream: window.upstream.clone(),
            model: window.model.clone(),
        };
        sizes.get_or_create(&labels).set(window.window.into());
    }
    list.add(
        "nightshift_auto_window",
        "Calls at once that all processes may make, where that is found out, by upstream and model.",
        sizes,
    );
}

fn list_process(list: &mut Listing, process: Process) {
    if let Some(seconds) = process.cpu_seconds {
        let counter = Counter::<f64, std::sync::atomic::AtomicU64>::default();
        counter.inc_by(seconds);
        list.add(
            "process_cpu_seconds_total",
            "Processor time that the process has used.",
            counter,
        );
    }
    if let Some(bytes) = process.resident_bytes {
        list.add(
            "process_resident_memory_bytes",
            "Memory of the process that is in RAM.",
            gauge(bytes as f64),
        );
    }
    if let Some(open) = process.open_fds {
        list.add(
            "process_open_fds",
            "File descriptors that the process has open.",
            gauge(open as f64),
        );
    }
}

fn gauge(value: f64) -> Float {
    let gauge = Float::default();
    gauge.set(value);
    gauge
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

//! What is counted while it happens.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::handles::{CallSeconds, ModelMetrics, PackMetrics, ReuseMetrics, UpstreamMetrics};
use super::rate_meter::RateMeter;

/// The kinds of database errors.
const OUTAGE: &str = "outage";
const OTHER_ERROR: &str = "other";

/// Upper ends of buckets: how long an answer to a client, or a flush, takes.
const SHORT_SECONDS: [f64; 11] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];
/// How long a call to a model server takes.
const CALL_SECONDS: [f64; 14] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamOutcome {
    upstream: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamCause {
    upstream: String,
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamModel {
    upstream: String,
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelOutcome {
    model: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelKind {
    model: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelCause {
    model: String,
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorKind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ChangeReason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct From {
    from: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// What is counted while it happens: see [`metrics`].
#[derive(Debug)]
pub struct Metrics {
    http_requests: Family<HttpLabels, Counter>,
    http_seconds: Histograms<RouteLabels>,
    batches_ended: Family<Ended, Counter>,
    lines: Family<ModelOutcome, Counter>,
    spilled: Family<OfModel, Counter>,
    tokens: Family<ModelKind, Counter>,
    cost: Family<OfModel, Counter<f64, AtomicU64>>,
    unknown_costs: Family<ModelCause, Counter>,
    calls: Family<UpstreamOutcome, Counter>,
    call_seconds: Histograms<UpstreamModel>,
    first_token_seconds: Histograms<UpstreamModel>,
    packed_calls: Family<UpstreamModel, Counter>,
    packed_lines: Family<UpstreamModel, Counter>,
    retries: Family<UpstreamCause, Counter>,
    window_changes: Family<ChangeReason, Counter>,
    reuse_lines: Family<From, Counter>,
    reuse_unkept: Counter,
    flush_lines: Histogram,
    flush_bytes: Histogram,
    flush_seconds: Histogram,
    flush_failures: Counter,
    takeovers: Counter,
    leases_lost: Counter,
    clock_ahead: Gauge<f64, AtomicU64>,
    store_errors: Family<ErrorKind, Counter>,
    models: Mutex<HashMap<String, Arc<ModelMetrics>>>,
    registry: Registry,
    catalogue: Catalogue,
}

/// The names of metrics as they are exposed, each with its type and what it says.
pub type Catalogue = Vec<(String, String, &'static str)>;

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The metrics of this process.
#[must_use]
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// The metrics that are counted.
pub(super) fn counted() -> Catalogue {
    METRICS.catalogue.clone()
}

fn short() -> Histogram {
    Histogram::new(SHORT_SECONDS)
}

fn long() -> Histogram {
    Histogram::new(CALL_SECONDS)
}

/// Registers metrics, and keeps a list of them.
#[derive(Default)]
pub(super) struct Listing {
    pub registry: Registry,
    pub catalogue: Catalogue,
}

impl Listing {
    /// `name` as it is exposed.
    pub fn add(&mut self, name: &str, help: &'static str, metric: impl Metric) {
        let of_type = metric.metric_type().as_str().to_owned();
        // What the format puts behind the name by itself.
        let suffix = match of_type.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let stem = name.strip_suffix(suffix).unwrap_or(name);
        // And a full stop behind the text.
        let help_text = help.strip_suffix('.').unwrap_or(help);
        self.registry.register(stem, help_text, metric);
        self.catalogue.push((name.to_owned(), of_type, help));
    }
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            http_requests: Family::default(),
            http_seconds: Family::new_with_constructor(short as fn() -> Histogram),
            batches_ended: Family::default(),
            lines: Family::default(),
            spilled: Family::default(),
            tokens: Family::default(),
            cost: Family::default(),
            unknown_costs: Family::default(),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(long as fn() -> Histogram),
            first_token_seconds: Family::new_with_constructor(long as fn() -> Histogram),
            packed_calls: Family::default(),
            packed_lines: Family::default(),
            retries: Family::default(),
            window_changes: Family::default(),
            reuse_lines: Family::default(),
            reuse_unkept: Counter::default(),
            flush_lines: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            flush_bytes: Histogram::new(exponential_buckets(1024.0, 4.0, 9)),
            flush_seconds: short(),
            flush_failures: Counter::default(),
            takeovers: Counter::default(),
            leases_lost: Counter::default(),
            clock_ahead: Gauge::default(),
            store_errors: Family::default(),
            models: Mutex::default(),
            registry: Registry::default(),
            catalogue: Catalogue::new(),
        };
        for kind in [OUTAGE, OTHER_ERROR] {
            // Shown from the start, so that the first error is seen as a rise.
            drop(metrics.store_errors.get_or_create(&ErrorKind { kind }));
        }
        let Listing {
            registry,
            catalogue,
        } = metrics.list();
        metrics.registry = registry;
        metrics.catalogue = catalogue;
        metrics
    }

    fn list(&self) -> Listing {
        let mut list = Listing::default();
        list.add(
            "nightshift_build_info",
            "The version that runs.",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        list.add(
            "nightshift_http_requests_total",
            "Requests answered by the API, by method, route and status.",
            self.http_requests.clone(),
        );
        list.add(
            "nightshift_http_request_duration_seconds",
            "Time from a request's head to its answer's head.",
            self.http_seconds.clone(),
        );
        list.add(
            "nightshift_batches_ended_total",
            "Batches that this process brought to their end, by their last status.",
            self.batches_ended.clone(),
        );
        list.add(
            "nightshift_lines_total",
            "Lines that this process wrote the outcome of, by model and outcome.",
            self.lines.clone(),
        );
        list.add(
            "nightshift_spilled_lines_total",
            "Calls that went to a higher tier because their lines would have been late otherwise \
             (spill = \"late\"), by model.",
            self.spilled.clone(),
        );
        list.add(
            "nightshift_tokens_total",
            "Tokens that answers reported, by model and kind; cached is a part of input, \
             reasoning of output.",
            self.tokens.clone(),
        );
        list.add(
            "nightshift_cost_total",
            "What calls cost whose lines this process wrote, in the currency of the prices, by \
             model: of all calls whose cost is known.",
            self.cost.clone(),
        );
        list.add(
            "nightshift_unknown_costs_total",
            "Calls whose cost is not known, by model and cause: unpriced where the price or the \
             usage is not known, lost where nobody has the answer.",
            self.unknown_costs.clone(),
        );
        list.add(
            "nightshift_upstream_calls_total",
            "Calls to model servers, by upstream and outcome.",
            self.calls.clone(),
        );
        list.add(
            "nightshift_upstream_call_duration_seconds",
            "Time from sending a call to the last byte of its answer, by upstream and model.",
            self.call_seconds.clone(),
        );
        list.add(
            "nightshift_upstream_first_token_seconds",
            "Time from sending a call to the first token of its streamed answer, by upstream and \
             model.",
            self.first_token_seconds.clone(),
        );
        list.add(
            "nightshift_packed_calls_total",
            "Calls of lines that may share one (pack), by upstream and model.",
            self.packed_calls.clone(),
        );
        list.add(
            "nightshift_packed_lines_total",
            "Lines of these calls, by upstream and model.",
            self.packed_lines.clone(),
        );
        list.add(
            "nightshift_retries_total",
            "Lines put back to be sent again, by upstream and cause.",
            self.retries.clone(),
        );
        list.add(
            "nightshift_auto_changes_total",
            "Changes of windows of calls at once that are found out, by reason.",
            self.window_changes.clone(),
        );
        list.add(
            "nightshift_reuse_lines_total",
            "Lines that may be answered by the answers to equal ones, by where their answers came \
             from: the store, a line of this process, or a call of their own.",
            self.reuse_lines.clone(),
        );
        list.add(
            "nightshift_reuse_unkept_total",
            "Answers that could not be written in time to be used again.",
            self.reuse_unkept.clone(),
        );
        self.list_engine(&mut list);
        list
    }

    fn list_engine(&self, list: &mut Listing) {
        list.add(
            "nightshift_flush_lines",
            "Lines written by one flush.",
            self.flush_lines.clone(),
        );
        list.add(
            "nightshift_flush_bytes",
            "Bytes of the lines of one flush, before compression.",
            self.flush_bytes.clone(),
        );
        list.add(
            "nightshift_flush_duration_seconds",
            "Time that one flush took until it was on disk.",
            self.flush_seconds.clone(),
        );
        list.add(
            "nightshift_flush_failures_total",
            "Tries to write a flush that failed; each is tried again.",
            self.flush_failures.clone(),
        );
        list.add(
            "nightshift_lease_takeovers_total",
            "Units taken over from processes that are gone.",
            self.takeovers.clone(),
        );
        list.add(
            "nightshift_leases_lost_total",
            "Units that this process lost to others while it was silent.",
            self.leases_lost.clone(),
        );
        list.add(
            "nightshift_clock_ahead_seconds",
            "By how much this machine's clock is ahead of the database's, which is used instead; \
             less than 0 where it is behind.",
            self.clock_ahead.clone(),
        );
        list.add(
            "nightshift_store_errors_total",
            "Errors of the database: outage where it may pass, else other.",
            self.store_errors.clone(),
        );
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A request was answered. `route` is a pattern, never a path that a client wrote.
    pub fn http_answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let method = ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"]
            .into_iter()
            .find(|known| *known == method)
            .unwrap_or(super::labels::OTHER);
        let labels = HttpLabels {
            method,
            route: route.to_owned(),
            status,
        };
        self.http_requests.get_or_create(&labels).inc();
        let labels = RouteLabels {
            method,
            route: labels.route,
        };
        let seconds = self.http_seconds.get_or_create(&labels);
        seconds.observe(took.as_secs_f64());
    }

    /// A batch came to its end: its last status.
    pub fn batch_ended(&self, status: &'static str) {
        self.batches_ended.get_or_create(&Ended { status }).inc();
    }

    /// A window of calls at once that is found out has changed.
    pub fn window_changed(&self, reason: &'static str) {
        let labels = ChangeReason { reason };
        self.window_changes.get_or_create(&labels).inc();
    }

    /// A flush is on disk.
    pub fn flushed(&self, lines: usize, bytes: usize, took: Duration) {
        self.flush_lines.observe(lines as f64);
        self.flush_bytes.observe(bytes as f64);
        self.flush_seconds.observe(took.as_secs_f64());
    }

    pub fn flush_failed(&self) {
        self.flush_failures.inc();
    }

    pub fn took_over(&self, units: u64) {
        self.takeovers.inc_by(units);
    }

    pub fn leases_lost(&self, units: usize) {
        self.leases_lost.inc_by(units as u64);
    }

    /// This process's clock was compared with the database's.
    pub fn clock_differs(&self, ahead_ms: i64) {
        self.clock_ahead.set(ahead_ms as f64 / 1000.0);
    }

    /// The database failed. `is_outage`: it may be there again later.
    pub fn store_failed(&self, is_outage: bool) {
        let kind = if is_outage { OUTAGE } else { OTHER_ERROR };
        self.store_errors.get_or_create(&ErrorKind { kind }).inc();
    }

    /// What is counted for a model; `label` is one of a bounded number.
    #[must_use]
    pub fn model(&self, label: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.get(label) {
            return known.clone();
        }
        let of_model = Arc::new(self.new_model(label));
        models.insert(label.to_owned(), of_model.clone());
        of_model
    }

    /// What is counted of calls that lines may share. `label` is one of a bounded number.
    #[must_use]
    pub fn packed(&self, upstream: &str, label: &str) -> PackMetrics {
        let labels = UpstreamModel {
            upstream: upstream.to_owned(),
            model: label.to_owned(),
        };
        PackMetrics {
            calls: self.packed_calls.get_or_create(&labels).clone(),
            lines: self.packed_lines.get_or_create(&labels).clone(),
        }
    }

    /// Lines a second that this process wrote lately, by model.
    #[must_use]
    pub fn rates(&self) -> Vec<(String, f64)> {
        let models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let rates = models.iter();
        rates
            .map(|(label, model)| (label.clone(), model.lately.per_second()))
            .collect()
    }

    /// What is counted for an upstream. `outcomes`: the label of each way in which a call can go;
    /// a label may be there more than once.
    #[must_use]
    pub fn upstream<const N: usize>(
        &self,
        name: &str,
        outcomes: [&'static str; N],
    ) -> UpstreamMetrics {
        let upstream = || name.to_owned();
        let calls = outcomes.map(|outcome| {
            self.calls.get_or_create_owned(&UpstreamOutcome {
                upstream: upstream(),
                outcome,
            })
        });
        let retries = outcomes.map(|cause| {
            self.retries.get_or_create_owned(&UpstreamCause {
                upstream: upstream(),
                cause,
            })
        });
        UpstreamMetrics {
            calls: Box::new(calls),
            retries: Box::new(retries),
        }
    }

    /// What is counted of reuse.
    #[must_use]
    pub fn reuse(&self) -> ReuseMetrics {
        let from = |from| self.reuse_lines.get_or_create_owned(&From { from });
        ReuseMetrics {
            stored: from("store"),
            shared: from("line"),
            sent: from("call"),
            unkept: self.reuse_unkept.clone(),
        }
    }

    /// How long calls for a model at an upstream take.
    #[must_use]
    pub fn call_seconds(&self, upstream: &str, label: &str) -> CallSeconds {
        let labels = UpstreamModel {
            upstream: upstream.to_owned(),
            model: label.to_owned(),
        };
        CallSeconds(self.call_seconds.get_or_create_owned(&labels))
    }

    /// How long streamed answers of a model at an upstream take to begin.
    pub(super) fn first_token_seconds(&self, upstream: &str, label: &str) -> CallSeconds {
        let labels = UpstreamModel {
            upstream: upstream.to_owned(),
            model: label.to_owned(),
        };
        CallSeconds(self.first_token_seconds.get_or_create_owned(&labels))
    }

    fn new_model(&self, label: &str) -> ModelMetrics {
        let line = |outcome| {
            self.lines.get_or_create_owned(&ModelOutcome {
                model: label.to_owned(),
                outcome,
            })
        };
        let tokens = |kind| {
            self.tokens.get_or_create_owned(&ModelKind {
                model: label.to_owned(),
                kind,
            })
        };
        let unknown_cost = |cause| {
            self.unknown_costs.get_or_create_owned(&ModelCause {
                model: label.to_owned(),
                cause,
            })
        };
        ModelMetrics {
            completed: line("completed"),
            failed: line("failed"),
            cancelled: line("cancelled"),
            expired: line("expired"),
            spilled: self.spilled.get_or_create_owned(&OfModel {
                model: label.to_owned(),
            }),
            input_tokens: tokens("input"),
            cached_tokens: tokens("cached"),
            output_tokens: tokens("output"),
            reasoning_tokens: tokens("reasoning"),
            cost: self.cost.get_or_create_owned(&OfModel {
                model: label.to_owned(),
            }),
            unpriced: unknown_cost("unpriced"),
            lost: unknown_cost("lost"),
            lately: RateMeter::default(),
        }
    }
}

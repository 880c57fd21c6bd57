//! What the process reports of itself: its log, on standard error, and its spans, where they are
//! exported.

mod otlp;
pub mod terminal;

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};

use crate::config::{Log, LogFormat, Telemetry};
use crate::metrics::trace;

pub use otlp::Exporter;

/// sqlx warns of parameters in a database's URL that it does not know, with their values: a
/// password behind a misspelled name would stand in the log.
const SECRETIVE: &str = "sqlx_postgres::options::parse=error";

/// Gives the log of this process another filter.
static REFILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

/// Has the log follow another filter from now on. Its format stays.
pub fn filter(log: &Log) {
    if let Some(refilter) = REFILTER.get() {
        refilter(filter_of(&log.filter));
    }
}

/// Begins to log. Only the first call in a process has an effect.
pub fn start(log: &Log) {
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter_of(&log.filter))
        // The library reports on standard error that the log cannot be written, and panics if that
        // fails, too: on a full disk the process would end.
        .log_internal_errors(false)
        .with_writer(|| terminal::Log);
    // Fails where a subscriber is set already, as in tests.
    let _ = match log.format {
        LogFormat::Text => {
            let logs = logs.with_ansi(console::colors_enabled_stderr());
            let logs = logs.with_filter_reloading();
            refilter_by(logs.reload_handle());
            logs.try_init()
        }
        LogFormat::Json => {
            let logs = logs.json().flatten_event(true).with_filter_reloading();
            refilter_by(logs.reload_handle());
            logs.try_init()
        }
    };
}

/// Remembers by what the filter of the log is replaced.
fn refilter_by<S: 'static>(handle: reload::Handle<EnvFilter, S>) {
    let refilter = move |filter| {
        // Fails where the log is gone.
        let _: Result<(), reload::Error> = handle.reload(filter);
    };
    let _: Result<(), _> = REFILTER.set(Box::new(refilter));
}

/// Begins to log, and to export spans where that is configured: then they are sent until the
/// exporter is shut down. Without, it is the same as [`start`].
///
/// # Errors
/// When spans cannot be exported as configured.
pub fn start_exporting(log: &Log, telemetry: &Telemetry) -> anyhow::Result<Option<Exporter>> {
    let Some(endpoint) = &telemetry.otlp_endpoint else {
        start(log);
        return Ok(None);
    };
    let exporter = Exporter::new(endpoint, telemetry)?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(exporter.tracer())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(trace::TARGET, LevelFilter::TRACE));
    let logs = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(|| terminal::Log);
    let logs = match log.format {
        LogFormat::Text => logs.with_ansi(console::colors_enabled_stderr()).boxed(),
        LogFormat::Json => logs.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter_of(&log.filter));
    refilter_by(handle);
    let logs = logs.with_filter(filter);
    // Fails where a subscriber is set already, as in tests.
    let _ = tracing_subscriber::registry()
        .with(spans)
        .with(logs)
        .try_init();
    Ok(Some(exporter))
}

fn filter_of(configured: &str) -> EnvFilter {
    let filter = EnvFilter::try_new(configured).unwrap_or_else(|_| EnvFilter::new("info"));
    match SECRETIVE.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

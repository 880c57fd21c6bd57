//! Logs, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// sqlx warns of parameters in a database's URL that it does not know, with their values: a
/// password behind a misspelled name would stand in the log.
const SECRETIVE: &str = "sqlx_postgres::options::parse=error";

/// Begins to log. Only the first call in a process has an effect.
pub fn start(log: &Log) {
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter(&log.filter))
        // It would tell of a log that cannot be written on standard error, and panic if that
        // cannot be written either: on a full disk the process would end.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    // Fails where a subscriber is set already, as in tests.
    let _ = match log.format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
}

fn filter(configured: &str) -> EnvFilter {
    let filter = EnvFilter::try_new(configured).unwrap_or_else(|_| EnvFilter::new("info"));
    match SECRETIVE.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

//! `[log]`: what is written to standard error.

use tracing_subscriber::EnvFilter;

use super::error::nearest;
use super::reader::Reader;

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// A `tracing` filter, such as `info` or `nightshift=debug`.
    pub filter: String,
    pub format: LogFormat,
}

/// How a line of the log is written: for people, or as one JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Log {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let filter = reader.take("filter").and_then(|item| {
            let filter = item.string()?;
            if EnvFilter::try_new(&filter).is_err() {
                item.fault("expected a filter such as info or nightshift=debug,sqlx=warn");
            }
            Some(filter)
        });
        let format = reader.take("format").and_then(|item| {
            let format = item.string()?;
            match format.as_str() {
                "text" => return Some(LogFormat::Text),
                "json" => return Some(LogFormat::Json),
                _ => {}
            }
            let known = nearest(&format, ["text", "json"]).unwrap_or_default();
            item.fault(format!("expected text or json; the nearest is {known}"));
            None
        });
        reader.finish();
        Self {
            filter: filter.unwrap_or_default(),
            format: format.unwrap_or(LogFormat::Text),
        }
    }
}

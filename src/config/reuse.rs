//! `[reuse]`: which answers are given again to equal requests.

use std::time::Duration;

use super::reader::Reader;
use crate::domain::reuse::{Mode, Terms};

/// What is forgotten sooner is of no use to anybody.
const TTL_MIN: Duration = Duration::from_secs(1);
/// An answer has one tenant; nothing wider is offered.
const SCOPE: &str = "tenant";

/// Reads `[reuse]`.
pub(super) fn read(mut reader: Reader<'_>) -> Terms {
    let mode = reader.take("mode").and_then(|item| {
        let name = item.string()?;
        let mode = Mode::parse(&name);
        if mode.is_none() {
            let names = Mode::ALL.map(|mode| format!("\"{}\"", mode.as_str()));
            item.fault(format!("must be one of {}", names.join(", ")));
        }
        mode
    });
    let ttl = reader.duration("ttl", TTL_MIN);
    let max_bytes = reader.whole("max_bytes", 1, i64::MAX as u64);
    if let Some(item) = reader.take("scope")
        && let Some(scope) = item.string()
        && scope != SCOPE
    {
        item.fault(format!("must be \"{SCOPE}\": tenants never share answers"));
    }
    reader.finish();
    Terms {
        mode: mode.unwrap_or_default(),
        ttl: ttl.unwrap_or_default(),
        max_bytes: max_bytes.unwrap_or_default(),
    }
}

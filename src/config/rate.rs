//! `rate_limits`: how many requests and tokens there may be in a time, of an upstream, a route or
//! a model.

use std::collections::BTreeSet;
use std::time::Duration;

use super::error::nearest;
use super::reader::{Item, Reader};
use crate::upstream::{RateKind, RateLimit};

const LIMIT_MAX: u64 = 1_000_000_000_000;
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// Reads the `rate_limits` of a table.
pub(super) fn read(reader: &mut Reader<'_>) -> Vec<RateLimit> {
    let items = reader.take("rate_limits").and_then(Item::array);
    let mut seen = BTreeSet::new();
    let tables = items.into_iter().flatten().filter_map(Item::table);
    let limits = tables.filter_map(|mut reader| {
        let kind = reader.need("type").and_then(|item| kind(&item));
        let limit = reader
            .need("limit")
            .and_then(|item| item.whole(1, LIMIT_MAX));
        let period = reader
            .need("period")
            .and_then(|item| item.duration(PERIOD_MIN));
        if let (Some(kind), Some(period)) = (kind, period)
            && !seen.insert((kind, period))
        {
            reader.fault("another limit has the same type and period");
        }
        reader.finish();
        Some(RateLimit {
            kind: kind?,
            limit: limit?,
            period: period?,
        })
    });
    limits.collect()
}

fn kind(item: &Item<'_>) -> Option<RateKind> {
    let name = item.string()?;
    let known = RateKind::ALL.into_iter().find(|kind| kind.as_str() == name);
    if known.is_none() {
        let names = RateKind::ALL.map(RateKind::as_str);
        let nearest = nearest(&name, names).unwrap_or_default();
        item.fault(format!("unknown type; the nearest is {nearest}"));
    }
    known
}

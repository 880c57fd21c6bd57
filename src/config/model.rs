//! `[[models]]`: which upstreams answer for a model.

use std::collections::BTreeSet;

use super::error::nearest;
use super::reader::{Item, Reader};
use super::upstream::concurrency;
use crate::upstream::{ModelSettings, RouteSettings, UpstreamSettings};

/// The largest weight. Weights are shares, so larger ones would say nothing more.
const WEIGHT_MAX: u64 = 1_000_000;

/// Reads `[[models]]`, whose routes lead to `upstreams`.
pub(super) fn read_all(
    readers: Vec<Reader<'_>>,
    upstreams: &[UpstreamSettings],
) -> Vec<ModelSettings> {
    let mut names = BTreeSet::new();
    let mut models = Vec::new();
    for mut reader in readers {
        reader.later(&["rate_limits", "balance", "priority"]);
        let name = reader.need("name").and_then(|item| {
            let name = item.string()?;
            if !names.insert(name.clone()) {
                item.fault("another model has this name");
            }
            Some(name)
        });
        let concurrency = concurrency(&mut reader);
        let routes = read_routes(&mut reader, upstreams);
        let defaults = reader.take("defaults").and_then(read_defaults);
        reader.finish();
        models.push(ModelSettings {
            name: name.unwrap_or_default(),
            concurrency,
            routes,
            defaults: defaults.unwrap_or_default(),
        });
    }
    models
}

fn read_routes(reader: &mut Reader<'_>, upstreams: &[UpstreamSettings]) -> Vec<RouteSettings> {
    let Some(items) = reader.need("routes").and_then(Item::array) else {
        return Vec::new();
    };
    if items.is_empty() {
        reader.fault("`routes` is empty: a model needs a route to an upstream");
    }
    let mut seen = BTreeSet::new();
    let mut routes = Vec::new();
    for mut reader in items.into_iter().filter_map(Item::table) {
        let upstream = reader.need("upstream").and_then(|item| {
            let name = item.string()?;
            check_upstream(&item, &name, upstreams);
            Some(name)
        });
        let model = reader.string("model");
        let weight = reader.whole("weight", 1, WEIGHT_MAX).unwrap_or(1);
        if upstream.is_some() && !seen.insert((upstream.clone(), model.clone())) {
            reader.fault("another route leads to the same upstream and model");
        }
        reader.later(&["priority"]);
        reader.finish();
        routes.push(RouteSettings {
            upstream: upstream.unwrap_or_default(),
            model,
            weight,
        });
    }
    routes
}

fn check_upstream(item: &Item<'_>, name: &str, upstreams: &[UpstreamSettings]) {
    if upstreams.iter().any(|upstream| upstream.name == name) {
        return;
    }
    let names = upstreams.iter().map(|upstream| upstream.name.as_str());
    item.fault(match nearest(name, names.filter(|n| !n.is_empty())) {
        Some(known) => format!("no upstream is named {name:?}; the nearest is {known:?}"),
        None => format!("no upstream is named {name:?}: there are no [[upstreams]]"),
    });
}

fn read_defaults(item: Item<'_>) -> Option<serde_json::Map<String, serde_json::Value>> {
    let mut defaults = serde_json::Map::new();
    for (key, mut item) in item.entries()? {
        match key.as_str() {
            "model" => item.fault("a line names its own model; a route's `model` renames it"),
            "stream" => item.fault("answers in a batch are never streamed"),
            // The background of a picture may be a default: it is a text.
            "background" if item.is_true() => {
                item.fault("a batch runs in the background anyway, and its answers must be whole");
            }
            _ => {
                if let Some(value) = item.json() {
                    defaults.insert(key, value);
                }
            }
        }
    }
    Some(defaults)
}

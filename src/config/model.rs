//! `[[models]]`: which upstreams answer for a model.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::nearest;
use super::price::Pricing;
use super::rate;
use super::reader::{Item, Reader};
use super::upstream::{Concurrency, concurrency};
use crate::domain::endpoint::Endpoints;
use crate::upstream::{
    ModelSettings, Order, PackLimits, RouteSettings, Spill, Strategy, UpstreamSettings,
};

/// The largest weight. Weights are shares, so larger ones would say nothing more.
const WEIGHT_MAX: u64 = 1_000_000;
/// More tiers than anybody has.
const TIER_MAX: u64 = 1_000;

/// More inputs than any provider takes in one call.
const PACK_MAX: u64 = 2_048;
/// Bytes of the lines of one call, where the configuration does not say.
const PACK_BYTES: usize = 256 << 10;

/// Reads `[[models]]`, whose routes lead to `upstreams`. `endpoints`: what their lines may be for.
pub(super) fn read_all(
    readers: Vec<Reader<'_>>,
    upstreams: &[UpstreamSettings],
    pricing: &Pricing,
    endpoints: Endpoints,
) -> Vec<ModelSettings> {
    let body = |item| read_body(item, endpoints);
    let mut names = BTreeSet::new();
    let mut models = Vec::new();
    for mut reader in readers {
        let name = reader.need("name").and_then(|item| {
            let name = item.string()?;
            if name.trim_end_matches('*').contains('*') || name.ends_with("**") {
                item.fault("a name has one `*` at most, at its end: it stands for any rest");
            }
            if !names.insert(name.clone()) {
                item.fault("another model has this name");
            }
            Some(name)
        });
        let Concurrency { most, is_auto } = concurrency(&mut reader);
        let balance = reader.take("balance").and_then(|item| balance(&item));
        let spill = reader.take("spill").and_then(|item| spill(&item));
        let order = reader.take("order").and_then(|item| order(&item));
        let routes = read_routes(&mut reader, upstreams, pricing, endpoints);
        let defaults = reader.take("defaults").and_then(body);
        let overrides = reader.take("overrides").and_then(body);
        let rate_limits = rate::read(&mut reader);
        reader.finish();
        models.push(ModelSettings {
            name: name.unwrap_or_default(),
            concurrency: most,
            is_auto,
            balance: balance.unwrap_or_default(),
            spill: spill.unwrap_or_default(),
            order: order.unwrap_or_default(),
            routes,
            defaults: defaults.unwrap_or_default(),
            overrides: overrides.unwrap_or_default(),
            rate_limits,
        });
    }
    models
}

pub(super) fn balance(item: &Item<'_>) -> Option<Strategy> {
    let name = item.string()?;
    let found = Strategy::ALL.into_iter().find(|one| one.as_str() == name);
    if found.is_none() {
        let names = Strategy::ALL.map(Strategy::as_str);
        let meant = nearest(&name, names).unwrap_or_default();
        let names = names.join(", ");
        item.fault(format!("expected one of {names}; the nearest is {meant}"));
    }
    found
}

fn spill(item: &Item<'_>) -> Option<Spill> {
    let name = item.string()?;
    let found = Spill::ALL.into_iter().find(|one| one.as_str() == name);
    if found.is_none() {
        let names = Spill::ALL.map(Spill::as_str);
        let meant = nearest(&name, names).unwrap_or_default();
        item.fault(format!(
            "expected closed, full or late; the nearest is {meant}"
        ));
    }
    found
}

fn order(item: &Item<'_>) -> Option<Order> {
    let name = item.string()?;
    let found = Order::ALL.into_iter().find(|one| one.as_str() == name);
    if found.is_none() {
        let names = Order::ALL.map(Order::as_str);
        let meant = nearest(&name, names).unwrap_or_default();
        item.fault(format!("expected file or prefix; the nearest is {meant}"));
    }
    found
}

fn read_routes(
    reader: &mut Reader<'_>,
    upstreams: &[UpstreamSettings],
    pricing: &Pricing,
    endpoints: Endpoints,
) -> Vec<RouteSettings> {
    let body = |item| read_body(item, endpoints);
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
        let tier = reader.whole("tier", 0, TIER_MAX).unwrap_or(0);
        let Concurrency { most, is_auto } = concurrency(&mut reader);
        let defaults = reader.take("defaults").and_then(body);
        let overrides = reader.take("overrides").and_then(body);
        if upstream.is_some() && !seen.insert((upstream.clone(), model.clone())) {
            reader.fault("another route leads to the same upstream and model");
        }
        let price = pricing.price(&mut reader);
        reader.refuse(
            "priority",
            "which routes come first is their `tier`: the lowest does",
        );
        let rate_limits = rate::read(&mut reader);
        let pack = pack(&mut reader);
        reader.finish();
        routes.push(RouteSettings {
            upstream: upstream.unwrap_or_default(),
            model,
            weight,
            tier,
            concurrency: most,
            is_auto,
            defaults: defaults.unwrap_or_default(),
            overrides: overrides.unwrap_or_default(),
            rate_limits,
            price,
            pack,
        });
    }
    routes
}

/// How lines share calls by a route. A pack of one line is a line of its own.
fn pack(reader: &mut Reader<'_>) -> Option<PackLimits> {
    let inputs = reader.whole("pack", 1, PACK_MAX);
    let bytes = reader.whole("pack_bytes", 1, u64::from(u32::MAX));
    if bytes.is_some() && inputs.is_none() {
        reader.fault("`pack_bytes` is of calls that lines share: `pack` says how many inputs");
    }
    let limits = PackLimits {
        inputs: inputs.unwrap_or(1),
        bytes: bytes.unwrap_or(PACK_BYTES),
    };
    (limits.inputs > 1).then_some(limits)
}

pub(super) fn check_upstream(item: &Item<'_>, name: &str, upstreams: &[UpstreamSettings]) {
    if upstreams.iter().any(|upstream| upstream.name == name) {
        return;
    }
    let names = upstreams.iter().map(|upstream| upstream.name.as_str());
    item.fault(match nearest(name, names.filter(|n| !n.is_empty())) {
        Some(known) => format!("no upstream is named {name:?}; the nearest is {known:?}"),
        None => format!("no upstream is named {name:?}: there are no [[upstreams]]"),
    });
}

/// Reads what is filled in or written over in the bodies of lines.
pub(super) fn read_body(item: Item<'_>, endpoints: Endpoints) -> Option<Map<String, Value>> {
    let mut body = Map::new();
    for (key, mut item) in item.entries()? {
        match key.as_str() {
            "model" => item.fault("a line names its own model; a route's `model` renames it"),
            "stream" => item.fault("answers in a batch are never streamed"),
            "n" => item.fault("how many answers a line asks for is written in the line alone"),
            key if is_input(key, endpoints) => {
                item.fault("what a line asks is written in the line alone");
            }
            // The background of a picture may be set: it is a text.
            "background" if item.is_true() => {
                item.fault("a batch runs in the background anyway, and its answers must be whole");
            }
            _ => {
                if let Some(value) = item.json() {
                    body.insert(key, value);
                }
            }
        }
    }
    Some(body)
}

/// Whether an endpoint's input is under this key.
fn is_input(key: &str, endpoints: Endpoints) -> bool {
    let mut all = endpoints.all();
    all.any(|endpoint| endpoint.input.contains(&key))
}

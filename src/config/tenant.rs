//! `[[tenants]]`: what tenants are allowed.

use std::collections::BTreeSet;

use super::rate;
use super::reader::{Item, Reader};
use super::upstream::CONCURRENCY_MAX;
use crate::domain::batch::PRIORITIES;
use crate::domain::tenant::{ANY_OTHER, Allowance, ModelPattern};
use crate::upstream::{ModelSettings, TenantRates};

/// The largest weight: a tenant of weight 1 beside it still has its turns.
const WEIGHT_MAX: u64 = 1_000;
const ENQUEUED_MAX: u64 = 1_000_000_000_000_000;
const STORAGE_MAX: u64 = 1 << 60;

/// A `[[tenants]]` entry.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// A tenant's name, or [`ANY_OTHER`].
    pub name: String,
    pub allowance: Allowance,
    pub rates: TenantRates,
}

/// Reads `[[tenants]]`, who may use `models`.
pub(super) fn read_all(readers: Vec<Reader<'_>>, models: &[ModelSettings]) -> Vec<Tenant> {
    let mut names = BTreeSet::new();
    let mut tenants = Vec::new();
    for mut reader in readers {
        let name = reader.need("name").and_then(|item| {
            let name = item.string()?;
            if name != ANY_OTHER && name.contains('*') {
                item.fault("a tenant's name stands in full; `*` alone is for any other");
            }
            if !names.insert(name.clone()) {
                item.fault("another entry has this name");
            }
            Some(name)
        });
        let weight = reader.whole("weight", 1, WEIGHT_MAX);
        let concurrency = reader.whole("concurrency", 1, CONCURRENCY_MAX);
        let rate_limits = rate::read(&mut reader);
        let models = reader
            .take("models")
            .and_then(|item| patterns(item, models));
        let requests = reader.whole("max_enqueued_requests", 1, ENQUEUED_MAX);
        let tokens = reader.whole("max_enqueued_tokens", 1, ENQUEUED_MAX);
        let storage = reader.whole("max_storage_bytes", 1, STORAGE_MAX);
        let most = PRIORITIES.end().unsigned_abs();
        let max_priority = reader.whole("max_priority", 0, most);
        reader.later(&["max_cost"]);
        reader.finish();
        let name = name.unwrap_or_default();
        tenants.push(Tenant {
            rates: TenantRates {
                name: name.clone(),
                rate_limits,
            },
            name,
            allowance: Allowance {
                weight: weight.unwrap_or(1),
                concurrency,
                models,
                max_enqueued_requests: requests,
                max_enqueued_tokens: tokens,
                max_storage_bytes: storage,
                max_priority: max_priority.unwrap_or(*PRIORITIES.end()),
            },
        });
    }
    tenants
}

/// The models that a tenant may use. Where `[[models]]` are configured, each pattern is for one of
/// them at least.
fn patterns(item: Item<'_>, models: &[ModelSettings]) -> Option<Vec<ModelPattern>> {
    let mut patterns = Vec::new();
    for item in item.array()? {
        let Some(text) = item.string() else {
            continue;
        };
        if text.trim_end_matches('*').contains('*') || text.ends_with("**") {
            item.fault("a name has one `*` at most, at its end: it stands for any rest");
            continue;
        }
        let pattern = ModelPattern::new(text);
        check_pattern(&item, &pattern, models);
        patterns.push(pattern);
    }
    Some(patterns)
}

fn check_pattern(item: &Item<'_>, pattern: &ModelPattern, models: &[ModelSettings]) {
    let text = pattern.as_str();
    let begins = text.strip_suffix('*');
    let is_for = |model: &ModelSettings| match (model.prefix(), begins) {
        (None, _) => pattern.fits(&model.name),
        (Some(prefix), None) => text.starts_with(prefix),
        (Some(prefix), Some(begins)) => prefix.starts_with(begins) || begins.starts_with(prefix),
    };
    if models.is_empty() || models.iter().any(is_for) {
        return;
    }
    let names = models.iter().map(|model| model.name.as_str());
    let names = names.filter(|name| !name.is_empty());
    item.fault(match super::nearest(text, names) {
        Some(known) => format!("no [[models]] entry is for {text:?}; the nearest is {known:?}"),
        None => format!("no [[models]] entry is for {text:?}"),
    });
}

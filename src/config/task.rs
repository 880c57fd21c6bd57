//! `[[tasks]]`: names for what is to be done, with its parameters and who may do it.

use std::collections::BTreeSet;

use super::error::nearest;
use super::model::{balance, read_body};
use super::reader::{Item, Reader};
use crate::domain::endpoint::Endpoints;
use crate::upstream::{ModelSettings, TaskSettings};

/// Reads `[[tasks]]`, which `models` do. Where no `[[models]]` are configured, a task may name any
/// model.
pub(super) fn read_all(
    readers: Vec<Reader<'_>>,
    models: &[ModelSettings],
    endpoints: Endpoints,
) -> Vec<TaskSettings> {
    let body = |item| read_body(item, endpoints);
    let mut names = BTreeSet::new();
    let mut tasks = Vec::new();
    for mut reader in readers {
        let name = reader.need("name").and_then(|item| {
            let name = item.string()?;
            if name.is_empty() || name.contains('*') {
                item.fault("a task has a name that stands in full");
            }
            if models.iter().any(|model| model.name == name) {
                item.fault("a model has this name: a line could mean either");
            }
            if !names.insert(name.clone()) {
                item.fault("another task has this name");
            }
            Some(name)
        });
        let of_task = reader.need("models").map(|item| read_models(item, models));
        if of_task.as_ref().is_some_and(Vec::is_empty) {
            reader.fault("`models` is empty: a task needs a model that does it");
        }
        let balance = reader.take("balance").and_then(|item| balance(&item));
        let defaults = reader.take("defaults").and_then(body);
        let overrides = reader.take("overrides").and_then(body);
        reader.finish();
        tasks.push(TaskSettings {
            name: name.unwrap_or_default(),
            models: of_task.unwrap_or_default(),
            balance: balance.unwrap_or_default(),
            defaults: defaults.unwrap_or_default(),
            overrides: overrides.unwrap_or_default(),
        });
    }
    tasks
}

/// The models that do a task.
fn read_models(item: Item<'_>, models: &[ModelSettings]) -> Vec<String> {
    let mut named = Vec::new();
    for item in item.array().into_iter().flatten() {
        let Some(name) = item.string() else {
            continue;
        };
        if name.is_empty() || name.contains('*') {
            item.fault("a task names each of its models in full");
        } else if !models.is_empty() && ModelSettings::of(models, &name).is_none() {
            let names = models.iter().map(|model| model.name.as_str());
            let meant = nearest(&name, names.filter(|name| !name.is_empty()));
            item.fault(match meant {
                Some(known) => format!("no model is named {name:?}; the nearest is {known:?}"),
                None => format!("no model is named {name:?}"),
            });
        } else if named.contains(&name) {
            item.fault("the task names this model already");
        }
        named.push(name);
    }
    named
}

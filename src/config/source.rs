//! From where a configuration was read, and which of its values cannot change while a server runs.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Overrides;
use super::value::{Node, Table, Value};

/// What does not change while a server runs: sections, and keys of others. What is not here is
/// given to the server anew by `app::reload`.
const FIXED: [&str; 8] = [
    "auth.required",
    "database",
    "endpoints",
    "limits.max_line_bytes",
    "log.format",
    "server",
    "telemetry",
    "worker",
];

/// From where a configuration was read.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) overrides: Overrides,
    /// The defaults and the flags alone.
    pub(super) is_built_in: bool,
}

/// The values of the keys that cannot change while a server runs: each as a number, because it may
/// be a secret.
#[derive(Clone, Debug, Default)]
pub(super) struct Fixed(BTreeMap<String, u64>);

impl Fixed {
    /// Those of the merged layers.
    pub(super) fn of(root: &Table) -> Self {
        let is_fixed = |name: &str| FIXED.contains(&name);
        let mut fixed = BTreeMap::new();
        for (section, node) in root {
            match &node.value {
                Value::Table(keys) => {
                    for (key, node) in keys {
                        let name = format!("{section}.{key}");
                        if is_fixed(section) || is_fixed(&name) {
                            fixed.insert(name, number(node));
                        }
                    }
                }
                _ if is_fixed(section) => {
                    fixed.insert(section.clone(), number(node));
                }
                _ => {}
            }
        }
        Self(fixed)
    }

    /// The keys whose values differ.
    pub(super) fn differing(&self, other: &Self) -> Vec<String> {
        let keys = self.0.keys().chain(other.0.keys());
        let mut keys: Vec<String> = keys
            .filter(|key| self.0.get(*key) != other.0.get(*key))
            .cloned()
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

fn number(node: &Node) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(&node.value, &mut hasher);
    hasher.finish()
}

fn feed(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::String(text) | Value::Text(text) => text.hash(hasher),
        Value::Integer(number) => number.hash(hasher),
        Value::Float(number) => number.to_bits().hash(hasher),
        Value::Boolean(boolean) => boolean.hash(hasher),
        Value::Datetime => {}
        Value::Array(items) => {
            items.len().hash(hasher);
            for item in items {
                feed(&item.value, hasher);
            }
        }
        Value::Table(table) => {
            table.len().hash(hasher);
            for (key, node) in table {
                key.hash(hasher);
                feed(&node.value, hasher);
            }
        }
    }
}

//! Reading tables by type: take each key as what it must be, note what is wrong with it, and
//! what is left at the end is unknown.

use std::collections::btree_map::Entry;
use std::time::Duration;

use super::duration;
use super::environment::Environment;
use super::error::{Faults, nearest};
use super::value::{Node, Origin, Table, Value, join, merge_indexes, place};

/// What every reader needs.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub environment: &'a Environment,
    pub faults: &'a Faults,
}

/// A table that is being read. [`Reader::finish`] ends it.
pub(super) struct Reader<'a> {
    context: Context<'a>,
    path: String,
    origin: Origin,
    table: Table,
    known: Vec<&'static str>,
}

/// A value that has been taken from its table.
pub(super) struct Item<'a> {
    context: Context<'a>,
    path: String,
    node: Node,
}

impl<'a> Reader<'a> {
    pub fn root(context: Context<'a>, table: Table) -> Self {
        Self {
            context,
            path: String::new(),
            origin: Origin::Default,
            table,
            known: Vec::new(),
        }
    }

    pub fn environment(&self) -> &'a Environment {
        self.context.environment
    }

    /// Notes a fault of the table as a whole.
    pub fn fault(&self, message: impl Into<String>) {
        let place = place(&self.path, &self.origin);
        self.context.faults.note(place, message);
    }

    /// The value of `key`, which is known from here on.
    pub fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        self.take_unknown(key)
    }

    /// Whether `key` has a value that nobody has taken.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Puts these values where there are none, and says which: each as it is written.
    pub fn fill(&mut self, values: Table) -> Vec<String> {
        let mut filled = Vec::new();
        for (key, node) in values {
            if let Entry::Vacant(gap) = self.table.entry(key) {
                let value = node.as_str().unwrap_or_default();
                filled.push(format!("{} = {value:?}", gap.key()));
                gap.insert(node);
            }
        }
        filled
    }

    fn take_unknown(&mut self, key: &str) -> Option<Item<'a>> {
        let node = self.table.remove(key)?;
        Some(Item {
            context: self.context,
            path: join(&self.path, key),
            node,
        })
    }

    /// As [`Reader::take`]; that it is not there is a fault.
    pub fn need(&mut self, key: &'static str) -> Option<Item<'a>> {
        let item = self.take(key);
        if item.is_none() {
            self.fault(format!("`{key}` is missing"));
        }
        item
    }

    /// Keys of features that are not built yet.
    pub fn later(&mut self, keys: &[&'static str]) {
        for key in keys {
            if let Some(item) = self.take(key) {
                item.later();
            }
        }
    }

    /// A key that must not stand here, and what to write instead.
    pub fn refuse(&mut self, key: &str, message: &str) {
        if let Some(item) = self.take_unknown(key) {
            item.fault(message);
        }
    }

    /// The table at `key`; an empty one where there is none.
    pub fn section(&mut self, key: &'static str) -> Reader<'a> {
        let empty = Reader {
            path: join(&self.path, key),
            ..Self::root(self.context, Table::new())
        };
        self.take(key).and_then(Item::table).unwrap_or(empty)
    }

    /// The tables of the array at `key`, in their order; those that are no tables are left out.
    pub fn tables(&mut self, key: &'static str) -> Vec<Reader<'a>> {
        let items = self.take(key).and_then(Item::array).unwrap_or_default();
        items.into_iter().filter_map(Item::table).collect()
    }

    pub fn string(&mut self, key: &'static str) -> Option<String> {
        self.take(key)?.string()
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.take(key)?.boolean()
    }

    /// A whole number from `min` to `max`.
    pub fn whole<T: TryFrom<u64>>(&mut self, key: &'static str, min: u64, max: u64) -> Option<T> {
        self.take(key)?.whole(min, max)
    }

    /// A duration that is at least `min`.
    pub fn duration(&mut self, key: &'static str, min: Duration) -> Option<Duration> {
        self.take(key)?.duration(min)
    }

    /// What is left is unknown.
    pub fn finish(self) {
        for (key, node) in &self.table {
            let message = match nearest(key, self.known.iter().copied()) {
                Some(known) => format!("unknown key; the nearest known one is `{known}`"),
                None => "unknown key".to_owned(),
            };
            let place = place(&join(&self.path, key), &node.origin);
            self.context.faults.note(place, message);
        }
    }
}

impl<'a> Item<'a> {
    pub fn fault(&self, message: impl Into<String>) {
        let place = place(&self.path, &self.node.origin);
        self.context.faults.note(place, message);
    }

    /// This key or value belongs to a feature that is not built yet.
    pub fn later(&self) {
        self.fault("is not built yet; it comes with a later version");
    }

    pub fn origin(&self) -> &Origin {
        &self.node.origin
    }

    /// The text of a string, if it is one. Notes nothing.
    pub fn as_str(&self) -> Option<&str> {
        self.node.as_str()
    }

    /// Whether a preset says so, and nobody else.
    pub fn is_filled_in(&self) -> bool {
        matches!(self.node.origin, Origin::Preset(_))
    }

    /// Whether it is `true`. Notes nothing.
    pub fn is_true(&mut self) -> bool {
        self.node.spell_out();
        matches!(self.node.value, Value::Boolean(true))
    }

    /// A string, not an empty one.
    pub fn string(&self) -> Option<String> {
        let Some(text) = self.as_str() else {
            return self.expected("a string");
        };
        if text.is_empty() {
            self.fault("is empty");
            return None;
        }
        Some(text.to_owned())
    }

    pub fn boolean(&mut self) -> Option<bool> {
        self.node.spell_out();
        match self.node.value {
            Value::Boolean(boolean) => Some(boolean),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number from `min` to `max`; otherwise a fault is noted.
    pub fn whole<T: TryFrom<u64>>(mut self, min: u64, max: u64) -> Option<T> {
        self.node.spell_out();
        let Value::Integer(number) = self.node.value else {
            return self.expected("a whole number");
        };
        let within = u64::try_from(number)
            .ok()
            .filter(|number| (min..=max).contains(number))
            .and_then(|number| T::try_from(number).ok());
        if within.is_none() {
            self.fault(format!("must be from {min} to {max}"));
        }
        within
    }

    /// A number of any kind, or a string, as it is written.
    pub fn number(&self) -> Option<String> {
        match &self.node.value {
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::String(text) | Value::Text(text) => Some(text.trim().to_owned()),
            _ => self.expected("a number"),
        }
    }

    /// A number from 0 to 1.
    pub fn fraction(mut self) -> Option<f64> {
        self.node.spell_out();
        let number = match self.node.value {
            Value::Float(number) => number,
            Value::Integer(0) => 0.0,
            Value::Integer(1) => 1.0,
            _ => return self.expected("a number from 0 to 1"),
        };
        let within = Some(number).filter(|number| (0.0..=1.0).contains(number));
        if within.is_none() {
            self.fault("must be from 0 to 1");
        }
        within
    }

    /// A duration that is at least `min`; otherwise a fault is noted.
    pub fn duration(self, min: Duration) -> Option<Duration> {
        let Some(text) = self.as_str() else {
            return self.expected("a duration in quotes, such as \"30s\"");
        };
        match duration::parse(text) {
            Ok(duration) if duration >= min => Some(duration),
            Ok(_) => {
                self.fault(format!("must be at least {min:?}"));
                None
            }
            Err(error) => {
                self.fault(error.to_string());
                None
            }
        }
    }

    pub fn table(mut self) -> Option<Reader<'a>> {
        self.node.spell_out();
        let Value::Table(table) = self.node.value else {
            return self.expected("a table");
        };
        Some(Reader {
            context: self.context,
            path: self.path,
            origin: self.node.origin,
            table,
            known: Vec::new(),
        })
    }

    /// The items of an array, in their order.
    pub fn array(mut self) -> Option<Vec<Item<'a>>> {
        self.node.spell_out();
        let nodes = match self.node.value {
            Value::Array(nodes) => nodes,
            Value::Table(entries) if matches!(self.node.origin, Origin::Variable(_)) => {
                let mut nodes = Vec::new();
                merge_indexes(&mut nodes, entries, &self.path, self.context.faults);
                nodes
            }
            _ => return self.expected("an array"),
        };
        let item = |(index, node)| Item {
            context: self.context,
            path: format!("{}[{index}]", self.path),
            node,
        };
        Some(nodes.into_iter().enumerate().map(item).collect())
    }

    /// The entries of a table whose keys are free.
    pub fn entries(mut self) -> Option<Vec<(String, Item<'a>)>> {
        self.node.spell_out();
        let Value::Table(table) = self.node.value else {
            return self.expected("a table");
        };
        let entry = |(key, node): (String, Node)| {
            let path = join(&self.path, &key);
            let context = self.context;
            (
                key,
                Item {
                    context,
                    path,
                    node,
                },
            )
        };
        Some(table.into_iter().map(entry).collect())
    }

    /// The value as JSON. Text of the environment is what it spells in TOML, else a string.
    pub fn json(mut self) -> Option<serde_json::Value> {
        self.node.spell_out();
        match &self.node.value {
            Value::String(text) | Value::Text(text) => Some(text.as_str().into()),
            Value::Boolean(boolean) => Some((*boolean).into()),
            Value::Integer(number) => match i64::try_from(*number) {
                Ok(number) => Some(number.into()),
                Err(_) => self.expected("a number of at most 64 bits"),
            },
            Value::Float(number) => match serde_json::Number::from_f64(*number) {
                Some(number) => Some(number.into()),
                None => self.expected("a number that JSON has"),
            },
            Value::Datetime => self.expected("a value that JSON has"),
            Value::Array(_) => {
                let items = self.array()?;
                items.into_iter().map(Item::json).collect()
            }
            Value::Table(_) => {
                let entries = self.entries()?;
                let pair = |(key, item): (String, Item<'_>)| Some((key, item.json()?));
                entries.into_iter().map(pair).collect()
            }
        }
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        // An unspelled text would be found to be "something else", which says nothing.
        self.fault(match &self.node.value {
            Value::Text(_) => format!("expected {what}"),
            other => format!("expected {what}, found {}", other.kind()),
        });
        None
    }
}

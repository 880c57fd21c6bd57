//! Values before they have a meaning: a tree in which each knows where it was set.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Faults;

/// Where a value was set.
#[derive(Clone)]
pub(super) enum Origin {
    /// `config.example.toml`, which is part of the binary.
    Default,
    File {
        file: Rc<str>,
        line: usize,
    },
    Variable(Rc<str>),
    /// A flag, with its dashes.
    Flag(&'static str),
    /// What is known of a server by this name.
    Preset(Rc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
            Self::Preset(name) => write!(f, "preset {name}"),
        }
    }
}

/// A key's path and where its value was set, for people.
pub(super) fn place(path: &str, origin: &Origin) -> String {
    match origin {
        Origin::Default => path.to_owned(),
        // Who gave a flag need not know the key that it stands for.
        Origin::Flag(flag) => (*flag).to_owned(),
        _ if path.is_empty() => origin.to_string(),
        _ => format!("{path} ({origin})"),
    }
}

/// The path of `key` under `parent`.
pub(super) fn join(parent: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let key = if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        format!("{key:?}")
    };
    if parent.is_empty() {
        key
    } else {
        format!("{parent}.{key}")
    }
}

/// A value and where it was set. Has no `Debug`: it may be a secret.
#[derive(Clone)]
pub(super) struct Node {
    pub origin: Origin,
    pub value: Value,
}

#[derive(Clone)]
pub(super) enum Value {
    String(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Table),
    /// From the environment: what it means depends on what its key expects.
    Text(String),
}

pub(super) type Table = BTreeMap<String, Node>;

impl Node {
    pub fn text(origin: Origin, text: &str) -> Self {
        Self {
            origin,
            value: Value::Text(text.to_owned()),
        }
    }

    pub fn string(origin: Origin, text: &str) -> Self {
        Self {
            origin,
            value: Value::String(text.to_owned()),
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) | Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Makes text the TOML value that it spells; text that spells none, and other values, stay.
    pub fn spell_out(&mut self) {
        let Value::Text(text) = &self.value else {
            return;
        };
        if let Ok(spelled) = DeValue::parse(text.trim()) {
            let at = self.origin.clone();
            *self = node(spelled.into_inner(), &at, &|_| at.clone());
        }
    }
}

impl Value {
    /// What it is, for "expected …, found …".
    pub fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a fraction",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date or time",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
            Self::Text(_) => "something else",
        }
    }
}

/// Reads a TOML document. Each of its syntax errors is a fault; `None` where there is one.
pub(super) fn read_toml(text: &str, file: &Path, faults: &Faults) -> Option<Table> {
    let file: Rc<str> = Rc::from(file.display().to_string());
    let line_starts: Vec<usize> = std::iter::once(0)
        .chain(text.match_indices('\n').map(|(at, _)| at + 1))
        .collect();
    let origin = |at: usize| Origin::File {
        file: Rc::clone(&file),
        line: line_starts.partition_point(|start| *start <= at),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // Not its Display: that quotes the line, which may hold a secret.
        let at = error.span().map_or(0, |span| span.start);
        faults.note(origin(at).to_string(), error.message().replace('\n', "; "));
    }
    errors
        .is_empty()
        .then(|| table(document.into_inner(), &origin))
}

/// The defaults: a document that is part of the binary.
pub(super) fn read_defaults(text: &str) -> Table {
    let (document, _) = DeTable::parse_recoverable(text);
    table(document.into_inner(), &|_| Origin::Default)
}

/// A document of tables that is part of the binary: each is a preset of its name.
pub(super) fn read_presets(text: &str) -> BTreeMap<String, Table> {
    let (document, _) = DeTable::parse_recoverable(text);
    let entries = document.into_inner().into_iter();
    let preset = |(name, value): (Spanned<std::borrow::Cow<'_, str>>, Spanned<DeValue<'_>>)| {
        let name = name.into_inner().into_owned();
        let origin = Origin::Preset(Rc::from(&*name));
        match value.into_inner() {
            DeValue::Table(entries) => Some((name, table(entries, &|_| origin.clone()))),
            _ => None,
        }
    };
    entries.filter_map(preset).collect()
}

fn table(entries: DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Table {
    let entry = |(key, value): (Spanned<_>, Spanned<_>)| {
        let at = origin(key.span().start);
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        (key.into_owned(), node(value.into_inner(), &at, origin))
    };
    entries.into_iter().map(entry).collect()
}

/// A TOML value with its origin. `at` is its own origin, `origin` that of a place in the text.
fn node(value: DeValue<'_>, at: &Origin, origin: &dyn Fn(usize) -> Origin) -> Node {
    let value = match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        // A number past i128 is past every bound, too.
        DeValue::Integer(digits) => Value::Integer(
            i128::from_str_radix(digits.as_str(), digits.radix()).unwrap_or(i128::MAX),
        ),
        DeValue::Float(digits) => Value::Float(digits.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Value::Boolean(boolean),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::Array(
            items
                .into_iter()
                .map(|item| {
                    let at = origin(item.span().start);
                    node(item.into_inner(), &at, origin)
                })
                .collect(),
        ),
        DeValue::Table(entries) => Value::Table(table(entries, origin)),
    };
    Node {
        origin: at.clone(),
        value,
    }
}

/// Lays `over` on `base`: tables key by key, arrays by the indexes of the environment's names,
/// anything else whole.
pub(super) fn merge(base: &mut Table, over: Table, path: &str, faults: &Faults) {
    for (key, node) in over {
        let path = join(path, &key);
        match base.entry(key) {
            Entry::Occupied(below) => merge_node(below.into_mut(), node, &path, faults),
            Entry::Vacant(gap) => {
                gap.insert(node);
            }
        }
    }
}

/// Puts one value over another: tables are merged key by key, and a variable may name an item of
/// an array by its index. Anything else replaces what was there.
fn merge_node(base: &mut Node, over: Node, path: &str, faults: &Faults) {
    if matches!(over.value, Value::Table(_)) {
        base.spell_out();
    }
    let by_index = matches!(over.origin, Origin::Variable(_));
    match (&mut base.value, over.value) {
        (Value::Table(below), Value::Table(entries)) => {
            // A fault of the whole section is found where somebody wrote the section.
            if matches!(base.origin, Origin::Default) {
                base.origin = over.origin;
            }
            merge(below, entries, path, faults);
        }
        (Value::Array(below), Value::Table(entries)) if by_index => {
            merge_indexes(below, entries, path, faults);
        }
        (_, value) => {
            *base = Node {
                origin: over.origin,
                value,
            }
        }
    }
}

/// Lays entries whose keys are indexes, as the environment writes them, on an array: those
/// within it are merged, and one just past its end makes it longer.
pub(super) fn merge_indexes(base: &mut Vec<Node>, over: Table, path: &str, faults: &Faults) {
    let mut indexed = Vec::new();
    for (key, node) in over {
        match key.parse::<usize>() {
            Ok(index) => indexed.push((index, node)),
            Err(_) => faults.note(
                place(&join(path, &key), &node.origin),
                format!("{path} is an array: after its name stands an index, beginning at 0"),
            ),
        }
    }
    indexed.sort_by_key(|(index, _)| *index);
    for (index, node) in indexed {
        let end = base.len();
        let path = format!("{path}[{index}]");
        match base.get_mut(index) {
            Some(below) => merge_node(below, node, &path, faults),
            None if index == end => base.push(node),
            None => faults.note(
                place(&path, &node.origin),
                format!("indexes leave no gap: the next one is {end}"),
            ),
        }
    }
}

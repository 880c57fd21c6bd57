//! The environment: captured once, and as a layer of the configuration.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use super::error::Faults;
use super::value::{Node, Origin, Table, Value, merge};

/// Begins the name of every variable that is meant for Nightshift.
pub(super) const PREFIX: &str = "NIGHTSHIFT_";

/// Between the levels of a key's path.
pub(super) const LEVEL: &str = "__";

/// The environment's variables, as they were when it was captured.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// The names of those that the configuration names, such as the key of an upstream.
    named: RefCell<BTreeSet<String>>,
}

impl Environment {
    /// The process's own environment: the one place that reads it. What is not UTF-8 in a value
    /// is replaced, and so ends as a fault of that value.
    #[must_use]
    pub fn capture() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                let value = value.to_string_lossy().into_owned();
                Some((name.into_string().ok()?, value))
            })
            .collect()
    }

    /// A variable's value. One that is set to nothing counts as not set, as Compose's
    /// `NAME: ${NAME:-}` leaves it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The value of a variable that the configuration names, which is noted.
    pub(super) fn get_named(&self, name: &str) -> Option<&str> {
        self.named.borrow_mut().insert(name.to_owned());
        self.get(name)
    }

    /// Whether the configuration that was read has named a variable.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.named.borrow().contains(name)
    }

    /// The names of all variables that are set to something.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let set = self.variables.iter().filter(|(_, value)| !value.is_empty());
        set.map(|(name, _)| name.as_str())
    }

    /// The variables whose names are paths (`NIGHTSHIFT_SERVER__LISTEN`), and `DATABASE_URL`
    /// where its longer name is not set.
    pub(super) fn layer(&self, faults: &Faults) -> Table {
        let mut layer = Table::new();
        if let Some(url) = self.get("DATABASE_URL") {
            let url = Node::text(variable("DATABASE_URL"), url);
            insert(&mut layer, &["database".into(), "url".into()], url, faults);
        }
        for (name, value) in &self.variables {
            let Some(path) = name.strip_prefix(PREFIX) else {
                continue;
            };
            // Kubernetes makes NIGHTSHIFT_PORT and the like for a service of that name.
            if value.is_empty() || !path.contains(LEVEL) {
                continue;
            }
            let path: Vec<String> = path.split(LEVEL).map(str::to_ascii_lowercase).collect();
            insert(&mut layer, &path, Node::text(variable(name), value), faults);
        }
        layer
    }
}

/// Names only: any value may be a secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let owned = |(name, value): (K, V)| (name.into(), value.into());
        Self {
            variables: variables.into_iter().map(owned).collect(),
            named: RefCell::default(),
        }
    }
}

pub(super) fn variable(name: &str) -> Origin {
    Origin::Variable(Rc::from(name))
}

/// Puts a variable's value into the layer, at the path that its name spells.
fn insert(layer: &mut Table, path: &[String], node: Node, faults: &Faults) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let origin = node.origin.clone();
    let wrapped = rest.iter().rev().fold(node, |inner, key| Node {
        origin: origin.clone(),
        value: Value::Table(Table::from([(key.clone(), inner)])),
    });
    merge(layer, Table::from([(first.clone(), wrapped)]), "", faults);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_set_to_nothing_is_not_set() {
        let environment = Environment::from_iter([("A", ""), ("B", "b")]);
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.get("B"), Some("b"));
        assert_eq!(environment.get("C"), None);
    }

    #[test]
    fn names_without_a_path_are_left_alone() {
        let environment = Environment::from_iter([
            ("NIGHTSHIFT_PORT", "tcp://10.0.0.1:8080"),
            ("NIGHTSHIFT_SERVICE_HOST", "10.0.0.1"),
            ("NIGHTSHIFT_SERVER__LISTEN", ""),
            ("OTHER__LISTEN", "x"),
        ]);
        assert!(environment.layer(&Faults::default()).is_empty());
    }
}

//! Variables that look as if they were meant for Nightshift, and that it does not read.

use std::collections::BTreeMap;

use super::DEFAULTS;
use super::environment::{Environment, LEVEL, PREFIX};

/// Variables without a path that are read.
const KNOWN: [&str; 1] = ["UPSTREAM"];
/// What a first key's variable is called: the documented file names only its file.
const KEYS_OF_VARIABLES_ONLY: [(&str, &str); 1] = [("AUTH", "BOOTSTRAP_KEY")];
/// The name of a section alone, and what it is most likely meant to set.
const SECTIONS: [(&str, &str); 5] = [
    ("DATABASE", "DATABASE__URL"),
    ("LOG", "LOG__FILTER"),
    ("SERVER", "SERVER__LISTEN"),
    ("UPSTREAMS", "UPSTREAM"),
    ("UPSTREAM_URL", "UPSTREAM"),
];
/// How many keystrokes a slip is, in a name that is long enough for that.
const SLIP_MAX: usize = 2;
const SLIP_CHARS_MIN: usize = 8;

impl Environment {
    /// What to say of each variable that is not read, although its name is nearly one that is. Its
    /// value is not told.
    #[must_use]
    pub fn near_misses(&self) -> Vec<String> {
        let names = self.names().filter_map(|name| {
            let meant = meant(name)?;
            Some(format!(
                "the variable {name} is not read: is {meant} meant? Two underscores stand between a \
                 section and its key"
            ))
        });
        names.collect()
    }
}

/// The variable that is meant by one that is not read.
fn meant(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let rest = match upper.strip_prefix(PREFIX) {
        Some(rest) if rest.contains(LEVEL) => {
            // In capitals it is read, and judged as the file is.
            return (name != upper).then_some(upper);
        }
        Some(rest) => rest,
        None => return with_the_right_beginning(&upper),
    };
    if KNOWN.contains(&rest) {
        return (name != upper).then_some(upper);
    }
    if is_of_kubernetes(rest) {
        return None;
    }
    of_section(rest)
        .or_else(|| of_key(rest))
        .map(|path| format!("{PREFIX}{path}"))
}

/// `NIGHTSHFT_SERVER__LISTEN`, `NIGHT_SHIFT_SERVER__LISTEN`.
fn with_the_right_beginning(name: &str) -> Option<String> {
    let (front, _) = name.split_once(LEVEL)?;
    let (beginning, section) = front.rsplit_once('_')?;
    let is_slip = strsim::damerau_levenshtein(beginning, PREFIX.trim_end_matches('_')) <= SLIP_MAX;
    let is_section = keys().iter().any(|key| key.section == section);
    let rest = name.strip_prefix(beginning)?;
    (is_slip && is_section).then(|| format!("{}{rest}", PREFIX.trim_end_matches('_')))
}

/// Kubernetes makes NIGHTSHIFT_PORT and the like for a Service called nightshift, and
/// NIGHTSHIFT_SERVER_PORT for one called nightshift-server.
fn is_of_kubernetes(rest: &str) -> bool {
    let is_port = rest == "PORT" || rest.ends_with("_PORT") || rest.contains("PORT_");
    is_port || rest.ends_with("SERVICE_HOST")
}

fn of_section(rest: &str) -> Option<String> {
    let found = SECTIONS.iter().find(|(section, _)| *section == rest);
    found.map(|(_, path)| (*path).to_owned())
}

fn of_key(rest: &str) -> Option<String> {
    let keys = keys();
    // SERVER_LISTEN.
    let joined = |key: &Key| format!("{}_{}", key.section, key.key);
    if let Some(key) = keys.iter().find(|key| joined(key) == rest) {
        return Some(key.path());
    }
    // LISTEN, where only one section has it.
    let mut of_name = keys.iter().filter(|key| key.key == rest);
    if let (Some(key), None) = (of_name.next(), of_name.next()) {
        return Some(key.path());
    }
    // LOG_LEVEL: the section has no such key, and another one is the nearest.
    let of_section = keys.iter().filter_map(|key| {
        let written = rest.strip_prefix(&key.section)?.strip_prefix('_')?;
        Some((strsim::damerau_levenshtein(written, &key.key), key))
    });
    if let Some((_, key)) = of_section.min_by_key(|(apart, _)| *apart) {
        return Some(key.path());
    }
    // SERVRE_LISTEN.
    let apart = |key: &Key| strsim::damerau_levenshtein(rest, &joined(key));
    let nearest = keys.iter().min_by_key(|key| apart(key))?;
    let is_slip = rest.len() >= SLIP_CHARS_MIN && apart(nearest) <= SLIP_MAX;
    is_slip.then(|| nearest.path())
}

/// A key that can be configured, in capitals.
struct Key {
    section: String,
    key: String,
    /// Whether the section is an array of tables.
    is_array: bool,
}

impl Key {
    fn path(&self) -> String {
        let index = if self.is_array { "0__" } else { "" };
        format!("{}{LEVEL}{index}{}", self.section, self.key)
    }
}

/// All keys, as the documented file has them: those that are only shown, too.
fn keys() -> Vec<Key> {
    let mut section = (String::new(), false);
    let mut keys = BTreeMap::new();
    for line in DEFAULTS.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        let of_array = line.strip_prefix("[[").and_then(|l| l.strip_suffix("]]"));
        let of_table = line.strip_prefix('[').and_then(|l| l.strip_suffix(']'));
        if let Some(name) = of_array.or(of_table) {
            section = (name.to_ascii_uppercase(), of_array.is_some());
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            keys.insert((section.0.clone(), key.to_ascii_uppercase()), section.1);
        }
    }
    for (section, key) in KEYS_OF_VARIABLES_ONLY {
        keys.insert((section.to_owned(), key.to_owned()), false);
    }
    let key = |((section, key), is_array)| Key {
        section,
        key,
        is_array,
    };
    keys.into_iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_one_that_is_read_is_found() {
        for (written, expected) in [
            ("NIGHTSHIFT_LISTEN", "NIGHTSHIFT_SERVER__LISTEN"),
            ("NIGHTSHIFT_SERVER_LISTEN", "NIGHTSHIFT_SERVER__LISTEN"),
            ("NIGHTSHIFT_SERVRE_LISTEN", "NIGHTSHIFT_SERVER__LISTEN"),
            ("nightshift_server__listen", "NIGHTSHIFT_SERVER__LISTEN"),
            ("NIGHTSHFIT_SERVER__LISTEN", "NIGHTSHIFT_SERVER__LISTEN"),
            ("NIGHT_SHIFT_SERVER__LISTEN", "NIGHTSHIFT_SERVER__LISTEN"),
            ("NIGHTSHIFT_DATABASE", "NIGHTSHIFT_DATABASE__URL"),
            ("NIGHTSHIFT_DATABASE_URL", "NIGHTSHIFT_DATABASE__URL"),
            ("NIGHTSHIFT_LOG_LEVEL", "NIGHTSHIFT_LOG__FILTER"),
            ("NIGHTSHIFT_BOOTSTRAP_KEY", "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY"),
            ("NIGHTSHIFT_BASE_URL", "NIGHTSHIFT_UPSTREAMS__0__BASE_URL"),
            ("NIGHTSHIFT_UPSTREAMS", "NIGHTSHIFT_UPSTREAM"),
            ("nightshift_upstream", "NIGHTSHIFT_UPSTREAM"),
        ] {
            assert_eq!(meant(written).as_deref(), Some(expected), "{written}");
        }
    }

    #[test]
    fn what_is_read_and_what_others_make_is_left_alone() {
        for name in [
            "NIGHTSHIFT_UPSTREAM",
            "NIGHTSHIFT_SERVER__LISTEN",
            "NIGHTSHIFT_PORT",
            "NIGHTSHIFT_PORT_8080_TCP_ADDR",
            "NIGHTSHIFT_SERVICE_HOST",
            "NIGHTSHIFT_SERVICE_PORT_HTTP",
            "NIGHTSHIFT_SERVER_PORT",
            "NIGHTSHIFT_NAME",
            "NIGHTSHIFT_KEY",
            "NIGHTSHIFT_TEST_POSTGRES",
            "DATABASE_URL",
            "LISTEN",
            "OTHER_SERVER__LISTEN",
            "PATH",
        ] {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    #[test]
    fn a_value_is_not_told_and_one_set_to_nothing_is_not_a_miss() {
        let environment = Environment::from_iter([
            ("NIGHTSHIFT_BOOTSTRAP_KEY", "hunter2"),
            ("NIGHTSHIFT_LISTEN", ""),
        ]);
        let [only] = &environment.near_misses()[..] else {
            panic!("one is missed");
        };
        assert!(only.contains("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY"), "{only}");
        assert!(!only.contains("hunter2"), "{only}");
    }
}

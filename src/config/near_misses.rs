//! Variables that look as if they were meant for Nightshift, and that it does not read.

use std::collections::BTreeMap;

use super::DEFAULTS;
use super::environment::{Environment, LEVEL, PREFIX};

/// Variables without a path that are read.
const KNOWN: [&str; 1] = ["UPSTREAM"];
/// What a first key's variable is called: the documented file names only its file.
const KEYS_OF_VARIABLES_ONLY: [(&str, &str); 1] = [("AUTH", "BOOTSTRAP_KEY")];
/// Names that are like none that is read, and what they are most likely meant to set.
const MEANT: [(&str, &str); 6] = [
    ("DATABASE", "DATABASE__URL"),
    ("LOG", "LOG__FILTER"),
    ("LOG_LEVEL", "LOG__FILTER"),
    ("SERVER", "SERVER__LISTEN"),
    ("UPSTREAMS", "UPSTREAM"),
    ("UPSTREAM_URL", "UPSTREAM"),
];
/// How many keystrokes a slip is, in a name that is long enough for that.
const SLIP_MAX: usize = 2;
const SLIP_CHARS_MIN: usize = 8;
/// A key has one slip for so many characters: `DATABASE_UID` is another word than `DATABASE_URL`.
const CHARS_FOR_A_SLIP: usize = 3;

impl Environment {
    /// What to say of each variable that is not read, although its name is nearly one that is. Its
    /// value is not shown. Asked for after the configuration has been read: a variable that the
    /// configuration names is none of these.
    #[must_use]
    pub fn near_misses(&self) -> Vec<String> {
        let unnamed = self.names().filter(|name| !self.is_named(name));
        let near_misses = unnamed.filter_map(|name| {
            let meant = meant(name)?;
            Some(format!(
                "the variable {name} is not read: is {meant} meant? Two underscores stand between \
                 a section and its key"
            ))
        });
        near_misses.collect()
    }
}

/// The variable that is meant by one that is not read.
fn meant(name: &str) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    let rest = match upper.strip_prefix(PREFIX) {
        Some(rest) if rest.contains(LEVEL) => {
            // In capitals it is read, and checked as the file is.
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
    as_others_call_it(rest)
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

/// Kubernetes makes `NIGHTSHIFT_PORT` and the like for a Service called nightshift, and
/// `NIGHTSHIFT_SERVER_PORT` for one called nightshift-server.
fn is_of_kubernetes(rest: &str) -> bool {
    let is_port = rest == "PORT" || rest.ends_with("_PORT") || rest.contains("PORT_");
    is_port || rest.ends_with("SERVICE_HOST")
}

fn as_others_call_it(rest: &str) -> Option<String> {
    let found = MEANT.iter().find(|(name, _)| *name == rest);
    found.map(|(_, path)| (*path).to_owned())
}

/// The key that a variable's name nearly spells: with `_` instead of `__`, without its section, or
/// with a slip of the pen.
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
    // SERVRE_LISTEN, SERVER_LISTN.
    let apart = |key: &Key| strsim::damerau_levenshtein(rest, &joined(key));
    let nearest = keys.iter().min_by_key(|key| apart(key))?;
    // Where the section is written as it is, all slips are in the key.
    let section_is_right = rest
        .strip_prefix(&nearest.section)
        .is_some_and(|key| key.starts_with('_'));
    let slips_max = if section_is_right {
        SLIP_MAX.min(nearest.key.len() / CHARS_FOR_A_SLIP)
    } else {
        SLIP_MAX
    };
    let is_slip = rest.len() >= SLIP_CHARS_MIN && apart(nearest) <= slips_max;
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
            ("NIGHTSHIFT_SERVER_LISTNE", "NIGHTSHIFT_SERVER__LISTEN"),
            ("NIGHTSHIFT_DATABASE_ULR", "NIGHTSHIFT_DATABASE__URL"),
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
            "NIGHTSHIFT_UPSTREAMS_KEY",
            "NIGHTSHIFT_DATABASE_PASSWORD",
            "NIGHTSHIFT_DATABASE_UID",
            "NIGHTSHIFT_SERVER_NAME",
            "NIGHTSHIFT_LOG_DIR",
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

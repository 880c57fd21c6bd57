//! What is wrong with a configuration: every fault at once, and never a secret.

use std::cell::RefCell;
use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The key's path and where it was set, such as
    /// `upstreams[0].base_url (nightshift.toml:12)` or `server.listen (NIGHTSHIFT_SERVER__LISTEN)`;
    /// the flag alone, such as `--listen`, where a flag set it.
    pub place: String,
    /// What is wrong there and what would be right. Holds no secret's value.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// All faults of a configuration: at least one. Displayed one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects faults while reading goes on, so that all are reported at once.
#[derive(Default)]
pub(super) struct Faults(RefCell<Vec<ConfigError>>);

impl Faults {
    pub fn note(&self, place: impl Into<String>, message: impl Into<String>) {
        self.0.borrow_mut().push(ConfigError {
            place: place.into(),
            message: message.into(),
        });
    }

    /// `value`, if nothing was noted.
    pub fn or<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.0.borrow().is_empty() {
            Ok(value)
        } else {
            Err(self.into_errors())
        }
    }

    /// What was noted.
    pub fn into_errors(self) -> ConfigErrors {
        ConfigErrors(self.0.into_inner())
    }
}

/// The one of `names` that `name` was most likely meant to be: first those that contain it or
/// that it contains (`url` means `base_url`), then by how many keystrokes they are apart.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let apart = |known: &str| {
        let contained = !name.is_empty() && (known.contains(name) || name.contains(known));
        (!contained, strsim::damerau_levenshtein(name, known))
    };
    names.into_iter().min_by_key(|known| apart(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let names = ["name", "base_url", "provider", "concurrency", "timeout"];
        for (written, meant) in [
            ("url", "base_url"),
            ("nmae", "name"),
            ("time_out", "timeout"),
            ("concurency", "concurrency"),
            ("connection_timeout", "timeout"),
        ] {
            assert_eq!(nearest(written, names), Some(meant), "{written}");
        }
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn every_fault_is_a_line() {
        let faults = Faults::default();
        faults.note("a", "is wrong");
        faults.note("b", "is missing");
        let errors = faults.or(()).unwrap_err();
        assert_eq!(errors.to_string(), "a: is wrong\nb: is missing");
    }
}

//! The room as a whole: layers, faults, and what is never shown.

mod endpoints;
mod example;
mod faults;
mod layers;
mod presets;
mod prices;
mod secrets;

use std::fs;

use tempfile::TempDir;

use super::error::ConfigError;
use super::*;

/// Loads `toml` as the default file, beside `variables`.
fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    load_flagged(toml, variables, &Overrides::default())
}

fn load_flagged(
    toml: &str,
    variables: &[(&str, &str)],
    overrides: &Overrides,
) -> Result<Config, ConfigErrors> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("nightshift.toml");
    fs::write(&file, toml).unwrap();
    let environment = variables.iter().copied().collect();
    Config::load_with(overrides, &environment, &file).map_err(|errors| {
        let folder = format!("{}/", folder.path().display());
        let short = |error: ConfigError| ConfigError {
            place: error.place.replace(&folder, ""),
            ..error
        };
        ConfigErrors(errors.0.into_iter().map(short).collect())
    })
}

/// Each fault of `toml` and `variables`, in any order, must begin with the line given.
fn check_faults(toml: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let errors = match load(toml, variables) {
        Ok(_) => panic!("no fault found in\n{toml}\n{variables:?}"),
        Err(errors) => errors.to_string(),
    };
    let lines: Vec<_> = errors.lines().collect();
    for line in expected {
        let found = lines.iter().any(|l| l.starts_with(line));
        assert!(found, "{line}\nis not among\n{errors}");
    }
    assert_eq!(lines.len(), expected.len(), "{toml}\n{errors}");
}

/// A file with one upstream `a` and one model `m`, to add wrong keys to.
const UPSTREAM: &str = "[[upstreams]]\nname = 'a'\nbase_url = 'http://a'\n";
const MODEL: &str = "[[models]]\nname = 'm'\nroutes = [{ upstream = 'a' }]\n";

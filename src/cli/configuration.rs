//! How commands read the configuration, and what they say of mistakes in it.

use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, USAGE};
use crate::config::{Config, ConfigErrors, Environment, Overrides};

/// Where the configuration is.
#[derive(Clone, Debug, Args)]
pub(super) struct ConfigArgs {
    /// The TOML file to read [default: nightshift.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// `sqlite://PATH` or `postgres://user:password@host/name`
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

impl ConfigArgs {
    pub(super) fn overrides(self) -> Overrides {
        Overrides {
            config: self.config,
            database: self.database,
            ..Overrides::default()
        }
    }
}

/// Reads all layers of the configuration, and warns on standard error of variables that were meant
/// for Nightshift, and that it does not read.
pub(super) fn load(overrides: &Overrides) -> anyhow::Result<Config> {
    let (config, near_misses) = load_quietly(overrides);
    warn_of(&near_misses);
    config.map_err(has_mistakes)
}

/// The same, for commands that show the warnings in a way of their own.
pub(super) fn load_quietly(overrides: &Overrides) -> (Result<Config, ConfigErrors>, Vec<String>) {
    let environment = Environment::capture();
    let config = Config::load(overrides, &environment);
    // Only now is it known which variables the configuration names.
    (config, environment.near_misses())
}

pub(super) fn warn_of(near_misses: &[String]) {
    for near_miss in near_misses {
        tell!("warning: {near_miss}");
    }
}

/// A wrong value of a flag is wrong usage, whatever command the flag is of.
pub(super) fn has_mistakes(errors: ConfigErrors) -> anyhow::Error {
    if errors.0.iter().all(|error| error.place.starts_with("--")) {
        let error = anyhow::anyhow!("{errors}");
        return Exit { code: USAGE, error }.into();
    }
    anyhow::anyhow!("the configuration has mistakes:\n{errors}")
}

//! Configuration: the defaults, a TOML file, the environment and flags, each over the one
//! before, as validated sections.
//!
//! All layers are laid over each other as one tree of values that know where they were set
//! (`value`). Then each section takes its keys from the tree by type (`reader`). A fault is noted
//! and reading goes on, so that all faults are reported at once. A value that a later layer
//! replaces is not checked.
//!
//! A room that is configured declares plain settings of its own, and the section here makes them.
//! A new key is a field of those settings, a line in the section's `read`, and a line in
//! `config.example.toml`, which is the layer of defaults.

mod auth;
mod capability;
mod database;
mod duration;
mod endpoint;
mod environment;
mod error;
mod limits;
mod log;
mod model;
mod near_misses;
mod output;
mod overrides;
mod preset;
mod price;
mod rate;
mod reader;
mod reload;
mod retention;
mod retry;
mod reuse;
mod secret;
mod server;
mod shown;
mod source;
mod task;
mod telemetry;
mod tenant;
#[cfg(test)]
mod tests;
mod upstream;
mod upstream_url;
mod value;
mod worker;

use std::io::ErrorKind;
use std::path::Path;

pub use auth::Auth;
pub use database::Database;
pub use duration::{DurationError, parse as parse_duration};
pub use environment::Environment;
pub use error::{ConfigError, ConfigErrors};
pub use limits::Limits;
pub use log::{Log, LogFormat};
pub use output::Output;
pub use overrides::Overrides;
pub use preset::Preset;
pub use price::Pricing;
pub use retention::Retention;
pub use server::{Role, Server};
pub use shown::shown_url;
pub use telemetry::Telemetry;
pub use tenant::Tenant;
pub use worker::Worker;

pub(crate) use error::nearest;

use crate::domain::endpoint::Endpoints;
use crate::domain::reuse::Terms;
use crate::domain::tenant::Tenants;
use crate::upstream::{
    self as upstreams, ModelSettings, RetrySettings, TaskSettings, UpstreamSettings,
};
use error::Faults;
use reader::{Context, Reader};
use source::{Fixed, Source};
use value::{Table, merge, read_defaults, read_toml};

/// The first layer, and what users copy: so the documented defaults cannot drift.
const DEFAULTS: &str = include_str!("../../config.example.toml");

/// Read from the working directory, if it is there and no other file is named.
const DEFAULT_FILE: &str = "nightshift.toml";

/// Sections of features that are not built yet.
const LATER: [&str; 3] = ["rate_limits", "roles", "webhooks"];

/// Everything that can be configured, checked. Its `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub database: Database,
    pub auth: Auth,
    pub limits: Limits,
    /// What can be batched.
    pub endpoints: Endpoints,
    pub upstreams: Vec<UpstreamSettings>,
    /// What was known of some of them by a name.
    pub presets: Vec<Preset>,
    pub pricing: Pricing,
    pub models: Vec<ModelSettings>,
    pub tasks: Vec<TaskSettings>,
    pub tenants: Vec<Tenant>,
    pub retry: RetrySettings,
    pub worker: Worker,
    pub retention: Retention,
    pub reuse: Terms,
    pub output: Output,
    pub log: Log,
    pub telemetry: Telemetry,
    source: Source,
    fixed: Fixed,
}

impl Config {
    /// Reads all layers: defaults, then the TOML file, then the environment, then the flags.
    /// Relative paths start at the working directory.
    ///
    /// # Errors
    /// Every fault at once. The faults of a file that cannot be read, or is not TOML, come
    /// alone: what it was to say is not known.
    pub fn load(overrides: &Overrides, environment: &Environment) -> Result<Self, ConfigErrors> {
        Self::load_with(overrides, environment, Path::new(DEFAULT_FILE))
    }

    /// The defaults and the flags alone, for commands that promise to ignore file and
    /// environment. Variables are read only where `--api-key-env` names one.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn built_in(
        overrides: &Overrides,
        environment: &Environment,
    ) -> Result<Self, ConfigErrors> {
        let faults = Faults::default();
        let mut root = read_defaults(DEFAULTS);
        overrides.apply(&mut root, &Environment::default(), &faults);
        let source = Source {
            overrides: overrides.clone(),
            is_built_in: true,
        };
        Self::read(root, source, environment, faults)
    }

    /// Puts the layers over each other (defaults, file, environment, flags), and reads the result.
    /// Without `--config` the file is `default_file`, if it is there.
    fn load_with(
        overrides: &Overrides,
        environment: &Environment,
        default_file: &Path,
    ) -> Result<Self, ConfigErrors> {
        let faults = Faults::default();
        let mut root = read_defaults(DEFAULTS);
        let Some(file) = file_layer(overrides.config.as_deref(), default_file, &faults) else {
            return Err(faults.into_errors());
        };
        merge(&mut root, file, "", &faults);
        let variables = environment.layer(&faults);
        merge(&mut root, variables, "", &faults);
        overrides.apply(&mut root, environment, &faults);
        let source = Source {
            overrides: overrides.clone(),
            is_built_in: false,
        };
        Self::read(root, source, environment, faults)
    }

    /// Reads all sections of the merged layers, and checks what no section can check alone.
    fn read(
        root: Table,
        source: Source,
        environment: &Environment,
        faults: Faults,
    ) -> Result<Self, ConfigErrors> {
        let context = Context {
            environment,
            faults: &faults,
        };
        let fixed = Fixed::of(&root);
        let overrides = &source.overrides;
        let mut root = Reader::root(context, root);
        let pricing = Pricing::read(root.section("pricing"));
        let mut upstreams = upstream::read_all(root.tables("upstreams"), &pricing);
        let capabilities = root.tables("capabilities");
        capability::read_all(capabilities, &pricing, &mut upstreams.all);
        for upstream in &mut upstreams.all {
            if let Some(concurrency) = overrides.concurrency {
                upstream.concurrency = concurrency;
            }
            if let Some(timeout) = overrides.timeout {
                upstream.timeout = timeout;
                upstream.stream_timeout = timeout;
            }
            upstream::add_headers(upstream, &overrides.headers, &faults);
        }
        let mut retry = retry::read(root.section("retry"));
        if let Some(attempts) = overrides.max_attempts {
            retry.max_attempts = attempts;
        }
        let mut database = Database::read(root.section("database"));
        if let Some(file) = &overrides.database_file {
            database.move_to(file);
        }
        let endpoints = endpoint::read_all(root.tables("endpoints"));
        let models = root.tables("models");
        let models = model::read_all(models, &upstreams.all, &pricing, endpoints);
        upstream::check_auto(&mut upstreams, &models);
        let config = Self {
            server: Server::read(root.section("server")),
            database,
            auth: Auth::read(root.section("auth")),
            limits: Limits::read(root.section("limits")),
            tasks: task::read_all(root.tables("tasks"), &models, endpoints),
            endpoints,
            tenants: tenant::read_all(root.tables("tenants"), &models),
            models,
            upstreams: upstreams.all,
            presets: upstreams.presets,
            pricing,
            retry,
            worker: Worker::read(root.section("worker")),
            retention: Retention::read(root.section("retention")),
            reuse: reuse::read(root.section("reuse")),
            output: Output::read(root.section("output")),
            log: Log::read(root.section("log")),
            telemetry: Telemetry::read(root.section("telemetry")),
            source,
            fixed,
        };
        if !config.server.allowed_origins.is_empty() && !config.auth_is_required() {
            faults.note(
                "server.allowed_origins",
                "needs keys: without them every page that is allowed could use the server as its \
                 owner. Set auth.required = true",
            );
        }
        root.refuse("cache", "is named [reuse]");
        root.later(&LATER);
        root.finish();
        faults.or(config)
    }

    /// What is possible, and most likely not meant, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let upstreams = self.upstreams.iter();
        upstreams.filter_map(upstream_url::warning).collect()
    }

    /// The settings of the room that calls model servers.
    #[must_use]
    pub fn upstream_settings(&self) -> upstreams::Settings {
        upstreams::Settings {
            upstreams: self.upstreams.clone(),
            models: self.models.clone(),
            tasks: self.tasks.clone(),
            tenants: self.tenants.iter().map(|one| one.rates.clone()).collect(),
            retry: self.retry,
            currency: self.pricing.currency.clone(),
            max_in_flight_bytes: self.limits.max_in_flight_bytes,
        }
    }

    /// What tenants are allowed beside their rate limits.
    #[must_use]
    pub fn allowances(&self) -> Tenants {
        let tenants = self.tenants.iter();
        Tenants::new(tenants.map(|one| (one.name.clone(), one.allowance.clone())))
    }

    /// Whether only this machine can reach the server: see [`Server::is_loopback`].
    #[must_use]
    pub fn listen_is_loopback(&self) -> bool {
        self.server.is_loopback()
    }

    /// Whether a key is needed: what `[auth] required` says, and where it says nothing, whether
    /// other machines can reach the server.
    #[must_use]
    pub fn auth_is_required(&self) -> bool {
        self.auth.required.unwrap_or(!self.listen_is_loopback())
    }
}

/// The file's table, an empty one where the default file is not there; `None` after a fault.
fn file_layer(named: Option<&Path>, default: &Path, faults: &Faults) -> Option<Table> {
    let path = named.unwrap_or(default);
    match std::fs::read_to_string(path) {
        Ok(text) => read_toml(&text, path, faults),
        Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => Some(Table::new()),
        Err(error) => {
            let place = path.display().to_string();
            faults.note(place, format!("the file cannot be read: {error}"));
            None
        }
    }
}

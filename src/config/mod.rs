//! Configuration: file, environment and flags, as validated sections.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub database: Database,
    pub auth: Auth,
    pub limits: Limits,
    pub upstreams: Vec<Upstream>,
    pub models: Vec<Model>,
    pub retry: Retry,
    pub worker: Worker,
    pub log: Log,
}

#[derive(Clone, Debug)]
pub struct Server {
    /// host:port; port 0 takes a free one.
    pub listen: String,
}

/// Where the data is.
#[derive(Clone, Debug)]
pub struct Database {
    /// `sqlite://PATH` or `postgres://…`. May hold a password: never printed.
    pub url: SecretString,
}

#[derive(Clone, Debug)]
pub struct Auth {
    /// `None`: required exactly when `server.listen` is not loopback.
    pub required: Option<bool>,
    pub bootstrap_key: Option<SecretString>,
}

#[derive(Clone, Debug)]
pub struct Limits {
    pub max_file_bytes: u64,
    pub max_requests_per_batch: u64,
    pub max_line_bytes: usize,
    pub max_in_flight_bytes: usize,
}

#[derive(Clone, Debug)]
pub struct Upstream {
    pub name: String,
    /// http or https; no trailing slash; its path is `/v1` where none was given.
    pub base_url: String,
    pub api_key: Option<SecretString>,
    pub concurrency: usize,
    pub timeout: Duration,
    pub connect_timeout: Duration,
    pub max_response_bytes: usize,
    pub headers: BTreeMap<String, SecretString>,
    pub proxy: Option<SecretString>,
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Model {
    /// What a line's `body.model` says; `*` matches any other.
    pub name: String,
    /// Calls at once over all its upstreams; `None`: what its upstreams allow.
    pub concurrency: Option<usize>,
    pub routes: Vec<Route>,
    /// Filled in where the line leaves them out.
    pub defaults: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug)]
pub struct Route {
    /// An upstream's name.
    pub upstream: String,
    /// What the upstream calls the model, where that differs.
    pub model: Option<String>,
    pub weight: u32,
}

#[derive(Clone, Debug)]
pub struct Retry {
    pub max_attempts: u32,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
}

#[derive(Clone, Debug)]
pub struct Worker {
    /// How long a replica may be silent before others take its work.
    pub lease: Duration,
    /// How long calls in flight may go on after a cancel or the window's end.
    pub settle_timeout: Duration,
    /// How long calls in flight may go on after SIGTERM.
    pub shutdown_grace: Duration,
}

#[derive(Clone, Debug)]
pub struct Log {
    /// A `tracing` filter, such as `info` or `nightshift=debug`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

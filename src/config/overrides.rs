//! Flags, as the last layer.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::environment::{Environment, variable};
use super::error::Faults;
use super::upstream::{CONCURRENCY_MAX, DEFAULT_NAME};
use super::value::{Node, Origin, Table, Value, merge};

/// Stands in for the URL of a command's own file, whose path need not be text.
const OWN_FILE: &str = "sqlite:own.db";

/// What the command line says over file and environment: each flag that was given. Flags are
/// checked by [`Config::load`](super::Config::load), with all else.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--config FILE`; `None`: `nightshift.toml` if it exists.
    pub config: Option<PathBuf>,
    /// `--listen HOST:PORT`
    pub listen: Option<String>,
    /// `--database URL`
    pub database: Option<String>,
    /// A SQLite file in place of the configured database, for a command that has one of its own.
    pub database_file: Option<PathBuf>,
    /// `--upstream URL`: takes the place of all configured upstreams and models. The variable
    /// `NIGHTSHIFT_UPSTREAM` says the same.
    pub upstream: Option<String>,
    /// `--api-key-env NAME`: the variable that holds the key of `upstream`.
    pub api_key_env: Option<String>,
    /// `--role all|api|worker`
    pub role: Option<String>,
    /// `--header NAME:VALUE`: sent with each call, to every upstream.
    pub headers: Vec<(String, String)>,
    /// `--timeout DURATION`: of one call, to every upstream.
    pub timeout: Option<Duration>,
    /// `--max-attempts N`
    pub max_attempts: Option<u32>,
    /// `--concurrency N`: calls at once to each upstream. What a model allows stays as it is.
    pub concurrency: Option<usize>,
}

/// Without what may hold a secret.
impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides")
            .field("config", &self.config)
            .field("listen", &self.listen)
            .field("role", &self.role)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl Overrides {
    /// Lays the flags, and the one upstream that takes the place of all, on `root`.
    pub(super) fn apply(&self, root: &mut Table, environment: &Environment, faults: &Faults) {
        self.check(faults);
        let mut set = |section: &str, key: &str, flag, text: &Option<String>| {
            if let Some(text) = text {
                let origin = Origin::Flag(flag);
                let entry = (key.to_owned(), Node::string(origin.clone(), text));
                let value = Value::Table(Table::from([entry]));
                let over = Table::from([(section.to_owned(), Node { origin, value })]);
                merge(root, over, "", faults);
            }
        };
        set("server", "listen", "--listen", &self.listen);
        set("server", "role", "--role", &self.role);
        set("database", "url", "--database", &self.database);
        // What is configured is not used, so it is not checked.
        let own = self.database_file.as_ref().map(|_| OWN_FILE.to_owned());
        set("database", "url", "--state", &own);

        let flag = self.upstream.as_deref();
        let flag = flag.map(|url| (Origin::Flag("--upstream"), url));
        let named = environment.get("NIGHTSHIFT_UPSTREAM");
        let named = named.map(|url| (variable("NIGHTSHIFT_UPSTREAM"), url));
        if let Some((origin, url)) = flag.or(named) {
            root.remove("models");
            root.insert("upstreams".to_owned(), self.single_upstream(&origin, url));
        } else if self.api_key_env.is_some() {
            faults.note(
                "--api-key-env",
                "needs --upstream: configured upstreams name their own keys",
            );
        }
    }

    /// Notes a fault for each flag whose value is out of bounds.
    fn check(&self, faults: &Faults) {
        let allowed = 1..=CONCURRENCY_MAX;
        if self
            .concurrency
            .is_some_and(|calls| !allowed.contains(&(calls as u64)))
        {
            faults.note(
                "--concurrency",
                format!("must be from 1 to {CONCURRENCY_MAX}"),
            );
        }
    }

    /// The one upstream that `--upstream` means, as the array `upstreams`.
    fn single_upstream(&self, origin: &Origin, url: &str) -> Node {
        let mut upstream = Table::from([
            (
                "name".to_owned(),
                Node::string(origin.clone(), DEFAULT_NAME),
            ),
            ("base_url".to_owned(), Node::string(origin.clone(), url)),
        ]);
        if let Some(name) = &self.api_key_env {
            let name = Node::string(Origin::Flag("--api-key-env"), name);
            upstream.insert("api_key_env".to_owned(), name);
        }
        let upstream = Node {
            origin: origin.clone(),
            value: Value::Table(upstream),
        };
        Node {
            origin: origin.clone(),
            value: Value::Array(vec![upstream]),
        }
    }
}

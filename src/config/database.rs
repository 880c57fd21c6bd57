//! `[database]`: where the data is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::reader::Reader;
use super::shown::shown_url;
use crate::store;

/// More would only queue inside the database.
const CONNECTIONS_MAX: u64 = 1_000;
/// With less, a database that is merely busy would seem to be away.
const STATEMENT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// `[database]`
#[derive(Clone, Debug)]
pub struct Database {
    /// `sqlite://PATH`, `sqlite:PATH`, `postgres://…` or `postgresql://…`. May hold a password:
    /// never printed.
    pub url: SecretString,
    /// The database file, where the URL names one or a command has one of its own.
    pub file: Option<PathBuf>,
    /// Connections that this process holds at most: at least 1.
    pub max_connections: u32,
    /// How long a server waits at its start for a database that cannot be used yet.
    pub start_timeout: Duration,
    /// How long a statement may run on Postgres: at least a second.
    pub statement_timeout: Duration,
    /// Whether a pooler in transaction mode stands before Postgres.
    pub pooler: bool,
}

impl Database {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let url = reader.take("url").and_then(|item| {
            let url = item.string()?;
            if let Err(message) = check_url(&url) {
                item.fault(message);
            }
            Some(SecretString::from(url))
        });
        let max_connections = reader.whole("max_connections", 1, CONNECTIONS_MAX);
        let start_timeout = reader.duration("start_timeout", Duration::ZERO);
        let statement_timeout = reader.duration("statement_timeout", STATEMENT_TIMEOUT_MIN);
        let pooler = reader.boolean("pooler");
        reader.finish();
        let url = url.unwrap_or_default();
        Self {
            file: sqlite_path(url.expose_secret()).map(PathBuf::from),
            url,
            max_connections: max_connections.unwrap_or_default(),
            start_timeout: start_timeout.unwrap_or_default(),
            statement_timeout: statement_timeout.unwrap_or_default(),
            pooler: pooler.unwrap_or_default(),
        }
    }

    /// How the store opens the database, without what depends on who opens it: how long to wait
    /// for the database, HTTP's connections, and the lock on a file.
    #[must_use]
    pub fn store_settings(&self) -> store::Settings {
        store::Settings {
            connections: self.max_connections,
            statement_timeout: self.statement_timeout,
            pooler: self.pooler,
            ..store::Settings::default()
        }
    }

    /// Where the database is, as it may be shown: without a user or a password.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.sqlite_path() {
            Some(path) => format!("sqlite://{}", path.display()),
            None => shown_url(self.url.expose_secret()),
        }
    }

    /// The database file, where the URL names one; `None` for Postgres. The path is taken as it
    /// is written: `%`, `#`, `?` and spaces mean themselves.
    #[must_use]
    pub fn sqlite_path(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The data is in this file, whatever the URL says.
    pub fn move_to(&mut self, file: &Path) {
        self.file = Some(file.to_owned());
    }
}

fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    Some(path.strip_prefix("//").unwrap_or(path))
}

/// Whether a path ends in parameters that other programs know. They were meant as such, and would
/// be a part of the file's name.
fn has_parameters(path: &str) -> bool {
    let names = ["cache", "immutable", "mode", "nolock", "psow", "vfs"];
    let name = path
        .rsplit_once('?')
        .and_then(|(_, query)| query.split_once('='));
    name.is_some_and(|(name, _)| names.contains(&name))
}

/// Its messages do not quote the URL, which may hold a password.
fn check_url(url: &str) -> Result<(), &'static str> {
    if let Some(path) = sqlite_path(url) {
        return match path {
            "" => Err("the path of the database's file is missing: sqlite://PATH"),
            ":memory:" => Err("a database in memory would lose everything: name a file"),
            _ if has_parameters(path) => Err(
                "a sqlite URL has no parameters: leave out what stands behind the question mark",
            ),
            _ => Ok(()),
        };
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        return match reqwest::Url::parse(url) {
            Ok(_) => Ok(()),
            Err(_) => Err(
                "is not a URL (in a password, characters such as # / ? @ : and % are \
                           written %23 %2F %3F %40 %3A and %25)",
            ),
        };
    }
    Err("expected sqlite://PATH or postgres://user:password@host/name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_databases_are_known() {
        for (url, path) in [
            ("sqlite://data/a.db", Some("data/a.db")),
            ("sqlite:///var/lib/a b%20.db", Some("/var/lib/a b%20.db")),
            ("sqlite:a.db", Some("a.db")),
            ("sqlite:/a.db", Some("/a.db")),
            ("sqlite://a#1?.db", Some("a#1?.db")),
            ("sqlite://what?=1.db", Some("what?=1.db")),
            ("postgres://u:p@host/name", None),
            ("postgresql://u:p%40@host:5432/name?sslmode=require", None),
            ("postgres:///name?host=/var/run/postgresql", None),
        ] {
            assert_eq!(check_url(url), Ok(()), "{url}");
            assert_eq!(sqlite_path(url), path, "{url}");
        }
    }

    #[test]
    fn other_databases_are_refused() {
        for url in [
            "nightshift.db",
            "mysql://host/name",
            "file:///a.db",
            "sqlite:",
            "sqlite://",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://a.db?mode=ro",
            "postgres:host",
            "postgres://u:p#w@host/name",
        ] {
            assert!(check_url(url).is_err(), "{url}");
        }
    }
}

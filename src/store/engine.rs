//! The two engines, and all in which they differ: connections, transactions, the spelling of
//! bytes and of the database's clock, and how rows are locked.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Postgres, Sqlite, Transaction};
use tokio_util::sync::CancellationToken;

use super::listen::Wake;
use super::{Error, Result};
use crate::domain::clock::Clock;

/// How long a statement may run on Postgres before it is given up.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a SQLite statement waits for another process's write (`keys` beside a server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to learn why Postgres could not be reached.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(5);
/// SQLite connections that read; there is one that writes.
const SQLITE_READERS: u32 = 4;

/// Runs one expression on whichever native connection there is. The expression is compiled
/// once for each engine, so it must end in a value that belongs to neither.
macro_rules! on {
    ($db:expr, $c:ident => $e:expr) => {
        match $db {
            $crate::store::engine::Connection::Sqlite($c) => $e,
            $crate::store::engine::Connection::Postgres($c) => $e,
        }
    };
}

/// The same inside a transaction.
macro_rules! within {
    ($tx:expr, $c:ident => $e:expr) => {
        match $tx {
            $crate::store::engine::Tx::Sqlite(tx) => {
                let $c = &mut **tx;
                $e
            }
            $crate::store::engine::Tx::Postgres(tx) => {
                let $c = &mut **tx;
                $e
            }
        }
    };
}

pub(super) use {on, within};

pub(super) enum Connection<'a> {
    Sqlite(&'a SqlitePool),
    Postgres(&'a PgPool),
}

pub(super) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    pub(super) async fn commit(self) -> Result<()> {
        match self {
            Tx::Sqlite(tx) => Ok(tx.commit().await?),
            Tx::Postgres(tx) => Ok(tx.commit().await?),
        }
    }
}

/// Which database stands behind a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// How a parameter in a list of values says that it is bytes.
    pub(super) fn bytes_type(self) -> &'static str {
        match self {
            Engine::Sqlite => "BLOB",
            Engine::Postgres => "BYTEA",
        }
    }

    /// Takes rows that nobody else is taking. SQLite has one writer, so there it is nothing.
    pub(super) fn skip_locked(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// Keeps a row that was read for this transaction alone.
    pub(super) fn for_update(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE",
        }
    }

    /// Keeps a row that was read from being changed until the transaction ends.
    pub(super) fn for_share(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR SHARE",
        }
    }

    /// Waits for a turn that lasts until the transaction ends, for so many milliseconds; a
    /// transaction that is idle for longer in its turn is ended. The lock's number is `nightshi`
    /// in ASCII. SQLite has one writer anyway.
    pub(super) fn take_turn(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => Some(
                "-- take_turn
                 SELECT set_config('lock_timeout', $1, true),
                    set_config('idle_in_transaction_session_timeout', $1, true),
                    pg_advisory_xact_lock(7956003915054671977)",
            ),
        }
    }

    /// The database's own clock in milliseconds: for leases only, which processes with clocks
    /// of their own compare.
    pub(super) fn now_ms(self) -> &'static str {
        match self {
            Engine::Sqlite => "CAST(unixepoch('subsec') * 1000 AS BIGINT)",
            Engine::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}

enum Pools {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(PgPool),
}

struct Shared {
    pools: Pools,
    clock: Clock,
    wake: Wake,
    /// Held for the life of a server on SQLite: see [`Store::lock`].
    lock: std::sync::OnceLock<std::fs::File>,
    sqlite_path: Option<PathBuf>,
    stop: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl Store {
    /// Connects, creates what does not exist yet, and migrates.
    ///
    /// # Errors
    /// When the URL is of neither engine, the database cannot be reached, or its schema is newer
    /// than this program.
    pub async fn open(url: &str, connections: u32, clock: Clock) -> Result<Store> {
        let stop = CancellationToken::new();
        let (pools, wake, sqlite_path) = match sqlite_path(url) {
            Some(path) => {
                let (write, read) = open_sqlite(&path).await?;
                (Pools::Sqlite { write, read }, Wake::local(), Some(path))
            }
            None => {
                let options = postgres_options(url)?;
                let pool = open_postgres(&options, connections).await?;
                let wake = Wake::across_processes(pool.clone(), options, stop.clone());
                (Pools::Postgres(pool), wake, None)
            }
        };
        let shared = Shared {
            pools,
            clock,
            wake,
            lock: std::sync::OnceLock::new(),
            sqlite_path,
            stop,
        };
        let store = Store {
            shared: Arc::new(shared),
        };
        store.migrate().await?;
        Ok(store)
    }

    /// Claims a SQLite database for this server, until the process ends: two servers on one
    /// file would each believe that nobody else can hold a lease. Nothing on Postgres.
    ///
    /// # Errors
    /// When another process has it.
    pub fn lock(&self) -> Result<()> {
        let Some(path) = &self.shared.sqlite_path else {
            return Ok(());
        };
        let mut name = path.clone().into_os_string();
        name.push(".lock");
        let refused = |cause: std::io::Error| {
            Error::Refused(format!(
                "cannot lock {}: {cause}",
                Path::new(&name).display()
            ))
        };
        let file = open_private(Path::new(&name)).map_err(refused)?;
        match file.try_lock() {
            Ok(()) => {
                let _ = self.shared.lock.set(file);
                Ok(())
            }
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::Refused(format!(
                "another nightshift server is using {}; stop it, or give this one a database of \
                 its own (--database), or use Postgres, which any number of servers can share",
                path.display()
            ))),
            Err(std::fs::TryLockError::Error(cause)) => Err(refused(cause)),
        }
    }

    #[must_use]
    pub fn engine(&self) -> Engine {
        match self.shared.pools {
            Pools::Sqlite { .. } => Engine::Sqlite,
            Pools::Postgres(_) => Engine::Postgres,
        }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms()
    }

    pub(super) fn wake_handle(&self) -> &Wake {
        &self.shared.wake
    }

    /// For single statements that change nothing.
    pub(super) fn reader(&self) -> Connection<'_> {
        match &self.shared.pools {
            Pools::Sqlite { read, .. } => Connection::Sqlite(read),
            Pools::Postgres(pool) => Connection::Postgres(pool),
        }
    }

    /// For single statements that change something.
    pub(super) fn writer(&self) -> Connection<'_> {
        match &self.shared.pools {
            Pools::Sqlite { write, .. } => Connection::Sqlite(write),
            Pools::Postgres(pool) => Connection::Postgres(pool),
        }
    }

    /// A transaction that writes. SQLite's takes the writer's lock at once: taking it later can
    /// fail where another process has written in between.
    pub(super) async fn begin(&self) -> Result<Tx> {
        Ok(match &self.shared.pools {
            Pools::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?),
            Pools::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<()> {
        on!(self.reader(), c => { sqlx::query("-- ping\nSELECT 1").execute(c).await?; });
        Ok(())
    }

    /// Closes all connections, so that nothing is left half done when the process ends.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        match &self.shared.pools {
            Pools::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }
}

/// The path in a SQLite URL, or `None` for a URL of Postgres.
fn sqlite_path(url: &str) -> Option<PathBuf> {
    let path = url
        .strip_prefix("sqlite://")
        .or_else(|| url.strip_prefix("sqlite:"))?;
    Some(PathBuf::from(path))
}

async fn open_postgres(options: &PgConnectOptions, connections: u32) -> Result<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options.clone())
        .await;
    if let Err(sqlx::Error::PoolTimedOut) = pool {
        // A pool does not say why it waited in vain; a connection does.
        let connection = PgConnection::connect_with(options);
        if let Ok(Err(cause)) = tokio::time::timeout(CAUSE_TIMEOUT, connection).await {
            return Err(cause.into());
        }
    }
    Ok(pool?)
}

async fn open_sqlite(path: &Path) -> Result<(SqlitePool, SqlitePool)> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        create_private(directory).map_err(|cause| {
            Error::Refused(format!("cannot create {}: {cause}", directory.display()))
        })?;
    }
    open_private(path)
        .map_err(|cause| Error::Refused(format!("cannot open {}: {cause}", path.display())))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        // Before the first table: freed pages can then be given back to the file system.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        // An answer of 200 means on disk; flushes are grouped, which keeps it cheap.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .optimize_on_close(false, None);
    let write = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.clone())
        .await?;
    let read = SqlitePoolOptions::new()
        .max_connections(SQLITE_READERS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.create_if_missing(false))
        .await?;
    Ok((write, read))
}

/// Opens a file for writing; one that is not there yet is made so that only its owner can read
/// it. SQLite gives the files that it makes beside its database the same mode.
fn open_private(path: &Path) -> std::io::Result<std::fs::File> {
    let mut options = std::fs::File::options();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Creates a directory that only its owner can enter: it will hold prompts and answers.
fn create_private(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn postgres_options(url: &str) -> Result<PgConnectOptions> {
    // The cause is left out: it may repeat the URL, which may hold a password.
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        Error::Refused("database.url is neither sqlite://… nor a valid postgres://… URL".to_owned())
    })?;
    Ok(options
        .application_name("nightshift")
        .options([
            (
                "statement_timeout",
                STATEMENT_TIMEOUT.as_millis().to_string(),
            ),
            (
                "idle_in_transaction_session_timeout",
                STATEMENT_TIMEOUT.as_millis().to_string(),
            ),
        ])
        .statement_cache_capacity(200))
}

/// `($1, $2), ($3, $4)`: the values of `rows` rows of `columns` columns, from parameter `first`.
pub(super) fn values(first: usize, rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 6);
    let mut number = first;
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            if column > 0 {
                text.push_str(", ");
            }
            text.push('$');
            text.push_str(&number.to_string());
            number += 1;
        }
        text.push(')');
    }
    text
}

/// The same with each parameter cast to its column's type, for a list that stands by itself:
/// there Postgres has nothing else to tell the types from.
pub(super) fn typed_values(first: usize, rows: usize, types: &[&str]) -> String {
    let mut text = String::with_capacity(rows * types.len() * 20);
    let mut number = first;
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for (column, of_type) in types.iter().enumerate() {
            if column > 0 {
                text.push_str(", ");
            }
            text.push_str(&format!("CAST(${number} AS {of_type})"));
            number += 1;
        }
        text.push(')');
    }
    text
}

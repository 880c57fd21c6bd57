//! The store: its connections, and what is spelled differently by each engine.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::sqlite::SqlitePool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::Skew;
use super::postgres::{self, Database, Lent, limited};
use super::{migrate, sqlite};
use crate::domain::clock::Clock;
use crate::store::fleet::Wake;
use crate::store::{Error, Result};

/// How long to wait between two tries to open a database, and between two lines that tell of it.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
const OPEN_TOLD_EVERY: Duration = Duration::from_secs(5);
/// The names that a migration's statements have stay on the pooler's connection.
const FORGET_STATEMENTS: &str = "DEALLOCATE ALL";
/// How long a migration may take.
const MIGRATION_MAX: Duration = Duration::from_secs(3600);
/// One for the lease, and one for the turns of those who share limits. They must not queue behind
/// requests: else many clients could keep a process from renewing its lease.
const VITAL_CONNECTIONS: u32 = 2;

/// Runs one expression on whichever native connection there is. The expression is compiled
/// once for each engine, so it must end in a value that belongs to neither. On Postgres it has
/// so long as a statement may take.
macro_rules! on {
    ($db:expr, $c:ident => $e:expr) => {
        match $db {
            $crate::store::engine::Connection::Sqlite($c) => $e,
            $crate::store::engine::Connection::Postgres(database) => {
                let mut lent = database.lend().await?;
                let value = $crate::store::engine::lent!(&mut lent, $c => $e);
                lent.done().await?;
                value
            }
        }
    };
}

/// The same inside a transaction.
macro_rules! within {
    ($tx:expr, $c:ident => $e:expr) => {
        match $tx {
            $crate::store::engine::Tx::Sqlite(tx) => {
                let $c = tx.connection();
                $e
            }
            $crate::store::engine::Tx::Postgres(tx) => {
                $crate::store::engine::lent!(tx, $c => $e)
            }
        }
    };
}

/// The same on one connection of Postgres.
macro_rules! lent {
    ($lent:expr, $c:ident => $e:expr) => {{
        let lent: &mut $crate::store::engine::Lent = $lent;
        let limit = lent.work();
        let outcome = {
            let $c = &mut *lent;
            $crate::store::engine::limited(limit, async { Ok::<_, $crate::store::Error>($e) }).await
        };
        lent.settle(outcome)?
    }};
}

pub(in crate::store) use {lent, on, within};

pub(in crate::store) enum Connection<'a> {
    Sqlite(&'a SqlitePool),
    Postgres(&'a Database),
}

pub(in crate::store) enum Tx {
    Sqlite(sqlite::Writing),
    Postgres(Lent),
}

impl Tx {
    pub(in crate::store) async fn commit(self) -> Result<()> {
        match self {
            Tx::Sqlite(writing) => writing.commit().await,
            Tx::Postgres(lent) => lent.commit().await,
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
    pub(in crate::store) fn bytes_type(self) -> &'static str {
        match self {
            Engine::Sqlite => "BLOB",
            Engine::Postgres => "BYTEA",
        }
    }

    /// Takes rows that nobody else is taking. SQLite has one writer, so there it is nothing.
    pub(in crate::store) fn skip_locked(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE SKIP LOCKED",
        }
    }

    /// Keeps a row that was read for this transaction alone.
    pub(in crate::store) fn for_update(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR UPDATE",
        }
    }

    /// The same, of the rows of one of several tables that are read.
    pub(in crate::store) fn for_update_of(self, table: &str) -> String {
        match self {
            Engine::Sqlite => String::new(),
            Engine::Postgres => format!("FOR UPDATE OF {table}"),
        }
    }

    /// Keeps a row that was read from being changed until the transaction ends.
    pub(in crate::store) fn for_share(self) -> &'static str {
        match self {
            Engine::Sqlite => "",
            Engine::Postgres => "FOR SHARE",
        }
    }

    /// Waits for a turn that lasts until the transaction ends, for so many milliseconds; a
    /// transaction that is idle for longer in its turn is ended. The lock's number is `nightshi`
    /// in ASCII. SQLite has one writer anyway.
    pub(in crate::store) fn take_turn(self) -> Option<&'static str> {
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

    /// Has the transaction wait for a lock only for a second, so that its connection is not kept.
    /// SQLite's one lock is had by then.
    pub(in crate::store) fn be_impatient(self) -> Option<&'static str> {
        match self {
            Engine::Sqlite => None,
            Engine::Postgres => {
                Some("-- be_impatient\nSELECT set_config('lock_timeout', '1000', true)")
            }
        }
    }

    /// The database's own clock in milliseconds: for what processes with clocks of their own
    /// compare, and for what is over.
    pub(in crate::store) fn now_ms(self) -> &'static str {
        match self {
            Engine::Sqlite => "CAST(unixepoch('subsec') * 1000 AS BIGINT)",
            Engine::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }
}

enum Pools {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(Box<Database>),
}

/// How a database is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Connections to Postgres that this process holds at most.
    pub connections: u32,
    /// How many of them are for [`Store::apart`] alone, fewer than all; 0: it shares in all.
    pub apart: u32,
    /// How long a statement may run on Postgres before it is given up.
    pub statement_timeout: Duration,
    /// How long to wait for a database that cannot be used yet.
    pub patience: Duration,
    /// A pooler in transaction mode stands before Postgres.
    pub pooler: bool,
    /// Claims a SQLite file until the store is closed: two servers on one file would each believe
    /// that nobody else can hold a lease. Nothing on Postgres.
    pub exclusive: bool,
}

/// Where a database is.
#[derive(Clone, Copy)]
enum Place<'a> {
    Sqlite(&'a Path),
    Postgres(&'a str),
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            connections: 4,
            apart: 0,
            statement_timeout: Duration::from_secs(60),
            patience: Duration::from_secs(5),
            pooler: false,
            exclusive: false,
        }
    }
}

struct Shared {
    pools: Pools,
    /// On Postgres, connections for leases and shares alone.
    vital: Option<Database>,
    /// On Postgres, connections for [`Store::apart`] alone.
    apart: Option<Database>,
    clock: Clock,
    skew: Skew,
    wake: Wake,
    /// Held for the life of a server on SQLite: see [`OpenOptions::exclusive`].
    lock: Mutex<Option<sqlite::Lock>>,
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
    is_apart: bool,
}

impl Store {
    /// Connects, creates what does not exist yet, and migrates.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub async fn open(url: &str, connections: u32, clock: Clock) -> Result<Store> {
        let options = OpenOptions {
            connections,
            ..OpenOptions::default()
        };
        Self::open_with(url, &options, clock).await
    }

    /// Connects, creates what does not exist yet, and migrates. A database that cannot be reached,
    /// or that another process migrates, is waited for.
    ///
    /// # Errors
    /// When the URL is of neither engine, the database cannot be used, another process has claimed
    /// it, or its schema is newer than this program.
    pub async fn open_with(url: &str, options: &OpenOptions, clock: Clock) -> Result<Store> {
        match sqlite::path_of(url) {
            Some(path) => Self::open_file(&path, options, clock).await,
            None => Self::open_place(Place::Postgres(url), options, clock).await,
        }
    }

    /// The same, of a SQLite file: any path that is UTF-8.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub async fn open_file(path: &Path, options: &OpenOptions, clock: Clock) -> Result<Store> {
        Self::open_place(Place::Sqlite(path), options, clock).await
    }

    async fn open_place(place: Place<'_>, options: &OpenOptions, clock: Clock) -> Result<Store> {
        let stop = CancellationToken::new();
        let mut lock = None;
        let (pools, wake) = match place {
            Place::Sqlite(path) => {
                let path = sqlite::place(path)?;
                // Before the first look into the file: even that would write.
                if options.exclusive {
                    lock = Some(sqlite::lock(&path)?);
                }
                sqlite::must_have_one_name(&path)?;
                let open = async || {
                    let (write, read) = sqlite::open(&path).await?;
                    let mut tx = write.begin_with("BEGIN IMMEDIATE").await?;
                    migrate::to_newest(&mut *tx, Engine::Sqlite).await?;
                    tx.commit().await?;
                    Ok(Pools::Sqlite { write, read })
                };
                (
                    patiently(options.patience, Error::is_busy, open).await?,
                    Wake::local(),
                )
            }
            Place::Postgres(url) => {
                let database = Database::lazy(url, options)?;
                let migrate = async || migrate_postgres(url, options.pooler).await;
                patiently(options.patience, Error::is_outage, migrate).await?;
                let wake = if database.can_listen() {
                    Wake::across_processes(database.clone(), stop.clone())
                } else {
                    Wake::local()
                };
                (Pools::Postgres(Box::new(database)), wake)
            }
        };
        let (vital, apart) = match &pools {
            Pools::Sqlite { .. } => (None, None),
            Pools::Postgres(database) => {
                let apart = (options.apart > 0).then(|| database.beside(options.apart));
                (Some(database.beside(VITAL_CONNECTIONS)), apart)
            }
        };
        let shared = Shared {
            pools,
            vital,
            apart,
            clock,
            skew: Skew::default(),
            wake,
            lock: Mutex::new(lock),
            stop,
        };
        let store = Store {
            shared: Arc::new(shared),
            is_apart: false,
        };
        // Before anything is written by this process's clock.
        store.now().await?;
        Ok(store)
    }

    /// The same database, by those connections that are kept apart. A connection belongs to the
    /// threads that opened it, which wake whoever waits for its answers: for those on other
    /// threads each answer is two wake-ups, and late where these have much to do.
    #[must_use]
    pub fn apart(&self) -> Store {
        Store {
            shared: Arc::clone(&self.shared),
            is_apart: true,
        }
    }

    #[must_use]
    pub fn engine(&self) -> Engine {
        match self.shared.pools {
            Pools::Sqlite { .. } => Engine::Sqlite,
            Pools::Postgres(_) => Engine::Postgres,
        }
    }

    pub(in crate::store) fn now_ms(&self) -> i64 {
        self.shared.clock.now_ms()
    }

    pub(in crate::store) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub(in crate::store) fn skew(&self) -> &Skew {
        &self.shared.skew
    }

    pub(in crate::store) fn wake_handle(&self) -> &Wake {
        &self.shared.wake
    }

    /// For single statements that change nothing.
    pub(in crate::store) fn reader(&self) -> Connection<'_> {
        match &self.shared.pools {
            Pools::Sqlite { read, .. } => Connection::Sqlite(read),
            Pools::Postgres(database) => Connection::Postgres(self.own(database)),
        }
    }

    /// For single statements that change something.
    pub(in crate::store) fn writer(&self) -> Connection<'_> {
        match &self.shared.pools {
            Pools::Sqlite { write, .. } => Connection::Sqlite(write),
            Pools::Postgres(database) => Connection::Postgres(self.own(database)),
        }
    }

    /// As [`writer`](Self::writer), for what other processes wait for.
    pub(in crate::store) fn vital(&self) -> Connection<'_> {
        match &self.shared.vital {
            Some(database) => Connection::Postgres(database),
            None => self.writer(),
        }
    }

    /// As [`begin`](Self::begin), for what other processes wait for.
    pub(in crate::store) async fn begin_vital(&self) -> Result<Tx> {
        match &self.shared.vital {
            Some(database) => Ok(Tx::Postgres(database.begin().await?)),
            None => self.begin().await,
        }
    }

    /// A transaction that writes.
    pub(in crate::store) async fn begin(&self) -> Result<Tx> {
        Ok(match &self.shared.pools {
            Pools::Sqlite { write, .. } => Tx::Sqlite(sqlite::Writing::begin(write).await?),
            Pools::Postgres(database) => Tx::Postgres(self.own(database).begin().await?),
        })
    }

    fn own<'a>(&'a self, database: &'a Database) -> &'a Database {
        match &self.shared.apart {
            Some(apart) if self.is_apart => apart,
            _ => database,
        }
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
                let lock = self.shared.lock.lock();
                drop(lock.unwrap_or_else(PoisonError::into_inner).take());
            }
            Pools::Postgres(database) => {
                let others = [&self.shared.vital, &self.shared.apart];
                let all = others.into_iter().flatten().chain([&**database]);
                // At once, since each may take a while where the database hangs.
                futures::future::join_all(all.map(Database::close)).await;
            }
        }
    }
}

/// Tries to open a database, again and again while it may still come to be usable.
async fn patiently<T>(
    patience: Duration,
    may_pass: fn(&Error) -> bool,
    mut open: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + patience;
    let mut told: Option<Instant> = None;
    loop {
        let error = match open().await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let now = Instant::now();
        if !may_pass(&error) || now >= end {
            return Err(error);
        }
        if told.is_none_or(|told| now - told >= OPEN_TOLD_EVERY) {
            told = Some(now);
            let seconds = (end - now).as_secs_f64().ceil();
            tracing::warn!(%error, "waiting for the database; giving up in {seconds} s");
        }
        tokio::time::sleep(OPEN_PAUSE.min(end - now)).await;
    }
}

/// All in one transaction, under a lock that ends with it: so it does not matter how many start
/// at once, or whether a pooler stands in between.
async fn migrate_postgres(url: &str, pooler: bool) -> Result<()> {
    let mut connection = postgres::connect(url, pooler).await?;
    let migrate = async {
        let mut tx = connection.begin().await?;
        sqlx::raw_sql(migrate::LOCK_POSTGRES)
            .execute(&mut *tx)
            .await?;
        if pooler {
            // Of a migration that failed: they would be in the way of this one's.
            sqlx::raw_sql(FORGET_STATEMENTS).execute(&mut *tx).await?;
        }
        migrate::to_newest(&mut *tx, Engine::Postgres).await?;
        if pooler {
            sqlx::raw_sql(FORGET_STATEMENTS).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    };
    limited(MIGRATION_MAX, migrate).await?;
    // The schema is committed: a farewell that fails or takes too long changes nothing of it.
    let _ = tokio::time::timeout(postgres::CONNECT_TIMEOUT, connection.close()).await;
    Ok(())
}

//! Opening a database: connecting, waiting for a database that cannot be used yet, migrating.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use sqlx::Connection as _;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::StoreClock;
use super::notify::Wake;
use super::postgres::{self, Database};
use super::store::{CREATES, Pools, Shared};
use super::{Engine, Settings, Store, counted, limited, migrate, sqlite};
use crate::domain::clock::Clock;
use crate::store::{Error, Result};

/// How long to wait between two attempts to open a database.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait between two lines in the log about a database that cannot be used.
const OPEN_LOGGED_EVERY: Duration = Duration::from_secs(5);
/// The names that a migration's statements have stay on the pooler's connection.
const FORGET_STATEMENTS: &str = "DEALLOCATE ALL";
/// How long a migration may take.
const MIGRATION_MAX: Duration = Duration::from_hours(1);
/// One connection for the lease, and one for the exchange of shares. The two must not queue behind
/// requests: otherwise many clients could keep a process from renewing its lease.
const CONTROL_CONNECTIONS: u32 = 2;

/// Where a database is.
#[derive(Clone, Copy)]
enum Place<'a> {
    Sqlite(&'a Path),
    Postgres(&'a str),
}

impl Store {
    /// Connects, creates what does not exist yet, and migrates.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub async fn open(url: &str, connections: u32, clock: Clock) -> Result<Store> {
        let settings = Settings {
            connections,
            ..Settings::default()
        };
        Self::open_with(url, &settings, clock).await
    }

    /// Connects, creates what does not exist yet, and migrates. Waits for a database that cannot
    /// be reached, or that another process migrates.
    ///
    /// # Errors
    /// When the URL is of neither engine, the database cannot be used, another process has claimed
    /// it, or its schema is newer than this program.
    pub async fn open_with(url: &str, settings: &Settings, clock: Clock) -> Result<Store> {
        match sqlite::path_of(url) {
            Some(path) => Self::open_file(&path, settings, clock).await,
            None => Self::open_place(Place::Postgres(url), settings, clock).await,
        }
    }

    /// [`open_with`](Store::open_with) for a SQLite file: any path that is UTF-8.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub async fn open_file(path: &Path, settings: &Settings, clock: Clock) -> Result<Store> {
        Self::open_place(Place::Sqlite(path), settings, clock).await
    }

    async fn open_place(place: Place<'_>, settings: &Settings, clock: Clock) -> Result<Store> {
        let stop = CancellationToken::new();
        let mut lock = None;
        let (pools, wake) = match place {
            Place::Sqlite(path) => {
                let path = sqlite::place(path)?;
                // Before the first look into the file: even that would write.
                if settings.exclusive {
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
                let pools = retry_until(settings.open_timeout, Error::is_busy, open).await?;
                (pools, Wake::local())
            }
            Place::Postgres(url) => {
                let database = Database::lazy(url, settings)?;
                let migrate = async || migrate_postgres(url, settings.pooler).await;
                retry_until(settings.open_timeout, Error::is_outage, migrate).await?;
                let wake = if database.can_listen() {
                    Wake::across_processes(database.clone(), stop.clone())
                } else {
                    Wake::local()
                };
                (Pools::Postgres(Box::new(database)), wake)
            }
        };
        let (control, http) = match &pools {
            Pools::Sqlite { .. } => (None, None),
            Pools::Postgres(database) => {
                let http = settings.http_connections;
                (
                    Some(database.beside(CONTROL_CONNECTIONS)),
                    (http > 0).then(|| database.beside(http)),
                )
            }
        };
        let store = Store::new(Shared {
            pools,
            control,
            http,
            creates: Semaphore::new(CREATES),
            clock: StoreClock::new(clock),
            wake,
            lock: Mutex::new(lock),
            stop,
        });
        // Before anything is written by this process's clock.
        store.now().await?;
        Ok(store)
    }
}

/// Tries to open a database again and again, until the time is up or an error is not one that
/// `may_pass`.
async fn retry_until<T>(
    timeout: Duration,
    may_pass: fn(&Error) -> bool,
    mut open: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + timeout;
    let mut logged: Option<Instant> = None;
    loop {
        let error = match counted(open().await) {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let now = Instant::now();
        if !may_pass(&error) || now >= end {
            return Err(error);
        }
        if logged.is_none_or(|logged| now - logged >= OPEN_LOGGED_EVERY) {
            logged = Some(now);
            let seconds = (end - now).as_secs_f64().ceil();
            tracing::warn!(%error, "waiting for the database; giving up in {seconds} s");
        }
        tokio::time::sleep(OPEN_PAUSE.min(end - now)).await;
    }
}

/// Migrates in one transaction, under a lock that ends with the transaction: so it does not matter
/// how many processes start at once, or whether a pooler stands in between.
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

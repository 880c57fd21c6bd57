//! The store: its pools, its clock, and its wake-ups.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::sqlite::SqlitePool;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::clock::StoreClock;
use super::notify::Wake;
use super::postgres::Database;
use super::sqlite::{ACQUIRE_TIMEOUT, Lock, Writing};
use super::{Connection, Engine, Sql, Tx, on_pool, sql};
use crate::store::{Error, Result};

/// On SQLite so many batches are created at once.
pub(super) const CREATES: usize = 2;

pub(super) enum Pools {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(Box<Database>),
}

pub(super) struct Shared {
    pub(super) pools: Pools,
    /// On Postgres, connections for leases and shares alone.
    pub(super) control: Option<Database>,
    /// On Postgres, connections for [`Store::http_pool`] alone.
    pub(super) http: Option<Database>,
    /// Places for those who create batches.
    pub(super) creates: Semaphore,
    pub(super) clock: StoreClock,
    pub(super) wake: Wake,
    /// Held for the life of a server on SQLite: see
    /// [`Settings::exclusive`](super::Settings::exclusive).
    pub(super) lock: Mutex<Option<Lock>>,
    pub(super) stop: CancellationToken,
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
    uses_http_pool: bool,
}

impl Store {
    pub(super) fn new(shared: Shared) -> Self {
        Store {
            shared: Arc::new(shared),
            uses_http_pool: false,
        }
    }

    /// The same database by the connections of HTTP's threads. A connection belongs to the threads
    /// that opened it, and those threads wake whoever waits for its answers. For a task on other
    /// threads each answer is two wake-ups, which come late where the first threads are busy.
    #[must_use]
    pub fn http_pool(&self) -> Store {
        Store {
            shared: Arc::clone(&self.shared),
            uses_http_pool: true,
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

    /// An expression for the database's time, in which parameter `number` is how far a test has
    /// moved the clock ([`Store::offset_ms`]).
    pub(in crate::store) fn now_sql(&self, number: usize) -> Sql {
        let now = self.engine().now_ms();
        sql!("({now} + CAST(${number} AS BIGINT))", now, number)
    }

    pub(in crate::store) fn offset_ms(&self) -> i64 {
        self.shared.clock.offset_ms()
    }

    /// The time by the database's clock, in milliseconds. The database is asked once a second at
    /// most, and this process's clock is set by the answer.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn now(&self) -> Result<i64> {
        if let Some(now) = self.clock().known() {
            return Ok(now.saturating_add(self.offset_ms()));
        }
        let now = self.engine().now_ms();
        let sql = sql!("-- now\nSELECT {now}", now);
        let earliest = self.clock().system_ms();
        let (now,): (i64,) = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql).fetch_one(c).await?
        });
        self.clock().set_by(now, earliest);
        Ok(now.saturating_add(self.offset_ms()))
    }

    pub(super) fn clock(&self) -> &StoreClock {
        &self.shared.clock
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

    /// For single statements that other processes wait for: those of leases and shares.
    pub(in crate::store) fn control_pool(&self) -> Connection<'_> {
        match &self.shared.control {
            Some(database) => Connection::Postgres(database),
            None => self.writer(),
        }
    }

    /// A transaction that other processes wait for.
    pub(in crate::store) async fn begin_control(&self) -> Result<Tx> {
        match &self.shared.control {
            Some(database) => Ok(Tx::Postgres(database.begin().await?)),
            None => self.begin().await,
        }
    }

    /// A transaction that writes.
    pub(in crate::store) async fn begin(&self) -> Result<Tx> {
        Ok(match &self.shared.pools {
            Pools::Sqlite { write, .. } => Tx::Sqlite(Writing::begin(write).await?),
            Pools::Postgres(database) => Tx::Postgres(self.own(database).begin().await?),
        })
    }

    /// A place to create a batch. On SQLite there is one connection that writes. However many
    /// clients create batches, what is written for the batches of others waits there behind a few
    /// of them only. Postgres has connections for HTTP alone.
    ///
    /// # Errors
    /// When there is none in the time in which there would have to be a connection.
    pub(in crate::store) async fn place_to_create(&self) -> Result<Option<SemaphorePermit<'_>>> {
        if let Pools::Postgres(_) = self.shared.pools {
            return Ok(None);
        }
        let place = tokio::time::timeout(ACQUIRE_TIMEOUT, self.shared.creates.acquire()).await;
        let place = place.map_err(|_| Error::TimedOut("a place to create a batch"))?;
        Ok(place.ok())
    }

    /// A transaction that only reads, and sees all tables as they are at its first statement. Its
    /// statements may run longer than others.
    pub(in crate::store) async fn begin_snapshot(&self) -> Result<Tx> {
        Ok(match self.reader() {
            Connection::Sqlite(pool) => Tx::Sqlite(Writing::snapshot(pool).await?),
            Connection::Postgres(database) => Tx::Postgres(database.snapshot().await?),
        })
    }

    fn own<'a>(&'a self, database: &'a Database) -> &'a Database {
        match &self.shared.http {
            Some(http) if self.uses_http_pool => http,
            _ => database,
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<()> {
        on_pool!(self.reader(), |c| {
            sqlx::query("-- ping\nSELECT 1").execute(c).await?;
        });
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
                let others = [&self.shared.control, &self.shared.http];
                let all = others.into_iter().flatten().chain([&**database]);
                // At once, since each may take a while where the database hangs.
                futures::future::join_all(all.map(Database::close)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::clock::Clock;

    #[tokio::test]
    async fn nobody_waits_for_a_place_to_create_a_batch_without_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("test.db").display());
        let store = Store::open(&url, 1, Clock::default()).await.unwrap();
        let mut places = Vec::new();
        for _ in 0..CREATES {
            places.push(store.place_to_create().await.unwrap());
        }
        tokio::time::pause();
        let one_more = store.place_to_create();
        let refused = tokio::time::timeout(Duration::from_hours(1), one_more).await;
        let refused = refused.expect("waits without an end");
        assert!(refused.is_err_and(|error| error.is_outage()));
        drop(places);
        assert!(store.place_to_create().await.is_ok());
    }
}

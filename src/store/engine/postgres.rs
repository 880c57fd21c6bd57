//! Postgres: connections that nobody waits for without an end.
//!
//! A connection can be cut without a word. Then nothing comes, not even an error. So every wait for
//! an answer has an end on this side, too, and a connection that owes an answer is closed rather
//! than used again.

mod session;

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Postgres};

use super::counted;
use super::settings::Settings;
use crate::store::{Error, Result};

/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one try to connect may take, and how long connections may take to close.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to show that it is still there.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that was idle for less has been there just now.
const IDLE_TRUSTED: Duration = Duration::from_secs(1);
/// How long a transaction may wait for this process's next statement. Nothing that waits for
/// others stands between two statements, so then the process has stopped, or its connection is
/// cut; and what the transaction has locked, nobody else can take over before it is ended.
const NEXT_STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server ends a statement by itself where it can; this much later it is given up here.
const STATEMENT_MARGIN: Duration = Duration::from_secs(5);

/// How long a statement of a snapshot may run: nobody waits for it.
const SNAPSHOT_STATEMENT_TIMEOUT: Duration = Duration::from_mins(10);

/// A process's connections, and how long anything on them may take.
#[derive(Clone)]
pub(in crate::store) struct Database {
    pool: PgPool,
    options: PgConnectOptions,
    limit: Duration,
    /// A transaction begins with it.
    begin: String,
    /// A pooler in transaction mode stands before Postgres: from one transaction to the next,
    /// nothing is the same connection.
    pooled: bool,
}

impl Database {
    /// Connects when it is first used.
    pub(super) fn lazy(url: &str, settings: &Settings) -> Result<Database> {
        let pause = NEXT_STATEMENT_TIMEOUT.min(settings.statement_timeout);
        let timeouts = [
            ("statement_timeout", settings.statement_timeout),
            ("idle_in_transaction_session_timeout", pause),
        ];
        let timeouts = timeouts.map(|(name, time)| (name, time.as_millis()));
        let connect = connect_options(url, settings.pooler)?;
        let (connect, begin) = if settings.pooler {
            let timeouts = timeouts.map(|(name, ms)| format!("SET LOCAL {name} = {ms}"));
            (connect, format!("BEGIN; {}", timeouts.join("; ")))
        } else {
            (connect.options(timeouts), "BEGIN".to_owned())
        };
        let shared = settings
            .connections
            .saturating_sub(settings.http_connections);
        Ok(Database {
            pool: pool(shared.max(1), &connect),
            options: connect,
            limit: settings.statement_timeout + STATEMENT_MARGIN,
            begin,
            pooled: settings.pooler,
        })
    }

    /// A pool of more connections, for work that must not share these.
    pub(super) fn beside(&self, connections: u32) -> Database {
        Database {
            pool: pool(connections, &self.options),
            ..self.clone()
        }
    }

    /// How to make one more connection, beside the pool's.
    pub(in crate::store) fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// Whether what other processes notify reaches this one.
    pub(in crate::store) fn can_listen(&self) -> bool {
        !self.pooled
    }

    /// A connection for one statement; [`done`](Checkout::done) ends it.
    pub(in crate::store) async fn checkout(&self) -> Result<Checkout> {
        // A statement is more than one message, and has a timeout; only a transaction holds
        // these together behind a pooler.
        if self.pooled {
            self.begin().await
        } else {
            self.acquire().await
        }
    }

    /// A connection for one transaction, which has begun.
    pub(in crate::store) async fn begin(&self) -> Result<Checkout> {
        let mut checkout = self.acquire().await?;
        checkout.run(&self.begin).await?;
        checkout.has_begun = true;
        Ok(checkout)
    }

    /// A transaction that only reads, and sees all tables as they are at its first query.
    /// Its statements have a time of their own.
    pub(in crate::store) async fn snapshot(&self) -> Result<Checkout> {
        let mut checkout = self.begin().await?;
        checkout.limit = SNAPSHOT_STATEMENT_TIMEOUT + STATEMENT_MARGIN;
        checkout
            .run(&format!(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
             SET LOCAL statement_timeout = {}",
                SNAPSHOT_STATEMENT_TIMEOUT.as_millis()
            ))
            .await?;
        Ok(checkout)
    }

    async fn acquire(&self) -> Result<Checkout> {
        let connection = counted(self.pool.acquire().await.map_err(Error::from))?;
        Ok(Checkout {
            connection: Some(connection),
            limit: self.limit,
            pooled: self.pooled,
            owes: false,
            has_begun: false,
        })
    }

    /// Closes all connections, but waits for those in use only for a moment.
    pub(super) async fn close(&self) {
        // Those that are left end with the process; what they had not committed is rolled back.
        let _ = tokio::time::timeout(CONNECT_TIMEOUT, self.pool.close()).await;
    }
}

fn pool(connections: u32, options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // That test would wait for as long as a connection may be waited for altogether.
        .test_before_acquire(false)
        .before_acquire(|connection, idle| {
            Box::pin(
                async move { Ok(idle.idle_for < IDLE_TRUSTED || in_time(connection.ping()).await) },
            )
        })
        .connect_lazy_with(options.clone())
}

/// A connection, checked out of the pool for a statement or a transaction. Dropped, a transaction
/// that was not committed is rolled back.
#[derive(Debug)]
pub(in crate::store) struct Checkout {
    /// Taken when dropped.
    connection: Option<PoolConnection<Postgres>>,
    limit: Duration,
    pooled: bool,
    /// A statement was sent, and its answer has not been read to its end.
    owes: bool,
    /// It is within a transaction.
    has_begun: bool,
}

impl Checkout {
    fn connection(&mut self) -> &mut PgConnection {
        let connection = self.connection.as_mut();
        connection.expect("only `drop` takes it")
    }

    /// To be called before a statement; says how long that may take. Whoever is cut off between
    /// this and [`settle`](Checkout::settle) leaves a connection that owes an answer.
    pub(in crate::store) fn work(&mut self) -> Duration {
        self.owes = true;
        self.limit
    }

    /// To be called with what a statement came to.
    pub(in crate::store) fn settle<T>(&mut self, outcome: Result<T>) -> Result<T> {
        self.owes = match &outcome {
            Err(Error::TimedOut(_)) => true,
            Err(Error::Engine(sqlx::Error::Database(error))) => {
                // The server ends the connection.
                error.code().is_some_and(|code| code.starts_with("57P"))
            }
            Err(Error::Engine(error)) => !matches!(error, sqlx::Error::RowNotFound),
            _ => false,
        };
        counted(outcome)
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        self.run("COMMIT").await?;
        self.has_begun = false;
        Ok(())
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        self.run("ROLLBACK").await?;
        self.has_begun = false;
        Ok(())
    }

    /// Ends what [`Database::checkout`] began.
    pub(in crate::store) async fn done(self) -> Result<()> {
        if self.has_begun {
            self.commit().await
        } else {
            Ok(())
        }
    }

    async fn run(&mut self, statement: &str) -> Result<()> {
        let limit = self.work();
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        let run = statement.execute(self.connection());
        let outcome = limited(limit, async { Ok(run.await?) }).await;
        self.settle(outcome).map(|_| ())
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if self.owes {
            connection.close_on_drop();
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let has_begun = self.has_begun;
        runtime.spawn(async move {
            if has_begun {
                let rollback = sqlx::raw_sql("ROLLBACK").execute(&mut *connection);
                if !in_time(rollback).await {
                    connection.close_on_drop();
                    return;
                }
            }
            // What the connection's own `Drop` does: it asks whether the other side is still
            // there. But that one waits for the answer without end.
            let _ = tokio::time::timeout(PING_TIMEOUT, connection.return_to_pool()).await;
        });
    }
}

/// Waits for something only so long.
pub(in crate::store) async fn limited<T>(
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::TimedOut("a statement")),
    }
}

/// Whether a connection shows in time that it is still there.
async fn in_time<T>(answer: impl Future<Output = sqlx::Result<T>>) -> bool {
    matches!(tokio::time::timeout(PING_TIMEOUT, answer).await, Ok(Ok(_)))
}

/// A connection outside of any pool, whose statements may take as long as they need.
pub(super) async fn connect(url: &str, pooler: bool) -> Result<PgConnection> {
    let options = connect_options(url, pooler)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(Error::TimedOut("connecting")),
    }
}

fn connect_options(url: &str, pooler: bool) -> Result<PgConnectOptions> {
    // The cause is left out: it may repeat the URL, which may hold a password.
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        Error::Refused("database.url is neither sqlite://… nor a valid postgres://… URL".to_owned())
    })?;
    let options = options.application_name("nightshift");
    Ok(if pooler {
        // A pooler refuses what it does not know, and a name that a statement has on one
        // connection means nothing on the next.
        options.extra_float_digits(None).statement_cache_capacity(0)
    } else {
        options.statement_cache_capacity(200)
    })
}

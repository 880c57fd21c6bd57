//! A test's own connection to a server's database.

use nightshift::internals::store::Engine;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, SqliteConnection};

use super::engines;

pub enum Session {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Session {
    pub async fn open(database: &str) -> Session {
        if database.starts_with("sqlite") {
            Session::Sqlite(engines::sqlite(database).await)
        } else {
            Session::Postgres(PgConnection::connect(database).await.expect("connects"))
        }
    }

    pub fn engine(&self) -> Engine {
        match self {
            Session::Sqlite(_) => Engine::Sqlite,
            Session::Postgres(_) => Engine::Postgres,
        }
    }

    pub async fn execute(&mut self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Session::Sqlite(c) => drop(sqlx::raw_sql(sql).execute(c).await.expect("executes")),
            Session::Postgres(c) => drop(sqlx::raw_sql(sql).execute(c).await.expect("executes")),
        }
    }

    /// The same where it may fail: says whether it has not.
    pub async fn try_execute(&mut self, sql: &str) -> bool {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Session::Sqlite(c) => sqlx::raw_sql(sql).execute(c).await.is_ok(),
            Session::Postgres(c) => sqlx::raw_sql(sql).execute(c).await.is_ok(),
        }
    }

    /// The one whole number that a query gives.
    pub async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Session::Sqlite(c) => sqlx::query_scalar(sql).fetch_one(c).await,
            Session::Postgres(c) => sqlx::query_scalar(sql).fetch_one(c).await,
        }
        .expect("gives a number")
    }

    /// All rows that a query gives.
    pub async fn rows<T>(&mut self, sql: &str) -> Vec<T>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Session::Sqlite(c) => sqlx::query_as(sql).fetch_all(c).await,
            Session::Postgres(c) => sqlx::query_as(sql).fetch_all(c).await,
        }
        .expect("gives rows")
    }

    /// The database's time, in milliseconds.
    pub async fn now_ms(&mut self) -> i64 {
        let now = self.clock();
        let sql = format!("SELECT CAST({now} AS BIGINT)");
        self.number(&sql).await
    }

    fn clock(&self) -> &'static str {
        match self.engine() {
            Engine::Sqlite => "unixepoch('subsec') * 1000",
            Engine::Postgres => "EXTRACT(EPOCH FROM clock_timestamp()) * 1000",
        }
    }

    /// How many replicas have a lease that has not run out.
    pub async fn live_replicas(&mut self) -> i64 {
        let now = self.clock();
        self.number(&format!(
            "SELECT count(*) FROM replicas WHERE lease_until >= {now}"
        ))
        .await
    }
}

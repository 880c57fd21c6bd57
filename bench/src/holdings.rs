//! What a store holds, counted while no server runs on it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection};
use tokio::process::{Child, Command};

use crate::postgres::{Database, Postgres};
use crate::server::Store;

/// Within that time a connection that its client has closed is gone.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What there is at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    /// Of all tables, counted one by one.
    pub rows: f64,
    /// Of all tables and indexes, space that is free in them included.
    pub bytes: f64,
    /// How many rows Postgres has inserted and updated up to now: each is a version on disk.
    /// `None` on SQLite, which changes rows in place.
    pub row_versions: Option<f64>,
}

impl Store {
    /// Counts. On Postgres it waits until the servers' connections have ended, since each hands
    /// over what it has counted when it ends at the latest, and removes dead rows (`VACUUM`). On
    /// SQLite it brings the write-ahead log into the database.
    pub async fn holdings(&self) -> Result<Holdings> {
        match self.postgres() {
            Some((postgres, database)) => {
                wait_for(postgres, database, "backend_type = 'client backend'", 0).await?;
                of_postgres(postgres, database)
            }
            None => {
                let options = SqliteConnectOptions::new().filename(self.sqlite());
                of_sqlite(&mut options.connect().await?).await
            }
        }
    }

    /// Opens transactions on Postgres that see the database as it is now, and stay open until the
    /// database goes: no version of a row that is there from now on can be removed.
    pub async fn hold(&self, transactions: u64) -> Result<Vec<Child>> {
        let mut held = Vec::new();
        for _ in 0..transactions {
            let (postgres, database) = self.postgres().context("SQLite holds no transaction")?;
            let mut psql = Command::from(postgres.psql(&database.url));
            psql.args(["-c", "BEGIN ISOLATION LEVEL REPEATABLE READ"])
                .args(["-c", "SELECT txid_current()"])
                .args(["-c", "SELECT pg_sleep(86400)"])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .kill_on_drop(true);
            held.push(psql.spawn()?);
            let is_held = "backend_xmin IS NOT NULL AND query LIKE '%pg_sleep%'";
            wait_for(postgres, database, is_held, held.len()).await?;
        }
        Ok(held)
    }
}

/// Waits until there are just so many of a database's connections.
async fn wait_for(postgres: &Postgres, database: &Database, which: &str, n: usize) -> Result<()> {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND {which}",
        database.name
    );
    let begun = Instant::now();
    while postgres.ask(&sql)? != n.to_string() {
        ensure!(begun.elapsed() < PATIENCE, "no {n} connections: {which}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn of_postgres(postgres: &Postgres, database: &Database) -> Result<Holdings> {
    let ask = |sql: &str| postgres.ask_in(&database.url, sql);
    ask("VACUUM")?;
    let counts = ask(
        "SELECT string_agg(format('(SELECT count(*) FROM %I.%I)', schemaname, relname), ' + ') \
         FROM pg_stat_user_tables",
    )?;
    let sum = |of: &str| ask(&format!("SELECT sum({of}) FROM pg_stat_user_tables"));
    Ok(Holdings {
        rows: ask(&format!("SELECT {counts}"))?.parse()?,
        bytes: sum("pg_total_relation_size(relid)")?.parse()?,
        row_versions: Some(sum("n_tup_ins + n_tup_upd")?.parse()?),
    })
}

async fn of_sqlite(database: &mut SqliteConnection) -> Result<Holdings> {
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut *database)
        .await?;
    let counts: String = sqlx::query_scalar(
        "SELECT group_concat('(SELECT count(*) FROM \"' || name || '\")', ' + ') \
         FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
    )
    .fetch_one(&mut *database)
    .await?;
    let counts = AssertSqlSafe(format!("SELECT {counts}"));
    let rows: i64 = sqlx::query_scalar(counts).fetch_one(&mut *database).await?;
    let bytes: i64 = sqlx::query_scalar(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
    )
    .fetch_one(&mut *database)
    .await?;
    Ok(Holdings {
        rows: rows as f64,
        bytes: bytes as f64,
        row_versions: None,
    })
}

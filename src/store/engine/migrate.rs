//! Brings a database's schema up to this program's, and notices when it has gone beyond.
//!
//! `0001_name.sql` runs on both engines, `0002_name.postgres.sql` and `0003_name.sqlite.sql` on
//! one each.

use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};

use super::{Engine, Store, on_pool, sql};
use crate::store::{Error, Result};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Where the versions that were applied are noted.
const TABLE: &str = "_sqlx_migrations";

/// What a migration's transaction begins with on Postgres: one process migrates, and the others
/// wait a moment and come again. The number is this program's own. Where servers run already, a
/// change of a table waits for theirs as briefly, so that they need not wait behind it.
pub(super) const LOCK_POSTGRES: &str = "SET LOCAL lock_timeout = '3s';
     SET LOCAL statement_timeout = 0;
     SELECT pg_advisory_xact_lock(7310868735417)";

/// How often a server looks whether a newer one has migrated its database.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Migrates, inside of a transaction that keeps all others from doing so.
///
/// # Errors
/// When the database fails, or was migrated by a newer program.
pub(super) async fn to_newest<C: Migrate>(connection: &mut C, engine: Engine) -> Result<()> {
    let migrate = async {
        connection.ensure_migrations_table(TABLE).await?;
        let applied = connection.list_applied_migrations(TABLE).await?;
        let theirs = applied.iter().map(|migration| migration.version).max();
        if theirs > Some(newest(engine)) {
            return Ok(theirs);
        }
        let mut migrator = migrations_for(engine);
        migrator.set_locking(false);
        migrator.run_direct(None, connection, false).await?;
        Ok(None)
    };
    match migrate.await {
        Ok(None) => Ok(()),
        Ok(Some(theirs)) => Err(newer(theirs, engine)),
        Err(MigrateError::VersionMismatch(version) | MigrateError::VersionMissing(version)) => {
            Err(Error::Refused(format!(
                "schema version {version} of the database is not the one of that number here: it \
                 was made by another nightshift"
            )))
        }
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            Err(Error::Engine(error))
        }
        Err(other) => Err(Error::Refused(format!(
            "cannot migrate the database: {other}"
        ))),
    }
}

impl Store {
    /// Waits until a newer program has migrated the database: then this program cannot go on with
    /// the database. Returns the error that says so.
    pub async fn schema_too_new(&self) -> Error {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.schema_version().await {
                Ok(theirs) if theirs > newest(self.engine()) => {
                    return newer(theirs, self.engine());
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the schema's version is not known"),
            }
        }
    }

    /// The statement also reads the database's clock: every process runs it from time to time.
    async fn schema_version(&self) -> Result<i64> {
        let sql = sql!(
            "-- schema_version\nSELECT max(version), {now} FROM _sqlx_migrations",
            now = self.engine().now_ms()
        );
        let earliest = self.clock().system_ms();
        let (version, now): (i64, i64) = on_pool!(self.reader(), |c| {
            sqlx::query_as(sql).fetch_one(c).await?
        });
        self.clock().set_by(now, earliest);
        Ok(version)
    }
}

fn newer(theirs: i64, engine: Engine) -> Error {
    Error::Refused(format!(
        "the database has schema version {theirs}, and this nightshift knows versions up to {}: \
         a newer one has migrated it; upgrade this one",
        newest(engine)
    ))
}

/// This program's own version of the schema.
fn newest(engine: Engine) -> i64 {
    let versions = ours(engine).map(|migration| migration.version);
    versions.max().unwrap_or_default()
}

fn migrations_for(engine: Engine) -> Migrator {
    Migrator::with_migrations(ours(engine).cloned().collect())
}

fn ours(engine: Engine) -> impl Iterator<Item = &'static sqlx::migrate::Migration> {
    let other = match engine {
        Engine::Sqlite => "postgres",
        Engine::Postgres => "sqlite",
    };
    MIGRATIONS
        .iter()
        .filter(move |migration| !migration.description.ends_with(other))
}

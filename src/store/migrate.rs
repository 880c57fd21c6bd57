//! Brings a database's schema up to this program's.
//!
//! `0001_name.sql` runs on both engines, `0002_name.postgres.sql` and `0003_name.sqlite.sql` on
//! one each.

use sqlx::migrate::{MigrateError, Migrator};

use super::engine::{Connection, Engine};
use super::{Error, Result, Store};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

impl Store {
    pub(super) async fn migrate(&self) -> Result<()> {
        let migrator = migrations_for(self.engine());
        let outcome = match self.writer() {
            Connection::Sqlite(pool) => migrator.run(pool).await,
            Connection::Postgres(pool) => migrator.run(pool).await,
        };
        outcome.map_err(|error| match error {
            MigrateError::VersionMissing(version) => Error::Refused(format!(
                "the database has schema version {version}, which this nightshift does not know: \
                 it was made by a newer one; upgrade this one"
            )),
            MigrateError::VersionMismatch(version) => Error::Refused(format!(
                "schema version {version} of the database is not the one of that number here"
            )),
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                Error::Engine(error)
            }
            other => Error::Refused(format!("cannot migrate the database: {other}")),
        })
    }
}

fn migrations_for(engine: Engine) -> Migrator {
    let other = match engine {
        Engine::Sqlite => "postgres",
        Engine::Postgres => "sqlite",
    };
    let ours = MIGRATIONS
        .iter()
        .filter(|m| !m.description.ends_with(other))
        .cloned();
    Migrator::with_migrations(ours.collect())
}

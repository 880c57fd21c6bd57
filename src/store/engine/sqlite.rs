//! SQLite: one file, one connection that writes and several that read, and a lock that keeps a
//! second server out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};

use sqlx::Sqlite;
use sqlx::pool::PoolConnection;

use crate::store::{Error, Result};

/// How long a statement waits for another process's write (`keys` beside a server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// How large the file of the write-ahead log stays: one that grew beyond it, because somebody read
/// for long or much was written at once, is cut when it is begun anew.
const LOG_KEPT_BYTES: u64 = 64 << 20;
/// Connections that read.
const READERS: u32 = 4;

/// The path in a URL, or `None` for a URL of Postgres.
pub(super) fn path_of(url: &str) -> Option<PathBuf> {
    let path = url
        .strip_prefix("sqlite://")
        .or_else(|| url.strip_prefix("sqlite:"))?;
    Some(PathBuf::from(path))
}

/// Creates what does not exist yet, and opens the connection that writes and those that read.
pub(super) async fn open(path: &Path) -> Result<(SqlitePool, SqlitePool)> {
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
        .pragma("journal_size_limit", LOG_KEPT_BYTES.to_string())
        // An answer of 200 means on disk; flushes are grouped, which keeps it cheap.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .optimize_on_close(false, None);
    let write = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // There is no other side that could be gone; to ask is two changes of thread.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.clone())
        .await?;
    let read = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.create_if_missing(false))
        .await?;
    Ok((write, read))
}

/// A transaction. Dropped, it is rolled back unless it was committed.
///
/// Not sqlx's own: where a commit fails because the disk is full, SQLite has rolled back by
/// itself, and that one believes for ever after that its connection is within a transaction.
pub(in crate::store) struct Writing {
    /// Taken when dropped.
    connection: Option<PoolConnection<Sqlite>>,
    /// Nothing is to be rolled back.
    is_over: bool,
}

impl Writing {
    /// Takes the writer's lock at once: taking it later can fail where another process has
    /// written in between.
    pub(super) async fn begin(pool: &SqlitePool) -> Result<Writing> {
        Self::begin_with(pool, "BEGIN IMMEDIATE").await
    }

    /// A transaction that only reads, and sees all tables as they are at its first statement.
    pub(in crate::store) async fn snapshot(pool: &SqlitePool) -> Result<Writing> {
        Self::begin_with(pool, "BEGIN").await
    }

    async fn begin_with(pool: &SqlitePool, begin: &'static str) -> Result<Writing> {
        let mut writing = Writing {
            connection: Some(pool.acquire().await?),
            is_over: false,
        };
        writing.run(begin).await?;
        Ok(writing)
    }

    pub(in crate::store) fn connection(&mut self) -> &mut SqliteConnection {
        let connection = self.connection.as_mut();
        connection.expect("only `drop` takes it")
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        self.run("COMMIT").await?;
        self.is_over = true;
        Ok(())
    }

    async fn run(&mut self, statement: &'static str) -> Result<()> {
        let run = sqlx::raw_sql(statement).execute(self.connection());
        Ok(run.await.map(|_| ())?)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if self.is_over {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let rollback = sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await;
            if let Err(error) = rollback
                && !Error::Engine(error).is_plain()
            {
                connection.close_on_drop();
            }
        });
    }
}

/// Locks a database's file for this process; the lock ends with the file that is returned.
///
/// # Errors
/// When another process has it.
pub(super) fn lock(path: &Path) -> Result<std::fs::File> {
    let mut name = path.to_owned().into_os_string();
    name.push(".lock");
    let refused = |cause: std::io::Error| {
        Error::Refused(format!(
            "cannot lock {}: {cause}",
            Path::new(&name).display()
        ))
    };
    let file = open_private(Path::new(&name)).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Refused(format!(
            "another nightshift server is using {}; stop it, or give this one a database of its \
             own (--database), or use Postgres, which any number of servers can share",
            path.display()
        ))),
        Err(std::fs::TryLockError::Error(cause)) => Err(refused(cause)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_grew_is_cut_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let (write, _read) = open(&path).await.unwrap();
        let log = || {
            std::fs::metadata(directory.path().join("a.db-wal"))
                .unwrap()
                .len()
        };
        let run = async |sql: &'static str| {
            sqlx::query(sql).execute(&write).await.unwrap();
        };
        run("CREATE TABLE t (x BLOB)").await;
        run("INSERT INTO t VALUES (zeroblob(80 << 20))").await;
        assert!(log() > LOG_KEPT_BYTES, "{}", log());
        // All of it has gone to the database's file: the next write begins the log anew.
        run("INSERT INTO t VALUES (NULL)").await;
        assert!(log() <= LOG_KEPT_BYTES, "{}", log());
    }
}

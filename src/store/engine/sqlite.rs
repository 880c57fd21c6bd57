//! SQLite: one file, one connection that writes and several that read, and a lock that keeps a
//! second server out.

use std::fs::{File, TryLockError};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};

use sqlx::Sqlite;
use sqlx::pool::PoolConnection;

use super::counted;
use crate::store::{Error, Result};

/// How long a statement waits for another process's write (`keys` beside a server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a caller waits for a free connection.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
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

/// Creates a database's file if it does not exist yet, and returns its path with all symlinks
/// followed: the name beside which SQLite keeps the write-ahead log.
///
/// A file that is there is not opened here. When a process closes any handle of a file, it loses
/// all locks that SQLite has on that file in the same process.
pub(super) fn place(path: &Path) -> Result<PathBuf> {
    let refused =
        |cause: std::io::Error| Error::Refused(format!("cannot open {}: {cause}", path.display()));
    match path.metadata() {
        Ok(found) if !found.is_file() => {
            return Err(Error::Refused(format!(
                "{} is not a regular file: a database needs one of its own",
                path.display()
            )));
        }
        Ok(_) => {}
        Err(_) => {
            if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
                create_private(directory).map_err(|cause| {
                    Error::Refused(format!("cannot create {}: {cause}", directory.display()))
                })?;
            }
            open_private(path).map_err(refused)?;
        }
    }
    rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK)
        .map_err(|errno| refused(errno.into()))?;
    path.canonicalize().map_err(refused)
}

/// Refuses a file that has several names. SQLite keeps the write-ahead log beside the name by
/// which the file was opened. So two processes that use two names of one file do not see each
/// other's writes and destroy them, and after a crash the log is found by one of the names only.
pub(super) fn must_have_one_name(path: &Path) -> Result<()> {
    let names = path.metadata().map_or(1, |found| found.nlink());
    let shown = path.display();
    if names > 1 {
        return Err(Error::Refused(format!(
            "{shown} has {names} names (hard links): SQLite would keep a write-ahead log beside \
             each, and lose data; remove the other names, or copy the file"
        )));
    }
    if is_mount_point(path) {
        return Err(Error::Refused(format!(
            "{shown} is mounted by itself: SQLite keeps its write-ahead log beside the file, and \
             the log would be outside of the mount; mount the directory that holds the database"
        )));
    }
    Ok(())
}

/// Whether a file is mounted by itself, as `docker run -v FILE:FILE` does. Only Linux says so.
fn is_mount_point(path: &Path) -> bool {
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let written = written_as_mount(path.as_os_str().as_bytes());
    mounts
        .split(|&byte| byte == b'\n')
        .filter_map(|mount| mount.split(|&byte| byte == b' ').nth(4))
        .any(|place| place == written)
}

/// A path as the kernel's list of mounts writes it: white space and backslashes as octal numbers.
fn written_as_mount(path: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(path.len());
    for &byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => written.extend(format!("\\{byte:03o}").into_bytes()),
            byte => written.push(byte),
        }
    }
    written
}

/// Opens the connection that writes and those that read.
pub(super) async fn open(path: &Path) -> Result<(SqlitePool, SqlitePool)> {
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
        let connection = counted(pool.acquire().await.map_err(Error::from))?;
        let mut writing = Writing {
            connection: Some(connection),
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

    pub(super) async fn rollback(mut self) -> Result<()> {
        self.run("ROLLBACK").await?;
        self.is_over = true;
        Ok(())
    }

    async fn run(&mut self, statement: &'static str) -> Result<()> {
        let run = sqlx::raw_sql(statement).execute(self.connection());
        counted(run.await.map(|_| ()).map_err(Error::from))
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

/// The lock that keeps a second server out. It is on a file beside the database, and on the
/// database itself.
pub(super) struct Lock {
    /// On a file beside the database's name, where SQLite keeps its write-ahead log. This lock also
    /// keeps out a server that puts another file in the database's place.
    _beside: File,
    /// On the database's file. This lock also keeps out a server that uses another name of the
    /// file.
    itself: Option<ManuallyDrop<File>>,
}

/// Unlocks the database, but leaves the handle open: closing it would take the locks of SQLite's
/// own connections away, where some are open still.
impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.itself {
            let _ = file.unlock();
        }
    }
}

/// Locks a database's file, by its path without symlinks, for this process.
///
/// # Errors
/// When another process has it.
pub(super) fn lock(path: &Path) -> Result<Lock> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".lock");
    Ok(Lock {
        _beside: locked(path, Path::new(&beside))?,
        itself: if can_be_locked(path) {
            Some(ManuallyDrop::new(locked(path, path)?))
        } else {
            None
        },
    })
}

fn locked(database: &Path, path: &Path) -> Result<File> {
    let refused =
        |cause: std::io::Error| Error::Refused(format!("cannot lock {}: {cause}", path.display()));
    let file = open_private(path).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Refused(format!(
            "another nightshift server is using {}; stop it, or give this one a database of its \
             own (--database), or use Postgres, which any number of servers can share",
            database.display()
        ))),
        Err(TryLockError::Error(cause)) => Err(refused(cause)),
    }
}

/// Whether a lock of this kind on the database leaves SQLite's own locks alone. It does not on
/// network disks, where the kernel makes one kind of the other (see `flock(2)`).
#[cfg(target_os = "linux")]
fn can_be_locked(path: &Path) -> bool {
    const NFS: u64 = 0x6969;
    const CIFS: u64 = 0xFF53_4D42;
    const SMB2: u64 = 0xFE53_4D42;
    let kind = rustix::fs::statfs(path).map(|found| found.f_type as u64 & 0xFFFF_FFFF);
    kind.is_ok_and(|kind| ![NFS, CIFS, SMB2].contains(&kind))
}

/// Elsewhere such a lock stands in the way of SQLite's own locks on any disk.
#[cfg(not(target_os = "linux"))]
fn can_be_locked(_path: &Path) -> bool {
    false
}

/// Opens a file for writing; one that is not there yet is made so that only its owner can read
/// it. SQLite gives the files that it makes beside its database the same mode.
fn open_private(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.open(path)
}

/// Creates a directory that only its owner can enter: it will hold prompts and answers.
fn create_private(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_grew_is_cut_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = place(&directory.path().join("a.db")).unwrap();
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

    #[test]
    fn mounts_are_listed_with_octal_numbers() {
        assert_eq!(written_as_mount(b"/a b\\c"), br"/a\040b\134c");
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
    }
}

//! What can go wrong with the store.

use std::borrow::Cow;

/// The outcome of a store method. Absence is an `Option`, not an error.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The row was not in the state that the caller took it to be in.
    #[error("{0} has changed in the meantime")]
    Stale(&'static str),
    /// What is stored is not what was written.
    #[error("the stored {what} is damaged: {cause}")]
    Corrupt { what: String, cause: String },
    /// The files of a tenant may not have so many bytes together.
    #[error("the tenant's files may have {max} bytes, and have {stored}")]
    StorageFull { max: u64, stored: u64 },
    /// Another process holds the database, or it is of another version.
    #[error("{0}")]
    Refused(String),
    /// The database did not answer in time.
    #[error("the database did not answer in time: {0}")]
    TimedOut(&'static str),
    /// The database failed or could not be reached.
    #[error("database: {0}")]
    Engine(sqlx::Error),
}

/// Not by `#[from]`, which would make it the source as well: its message, which this one's ends
/// with, would then be shown twice.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Error::Engine(error)
    }
}

impl Error {
    /// Whether the database cannot be used just now, and the same may succeed later: it cannot
    /// be reached, shuts down, is full or busy, or gave the statement up.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        let error = match self {
            Error::TimedOut(_) => return true,
            Error::Engine(error) => error,
            _ => return false,
        };
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::BeginFailed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| is_outage(&code)),
            _ => false,
        }
    }

    /// Whether the database gave a statement up, or did not answer in time: it may be away, or the
    /// statement too much for it.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self {
            Error::TimedOut(_) => true,
            _ => self.code().as_deref() == Some(QUERY_CANCELED),
        }
    }

    /// Whether there is no room left where the data is kept.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.code().is_some_and(|code| match &*code {
            DISK_FULL => true,
            code => primary(code) == Some(SQLITE_FULL),
        })
    }

    /// Whether another process holds a SQLite file just now.
    pub(super) fn is_busy(&self) -> bool {
        self.code()
            .is_some_and(|code| matches!(primary(&code), Some(SQLITE_BUSY | SQLITE_LOCKED)))
    }

    /// Whether SQLite says no more than that a statement does not fit: as ROLLBACK where it has
    /// rolled back by itself.
    pub(super) fn is_plain(&self) -> bool {
        self.code().as_deref() == Some(SQLITE_ERROR)
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            Error::Engine(sqlx::Error::Database(error)) => error.code(),
            _ => None,
        }
    }

    pub(super) fn corrupt(what: impl Into<String>, cause: impl ToString) -> Self {
        Error::Corrupt {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

/// Of Postgres.
const DISK_FULL: &str = "53100";
const QUERY_CANCELED: &str = "57014";
const LOCK_NOT_AVAILABLE: &str = "55P03";

const SQLITE_ERROR: &str = "1";
const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_IOERR: u32 = 10;
const SQLITE_FULL: u32 = 13;
const SQLITE_CANTOPEN: u32 = 14;

/// Whether an error code is of an outage: of Postgres a class of SQLSTATE (connection, rollback,
/// resources, intervention, system) or a lock that is not to be had; of SQLite one of those above.
fn is_outage(code: &str) -> bool {
    if let Some(code) = primary(code) {
        matches!(
            code,
            SQLITE_BUSY | SQLITE_LOCKED | SQLITE_IOERR | SQLITE_FULL | SQLITE_CANTOPEN
        )
    } else {
        let mut classes = ["08", "25", "40", "53", "57", "58"].iter();
        classes.any(|class| code.starts_with(class)) || code == LOCK_NOT_AVAILABLE
    }
}

/// An error code of SQLite without what extends it, which stands above the low byte; `None` for
/// one of Postgres, which has five characters.
fn primary(code: &str) -> Option<u32> {
    if code.len() == 5 {
        return None;
    }
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnection;
    use sqlx::{Connection as _, Executor as _};

    use super::*;

    #[tokio::test]
    async fn a_full_sqlite_is_full_and_may_have_room_later() {
        let mut sqlite = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let table = "CREATE TABLE t (x BLOB); PRAGMA max_page_count = 8";
        sqlite.execute(sqlx::raw_sql(table)).await.unwrap();
        let full = sqlite.execute("INSERT INTO t VALUES (zeroblob(1000000))");
        let error = Error::from(full.await.unwrap_err());
        assert!(error.is_full() && error.is_outage(), "{error}");

        let rollback = sqlite.execute("ROLLBACK").await.unwrap_err();
        let error = Error::from(rollback);
        assert!(error.is_plain() && !error.is_outage(), "{error}");
    }

    #[test]
    fn codes_that_pass_are_told_from_codes_that_stay() {
        for code in [
            "53100", "53200", "57014", "57P01", "40001", "08006", "55P03", "5", "517", "778",
        ] {
            assert!(is_outage(code), "{code}");
        }
        for code in ["23505", "42P01", "22001", "XX000", "1", "19", "2067", ""] {
            assert!(!is_outage(code), "{code}");
        }
    }
}

//! What can go wrong with the store.

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
/// with, would then be told twice.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let error = Error::Engine(error);
        crate::observe::figures().store_failed(error.is_outage());
        error
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
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| is_outage(&code)),
            _ => false,
        }
    }

    pub(super) fn corrupt(what: impl Into<String>, cause: impl ToString) -> Self {
        Error::Corrupt {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

/// Whether an error code is of an outage: a class of Postgres's SQLSTATE (connection, rollback,
/// resources, intervention, system), or SQLite's busy, locked, I/O error, full or cannot open.
fn is_outage(code: &str) -> bool {
    match code.len() {
        5 => ["08", "25", "40", "53", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class)),
        // An extended code of SQLite holds the primary one in its low byte.
        _ => code
            .parse::<u32>()
            .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14)),
    }
}

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
    /// The database failed or could not be reached.
    #[error("database: {0}")]
    Engine(#[from] sqlx::Error),
}

impl Error {
    pub(super) fn corrupt(what: impl Into<String>, cause: impl ToString) -> Self {
        Error::Corrupt {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

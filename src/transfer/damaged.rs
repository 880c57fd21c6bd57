//! How it is said that what is stored does not fit together.

use crate::store;

/// What is stored does not fit together.
pub(super) fn damaged(what: impl Into<String>, cause: impl ToString) -> store::Error {
    store::Error::Corrupt {
        what: what.into(),
        cause: cause.to_string(),
    }
}

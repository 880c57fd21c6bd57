//! Errors of the database, counted.

use crate::metrics::metrics;
use crate::store::{Error, Result};

/// Counts an error of the database. Each place that receives the outcome of a statement, or of an
/// attempt to get a connection, passes it through here, so that an error is counted once.
pub(in crate::store) fn counted<T>(outcome: Result<T>) -> Result<T> {
    if let Err(error @ Error::Engine(_)) = &outcome {
        metrics().store_failed(error.is_outage());
    }
    outcome
}

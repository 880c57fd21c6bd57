//! Headers that requests and responses have in common.

use axum::http::{HeaderMap, header};

/// The length of the body in bytes, as its header says. `None` without a header that is a number.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

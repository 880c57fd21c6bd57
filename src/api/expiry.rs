//! `expires_after` and its like: how long a file is kept.

use std::time::Duration;

use super::error::{self, Result};
use super::json::Object;
use crate::domain::file::EXPIRY_SECONDS;

/// The only event that expiry can be counted from.
pub const ANCHOR: &str = "created_at";

/// The seconds in `{"anchor": "created_at", "seconds": …}`, where there is such a field.
///
/// # Errors
/// When the anchor is another, the seconds are out of bounds, or the field is something else.
pub fn expires_after(body: &mut Object, field: &str) -> Result<Option<i64>> {
    let Some(mut expiry) = body.optional_object(field)? else {
        return Ok(None);
    };
    let anchor = expiry.string("anchor")?;
    if anchor != ANCHOR {
        return Err(error::invalid_value(
            &expiry.name("anchor"),
            &anchor,
            &[ANCHOR],
        ));
    }
    let seconds = expiry.integer("seconds", EXPIRY_SECONDS)?;
    expiry.finish()?;
    Ok(Some(seconds))
}

/// A configured duration in the whole seconds that requests would name.
pub fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

//! What text can stand in a row of either database.

/// The same text without NUL, which Postgres cannot even look for. No id holds one, and so none
/// is found either way.
#[must_use]
pub fn storable(text: String) -> String {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}")
    } else {
        text
    }
}

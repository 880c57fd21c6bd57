//! Texts that fit a terminal and cannot steer it.

use std::borrow::Cow;

use console::truncate_str;

/// What stands for the rest of a text that is cut.
pub(super) const CUT: &str = "…";

/// A text that cannot steer a terminal: what users and model servers write may hold anything.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.replace(char::is_control, " ").into()
    } else {
        text.into()
    }
}

/// A text of at most so many columns.
pub(super) fn cut(text: &str, width: usize) -> String {
    truncate_str(text, width, CUT).into_owned()
}

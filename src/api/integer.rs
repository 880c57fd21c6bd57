//! Whole numbers that come as text: in a query, or in a part of a form.

use std::num::IntErrorKind;
use std::ops::RangeInclusive;

use super::error::{self, Result};

/// Reads digits, with or without a minus sign before them.
///
/// # Errors
/// When the text is anything else, or the number is out of bounds.
pub fn integer(param: &str, text: &str, bounds: &RangeInclusive<i64>) -> Result<i64> {
    let (min, max) = (*bounds.start(), *bounds.end());
    let parsed = if text.starts_with('+') {
        None
    } else {
        match text.parse::<i64>() {
            Ok(number) => Some(number),
            // It does not fit any type, so it is beyond every bound.
            Err(cause) if *cause.kind() == IntErrorKind::PosOverflow => Some(i64::MAX),
            Err(cause) if *cause.kind() == IntErrorKind::NegOverflow => Some(i64::MIN),
            Err(_) => None,
        }
    };
    match parsed {
        None => Err(error::invalid_type(param, "an integer", "a string")),
        Some(number) if number < min => Err(error::integer_below(param, min, text)),
        Some(number) if number > max => Err(error::integer_above(param, max, text)),
        Some(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_within_bounds_are_taken() {
        for (text, expected) in [
            ("1", Ok(1)),
            ("100", Ok(100)),
            ("0", Err("integer_below_min_value")),
            ("-7", Err("integer_below_min_value")),
            ("101", Err("integer_above_max_value")),
            ("99999999999999999999", Err("integer_above_max_value")),
            ("-99999999999999999999", Err("integer_below_min_value")),
            ("+1", Err("invalid_type")),
            ("+99999999999999999999", Err("invalid_type")),
            ("--1", Err("invalid_type")),
            ("-", Err("invalid_type")),
            (" 1", Err("invalid_type")),
            ("ten", Err("invalid_type")),
            ("1.5", Err("invalid_type")),
            ("", Err("invalid_type")),
        ] {
            match (integer("limit", text, &(1..=100)), expected) {
                (Err(error), Err(code)) => {
                    assert_eq!(error.code, Some(code), "{text:?}");
                    assert_eq!(error.param.as_deref(), Some("limit"));
                }
                (read, expected) => assert_eq!(read.ok(), expected.ok(), "{text:?}"),
            }
        }
    }
}

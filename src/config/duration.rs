//! Lengths of time as people write them: `500ms`, `30s`, `10m`, `24h`, `7d`.

use std::time::Duration;

/// The longest duration taken: ten years. Longer ones are slips, and adding them to a time
/// could overflow it.
const LONGEST: Duration = Duration::from_hours(87600);

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not a whole number followed by one of the units.
    #[error("expected a duration: a whole number and a unit, such as 500ms, 30s, 10m, 24h or 7d")]
    Malformed,
    /// Past ten years.
    #[error("a duration is at most 3650d")]
    TooLong,
}

/// Reads a whole number and one unit (`ms`, `s`, `m`, `h` or `d`) with nothing between or around
/// them.
///
/// # Errors
/// [`DurationError`] says what is expected; it does not quote the text.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(DurationError::Malformed),
    };
    if digits.is_empty() {
        return Err(DurationError::Malformed);
    }
    // Only a number past u64 fails to parse here.
    let number: u64 = digits.parse().map_err(|_| DurationError::TooLong)?;
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= LONGEST)
        .ok_or(DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_is_a_duration() {
        for (text, ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("10m", 600_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("3650d", 315_360_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", "30", "s", "30 s", " 30s", "30s ", "1.5h", "-1s", "+1s", "1h30m", "30S", "30sec",
            "1_000ms", "٣s",
        ] {
            assert_eq!(parse(text), Err(DurationError::Malformed), "{text:?}");
        }
        for text in ["3651d", "18446744073709551615d", "99999999999999999999999s"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text}");
        }
    }
}

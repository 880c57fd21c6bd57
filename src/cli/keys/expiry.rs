//! When a key ends, as a flag says it.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::config::{DurationError, parse_duration};

/// When a key ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    After(Duration),
    At(Timestamp),
}

impl Expiry {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match parse_duration(text) {
            Ok(duration) => return Ok(Expiry::After(duration)),
            Err(error @ DurationError::TooLong) => return Err(error.to_string()),
            // It may be a date.
            Err(DurationError::Malformed) => {}
        }
        let date = || {
            let date = text.parse::<Date>().ok()?;
            Some(date.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp())
        };
        let moment = text.parse::<Timestamp>().ok().or_else(date);
        moment.map(Expiry::At).ok_or_else(|| {
            "expected a time such as 90d or 12h, or a date such as 2030-01-31 or \
             2030-01-31T12:00:00Z"
                .to_owned()
        })
    }

    /// In milliseconds; `None` where that is not in the future.
    pub(super) fn at_ms(self, now_ms: i64) -> Option<i64> {
        let at = match self {
            Expiry::After(duration) => now_ms + i64::try_from(duration.as_millis()).ok()?,
            Expiry::At(moment) => moment.as_millisecond(),
        };
        (at > now_ms).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_after_a_time_or_at_a_date() {
        let now_ms = 1_000;
        let at = |text| Expiry::parse(text).map(|expiry| expiry.at_ms(now_ms));
        assert_eq!(at("90d"), Ok(Some(now_ms + 90 * 86_400_000)));
        assert_eq!(at("2030-01-31"), Ok(Some(1_896_048_000_000)));
        assert_eq!(at("2030-01-31T12:00:00Z"), Ok(Some(1_896_091_200_000)));
        assert_eq!(at("1969-12-31"), Ok(None), "that is over");
        assert_eq!(at("0s"), Ok(None));
        for wrong in ["", "soon", "90", "2030-02-31", "-1d"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
        let too_long = "a duration is at most 3650d".to_owned();
        assert_eq!(at("4000d"), Err(too_long), "its form is right");
    }
}

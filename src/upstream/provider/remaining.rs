//! What servers say is left of their rate limits, in the headers of OpenAI's and of Anthropic's
//! API, which many others have, too. Read leniently: what cannot be read is left out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName};

use super::http;
use crate::upstream::limits::rate::Remaining;
use crate::upstream::settings::RateKind;

/// By what is limited: the headers that say how much is left, and when all of it is there again.
const HEADERS: [(RateKind, &str, &str); 6] = [
    (
        RateKind::Requests,
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ),
    (
        RateKind::Tokens,
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    ),
    (
        RateKind::Requests,
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    (
        RateKind::Tokens,
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
    ),
    (
        RateKind::InputTokens,
        "anthropic-ratelimit-input-tokens-remaining",
        "anthropic-ratelimit-input-tokens-reset",
    ),
    (
        RateKind::OutputTokens,
        "anthropic-ratelimit-output-tokens-remaining",
        "anthropic-ratelimit-output-tokens-reset",
    ),
];

/// How the names of these headers begin.
const PREFIXES: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

/// All that the headers of an answer say. `now`: by which times are told.
pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Vec<Remaining> {
    // Most servers say nothing, and to look for each header costs more than to look at each.
    let says_something = |name: &HeaderName| {
        let name = name.as_str();
        PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    if !headers.keys().any(says_something) {
        return Vec::new();
    }
    let read = |(kind, remaining, reset): (RateKind, &'static str, &'static str)| {
        let remaining = http::text(headers, &HeaderName::from_static(remaining))?;
        let reset = http::text(headers, &HeaderName::from_static(reset))?;
        Some(Remaining {
            kind,
            remaining: remaining.parse().ok()?,
            reset: until(reset, now)?,
        })
    };
    HEADERS.into_iter().filter_map(read).collect()
}

/// How long until a moment that is told as seconds, as `6m0s` or `12ms`, or as a time.
fn until(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then(|| http::seconds(seconds));
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = Duration::from_millis(u64::try_from(time.as_millisecond()).unwrap_or(0));
        return Some(at.saturating_sub(now));
    }
    parts(text)
}

/// A duration as Go writes it: `1h2m3.5s`, `12ms`.
fn parts(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, behind) = rest.split_at(number);
        let unit = behind
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let factor = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += digits.parse::<f64>().ok()? * factor;
        rest = behind;
    }
    (!text.is_empty()).then(|| http::seconds(seconds))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        pairs.collect()
    }

    #[test]
    fn a_reset_is_read_in_each_form_that_servers_write() {
        let now = UNIX_EPOCH + Duration::from_hours(500_000);
        for (text, ms) in [
            ("12ms", Some(12)),
            ("1s", Some(1_000)),
            ("6m0s", Some(360_000)),
            ("1h2m3.5s", Some(3_723_500)),
            ("7", Some(7_000)),
            ("0", Some(0)),
            ("-1", Some(0)),
            ("2027-01-15T08:00:30Z", Some(30_000)),
            ("2020-01-01T00:00:00Z", Some(0)),
            ("", None),
            ("soon", None),
            ("5x", None),
            ("NaN", None),
        ] {
            let read = until(text, now);
            assert_eq!(read, ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn both_families_are_read_and_junk_is_left_out() {
        let said = read(
            &headers(&[
                ("x-ratelimit-remaining-requests", "59"),
                ("x-ratelimit-reset-requests", "1s"),
                ("x-ratelimit-remaining-tokens", "many"),
                ("x-ratelimit-reset-tokens", "1s"),
                ("anthropic-ratelimit-output-tokens-remaining", "8000"),
                ("anthropic-ratelimit-output-tokens-reset", "12ms"),
                ("anthropic-ratelimit-input-tokens-remaining", "8000"),
            ]),
            UNIX_EPOCH,
        );
        let said: Vec<_> = said.iter().map(|one| (one.kind, one.remaining)).collect();
        let expected = [(RateKind::Requests, 59), (RateKind::OutputTokens, 8_000)];
        assert_eq!(said, expected);
    }
}

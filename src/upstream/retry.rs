//! What the answer of a model server means for the line, and how long to wait before it is sent
//! again. Pure: no clock, no dice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};

use crate::config;

/// A server that asks for more than this is not believed.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What an HTTP status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The line's answer: 2xx, 3xx (redirects are not followed: an operator's upstream has one
    /// address), and whatever is wrong with the line itself.
    Final,
    /// Went wrong this once; sending it again uses up an attempt.
    Transient,
    /// 503: the server is starting or going away. Not the line's fault.
    Unavailable,
    /// 429: too much for this model now. Not the line's fault.
    Limited,
    /// 401, 402, 403: the key or the account. Not the line's fault.
    Refused,
}

/// Judges an answer by its status and what the server says of trying again (`x-should-retry`).
pub(super) fn judge(status: u16, headers: &HeaderMap) -> Class {
    let class = match status {
        401..=403 => return Class::Refused,
        429 => return Class::Limited,
        503 => Class::Unavailable,
        408 | 409 | 498 | 500..=599 => Class::Transient,
        _ => Class::Final,
    };
    match headers
        .get(SHOULD_RETRY)
        .map(reqwest::header::HeaderValue::as_bytes)
    {
        Some(b"false") => Class::Final,
        Some(b"true") if (400..500).contains(&status) => Class::Transient,
        _ => class,
    }
}

/// How long the server asks to wait: `retry-after-ms`, else `retry-after` in seconds or as an HTTP
/// date. What is past is zero, what makes no sense is not there.
pub(super) fn told(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &HeaderName| text(name)?.parse::<f64>().ok().filter(|n| n.is_finite());
    let date = || {
        let date = httpdate::parse_http_date(text(&RETRY_AFTER)?).ok()?;
        Some(date.duration_since(now).unwrap_or_default())
    };
    number(&RETRY_AFTER_MS)
        .map(|ms| seconds(ms / 1000.0))
        .or_else(|| number(&RETRY_AFTER).map(seconds))
        .or_else(date)
        .map(|wait| wait.min(LONGEST_WAIT))
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_WAIT.as_secs_f64()))
}

/// The wall-clock time that [`told`] compares dates with.
pub(super) fn wall_clock(now_ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(now_ms.try_into().unwrap_or(0))
}

/// How long to wait after the `attempt`th failure (from 1): exponential and capped, with full
/// jitter; `random` is in 0..1.
#[must_use]
pub fn backoff(attempt: u32, config: &config::Retry, random: f64) -> Duration {
    let ceiling = doubled(config.initial_backoff, attempt.saturating_sub(1));
    ceiling
        .min(config.max_backoff)
        .mul_f64(random.clamp(0.0, 1.0))
}

/// `first`, doubled so many times.
pub(super) fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'static str, &'a str)];

    fn headers(pairs: Pairs<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().expect("a header value"));
        }
        headers
    }

    #[test]
    fn each_status_has_its_class() {
        let cases: &[(&[u16], Class)] = &[
            (&[200, 201, 204, 299], Class::Final),
            (&[301, 302, 304, 307, 308], Class::Final),
            (
                &[400, 404, 405, 410, 413, 415, 422, 424, 451, 499],
                Class::Final,
            ),
            (&[401, 402, 403], Class::Refused),
            (&[429], Class::Limited),
            (&[408, 409, 498], Class::Transient),
            (&[500, 501, 502, 504, 520, 524, 529, 599], Class::Transient),
            (&[503], Class::Unavailable),
        ];
        for (statuses, class) in cases {
            for &status in *statuses {
                assert_eq!(judge(status, &HeaderMap::new()), *class, "{status}");
            }
        }
    }

    #[test]
    fn the_server_may_say_whether_to_try_again() {
        let no = headers(&[("x-should-retry", "false")]);
        let yes = headers(&[("x-should-retry", "true")]);
        let junk = headers(&[("x-should-retry", "maybe")]);
        for status in [408, 409, 498, 500, 503, 529] {
            assert_eq!(judge(status, &no), Class::Final, "{status}");
        }
        for status in [400, 404, 409, 422] {
            assert_eq!(judge(status, &yes), Class::Transient, "{status}");
        }
        for status in [200, 307] {
            assert_eq!(judge(status, &yes), Class::Final, "{status}");
        }
        for (status, class) in [
            (401, Class::Refused),
            (403, Class::Refused),
            (429, Class::Limited),
        ] {
            assert_eq!(judge(status, &no), class);
            assert_eq!(judge(status, &yes), class);
        }
        assert_eq!(judge(503, &yes), Class::Unavailable);
        assert_eq!(judge(400, &junk), Class::Final);
        assert_eq!(judge(500, &junk), Class::Transient);
    }

    #[test]
    fn the_wait_that_a_server_asks_for_is_read_in_every_form() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let day = 86_400_000;
        let cases: &[(Pairs<'_>, Option<u64>)] = &[
            (&[], None),
            (&[("retry-after", "2")], Some(2000)),
            (&[("retry-after", " 0.25 ")], Some(250)),
            (&[("retry-after", "0")], Some(0)),
            (&[("retry-after", "-5")], Some(0)),
            (&[("retry-after", "1e12")], Some(day)),
            (&[("retry-after", "99999999999999999999")], Some(day)),
            (
                &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")],
                Some(10_000),
            ),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT")], Some(0)),
            (
                &[("retry-after", "Sat, 06 Nov 2094 08:49:37 GMT")],
                Some(day),
            ),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "inf")], None),
            (
                &[("retry-after-ms", "150.5"), ("retry-after", "9")],
                Some(150),
            ),
            (&[("retry-after-ms", "-1"), ("retry-after", "9")], Some(0)),
            (
                &[("retry-after-ms", "junk"), ("retry-after", "9")],
                Some(9000),
            ),
            (&[("retry-after-ms", "1e300")], Some(day)),
        ];
        for (pairs, expected) in cases {
            let told = told(&headers(pairs), now).map(|wait| wait.as_millis());
            assert_eq!(told, expected.map(u128::from), "{pairs:?}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_with_full_jitter() {
        let config = config::Retry {
            max_attempts: 5,
            initial_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(60),
        };
        for (attempt, ceiling) in [(0, 500), (1, 500), (2, 1000), (3, 2000), (7, 32_000)] {
            assert_eq!(
                backoff(attempt, &config, 1.0).as_millis(),
                ceiling,
                "{attempt}"
            );
            assert_eq!(
                backoff(attempt, &config, 0.5).as_millis(),
                ceiling / 2,
                "{attempt}"
            );
        }
        for attempt in [8, 20, 33, 64, u32::MAX] {
            assert_eq!(
                backoff(attempt, &config, 1.0),
                config.max_backoff,
                "{attempt}"
            );
        }
        assert_eq!(backoff(3, &config, 0.0), Duration::ZERO);
    }
}

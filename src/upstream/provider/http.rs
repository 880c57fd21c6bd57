//! What HTTP itself says in an answer's head, whichever provider the answer is of.

use std::time::{Duration, SystemTime};

use reqwest::Url;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue, LOCATION,
    RETRY_AFTER,
};
use secrecy::{ExposeSecret, SecretString};

/// Longer than anybody means. What is asked for is bounded again by `[retry] longest_wait`.
const WAIT_MAX: Duration = Duration::from_hours(24 * 365);

/// How much of a body that is not JSON a line's error repeats.
const EXCERPT_CHARS: usize = 100;

/// As OpenAI and most others name the request's id.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// As Anthropic names it.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The head of an HTTP answer.
#[derive(Debug)]
pub(in crate::upstream) struct Head {
    pub(in crate::upstream) status: u16,
    pub(in crate::upstream) headers: HeaderMap,
}

impl Head {
    pub(in crate::upstream) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The server's own id for the request.
pub(super) fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers
        .get(X_REQUEST_ID)
        .or_else(|| headers.get(REQUEST_ID))?;
    id.to_str().ok().filter(|id| !id.is_empty())
}

/// Sends a key as a bearer token.
pub(super) fn bear(key: &SecretString, headers: &mut HeaderMap) -> Result<(), InvalidHeaderValue> {
    let value = format!("Bearer {}", key.expose_secret());
    secret(AUTHORIZATION, &value, headers)
}

/// Sends a secret in a header.
pub(super) fn secret(
    name: HeaderName,
    secret: &str,
    headers: &mut HeaderMap,
) -> Result<(), InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(secret)?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

/// The base with `path` put behind its own; its query (an API version, say) stays.
pub(super) fn behind(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

/// The same, where the base may be the server's origin, or have the API's version (`/v1`, say) as
/// its path or at the end of its path already.
pub(super) fn behind_version(base: &Url, version: &str, path: &str) -> Url {
    let own = base.path().trim_end_matches('/');
    let version = if own.ends_with(version) { "" } else { version };
    behind(base, &format!("{version}{path}"))
}

/// Whether a status is one by which a gateway says that the server behind it does not answer.
pub(in crate::upstream) fn is_of_a_gateway(status: u16) -> bool {
    matches!(status, 502..=504 | 520..=529)
}

/// Whether an answer calls itself JSON: `application/json`, or a type that is written in JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let essence = content_type(headers).to_ascii_lowercase();
    matches!(essence.as_str(), "application/json" | "text/json") || essence.ends_with("+json")
}

/// Whether an answer calls itself server-sent events.
pub(in crate::upstream) fn is_event_stream(headers: &HeaderMap) -> bool {
    content_type(headers).eq_ignore_ascii_case("text/event-stream")
}

/// Without parameters; empty where there is none.
fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let value = value.and_then(|value| std::str::from_utf8(value).ok());
    let value = value.unwrap_or_default();
    let essence = value.split_once(';').map_or(value, |(essence, _)| essence);
    essence.trim()
}

/// Where a redirect points to, without what may be secret in it.
pub(super) fn location(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(LOCATION)?.to_str().ok()?;
    // A URL without its scheme may have a password, too.
    let text = match text.strip_prefix("//") {
        Some(rest) => &format!("https://{rest}"),
        None => text,
    };
    match Url::parse(text) {
        Ok(mut url) => {
            url.set_query(None);
            url.set_fragment(None);
            // A URL that cannot have them has none.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            Some(url.to_string())
        }
        Err(_) => Some(text.split(['?', '#']).next().unwrap_or_default().to_owned()),
    }
}

/// How long the server asks to wait: `retry-after`, in seconds or as an HTTP date. A date that is
/// past is zero; what makes no sense is not there.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = || {
        let date = httpdate::parse_http_date(text(headers, &RETRY_AFTER)?).ok()?;
        Some(date.duration_since(now).unwrap_or_default())
    };
    let wait = number(headers, &RETRY_AFTER).map(seconds).or_else(date);
    wait.map(|wait| wait.min(WAIT_MAX))
}

/// The same: `retry-after-ms`, else `retry-after`.
pub(super) fn exact_retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let exact = number(headers, &RETRY_AFTER_MS).map(|ms| seconds(ms / 1000.0));
    exact.or_else(|| retry_after(headers, now))
}

/// A header's value as a number.
pub(super) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<f64> {
    let number = text(headers, name)?.parse::<f64>().ok();
    number.filter(|number| number.is_finite())
}

/// A number of seconds, within what makes sense.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, WAIT_MAX.as_secs_f64()))
}

pub(super) fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// The beginning of a body that nobody understands, for people.
pub(super) fn excerpt(body: &[u8]) -> String {
    if body.is_empty() {
        return "it is empty".to_owned();
    }
    // A character has at most four bytes.
    let begin = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_CHARS * 4)]);
    match begin.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}…", &begin[..end]),
        None => begin.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_request_id_is_found_under_both_names() {
        let mut headers = HeaderMap::new();
        assert_eq!(request_id(&headers), None);
        headers.insert("request-id", HeaderValue::from_static("req_1"));
        assert_eq!(request_id(&headers), Some("req_1"));
        headers.insert("x-request-id", HeaderValue::from_static("req_2"));
        assert_eq!(request_id(&headers), Some("req_2"));
    }

    #[test]
    fn a_path_goes_behind_the_origin_and_behind_the_version() {
        for (base, expected) in [
            ("https://h", "https://h/v1/messages"),
            ("https://h/", "https://h/v1/messages"),
            ("https://h/v1", "https://h/v1/messages"),
            ("https://h/v1/", "https://h/v1/messages"),
            ("https://h/a/v1?x=1", "https://h/a/v1/messages?x=1"),
            ("https://h/a", "https://h/a/v1/messages"),
        ] {
            let base = Url::parse(base).expect("a URL");
            let url = behind_version(&base, "/v1", "/messages");
            assert_eq!(url.as_str(), expected);
        }
    }

    #[test]
    fn a_redirect_is_told_without_its_secrets() {
        for (written, told) in [
            ("https://me:pass@h/v1?key=1#x", "https://h/v1"),
            ("/v2/chat?key=1", "/v2/chat"),
            ("//me:pass@h/v1", "https://h/v1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, written.parse().expect("a header value"));
            assert_eq!(location(&headers).as_deref(), Some(told));
        }
        assert_eq!(location(&HeaderMap::new()), None);
    }
}

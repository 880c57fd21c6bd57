//! How a call went, by what the server answered, and whom that concerns. Pure: no clock, no dice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use serde_json::Value;

use crate::domain::outcome::{Form, Reading};
use crate::metrics::CallOutcome;
use crate::upstream::health::breaker::Reason;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Longer than anybody means. What is asked for is bounded again by `[retry] longest_wait`.
const WAIT_MAX: Duration = Duration::from_hours(24 * 365);

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum CallResult {
    /// 2xx: the line's answer.
    Succeeded,
    /// The line's answer, which says what is wrong with the line.
    Rejected,
    /// 404 of a server that does not have the line's model.
    ModelMissing,
    /// 401.
    KeyRefused,
    /// 403.
    Refused,
    /// 402, or a 429 that says that the money is spent.
    Unpaid,
    /// 3xx, or a 404 that says that there is nothing at the path.
    Misdirected,
    /// 429.
    Limited,
    /// 503, and what gateways say for a server that does not answer.
    Unavailable,
    /// This side had no file descriptor left: the request was not sent.
    NoDescriptor,
    /// No connection: the request was not sent.
    Unreachable,
    /// Another status that may pass, such as 500.
    ServerError,
    /// A success whose body is no JSON, and does not claim to be, or has an error in place of an
    /// answer.
    Garbled,
    /// A success of the model server itself, which no JSON reader can read. To compute the answer
    /// again would bring the same.
    Malformed,
    /// A success whose content coding cannot be undone. The same holds for it.
    Undecodable,
    /// The connection was lost, or no HTTP came from it.
    Broken,
    TimedOut,
    /// The answer would be as large again.
    TooLarge,
}

/// What a failed call costs its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Cost {
    /// Nothing, until it is known that the refusal is the line's own.
    Refusal,
    /// Nothing, until it is all but certain that it is the line's own fault.
    TurnedAway,
    /// One of its attempts.
    Attempt,
}

impl CallResult {
    /// Judges an answer by its status, by what the server says of trying again
    /// (`x-should-retry`), and by its body where it has an error.
    pub(in crate::upstream) fn of(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let usual = match status {
            200..=299 => return CallResult::Succeeded,
            300..=399 => return CallResult::Misdirected,
            401 => return CallResult::KeyRefused,
            402 => return CallResult::Unpaid,
            403 => return CallResult::Refused,
            404 => return ErrorBody::of(body).as_not_found(),
            429 => return ErrorBody::of(body).as_limited(),
            502..=504 | 520..=529 => CallResult::Unavailable,
            408 | 409 | 498 | 500..=599 => CallResult::ServerError,
            _ => CallResult::Rejected,
        };
        let said = headers.get(SHOULD_RETRY);
        match said.map(reqwest::header::HeaderValue::as_bytes) {
            Some(b"false") => CallResult::Rejected,
            Some(b"true") if (400..500).contains(&status) => CallResult::ServerError,
            _ => usual,
        }
    }

    /// Judges a success by its body. A page of a proxy, say, does not call itself JSON: no model
    /// server answers so.
    pub(in crate::upstream) fn of_success(
        headers: &HeaderMap,
        body: &[u8],
        reading: &Reading,
    ) -> Self {
        match reading.form {
            Form::Json if reading.is_bare_error => CallResult::Garbled,
            Form::Json => CallResult::Succeeded,
            Form::Deep | Form::Long | Form::Streamed => CallResult::Malformed,
            Form::NotJson if is_json(headers) && !body.trim_ascii().is_empty() => {
                CallResult::Malformed
            }
            Form::NotJson => CallResult::Garbled,
        }
    }

    /// What a breaker is told. `None`: the call says nothing of who answers.
    pub(in crate::upstream) fn reason(self) -> Option<Reason> {
        Some(match self {
            CallResult::Succeeded
            | CallResult::Rejected
            | CallResult::Malformed
            | CallResult::Undecodable
            | CallResult::NoDescriptor
            | CallResult::TooLarge => return None,
            CallResult::ModelMissing => Reason::ModelMissing,
            CallResult::KeyRefused => Reason::KeyRefused,
            CallResult::Refused => Reason::Refused,
            CallResult::Unpaid => Reason::Unpaid,
            CallResult::Misdirected => Reason::Misdirected,
            CallResult::Limited => Reason::Limited,
            CallResult::Unavailable => Reason::Unavailable,
            CallResult::Unreachable => Reason::Unreachable,
            CallResult::ServerError
            | CallResult::Garbled
            | CallResult::Broken
            | CallResult::TimedOut => Reason::Failing,
        })
    }

    /// Whether it concerns all models of the upstream.
    pub(in crate::upstream) fn is_of_upstream(self) -> bool {
        matches!(self, CallResult::KeyRefused | CallResult::Unreachable)
    }

    /// Whether only a caller whose key is accepted is answered so.
    pub(in crate::upstream) fn shows_that_the_key_works(self) -> bool {
        matches!(
            self,
            CallResult::Succeeded
                | CallResult::Rejected
                | CallResult::Malformed
                | CallResult::ModelMissing
                | CallResult::Refused
                | CallResult::Unpaid
                | CallResult::Limited
        )
    }

    /// What it costs the line; `None` where the line ends with it.
    pub(in crate::upstream) fn cost(self) -> Option<Cost> {
        Some(match self {
            CallResult::Succeeded
            | CallResult::Rejected
            | CallResult::Malformed
            | CallResult::Undecodable
            | CallResult::TooLarge
            | CallResult::ModelMissing => return None,
            CallResult::KeyRefused
            | CallResult::Refused
            | CallResult::Unpaid
            | CallResult::Misdirected => Cost::Refusal,
            CallResult::Limited
            | CallResult::Unavailable
            | CallResult::NoDescriptor
            | CallResult::Unreachable => Cost::TurnedAway,
            CallResult::ServerError
            | CallResult::Garbled
            | CallResult::Broken
            | CallResult::TimedOut => Cost::Attempt,
        })
    }

    /// The same for the metrics.
    pub(in crate::upstream) fn outcome(self) -> CallOutcome {
        match self {
            CallResult::Succeeded | CallResult::Rejected | CallResult::ModelMissing => {
                CallOutcome::Answered
            }
            CallResult::Malformed | CallResult::Undecodable => CallOutcome::Malformed,
            CallResult::KeyRefused | CallResult::Refused | CallResult::Unpaid => {
                CallOutcome::Refused
            }
            CallResult::Misdirected => CallOutcome::Misdirected,
            CallResult::Limited => CallOutcome::RateLimited,
            CallResult::Unavailable => CallOutcome::Unavailable,
            CallResult::NoDescriptor => CallOutcome::NotSent,
            CallResult::Unreachable => CallOutcome::Unreachable,
            CallResult::ServerError | CallResult::Garbled => CallOutcome::ServerError,
            CallResult::Broken => CallOutcome::Broken,
            CallResult::TimedOut => CallOutcome::TimedOut,
            CallResult::TooLarge => CallOutcome::TooLarge,
        }
    }
}

/// What an error says, in whichever of the usual shapes.
#[derive(Debug, Default)]
struct ErrorBody {
    /// There is an `error`, as OpenAI's API has it.
    is_error: bool,
    /// Its codes and types.
    codes: Vec<String>,
    message: String,
}

/// Codes and types by which a 429 says that the money is spent: OpenAI's and Anthropic's.
const UNPAID: [&str; 6] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "enforced_spend_limit_reached",
];
/// Codes by which a 429 says that this very request can never pass.
const TOO_LARGE: [&str; 3] = [
    "request_too_large",
    "context_length_exceeded",
    "string_above_max_length",
];
/// Codes by which a 404 says that the model is not there.
const MISSING: [&str; 3] = ["model_not_found", "not_found_error", "NotFoundError"];

impl ErrorBody {
    fn of(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Self::default();
        };
        let value = match &value {
            Value::Array(items) => items.first().unwrap_or(&Value::Null),
            other => other,
        };
        let error = value.get("error");
        let inner = match error {
            Some(error @ Value::Object(_)) => error,
            // vLLM's older form.
            _ if value.get("object").is_some_and(|object| object == "error") => value,
            Some(Value::String(message)) => {
                return Self {
                    is_error: true,
                    message: message.clone(),
                    ..Self::default()
                };
            }
            _ => return Self::default(),
        };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let details = inner.get("details").and_then(|one| one.get("error_code"));
        let codes = [inner.get("code"), inner.get("type"), details];
        Self {
            is_error: true,
            codes: codes.into_iter().filter_map(text).collect(),
            message: text(inner.get("message")).unwrap_or_default(),
        }
    }

    fn has(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&code.as_str()))
    }

    fn as_not_found(&self) -> CallResult {
        if !self.is_error || self.message.starts_with("Invalid URL") {
            return CallResult::Misdirected;
        }
        let message = self.message.to_ascii_lowercase();
        let of_model = message.contains("model")
            && ["not found", "not exist", "not supported", "no such"]
                .iter()
                .any(|words| message.contains(words));
        if self.has(&MISSING[..1]) || (of_model && (self.codes.is_empty() || self.has(&MISSING))) {
            return CallResult::ModelMissing;
        }
        // What else is not there is named by the line: a file, a response.
        CallResult::Rejected
    }

    fn as_limited(&self) -> CallResult {
        if self.has(&UNPAID) {
            return CallResult::Unpaid;
        }
        if self.has(&TOO_LARGE)
            || self.message.starts_with("Request too large")
            || self.asks_for_more_than_the_limit()
        {
            return CallResult::Rejected;
        }
        CallResult::Limited
    }

    /// OpenAI's "Limit 30000, Requested 342389".
    fn asks_for_more_than_the_limit(&self) -> bool {
        let number = |name: &str| -> Option<u64> {
            let (_, rest) = self.message.split_once(name)?;
            let rest = rest.trim_start_matches([':', ' ']);
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != ',');
            let digits = rest[..digits.unwrap_or(rest.len())].replace(',', "");
            digits.parse().ok()
        };
        number("Limit")
            .zip(number("Requested"))
            .is_some_and(|(limit, asked)| asked > limit)
    }
}

/// Whether an answer calls itself JSON: `application/json`, or a type that is written in JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = content_type(headers);
    let is = |of_json: &[u8]| essence.eq_ignore_ascii_case(of_json);
    let suffix = essence.last_chunk::<5>();
    is(b"application/json")
        || is(b"text/json")
        || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(b"+json"))
}

/// Whether an answer calls itself server-sent events.
pub(in crate::upstream) fn is_streamed(headers: &HeaderMap) -> bool {
    content_type(headers).eq_ignore_ascii_case(b"text/event-stream")
}

/// Whether an answer calls itself what model servers answer with.
pub(in crate::upstream) fn is_of_a_model(headers: &HeaderMap) -> bool {
    is_json(headers) || is_streamed(headers)
}

/// Without parameters, as the server writes it; empty where there is none. Allocates nothing: it is
/// looked at for each answer.
fn content_type(headers: &HeaderMap) -> &[u8] {
    let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let essence = value.and_then(|value| value.split(|&byte| byte == b';').next());
    essence.unwrap_or_default().trim_ascii()
}

/// What an error says, of whatever status; empty if that is nothing.
pub(in crate::upstream) fn message(body: &[u8]) -> String {
    ErrorBody::of(body).message
}

/// Where a redirect points to, without what may be secret in it.
pub(in crate::upstream) fn location(headers: &HeaderMap) -> Option<String> {
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

/// How long the server asks to wait: `retry-after-ms`, else `retry-after` in seconds or as an HTTP
/// date. What is past is zero, what makes no sense is not there.
pub(in crate::upstream) fn told(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
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
        .map(|wait| wait.min(WAIT_MAX))
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, WAIT_MAX.as_secs_f64()))
}

/// The wall-clock time that [`told`] compares dates with.
pub(in crate::upstream) fn wall_clock(now_ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(now_ms.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests;

//! What an answer of OpenAI's kind means: by its status, by what the server says of trying again
//! (`x-should-retry`), and by its error. The errors of Anthropic's API and of vLLM are read, too:
//! servers that speak OpenAI's API pass them on. Pure: no clock, no dice.

use reqwest::header::{HeaderMap, HeaderName};
use serde_json::Value;

use crate::domain::outcome::Form;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::provider::answer;
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::interface::Decoded;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// How a call went that was answered so.
pub(super) fn classify(head: &Head, answer: &Decoded) -> CallResult {
    match failure(head.status, &head.headers, answer.said()) {
        Some(failure) => failure,
        None => success(&head.headers, answer),
    }
}

/// Classifies an answer by its status, and by its headers and its error where it has any. `None`:
/// the status says that it is a success.
fn failure(status: u16, headers: &HeaderMap, body: &[u8]) -> Option<CallResult> {
    let usual = match status {
        200..=299 => return None,
        300..=399 => return Some(CallResult::Misdirected),
        401 => return Some(CallResult::KeyRefused),
        402 => return Some(CallResult::Unpaid),
        403 => return Some(CallResult::Refused),
        404 => return Some(ErrorBody::of(body).as_not_found()),
        429 => return Some(ErrorBody::of(body).as_limited()),
        400 if ErrorBody::of(body).is_of_the_context() => CallResult::ContextTooLong,
        status if http::is_of_a_gateway(status) => CallResult::Unavailable,
        408 | 409 | 498 | 500..=599 => CallResult::ServerError,
        _ => CallResult::Rejected,
    };
    let said = headers
        .get(SHOULD_RETRY)
        .map(reqwest::header::HeaderValue::as_bytes);
    Some(match said {
        Some(b"false") => CallResult::Rejected,
        Some(b"true") if (400..500).contains(&status) => CallResult::ServerError,
        _ => usual,
    })
}

/// Classifies a success by its body. A page of a proxy, say, does not call itself JSON: no model
/// server answers so.
fn success(headers: &HeaderMap, answer: &Decoded) -> CallResult {
    match answer.form {
        Form::Json | Form::Tight if answer.is_bare_error => CallResult::Garbled,
        Form::Json | Form::Tight => CallResult::Succeeded,
        Form::Deep | Form::Long | Form::Incomplete => CallResult::Malformed,
        Form::NotJson if http::is_json(headers) && !answer.body.trim_ascii().is_empty() => {
            CallResult::Malformed
        }
        Form::NotJson => CallResult::Garbled,
    }
}

/// A failure, in words.
pub(super) fn explain(result: CallResult, head: &Head, answer: &Decoded) -> String {
    let status = head.status;
    let mut text = format!("the model server answered {status}");
    match result {
        CallResult::Garbled if answer.is_bare_error => {
            text.push_str(" with an error and no answer: ");
            let message = ErrorBody::of(&answer.body).message;
            let said = Some(message.as_bytes()).filter(|said| !said.is_empty());
            text.push_str(&http::excerpt(said.unwrap_or(&answer.body)));
        }
        CallResult::Garbled => {
            text.push_str(" with a body that is not JSON: ");
            text.push_str(&http::excerpt(&answer.body));
        }
        CallResult::Misdirected => {
            if let Some(location) = http::location(&head.headers) {
                text.push_str(" and points to ");
                text.push_str(&location);
            }
        }
        _ => {}
    }
    text
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
const TOO_LARGE: [&str; 2] = ["request_too_large", "string_above_max_length"];
/// The code by which an error says that the line is longer than the model takes.
const CONTEXT_TOO_LONG: &str = "context_length_exceeded";
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

    /// Whether the error has one of these codes.
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

    /// Whether the line is longer than the model takes here.
    fn is_of_the_context(&self) -> bool {
        self.has(&[CONTEXT_TOO_LONG]) || answer::is_of_the_context(&self.message)
    }

    fn as_limited(&self) -> CallResult {
        if self.has(&UNPAID) {
            return CallResult::Unpaid;
        }
        if self.is_of_the_context() {
            return CallResult::ContextTooLong;
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

#[cfg(test)]
mod tests;

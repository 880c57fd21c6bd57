//! What an answer of Anthropic's API means: by its status, by what the server says of trying again
//! (`x-should-retry`), and by its error. Pure.

use std::borrow::Cow;

use reqwest::header::{HeaderName, HeaderValue};

use crate::upstream::attempt::result::CallResult;
use crate::upstream::provider::answer;
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::interface::Decoded;
use crate::upstream::provider::tree::Tree;

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The codes, and parts of messages, by which an error says that the account may spend no more.
const UNPAID: [&str; 9] = [
    "enforced_spend_limit_reached",
    "contract_spend_limit_reached",
    "linked_organization_spend_limit_reached",
    "linked_organization_billing_unavailable",
    "organization_on_hold",
    "billing_error",
    "credit balance is too low",
    "specified API usage limits",
    "spend limit",
];

/// The words by which an error says that the line is longer than the model takes: its input, or its
/// input with the answer that it asks for.
const TOO_LONG: [&str; 2] = ["prompt is too long", "exceed context limit"];

/// The error's own code, beside its type.
pub(super) fn detail<'t>(error: &'t Tree<'_>) -> Option<Cow<'t, str>> {
    error.get("details")?.get("error_code")?.text()
}

/// How a call went that was answered so.
pub(super) fn classify(head: &Head, decoded: &Decoded) -> CallResult {
    if head.is_success() {
        return answer::classify(head, decoded);
    }
    let said = decoded.said();
    let said = std::str::from_utf8(said).ok().and_then(Tree::read);
    let error = said.as_ref().and_then(|said| said.get("error"));
    let text = |key: &str| error.and_then(|error| error.get(key)?.text());
    let is_of_the_api = error.is_some();
    let (kind, message) = (text("type"), text("message").unwrap_or_default());
    let code = error.and_then(detail);
    let is_unpaid = || {
        let mut words = kind.iter().chain(&code);
        words.any(|word| UNPAID.contains(&&**word) || word.starts_with("contract_"))
            || UNPAID.iter().any(|part| message.contains(part))
    };
    let usual = match head.status {
        401 => return CallResult::KeyRefused,
        402 => return CallResult::Unpaid,
        403 => return CallResult::Refused,
        // The server also says that there is no use in trying again, which is so here only.
        400 if TOO_LONG.iter().any(|words| message.contains(words)) => {
            return CallResult::ContextTooLong;
        }
        400 | 429 if is_unpaid() => return CallResult::Unpaid,
        400 if answer::is_of_the_context(&message) => return CallResult::ContextTooLong,
        404 if kind.as_deref() == Some("not_found_error") => {
            // Of a path it says "Not Found" alone.
            return if message.contains("model") {
                CallResult::ModelMissing
            } else {
                CallResult::Misdirected
            };
        }
        404 if is_of_the_api => CallResult::Rejected,
        300..=399 | 404 => return CallResult::Misdirected,
        429 => return CallResult::Limited,
        status if http::is_of_a_gateway(status) => CallResult::Unavailable,
        408 | 409 | 500..=599 => CallResult::ServerError,
        _ => CallResult::Rejected,
    };
    match head.headers.get(SHOULD_RETRY).map(HeaderValue::as_bytes) {
        Some(b"false") => CallResult::Rejected,
        Some(b"true") if (400..500).contains(&head.status) => CallResult::ServerError,
        _ => usual,
    }
}

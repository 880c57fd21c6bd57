//! What an answer of Cohere's API means: by its status and its message. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName};

use crate::upstream::attempt::result::CallResult;
use crate::upstream::provider::answer;
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::interface::Decoded;
use crate::upstream::provider::tree::Tree;

/// When calls are taken again, in Unix seconds.
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// How a call went that was answered so.
pub(super) fn classify(head: &Head, decoded: &Decoded) -> CallResult {
    if head.is_success() {
        return answer::classify(head, decoded);
    }
    let said = std::str::from_utf8(decoded.said()).ok();
    let said = said.and_then(Tree::read);
    let message = said.as_ref().and_then(|said| said.get("message")?.text());
    let message = message.unwrap_or_default();
    match head.status {
        401 => CallResult::KeyRefused,
        402 => CallResult::Unpaid,
        403 => CallResult::Refused,
        400 if answer::is_of_the_context(&message) => CallResult::ContextTooLong,
        404 if message.contains("model") => CallResult::ModelMissing,
        300..=399 | 404 => CallResult::Misdirected,
        // What a trial key may be used for in a month is spent.
        429 if message.contains("/ month") => CallResult::Unpaid,
        429 => CallResult::Limited,
        status if http::is_of_a_gateway(status) => CallResult::Unavailable,
        // 499: the server dropped the request. 498, among the others, is a text that is not let
        // through.
        408 | 409 | 499 | 500..=599 => CallResult::ServerError,
        _ => CallResult::Rejected,
    }
}

/// How long the server asks to be left alone, where the header says when that ends.
pub(super) fn reset(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let wait = http::number(headers, &RESET)? - now.as_secs_f64();
    Some(http::seconds(wait))
}

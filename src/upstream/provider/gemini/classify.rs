//! What an answer of Gemini's API means: by its status and its error's details. Pure.

use std::time::Duration;

use crate::upstream::attempt::result::CallResult;
use crate::upstream::provider::answer;
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::interface::Decoded;
use crate::upstream::provider::tree::Tree;

/// The error of a body, which may stand in a list of one.
pub(super) fn error<'t, 'a>(said: &'t Tree<'a>) -> Option<&'t Tree<'a>> {
    let said = said.list().and_then(<[_]>::first).unwrap_or(said);
    said.get("error")
}

fn details<'t, 'a>(error: &'t Tree<'a>) -> &'t [Tree<'a>] {
    error
        .get("details")
        .and_then(Tree::list)
        .unwrap_or_default()
}

/// Whether an error says that a quota for a day is spent. No wait of seconds helps then, though the
/// error may name one.
fn is_of_the_day(error: &Tree<'_>) -> bool {
    let violations = details(error)
        .iter()
        .filter_map(|detail| detail.get("violations")?.list());
    let quotas = violations
        .flatten()
        .filter_map(|one| one.get("quotaId")?.text());
    quotas.into_iter().any(|quota| quota.contains("PerDay"))
}

/// How a call went that was answered so.
pub(super) fn classify(head: &Head, decoded: &Decoded) -> CallResult {
    if head.is_success() {
        return answer::classify(head, decoded);
    }
    let said = std::str::from_utf8(decoded.said())
        .ok()
        .and_then(Tree::read);
    let error = said.as_ref().and_then(error);
    let has = |key: &str, text: &str| {
        error.is_some_and(|error| error.get(key).is_some_and(|value| value.is_text(text)))
    };
    let has_reason = |reason: &str| {
        error.is_some_and(|error| {
            let mut reasons = details(error)
                .iter()
                .filter_map(|detail| detail.get("reason"));
            reasons.any(|own| own.is_text(reason))
        })
    };
    let message = error
        .and_then(|error| error.get("message")?.text())
        .unwrap_or_default();
    match head.status {
        400 if has_reason("API_KEY_INVALID") => CallResult::KeyRefused,
        // The country, or billing that is not set up: nothing of the line.
        400 if has("status", "FAILED_PRECONDITION") => CallResult::Unpaid,
        400 if answer::is_of_the_context(&message) => CallResult::ContextTooLong,
        401 => CallResult::KeyRefused,
        402 => CallResult::Unpaid,
        403 => CallResult::Refused,
        404 if message.contains("models/") => CallResult::ModelMissing,
        404 if has("status", "NOT_FOUND") && !message.is_empty() => CallResult::Rejected,
        300..=399 | 404 => CallResult::Misdirected,
        // The model is in no tier of the account, or what a day has is spent.
        429 if message.contains("limit: 0") || error.is_some_and(is_of_the_day) => {
            CallResult::Unpaid
        }
        429 => CallResult::Limited,
        status if http::is_of_a_gateway(status) => CallResult::Unavailable,
        408 | 409 | 500..=599 => CallResult::ServerError,
        _ => CallResult::Rejected,
    }
}

/// How long the server asks to be left alone: its body says so, and no header.
pub(super) fn retry_after(decoded: &Decoded) -> Option<Duration> {
    let said = std::str::from_utf8(decoded.said()).ok()?;
    let said = Tree::read(said)?;
    let mut delays = details(error(&said)?)
        .iter()
        .filter_map(|detail| detail.get("retryDelay")?.text());
    let delay = delays.next()?;
    let seconds: f64 = delay.strip_suffix('s')?.parse().ok()?;
    seconds.is_finite().then(|| http::seconds(seconds))
}

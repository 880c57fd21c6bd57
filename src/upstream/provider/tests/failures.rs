//! What each provider's errors mean: whose an error is, how long what it concerns is left alone,
//! and what becomes of the line.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::upstream::attempt::result::{CallResult, Cost};
use crate::upstream::health::reason::Reason;

/// Whose an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The line's, wherever it goes.
    Line,
    /// The line's, at this route.
    Here,
    /// The key's, for all models.
    Key,
    /// The account's: money, or a quota.
    Account,
    /// The model's at this upstream.
    Model,
    /// The address is wrong.
    Address,
}

/// What becomes of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It ends with this answer.
    Ends,
    /// Another route may take it; without one it ends.
    Elsewhere,
    /// It waits, and has lost no attempt.
    Waits,
    /// It has lost an attempt.
    Retries,
}

/// What follows from a result.
fn follows(result: CallResult) -> (Scope, Then) {
    let scope = match result.reason() {
        _ if result.may_pass_elsewhere() || result == CallResult::ModelMissing => Scope::Here,
        None => Scope::Line,
        Some(Reason::KeyRefused) => Scope::Key,
        Some(Reason::Unpaid) => Scope::Account,
        Some(Reason::Misdirected) => Scope::Address,
        Some(_) => Scope::Model,
    };
    let then = match result.cost() {
        _ if scope == Scope::Here => Then::Elsewhere,
        None => Then::Ends,
        Some(Cost::Attempt) => Then::Retries,
        Some(Cost::Refusal | Cost::TurnedAway) => Then::Waits,
    };
    (scope, then)
}

/// The moment at which the answers come: 2027-01-15, 08:00 UTC.
const NOW: Duration = Duration::from_hours(500_000);

struct Row {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: Value,
    scope: Scope,
    then: Then,
    /// In milliseconds.
    delay: Option<u64>,
}

fn row(status: u16, body: Value, scope: Scope, then: Then) -> Row {
    Row {
        status,
        headers: &[],
        body,
        scope,
        then,
        delay: None,
    }
}

impl Row {
    fn with(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }

    fn delayed(self, ms: u64) -> Self {
        Self {
            delay: Some(ms),
            ..self
        }
    }
}

/// Asserts each row: by what the provider says, and by what the line is told.
fn check(kind: ProviderKind, rows: Vec<Row>) {
    let provider = provider(kind, UnsupportedParams::Reject);
    for row in rows {
        let head = head(row.status, row.headers);
        let body = match &row.body {
            Value::String(page) => page.clone(),
            body => body.to_string(),
        };
        let decoded = decoded(&*provider, &head, &body, None);
        let result = provider.classify(&head, &decoded);
        let what = format!("{kind:?}, {} {body}: {result:?}", row.status);
        assert_eq!(follows(result), (row.scope, row.then), "{what}");
        let delay = provider.retry_after(&head, &decoded, SystemTime::UNIX_EPOCH + NOW);
        assert_eq!(delay, row.delay.map(Duration::from_millis), "{what}");
        if row.then == Then::Ends && row.body.is_object() && kind != ProviderKind::OpenAi {
            let told: Value = serde_json::from_slice(&decoded.body).expect("JSON");
            assert!(told["error"]["message"].is_string(), "{told}");
            assert!(told["error"]["type"].is_string(), "{told}");
            assert_eq!(told["provider"], row.body);
        }
    }
}

use Scope::{Account, Address, Here, Key, Line as OfLine, Model};
use Then::{Elsewhere, Ends, Retries, Waits};

#[test]
fn each_error_of_anthropic_has_its_scope_its_delay_and_its_retry() {
    let error = |kind: &str, message: &str| json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
    let detailed = |kind: &str, code: &str| {
        let error = json!({"type": kind, "message": "No.", "details": {"error_code": code}});
        json!({"type": "error", "error": error})
    };
    let long = "prompt is too long: 210000 tokens > 200000 maximum";
    let spent = "You have reached your specified API usage limits.";
    check(
        ProviderKind::Anthropic,
        vec![
            row(
                400,
                error("invalid_request_error", "messages: no"),
                OfLine,
                Ends,
            ),
            row(400, error("invalid_request_error", long), Here, Elsewhere),
            row(400, error("invalid_request_error", spent), Account, Waits),
            row(
                400,
                error("organization_on_hold", "On hold."),
                Account,
                Waits,
            ),
            row(
                401,
                error("authentication_error", "invalid x-api-key"),
                Key,
                Waits,
            ),
            row(402, error("billing_error", "Pay."), Account, Waits),
            row(
                403,
                error("permission_error", "Not this model."),
                Model,
                Waits,
            ),
            row(
                404,
                error("not_found_error", "model: claude-9"),
                Here,
                Elsewhere,
            ),
            row(404, error("not_found_error", "Not Found"), Address, Waits),
            row(404, json!("<html>"), Address, Waits),
            row(302, json!("<html>"), Address, Waits),
            row(408, error("timeout_error", "Late."), Model, Retries),
            row(409, error("conflict_error", "Again."), Model, Retries),
            row(413, error("request_too_large", "Too large."), OfLine, Ends),
            row(413, json!("<html>"), OfLine, Ends),
            row(422, error("invalid_request_error", "No."), OfLine, Ends),
            row(429, error("rate_limit_error", "Slow down."), Model, Waits)
                .with(&[("retry-after", "30")])
                .delayed(30_000),
            row(429, error("rate_limit_error", "Slow down."), Model, Waits),
            row(
                429,
                detailed("rate_limit_error", "ramp_limit_exceeded"),
                Model,
                Waits,
            )
            .with(&[("retry-after", "60")])
            .delayed(60_000),
            row(
                429,
                detailed("rate_limit_error", "enforced_spend_limit_reached"),
                Account,
                Waits,
            ),
            row(
                429,
                detailed("rate_limit_error", "contract_limit_reached"),
                Account,
                Waits,
            ),
            row(500, error("api_error", "Internal."), Model, Retries),
            row(500, error("api_error", "Internal."), OfLine, Ends)
                .with(&[("x-should-retry", "false")]),
            row(
                400,
                error("invalid_request_error", "Once more."),
                Model,
                Retries,
            )
            .with(&[("x-should-retry", "true")]),
            row(502, json!("<html>"), Model, Waits),
            row(503, error("overloaded_error", "Overloaded."), Model, Waits),
            row(504, error("timeout_error", "Late."), Model, Waits),
            row(522, json!("<html>"), Model, Waits),
            row(529, error("overloaded_error", "Overloaded."), Model, Waits),
            row(529, error("overloaded_error", "Overloaded."), Model, Waits)
                .with(&[("retry-after-ms", "1500"), ("retry-after", "2")])
                .delayed(1_500),
            row(200, error("api_error", "Internal."), Model, Retries),
            row(200, json!(""), Model, Retries),
        ],
    );
}

#[test]
fn each_error_of_gemini_has_its_scope_its_delay_and_its_retry() {
    let detailed = |status: &str, message: &str, details: Value| {
        let error = json!({"code": 1, "message": message, "status": status, "details": details});
        json!({"error": error})
    };
    let error = |status: &str, message: &str| detailed(status, message, json!([]));
    let bad_key = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID"}]);
    let wait = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "46.5s"});
    let quota = |id: &str| json!({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": id}]});
    let minute = quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier");
    let day = quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier");
    let exhausted = "RESOURCE_EXHAUSTED";
    let long = "The input token count (1048577) exceeds the maximum number of tokens allowed \
                (1048576).";
    check(
        ProviderKind::Gemini,
        vec![
            row(
                400,
                error("INVALID_ARGUMENT", "Invalid value."),
                OfLine,
                Ends,
            ),
            row(400, error("INVALID_ARGUMENT", long), Here, Elsewhere),
            row(
                400,
                detailed("INVALID_ARGUMENT", "API key not valid.", bad_key),
                Key,
                Waits,
            ),
            row(
                400,
                error("FAILED_PRECONDITION", "Not in your country."),
                Account,
                Waits,
            ),
            row(401, error("UNAUTHENTICATED", "No."), Key, Waits),
            row(
                402,
                error("FAILED_PRECONDITION", "Prepaid credit."),
                Account,
                Waits,
            ),
            row(403, error("PERMISSION_DENIED", "No."), Model, Waits),
            row(
                404,
                error("NOT_FOUND", "models/gemini-9 is not found"),
                Here,
                Elsewhere,
            ),
            row(404, json!("<html>"), Address, Waits),
            row(409, error("ABORTED", "Again."), Model, Retries),
            row(413, json!("<html>"), OfLine, Ends),
            row(429, error(exhausted, "Slow down."), Model, Waits),
            row(
                429,
                detailed(exhausted, "Slow down.", json!([minute, wait])),
                Model,
                Waits,
            )
            .delayed(46_500),
            // In a list of one.
            row(
                429,
                json!([detailed(exhausted, "Slow down.", json!([wait]))]),
                Model,
                Waits,
            )
            .delayed(46_500),
            row(
                429,
                detailed(exhausted, "The day's.", json!([day, wait])),
                Account,
                Waits,
            )
            .delayed(46_500),
            row(
                429,
                error(exhausted, "Quota exceeded, limit: 0"),
                Account,
                Waits,
            ),
            row(500, error("INTERNAL", "Internal."), Model, Retries),
            row(502, json!("<html>"), Model, Waits),
            row(
                503,
                error("UNAVAILABLE", "The model is overloaded."),
                Model,
                Waits,
            ),
            row(504, error("DEADLINE_EXCEEDED", "Late."), Model, Waits),
            row(200, error("INTERNAL", "Internal."), Model, Retries),
        ],
    );
}

#[test]
fn each_error_of_mistral_has_its_scope_its_delay_and_its_retry() {
    let error = |kind: &str, message: &str| json!({"object": "error", "message": message, "type": kind, "param": null, "code": "3230"});
    let long = "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 \
                maximum context length";
    let extra = json!({"object": "error", "message": {"detail": [{"type": "extra_forbidden"}]},
        "type": "invalid_request_error", "param": null, "code": null});
    check(
        ProviderKind::Mistral,
        vec![
            row(
                400,
                error("invalid_request_message_order", "No."),
                OfLine,
                Ends,
            ),
            row(400, error("invalid_request_prompt", long), Here, Elsewhere),
            row(
                400,
                error("invalid_model", "Invalid model: x"),
                Here,
                Elsewhere,
            ),
            row(401, json!({"detail": "Unauthorized"}), Key, Waits),
            row(402, error("payment_required", "Pay."), Account, Waits),
            row(403, error("forbidden", "No."), Model, Waits),
            row(404, error("not_found", "No such thing."), OfLine, Ends),
            row(404, json!({"detail": "Not Found"}), Address, Waits),
            row(408, json!("<html>"), Model, Retries),
            row(413, json!("<html>"), OfLine, Ends),
            row(422, extra, OfLine, Ends),
            row(422, json!({"detail": [{"type": "missing"}]}), OfLine, Ends),
            row(
                429,
                error("rate_limited", "Rate limit exceeded"),
                Model,
                Waits,
            ),
            row(
                429,
                error("rate_limited", "Rate limit exceeded"),
                Model,
                Waits,
            )
            .with(&[("retry-after", "Fri, 15 Jan 2027 08:00:09 GMT")])
            .delayed(9_000),
            row(
                429,
                json!({"message": "Requests rate limit exceeded"}),
                Model,
                Waits,
            )
            .with(&[("retry-after", "-1")])
            .delayed(0),
            row(
                500,
                error("internal_server_error", "Internal."),
                Model,
                Retries,
            ),
            row(502, json!("<html>"), Model, Waits),
            row(503, error("service_unavailable", "No."), Model, Waits),
            row(504, json!("<html>"), Model, Waits),
            row(
                200,
                error("internal_server_error", "Internal."),
                Model,
                Retries,
            ),
        ],
    );
}

#[test]
fn each_error_of_cohere_has_its_scope_its_delay_and_its_retry() {
    let error = |message: &str| json!({"id": "e-1", "message": message});
    let long = "too many tokens: total number of tokens in the prompt cannot exceed 4081 - \
                received 8201.";
    let month = "You are using a Trial key, which is limited to 1000 API calls / month.";
    check(
        ProviderKind::Cohere,
        vec![
            row(400, error("invalid request: no."), OfLine, Ends),
            row(400, error(long), Here, Elsewhere),
            row(401, error("invalid api token"), Key, Waits),
            row(402, error("Please add a payment method."), Account, Waits),
            row(403, error("forbidden"), Model, Waits),
            row(404, error("model 'command-9' not found"), Here, Elsewhere),
            row(404, error("not found"), Address, Waits),
            row(408, error("late"), Model, Retries),
            row(
                422,
                error("unknown field: parameter 'x' is not a valid field"),
                OfLine,
                Ends,
            ),
            row(429, error("Please wait."), Model, Waits),
            row(429, error("Please wait."), Model, Waits)
                .with(&[("x-ratelimit-reset", "1800000012")])
                .delayed(12_000),
            row(429, error("Please wait."), Model, Waits)
                .with(&[("x-ratelimit-reset", "soon"), ("retry-after", "0.25")])
                .delayed(250),
            row(429, error(month), Account, Waits),
            row(498, error("blocked input"), OfLine, Ends),
            row(499, error("request cancelled"), Model, Retries),
            row(500, error("internal server error"), Model, Retries),
            row(502, json!("<html>"), Model, Waits),
            row(503, error("service unavailable"), Model, Waits),
            row(504, error("gateway timeout"), Model, Waits),
        ],
    );
}

#[test]
fn each_error_of_openai_has_its_scope_its_delay_and_its_retry() {
    let error = |code: &str, message: &str| json!({"error": {"message": message, "type": code, "param": null, "code": code}});
    let long = "This model's maximum context length is 8192 tokens.";
    check(
        ProviderKind::OpenAi,
        vec![
            row(400, error("invalid_value", "No."), OfLine, Ends),
            row(400, error("context_length_exceeded", long), Here, Elsewhere),
            row(401, error("invalid_api_key", "No."), Key, Waits),
            row(402, error("payment_required", "Pay."), Account, Waits),
            row(403, error("forbidden", "No."), Model, Waits),
            row(
                404,
                error("model_not_found", "The model `x` does not exist"),
                Here,
                Elsewhere,
            ),
            row(404, json!("<html>"), Address, Waits),
            row(409, error("conflict", "Again."), Model, Retries),
            row(
                429,
                error("rate_limit_exceeded", "Slow down."),
                Model,
                Waits,
            )
            .with(&[("retry-after", "7")])
            .delayed(7_000),
            row(429, error("slow_down", "Slow down."), Model, Waits),
            row(429, error("insufficient_quota", "Pay."), Account, Waits),
            row(
                429,
                error("credit_balance_exhausted", "Pay."),
                Account,
                Waits,
            ),
            row(
                429,
                error("project_spend_limit_exceeded", "Pay."),
                Account,
                Waits,
            ),
            row(
                429,
                error("organization_usage_limit_exceeded", "Pay."),
                Account,
                Waits,
            ),
            row(
                498,
                error("capacity_exceeded", "Flex tier."),
                Model,
                Retries,
            ),
            row(500, error("server_error", "Internal."), Model, Retries),
            row(503, error("overloaded", "Overloaded."), Model, Waits),
            row(529, error("overloaded_error", "Overloaded."), Model, Waits),
            row(200, error("server_error", "Internal."), Model, Retries),
        ],
    );
}

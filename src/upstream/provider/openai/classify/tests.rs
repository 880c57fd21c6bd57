use std::time::{Duration, UNIX_EPOCH};

use super::*;

type Pairs<'a> = &'a [(&'static str, &'a str)];

fn headers(pairs: Pairs<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.insert(*name, value.parse().expect("a header value"));
    }
    headers
}

fn classified(status: u16, headers: &HeaderMap, body: &[u8]) -> CallResult {
    failure(status, headers, body).unwrap_or(CallResult::Succeeded)
}

/// Of an answer whose body is an error of OpenAI's kind that says nothing more.
fn of(status: u16, pairs: Pairs<'_>) -> CallResult {
    let body = br#"{"error":{"message":"no","type":"x","code":null}}"#;
    classified(status, &headers(pairs), body)
}

#[test]
fn each_status_has_its_meaning() {
    let cases: &[(&[u16], CallResult)] = &[
        (&[200, 201, 204, 299], CallResult::Succeeded),
        (&[301, 302, 304, 307, 308], CallResult::Misdirected),
        (
            &[400, 404, 405, 410, 413, 415, 422, 424, 451, 499],
            CallResult::Rejected,
        ),
        (&[401], CallResult::KeyRefused),
        (&[402], CallResult::Unpaid),
        (&[403], CallResult::Refused),
        (&[429], CallResult::Limited),
        (
            &[408, 409, 498, 500, 501, 505, 599],
            CallResult::ServerError,
        ),
        (
            &[502, 503, 504, 520, 522, 524, 529],
            CallResult::Unavailable,
        ),
    ];
    for (statuses, result) in cases {
        for &status in *statuses {
            assert_eq!(of(status, &[]), *result, "{status}");
        }
    }
}

#[test]
fn the_server_may_say_whether_to_try_again() {
    let no: Pairs<'_> = &[("x-should-retry", "false")];
    let yes: Pairs<'_> = &[("x-should-retry", "true")];
    for status in [408, 409, 498, 500, 503, 529] {
        assert_eq!(of(status, no), CallResult::Rejected, "{status}");
    }
    for status in [400, 409, 422] {
        assert_eq!(of(status, yes), CallResult::ServerError, "{status}");
    }
    for (status, result) in [
        (200, CallResult::Succeeded),
        (401, CallResult::KeyRefused),
        (403, CallResult::Refused),
        (429, CallResult::Limited),
    ] {
        assert_eq!(of(status, no), result, "{status}");
        assert_eq!(of(status, yes), result, "{status}");
    }
    assert_eq!(of(503, yes), CallResult::Unavailable);
    assert_eq!(
        of(400, &[("x-should-retry", "maybe")]),
        CallResult::Rejected
    );
    assert_eq!(
        of(500, &[("x-should-retry", "maybe")]),
        CallResult::ServerError
    );
}

#[test]
fn a_429_says_whether_money_size_or_pace_is_the_trouble() {
    let cases = [
        (
            r#"{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            CallResult::Unpaid,
        ),
        (
            r#"{"error":{"type":"rate_limit_error","message":"x","details":{"error_code":"enforced_spend_limit_reached"}}}"#,
            CallResult::Unpaid,
        ),
        (
            r#"{"error":{"message":"Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389.","type":"tokens","code":"rate_limit_exceeded"}}"#,
            CallResult::Rejected,
        ),
        (
            r#"{"error":{"message":"TPM: Limit: 30,000, Requested: 342,389.","code":"rate_limit_exceeded"}}"#,
            CallResult::Rejected,
        ),
        (
            r#"{"error":{"message":"x","code":"context_length_exceeded"}}"#,
            CallResult::ContextTooLong,
        ),
        (
            r#"{"error":{"message":"Rate limit reached: Limit 30000, Used 29000, Requested 5000.","code":"rate_limit_exceeded"}}"#,
            CallResult::Limited,
        ),
        (
            r#"{"error":{"message":"Requests have too many tokens per minute: too many tokens processed.","code":"token_quota_exceeded"}}"#,
            CallResult::Limited,
        ),
        ("slow down", CallResult::Limited),
        ("", CallResult::Limited),
    ];
    for (body, result) in cases {
        let result_of = classified(429, &HeaderMap::new(), body.as_bytes());
        assert_eq!(result_of, result, "{body}");
    }
}

#[test]
fn a_400_says_whether_the_line_is_too_long_for_the_model() {
    let cases = [
        (
            r#"{"error":{"message":"This model's maximum context length is 8192 tokens.","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            CallResult::ContextTooLong,
        ),
        (
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.","type":"BadRequestError","code":400}"#,
            CallResult::ContextTooLong,
        ),
        (
            r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"invalid_request_error"}}"#,
            CallResult::ContextTooLong,
        ),
        (
            r#"{"error":{"message":"Invalid value for temperature","code":"invalid_value"}}"#,
            CallResult::Rejected,
        ),
        ("no", CallResult::Rejected),
    ];
    for (body, result) in cases {
        let result_of = classified(400, &HeaderMap::new(), body.as_bytes());
        assert_eq!(result_of, result, "{body}");
    }
}

#[test]
fn a_404_says_whether_the_path_the_model_or_something_else_is_missing() {
    let cases = [
        (
            r#"{"error":{"message":"The model `x` does not exist or you do not have access to it.","type":"invalid_request_error","code":"model_not_found"}}"#,
            CallResult::ModelMissing,
        ),
        (
            r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","code":404}"#,
            CallResult::ModelMissing,
        ),
        (
            r#"{"error":"model 'x' not found, try pulling it first"}"#,
            CallResult::ModelMissing,
        ),
        (
            r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-9 not found"}}"#,
            CallResult::ModelMissing,
        ),
        (
            r#"{"error":{"message":"Response with id 'resp_1' not found.","type":"invalid_request_error"}}"#,
            CallResult::Rejected,
        ),
        (
            r#"{"error":{"message":"Invalid URL (POST /v1/v1/chat/completions)","type":"invalid_request_error"}}"#,
            CallResult::Misdirected,
        ),
        (r#"{"detail":"Not Found"}"#, CallResult::Misdirected),
        ("404 page not found", CallResult::Misdirected),
        ("", CallResult::Misdirected),
    ];
    for (body, result) in cases {
        let result_of = classified(404, &HeaderMap::new(), body.as_bytes());
        assert_eq!(result_of, result, "{body}");
    }
}

#[test]
fn the_wait_that_a_server_asks_for_is_read_in_every_form() {
    // Sun, 06 Nov 1994 08:49:37 GMT
    let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let year = 365 * 86_400_000;
    let cases: &[(Pairs<'_>, Option<u64>)] = &[
        (&[], None),
        (&[("retry-after", "2")], Some(2000)),
        (&[("retry-after", " 0.25 ")], Some(250)),
        (&[("retry-after", "0")], Some(0)),
        (&[("retry-after", "-5")], Some(0)),
        (&[("retry-after", "1e12")], Some(year)),
        (&[("retry-after", "99999999999999999999")], Some(year)),
        (
            &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")],
            Some(10_000),
        ),
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT")], Some(0)),
        (
            &[("retry-after", "Sat, 06 Nov 2094 08:49:37 GMT")],
            Some(year),
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
        (&[("retry-after-ms", "1e300")], Some(year)),
    ];
    for (pairs, expected) in cases {
        let wait = http::exact_retry_after(&headers(pairs), now).map(|wait| wait.as_millis());
        assert_eq!(wait, expected.map(u128::from), "{pairs:?}");
    }
}

//! What is sent for a line, and what its answer becomes. The numbers in the names are those of rows
//! that each provider must pass.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::encode::RULES;
use super::*;
use crate::domain::clock::Clock;
use crate::domain::outcome::WarningCode;
use crate::upstream::provider::chat::{self, Rule};
use crate::upstream::provider::interface::Request;
use crate::upstream::tests::upstream;

const OLD: &str = "claude-3-haiku-20240307";
const MIDDLE: &str = "claude-sonnet-4-5-20250929";
const NEW: &str = "claude-opus-5-5";

fn provider(policy: UnsupportedParams) -> Anthropic {
    let mut settings = upstream("claude", "https://api.anthropic.com");
    settings.unsupported_params = policy;
    Anthropic::new(&settings)
}

/// What is sent, and what is remembered.
fn sent_by(
    provider: &Anthropic,
    model: &str,
    body: &Value,
) -> Result<(Value, Box<Request>), Unsupported> {
    let body = body.to_string();
    let line = Line {
        path: CHAT,
        model,
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    match provider.encode(&line)? {
        Encoded::Translated { body, asked } => {
            let body = serde_json::from_slice(&body).expect("what is sent is JSON");
            Ok((body, asked.0))
        }
        other => panic!("not translated: {other:?}"),
    }
}

fn sent(model: &str, body: &Value) -> Result<Value, Unsupported> {
    let provider = provider(UnsupportedParams::Reject);
    sent_by(&provider, model, body).map(|(body, _)| body)
}

/// What is sent under `drop`, and the parameters that warnings name.
fn sent_in_part(model: &str, body: &Value) -> (Value, Vec<String>) {
    let sent = sent_by(&provider(UnsupportedParams::Drop), model, body);
    let (body, request) = sent.expect("encoded");
    let warnings = request.warnings.into_iter();
    (body, warnings.map(|warning| warning.param).collect())
}

/// Which parameter is rejected.
fn rejected(model: &str, body: &Value) -> String {
    sent(model, body).expect_err("rejected").param
}

/// A request of one message, with these members, too.
fn hello(more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

fn head(status: u16) -> Head {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("request-id", HeaderValue::from_static("req_011"));
    Head { status, headers }
}

fn decoded(request: Request, body: &Value) -> Decoded {
    let asked = Some(Asked(Box::new(request)));
    let body = Bytes::from(body.to_string());
    provider(UnsupportedParams::Reject).decode(&head(200), body, asked)
}

/// What the line gets of this answer.
fn answered(request: Request, body: &Value) -> Value {
    let decoded = decoded(request, body);
    assert!(decoded.form.is_json());
    serde_json::from_slice(&decoded.body).expect("JSON")
}

fn message(content: Value, stop_reason: &str) -> Value {
    json!({
        "id": "msg_013", "type": "message", "role": "assistant", "model": MIDDLE,
        "content": content, "stop_reason": stop_reason, "stop_sequence": null,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    })
}

fn result_of(status: u16, body: &Value) -> CallResult {
    let provider = provider(UnsupportedParams::Reject);
    let head = head(status);
    let decoded = provider.decode(&head, Bytes::from(body.to_string()), None);
    provider.classify(&head, &decoded)
}

fn error(kind: &str, message: &str) -> Value {
    json!({
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": "req_011",
    })
}

#[test]
fn a_conversation_with_tools_is_sent_as_anthropic_has_it() {
    let body = json!({
        "model": "m",
        "max_completion_tokens": 100,
        "max_tokens": 7,
        "stop": ["END"],
        "temperature": 0.5,
        "user": "u-1",
        "service_tier": "default",
        "parallel_tool_calls": false,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "tools": [{"type": "function", "function": {
            "name": "weather", "description": "The weather.", "strict": true,
            "parameters": {"properties": {"city": {"type": "string"}}},
        }}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "Here?", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "https://h/a.png", "detail": "auto"}},
                {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,AAAA"}},
                {"type": "file", "file": {
                    "filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB",
                }},
                {"type": "file", "file": {"file_data": "data:text/plain;base64,aGk="}},
            ]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [],
                "tool_calls": [
                    {"id": "call_1", "type": "function",
                        "function": {"name": "weather", "arguments": "{\"city\": \"Rome\"}"}},
                    {"id": "call_2", "type": "function",
                        "function": {"name": "weather", "arguments": ""}},
                ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_2", "content": ""},
            {"role": "user", "content": "And now?"},
        ],
    });
    assert_eq!(
        sent(MIDDLE, &body),
        Ok(json!({
            "model": MIDDLE,
            "max_tokens": 100,
            "temperature": 0.5,
            "stop_sequences": ["END"],
            "metadata": {"user_id": "u-1"},
            "service_tier": "standard_only",
            "system": [{"type": "text", "text": "Be brief."}],
            "tool_choice":
                {"type": "tool", "name": "weather", "disable_parallel_tool_use": true},
            "tools": [{
                "name": "weather", "description": "The weather.", "strict": true,
                "input_schema": {
                    "type": "object", "properties": {"city": {"type": "string"}},
                },
            }],
            "messages": [
                {"role": "user", "content": [
                    {"type": "text", "text": "Here?", "cache_control": {"type": "ephemeral"}},
                    {"type": "image", "source": {"type": "url", "url": "https://h/a.png"}},
                    {"type": "image", "source":
                        {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
                    {"type": "document", "title": "a.pdf", "source":
                        {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}},
                    {"type": "document", "source":
                        {"type": "text", "media_type": "text/plain", "data": "hi"}},
                ]},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "call_1", "name": "weather",
                        "input": {"city": "Rome"}},
                    {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "call_1",
                        "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "tool_result", "tool_use_id": "call_2"},
                    {"type": "text", "text": "And now?"},
                ]},
            ],
        }))
    );
}

#[test]
fn row_01_an_answer_of_tool_calls_alone_has_null_as_its_content() {
    let content = json!([{
        "type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "n": 1e2},
    }]);
    let answer = answered(Request::default(), &message(content, "tool_use"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["id"], &call["type"]),
        (&json!("toolu_1"), &json!("function"))
    );
    assert_eq!(call["function"]["name"], "weather");
    assert_eq!(
        call["function"]["arguments"],
        r#"{"city":"Rome","n":100.0}"#
    );
}

#[test]
fn row_02_thinking_before_the_text_is_no_part_of_the_text() {
    let content = json!([
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "Yes"},
        {"type": "a_later_kind"},
        {"type": "text", "text": "."},
    ]);
    let answer = answered(Request::default(), &message(content, "end_turn"));
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "Yes.");
    assert_eq!(message["reasoning_content"], "Hm.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn row_03_all_system_messages_survive() {
    let body = json!({"model": "m", "messages": [
        {"role": "system", "content": "One."},
        {"role": "developer", "content": [{"type": "text", "text": "Two."},
            {"type": "text", "text": " "}]},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Three."},
    ]});
    let text = |text: &str| json!({"type": "text", "text": text});
    let (old, warnings) = sent_in_part(MIDDLE, &body);
    assert_eq!(old["system"], json!([text("One."), text("Two.")]));
    let blocks = json!([
        text("Hi"),
        text("<system>"),
        text("Three."),
        text("</system>")
    ]);
    assert_eq!(
        old["messages"],
        json!([{"role": "user", "content": blocks}])
    );
    assert_eq!(warnings, ["messages[3]"], "it is told in another way");
    let (new, warnings) = sent_in_part(NEW, &body);
    assert_eq!(
        new["messages"][1],
        json!({"role": "system", "content": [text("Three.")]})
    );
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn row_17_a_temperature_that_the_model_refuses_is_for_the_policy() {
    let body = hello(json!({"temperature": 0.2, "top_p": 0.9}));
    assert_eq!(rejected(NEW, &body), "temperature");
    let (sent, warnings) = sent_in_part(NEW, &body);
    assert_eq!(sent.get("temperature").or(sent.get("top_p")), None);
    assert_eq!(warnings, ["temperature", "top_p"]);
    let usual = hello(json!({"temperature": 1, "top_p": 1.0}));
    let (sent, warnings) = sent_in_part(NEW, &usual);
    assert_eq!(sent.get("temperature").or(sent.get("top_p")), None);
    assert!(
        warnings.is_empty(),
        "the usual values ask for nothing: {warnings:?}"
    );
    assert_eq!(
        rejected(MIDDLE, &body),
        "top_p",
        "this one takes only one of the two"
    );
    assert_eq!(
        rejected(OLD, &hello(json!({"temperature": 1.5}))),
        "temperature"
    );
    let (sent, _) = sent_in_part(OLD, &hello(json!({"temperature": 1.5})));
    assert_eq!(sent["temperature"], 1);
}

#[test]
fn row_18_the_version_without_sampling_gets_none() {
    let mut settings = upstream("claude", "https://api.anthropic.com");
    settings.api_version = Some("2026-10-21".to_owned());
    settings.unsupported_params = UnsupportedParams::Drop;
    let provider = Anthropic::new(&settings);
    let body = hello(json!({"temperature": 1.0, "top_p": 0.5, "top_k": 3}));
    let (sent, request) = sent_by(&provider, OLD, &body).expect("encoded");
    for key in ["temperature", "top_p", "top_k"] {
        assert_eq!(sent.get(key), None, "{key}");
    }
    let warnings = request.warnings.iter().map(|warning| &*warning.param);
    assert_eq!(warnings.collect::<Vec<_>>(), ["top_p", "top_k"]);
    let mut headers = HeaderMap::new();
    provider.introduce(&mut headers);
    assert_eq!(headers["anthropic-version"], "2026-10-21");
}

#[test]
fn row_19_names_and_ids_are_sent_as_allowed_and_names_come_back() {
    let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let body = json!({
        "model": "m",
        "tools": [tool("get.weather"), tool("get_weather")],
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [call("a:1", "get.weather")]},
            {"role": "tool", "tool_call_id": "a:1", "content": "x"},
            {"role": "assistant", "tool_calls": [call("a:1", "get_weather")]},
            {"role": "tool", "tool_call_id": "a:1", "content": "y"},
        ],
    });
    let provider = provider(UnsupportedParams::Reject);
    let (sent, request) = sent_by(&provider, MIDDLE, &body).expect("encoded");
    assert_eq!(sent["tools"][0]["name"], "get_weather_2");
    assert_eq!(sent["tools"][1]["name"], "get_weather");
    let messages = &sent["messages"];
    let pairs = [1, 3].map(|at| (&messages[at]["content"][0], &messages[at + 1]["content"][0]));
    let ids = pairs.map(|(call, result)| (&call["id"], &result["tool_use_id"]));
    assert_eq!(ids[0], (&json!("a_1"), &json!("a_1")));
    assert_eq!(
        ids[1],
        (&json!("a_1_2"), &json!("a_1_2")),
        "an id stands for one call"
    );
    let content = json!([
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather_2", "input": {}},
        {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {}},
    ]);
    let answer = answered(*request, &message(content, "tool_use"));
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    assert_eq!(calls[0]["function"]["name"], "get.weather");
    assert_eq!(calls[1]["function"]["name"], "get_weather");
}

#[test]
fn row_20_a_spend_limit_is_no_fault_of_the_line() {
    for (status, body) in [
        (
            429,
            json!({"type": "error", "error": {
                "type": "rate_limit_error", "message": "Limit reached.",
                "details": {"error_code": "enforced_spend_limit_reached"},
            }}),
        ),
        (
            400,
            error(
                "invalid_request_error",
                "You have reached your specified API usage limits. You will regain access on \
                 2026-12-01 at 00:00 UTC.",
            ),
        ),
        (
            400,
            error(
                "invalid_request_error",
                "Your credit balance is too low to access this.",
            ),
        ),
        (
            400,
            error("organization_on_hold", "The organization is on hold."),
        ),
        (402, error("billing_error", "Pay.")),
    ] {
        assert_eq!(result_of(status, &body), CallResult::Unpaid, "{body}");
    }
}

#[test]
fn each_status_and_type_has_its_scope() {
    use CallResult::*;
    for (status, kind, message, result) in [
        (
            400,
            "invalid_request_error",
            "messages: at least one",
            Rejected,
        ),
        (
            400,
            "invalid_request_error",
            "prompt is too long: 208310 tokens > 200000 maximum",
            ContextTooLong,
        ),
        (
            400,
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease \
             input length or `max_tokens` and try again",
            ContextTooLong,
        ),
        (413, "request_too_large", "too large", Rejected),
        (422, "invalid_request_error", "no", Rejected),
        (401, "authentication_error", "invalid x-api-key", KeyRefused),
        (403, "permission_error", "not this model", Refused),
        (404, "not_found_error", "model: claude-9", ModelMissing),
        (404, "not_found_error", "Not Found", Misdirected),
        (409, "conflict_error", "again", ServerError),
        (429, "rate_limit_error", "slow down", Limited),
        (500, "api_error", "internal", ServerError),
        (504, "timeout_error", "too long", Unavailable),
        (529, "overloaded_error", "Overloaded", Unavailable),
    ] {
        let body = error(kind, message);
        assert_eq!(result_of(status, &body), result, "{status} {kind}");
    }
    let page = |status| {
        let head = Head {
            status,
            headers: HeaderMap::new(),
        };
        let provider = provider(UnsupportedParams::Reject);
        let decoded = provider.decode(&head, Bytes::from_static(b"<html>"), None);
        provider.classify(&head, &decoded)
    };
    let of_pages = [200, 302, 404, 413, 502].map(page);
    assert_eq!(
        of_pages,
        [Garbled, Misdirected, Misdirected, Rejected, Unavailable]
    );
    assert_eq!(result_of(200, &error("api_error", "internal")), Garbled);
}

#[test]
fn the_server_may_say_whether_and_when_to_try_again() {
    let provider = provider(UnsupportedParams::Reject);
    let with = |status, name: &'static str, value| {
        let mut head = head(status);
        head.headers.insert(name, HeaderValue::from_static(value));
        let body = Bytes::from(error("invalid_request_error", "no").to_string());
        let decoded = provider.decode(&head, body, None);
        let wait = provider.retry_after(&head, &decoded, SystemTime::UNIX_EPOCH);
        (provider.classify(&head, &decoded), wait)
    };
    assert_eq!(
        with(400, "x-should-retry", "true").0,
        CallResult::ServerError
    );
    assert_eq!(with(500, "x-should-retry", "false").0, CallResult::Rejected);
    let mut head = head(400);
    let never = HeaderValue::from_static("false");
    head.headers.insert("x-should-retry", never);
    let too_long = error(
        "invalid_request_error",
        "prompt is too long: 9 tokens > 8 maximum",
    );
    let decoded = provider.decode(&head, Bytes::from(too_long.to_string()), None);
    let elsewhere = CallResult::ContextTooLong;
    assert_eq!(provider.classify(&head, &decoded), elsewhere);
    let limited = with(429, "retry-after", "46");
    assert_eq!(
        limited,
        (CallResult::Limited, Some(Duration::from_secs(46)))
    );
}

#[test]
fn an_error_is_told_as_openai_tells_it_and_kept_beside() {
    let provider = provider(UnsupportedParams::Reject);
    let said = error("invalid_request_error", "max_tokens: 9 > 8");
    let decoded = provider.decode(&head(400), Bytes::from(said.to_string()), None);
    assert_eq!(decoded.request_id.as_deref(), Some("req_011"));
    let told: Value = serde_json::from_slice(&decoded.body).expect("JSON");
    let expected = json!({
        "error": {
            "message": "max_tokens: 9 > 8", "type": "invalid_request_error",
            "param": null, "code": "invalid_request_error",
        },
        "provider": said,
    });
    assert_eq!(told, expected);
}

#[test]
fn usage_counts_what_was_cached_and_what_was_thought() {
    let mut said = message(json!([{"type": "text", "text": "Yes"}]), "end_turn");
    said["usage"] = json!({
        "input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30,
        "output_tokens": 40, "output_tokens_details": {"thinking_tokens": 15},
    });
    let decoded = decoded(Request::default(), &said);
    let usage = decoded.usage.expect("usage");
    assert_eq!(
        (
            usage.input_tokens,
            usage.cached_tokens,
            usage.output_tokens,
            usage.reasoning_tokens
        ),
        (60, 30, 40, 15)
    );
    assert_eq!(crate::domain::usage::read(&decoded.body), Some(usage));
    let body: Value = serde_json::from_slice(&decoded.body).expect("JSON");
    let details = json!({"cached_tokens": 30, "cache_write_tokens": 20});
    assert_eq!(body["usage"]["prompt_tokens_details"], details);
    assert_eq!(body["usage"]["total_tokens"], 100);
}

#[test]
fn each_reason_to_stop_is_one_of_openais() {
    let text = || json!([{"type": "text", "text": "Yes"}]);
    for (said, told) in [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
    ] {
        let answer = answered(Request::default(), &message(text(), said));
        assert_eq!(answer["choices"][0]["finish_reason"], told, "{said}");
    }
    let decoded = decoded(Request::default(), &message(text(), "a_later_one"));
    assert_eq!(decoded.warnings[0].code, WarningCode::AnswerChanged);
    let mut refused = message(json!([]), "refusal");
    refused["stop_details"] = json!({"explanation": "It would harm."});
    let answer = answered(Request::default(), &refused);
    assert_eq!(answer["choices"][0]["message"]["refusal"], "It would harm.");
    assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
}

#[test]
fn an_answer_by_a_schema_is_asked_for_as_the_model_knows_it() {
    let format = json!({"type": "json_schema", "json_schema": {
        "name": "a", "strict": true,
        "schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}},
    }});
    let body = hello(json!({"response_format": format}));
    let (sent, warnings) = sent_in_part(NEW, &body);
    let schema = json!({
        "type": "object", "additionalProperties": false,
        "properties": {"n": {"type": "integer", "description": "minimum: 1"}},
    });
    let expected = json!({"format": {"type": "json_schema", "schema": schema}});
    assert_eq!(sent["output_config"], expected);
    assert_eq!(warnings, ["response_format.json_schema.schema"]);

    let provider = provider(UnsupportedParams::Reject);
    let (sent, request) = sent_by(&provider, OLD, &body).expect("encoded");
    assert_eq!(
        sent["tool_choice"],
        json!({"type": "tool", "name": "json_tool_call"})
    );
    let content = json!([
        {"type": "tool_use", "id": "toolu_1", "name": "json_tool_call", "input": {"n": 3}},
    ]);
    let answer = answered(*request, &message(content, "tool_use"));
    assert_eq!(answer["choices"][0]["message"]["content"], r#"{"n":3}"#);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let both = hello(json!({"response_format": body["response_format"], "tools": tool}));
    assert_eq!(rejected(OLD, &both), "response_format");
}

#[test]
fn json_without_a_schema_is_asked_for_in_words_and_looked_at() {
    let body = hello(json!({"response_format": {"type": "json_object"}}));
    let request = || {
        let sent = sent_by(&provider(UnsupportedParams::Reject), MIDDLE, &body);
        let (sent, request) = sent.expect("encoded");
        assert!(
            sent["system"][0]["text"]
                .as_str()
                .is_some_and(|text| text.contains("JSON"))
        );
        *request
    };
    let text = |text: &str| message(json!([{"type": "text", "text": text}]), "end_turn");
    let answer = answered(request(), &text("```json\n{\"a\": 1}\n```"));
    assert_eq!(answer["choices"][0]["message"]["content"], "{\"a\": 1}");
    let decoded = decoded(request(), &text("Sure! {\"a\": 1}"));
    let result = provider(UnsupportedParams::Reject).classify(&head(200), &decoded);
    assert_eq!(
        result,
        CallResult::Unusable,
        "another attempt may bring an object"
    );
}

#[test]
fn thinking_is_asked_for_as_the_model_knows_it() {
    let effort = |effort: &str| hello(json!({"reasoning_effort": effort, "max_tokens": 3_000}));
    let (sent, _) = sent_in_part(MIDDLE, &effort("high"));
    assert_eq!(
        sent["thinking"],
        json!({"type": "enabled", "budget_tokens": 2_999})
    );
    let (sent, _) = sent_in_part(NEW, &effort("minimal"));
    assert_eq!(sent["thinking"], json!({"type": "adaptive"}));
    assert_eq!(sent["output_config"], json!({"effort": "low"}));
    assert_eq!(rejected(OLD, &effort("low")), "reasoning_effort");
    assert_eq!(rejected(NEW, &effort("none")), "reasoning_effort");
    let (sent, _) = sent_in_part("claude-sonnet-5", &effort("none"));
    assert_eq!(sent["thinking"], json!({"type": "disabled"}));
    let short = hello(json!({"reasoning_effort": "low", "max_tokens": 1_024}));
    assert_eq!(rejected(MIDDLE, &short), "reasoning_effort");
}

#[test]
fn what_the_request_leaves_open_is_filled_in() {
    for (model, most) in [(OLD, 4_096), (MIDDLE, 64_000), (NEW, 128_000)] {
        let (sent, warnings) = sent_in_part(model, &hello(json!({})));
        assert_eq!(sent["max_tokens"], most);
        assert!(warnings.is_empty());
    }
    let (_, warnings) = sent_in_part("qwen-3", &hello(json!({})));
    assert_eq!(
        warnings,
        ["max_completion_tokens"],
        "nobody knows what the model can write"
    );
    let old = json!({"model": "m", "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function",
            "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]});
    let (sent, _) = sent_in_part(MIDDLE, &old);
    assert_eq!(sent["tools"][0]["name"], "f", "tools of old are declared");
    assert_eq!(sent["tool_choice"], json!({"type": "none"}));
}

#[test]
fn what_cannot_be_left_out_is_rejected_under_either_policy() {
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let image = |url: &str| part(json!({"type": "image_url", "image_url": {"url": url}}));
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (model, more, param) in [
        (MIDDLE, json!({"n": 2}), "n"),
        (
            MIDDLE,
            json!({"modalities": ["text", "audio"]}),
            "modalities",
        ),
        (MIDDLE, json!({"functions": [{"name": "f"}]}), "functions"),
        (MIDDLE, json!({"max_tokens": "many"}), "max_tokens"),
        (
            NEW,
            json!({"tools": tool, "tool_choice": "required"}),
            "tool_choice",
        ),
        (MIDDLE, image("http://h/a.png"), "messages[0].content[0]"),
        (
            MIDDLE,
            image("data:image/tiff;base64,AA"),
            "messages[0].content[0]",
        ),
        (
            MIDDLE,
            image("file:///etc/passwd"),
            "messages[0].content[0]",
        ),
        (
            MIDDLE,
            part(json!({"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}})),
            "messages[0].content[0]",
        ),
        (
            MIDDLE,
            part(json!({"type": "file", "file": {"file_id": "file-1"}})),
            "messages[0].content[0].file.file_id",
        ),
        (
            MIDDLE,
            part(json!({"type": "hologram"})),
            "messages[0].content[0].type",
        ),
        (MIDDLE, json!({"messages": []}), "messages"),
        (
            MIDDLE,
            json!({"messages": [{"role": "user", "content": " "}]}),
            "messages[0].content",
        ),
        (
            NEW,
            json!({"messages": [{"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "So"}]}),
            "messages[1]",
        ),
        (
            MIDDLE,
            json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant",
                "tool_calls": [{"id": "c", "type": "function",
                    "function": {"name": "f", "arguments": "{"}}]}]}),
            "messages[1].tool_calls[0].function.arguments",
        ),
    ] {
        let body = hello(more);
        for policy in UnsupportedParams::ALL {
            let rejected = sent_by(&provider(policy), model, &body).expect_err("rejected");
            assert_eq!(rejected.param, param, "{body}");
        }
    }
}

#[test]
fn only_chat_completions_are_taken() {
    let line = Line {
        path: "/v1/embeddings",
        model: MIDDLE,
        body: b"{}",
        edit: None,
        clock: &Clock::default(),
    };
    let rejected = provider(UnsupportedParams::Drop).encode(&line);
    assert_eq!(rejected.expect_err("rejected").param, "url");
}

#[test]
fn the_list_of_models_has_pages() {
    let provider = provider(UnsupportedParams::Reject);
    let page = json!({"data": [{"type": "model", "id": "claude-a", "display_name": "A",
        "created_at": "2025-02-19T00:00:00Z"}], "has_more": true, "first_id": "claude-a",
        "last_id": "claude-a"});
    let page = provider
        .models(page.to_string().as_bytes())
        .expect("a list");
    assert_eq!(
        (&*page.models[0].id, page.models[0].created),
        ("claude-a", 1_739_923_200)
    );
    assert_eq!(page.next.as_deref(), Some("claude-a"));
    let base = Url::parse("https://h/v1").expect("a URL");
    let url = provider.models_url(&base, page.next.as_deref());
    assert_eq!(
        url.as_str(),
        "https://h/v1/models?limit=1000&after_id=claude-a"
    );
    let last = provider.models(br#"{"data":[],"has_more":false,"last_id":"x"}"#);
    assert_eq!(last.expect("a list").next, None);
    assert!(provider.models(b"{}").is_none());
}

#[test]
fn every_key_of_openais_requests_is_mapped_passed_on_rejected_or_named_in_a_warning() {
    for key in chat::KEYS {
        let rule = RULES.iter().find(|(known, _)| *known == key);
        assert!(rule.is_some(), "{key}");
    }
    // A value that asks for something.
    let values = [
        json!("x"),
        json!(7),
        json!(true),
        json!({"a": "x"}),
        json!(["x"]),
    ];
    for (key, rule) in RULES.iter().filter(|(key, _)| *key != "model") {
        for value in &values {
            let body = hello(json!({*key: value}));
            let sent = sent_by(&provider(UnsupportedParams::Drop), OLD, &body);
            let warned =
                |request: &Request| request.warnings.iter().any(|warning| warning.param == *key);
            match (rule, sent) {
                (Rule::Harmless | Rule::Unsupported, Ok((sent, request))) => {
                    assert!(warned(&request), "{key}: {value}");
                    assert_eq!(sent.get(*key).filter(|_| *key != "metadata"), None, "{key}");
                }
                (Rule::Passed, Ok((sent, _))) => assert_eq!(sent[*key], *value),
                (Rule::Refused, Err(unsupported)) => assert_eq!(unsupported.param, *key),
                (Rule::Mapped, _) => {}
                (rule, sent) => panic!("{key} is {rule:?}: {sent:?}"),
            }
        }
    }
    let (_, warnings) = sent_in_part(MIDDLE, &hello(json!({"a_later_key": 1})));
    assert_eq!(warnings, ["a_later_key"]);
    assert_eq!(
        rejected(MIDDLE, &hello(json!({"a_later_key": 1}))),
        "a_later_key"
    );
}

fn texts() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<String>().prop_map(Value::from),
        prop::collection::vec(any::<String>(), 0..3).prop_map(|texts| {
            let texts = texts.into_iter();
            texts
                .map(|text| json!({"type": "text", "text": text}))
                .collect()
        }),
    ]
}

fn messages() -> impl Strategy<Value = Value> {
    let ids = prop_oneof![Just("call_1".to_owned()), any::<String>()];
    let names = prop_oneof![Just("f".to_owned()), any::<String>()];
    let calls = prop::collection::vec((ids.clone(), names), 0..3).prop_map(|calls| {
        let calls = calls.into_iter().map(|(id, name)| {
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}})
        });
        calls.collect::<Value>()
    });
    let message = prop_oneof![
        ("system|developer|user", texts())
            .prop_map(|(role, content)| { json!({"role": role, "content": content}) }),
        (texts(), calls).prop_map(|(content, calls)| {
            json!({"role": "assistant", "content": content, "tool_calls": calls})
        }),
        (ids, texts()).prop_map(|(id, content)| {
            json!({"role": "tool", "tool_call_id": id, "content": content})
        }),
    ];
    prop::collection::vec(message, 0..6).prop_map(Value::from)
}

/// All texts of a value under the key `text`, and all strings that are contents.
fn said(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| said(item, found)),
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if ["text", "content"].contains(&&**key) => {
                        found.push(text.clone());
                    }
                    value => said(value, found),
                }
            }
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn nothing_that_was_said_is_lost_and_no_request_panics(
        messages in messages(),
        key in prop::sample::select(RULES.map(|(key, _)| key).to_vec()),
        value in crate::domain::json::tests::texts(),
        model in prop::sample::select(vec![OLD, MIDDLE, NEW, "qwen-3"]),
        drops in any::<bool>(),
    ) {
        let policy = UnsupportedParams::ALL[usize::from(drops)];
        let value: Value = serde_json::from_str(&value).unwrap_or_default();
        let mut body = json!({"model": "m", "messages": messages});
        if key != "messages" {
            body[key] = value;
        }
        let Ok((sent, request)) = sent_by(&provider(policy), model, &body) else {
            return Ok(());
        };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        said(&body["messages"], &mut before);
        said(&sent["system"], &mut after);
        said(&sent["messages"], &mut after);
        let last = after.last().map(|text| text.trim_end().to_owned());
        for text in before.into_iter().filter(|text| !text.trim().is_empty()) {
            let is_last = last.as_deref() == Some(text.trim_end());
            prop_assert!(after.contains(&text) || is_last, "{text:?} is not in {sent}");
        }
        let calls = |body: &Value, list: &str| {
            let messages = body["messages"].as_array().cloned().unwrap_or_default();
            let lists = messages.iter().map(|message| message[list].as_array().cloned());
            lists.flatten().flatten().collect::<Vec<_>>()
        };
        let own = calls(&body, "tool_calls");
        let blocks = calls(&sent, "content");
        let uses = blocks.iter().filter(|block| block["type"] == "tool_use");
        let uses: Vec<_> = uses.collect();
        prop_assert_eq!(own.len(), uses.len());
        let mut ids = std::collections::BTreeSet::new();
        for (own, sent) in own.iter().zip(uses) {
            let (name, id) = (sent["name"].as_str().unwrap(), sent["id"].as_str().unwrap());
            let is_fit = |text: &str| {
                !text.is_empty()
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
            };
            prop_assert!(is_fit(name) && name.len() <= 128 && is_fit(id), "{name} {id}");
            prop_assert!(ids.insert(id.to_owned()), "{id} stands for two calls");
            let back = request.names.iter().find(|(sent, _)| sent == name);
            let back = back.map_or(name, |(_, own)| own);
            prop_assert_eq!(&own["function"]["name"], back);
        }
    }

    #[test]
    fn whatever_the_server_says_is_read_without_a_panic(
        status in prop::sample::select(vec![200_u16, 400, 404, 429, 529]),
        text in crate::domain::json::tests::texts(),
        key in "content|stop_reason|usage|id|model|type|error",
    ) {
        let provider = provider(UnsupportedParams::Reject);
        let whole = message(json!([{"type": "text", "text": "Yes"}]), "end_turn");
        let mut changed = whole.clone();
        changed[&*key] = serde_json::from_str(&text).unwrap_or_default();
        for body in [text.clone(), changed.to_string()] {
            let head = head(status);
            let decoded = provider.decode(&head, Bytes::from(body), None);
            let result = provider.classify(&head, &decoded);
            provider.explain(result, &head, &decoded);
            if result == CallResult::Succeeded {
                let answer: Value = serde_json::from_slice(&decoded.body).expect("JSON");
                prop_assert_eq!(&answer["object"], "chat.completion");
            }
        }
    }
}

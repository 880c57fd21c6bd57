//! What is sent for a line, and what its answer becomes. The numbers in the names are those of rows
//! that each provider must pass.

use proptest::prelude::*;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use super::encode::RULES;
use super::*;
use crate::domain::clock::Clock;
use crate::upstream::provider::chat::{self, Rule};
use crate::upstream::provider::interface::{CHAT, Request};
use crate::upstream::tests::upstream;

const SECOND: &str = "gemini-2.5-flash";
const THIRD: &str = "gemini-3-pro";

fn provider(policy: UnsupportedParams) -> Gemini {
    let mut settings = upstream("gemini", "https://generativelanguage.googleapis.com");
    settings.unsupported_params = policy;
    Gemini::new(&settings)
}

/// What is sent, and what is remembered.
fn sent_by(
    policy: UnsupportedParams,
    path: &'static str,
    model: &str,
    body: &Value,
) -> Result<(Value, Box<Request>), Unsupported> {
    let body = body.to_string();
    let line = Line {
        path,
        model,
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    let Encoded::Translated { body, asked } = provider(policy).encode(&line)? else {
        panic!("not translated");
    };
    Ok((
        serde_json::from_slice(&body).expect("what is sent is JSON"),
        asked.0,
    ))
}

fn sent(model: &str, body: &Value) -> Value {
    let sent = sent_by(UnsupportedParams::Reject, CHAT, model, body);
    sent.expect("encoded").0
}

fn rejected(model: &str, body: &Value) -> String {
    let sent = sent_by(UnsupportedParams::Reject, CHAT, model, body);
    sent.expect_err("rejected").param
}

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
    Head { status, headers }
}

fn decoded(request: Request, status: u16, body: &Value) -> Decoded {
    let asked = Some(Asked(Box::new(request)));
    provider(UnsupportedParams::Reject).decode(&head(status), Bytes::from(body.to_string()), asked)
}

fn answered(request: Request, body: &Value) -> Value {
    serde_json::from_slice(&decoded(request, 200, body).body).expect("JSON")
}

fn result_of(status: u16, body: &Value) -> CallResult {
    let decoded = decoded(Request::default(), status, body);
    provider(UnsupportedParams::Reject).classify(&head(status), &decoded)
}

fn candidate(parts: Value, reason: &str) -> Value {
    json!({
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7},
        "modelVersion": SECOND, "responseId": "r1",
    })
}

#[test]
fn a_conversation_with_tools_is_sent_as_gemini_has_it() {
    let body = json!({
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 7, "stop": "END",
        "presence_penalty": 0.5, "reasoning_effort": "low", "tool_choice":
            {"type": "function", "function": {"name": "weather now"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema":
            {"type": "object", "properties": {"z": {}, "a": {}}}}},
        "tools": [{"type": "function", "function": {"name": "weather now",
            "description": "The weather.", "parameters": {"type": "object",
                "properties": {"city": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "f",
                "parameters": {"type": "object", "properties": {}}}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "In verse."},
            {"role": "user", "content": [{"type": "text", "text": "Here?"},
                {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,AA"}}]},
            {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function":
                {"name": "weather now", "arguments": "{\"city\":\"Rome\"}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "user", "content": "And now?"},
        ],
    });
    let parts = |parts: Value| json!({"parts": parts});
    assert_eq!(
        sent(SECOND, &body),
        json!({
            "systemInstruction": parts(json!([{"text": "Be brief."}, {"text": "In verse."}])),
            "contents": [
                {"role": "user", "parts": [{"text": "Here?"},
                    {"inlineData": {"mimeType": "image/jpeg", "data": "AA"}}]},
                {"role": "model", "parts": [{"functionCall":
                    {"name": "weather_now", "args": {"city": "Rome"}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "weather_now",
                    "response": {"output": "sunny"}}}, {"text": "And now?"}]},
            ],
            "tools": [{"functionDeclarations": [
                {"name": "weather_now", "description": "The weather.", "parametersJsonSchema":
                    {"type": "object", "properties": {"city": {"type": "string"}}}},
                {"name": "f"},
            ]}],
            "toolConfig": {"functionCallingConfig":
                {"mode": "ANY", "allowedFunctionNames": ["weather_now"]}},
            "generationConfig": {
                "maxOutputTokens": 9, "temperature": 0.5, "topP": 0.9, "candidateCount": 2,
                "seed": 7, "stopSequences": ["END"], "presencePenalty": 0.5,
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object", "properties": {"z": {}, "a": {}}},
                "thinkingConfig": {"thinkingBudget": 1_024},
            },
        })
    );
}

#[test]
fn the_third_generation_has_ids_signatures_and_levels() {
    let call = |extra: Value| {
        json!({"id": "c1", "type": "function", "extra_content": extra,
            "function": {"name": "f", "arguments": "{}"}})
    };
    let body = |extra: Value| {
        json!({"reasoning_effort": "low", "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [call(extra)]},
            {"role": "tool", "tool_call_id": "c1", "content": "x"},
        ]})
    };
    let kept = sent(THIRD, &body(json!({"google": {"thought_signature": "s1"}})));
    let part = &kept["contents"][1]["parts"][0];
    assert_eq!(part["thoughtSignature"], "s1");
    assert_eq!(part["functionCall"]["id"], "c1");
    assert_eq!(
        kept["contents"][2]["parts"][0]["functionResponse"]["id"],
        "c1"
    );
    assert_eq!(
        kept["generationConfig"]["thinkingConfig"],
        json!({"thinkingLevel": "LOW"})
    );
    let lost = sent(THIRD, &body(Value::Null));
    let signature = &lost["contents"][1]["parts"][0]["thoughtSignature"];
    assert_eq!(signature, "skip_thought_signature_validator");
    let penalty = hello(json!({"presence_penalty": 1}));
    assert_eq!(rejected(THIRD, &penalty), "presence_penalty");
    assert_eq!(
        rejected(THIRD, &hello(json!({"reasoning_effort": "none"}))),
        "reasoning_effort"
    );
}

#[test]
fn row_04_a_blocked_prompt_is_an_answer() {
    let said = json!({"promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}});
    assert_eq!(result_of(200, &said), CallResult::Succeeded);
    let choice = &answered(Request::default(), &said)["choices"][0];
    assert_eq!(choice["finish_reason"], "content_filter");
    assert_eq!(choice["message"]["content"], Value::Null);
}

#[test]
fn row_05_what_was_thought_counts_as_output() {
    let usage = |usage: Value| {
        let mut said = candidate(json!([{"text": "Yes"}]), "STOP");
        said["usageMetadata"] = usage;
        let usage = decoded(Request::default(), 200, &said)
            .usage
            .expect("usage");
        [
            usage.input_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            usage.total_tokens,
        ]
    };
    let apart = json!({"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 7,
        "totalTokenCount": 22});
    assert_eq!(usage(apart), [10, 12, 7, 22]);
    let together = json!({"promptTokenCount": 10, "candidatesTokenCount": 12,
        "thoughtsTokenCount": 7, "totalTokenCount": 22});
    assert_eq!(usage(together), [10, 12, 7, 22]);
}

#[test]
fn row_01_row_02_calls_and_thoughts_are_told_apart_from_the_text() {
    let parts = json!([
        {"text": "Hm.", "thought": true},
        {"functionCall": {"name": "weather_now", "args": {"n": 1}}, "thoughtSignature": "s1"},
    ]);
    let request = Request {
        names: vec![("weather_now".to_owned(), "weather now".to_owned())],
        ..Request::default()
    };
    let choice = &answered(request, &candidate(parts, "STOP"))["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning_content"], "Hm.");
    let call = &choice["message"]["tool_calls"][0];
    assert!(
        call["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("call_"))
    );
    assert_eq!(
        call["function"],
        json!({"name": "weather now", "arguments": "{\"n\":1}"})
    );
    assert_eq!(call["extra_content"]["google"]["thought_signature"], "s1");
}

#[test]
fn each_reason_to_stop_is_one_of_openais_or_no_answer() {
    for (said, told) in [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("NO_IMAGE", "content_filter"),
    ] {
        let answer = answered(Request::default(), &candidate(json!([{"text": "a"}]), said));
        assert_eq!(answer["choices"][0]["finish_reason"], told, "{said}");
    }
    let broken = candidate(json!([]), "MALFORMED_FUNCTION_CALL");
    assert_eq!(result_of(200, &broken), CallResult::Unusable);
    assert_eq!(result_of(200, &json!({})), CallResult::Unusable);
}

#[test]
fn each_status_and_detail_has_its_scope_and_its_delay() {
    use CallResult::*;
    let error = |status: &str, message: &str, details: Value| json!({"error": {"code": 1, "message": message, "status": status, "details": details}});
    let bad_key = json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID"}]);
    let none = || json!([]);
    for (status, body, result) in [
        (
            400,
            error("INVALID_ARGUMENT", "API key not valid.", bad_key),
            KeyRefused,
        ),
        (
            400,
            error("INVALID_ARGUMENT", "contents is empty", none()),
            Rejected,
        ),
        (400, error("FAILED_PRECONDITION", "billing", none()), Unpaid),
        (402, error("X", "prepaid credit", none()), Unpaid),
        (403, error("PERMISSION_DENIED", "no", none()), Refused),
        (
            404,
            error("NOT_FOUND", "models/gemini-9 is not found", none()),
            ModelMissing,
        ),
        (429, error("RESOURCE_EXHAUSTED", "quota", none()), Limited),
        (
            429,
            error("RESOURCE_EXHAUSTED", "Quota exceeded, limit: 0", none()),
            Unpaid,
        ),
        (500, error("INTERNAL", "no", none()), ServerError),
        (503, error("UNAVAILABLE", "overloaded", none()), Unavailable),
    ] {
        assert_eq!(result_of(status, &body), result, "{body}");
    }
    let delay = json!([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "46s"}]);
    let listed = json!([error("RESOURCE_EXHAUSTED", "slow down", delay)]);
    let answer = decoded(Request::default(), 429, &listed);
    let provider = provider(UnsupportedParams::Reject);
    let wait = provider.retry_after(&head(429), &answer, SystemTime::UNIX_EPOCH);
    assert_eq!(wait, Some(Duration::from_secs(46)));
    let told: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(told["error"]["code"], "RESOURCE_EXHAUSTED");
}

#[test]
fn row_21_the_key_stands_in_a_header_alone() {
    let provider = provider(UnsupportedParams::Reject);
    let mut headers = HeaderMap::new();
    provider
        .authorize(&SecretString::from("AIza-secret"), &mut headers)
        .expect("a header");
    assert_eq!(headers["x-goog-api-key"], "AIza-secret");
    assert!(!format!("{headers:?}").contains("secret"));
    for base in ["https://h", "https://h/v1beta"] {
        let base = Url::parse(base).expect("a URL");
        let url = |model| provider.url(&base, CHAT, model).to_string();
        assert_eq!(
            url(SECOND),
            "https://h/v1beta/models/gemini-2.5-flash:generateContent"
        );
        assert_eq!(url("models/a"), "https://h/v1beta/models/a:generateContent");
        let strange = "https://h/v1beta/models/..%2Fx%3Fkey%3D1%23:generateContent";
        assert_eq!(
            url("../x?key=1#"),
            strange,
            "a model's name leads nowhere else"
        );
        let url = provider.models_url(&base, Some("t"));
        assert_eq!(
            url.as_str(),
            "https://h/v1beta/models?pageSize=1000&pageToken=t"
        );
    }
}

#[test]
fn row_12_each_text_has_its_embedding_in_its_place() {
    let body = json!({"input": ["a", "", "b"], "dimensions": 2, "encoding_format": "base64"});
    let sent = sent_by(
        UnsupportedParams::Reject,
        EMBEDDINGS,
        "gemini-embedding-001",
        &body,
    );
    let (sent, request) = sent.expect("encoded");
    let one = |text: &str| {
        json!({"model": "models/gemini-embedding-001", "content": {"parts": [{"text": text}]},
            "outputDimensionality": 2})
    };
    assert_eq!(sent, json!({"requests": [one("a"), one(""), one("b")]}));
    let said = json!({"embeddings": [{"values": [1.5, -2]}, {"values": [0, 0.1]}]});
    let request = |wants_base64| Request {
        path: EMBEDDINGS,
        model: request.model.clone(),
        wants_base64,
        ..Request::default()
    };
    let answer = answered(request(true), &said);
    assert_eq!(answer["data"][0]["embedding"], "AADAPwAAAMA=");
    assert_eq!(
        (&answer["data"][1]["index"], &answer["object"]),
        (&json!(1), &json!("list"))
    );
    let plain = decoded(request(false), 200, &said);
    assert!(String::from_utf8_lossy(&plain.body).contains(r#""embedding":[1.5,-2]"#));
    let tokens = json!({"input": [[1, 2]]});
    let rejected = sent_by(UnsupportedParams::Drop, EMBEDDINGS, SECOND, &tokens);
    assert_eq!(rejected.expect_err("rejected").param, "input");
}

#[test]
fn what_cannot_be_left_out_is_rejected() {
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let image = json!({"type": "image_url", "image_url": {"url": "https://h/a.png"}});
    assert_eq!(rejected(SECOND, &part(image)), "messages[0].content[0]");
    assert_eq!(rejected(SECOND, &json!({"messages": []})), "messages");
    let result = json!({"messages": [{"role": "user", "content": "Hi"},
        {"role": "tool", "tool_call_id": "c9", "content": "x"}]});
    assert_eq!(rejected(SECOND, &result), "messages[1].tool_call_id");
}

#[test]
fn a_list_of_models_is_read_page_by_page() {
    let provider = provider(UnsupportedParams::Reject);
    let page = provider.models(br#"{"models":[{"name":"models/a"}],"nextPageToken":"t"}"#);
    let page = page.expect("a list");
    assert_eq!(
        (&*page.models[0].id, page.next.as_deref()),
        ("a", Some("t"))
    );
    assert!(provider.models(b"{}").is_none());
}

#[test]
fn every_key_of_openais_requests_is_mapped_passed_on_rejected_or_named_in_a_warning() {
    for key in &chat::KEYS {
        assert!(RULES.iter().any(|(known, _)| known == key), "{key}");
    }
    for (key, rule) in RULES.iter().filter(|(key, _)| *key != "messages") {
        let body = hello(json!({*key: "x"}));
        match (rule, sent_by(UnsupportedParams::Drop, CHAT, SECOND, &body)) {
            (Rule::Harmless | Rule::Unsupported, Ok((_, request))) => {
                assert!(
                    request.warnings.iter().any(|one| one.param == *key),
                    "{key}"
                );
            }
            (Rule::Refused, Err(unsupported)) => assert_eq!(unsupported.param, *key),
            (Rule::Mapped, _) => {}
            (rule, sent) => panic!("{key} is {rule:?}: {sent:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_request_and_no_answer_panics(
        key in prop::sample::select(RULES.map(|(key, _)| key).to_vec()),
        value in crate::domain::json::tests::texts(),
        parts in crate::domain::json::tests::texts(),
        status in prop::sample::select(vec![200_u16, 400, 404, 429]),
        model in prop::sample::select(vec![SECOND, THIRD, "other"]),
    ) {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        let _ = sent_by(UnsupportedParams::Drop, CHAT, model, &hello(json!({key: json(&value)})));
        let body = json!({"messages": [{"role": "user", "content": json(&value)},
            {"role": "assistant", "tool_calls": json(&parts)}]});
        let _ = sent_by(UnsupportedParams::Drop, CHAT, model, &body);
        for said in [json(&value), candidate(json(&parts), "STOP")] {
            let _ = result_of(status, &said);
        }
    }
}

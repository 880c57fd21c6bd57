//! What is sent for a line, and what its answer becomes. The numbers in the names are those of rows
//! that each provider must pass.

use proptest::prelude::*;
use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use super::encode::RULES;
use super::*;
use crate::domain::clock::Clock;
use crate::upstream::provider::chat::{self, Rule};
use crate::upstream::provider::interface::CHAT;
use crate::upstream::tests::upstream;

fn provider(policy: UnsupportedParams) -> Mistral {
    let mut settings = upstream("mistral", "https://api.mistral.ai");
    settings.unsupported_params = policy;
    Mistral::new(&settings)
}

/// What is sent, and the parameters that warnings name.
fn sent(
    policy: UnsupportedParams,
    path: &'static str,
    body: &Value,
) -> Result<(Value, Vec<String>), Unsupported> {
    let body = body.to_string();
    let line = Line {
        path,
        model: "mistral-small-latest",
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    let Encoded::Translated { body, asked } = provider(policy).encode(&line)? else {
        panic!("not translated");
    };
    let warnings = asked.0.warnings.into_iter();
    let body = serde_json::from_slice(&body).expect("what is sent is JSON");
    Ok((body, warnings.map(|warning| warning.param).collect()))
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

fn decoded(path: &'static str, status: u16, body: &Value) -> Decoded {
    let request = Request {
        path,
        ..Request::default()
    };
    let asked = Some(Asked(Box::new(request)));
    provider(UnsupportedParams::Reject).decode(&head(status), Bytes::from(body.to_string()), asked)
}

fn answered(path: &'static str, body: &Value) -> Value {
    serde_json::from_slice(&decoded(path, 200, body).body).expect("JSON")
}

fn result_of(status: u16, body: &Value) -> CallResult {
    let provider = provider(UnsupportedParams::Reject);
    provider.classify(&head(status), &decoded(CHAT, status, body))
}

fn completion(message: Value, finish_reason: &str) -> Value {
    json!({
        "id": "1", "object": "chat.completion", "created": 7, "model": "mistral-small-latest",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    })
}

#[test]
fn a_request_has_the_names_that_mistral_knows_and_no_others() {
    let body = hello(json!({
        "max_tokens": 5, "max_completion_tokens": 9, "seed": 7, "temperature": 0.50, "n": 2,
        "store": false, "user": "u", "service_tier": "default", "tool_choice": "required",
        "prediction": {"type": "content", "content": [{"type": "text", "text": "a"}]},
        "tools": [{"type": "function", "function": {"name": "f", "strict": true, "parameters":
            {"$schema": "s", "$id": "i", "type": "object", "properties": {"$id": {}}}}},
            {"type": "function", "function": {"name": "g"}}],
    }));
    let (sent, warnings) = sent(UnsupportedParams::Reject, CHAT, &body).expect("encoded");
    assert_eq!(
        sent,
        json!({
            "model": "mistral-small-latest", "max_tokens": 9, "random_seed": 7,
            "temperature": 0.5, "n": 2, "service_tier": "standard_only",
            "tool_choice": "required", "prediction": {"type": "content", "content": "a"},
            "tools": [{"type": "function", "function": {"name": "f", "strict": true,
                "parameters": {"type": "object", "properties": {"$id": {}}}}},
                {"type": "function", "function": {"name": "g",
                    "parameters": {"type": "object", "properties": {}}}}],
            "messages": [{"role": "user", "content": "Hi"}],
        })
    );
    assert_eq!(warnings, ["user"]);
}

#[test]
fn row_19_ids_of_calls_have_nine_letters_and_digits_and_results_follow_them() {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let body = json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [call("call_1"), call("abcDEF123")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "x", "name": "f"},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "y"},
    ]});
    let (sent, _) = sent(UnsupportedParams::Reject, CHAT, &body).expect("encoded");
    let messages = &sent["messages"];
    let calls = &messages[1]["tool_calls"];
    let id = calls[0]["id"].as_str().expect("text");
    assert!(
        id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{id}"
    );
    assert_eq!(messages[2]["tool_call_id"], id);
    assert_eq!(messages[2]["name"], "f");
    assert_eq!(
        (&calls[1]["id"], &messages[3]["tool_call_id"]),
        (&json!("abcDEF123"), &json!("abcDEF123"),)
    );
}

#[test]
fn messages_stand_in_the_order_that_mistral_takes() {
    let body = json!({"messages": [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "refusal": null},
        {"role": "assistant", "tool_calls": [{"id": "abcDEF123", "type": "function",
            "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "x"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "So", "annotations": []},
    ]});
    let (sent, warnings) = sent(UnsupportedParams::Reject, CHAT, &body).expect("encoded");
    let messages = sent["messages"].as_array().expect("a list");
    let roles: Vec<_> = messages
        .iter()
        .map(|one| one["role"].as_str().expect("text"))
        .collect();
    let expected = [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
    ];
    assert_eq!(roles, expected, "one says nothing, and one stands between");
    assert_eq!(
        messages[6],
        json!({"role": "assistant", "content": "So", "prefix": true})
    );
    assert_eq!(warnings, ["messages[0].name", "messages[5]"]);
}

#[test]
fn parts_are_sent_as_mistral_has_them() {
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let pdf = "data:application/pdf;base64,AA";
    for (own, told) in [
        (
            json!({"type": "text", "text": "a"}),
            json!({"type": "text", "text": "a"}),
        ),
        (
            json!({"type": "image_url", "image_url": {"url": "https://h/a.png"}}),
            json!({"type": "image_url", "image_url": {"url": "https://h/a.png"}}),
        ),
        (
            json!({"type": "file", "file": {"file_data": pdf, "filename": "a.pdf"}}),
            json!({"type": "document_url", "document_url": pdf, "document_name": "a.pdf"}),
        ),
        (
            json!({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}),
            json!({"type": "input_audio", "input_audio": "AA"}),
        ),
    ] {
        let (sent, _) = sent(UnsupportedParams::Reject, CHAT, &part(own)).expect("encoded");
        assert_eq!(sent["messages"][0]["content"][0], told);
    }
    let http = part(json!({"type": "image_url", "image_url": {"url": "http://h/a.png"}}));
    let rejected = sent(UnsupportedParams::Drop, CHAT, &http).expect_err("rejected");
    assert_eq!(rejected.param, "messages[0].content[0]");
}

#[test]
fn row_01_an_answer_of_tool_calls_alone_has_null_as_its_content() {
    let message = json!({"role": "assistant", "content": "", "tool_calls": [
        {"id": "abcDEF123", "function": {"name": "f", "arguments": {"city": "Rome"}}},
    ]});
    let answer = answered(CHAT, &completion(message, "tool_calls"));
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    let function = json!({"name": "f", "arguments": "{\"city\":\"Rome\"}"});
    let call = json!({"id": "abcDEF123", "type": "function", "function": function});
    assert_eq!(message["tool_calls"], json!([call]));
}

#[test]
fn row_02_thinking_is_no_part_of_the_text() {
    let content = json!([
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "Yes"},
    ]);
    let message = json!({"role": "assistant", "content": content, "tool_calls": null});
    let answer = answered(CHAT, &completion(message, "model_length"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": "Yes", "reasoning_content": "Hm."})
    );
}

#[test]
fn an_answer_that_broke_off_is_none() {
    let said = completion(json!({"role": "assistant", "content": "a"}), "error");
    assert_eq!(result_of(200, &said), CallResult::Unusable);
    let said = completion(json!({"role": "assistant", "content": "a"}), "stop");
    assert_eq!(result_of(200, &said), CallResult::Succeeded);
    let usage = decoded(CHAT, 200, &said).usage.expect("usage");
    assert_eq!((usage.input_tokens, usage.output_tokens), (3, 4));
}

#[test]
fn row_12_embeddings_are_asked_for_in_mistrals_names_and_each_has_its_place() {
    let body = json!({"model": "m", "input": ["a", "", "b"], "dimensions": 3, "user": "u",
        "encoding_format": "float"});
    let (sent, warnings) = sent(UnsupportedParams::Reject, EMBEDDINGS, &body).expect("encoded");
    let expected = json!({"model": "mistral-small-latest", "input": ["a", "", "b"],
        "output_dimension": 3, "encoding_format": "float"});
    assert_eq!(sent, expected, "an empty text counts");
    assert_eq!(warnings, ["user"]);
    let tokens = json!({"input": [1, 2]});
    let rejected = super::tests::sent(UnsupportedParams::Drop, EMBEDDINGS, &tokens);
    assert_eq!(rejected.expect_err("rejected").param, "input");
    let said = json!({"object": "list", "data": [{"object": "embedding", "embedding": [0.10]},
        {"object": "embedding", "embedding": [2]}], "model": "m",
        "usage": {"prompt_tokens": 2, "total_tokens": 2}});
    let answer = answered(EMBEDDINGS, &said);
    assert_eq!(
        (&answer["data"][0]["index"], &answer["data"][1]["index"]),
        (&json!(0), &json!(1))
    );
    let rejected = super::tests::sent(UnsupportedParams::Drop, "/v1/responses", &json!({}));
    assert_eq!(rejected.expect_err("rejected").param, "url");
}

#[test]
fn each_status_and_type_has_its_scope() {
    use CallResult::*;
    let error = |kind: &str| json!({"object": "error", "message": "no", "type": kind, "param": null, "code": "1500"});
    for (status, kind, result) in [
        (400, "invalid_request_message_order", Rejected),
        (400, "invalid_model", ModelMissing),
        (401, "unauthorized", KeyRefused),
        (402, "payment_required", Unpaid),
        (403, "forbidden", Refused),
        (422, "invalid_request_error", Rejected),
        (429, "rate_limited", Limited),
        (500, "internal_server_error", ServerError),
        (503, "service_unavailable", Unavailable),
    ] {
        assert_eq!(result_of(status, &error(kind)), result, "{status} {kind}");
    }
    assert_eq!(result_of(404, &json!({"detail": "Not Found"})), Misdirected);
    assert_eq!(result_of(200, &error("internal_server_error")), Garbled);
    let said = json!({"object": "error", "message": {"detail": [{"msg": "extra"}]},
        "type": "invalid_request_error"});
    let told = decoded(CHAT, 422, &said);
    let told: Value = serde_json::from_slice(&told.body).expect("JSON");
    assert_eq!(told["error"]["message"], "[{\"msg\":\"extra\"}]");
    assert_eq!(told["provider"], said);
}

#[test]
fn every_key_of_openais_requests_is_mapped_passed_on_rejected_or_named_in_a_warning() {
    for key in &chat::KEYS {
        assert!(RULES.iter().any(|(known, _)| known == key), "{key}");
    }
    for (key, rule) in RULES
        .iter()
        .filter(|(key, _)| !["model", "messages"].contains(key))
    {
        let value = json!("x");
        let body = hello(json!({
            *key: value, "tools": [{"type": "function", "function": {"name": "f"}}],
        }));
        match (rule, sent(UnsupportedParams::Drop, CHAT, &body)) {
            (Rule::Harmless | Rule::Unsupported, Ok((sent, warnings))) => {
                assert!(warnings.iter().any(|one| one == key), "{key}");
                assert_eq!(sent.get(*key), None, "{key}");
            }
            (Rule::Passed, Ok((sent, _))) => assert_eq!(sent[*key], value),
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
        message in crate::domain::json::tests::texts(),
        status in prop::sample::select(vec![200_u16, 400, 404, 429]),
    ) {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        let body = hello(json!({key: json(&value)}));
        let _ = sent(UnsupportedParams::Drop, CHAT, &body);
        let body = json!({"messages": [{"role": "user", "content": json(&value)},
            {"role": "assistant", "tool_calls": json(&message)}]});
        let _ = sent(UnsupportedParams::Drop, CHAT, &body);
        for said in [json(&value), completion(json(&message), "stop")] {
            let _ = result_of(status, &said);
        }
    }
}

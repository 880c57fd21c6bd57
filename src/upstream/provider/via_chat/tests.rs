//! Requests of the Responses API and of the Messages API at each provider, and their answers. The
//! numbers in the names are those of rows that each provider must pass.

mod both;
mod many;
mod messages;
mod options;
mod responses;
mod turns;

use std::collections::BTreeSet;

use proptest::prelude::*;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::*;
use crate::domain::clock::Clock;
use crate::domain::outcome::WarningCode;
use crate::upstream::provider::chat::Rule;
use crate::upstream::provider::kind::ProviderKind;
use crate::upstream::provider::of;
use crate::upstream::settings::{
    Capabilities, CapabilitySettings, ReasoningKey, UnsupportedParams,
};
use crate::upstream::tests::upstream;

/// The providers, the first with `responses = "translate"`.
const KINDS: [ProviderKind; 5] = ProviderKind::ALL;

fn model(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::OpenAi => "qwen-3",
        ProviderKind::Anthropic => "claude-sonnet-4-5-20250929",
        ProviderKind::Gemini => "gemini-2.5-flash",
        ProviderKind::Mistral => "mistral-large-latest",
        ProviderKind::Cohere => "command-a-03-2025",
    }
}

fn provider(kind: ProviderKind, policy: UnsupportedParams) -> Box<dyn Provider> {
    of(&settings(kind, policy))
}

fn settings(kind: ProviderKind, policy: UnsupportedParams) -> UpstreamSettings {
    let mut settings = upstream("up", "https://h");
    settings.provider = kind;
    settings.unsupported_params = policy;
    settings.translates_responses = kind == ProviderKind::OpenAi;
    settings.reasoning_key = Some(ReasoningKey::ReasoningContent);
    settings
}

/// What is sent of a line to an upstream of OpenAI's API, and the parameters that warnings name.
fn sent_to(
    settings: &UpstreamSettings,
    path: &'static str,
    body: &Value,
) -> Result<(Value, Vec<String>), Unsupported> {
    let provider = of(settings);
    let encoded = encoded(&*provider, settings.provider, path, &body.to_string());
    let (sent, asked) = encoded?;
    let warnings = warnings(&asked).into_iter().map(str::to_owned);
    Ok((sent, warnings.collect()))
}

/// What is sent of a line that is translated, and what is remembered.
fn encoded(
    provider: &dyn Provider,
    kind: ProviderKind,
    path: &'static str,
    body: &str,
) -> Result<(Value, Asked), Unsupported> {
    let line = Line {
        path,
        model: model(kind),
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    match provider.encode(&line)? {
        Encoded::Translated { body, asked } => {
            let body = serde_json::from_slice(&body).expect("what is sent is JSON");
            Ok((body, asked))
        }
        other => panic!("not translated: {other:?}"),
    }
}

fn sent(kind: ProviderKind, path: &'static str, body: &Value) -> Result<Value, Unsupported> {
    let provider = provider(kind, UnsupportedParams::Reject);
    let encoded = encoded(&*provider, kind, path, &body.to_string());
    encoded.map(|(body, _)| body)
}

/// The parameter of a line that is rejected.
fn rejected(path: &'static str, body: &Value) -> String {
    let sent = sent(ProviderKind::OpenAi, path, body);
    sent.expect_err("rejected").param
}

/// The parameters that warnings name, where what cannot be asked is dropped.
fn warnings(asked: &Asked) -> Vec<&str> {
    let through = asked.0.through.as_ref().expect("it was asked as a chat");
    let all = through.warnings.iter().chain(&asked.0.warnings);
    all.map(|warning| &*warning.param).collect()
}

fn head(status: u16) -> Head {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-request-id", HeaderValue::from_static("req_7"));
    Head { status, headers }
}

/// The answer to a line, and how the call went.
fn answered(
    kind: ProviderKind,
    (path, body): (&'static str, &Value),
    status: u16,
    said: &Value,
) -> (CallResult, Value, Decoded) {
    let provider = provider(kind, UnsupportedParams::Drop);
    let (_, asked) = encoded(&*provider, kind, path, &body.to_string()).expect("encoded");
    let head = head(status);
    let decoded = provider.decode(&head, Bytes::from(said.to_string()), Some(asked));
    let result = provider.classify(&head, &decoded);
    let answer = serde_json::from_slice(&decoded.body).expect("JSON");
    (result, answer, decoded)
}

/// A chat completion with this message.
fn completion(message: Value, finish_reason: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {
            "prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27,
            "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    })
}

/// All texts of a value that a model would read or write.
fn said(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            found.insert(text.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| said(item, found)),
        Value::Object(members) => members.values().for_each(|value| said(value, found)),
        _ => {}
    }
}

/// Each key of a table does what the table says, whatever its value is. `hello` makes the request.
fn check_rules(path: &'static str, rules: &[(&str, Rule)], hello: impl Fn(Value) -> Value) {
    // Values that ask for something.
    let values = [
        json!("x"),
        json!(7),
        json!(true),
        json!({"a": "x"}),
        json!(["x"]),
    ];
    let provider = provider(ProviderKind::OpenAi, UnsupportedParams::Drop);
    for (key, rule) in rules.iter().filter(|(key, _)| *key != "model") {
        for value in &values {
            let body = hello(json!({*key: value})).to_string();
            let sent = encoded(&*provider, ProviderKind::OpenAi, path, &body);
            match (rule, sent) {
                (Rule::Harmless | Rule::Unsupported, Ok((sent, asked))) => {
                    assert!(warnings(&asked).contains(key), "{key}: {value}");
                    assert_eq!(sent.get(*key), None, "{key}");
                }
                (Rule::Passed, Ok((sent, _))) => {
                    let is_usual = *key == "parallel_tool_calls" && *value == true;
                    assert!(is_usual || sent[*key] == *value, "{key}: {sent}");
                }
                (Rule::Refused, Err(unsupported)) => assert_eq!(unsupported.param, *key),
                // Read as what it is for, or not that.
                (Rule::Mapped, _) => {}
                (rule, sent) => panic!("{key} is {rule:?}: {sent:?}"),
            }
        }
    }
    // What nobody knows is for the server to judge, and what only chat completions have is an
    // error.
    let body = hello(json!({"a_later_key": [1.50]})).to_string();
    let (sent, asked) = encoded(&*provider, ProviderKind::OpenAi, path, &body).expect("encoded");
    assert_eq!(sent["a_later_key"], json!([1.5]));
    assert_eq!(warnings(&asked), [""; 0]);
    assert_eq!(
        rejected(path, &hello(json!({"functions": [1]}))),
        "functions"
    );
}

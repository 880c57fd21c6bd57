//! The rows that each provider must pass, where they are not with the provider's own tests: those
//! of each provider's form are in its folder, and those of a whole server in `tests/sdk/providers`.

use serde_json::{Value, json};

use super::*;
use crate::upstream::attempt::result::CallResult;

const ANTHROPIC: &str = "claude-sonnet-4-5";
const GEMINI: &str = "gemini-2.5-flash";
const MISTRAL: &str = "mistral-large-latest";
const COHERE: &str = "command-a-03-2025";

/// What is sent for messages.
fn asked(kind: ProviderKind, model: &str, messages: &Value) -> Sent {
    let provider = provider(kind, UnsupportedParams::Reject);
    let body = json!({"model": "m", "messages": messages});
    sent(&*provider, model, &body).expect("encoded")
}

/// What the line gets of an answer.
fn answered(kind: ProviderKind, model: &str, answer: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let asked = asked(kind, model, &messages).asked;
    let provider = provider(kind, UnsupportedParams::Reject);
    let decoded = decoded(
        &*provider,
        &head(200, &[]),
        &answer.to_string(),
        Some(asked),
    );
    let result = provider.classify(&head(200, &[]), &decoded);
    assert_eq!(result, CallResult::Succeeded, "{answer}");
    serde_json::from_slice(&decoded.body).expect("JSON")
}

/// A conversation in which the assistant has called a tool and said nothing.
fn called() -> Value {
    let function = json!({"name": "f", "arguments": "{\"a\": [1.50, 9007199254740993]}"});
    let call = json!({"id": "abcdefgh1", "type": "function", "function": function});
    json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": "Yes"},
    ])
}

/// A conversation in which the assistant has thought before it spoke.
fn thought() -> Value {
    json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."},
        {"role": "user", "content": "And now?"},
    ])
}

fn two_systems() -> Value {
    json!([
        {"role": "system", "content": "One."},
        {"role": "developer", "content": "Two."},
        {"role": "user", "content": "Hi"},
    ])
}

#[test]
fn row_01_anthropic_a_message_of_calls_alone_is_sent_without_a_text() {
    let sent = asked(ProviderKind::Anthropic, ANTHROPIC, &called()).body;
    let call = json!({"type": "tool_use", "id": "abcdefgh1", "name": "f",
        "input": {"a": [1.5, 9_007_199_254_740_993_i64]}});
    assert_eq!(sent["messages"][1]["content"], json!([call]));
}

#[test]
fn row_01_gemini_a_message_of_calls_alone_is_sent_without_a_text() {
    let sent = asked(ProviderKind::Gemini, GEMINI, &called()).body;
    let args = json!({"a": [1.5, 9_007_199_254_740_993_i64]});
    let call = json!({"functionCall": {"name": "f", "args": args}});
    assert_eq!(
        sent["contents"][1],
        json!({"role": "model", "parts": [call]})
    );
}

#[test]
fn row_01_mistral_a_message_of_calls_alone_is_sent_with_an_empty_text() {
    let sent = asked(ProviderKind::Mistral, MISTRAL, &called()).body;
    let mut message = called()[1].clone();
    message["content"] = json!("");
    assert_eq!(sent["messages"][1], message);
}

#[test]
fn row_01_cohere_a_message_of_calls_alone_is_sent_without_a_text() {
    let sent = asked(ProviderKind::Cohere, COHERE, &called()).body;
    let message = &sent["messages"][1];
    assert_eq!(message["tool_calls"], called()[1]["tool_calls"]);
    assert!(message["content"].is_null(), "{message}");
}

/// What the line gets of an answer of a server that speaks OpenAI's API.
fn answered_by_openai(answer: &str) -> Decoded {
    let provider = provider(ProviderKind::OpenAi, UnsupportedParams::Reject);
    let decoded = decoded(&*provider, &head(200, &[]), answer, None);
    let result = provider.classify(&head(200, &[]), &decoded);
    assert_eq!(result, CallResult::Succeeded, "{answer}");
    assert_eq!(decoded.body, answer, "byte for byte");
    decoded
}

#[test]
fn row_01_openai_an_answer_of_calls_alone_stays_as_it_is() {
    answered_by_openai(
        r#"{"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant",
        "content": null, "tool_calls": [{"id": "a", "type": "function", "function":
        {"name": "f", "arguments": "{}"}}]}}]}"#,
    );
}

#[test]
fn row_02_openai_what_was_thought_stays_beside_the_text() {
    answered_by_openai(
        r#"{"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant",
        "reasoning_content": "Hm.", "content": "Yes"}}]}"#,
    );
}

#[test]
fn row_02_anthropic_what_was_thought_is_left_out_and_named() {
    let sent = asked(ProviderKind::Anthropic, ANTHROPIC, &thought());
    let text = json!([{"type": "text", "text": "Hello"}]);
    assert_eq!(sent.body["messages"][1]["content"], text);
    assert_eq!(sent.warnings[0].param, "messages[1].reasoning_content");
}

#[test]
fn row_02_gemini_what_was_thought_is_left_out_and_named() {
    let sent = asked(ProviderKind::Gemini, GEMINI, &thought());
    assert_eq!(
        sent.body["contents"][1]["parts"],
        json!([{"text": "Hello"}])
    );
    assert_eq!(sent.warnings[0].param, "messages[1].reasoning_content");
}

#[test]
fn row_02_mistral_what_was_thought_is_left_out_and_named() {
    let sent = asked(ProviderKind::Mistral, MISTRAL, &thought());
    let message = json!({"role": "assistant", "content": "Hello"});
    assert_eq!(sent.body["messages"][1], message);
    assert_eq!(sent.warnings[0].param, "messages[1].reasoning_content");
}

#[test]
fn row_02_cohere_what_was_thought_is_sent_as_that() {
    let sent = asked(ProviderKind::Cohere, COHERE, &thought());
    let parts = json!([{"type": "thinking", "thinking": "A greeting."},
        {"type": "text", "text": "Hello"}]);
    assert_eq!(sent.body["messages"][1]["content"], parts);
    assert!(sent.warnings.is_empty());
}

#[test]
fn row_03_gemini_two_system_messages_survive() {
    let sent = asked(ProviderKind::Gemini, GEMINI, &two_systems()).body;
    let parts = json!({"parts": [{"text": "One."}, {"text": "Two."}]});
    assert_eq!(sent["systemInstruction"], parts);
    assert_eq!(sent["contents"].as_array().map(Vec::len), Some(1));
}

#[test]
fn row_03_mistral_two_system_messages_survive() {
    let sent = asked(ProviderKind::Mistral, MISTRAL, &two_systems()).body;
    let expected = json!([
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        {"role": "user", "content": "Hi"},
    ]);
    assert_eq!(sent["messages"], expected);
}

#[test]
fn row_04_anthropic_a_refusal_is_an_answer() {
    let answer = json!({"type": "message", "id": "msg_1", "content": [], "stop_reason": "refusal",
        "stop_details": {"type": "refusal", "explanation": "It would harm."},
        "usage": {"input_tokens": 3, "output_tokens": 0}});
    let choice = answered(ProviderKind::Anthropic, ANTHROPIC, &answer)["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "content_filter");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["refusal"], "It would harm.");
}

#[test]
fn row_05_anthropic_what_was_thought_counts_as_output_and_what_was_cached_as_input() {
    let answer = json!({"type": "message", "content": [{"type": "text", "text": "a"}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 10, "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 1000, "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 30}}});
    let usage = json!({"prompt_tokens": 1110, "completion_tokens": 50, "total_tokens": 1160,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 1000},
        "completion_tokens_details": {"reasoning_tokens": 30}});
    let told = answered(ProviderKind::Anthropic, ANTHROPIC, &answer);
    assert_eq!(told["usage"], usage);
}

#[test]
fn row_05_openai_what_was_thought_and_what_was_cached_are_counted() {
    let decoded = answered_by_openai(
        r#"{"choices": [{}], "usage": {"prompt_tokens": 10, "completion_tokens": 50,
        "total_tokens": 60, "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 30}}}"#,
    );
    let usage = decoded.usage.expect("is told");
    assert_eq!((usage.input_tokens, usage.cached_tokens), (10, 4));
    assert_eq!((usage.output_tokens, usage.reasoning_tokens), (50, 30));
}

#[test]
fn row_05_mistral_what_is_used_is_told_as_it_is() {
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60});
    let answer = json!({"id": "a", "object": "chat.completion", "created": 1, "model": MISTRAL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"},
        "finish_reason": "stop"}], "usage": usage});
    let told = answered(ProviderKind::Mistral, MISTRAL, &answer);
    assert_eq!(told["usage"], usage);
}

#[test]
fn row_05_cohere_tokens_are_told_not_what_is_billed() {
    let answer = json!({"id": "a", "finish_reason": "COMPLETE",
        "message": {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        "usage": {"billed_units": {"input_tokens": 1.0, "output_tokens": 2.0},
        "tokens": {"input_tokens": 110.0, "output_tokens": 50.0}, "cached_tokens": 100.0}});
    let told = answered(ProviderKind::Cohere, COHERE, &answer);
    let usage = json!({"prompt_tokens": 110, "completion_tokens": 50, "total_tokens": 160,
        "prompt_tokens_details": {"cached_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 0}});
    assert_eq!(told["usage"], usage);
}

/// What is rejected of a request for embeddings.
fn embeddings_rejected(kind: ProviderKind, input: &Value) -> String {
    let body = json!({"model": "m", "input": input}).to_string();
    let line = Line {
        path: EMBEDDINGS,
        model: "m",
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    let provider = provider(kind, UnsupportedParams::Drop);
    provider.encode(&line).expect_err("rejected").param
}

#[test]
fn row_12_anthropic_there_are_no_embeddings() {
    let param = embeddings_rejected(ProviderKind::Anthropic, &json!(["a", "", "b"]));
    assert_eq!(param, "url");
}

#[test]
fn row_12_tokens_are_no_texts_for_any_provider() {
    for kind in [
        ProviderKind::Gemini,
        ProviderKind::Mistral,
        ProviderKind::Cohere,
    ] {
        for input in [
            json!([1, 2]),
            json!([[1], [2]]),
            json!(["a", 1]),
            json!(null),
        ] {
            assert_eq!(
                embeddings_rejected(kind, &input),
                "input",
                "{kind:?} {input}"
            );
        }
    }
}

/// A request with one more member.
fn with(key: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    body[key] = value;
    body
}

#[test]
fn row_17_gemini_a_penalty_that_the_model_does_not_have_is_for_the_policy() {
    let body = with("presence_penalty", json!(0.5));
    let rejects = provider(ProviderKind::Gemini, UnsupportedParams::Reject);
    let rejected = sent(&*rejects, "gemini-3-pro", &body).expect_err("rejected");
    assert_eq!(rejected.param, "presence_penalty");
    let drops = provider(ProviderKind::Gemini, UnsupportedParams::Drop);
    let left_out = sent(&*drops, "gemini-3-pro", &body).expect("encoded");
    assert_eq!(left_out.body.get("generationConfig"), None);
    assert_eq!(left_out.warnings[0].param, "presence_penalty");
    assert!(
        sent(&*rejects, GEMINI, &body).is_ok(),
        "the model before has it"
    );
}

#[test]
fn row_17_what_mistral_and_cohere_do_not_have_is_for_the_policy() {
    for kind in [ProviderKind::Mistral, ProviderKind::Cohere] {
        let body = with("logit_bias", json!({"50256": -100}));
        let rejects = provider(kind, UnsupportedParams::Reject);
        let rejected = sent(&*rejects, "m", &body).expect_err("rejected");
        assert_eq!(rejected.param, "logit_bias");
        let drops = provider(kind, UnsupportedParams::Drop);
        let left_out = sent(&*drops, "m", &body).expect("encoded");
        assert_eq!(left_out.body.get("logit_bias"), None);
        assert_eq!(left_out.warnings[0].param, "logit_bias");
    }
}

#[test]
fn row_19_gemini_ids_go_and_come_where_the_model_has_them() {
    let of = |model: &str| asked(ProviderKind::Gemini, model, &called()).body;
    let (old, new) = (of(GEMINI), of("gemini-3-pro"));
    let id = |body: &Value, turn: usize, key: &str| {
        body["contents"][turn]["parts"][0][key]["id"].clone()
    };
    assert_eq!(id(&old, 1, "functionCall"), Value::Null, "it refuses ids");
    assert_eq!(id(&new, 1, "functionCall"), "abcdefgh1");
    assert_eq!(id(&new, 2, "functionResponse"), "abcdefgh1");
    let call = |id: Value| {
        let call = json!({"name": "f", "args": {}, "id": id});
        let answer = json!({"candidates": [{"content": {"parts": [{"functionCall": call}]},
            "finishReason": "STOP"}]});
        let told = answered(ProviderKind::Gemini, GEMINI, &answer);
        told["choices"][0]["message"]["tool_calls"][0]["id"].clone()
    };
    assert_eq!(call(json!("id-7")), "id-7");
    let made = call(Value::Null);
    assert!(
        made.as_str().is_some_and(|id| id.starts_with("call_")),
        "{made}"
    );
}

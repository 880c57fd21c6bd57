//! The Messages API.

use super::super::messages::RULES;
use super::*;

/// The keys of requests in the official SDK, and two that it has beta.
const KEYS: [&str; 21] = [
    "cache_control",
    "container",
    "context_management",
    "inference_geo",
    "max_tokens",
    "mcp_servers",
    "messages",
    "metadata",
    "model",
    "output_config",
    "service_tier",
    "stop",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
];

fn hello(more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let mut body = json!({"model": "m", "max_tokens": 64, "messages": messages});
    let more = more.as_object().cloned().unwrap_or_default();
    body.as_object_mut().expect("an object").extend(more);
    body
}

fn whole() -> Value {
    json!({
        "model": "m",
        "max_tokens": 500,
        "system": [{"type": "text", "text": "Be brief."},
                   {"type": "text", "text": "Use tools.",
                    "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                             "data": "AAAA"}},
                {"type": "image", "source": {"type": "url", "url": "https://h/a.png"}},
                {"type": "document", "title": "a.pdf", "source": {
                    "type": "base64", "media_type": "application/pdf", "data": "BBBB"}},
                {"type": "document", "title": "Notes", "context": "Of today.", "source": {
                    "type": "text", "media_type": "text/plain", "data": "A cat."}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "A picture.", "signature": "s"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1}},
                {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a cat"},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": true,
                 "content": [{"type": "text", "text": "no light"}]},
                {"type": "text", "text": "Well?"},
            ]},
        ],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object",
                   "properties": {"at": {"type": "integer"}}}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "thinking": {"type": "enabled", "budget_tokens": 4_096},
        "stop_sequences": ["END"],
        "temperature": 0.2,
        "top_k": 5,
        "metadata": {"user_id": "u-1"},
        "service_tier": "standard_only",
    })
}

#[test]
fn a_request_is_asked_as_a_chat_completion() {
    let provider = provider(ProviderKind::OpenAi, UnsupportedParams::Reject);
    let body = whole().to_string();
    let encoded = encoded(&*provider, ProviderKind::OpenAi, MESSAGES, &body);
    let (sent, asked) = encoded.expect("encoded");
    let text = |text: &str| json!({"type": "text", "text": text});
    let expected = json!({
        "model": "qwen-3",
        "messages": [
            {"role": "system", "content": [text("Be brief."), text("Use tools.")]},
            {"role": "user", "content": [
                text("What is this?"),
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "image_url", "image_url": {"url": "https://h/a.png"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,BBBB",
                                          "filename": "a.pdf"}},
                text("Of today."), text("Notes"), text("A cat."),
            ]},
            {"role": "assistant", "content": "Let me look.", "reasoning_content": "A picture.",
             "tool_calls": [
                {"id": "toolu_1", "type": "function",
                 "function": {"name": "look", "arguments": "{\"at\":1}"}},
                {"id": "toolu_2", "type": "function",
                 "function": {"name": "look", "arguments": "{}"}},
             ]},
            {"role": "tool", "content": "a cat", "tool_call_id": "toolu_1"},
            {"role": "tool", "content": [text("Error: "), text("no light")],
             "tool_call_id": "toolu_2"},
            {"role": "user", "content": "Well?"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "look", "description": "Looks.",
            "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}}}],
        "tool_choice": "required",
        "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "answer", "strict": true, "schema": {"type": "object"}}},
        "reasoning_effort": "medium",
        "max_completion_tokens": 500,
        "stop": ["END"],
        "temperature": 0.2,
        "top_k": 5,
        "user": "u-1",
        "service_tier": "default",
    });
    assert_eq!(sent, expected);
    assert_eq!(
        warnings(&asked),
        [
            "system[1].cache_control",
            "messages[2].content[1].is_error",
            "thinking.budget_tokens",
        ]
    );
}

#[test]
fn a_chat_completion_is_answered_as_a_message() {
    let message = json!({
        "role": "assistant", "content": "A cat.", "reasoning": "It purrs.",
        "tool_calls": [{"id": "call_3", "type": "function",
                        "function": {"name": "look", "arguments": "{\"at\":2}"}}],
    });
    let said = completion(message, "tool_calls");
    let request = whole();
    let line = (MESSAGES, &request);
    let (result, answer, decoded) = answered(ProviderKind::OpenAi, line, 200, &said);
    assert_eq!(result, CallResult::Succeeded);
    let expected = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1",
        "content": [
            {"type": "thinking", "thinking": "It purrs.", "signature": ""},
            {"type": "text", "text": "A cat."},
            {"type": "tool_use", "id": "call_3", "name": "look", "input": {"at": 2}},
        ],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": {
            "input_tokens": 12, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 5,
            "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 4},
        },
    });
    assert_eq!(answer, expected);
    let usage = decoded.usage.expect("usage");
    assert_eq!((usage.input_tokens, usage.cached_tokens), (20, 5));
    assert_eq!(
        crate::domain::usage::read(&decoded.body),
        Some(usage),
        "what is read of the answer again is the same"
    );
}

#[test]
fn an_answer_says_why_the_model_stopped() {
    let body = hello(json!({"stop_sequences": ["END"]}));
    let yes = json!({"role": "assistant", "content": "Yes"});
    let refusal = json!({"role": "assistant", "content": null, "refusal": "No."});
    for (message, reason, stop) in [
        (&yes, "stop", "end_turn"),
        (&yes, "length", "max_tokens"),
        (&yes, "content_filter", "refusal"),
        (&refusal, "stop", "refusal"),
    ] {
        let said = completion(message.clone(), reason);
        let (_, answer, _) = answered(ProviderKind::OpenAi, (MESSAGES, &body), 200, &said);
        assert_eq!(answer["stop_reason"], stop, "{reason}");
        let is_refused = stop == "refusal";
        assert_eq!(answer["stop_details"]["type"] == "refusal", is_refused);
    }
    let mut said = completion(yes, "stop");
    said["choices"][0]["stop_reason"] = json!("END");
    let (_, answer, _) = answered(ProviderKind::OpenAi, (MESSAGES, &body), 200, &said);
    assert_eq!(answer["stop_reason"], "stop_sequence");
    assert_eq!(answer["stop_sequence"], "END");
    // Others say something else there.
    said["choices"][0]["stop_reason"] = json!("eos");
    let (_, answer, _) = answered(ProviderKind::OpenAi, (MESSAGES, &body), 200, &said);
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(answer["stop_sequence"], Value::Null);
}

#[test]
fn what_becomes_of_an_answers_sources_and_of_its_reason_to_end_is_told() {
    let body = hello(json!({}));
    let cited = json!({"role": "assistant", "content": "Yes", "annotations": [{"type": "x"}],
                       "citations": ["https://h"]});
    let said = completion(cited, "stop");
    let (_, _, decoded) = answered(ProviderKind::OpenAi, (MESSAGES, &body), 200, &said);
    let told = decoded.warnings.iter();
    let told: Vec<_> = told.map(|one| (one.code, &*one.param)).collect();
    assert_eq!(told, [(WarningCode::AnswerChanged, "content"); 2]);

    let mut said = json!({"id": "c", "finish_reason": "LATER", "message": {
        "role": "assistant", "content": [{"type": "text", "text": "Yes"}]}});
    let (_, _, decoded) = answered(ProviderKind::Cohere, (MESSAGES, &body), 200, &said);
    assert_eq!(decoded.warnings[0].param, "stop_reason");
    said["finish_reason"] = json!("COMPLETE");
    let (_, _, decoded) = answered(ProviderKind::Cohere, (MESSAGES, &body), 200, &said);
    assert_eq!(decoded.warnings, []);
}

#[test]
fn a_call_that_is_no_json_is_a_failed_attempt_unless_it_was_cut_short() {
    let body = hello(json!({}));
    let message = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":"}}]});
    let said = completion(message.clone(), "tool_calls");
    let (result, _, _) = answered(ProviderKind::OpenAi, (MESSAGES, &body), 200, &said);
    assert_eq!(result, CallResult::Unusable);
    let said = completion(message, "length");
    let (result, answer, decoded) = answered(ProviderKind::OpenAi, (MESSAGES, &body), 200, &said);
    assert_eq!(result, CallResult::Succeeded);
    assert_eq!(answer["content"], json!([]));
    assert_eq!(decoded.warnings[0].code, WarningCode::AnswerChanged);
}

#[test]
fn what_only_anthropics_api_has_is_rejected_by_name() {
    let user = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    for (more, param) in [
        (json!({"container": "c"}), "container"),
        (json!({"mcp_servers": [{"name": "x"}]}), "mcp_servers"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "tools[0].type",
        ),
        (
            json!({"tool_choice": {"type": "never"}}),
            "tool_choice.type",
        ),
        (
            user(json!({"type": "image", "source": {"type": "file", "file_id": "f"}})),
            "messages[0].content[0].source",
        ),
        (
            user(json!({"type": "document", "source": {"type": "url", "url": "https://h"}})),
            "messages[0].content[0].source",
        ),
        (
            user(json!({"type": "document", "citations": {"enabled": true},
                        "source": {"type": "text", "data": "x"}})),
            "messages[0].content[0].citations",
        ),
        (
            user(json!({"type": "search_result"})),
            "messages[0].content[0].type",
        ),
        (json!({"stop": "x"}), "stop"),
        (json!({"inference_geo": "us"}), "inference_geo"),
    ] {
        assert_eq!(rejected(MESSAGES, &hello(more.clone())), param, "{more}");
    }
}

#[test]
fn every_key_is_mapped_passed_on_rejected_or_named_in_a_warning() {
    let known: BTreeSet<_> = RULES.iter().map(|(key, _)| *key).collect();
    assert_eq!(known, KEYS.into_iter().collect());
    check_rules(MESSAGES, &RULES, hello);
}

#[test]
fn errors_are_as_the_messages_api_has_them_whichever_server_answers() {
    let body = hello(json!({}));
    let openai = json!({"error": {"message": "too long", "type": "x", "code": "y"}});
    let gemini = json!({"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED"}});
    for (kind, status, said, result, error) in [
        (
            ProviderKind::OpenAi,
            400,
            &openai,
            CallResult::Rejected,
            ("invalid_request_error", "too long"),
        ),
        (
            ProviderKind::Gemini,
            429,
            &gemini,
            CallResult::Limited,
            ("rate_limit_error", "slow"),
        ),
    ] {
        let (found, answer, decoded) = answered(kind, (MESSAGES, &body), status, said);
        assert_eq!(found, result, "as the provider judges what it said itself");
        let (kind, message) = error;
        let expected = json!({
            "type": "error", "error": {"type": kind, "message": message}, "request_id": "req_7",
            "provider": said,
        });
        assert_eq!(answer, expected);
        assert!(decoded.form.is_json());
    }
}

#[test]
fn an_error_in_whatever_form_is_one_of_the_messages_api() {
    let body = hello(json!({})).to_string();
    let provider = provider(ProviderKind::OpenAi, UnsupportedParams::Drop);
    for (status, said, message) in [
        (400, r#"{"message":"no","code":"x"}"#, "no"),
        (400, r#"{"object":"error","message":"no"}"#, "no"),
        (422, r#"{"detail":"no"}"#, "no"),
        (422, r#"{"detail":[{"msg":"no"}]}"#, r#"[{"msg":"no"}]"#),
        (400, r#"{"error":"no"}"#, "no"),
        (400, r#"[{"error":{"message":"no"}}]"#, "no"),
        (413, "too large", "The model server answered 413. too large"),
        (400, "", "The model server answered 400."),
    ] {
        let kind = ProviderKind::OpenAi;
        let (_, asked) = encoded(&*provider, kind, MESSAGES, &body).expect("encoded");
        let decoded = provider.decode(&head(status), Bytes::from(said), Some(asked));
        let answer: Value = serde_json::from_slice(&decoded.body).expect("JSON");
        assert_eq!(answer["type"], "error", "{said}");
        let found = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(found.starts_with(message), "{found}");
        let provider = serde_json::from_str(said).unwrap_or_else(|_| json!(said));
        assert_eq!(answer["provider"], provider);
    }
}

#[test]
fn row_13_a_line_goes_unchanged_to_anthropic_and_its_answer_stays_as_it_is() {
    let kind = ProviderKind::Anthropic;
    let provider = provider(kind, UnsupportedParams::Reject);
    let body = r#"{ "model":"m","messages" : [], "max_tokens":1.0, "later":[ 1.50e+2 ] }"#;
    let line = Line {
        path: MESSAGES,
        model: model(kind),
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    assert!(matches!(provider.encode(&line), Ok(Encoded::Unchanged)));
    assert_eq!(provider.translations(MESSAGES), 0);
    assert_eq!(provider.translations(CHAT), 1);
    let base = Url::parse("https://h").expect("a URL");
    assert_eq!(
        provider.url(&base, MESSAGES, "m").as_str(),
        "https://h/v1/messages"
    );
    let said = r#"{"type":"message", "later":1.50, "content":[], "stop_reason":"end_turn",
        "usage":{"input_tokens":5,"cache_read_input_tokens":7,"output_tokens":2}}"#;
    let ok = head(200);
    let decoded = provider.decode(&ok, Bytes::from(said), None);
    assert_eq!(decoded.body, said);
    assert_eq!(provider.classify(&ok, &decoded), CallResult::Succeeded);
    let usage = decoded.usage.expect("usage");
    assert_eq!((usage.input_tokens, usage.total_tokens), (12, 14));
    let said = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    for (status, result) in [
        (529, CallResult::Unavailable),
        (401, CallResult::KeyRefused),
        (200, CallResult::Garbled),
    ] {
        let head = head(status);
        let decoded = provider.decode(&head, Bytes::from(said), None);
        assert_eq!(decoded.body, said);
        assert_eq!(provider.classify(&head, &decoded), result, "{status}");
    }
}

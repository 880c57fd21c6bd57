//! Both endpoints, at each provider.

use super::*;

/// What a provider answers that says something, calls a tool, and has thought.
fn says(kind: ProviderKind) -> Value {
    match kind {
        ProviderKind::OpenAi | ProviderKind::Mistral => completion(
            json!({"role": "assistant", "content": "Yes", "reasoning_content": "Hm.",
                   "tool_calls": [{"id": "c1", "type": "function",
                                   "function": {"name": "f", "arguments": "{\"a\":1}"}}]}),
            "tool_calls",
        ),
        ProviderKind::Anthropic => json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1",
            "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "text", "text": "Yes"},
                        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}],
            "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 12, "cache_read_input_tokens": 5,
                      "cache_creation_input_tokens": 3, "output_tokens": 7,
                      "output_tokens_details": {"thinking_tokens": 4}},
        }),
        ProviderKind::Gemini => json!({
            "responseId": "r", "modelVersion": "m-1",
            "candidates": [{"finishReason": "STOP", "content": {"parts": [
                {"text": "Hm.", "thought": true}, {"text": "Yes"},
                {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "sig"}]}}],
            "usageMetadata": {"promptTokenCount": 20, "cachedContentTokenCount": 5,
                              "candidatesTokenCount": 3, "thoughtsTokenCount": 4,
                              "totalTokenCount": 27},
        }),
        ProviderKind::Cohere => json!({
            "id": "c-1", "finish_reason": "TOOL_CALL",
            "message": {"role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm."},
                            {"type": "text", "text": "Yes"}],
                "tool_calls": [{"id": "c1", "type": "function",
                                "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
            "usage": {"tokens": {"input_tokens": 20, "output_tokens": 7}, "cached_tokens": 5},
        }),
    }
}

fn request(path: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    if path == RESPONSES {
        json!({"model": "m", "input": "Hi", "max_output_tokens": 2_000,
               "tools": [{"type": "function", "name": "f", "parameters": schema}]})
    } else {
        json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2_000,
               "tools": [{"name": "f", "input_schema": schema}]})
    }
}

#[test]
fn rows_1_2_and_5_each_provider_answers_each_endpoint_with_calls_thoughts_and_usage() {
    for kind in KINDS {
        let body = request(RESPONSES);
        let (result, answer, decoded) = answered(kind, (RESPONSES, &body), 200, &says(kind));
        assert_eq!(result, CallResult::Succeeded, "{kind:?}: {answer}");
        let kinds: Vec<_> = answer["output"]
            .as_array()
            .expect("a list")
            .iter()
            .collect();
        let [thought, message, call] = kinds[..] else {
            panic!("{kind:?}: {answer}");
        };
        assert_eq!(thought["content"][0]["text"], "Hm.");
        assert_eq!(message["content"][0]["text"], "Yes");
        assert_eq!(call["arguments"], "{\"a\":1}");
        assert_eq!(call["name"], "f");
        assert_eq!(answer["usage"]["input_tokens"], 20, "{kind:?}");
        assert_eq!(answer["usage"]["output_tokens"], 7, "{kind:?}");
        assert_eq!(decoded.usage.map(|usage| usage.total_tokens), Some(27));
        if kind == ProviderKind::Anthropic {
            continue;
        }
        let body = request(MESSAGES);
        let (result, answer, _) = answered(kind, (MESSAGES, &body), 200, &says(kind));
        assert_eq!(result, CallResult::Succeeded, "{kind:?}: {answer}");
        let blocks = answer["content"].as_array().expect("a list");
        let [thought, text, call] = &blocks[..] else {
            panic!("{kind:?}: {answer}");
        };
        assert_eq!(thought["thinking"], "Hm.");
        assert_eq!(text["text"], "Yes");
        assert_eq!(call["input"], json!({"a": 1}));
        assert_eq!(answer["stop_reason"], "tool_use");
        let usage = crate::domain::usage::read(answer.to_string().as_bytes());
        assert_eq!(usage.map(|usage| usage.input_tokens), Some(20), "{kind:?}");
    }
}

#[test]
fn row_3_two_system_messages_survive_at_each_provider() {
    let responses = json!({"model": "m", "instructions": "First.", "input": [
        {"role": "system", "content": "Second."}, {"role": "user", "content": "Hi"}]});
    let messages = json!({"model": "m", "max_tokens": 9,
        "system": [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}],
        "messages": [{"role": "user", "content": "Hi"}]});
    for kind in KINDS {
        for (path, body) in [(RESPONSES, &responses), (MESSAGES, &messages)] {
            if path == MESSAGES && kind == ProviderKind::Anthropic {
                continue;
            }
            let sent = sent(kind, path, body).expect("encoded");
            let mut found = BTreeSet::new();
            said(&sent, &mut found);
            for text in ["First.", "Second.", "Hi"] {
                assert!(found.contains(text), "{kind:?}: {sent}");
            }
        }
    }
}

#[test]
fn row_4_a_prompt_that_gemini_blocks_is_an_answer() {
    let said = json!({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}});
    let body = request(RESPONSES);
    let (result, answer, _) = answered(ProviderKind::Gemini, (RESPONSES, &body), 200, &said);
    assert_eq!(result, CallResult::Succeeded);
    assert_eq!(answer["incomplete_details"]["reason"], "content_filter");
    assert_eq!(answer["output"], json!([]));
    let body = request(MESSAGES);
    let (_, answer, _) = answered(ProviderKind::Gemini, (MESSAGES, &body), 200, &said);
    assert_eq!(answer["stop_reason"], "refusal");
}

#[test]
fn row_19_ids_and_names_of_tools_are_restored_and_signatures_travel() {
    let name = "a tool";
    let body = json!({"model": "m", "input": [
        {"role": "user", "content": "Hi"},
        {"type": "function_call", "call_id": "an id", "name": name, "arguments": "{}",
         "extra_content": {"google": {"thought_signature": "sig"}}},
        {"type": "function_call_output", "call_id": "an id", "output": "1"},
    ], "tools": [{"type": "function", "name": name, "parameters": {"type": "object"}}]});
    let kind = ProviderKind::Gemini;
    let sent = sent(kind, RESPONSES, &body).expect("encoded");
    let mut found = BTreeSet::new();
    said(&sent, &mut found);
    assert!(found.contains("sig") && !found.contains(name), "{sent}");
    let mut said = says(kind);
    said["candidates"][0]["content"]["parts"][2]["functionCall"]["name"] = json!("a_tool");
    let (_, answer, _) = answered(kind, (RESPONSES, &body), 200, &said);
    let call = &answer["output"][2];
    assert_eq!(call["name"], name);
    let signature = json!({"google": {"thought_signature": "sig"}});
    assert_eq!(call["extra_content"], signature);
}

#[test]
fn what_a_provider_cannot_take_is_named_as_the_line_names_it() {
    let body = json!({"model": "m", "text": {"verbosity": "low"}, "input": [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]},
    ]});
    let rejected = |body: &Value| {
        let sent = sent(ProviderKind::Anthropic, RESPONSES, body);
        sent.expect_err("rejected").param
    };
    assert_eq!(rejected(&body), "text.verbosity");
    let mut silent = body.clone();
    silent["text"] = Value::Null;
    assert_eq!(rejected(&silent), "input[1]");
    let mut strict = json!({"model": "m", "input": "Hi", "tools": [
        {"type": "function", "name": "f", "strict": true, "parameters": {"type": "object"}}]});
    let sent = |body: &Value| sent(ProviderKind::Gemini, RESPONSES, body);
    assert_eq!(
        sent(&strict).expect_err("rejected").param,
        "tools[0].strict"
    );
    strict["tools"][0]["strict"] = json!(false);
    sent(&strict).expect("encoded");
}

#[test]
fn an_answer_that_is_no_chat_completion_is_a_failed_attempt() {
    let body = request(RESPONSES);
    for said in [
        json!({}),
        json!({"choices": []}),
        json!({"choices": [{}]}),
        json!([1]),
    ] {
        let (result, _, _) = answered(ProviderKind::OpenAi, (RESPONSES, &body), 200, &said);
        assert_eq!(result, CallResult::Unusable, "{said}");
    }
    let error = json!({"error": {"message": "no"}});
    let (result, answer, _) = answered(ProviderKind::OpenAi, (RESPONSES, &body), 200, &error);
    assert_eq!((result, &answer), (CallResult::Garbled, &error));
    let (result, answer, _) = answered(ProviderKind::OpenAi, (RESPONSES, &body), 400, &error);
    assert_eq!((result, &answer), (CallResult::Rejected, &error));
}

#[test]
fn arguments_that_are_an_object_or_missing_are_read_and_a_call_has_an_id() {
    for (function, text, input) in [
        (
            json!({"name": "f", "arguments": {"a": 1}}),
            "{\"a\":1}",
            json!({"a": 1}),
        ),
        (json!({"name": "f"}), "{}", json!({})),
    ] {
        let message = json!({"role": "assistant", "content": null,
                             "tool_calls": [{"type": "function", "function": function}]});
        let said = completion(message, "tool_calls");
        let kind = ProviderKind::OpenAi;
        let (_, answer, _) = answered(kind, (RESPONSES, &request(RESPONSES)), 200, &said);
        assert_eq!(answer["output"][0]["arguments"], text);
        assert_eq!(answer["output"][0]["call_id"], "call_1_0");
        let (_, answer, _) = answered(kind, (MESSAGES, &request(MESSAGES)), 200, &said);
        assert_eq!(answer["content"][0]["input"], input);
        let id = answer["content"][0]["id"].as_str().unwrap_or_default();
        assert!(id.starts_with("toolu_"), "{id}");
    }
}

#[test]
fn a_text_with_half_a_surrogate_pair_is_told_as_it_is_written() {
    let kind = ProviderKind::OpenAi;
    let provider = provider(kind, UnsupportedParams::Drop);
    let said = r#"{"choices":[{"message":{"content":"so \ud83d"},"finish_reason":"length"}]}"#;
    for path in [RESPONSES, MESSAGES] {
        let body = request(path).to_string();
        let (_, asked) = encoded(&*provider, kind, path, &body).expect("encoded");
        let decoded = provider.decode(&head(200), Bytes::from(said), Some(asked));
        let answer = String::from_utf8(decoded.body.to_vec()).expect("a text");
        assert!(answer.contains(r#""text":"so \ud83d""#), "{answer}");
        assert_eq!(decoded.usage, None, "the server has not told it");
    }
}

#[test]
fn urls_and_memory_are_those_of_the_chat_completion() {
    for (kind, responses, messages) in [
        (ProviderKind::OpenAi, "chat/completions", "chat/completions"),
        (ProviderKind::Anthropic, "messages", "messages"),
        (
            ProviderKind::Mistral,
            "chat/completions",
            "chat/completions",
        ),
    ] {
        let provider = provider(kind, UnsupportedParams::Reject);
        let base = Url::parse("https://h/v1").expect("a URL");
        for (path, end) in [(RESPONSES, responses), (MESSAGES, messages)] {
            let url = provider.url(&base, path, "m");
            assert_eq!(url.as_str(), format!("https://h/v1/{end}"));
        }
    }
    let translations = |kind, path| provider(kind, UnsupportedParams::Reject).translations(path);
    assert_eq!(translations(ProviderKind::OpenAi, RESPONSES), 1);
    assert_eq!(translations(ProviderKind::Gemini, RESPONSES), 2);
    assert_eq!(translations(ProviderKind::OpenAi, CHAT), 0);
}

#[test]
fn what_can_never_be_taken_is_known_before_it_is_sent() {
    let rejects = |kind| provider(kind, UnsupportedParams::Reject);
    for kind in KINDS {
        let provider = rejects(kind);
        for path in [RESPONSES, MESSAGES] {
            assert_eq!(provider.refuses(path, None), None, "{kind:?}: {path}");
        }
        for key in [
            "previous_response_id",
            "conversation",
            "truncate",
            "functions",
        ] {
            let is_refused = provider.refuses(RESPONSES, Some(key)).is_some();
            // What nobody knows is for the server to judge, where that speaks OpenAI's API.
            let is_known = key != "truncate" || kind != ProviderKind::OpenAi;
            // Cohere's own key for embeddings is none of its chat.
            assert_eq!(is_refused, is_known, "{kind:?}: {key}");
        }
        assert_eq!(provider.refuses(RESPONSES, Some("input")), None, "{kind:?}");
        let container = provider.refuses(MESSAGES, Some("container"));
        assert_eq!(
            container.is_some(),
            kind != ProviderKind::Anthropic,
            "{kind:?}"
        );
    }
    let drops = provider(ProviderKind::OpenAi, UnsupportedParams::Drop);
    assert_eq!(drops.refuses(RESPONSES, Some("image")), None);
    let rejects = rejects(ProviderKind::OpenAi);
    assert!(rejects.refuses(RESPONSES, Some("image")).is_some());
    assert_eq!(rejects.refuses("/v1/embeddings", Some("input_type")), None);
}

/// Any JSON, with the keys that requests have.
fn any_value(keys: Vec<&'static str>) -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "user",
        "assistant",
        "system",
        "developer",
        "message",
        "text",
        "input_text",
        "output_text",
        "function",
        "function_call",
        "function_call_output",
        "reasoning",
        "tool_use",
        "tool_result",
        "thinking",
        "image",
        "input_image",
        "document",
        "base64",
        "url",
        "enabled",
        "json_schema",
        "auto",
        "required",
        "allowed_tools",
        "custom",
        "{}",
        "{\"a\":1}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        words.prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let key = prop::sample::select(keys.clone());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(key, inner, 0..6).prop_map(|members| {
                let members = members.into_iter();
                Value::Object(
                    members
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

const PART_KEYS: [&str; 30] = [
    "type",
    "role",
    "content",
    "text",
    "id",
    "call_id",
    "name",
    "arguments",
    "input",
    "output",
    "tool_use_id",
    "source",
    "data",
    "media_type",
    "url",
    "image_url",
    "summary",
    "format",
    "schema",
    "effort",
    "strict",
    "parameters",
    "input_schema",
    "tools",
    "mode",
    "is_error",
    "budget_tokens",
    "title",
    "thinking",
    "caller",
];

fn turns() -> impl Strategy<Value = Vec<(bool, Vec<String>)>> {
    prop::collection::vec(
        (
            any::<bool>(),
            prop::collection::vec("[a-z]{1,8}[0-9]{4}", 1..3),
        ),
        1..5,
    )
}

proptest! {
    #[test]
    fn no_request_panics_and_what_is_sent_is_json(
        key in prop::sample::select(
            super::super::responses::RULES.iter().chain(&super::super::messages::RULES)
                .map(|(key, _)| *key).collect::<Vec<_>>()
        ),
        value in any_value(PART_KEYS.to_vec()),
        path in prop::sample::select(vec![RESPONSES, MESSAGES]),
        kind in prop::sample::select(KINDS.to_vec()),
        drops in any::<bool>(),
    ) {
        if path == MESSAGES && kind == ProviderKind::Anthropic {
            return Ok(());
        }
        let provider = provider(kind, UnsupportedParams::ALL[usize::from(drops)]);
        let mut body = request(path);
        body[key] = value;
        // Whatever becomes of it, it is told: `encoded` reads what is sent.
        if let Err(unsupported) = encoded(&*provider, kind, path, &body.to_string()) {
            prop_assert!(!unsupported.param.is_empty() && !unsupported.reason.is_empty());
        }
    }

    #[test]
    fn nothing_that_was_said_is_lost_at_any_provider(
        turns in turns(),
        path in prop::sample::select(vec![RESPONSES, MESSAGES]),
        kind in prop::sample::select(KINDS.to_vec()),
    ) {
        if path == MESSAGES && kind == ProviderKind::Anthropic {
            return Ok(());
        }
        let mut body = request(path);
        let mut all = BTreeSet::new();
        let turns: Vec<Value> = turns.into_iter().chain([(true, vec!["end0000".to_owned()])])
            .map(|(is_user, texts)| {
                all.extend(texts.iter().cloned());
                let (role, part) = match (is_user, path) {
                    (true, RESPONSES) => ("user", "input_text"),
                    (true, _) => ("user", "text"),
                    (false, RESPONSES) => ("assistant", "output_text"),
                    (false, _) => ("assistant", "text"),
                };
                let texts = texts.into_iter();
                let parts: Value = texts.map(|text| json!({"type": part, "text": text})).collect();
                json!({"role": role, "content": parts})
            })
            .collect();
        body[if path == RESPONSES { "input" } else { "messages" }] = Value::from(turns);
        let sent = sent(kind, path, &body).expect("encoded");
        let mut found = BTreeSet::new();
        said(&sent, &mut found);
        for text in all {
            prop_assert!(found.iter().any(|one| one.contains(&text)), "{text} is not in {sent}");
        }
    }

    #[test]
    fn whatever_the_server_says_is_read_without_a_panic(
        status in prop::sample::select(vec![200_u16, 400, 404, 429, 529]),
        key in prop::sample::select(vec!["content", "tool_calls", "reasoning_content", "refusal",
                                         "annotations"]),
        value in any_value(PART_KEYS.to_vec()),
        path in prop::sample::select(vec![RESPONSES, MESSAGES]),
    ) {
        let body = request(path);
        let mut said = says(ProviderKind::OpenAi);
        said["choices"][0]["message"][key] = value.clone();
        for said in [said, value] {
            let (result, answer, _) = answered(ProviderKind::OpenAi, (path, &body), status, &said);
            if result == CallResult::Succeeded {
                let kind = if path == RESPONSES { "object" } else { "type" };
                let expected = if path == RESPONSES { "response" } else { "message" };
                prop_assert_eq!(&answer[kind], expected);
            }
        }
    }
}

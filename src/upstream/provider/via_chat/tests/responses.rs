//! The Responses API.

use super::super::responses::RULES;
use super::*;

/// The keys of requests in the official SDK.
const KEYS: [&str; 34] = [
    "access_programs",
    "background",
    "background_options",
    "context_management",
    "conversation",
    "image",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "moderation",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
];

fn hello(more: Value) -> Value {
    let mut body = json!({"model": "m", "input": "Hi"});
    let more = more.as_object().cloned().unwrap_or_default();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A request with all that can be asked.
fn whole() -> Value {
    json!({
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "Use tools."},
            {"role": "user", "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf",
                 "file_data": "data:application/pdf;base64,AAAA"},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": [],
             "content": [{"type": "reasoning_text", "text": "A picture."}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}]},
            {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "call_1",
             "name": "look", "arguments": "{\"at\":1}"},
            {"type": "function_call", "call_id": "call_2", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "a cat"},
            {"type": "function_call_output", "call_id": "call_2",
             "output": [{"type": "input_text", "text": "a dog"}]},
        ],
        "tools": [{"type": "function", "name": "look", "description": "Looks.", "async": false,
                   "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}},
                   "strict": false}],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": false,
        "text": {"format": {"type": "json_schema", "name": "seen", "strict": true,
                            "schema": {"type": "object"}}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 500,
        "temperature": 0.2,
        "top_logprobs": 2,
        "metadata": {"a": "b"},
        "store": false,
    })
}

#[test]
fn a_request_is_asked_as_a_chat_completion() {
    let sent = sent(ProviderKind::OpenAi, RESPONSES, &whole()).expect("encoded");
    let expected = json!({
        "model": "qwen-3",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url",
                 "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA",
                                          "filename": "a.pdf"}},
            ]},
            {"role": "assistant", "content": "Let me look.", "reasoning_content": "A picture.",
             "tool_calls": [
                {"id": "call_1", "type": "function",
                 "function": {"name": "look", "arguments": "{\"at\":1}"}},
                {"id": "call_2", "type": "function",
                 "function": {"name": "look", "arguments": "{}"}},
             ]},
            {"role": "tool", "content": "a cat", "tool_call_id": "call_1"},
            {"role": "tool", "content": "a dog", "tool_call_id": "call_2"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "look", "description": "Looks.", "strict": false,
            "parameters": {"type": "object", "properties": {"at": {"type": "integer"}}}}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "seen", "strict": true, "schema": {"type": "object"}}},
        "verbosity": "low",
        "reasoning_effort": "low",
        "max_completion_tokens": 500,
        "temperature": 0.2,
        "logprobs": true,
        "top_logprobs": 2,
    });
    assert_eq!(sent, expected);
}

#[test]
fn a_chat_completion_is_answered_as_a_response_with_what_the_request_said() {
    let message = json!({
        "role": "assistant", "content": "A cat.", "reasoning_content": "It purrs.",
        "annotations": [{"type": "url_citation", "url_citation": {
            "url": "https://h", "title": "T", "start_index": 0, "end_index": 1}}],
        "tool_calls": [{"id": "call_3", "type": "function",
                        "function": {"name": "look", "arguments": "{\"at\":2}"}}],
    });
    let mut said = completion(message, "tool_calls");
    said["choices"][0]["logprobs"] = json!({"content": [{"token": "A", "logprob": -0.5, "bytes": null, "top_logprobs": [
            {"token": "A", "logprob": -0.5, "bytes": [65]}]}]});
    let request = whole();
    let line = (RESPONSES, &request);
    let (result, answer, decoded) = answered(ProviderKind::OpenAi, line, 200, &said);
    assert_eq!(result, CallResult::Succeeded);
    let output = json!([
        {"id": "rs_1", "type": "reasoning", "summary": [],
         "content": [{"type": "reasoning_text", "text": "It purrs."}]},
        {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
         "content": [{
            "type": "output_text", "text": "A cat.",
            "annotations": [{"type": "url_citation", "url": "https://h", "title": "T",
                             "start_index": 0, "end_index": 1}],
            "logprobs": [{"token": "A", "logprob": -0.5, "bytes": [], "top_logprobs": [
                {"token": "A", "logprob": -0.5, "bytes": [65]}]}],
         }]},
        {"id": "fc_1_0", "type": "function_call", "status": "completed", "call_id": "call_3",
         "name": "look", "arguments": "{\"at\":2}"},
    ]);
    let usage = json!({
        "input_tokens": 20, "output_tokens": 7, "total_tokens": 27,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
        "output_tokens_details": {"reasoning_tokens": 4},
    });
    let mut expected = json!({
        "id": "resp_1", "object": "response", "created_at": 1_700_000_000, "model": "m-1",
        "status": "completed", "error": null, "incomplete_details": null, "background": false,
        "previous_response_id": null, "truncation": "disabled",
        "output": output, "usage": usage,
    });
    for key in [
        "instructions",
        "max_output_tokens",
        "metadata",
        "parallel_tool_calls",
        "reasoning",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
    ] {
        expected[key] = request[key].clone();
    }
    assert_eq!(answer, expected);
    let usage = decoded.usage.expect("usage");
    assert_eq!((usage.input_tokens, usage.output_tokens), (20, 7));
    assert_eq!(crate::domain::usage::read(&decoded.body), Some(usage));
    assert_eq!(decoded.request_id.as_deref(), Some("req_7"));
}

#[test]
fn an_answer_says_why_it_is_not_whole() {
    let body = hello(json!({}));
    for (reason, status, why) in [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", Some("max_output_tokens")),
        ("content_filter", "incomplete", Some("content_filter")),
    ] {
        let said = completion(json!({"role": "assistant", "content": "Yes"}), reason);
        let (_, answer, _) = answered(ProviderKind::OpenAi, (RESPONSES, &body), 200, &said);
        assert_eq!(answer["status"], status);
        let found = answer["incomplete_details"]["reason"].as_str();
        assert_eq!(found, why, "{reason}");
        assert_eq!(answer["output"][0]["status"], status);
        assert_eq!(answer["tool_choice"], "auto");
        assert_eq!(answer["parallel_tool_calls"], true);
    }
    let refused = json!({"role": "assistant", "content": null, "refusal": "No."});
    let said = completion(refused, "stop");
    let (_, answer, _) = answered(ProviderKind::OpenAi, (RESPONSES, &body), 200, &said);
    let content = json!([{"type": "refusal", "refusal": "No."}]);
    assert_eq!(answer["output"][0]["content"], content);
}

#[test]
fn what_needs_a_state_or_a_tool_of_openais_is_rejected_by_name() {
    for (more, param) in [
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"background": true}), "background"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (
            json!({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
            "tools[0].type",
        ),
        (
            json!({"tool_choice": {"type": "mcp", "server_label": "x"}}),
            "tool_choice",
        ),
        (
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            "input[0].type",
        ),
        (
            json!({"input": [{"role": "user", "content": [
                {"type": "input_image", "file_id": "file-1", "detail": "auto"}]}]}),
            "input[0].content[0].file_id",
        ),
        (
            json!({"input": [{"role": "user", "content": [
                {"type": "input_file", "file_url": "http://10.0.0.1/a.pdf"}]}]}),
            "input[0].content[0].file_url",
        ),
        (json!({"input": null}), "input"),
        (json!({"truncation": "auto"}), "truncation"),
        (
            json!({"text": {"format": {"type": "grammar"}}}),
            "text.format.type",
        ),
        (json!({"reasoning": {"mode": "pro"}}), "reasoning.mode"),
    ] {
        assert_eq!(rejected(RESPONSES, &hello(more.clone())), param, "{more}");
    }
    for nothing in [
        json!({"previous_response_id": null, "background": false, "truncation": "disabled"}),
        json!({"store": false, "stream": false, "include": [], "tools": [], "metadata": {}}),
        json!({"reasoning": {"effort": null, "summary": null}, "top_logprobs": 0}),
    ] {
        let body = hello(nothing).to_string();
        let provider = provider(ProviderKind::OpenAi, UnsupportedParams::Reject);
        let encoded = encoded(&*provider, ProviderKind::OpenAi, RESPONSES, &body);
        let (sent, asked) = encoded.expect("encoded");
        assert_eq!(warnings(&asked), [""; 0]);
        assert_eq!(
            sent,
            json!({"model": "qwen-3", "messages": [{"role": "user", "content": "Hi"}]})
        );
    }
}

#[test]
fn what_is_kept_back_is_named_in_a_warning() {
    let body = hello(json!({
        "store": true, "max_tool_calls": 3, "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "input": [
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi",
                "prompt_cache_breakpoint": {"mode": "explicit"}}]},
        ],
    }));
    let provider = provider(ProviderKind::OpenAi, UnsupportedParams::Reject);
    let encoded = encoded(
        &*provider,
        ProviderKind::OpenAi,
        RESPONSES,
        &body.to_string(),
    );
    let (_, asked) = encoded.expect("encoded");
    let mut warnings = warnings(&asked);
    warnings.sort_unstable();
    assert_eq!(
        warnings,
        [
            "include[0]",
            "input[0].encrypted_content",
            "input[1].content[0].prompt_cache_breakpoint",
            "max_tool_calls",
            "reasoning.summary",
            "store",
        ]
    );
}

#[test]
fn custom_tools_and_lists_of_allowed_tools_keep_their_form() {
    let body = hello(json!({
        "tools": [{"type": "custom", "name": "sql", "description": "Runs.",
                   "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"a\""}}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto",
                        "tools": [{"type": "custom", "name": "sql"}]},
        "input": [
            {"role": "user", "content": "Hi"},
            {"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "a"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "1"},
        ],
    }));
    let sent = sent(ProviderKind::OpenAi, RESPONSES, &body).expect("encoded");
    assert_eq!(
        sent["tools"],
        json!([{"type": "custom", "custom": {"name": "sql", "description": "Runs.", "format": {
            "type": "grammar", "grammar": {"syntax": "lark", "definition": "start: \"a\""}}}}])
    );
    assert_eq!(
        sent["tool_choice"],
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
            {"type": "custom", "custom": {"name": "sql"}}]}})
    );
    let call = json!({"type": "custom", "custom": {"name": "sql", "input": "a"}, "id": "c"});
    assert_eq!(sent["messages"][1]["tool_calls"], json!([call]));
    let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    let said = completion(message, "tool_calls");
    let (_, answer, _) = answered(ProviderKind::OpenAi, (RESPONSES, &body), 200, &said);
    assert_eq!(
        answer["output"],
        json!([{"id": "ctc_1_0", "type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "a"}])
    );
}

#[test]
fn every_key_is_mapped_passed_on_rejected_or_named_in_a_warning() {
    let known: BTreeSet<_> = RULES.iter().map(|(key, _)| *key).collect();
    assert_eq!(known, KEYS.into_iter().collect());
    check_rules(RESPONSES, &RULES, hello);
}

#[test]
fn row_13_a_line_goes_unchanged_to_a_server_that_has_the_endpoint() {
    let mut settings = upstream("up", "https://h/v1");
    settings.translates_responses = false;
    let provider = of(&settings);
    let body = r#"{ "model":"m","input" : "x", "previous_response_id":"r", "n":1.50e+2 }"#;
    let line = Line {
        path: RESPONSES,
        model: "m",
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    assert!(matches!(provider.encode(&line), Ok(Encoded::Unchanged)));
    assert_eq!(provider.translations(RESPONSES), 0);
    let base = Url::parse("https://h/v1").expect("a URL");
    let url = provider.url(&base, RESPONSES, "m");
    assert_eq!(url.as_str(), "https://h/v1/responses");
}

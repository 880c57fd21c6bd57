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
use UnsupportedParams::{Drop, Reject};

/// All members that a request for a chat may have.
const MEMBERS: [&str; 20] = [
    "citation_options",
    "documents",
    "frequency_penalty",
    "k",
    "logprobs",
    "max_tokens",
    "messages",
    "model",
    "p",
    "presence_penalty",
    "priority",
    "response_format",
    "safety_mode",
    "seed",
    "stop_sequences",
    "strict_tools",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
];

fn provider(policy: UnsupportedParams) -> Cohere {
    let mut settings = upstream("cohere", "https://api.cohere.com");
    settings.unsupported_params = policy;
    Cohere::new(&settings)
}

fn encoded(
    policy: UnsupportedParams,
    path: &'static str,
    body: &Value,
) -> Result<(Value, Asked), Unsupported> {
    let body = body.to_string();
    let line = Line {
        path,
        model: "command-a-03-2025",
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    let Encoded::Translated { body, asked } = provider(policy).encode(&line)? else {
        panic!("not translated");
    };
    let body = serde_json::from_slice(&body).expect("what is sent is JSON");
    Ok((body, asked))
}

/// What is sent, and the parameters that warnings name.
fn sent(
    policy: UnsupportedParams,
    path: &'static str,
    body: &Value,
) -> Result<(Value, Vec<String>), Unsupported> {
    let (body, asked) = encoded(policy, path, body)?;
    let warnings = asked.0.warnings.into_iter();
    Ok((body, warnings.map(|warning| warning.param).collect()))
}

fn rejected(policy: UnsupportedParams, path: &'static str, body: &Value) -> String {
    match sent(policy, path, body) {
        Ok(sent) => panic!("it is sent: {sent:?}"),
        Err(unsupported) => unsupported.param,
    }
}

fn hello(more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

fn head(status: u16) -> Head {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    Head { status, headers }
}

fn decoded(path: &'static str, status: u16, body: &Value) -> Decoded {
    let request = Request {
        path,
        model: "command-a-03-2025".to_owned(),
        ..Request::default()
    };
    let asked = Some(Asked(Box::new(request)));
    provider(Reject).decode(&head(status), Bytes::from(body.to_string()), asked)
}

fn answered(path: &'static str, body: &Value) -> Value {
    serde_json::from_slice(&decoded(path, 200, body).body).expect("JSON")
}

fn result_of(status: u16, body: &Value) -> CallResult {
    provider(Reject).classify(&head(status), &decoded(CHAT, status, body))
}

fn reply(message: &Value, finish_reason: &str) -> Value {
    json!({
        "id": "c-1", "finish_reason": finish_reason, "message": message,
        "usage": {"billed_units": {"input_tokens": 2.0, "output_tokens": 3.0},
            "tokens": {"input_tokens": 71.0, "output_tokens": 5.0}, "cached_tokens": 64.0},
    })
}

fn said(text: &str) -> Value {
    json!({"role": "assistant", "content": [{"type": "text", "text": text}]})
}

#[test]
fn a_request_has_the_names_that_cohere_knows_and_no_others() {
    let body = hello(json!({
        "max_tokens": 5, "max_completion_tokens": 9, "seed": 7, "temperature": 0.50, "n": 1,
        "top_p": 0.90, "stop": "\n", "presence_penalty": 0.5, "frequency_penalty": 0,
        "store": false, "user": "u", "tool_choice": "required", "k": 5,
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "strict": true,
                "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}},
            {"type": "function", "function": {"name": "g", "strict": true}},
        ],
    }));
    let (sent, warnings) = sent(Reject, CHAT, &body).expect("encoded");
    assert_eq!(
        sent,
        json!({
            "model": "command-a-03-2025", "max_tokens": 9, "seed": 7, "temperature": 0.5, "k": 5,
            "p": 0.9, "stop_sequences": ["\n"], "presence_penalty": 0.5,
            "tool_choice": "REQUIRED", "strict_tools": true,
            "tools": [
                {"type": "function", "function": {"name": "f", "description": "d",
                    "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}},
                {"type": "function", "function": {"name": "g",
                    "parameters": {"type": "object", "properties": {}}}},
            ],
            "messages": [{"role": "user", "content": "Hi"}],
        })
    );
    assert_eq!(warnings, ["user"]);
}

#[test]
fn row_01_an_answer_of_tool_calls_alone_has_null_as_its_content() {
    let call = json!({"id": "f_x1", "type": "function",
        "function": {"name": "f", "arguments": "{\"city\":\"Rome\"}"}});
    let message = json!({"role": "assistant", "tool_plan": "I ask f.", "tool_calls": [call]});
    let answer = answered(CHAT, &reply(&message, "TOOL_CALL"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(
        choice["message"],
        json!({"role": "assistant", "content": null, "refusal": null,
            "reasoning_content": "I ask f.", "tool_calls": [call]})
    );
}

#[test]
fn row_02_thinking_is_no_part_of_the_text() {
    let content = json!([
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Y"},
        {"type": "text", "text": "es"},
    ]);
    let message = json!({"role": "assistant", "content": content});
    let answer = answered(CHAT, &reply(&message, "COMPLETE"));
    assert_eq!(
        answer["choices"][0]["message"],
        json!({"role": "assistant", "content": "Yes", "refusal": null,
            "reasoning_content": "Hm."})
    );
}

#[test]
fn row_03_two_system_messages_stay_and_so_does_their_place() {
    let body = json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "refusal": null},
        {"role": "system", "content": " "},
        {"role": "system", "content": "Be quick."},
        {"role": "user", "content": "And?", "name": "bob"},
    ]});
    let (sent, warnings) = sent(Reject, CHAT, &body).expect("encoded");
    assert_eq!(
        sent["messages"],
        json!([
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "Be quick."},
            {"role": "user", "content": "And?"},
        ]),
        "what says nothing is left out"
    );
    assert_eq!(warnings, ["messages[6].name"]);
    let empty = json!({"messages": [{"role": "user", "content": ""}]});
    assert_eq!(rejected(Drop, CHAT, &empty), "messages[0].content");
}

#[test]
fn row_06_a_rate_limit_says_when_it_ends() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let provider = provider(Reject);
    let body = json!({"message": "You are using a Trial key, limited to 40 API calls / minute."});
    let wait = |name: &'static str, value: &'static str| {
        let mut head = head(429);
        head.headers.insert(name, HeaderValue::from_static(value));
        let decoded = decoded(CHAT, 429, &body);
        assert_eq!(provider.classify(&head, &decoded), CallResult::Limited);
        provider.retry_after(&head, &decoded, now)
    };
    assert_eq!(wait("retry-after", "7"), Some(Duration::from_secs(7)));
    assert_eq!(
        wait("retry-after-ms", "1500"),
        Some(Duration::from_millis(1_500))
    );
    assert_eq!(
        wait("x-ratelimit-reset", "1030"),
        Some(Duration::from_secs(30))
    );
    assert_eq!(wait("x-ratelimit-reset", "10"), Some(Duration::ZERO));
    assert_eq!(wait("x-ratelimit-reset", "soon"), None);
}

#[test]
fn row_12_an_empty_text_counts_among_embeddings() {
    let body = json!({"model": "m", "input": ["a", "", "b"], "dimensions": 256, "user": "u",
        "encoding_format": "float", "input_type": "search_query", "truncate": "NONE"});
    let (body, warnings) = sent(Reject, EMBEDDINGS, &body).expect("encoded");
    assert_eq!(
        body,
        json!({"model": "command-a-03-2025", "texts": ["a", "", "b"], "output_dimension": 256,
            "input_type": "search_query", "embedding_types": ["float"], "truncate": "NONE"})
    );
    assert_eq!(warnings, ["user"]);
    let (body, warnings) = sent(Reject, EMBEDDINGS, &json!({"input": "a"})).expect("encoded");
    assert_eq!(
        (&body["texts"], &body["input_type"]),
        (&json!(["a"]), &json!("search_document"))
    );
    assert_eq!(warnings, ["input_type"], "what nobody said is told");
}

#[test]
fn row_19_names_of_tools_are_in_the_letters_that_cohere_takes_and_come_back_as_they_were() {
    let call = json!({"id": "call-1.a", "type": "function", "index": 0,
        "function": {"name": "get.time", "arguments": "{}"}});
    let body = json!({
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": null, "reasoning_content": "I ask.",
                "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call-1.a", "content": ""},
        ],
        "tools": [function("get.time"), function("get_time")],
    });
    let (sent, asked) = encoded(Reject, CHAT, &body).expect("encoded");
    let name = |of: &Value| of["function"]["name"].as_str().expect("text").to_owned();
    let [first, second] = [0, 1].map(|place| name(&sent["tools"][place]));
    assert_eq!(second, "get_time");
    assert_ne!(first, second);
    assert!(first.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    assert_eq!(
        sent["messages"][1],
        json!({"role": "assistant", "tool_plan": "I ask.", "tool_calls": [{"id": "call-1.a",
            "type": "function", "function": {"name": first, "arguments": "{}"}}]})
    );
    assert_eq!(
        sent["messages"][2],
        json!({"role": "tool", "tool_call_id": "call-1.a", "content": ""})
    );
    let call = json!({"id": "c", "type": "function", "function": {"name": first}});
    let said = reply(
        &json!({"role": "assistant", "tool_calls": [call]}),
        "TOOL_CALL",
    );
    let body = Bytes::from(said.to_string());
    let decoded = provider(Reject).decode(&head(200), body, Some(asked));
    let answer: Value = serde_json::from_slice(&decoded.body).expect("JSON");
    let function = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(*function, json!({"name": "get.time", "arguments": "{}"}));
}

#[test]
fn a_tool_that_must_be_called_is_the_only_one_that_is_sent() {
    let one = json!({"type": "function", "function": {"name": "g"}});
    let tools = json!([function("f"), function("g")]);
    let body = hello(json!({"tools": tools, "tool_choice": one}));
    let (body, warnings) = sent(Reject, CHAT, &body).expect("encoded");
    assert_eq!(body["tool_choice"], "REQUIRED");
    assert_eq!(body["tools"][0]["function"]["name"], "g");
    assert_eq!(body["tools"].as_array().map(Vec::len), Some(1));
    assert_eq!(warnings, ["tool_choice"]);
    let other = hello(json!({"tools": [function("f")], "tool_choice": one}));
    assert_eq!(rejected(Drop, CHAT, &other), "tool_choice");
    for (word, told) in [("auto", Value::Null), ("none", json!("NONE"))] {
        let body = hello(json!({"tools": tools, "tool_choice": word}));
        let (sent, _) = sent(Reject, CHAT, &body).expect("encoded");
        assert_eq!(sent["tool_choice"], told);
    }
}

#[test]
fn what_cohere_has_for_all_tools_or_for_none_is_for_the_policy() {
    let strict = json!({"type": "function", "function": {"name": "f", "strict": true}});
    let body = hello(json!({"tools": [function("g"), strict]}));
    assert_eq!(rejected(Reject, CHAT, &body), "tools[1].function.strict");
    let (body, warnings) = sent(Drop, CHAT, &body).expect("encoded");
    assert_eq!(body.get("strict_tools"), None);
    assert_eq!(warnings, ["tools[1].function.strict"]);
    let body = hello(json!({"tools": [function("g")], "parallel_tool_calls": false}));
    assert_eq!(rejected(Reject, CHAT, &body), "parallel_tool_calls");
    let without = hello(json!({"parallel_tool_calls": false, "tool_choice": "required"}));
    let (sent, _) = sent(Reject, CHAT, &without).expect("encoded");
    assert_eq!(sent.get("tool_choice"), None, "there is nothing to choose");
}

#[test]
fn numbers_are_within_what_cohere_takes() {
    for (top_p, told, is_warned) in [
        (json!(1), Value::Null, false),
        (json!(0.995), json!(0.99), true),
        (json!(0), json!(0.01), true),
        (json!(0.5), json!(0.5), false),
    ] {
        let (sent, warnings) =
            sent(Reject, CHAT, &hello(json!({"top_p": top_p}))).expect("encoded");
        assert_eq!((&sent["p"], !warnings.is_empty()), (&told, is_warned));
    }
    for penalty in [json!(-0.5), json!(1.5), json!("x")] {
        let body = hello(json!({"frequency_penalty": penalty}));
        assert_eq!(rejected(Reject, CHAT, &body), "frequency_penalty");
        let (sent, warnings) = sent(Drop, CHAT, &body).expect("encoded");
        assert_eq!(sent.get("frequency_penalty"), None);
        assert_eq!(warnings, ["frequency_penalty"]);
    }
    let body = hello(json!({"stop": ["a", "b", "c", "d", "e", "f"]}));
    assert_eq!(rejected(Reject, CHAT, &body), "stop");
    assert_eq!(rejected(Drop, CHAT, &hello(json!({"n": 2}))), "n");
}

#[test]
fn a_schema_is_sent_as_it_is_but_not_beside_tools() {
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}, "required": ["b"]});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let body = hello(json!({"response_format": format}));
    let (body, warnings) = sent(Reject, CHAT, &body).expect("encoded");
    assert_eq!(
        body["response_format"],
        json!({"type": "json_object", "json_schema": schema})
    );
    assert_eq!(warnings, [""; 0]);
    let body = hello(json!({"response_format": format, "tools": [function("f")]}));
    assert_eq!(rejected(Drop, CHAT, &body), "response_format");
    let text = hello(json!({"response_format": {"type": "text"}, "tools": [function("f")]}));
    let (sent, _) = sent(Reject, CHAT, &text).expect("encoded");
    assert_eq!(sent.get("response_format"), None);
}

#[test]
fn how_much_the_model_thinks_is_said_in_tokens() {
    for (effort, thinking, is_warned) in [
        ("none", json!({"type": "disabled"}), false),
        (
            "low",
            json!({"type": "enabled", "token_budget": 1_024}),
            true,
        ),
        ("high", json!({"type": "enabled"}), false),
    ] {
        let body = hello(json!({"reasoning_effort": effort}));
        let (sent, warnings) = sent(Reject, CHAT, &body).expect("encoded");
        assert_eq!(
            (&sent["thinking"], !warnings.is_empty()),
            (&thinking, is_warned)
        );
    }
}

#[test]
fn parts_are_sent_as_cohere_has_them_and_what_it_has_not_is_rejected() {
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let image = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    for url in ["https://h/a.png", "data:image/png;base64,AA"] {
        let (sent, _) = sent(Reject, CHAT, &part(image(url))).expect("encoded");
        assert_eq!(sent["messages"][0]["content"][0], image(url));
    }
    let pdf = "data:application/pdf;base64,AA";
    for other in [
        image("http://h/a.png"),
        json!({"type": "file", "file": {"file_data": pdf}}),
        json!({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}),
    ] {
        assert_eq!(rejected(Drop, CHAT, &part(other)), "messages[0].content[0]");
    }
    let body = json!({"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "So", "reasoning_content": "Hm."},
        {"role": "user", "content": "And?"},
    ]});
    let (sent, _) = sent(Reject, CHAT, &body).expect("encoded");
    assert_eq!(
        sent["messages"][1]["content"],
        json!([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "So"}])
    );
}

#[test]
fn each_reason_to_stop_has_its_word() {
    for (reason, word) in [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
    ] {
        let answer = answered(CHAT, &reply(&said("a"), reason));
        assert_eq!(answer["choices"][0]["finish_reason"], word);
    }
    for reason in ["ERROR", "TIMEOUT"] {
        let reply = reply(&said("a"), reason);
        assert_eq!(result_of(200, &reply), CallResult::Unusable, "{reason}");
    }
    assert_eq!(result_of(200, &json!({"id": "x"})), CallResult::Unusable);
    let decoded = decoded(CHAT, 200, &reply(&said("a"), "NEW"));
    let params: Vec<_> = decoded.warnings.iter().map(|one| &*one.param).collect();
    assert_eq!(params, ["choices[0].finish_reason"], "it is told");
}

#[test]
fn an_answer_has_what_was_used_and_what_it_is_taken_from() {
    let mut message = said("Rome");
    message["citations"] = json!([{"start": 0, "end": 4, "text": "Rome", "sources": []}]);
    let answer = answered(CHAT, &reply(&message, "COMPLETE"));
    assert_eq!(
        (&answer["id"], &answer["model"], &answer["object"]),
        (
            &json!("c-1"),
            &json!("command-a-03-2025"),
            &json!("chat.completion")
        )
    );
    assert_eq!(
        answer["choices"][0]["message"]["citations"],
        message["citations"]
    );
    let usage = decoded(CHAT, 200, &reply(&message, "COMPLETE")).usage;
    let usage = usage.expect("usage");
    assert_eq!(
        (usage.input_tokens, usage.output_tokens, usage.cached_tokens),
        (71, 5, 64)
    );
    assert_eq!(answer["usage"]["total_tokens"], 76);
}

#[test]
fn embeddings_come_in_order_as_they_are_written_or_in_base64() {
    let said = json!({"id": "e", "embeddings": {"float": [[0.5, -2], [1e-3]]},
        "texts": ["a", "b"], "meta": {"billed_units": {"input_tokens": 4}}});
    let answer = answered(EMBEDDINGS, &said);
    assert_eq!(
        answer,
        json!({
            "object": "list", "model": "command-a-03-2025",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -2]},
                {"object": "embedding", "index": 1, "embedding": [0.001]},
            ],
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        })
    );
    let body = json!({"input": ["a", "b"], "encoding_format": "base64"});
    let (_, asked) = encoded(Reject, EMBEDDINGS, &body).expect("encoded");
    let body = Bytes::from(said.to_string());
    let decoded = provider(Reject).decode(&head(200), body, Some(asked));
    let answer: Value = serde_json::from_slice(&decoded.body).expect("JSON");
    assert_eq!(answer["data"][0]["embedding"], "AAAAPwAAAMA=");
    let none = decoded_as_embeddings(&json!({"embeddings": {"int8": [[1]]}}));
    assert_eq!(none, CallResult::Unusable);
}

fn decoded_as_embeddings(said: &Value) -> CallResult {
    provider(Reject).classify(&head(200), &decoded(EMBEDDINGS, 200, said))
}

#[test]
fn inputs_that_cohere_cannot_embed_in_one_call_are_rejected() {
    assert_eq!(
        rejected(Drop, EMBEDDINGS, &json!({"input": [1, 2]})),
        "input"
    );
    let texts = vec!["a"; 97];
    assert_eq!(
        rejected(Drop, EMBEDDINGS, &json!({"input": texts})),
        "input"
    );
    assert!(sent(Drop, EMBEDDINGS, &json!({"input": texts[1..]})).is_ok());
    assert_eq!(rejected(Drop, "/v1/responses", &json!({})), "url");
}

#[test]
fn each_status_and_message_has_its_scope() {
    use CallResult::*;
    for (status, message, result) in [
        (400, "invalid request: message must not be empty", Rejected),
        (401, "invalid api token", KeyRefused),
        (402, "please add or update your payment method", Unpaid),
        (403, "forbidden", Refused),
        (404, "model 'command-x' not found", ModelMissing),
        (404, "not found", Misdirected),
        (422, "unknown field: parameter 'x'", Rejected),
        (429, "Please wait and try again later", Limited),
        (
            429,
            "a Trial key is limited to 1000 API calls / month",
            Unpaid,
        ),
        (498, "blocked input", Rejected),
        (499, "request cancelled", ServerError),
        (500, "internal server error", ServerError),
        (503, "service unavailable", Unavailable),
        (504, "gateway timeout", Unavailable),
    ] {
        let said = json!({"id": "e-1", "message": message});
        assert_eq!(result_of(status, &said), result, "{status} {message}");
        let told = decoded(CHAT, status, &said);
        let told: Value = serde_json::from_slice(&told.body).expect("JSON");
        assert_eq!(
            (&told["error"]["message"], &told["provider"]),
            (&json!(message), &said)
        );
    }
}

#[test]
fn calls_go_behind_the_origin_and_behind_the_version() {
    let provider = provider(Reject);
    for base in ["https://h", "https://h/v2", "https://h/v2/"] {
        let base = Url::parse(base).expect("a URL");
        let url = |path| provider.url(&base, path, "m").to_string();
        assert_eq!(url(CHAT), "https://h/v2/chat");
        assert_eq!(url(EMBEDDINGS), "https://h/v2/embed");
        let models = provider.models_url(&base, Some("t"));
        assert_eq!(
            models.as_str(),
            "https://h/v1/models?page_size=1000&page_token=t"
        );
    }
    let page = provider.models(br#"{"models":[{"name":"command-r"}],"next_page_token":"t"}"#);
    let page = page.expect("a list");
    assert_eq!(page.models[0].id, "command-r");
    assert_eq!(page.next.as_deref(), Some("t"));
    assert!(provider.models(b"{}").is_none());
}

#[test]
fn an_answer_has_the_servers_own_id_for_the_request() {
    let mut head = head(200);
    let id = HeaderValue::from_static("abc");
    head.headers.insert("x-debug-trace-id", id);
    let body = Bytes::from(reply(&said("a"), "COMPLETE").to_string());
    let decoded = provider(Reject).decode(&head, body, None);
    assert_eq!(decoded.request_id.as_deref(), Some("abc"));
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
        let body = hello(json!({*key: value}));
        match (rule, sent(Drop, CHAT, &body)) {
            (Rule::Harmless | Rule::Unsupported, Ok((sent, warnings))) => {
                assert_eq!(warnings, [*key]);
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
    fn no_request_and_no_answer_panics_and_nothing_is_sent_that_cohere_does_not_know(
        key in prop::sample::select(RULES.map(|(key, _)| key).to_vec()),
        value in crate::domain::json::tests::texts(),
        message in crate::domain::json::tests::texts(),
        status in prop::sample::select(vec![200_u16, 400, 404, 429]),
    ) {
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
        let odd = json!({key: json(&value), json(&message).to_string(): 1});
        let calls = json!({"messages": [{"role": "user", "content": json(&value)},
            {"role": "assistant", "tool_calls": json(&message)}]});
        for body in [hello(odd), calls] {
            if let Ok((sent, _)) = sent(Drop, CHAT, &body) {
                let members = sent.as_object().expect("an object");
                for key in members.keys() {
                    prop_assert!(MEMBERS.contains(&key.as_str()), "{}", key);
                }
            }
        }
        for said in [json(&value), reply(&json(&message), "COMPLETE")] {
            let _ = result_of(status, &said);
            let _ = decoded(EMBEDDINGS, status, &json!({"embeddings": {"float": said}}));
        }
    }
}

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::upstream::provider::stream::{Assembly, Gathered, testing};

fn fold(body: Bytes) -> Gathered {
    let mut assembly = Assembly::new(Box::new(Chunks::new(false)));
    assembly.feed(body);
    assembly.finish()
}

fn fold_of(events: &[&str]) -> Gathered {
    let events = events.iter();
    let body: String = events.map(|event| format!("data: {event}\n\n")).collect();
    fold(Bytes::from(body))
}

fn folded(events: &[&str]) -> Option<Value> {
    match fold_of(events) {
        Gathered::Answer(answer) => Some(serde_json::from_slice(&answer).expect("is JSON")),
        _ => None,
    }
}

/// The message of an answer that came in these deltas.
fn message_of(deltas: &[Value]) -> Option<Value> {
    let choice = |delta: &Value| json!({"choices": [{"index": 0, "delta": delta}]}).to_string();
    let mut events: Vec<String> = deltas.iter().map(choice).collect();
    events.push(r#"{"choices":[{"index":0,"finish_reason":"stop"}]}"#.to_owned());
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    Some(folded(&events)?["choices"][0]["message"].take())
}

#[test]
fn the_chunks_of_a_chat_become_its_answer() {
    let answer = folded(&[
        r#"{"id":"c-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[
            {"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#
            .replace('\n', "")
            .as_str(),
        r#"{"id":"c-1","choices":[{"index":0,"delta":{"content":"Good "},"logprobs":{"content":[{"token":"Good "}]}}]}"#,
        r#"{"id":"c-1","choices":[{"index":1,"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#,
        r#"{"id":"c-1","choices":[{"index":0,"delta":{"content":"night"},"logprobs":{"content":[{"token":"night"}]}}]}"#,
        r#"{"id":"c-1","choices":[{"index":0,"delta":{},"finish_reason":"length"}],"usage":null}"#,
        r#"{"id":"c-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
        "[DONE]",
    ]);
    assert_eq!(
        answer,
        Some(json!({
            "id": "c-1", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [
                {
                    "index": 0, "finish_reason": "length",
                    "logprobs": {"content": [{"token": "Good "}, {"token": "night"}]},
                    "message": {"role": "assistant", "content": "Good night"},
                },
                {
                    "index": 1, "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "Hi"},
                },
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        }))
    );
}

#[test]
fn the_pieces_of_tool_calls_come_together() {
    let answer = folded(&[
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"b","type":"function","function":{"name":"g","arguments":"{}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
    ])
    .expect("is whole");
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], Value::Null);
    assert_eq!(
        message["tool_calls"],
        json!([
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ])
    );
}

#[test]
fn a_completion_and_a_response_are_put_together_too() {
    let answer = folded(&[
        r#"{"object":"text_completion","choices":[{"index":0,"text":"Good ","finish_reason":null}]}"#,
        r#"{"object":"text_completion","choices":[{"index":0,"text":"night","finish_reason":"stop"}]}"#,
    ])
    .expect("is whole");
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], "Good night");
    let answer = folded(&[
        r#"{"type":"response.created","response":{"id":"r-1","status":"in_progress"}}"#,
        r#"{"type":"response.output_text.delta","delta":"Good"}"#,
        r#"{"type":"response.completed","response":{"id":"r-1","status":"completed"}}"#,
    ]);
    assert_eq!(answer, Some(json!({"id": "r-1", "status": "completed"})));
}

#[test]
fn what_is_not_whole_is_no_answer() {
    let begun = r#"{"choices":[{"index":0,"delta":{"content":"Good"},"finish_reason":null}]}"#;
    let ended = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let unsaid = r#"{"choices":[{"index":0,"delta":{},"finish_reason":""}]}"#;
    let response = r#"{"type":"response.created","response":{"id":"r-1"}}"#;
    assert!(folded(&[begun, ended]).is_some());
    for events in [
        &[begun][..],
        &[begun, "[DONE]"],
        &[begun, unsaid],
        &[begun, "{", ended],
        &["[1]"],
        &[r#"{"choices":[1]}"#],
        &[r#"{"choices":1}"#],
        &[response],
    ] {
        assert_eq!(fold_of(events), Gathered::Incomplete, "{events:?}");
    }
    assert!(folded(&[begun, ended, unsaid]).is_some());
}

#[test]
fn no_event_is_nothing_and_an_error_is_an_error_wherever_it_comes() {
    assert_eq!(fold_of(&[]), Gathered::Empty);
    assert_eq!(fold_of(&["[DONE]"]), Gathered::Empty);
    assert_eq!(fold(Bytes::from_static(b": wait\n\n")), Gathered::Empty);
    let begun = r#"{"choices":[{"index":0,"delta":{"content":"Good"},"finish_reason":null}]}"#;
    let error = r#"{"error":{"message":"overloaded"}}"#;
    let failed =
        r#"{"type":"response.failed","response":{"output":[{}],"error":{"message":"overloaded"}}}"#;
    for events in [&[error][..], &[begun, error], &[failed]] {
        let expected = Gathered::Error {
            status: None,
            body: Bytes::from_static(error.as_bytes()),
        };
        assert_eq!(fold_of(events), expected, "{events:?}");
    }
    let told = r#"{"message":"overloaded","type":"error"}"#;
    let Gathered::Error { body: error, .. } = fold_of(&[told]) else {
        panic!("is an error");
    };
    let error: Value = serde_json::from_slice(&error).expect("is JSON");
    assert_eq!(error["error"]["message"], "overloaded");
}

#[test]
fn an_empty_text_takes_nothing_away() {
    let call = |id: &str, name: &str, arguments: &str| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"tool_calls": [{"index": 0, "id": id, "function": function}]})
    };
    let message = message_of(&[call("a", "f", "{"), call("", "", "}")]).expect("is whole");
    assert_eq!(
        message["tool_calls"],
        json!([{"id": "a", "function": {"name": "f", "arguments": "{}"}}])
    );
}

#[test]
fn tool_calls_with_the_same_index_are_told_apart_by_their_ids() {
    let call = |id: Option<&str>, arguments: &str| {
        let function = json!({"arguments": arguments});
        json!({"tool_calls": [{"index": 0, "id": id, "function": function}]})
    };
    let deltas = [
        call(Some("a"), "{"),
        call(None, "}"),
        call(Some("b"), "["),
        call(None, "]"),
        call(Some("a"), " "),
    ];
    let message = message_of(&deltas).expect("is whole");
    assert_eq!(
        message["tool_calls"],
        json!([
            {"id": "a", "function": {"arguments": "{} "}},
            {"id": "b", "function": {"arguments": "[]"}},
        ])
    );
}

#[test]
fn tool_calls_without_an_index_are_told_apart_by_their_ids() {
    let call = |id: Value, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = |calls: &[Value]| json!({"tool_calls": calls});
    let pieces = [
        calls(&[call("a".into(), "f", "{")]),
        calls(&[call(Value::Null, "", "}")]),
        calls(&[call("b".into(), "g", ""), call("c".into(), "h", "[]")]),
        calls(&[call("b".into(), "", "[")]),
        calls(&[json!({"index": 1, "function": {"arguments": "]"}})]),
    ];
    let message = message_of(&pieces).expect("is whole");
    let expected = [
        call("a".into(), "f", "{}"),
        call("b".into(), "g", "[]"),
        call("c".into(), "h", "[]"),
    ];
    assert_eq!(message["tool_calls"], json!(expected));
    // Servers that give no ids send each call whole.
    let whole = [
        call("".into(), "f", "{}"),
        call("".into(), "g", "[]"),
        call("".into(), "g", "[]"),
    ];
    let pieces = [calls(&whole[..2]), calls(&whole[2..])];
    let message = message_of(&pieces).expect("is whole");
    assert_eq!(message["tool_calls"], json!(whole));
}

#[test]
fn a_message_beside_a_delta_is_no_piece_and_a_message_alone_is_the_whole_so_far() {
    let event = |choice: Value| json!({"choices": [choice]}).to_string();
    let said = |text: &str| json!({"role": "assistant", "content": text});
    let repeated =
        |piece: &str, all: &str| event(json!({"delta": said(piece), "message": said(all)}));
    let end = |choice: Value| {
        let mut choice = choice;
        choice["finish_reason"] = "stop".into();
        event(choice)
    };
    for events in [
        [
            repeated("Good ", "Good "),
            repeated("night", "Good night"),
            end(json!({"delta": said(""), "message": said("Good night")})),
        ],
        [
            repeated("Good ", "Good "),
            repeated("night", "Good night"),
            end(json!({"delta": {}, "message": said("Good night")})),
        ],
        [
            event(json!({"message": said("Good ")})),
            event(json!({"message": said("Good night")})),
            end(json!({"message": said("")})),
        ],
    ] {
        let events = events.each_ref().map(String::as_str);
        let answer = folded(&events).expect("is whole");
        assert_eq!(answer["choices"][0]["message"], said("Good night"));
    }
}

#[test]
fn there_are_no_more_choices_than_a_request_asks_for_and_each_is_held() {
    let choice = |index: u64| {
        Tree::read(&format!(r#"{{"choices":[{{"index":{index}}}]}}"#)).map(Tree::into_owned)
    };
    let mut chunks = Chunks::new(true);
    let mut add = |index| chunks.add(choice(index).expect("is JSON"));
    let Added::Part { held, .. } = add(999) else {
        panic!("is a piece");
    };
    assert!(held >= size_of::<Choice>());
    assert_eq!(add(1_000), Added::Unfit);
}

#[test]
fn sound_and_thoughts_come_in_pieces_and_kinds_do_not_mix() {
    let deltas = [
        json!({"audio": {"id": "a", "data": "QU", "transcript": "Good "}, "thinking": "Hm"}),
        json!({"audio": {"data": "JD", "transcript": "night"}, "thinking": "."}),
    ];
    let message = message_of(&deltas).expect("is whole");
    let audio = json!({"id": "a", "data": "QUJD", "transcript": "Good night"});
    assert_eq!(message["audio"], audio);
    assert_eq!(message["thinking"], "Hm.");
    let (text, list) = (
        json!({"content": "Good"}),
        json!({"content": [{"text": "x"}]}),
    );
    assert_eq!(message_of(&[text, list]), None);
}

#[test]
fn what_each_chunk_repeats_stands_once() {
    let answer = folded(&[
        r#"{"citations":["one"],"choices":[{"index":0,"delta":{"content":"Good"}}]}"#,
        r#"{"citations":["one"],"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    ]);
    assert_eq!(answer.expect("is whole")["citations"], json!(["one"]));
}

#[test]
fn long_lists_take_no_longer_than_they_are() {
    let many = vec![json!({"token": "x"}); 200_000];
    let choices = [json!({"index": 0, "logprobs": {"content": []}, "finish_reason": "stop"})];
    let begun = json!({"choices": choices}).to_string();
    let choices = [json!({"index": 0, "logprobs": {"content": many}})];
    let ended = json!({"choices": choices}).to_string();
    let answer = folded(&[begun.as_str(), ended.as_str()]).expect("is whole");
    let logprobs = &answer["choices"][0]["logprobs"]["content"];
    assert_eq!(logprobs.as_array().map(Vec::len), Some(200_000));
    let many: Vec<Value> = (0..2_000).map(|index| json!({"index": index})).collect();
    let calls = [json!({"tool_calls": []}), json!({"tool_calls": many})];
    assert_eq!(
        message_of(&calls),
        None,
        "more tool calls than there can be"
    );
}

fn asked() -> Box<dyn Fold> {
    Box::new(Chunks::new(true))
}

fn stream_of(events: &[Value]) -> String {
    let events = events.iter();
    let events: String = events.map(|data| format!("data: {data}\n\n")).collect();
    events + "data: [DONE]\n\n"
}

/// A chunk of a chat, with what each chunk repeats.
fn chunk(choices: Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m",
        "service_tier": "default", "system_fingerprint": "fp", "choices": choices,
        "usage": null, "obfuscation": "xyz"})
}

fn piece(index: u64, delta: Value, reason: Option<&str>) -> Value {
    let choice = json!({"index": index, "delta": delta, "logprobs": null,
        "finish_reason": reason});
    chunk(json!([choice]))
}

fn usage() -> Value {
    let mut chunk = chunk(json!([]));
    chunk["usage"] = json!({"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12,
        "completion_tokens_details": {"reasoning_tokens": 2}});
    chunk
}

fn plain(choices: Value) -> Value {
    json!({"id": "c", "object": "chat.completion", "created": 7, "model": "m",
        "service_tier": "default", "system_fingerprint": "fp", "choices": choices,
        "usage": usage()["usage"]})
}

#[test]
fn row_22_a_chat_is_what_a_plain_answer_would_have_been_wherever_its_bytes_are_cut() {
    let logprob = |token: &str| {
        json!({"content": [{"token": token, "logprob": -0.000_001,
        "bytes": null, "top_logprobs": []}], "refusal": null})
    };
    let said = |text: &str| {
        let mut piece = piece(0, json!({"content": text}), None);
        piece["choices"][0]["logprobs"] = logprob(text);
        piece
    };
    let role = json!({"role": "assistant", "content": "", "refusal": null});
    let call = |index: u64, more: Value| {
        let mut call = json!({"index": index});
        call.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        json!({"tool_calls": [call]})
    };
    let named = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}});
    let arguments = |text: &str| json!({"function": {"arguments": text}});
    let stream = stream_of(&[
        piece(0, role.clone(), None),
        piece(1, role.clone(), None),
        piece(2, json!({"role": "assistant", "content": null}), None),
        said("Gö"),
        piece(1, call(0, named("a", "f")), None),
        piece(2, json!({"refusal": "I c"}), None),
        said("od \u{1f319}"),
        piece(1, call(0, arguments("{\"x\":")), None),
        piece(1, call(1, named("b", "g")), None),
        piece(1, call(0, arguments("1}")), None),
        piece(1, call(1, arguments("{}")), None),
        piece(2, json!({"refusal": "annot"}), None),
        piece(
            0,
            json!({"reasoning_content": "Hm", "x_thoughts": "1"}),
            None,
        ),
        piece(
            0,
            json!({"reasoning_content": "hm", "x_thoughts": "2", "x_more": [1]}),
            None,
        ),
        piece(0, json!({}), Some("stop")),
        piece(1, json!({}), Some("tool_calls")),
        piece(2, json!({}), Some("content_filter")),
        usage(),
    ]);
    let tokens = [logprob("Gö"), logprob("od \u{1f319}")].map(|one| one["content"][0].clone());
    let expected = plain(json!([
        {"index": 0, "finish_reason": "stop",
            "logprobs": {"content": tokens, "refusal": null},
            "message": {"role": "assistant", "content": "Göod \u{1f319}", "refusal": null,
                "reasoning_content": "Hmhm", "x_thoughts": "12", "x_more": [1]}},
        {"index": 1, "finish_reason": "tool_calls", "logprobs": null,
            "message": {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                {"id": "a", "type": "function",
                    "function": {"name": "f", "arguments": "{\"x\":1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]}},
        {"index": 2, "finish_reason": "content_filter", "logprobs": null,
            "message": {"role": "assistant", "content": null, "refusal": "I cannot"}},
    ]));
    assert_eq!(
        testing::answer(asked, &stream, "data: {\"choices\":[],"),
        expected
    );
}

#[test]
fn a_surrogate_pair_in_two_pieces_is_one_character_and_numbers_stay_as_they_are_written() {
    let stream = concat!(
        r#"data: {"choices":[{"index":0,"delta":{"content":"\ud83c"}}],"x":1.50e+2}"#,
        "\n\n",
        r#"data: {"choices":[{"index":0,"delta":{"content":"\udf19"},"finish_reason":"stop"}]}"#,
        "\n\ndata: [DONE]\n\n",
    );
    let Gathered::Answer(answer) = testing::gathered(asked, stream) else {
        panic!("is whole");
    };
    let text = std::str::from_utf8(&answer).expect("text");
    assert!(
        text.contains(r#""\ud83c\udf19""#) && text.contains("1.50e+2"),
        "{text}"
    );
}

#[test]
fn row_22_a_completion_and_a_response_are_plain_wherever_their_bytes_are_cut() {
    let completion = |text: &str, at: u64, reason: Option<&str>| {
        json!({"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": text,
            "logprobs": {"tokens": [text], "text_offset": [at]}, "finish_reason": reason}]})
    };
    let stream = stream_of(&[
        completion("Good ", 0, None),
        completion("night", 5, Some("stop")),
    ]);
    let expected = json!({"id": "c", "object": "text_completion", "choices": [{"index": 0,
        "text": "Good night", "finish_reason": "stop",
        "logprobs": {"tokens": ["Good ", "night"], "text_offset": [0, 5]}}]});
    assert_eq!(testing::answer(asked, &stream, "data: [DONE"), expected);
    for status in ["completed", "incomplete"] {
        let response = json!({"id": "r", "status": status, "output": [{"type": "message"}]});
        let stream = stream_of(&[
            json!({"type": "response.created", "response": {"id": "r", "output": []}}),
            json!({"type": "response.output_text.delta", "delta": "Good"}),
            json!({"type": format!("response.{status}"), "response": response}),
        ]);
        assert_eq!(
            testing::answer(asked, &stream, "data: {\"response\":"),
            response
        );
    }
}

#[test]
fn without_its_mark_a_stream_that_was_asked_for_is_not_whole() {
    let begun = piece(0, json!({"content": "Good"}), Some("stop")).to_string();
    let stream = format!("data: {begun}\n\n");
    assert_eq!(testing::gathered(asked, &stream), Gathered::Incomplete);
}

#[test]
fn an_error_of_a_stream_says_its_status_where_it_can() {
    for (error, expected) in [
        (json!({"error": {"code": 502, "message": "no"}}), Some(502)),
        (
            json!({"error": {"code": "429", "message": "no"}}),
            Some(429),
        ),
        (json!({"error": {"type": "overloaded_error"}}), Some(503)),
        (
            json!({"type": "error", "code": "server_error", "message": "no"}),
            Some(500),
        ),
        (json!({"error": {"code": 7, "message": "no"}}), None),
        (
            json!({"type": "response.failed",
                "response": {"error": {"code": "rate_limit_exceeded"}}}),
            Some(429),
        ),
    ] {
        let begun = piece(0, json!({"content": "Good"}), None);
        match testing::gathered(asked, &stream_of(&[begun, error.clone()])) {
            Gathered::Error { status, .. } => assert_eq!(status, expected, "{error}"),
            other => panic!("no error: {other:?}"),
        }
    }
}

//! Puts the events of a streamed answer together into one answer.
//!
//! No request asks for a stream, but some servers and gateways always stream. The answer was
//! computed, so it is not thrown away. A stream that breaks off, or is of another kind, is no
//! answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::mem::discriminant;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use serde_json::{Map, Value, json};
use sse_stream::SseByteStream;

/// The keys whose texts are streamed in pieces. All other texts come whole.
const STREAMED_KEYS: [&str; 11] = [
    "arguments",
    "content",
    "data",
    "reasoning",
    "reasoning_content",
    "reasoning_text",
    "refusal",
    "summary",
    "text",
    "thinking",
    "transcript",
];
/// How many items a list may have at most, such as tool calls. For each piece the list is searched.
const ITEMS_MAX: usize = 1_000;
/// The events that end a stream of the Responses API with an answer.
const LAST_EVENTS: [&str; 2] = ["response.completed", "response.incomplete"];
/// The events that end a stream without an answer.
const ERROR_EVENTS: [&str; 2] = ["error", "response.failed"];

/// What the events of a stream make together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Folded {
    /// The answer, as if it had not been streamed.
    Answer(Bytes),
    /// The error that the server sent in place of an answer, as if it had not been streamed.
    Error(Bytes),
    /// There are no events.
    Empty,
    /// The events are not a whole answer.
    Incomplete,
}

/// Puts the events of a stream together.
pub(super) fn fold(body: &Bytes) -> Folded {
    folded(body).unwrap_or(Folded::Incomplete)
}

/// `None`: the events are not a whole answer.
fn folded(body: &Bytes) -> Option<Folded> {
    // The last event may lack the blank line behind it.
    let pieces = [body.clone(), Bytes::from_static(b"\n\n")].map(Ok::<_, Infallible>);
    let mut events = SseByteStream::new(stream::iter(pieces));
    let (mut answer, mut is_empty) = (Answer::default(), true);
    // All bytes are there, so no event has to be waited for.
    while let Some(event) = events.next().now_or_never()? {
        let Some(data) = event.ok()?.data else {
            continue;
        };
        if data == "[DONE]" {
            break;
        }
        is_empty = false;
        let event: Map<String, Value> = serde_json::from_str(&data).ok()?;
        let kind = event
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if LAST_EVENTS.contains(&kind) {
            return written(event.get("response")?);
        }
        let error = event.get("error").filter(|error| !error.is_null());
        if error.is_some() || ERROR_EVENTS.contains(&kind) {
            let of_response = event.get("response").and_then(|one| one.get("error"));
            let of_response = of_response.filter(|error| !error.is_null());
            let error = error.or(of_response).cloned();
            let error = json!({"error": error.unwrap_or(Value::Object(event))});
            return Some(Folded::Error(Bytes::from(error.to_string())));
        }
        if !kind.starts_with("response.") {
            answer.add(event)?;
        }
    }
    if is_empty {
        return Some(Folded::Empty);
    }
    written(&answer.whole()?)
}

fn written(answer: &Value) -> Option<Folded> {
    let is_answer = answer.is_object();
    is_answer.then(|| Folded::Answer(Bytes::from(answer.to_string())))
}

/// An answer to a chat or a completion, put together from the chunks so far.
#[derive(Default)]
struct Answer {
    top: Map<String, Value>,
    choices: BTreeMap<u64, Map<String, Value>>,
}

impl Answer {
    /// Adds a chunk. `None` if it is no chunk of such an answer.
    fn add(&mut self, mut chunk: Map<String, Value>) -> Option<()> {
        // The last chunk, which has the usage, may have no choices.
        let choices = chunk.remove("choices").unwrap_or_default();
        let choices = match choices {
            Value::Array(choices) => choices,
            Value::Null => Vec::new(),
            _ => return None,
        };
        for choice in choices {
            let Value::Object(mut choice) = choice else {
                return None;
            };
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
            if let Some(delta) = choice.remove("delta") {
                choice.insert("message".to_owned(), delta);
            }
            merge(self.choices.entry(index).or_default(), choice)?;
        }
        update(&mut self.top, chunk);
        Some(())
    }

    /// The whole answer. `None` if a choice has not ended, or there is no choice.
    fn whole(mut self) -> Option<Value> {
        let mut is_chat = false;
        let mut choices = Vec::new();
        for (_, mut choice) in self.choices {
            choice
                .get("finish_reason")
                .filter(|reason| !is_unsaid(reason))?;
            if let Some(Value::Object(message)) = choice.get_mut("message") {
                is_chat = true;
                message.entry("role").or_insert_with(|| "assistant".into());
                message.entry("content").or_insert(Value::Null);
                let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
                for call in calls.into_iter().flatten() {
                    // The index only said to which call a piece belongs.
                    call.as_object_mut()?.remove("index");
                }
            }
            choices.push(Value::Object(choice));
        }
        if choices.is_empty() {
            return None;
        }
        let object = if is_chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        self.top.insert("object".to_owned(), object.into());
        self.top.insert("choices".to_owned(), choices.into());
        Some(Value::Object(self.top))
    }
}

/// Whether a value says nothing. Servers send null or an empty text for what they leave out or have
/// sent before.
fn is_unsaid(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

/// Adds what a chunk says of the whole answer. Such values never come in pieces.
fn update(whole: &mut Map<String, Value>, chunk: Map<String, Value>) {
    for (key, value) in chunk {
        match (whole.get_mut(&key), value) {
            (Some(_), value) if is_unsaid(&value) => {}
            // The usage may come in two parts.
            (Some(Value::Object(whole)), Value::Object(value)) => update(whole, value),
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
}

/// Adds what a chunk says to what earlier chunks said. `None` if the two do not go together.
fn merge(whole: &mut Map<String, Value>, piece: Map<String, Value>) -> Option<()> {
    for (key, piece) in piece {
        match (whole.get_mut(&key), piece) {
            (None, piece) => {
                whole.insert(key, piece);
            }
            (Some(_), piece) if is_unsaid(&piece) => {}
            (Some(whole), piece) if is_unsaid(whole) => *whole = piece,
            (Some(Value::String(whole)), Value::String(piece))
                if STREAMED_KEYS.contains(&key.as_str()) =>
            {
                whole.push_str(&piece);
            }
            (Some(Value::Object(whole)), Value::Object(piece)) => merge(whole, piece)?,
            (Some(Value::Array(whole)), Value::Array(pieces)) => {
                for piece in pieces {
                    merge_item(whole, piece)?;
                }
            }
            (Some(whole), piece) if discriminant(whole) == discriminant(&piece) => *whole = piece,
            // For example a text, and then a list of texts: neither alone is the answer.
            _ => return None,
        }
    }
    Some(())
}

fn id(item: &Value) -> Option<&Value> {
    item.get("id").filter(|id| !is_unsaid(id))
}

/// Adds an item to a list. An item with the index of another one is a piece of that one, unless the
/// two have different ids: some servers give all tool calls the same index.
fn merge_item(whole: &mut Vec<Value>, piece: Value) -> Option<()> {
    let Some(index) = piece.get("index").and_then(Value::as_u64) else {
        whole.push(piece);
        return Some(());
    };
    if whole.len() > ITEMS_MAX {
        return None;
    }
    let same = |item: &&mut Value| {
        item.get("index").and_then(Value::as_u64) == Some(index)
            && id(item)
                .zip(id(&piece))
                .is_none_or(|(one, other)| one == other)
    };
    match (whole.iter_mut().rfind(same), piece) {
        (Some(Value::Object(item)), Value::Object(piece)) => merge(item, piece),
        (_, piece) => {
            whole.push(piece);
            Some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold_of(events: &[&str]) -> Folded {
        let body: String = events
            .iter()
            .map(|event| format!("data: {event}\n\n"))
            .collect();
        fold(&Bytes::from(body))
    }

    fn folded(events: &[&str]) -> Option<Value> {
        match fold_of(events) {
            Folded::Answer(answer) => Some(serde_json::from_slice(&answer).expect("is JSON")),
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
            assert_eq!(fold_of(events), Folded::Incomplete, "{events:?}");
        }
        assert!(folded(&[begun, ended, unsaid]).is_some());
    }

    #[test]
    fn no_event_is_nothing_and_an_error_is_an_error_wherever_it_comes() {
        assert_eq!(fold_of(&[]), Folded::Empty);
        assert_eq!(fold_of(&["[DONE]"]), Folded::Empty);
        assert_eq!(fold(&Bytes::from_static(b": wait\n\n")), Folded::Empty);
        let begun = r#"{"choices":[{"index":0,"delta":{"content":"Good"},"finish_reason":null}]}"#;
        let error = r#"{"error":{"message":"overloaded"}}"#;
        let failed = r#"{"type":"response.failed","response":{"output":[{}],"error":{"message":"overloaded"}}}"#;
        for events in [&[error][..], &[begun, error], &[failed]] {
            let expected = Folded::Error(Bytes::from_static(error.as_bytes()));
            assert_eq!(fold_of(events), expected, "{events:?}");
        }
        let told = r#"{"message":"overloaded","type":"error"}"#;
        let Folded::Error(error) = fold_of(&[told]) else {
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
}

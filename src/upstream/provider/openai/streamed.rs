//! An answer that was streamed though nobody asked for that, as one.
//!
//! Some servers and gateways stream whatever is asked for. The answer was computed, so its events
//! are put together into the answer that they are the pieces of. A stream that is not whole, or of
//! another kind, is no answer.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use serde_json::{Map, Value};
use sse_stream::SseByteStream;

/// Texts that come in pieces. All others come whole.
const IN_PIECES: [&str; 6] = [
    "arguments",
    "content",
    "reasoning",
    "reasoning_content",
    "refusal",
    "text",
];
/// What ends a response of the Responses API, well or not.
const LAST_EVENTS: [&str; 3] = [
    "response.completed",
    "response.incomplete",
    "response.failed",
];

/// The answer that the events are the pieces of. `None` if they are none, or not all of them.
pub(super) fn fold(body: &Bytes) -> Option<Bytes> {
    // The last event may lack the blank line behind it.
    let pieces = [body.clone(), Bytes::from_static(b"\n\n")].map(Ok::<_, Infallible>);
    let mut events = SseByteStream::new(stream::iter(pieces));
    let mut answer = Answer::default();
    // All bytes are there, so an event is never waited for.
    while let Some(event) = events.next().now_or_never()? {
        let Some(data) = event.ok()?.data else {
            continue;
        };
        if data == "[DONE]" {
            break;
        }
        let event: Map<String, Value> = serde_json::from_str(&data).ok()?;
        let kind = event
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if LAST_EVENTS.contains(&kind) {
            return written(event.get("response")?);
        }
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return None;
        }
        if !kind.starts_with("response.") {
            answer.add(event)?;
        }
    }
    written(&answer.whole()?)
}

fn written(answer: &Value) -> Option<Bytes> {
    let is_answer = answer.is_object();
    is_answer.then(|| Bytes::from(answer.to_string()))
}

/// An answer to a chat or a completion, as far as its chunks have come.
#[derive(Default)]
struct Answer {
    top: Map<String, Value>,
    choices: BTreeMap<u64, Map<String, Value>>,
}

impl Answer {
    /// Takes in a chunk.
    fn add(&mut self, mut chunk: Map<String, Value>) -> Option<()> {
        // The last chunk, with the usage, may have none.
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
            merge(self.choices.entry(index).or_default(), choice);
        }
        merge(&mut self.top, chunk);
        Some(())
    }

    /// `None` if a choice has not ended, or there is none.
    fn whole(mut self) -> Option<Value> {
        let mut is_chat = false;
        let mut choices = Vec::new();
        for (_, mut choice) in self.choices {
            choice
                .get("finish_reason")
                .filter(|reason| !reason.is_null())?;
            if let Some(Value::Object(message)) = choice.get_mut("message") {
                is_chat = true;
                message.entry("role").or_insert_with(|| "assistant".into());
                message.entry("content").or_insert(Value::Null);
                let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
                for call in calls.into_iter().flatten() {
                    // It only told which call a piece was of.
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

/// Puts what a chunk says behind what was said before.
fn merge(whole: &mut Map<String, Value>, piece: Map<String, Value>) {
    for (key, piece) in piece {
        match (whole.get_mut(&key), piece) {
            (None, piece) => {
                whole.insert(key, piece);
            }
            (Some(_), Value::Null) => {}
            (Some(Value::String(whole)), Value::String(piece))
                if IN_PIECES.contains(&key.as_str()) =>
            {
                whole.push_str(&piece);
            }
            (Some(Value::Object(whole)), Value::Object(piece)) => merge(whole, piece),
            (Some(Value::Array(whole)), Value::Array(pieces)) => {
                for piece in pieces {
                    merge_item(whole, piece);
                }
            }
            (Some(whole), piece) => *whole = piece,
        }
    }
}

/// An item that has the index of another is a piece of that one.
fn merge_item(whole: &mut Vec<Value>, piece: Value) {
    let index = piece.get("index").filter(|index| index.is_number());
    let same = |item: &&mut Value| index.is_some() && item.get("index") == index;
    match (whole.iter_mut().find(same), piece) {
        (Some(Value::Object(item)), Value::Object(piece)) => merge(item, piece),
        (_, piece) => whole.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folded(events: &[&str]) -> Option<Value> {
        let body: String = events
            .iter()
            .map(|event| format!("data: {event}\n\n"))
            .collect();
        let answer = fold(&Bytes::from(body))?;
        Some(serde_json::from_slice(&answer).expect("is JSON"))
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
        let error = r#"{"error":{"message":"overloaded"}}"#;
        let response = r#"{"type":"response.created","response":{"id":"r-1"}}"#;
        assert!(folded(&[begun, ended]).is_some());
        for events in [
            &[][..],
            &[begun],
            &["[DONE]"],
            &[begun, "[DONE]"],
            &[begun, error],
            &[begun, "{", ended],
            &["[1]"],
            &[r#"{"choices":[1]}"#],
            &[r#"{"choices":1}"#],
            &[response],
        ] {
            assert_eq!(folded(events), None, "{events:?}");
        }
    }
}

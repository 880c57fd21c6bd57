//! The events of a streamed message, put together into the message.

use std::borrow::Cow;

use crate::upstream::provider::stream::{Added, Fold};
use crate::upstream::provider::tree::{Member, Tree};

/// A message has no more blocks than this: what is beyond is a mistake.
const BLOCKS_MAX: u64 = 10_000;

/// A message so far.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// `None`: it has not begun.
    message: Option<Tree<'static>>,
    blocks: Vec<Block>,
}

/// A block of a message's content.
#[derive(Debug)]
struct Block {
    block: Tree<'static>,
    /// The texts that come in pieces, as JSON writes them: by the key that they are of.
    texts: Vec<(&'static str, String)>,
    /// The input of a tool: JSON, in pieces.
    input: String,
    citations: Vec<Tree<'static>>,
}

impl Message {
    fn part(&mut self, kind: &str, event: &Tree<'_>) -> Option<Added> {
        let index = || {
            let index = event.get("index").and_then(Tree::whole);
            index.filter(|index| *index < BLOCKS_MAX)
        };
        match kind {
            "message_start" => {
                let message = event.get("message")?.clone().into_owned();
                let held = message.weight();
                self.message = Some(message);
                Some(part(held, false))
            }
            "content_block_start" => {
                // Blocks come one behind the other.
                if index()? != self.blocks.len() as u64 {
                    return None;
                }
                let block = event.get("content_block")?.clone().into_owned();
                let held = block.weight();
                self.blocks.push(Block::new(block));
                Some(part(held, false))
            }
            "content_block_delta" => {
                let block = self.blocks.get_mut(usize::try_from(index()?).ok()?)?;
                block.add(event.get("delta")?)
            }
            "message_delta" => {
                let Tree::Object(message) = self.message.as_mut()? else {
                    return None;
                };
                let delta = event.get("delta").and_then(Tree::members);
                update(message, delta.unwrap_or_default());
                let own = message.iter_mut().find(|(key, _)| key == "usage");
                let told = event.get("usage").and_then(Tree::members);
                if let (Some((_, Tree::Object(own))), Some(told)) = (own, told) {
                    // Some servers write null for what they have said at the beginning.
                    let told = told.iter().filter(|(_, count)| !count.is_null());
                    update(own, told);
                }
                Some(part(event.weight(), false))
            }
            "message_stop" => self.message.is_some().then_some(Added::Last),
            // Pings, the ends of blocks, and what later versions have.
            _ => Some(Added::NOTHING),
        }
    }
}

fn part(held: usize, is_content: bool) -> Added {
    Added::Part { held, is_content }
}

/// Sets members, null among them.
fn update<'m, 'a: 'm>(
    own: &mut Vec<Member<'static>>,
    told: impl IntoIterator<Item = &'m Member<'a>>,
) {
    for (key, value) in told {
        let value = value.clone().into_owned();
        match own.iter_mut().find(|(known, _)| known == key) {
            Some((_, own)) => *own = value,
            None => own.push((Cow::Owned(key.clone().into_owned()), value)),
        }
    }
}

impl Block {
    fn new(block: Tree<'static>) -> Self {
        Self {
            block,
            texts: Vec::new(),
            input: String::new(),
            citations: Vec::new(),
        }
    }

    /// Adds a piece. `None` if it is no piece of such a block.
    fn add(&mut self, delta: &Tree<'_>) -> Option<Added> {
        let kind = delta.get("type").and_then(Tree::text)?;
        let key = match &*kind {
            "text_delta" => "text",
            "thinking_delta" => "thinking",
            "signature_delta" => "signature",
            "input_json_delta" => {
                let piece = delta.get("partial_json")?.text()?;
                self.input.push_str(&piece);
                return Some(part(piece.len(), true));
            }
            "citations_delta" => {
                let citation = delta.get("citation")?.clone().into_owned();
                let held = citation.weight();
                self.citations.push(citation);
                return Some(part(held, false));
            }
            _ => return Some(Added::NOTHING),
        };
        let Tree::Plain(piece) = delta.get(key)? else {
            return None;
        };
        let inner = piece.strip_prefix('"')?.strip_suffix('"')?;
        match self.texts.iter_mut().find(|(known, _)| *known == key) {
            Some((_, text)) => text.push_str(inner),
            None => self.texts.push((key, inner.to_owned())),
        }
        Some(part(inner.len(), true))
    }

    fn whole(self) -> Tree<'static> {
        let mut block = self.block;
        for (key, text) in self.texts {
            let begun = match block.get(key) {
                Some(begun) if begun.is_string() => begun.written(),
                _ => "\"\"".to_owned(),
            };
            let begun = begun.strip_suffix('"').unwrap_or_default();
            block.set(key, Tree::Plain(Cow::Owned(format!("{begun}{text}\""))));
        }
        if !self.citations.is_empty() {
            block.set("citations", Tree::List(self.citations));
        }
        // An input that the end of the answer has cut off is none.
        if Tree::read(&self.input).is_some() {
            block.set("input", Tree::Plain(Cow::Owned(self.input)));
        }
        block
    }
}

impl Fold for Message {
    fn add(&mut self, event: Tree<'_>) -> Added {
        let kind = event.get("type").and_then(Tree::text).unwrap_or_default();
        if kind == "error" {
            let error = event
                .get("error")
                .and_then(|error| error.get("type")?.text());
            return Added::Error {
                status: Some(status(error.as_deref().unwrap_or_default())),
                body: event.written(),
            };
        }
        self.part(&kind, &event).unwrap_or(Added::Unfit)
    }

    fn whole(&mut self, is_done: bool) -> Option<String> {
        let mut message = self.message.take().filter(|_| is_done)?;
        let blocks = std::mem::take(&mut self.blocks);
        let blocks = blocks.into_iter().map(Block::whole).collect();
        message.set("content", Tree::List(blocks));
        Some(message.written())
    }
}

/// The status that an error of this type has in place of a stream.
fn status(kind: &str) -> u16 {
    match kind {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "conflict_error" => 409,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::upstream::provider::stream::{Gathered, testing};

    fn message() -> Box<dyn Fold> {
        Box::new(Message::default())
    }

    fn stream_of(events: &[Value]) -> String {
        let event = |data: &Value| {
            let kind = data["type"].as_str().expect("a type");
            format!("event: {kind}\ndata: {data}\n\n")
        };
        events.iter().map(event).collect()
    }

    fn start() -> Value {
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message",
            "role": "assistant", "model": "claude", "content": [], "stop_reason": null,
            "stop_sequence": null, "usage": {"input_tokens": 25, "output_tokens": 1}}})
    }

    fn block(index: u64, block: Value) -> Value {
        json!({"type": "content_block_start", "index": index, "content_block": block})
    }

    fn delta(index: u64, delta: Value) -> Value {
        json!({"type": "content_block_delta", "index": index, "delta": delta})
    }

    fn end(reason: &str) -> [Value; 2] {
        [
            json!({"type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": null},
                "usage": {"input_tokens": null, "output_tokens": 15, "output_tokens_details": {"thinking_tokens": 4}}}),
            json!({"type": "message_stop"}),
        ]
    }

    #[test]
    fn row_22_a_message_is_what_a_plain_answer_would_have_been_wherever_its_bytes_are_cut() {
        let mut events = vec![
            start(),
            json!({"type": "ping"}),
            block(
                0,
                json!({"type": "thinking", "thinking": "", "signature": ""}),
            ),
            delta(0, json!({"type": "thinking_delta", "thinking": "H\u{f6}"})),
            delta(0, json!({"type": "thinking_delta", "thinking": "m\""})),
            delta(0, json!({"type": "signature_delta", "signature": "c2ln"})),
            json!({"type": "content_block_stop", "index": 0}),
            block(1, json!({"type": "text", "text": ""})),
            delta(1, json!({"type": "text_delta", "text": "Good "})),
            json!({"type": "ping"}),
            delta(1, json!({"type": "text_delta", "text": "night"})),
            delta(
                1,
                json!({"type": "citations_delta", "citation": {"cited_text": "night"}}),
            ),
            delta(1, json!({"type": "a_delta_of_next_year", "x": 1})),
            block(
                2,
                json!({"type": "tool_use", "id": "t1", "name": "f", "input": {}}),
            ),
            delta(2, json!({"type": "input_json_delta", "partial_json": ""})),
            delta(
                2,
                json!({"type": "input_json_delta", "partial_json": "{\"x\": 1"}),
            ),
            delta(
                2,
                json!({"type": "input_json_delta", "partial_json": ".50}"}),
            ),
            block(
                3,
                json!({"type": "tool_use", "id": "t2", "name": "g", "input": {}}),
            ),
            json!({"type": "an_event_of_next_year"}),
        ];
        events.extend(end("tool_use"));
        let answer = testing::answer(message, &stream_of(&events), "event: message_stop");
        let expected = json!({"id": "msg_1", "type": "message", "role": "assistant",
        "model": "claude", "stop_reason": "tool_use", "stop_sequence": null,
        "usage": {"input_tokens": 25, "output_tokens": 15,
            "output_tokens_details": {"thinking_tokens": 4}},
        "content": [
            {"type": "thinking", "thinking": "H\u{f6}m\"", "signature": "c2ln"},
            {"type": "text", "text": "Good night", "citations": [{"cited_text": "night"}]},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1.5}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
        ]});
        assert_eq!(answer, expected);
    }

    #[test]
    fn an_input_that_the_end_of_the_answer_has_cut_off_is_none() {
        let mut events = vec![
            start(),
            block(
                0,
                json!({"type": "tool_use", "id": "t", "name": "f", "input": {}}),
            ),
            delta(
                0,
                json!({"type": "input_json_delta", "partial_json": "{\"x\":"}),
            ),
        ];
        events.extend(end("max_tokens"));
        let answer = testing::answer(message, &stream_of(&events), "event: message_stop");
        assert_eq!(answer["content"][0]["input"], json!({}));
    }

    #[test]
    fn an_error_in_the_middle_has_the_status_of_its_type() {
        for (kind, expected) in [
            ("overloaded_error", 529),
            ("rate_limit_error", 429),
            ("invalid_request_error", 400),
            ("api_error", 500),
            ("an_error_of_next_year", 500),
        ] {
            let error = json!({"type": "error", "error": {"type": kind, "message": "no"}});
            let stream = stream_of(&[start(), block(0, json!({"type": "text"})), error.clone()]);
            let Gathered::Error { status, body } = testing::gathered(message, &stream) else {
                panic!("is an error");
            };
            assert_eq!(status, Some(expected));
            let body: Value = serde_json::from_slice(&body).expect("is JSON");
            assert_eq!(body, error);
        }
    }

    #[test]
    fn what_does_not_go_together_is_no_answer() {
        let text = || json!({"type": "text_delta", "text": "x"});
        for events in [
            vec![delta(0, text())],
            vec![start(), delta(0, text())],
            vec![start(), block(1, json!({"type": "text", "text": ""}))],
            vec![json!({"type": "message_stop"})],
        ] {
            let events = [events, end("end_turn").to_vec()].concat();
            let gathered = testing::gathered(message, &stream_of(&events));
            assert_eq!(gathered, Gathered::Incomplete, "{events:?}");
        }
    }
}

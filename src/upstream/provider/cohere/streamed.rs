//! The events of a streamed answer, put together into the answer.

use std::borrow::Cow;

use crate::upstream::provider::stream::{Added, Fold};
use crate::upstream::provider::tree::Tree;

/// An answer has no more parts or calls than this: what is beyond is a mistake.
const ITEMS_MAX: usize = 10_000;

/// An answer so far.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// As it is written; `None`: the answer has not begun.
    id: Option<String>,
    plan: String,
    /// In the order in which they began.
    content: Vec<Part>,
    calls: Vec<Call>,
    citations: Vec<Tree<'static>>,
    /// Of the last event: why the model stopped, and what was used.
    finish_reason: Option<Tree<'static>>,
    usage: Option<Tree<'static>>,
}

/// A part of the content: a text, or what was thought.
#[derive(Debug)]
struct Part {
    index: Option<u64>,
    key: &'static str,
    text: String,
}

#[derive(Debug)]
struct Call {
    index: Option<u64>,
    /// All but its arguments.
    call: Tree<'static>,
    arguments: String,
}

impl Response {
    fn part(&mut self, kind: &str, event: &Tree<'_>) -> Option<Added> {
        let index = event.get("index").and_then(Tree::whole);
        let delta = event.get("delta");
        let of_message = |key: &str| delta?.get("message")?.get(key);
        Some(match kind {
            "message-start" => {
                let id = event.get("id").map(Tree::written);
                self.id = Some(id.unwrap_or_else(|| "null".to_owned()));
                Added::NOTHING
            }
            "content-start" => {
                let content = of_message("content")?;
                let is_thought = content
                    .get("type")
                    .is_some_and(|kind| kind.is_text("thinking"));
                if self.content.len() >= ITEMS_MAX {
                    return None;
                }
                self.content.push(Part {
                    index,
                    key: if is_thought { "thinking" } else { "text" },
                    text: String::new(),
                });
                self.content_piece(index, content)?
            }
            "content-delta" => self.content_piece(index, of_message("content")?)?,
            "tool-plan-delta" => {
                let piece = of_message("tool_plan")?.text()?;
                self.plan.push_str(&piece);
                written(piece.len())
            }
            "tool-call-start" => {
                let call = of_message("tool_calls")?;
                if self.calls.len() >= ITEMS_MAX {
                    return None;
                }
                let owned = call.clone().into_owned();
                let held = owned.weight();
                self.calls.push(Call {
                    index,
                    call: owned,
                    arguments: arguments(call).unwrap_or_default().into_owned(),
                });
                written(held)
            }
            "tool-call-delta" => {
                let piece = arguments(of_message("tool_calls")?)?;
                let mut calls = self.calls.iter_mut();
                let call = calls.rfind(|call| call.index == index)?;
                call.arguments.push_str(&piece);
                written(piece.len())
            }
            "citation-start" => {
                let citation = of_message("citations")?.clone().into_owned();
                let held = citation.weight();
                match citation {
                    Tree::List(all) => self.citations.extend(all),
                    one => self.citations.push(one),
                }
                Added::Part {
                    held,
                    is_content: false,
                }
            }
            "message-end" => {
                self.id.as_ref()?;
                let of_delta = |key: &str| Some(delta?.get(key)?.clone().into_owned());
                self.finish_reason = of_delta("finish_reason");
                self.usage = of_delta("usage");
                Added::Last
            }
            // The ends of parts, calls and citations, and what later versions have.
            _ => Added::NOTHING,
        })
    }

    fn content_piece(&mut self, index: Option<u64>, content: &Tree<'_>) -> Option<Added> {
        let mut parts = self.content.iter_mut();
        let part = parts.rfind(|part| part.index == index)?;
        let Some(piece) = content.get(part.key).and_then(Tree::text) else {
            return Some(Added::NOTHING);
        };
        part.text.push_str(&piece);
        Some(written(piece.len()))
    }
}

/// Something that the model wrote.
fn written(held: usize) -> Added {
    Added::Part {
        held,
        is_content: held > 0,
    }
}

fn arguments<'t>(call: &'t Tree<'_>) -> Option<Cow<'t, str>> {
    call.get("function")?.get("arguments")?.text()
}

impl Part {
    fn tree(&self) -> Tree<'static> {
        Tree::object([
            ("type", Tree::string(self.key)),
            (self.key, Tree::string(&self.text)),
        ])
    }
}

impl Call {
    fn tree(self) -> Tree<'static> {
        let mut call = self.call;
        if let Tree::Object(members) = &mut call {
            let function = members.iter_mut().find(|(key, _)| key == "function");
            if let Some((_, function)) = function {
                function.set("arguments", Tree::string(&self.arguments));
            }
        }
        call
    }
}

impl Fold for Response {
    fn add(&mut self, event: Tree<'_>) -> Added {
        let kind = event.get("type").and_then(Tree::text).unwrap_or_default();
        // An error has a message where an event has its type.
        if kind.is_empty() && event.get("message").is_some_and(Tree::is_string) {
            return Added::Error {
                status: Some(500),
                body: event.written(),
            };
        }
        self.part(&kind, &event).unwrap_or(Added::Unfit)
    }

    fn whole(&mut self, is_done: bool) -> Option<String> {
        let id = self.id.take().filter(|_| is_done)?;
        let finish_reason = self.finish_reason.take()?;
        let content = self.content.iter().map(Part::tree).collect();
        let calls = std::mem::take(&mut self.calls).into_iter();
        let calls: Vec<_> = calls.map(Call::tree).collect();
        let mut message = Tree::object([
            ("role", Tree::string("assistant")),
            ("content", Tree::List(content)),
        ]);
        if !self.plan.is_empty() {
            message.set("tool_plan", Tree::string(&self.plan));
        }
        if !calls.is_empty() {
            message.set("tool_calls", Tree::List(calls));
        }
        if !self.citations.is_empty() {
            message.set("citations", Tree::List(std::mem::take(&mut self.citations)));
        }
        let mut response = Tree::object([
            ("id", Tree::Plain(Cow::Owned(id))),
            ("message", message),
            ("finish_reason", finish_reason),
        ]);
        if let Some(usage) = self.usage.take() {
            response.set("usage", usage);
        }
        Some(response.written())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::upstream::provider::stream::{Gathered, testing};

    fn response() -> Box<dyn Fold> {
        Box::new(Response::default())
    }

    fn stream_of(events: &[Value]) -> String {
        let event = |data: &Value| {
            let kind = data["type"].as_str().unwrap_or("x");
            format!("event: {kind}\ndata: {data}\n\n")
        };
        events.iter().map(event).collect()
    }

    fn start() -> Value {
        json!({"id": "c", "type": "message-start", "delta": {"message": {"role": "assistant",
            "content": [], "tool_plan": "", "tool_calls": [], "citations": []}}})
    }

    fn event(kind: &str, index: u64, message: Value) -> Value {
        json!({"type": kind, "index": index, "delta": {"message": message}})
    }

    fn text(kind: &str, index: u64, content: Value) -> Value {
        event(kind, index, json!({"content": content}))
    }

    fn end(reason: &str) -> Value {
        json!({"type": "message-end", "id": "c", "delta": {"finish_reason": reason,
            "usage": {"tokens": {"input_tokens": 3.0, "output_tokens": 4.0}}}})
    }

    #[test]
    fn row_22_an_answer_is_what_a_plain_one_would_have_been_wherever_its_bytes_are_cut() {
        let stream = stream_of(&[
            start(),
            text(
                "content-start",
                0,
                json!({"type": "thinking", "thinking": ""}),
            ),
            text("content-delta", 0, json!({"thinking": "Hm"})),
            json!({"type": "content-end", "index": 0}),
            text("content-start", 1, json!({"type": "text", "text": ""})),
            text("content-delta", 1, json!({"text": "Gö\"od "})),
            text("content-delta", 1, json!({"text": "night"})),
            event(
                "citation-start",
                0,
                json!({"citations": {"start": 0, "end": 4}}),
            ),
            json!({"type": "citation-end", "index": 0}),
            json!({"type": "content-end", "index": 1}),
            json!({"type": "an-event-of-next-year"}),
            end("COMPLETE"),
        ]);
        let answer = testing::answer(response, &stream, "event: message-end");
        let expected = json!({"id": "c", "finish_reason": "COMPLETE",
            "usage": {"tokens": {"input_tokens": 3.0, "output_tokens": 4.0}},
            "message": {"role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm"},
                    {"type": "text", "text": "Gö\"od night"}],
                "citations": [{"start": 0, "end": 4}]}});
        assert_eq!(answer, expected);
    }

    #[test]
    fn the_pieces_of_calls_come_together() {
        let call = |index: u64, id: &str, name: &str| {
            let function = json!({"name": name, "arguments": ""});
            let call = json!({"id": id, "type": "function", "function": function});
            event("tool-call-start", index, json!({"tool_calls": call}))
        };
        let piece = |index: u64, piece: &str| {
            let call = json!({"function": {"arguments": piece}});
            event("tool-call-delta", index, json!({"tool_calls": call}))
        };
        let plan = |piece: &str| event("tool-plan-delta", 0, json!({"tool_plan": piece}));
        let stream = stream_of(&[
            start(),
            plan("I will "),
            plan("look."),
            call(0, "a", "f"),
            piece(0, "{\"x\""),
            piece(0, ":1}"),
            json!({"type": "tool-call-end", "index": 0}),
            call(1, "b", "g"),
            piece(1, "{}"),
            end("TOOL_CALL"),
        ]);
        let answer = testing::answer(response, &stream, "event: message-end");
        assert_eq!(answer["message"]["tool_plan"], "I will look.");
        assert_eq!(
            answer["message"]["tool_calls"],
            json!([
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ])
        );
    }

    #[test]
    fn an_error_in_the_middle_is_one_of_the_server() {
        let stream = stream_of(&[start(), json!({"message": "internal error"})]);
        let Gathered::Error { status, .. } = testing::gathered(response, &stream) else {
            panic!("is an error");
        };
        assert_eq!(status, Some(500));
    }
}

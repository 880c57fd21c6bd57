//! The chunks of a streamed answer, put together into the answer. They are OpenAI's, but for a
//! message's content, which may come as a list of parts.

use std::borrow::Cow;

use crate::upstream::provider::openai::streamed::Chunks;
use crate::upstream::provider::stream::{Added, Fold};
use crate::upstream::provider::tree::{Member, Tree};

#[derive(Debug)]
pub(super) struct Message(Chunks);

impl Default for Message {
    fn default() -> Self {
        Self(Chunks::new(true))
    }
}

impl Fold for Message {
    fn add(&mut self, mut event: Tree<'_>) -> Added {
        for choice in items(&mut event, "choices") {
            if let Some(Tree::Object(delta)) = member(choice, "delta") {
                split(delta);
            }
        }
        self.0.add(event)
    }

    fn whole(&mut self, is_done: bool) -> Option<String> {
        self.0.whole(is_done)
    }
}

fn member<'m, 'a>(object: &'m mut Tree<'a>, key: &str) -> Option<&'m mut Tree<'a>> {
    let Tree::Object(members) = object else {
        return None;
    };
    let found = members.iter_mut().find(|(known, _)| known == key);
    found.map(|(_, value)| value)
}

fn items<'m, 'a>(object: &'m mut Tree<'a>, key: &str) -> &'m mut [Tree<'a>] {
    match member(object, key) {
        Some(Tree::List(items)) => items,
        _ => &mut [],
    }
}

/// Splits a list of parts into what is said and what was thought: two texts.
fn split(delta: &mut Vec<Member<'_>>) {
    let content = delta.iter_mut().find(|(key, _)| key == "content");
    let Some((_, content @ Tree::List(_))) = content else {
        return;
    };
    let (mut said, mut thought) = (String::new(), String::new());
    for part in content.list().unwrap_or_default() {
        said.push_str(&part.get("text").and_then(Tree::text).unwrap_or_default());
        let thinking = part.get("thinking").and_then(Tree::list);
        for part in thinking.unwrap_or_default() {
            thought.push_str(&part.get("text").and_then(Tree::text).unwrap_or_default());
        }
    }
    *content = Tree::string(&said);
    if !thought.is_empty() {
        let key = Cow::Borrowed("reasoning_content");
        delta.push((key, Tree::string(&thought)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::upstream::provider::stream::testing;

    #[test]
    fn row_22_an_answer_with_thoughts_and_calls_is_put_together_wherever_its_bytes_are_cut() {
        let chunk = |delta: Value, reason: Option<&str>| {
            json!({"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m",
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "p": "abc"})
        };
        let thought = |text: &str| {
            let thinking = json!([{"type": "text", "text": text}]);
            chunk(
                json!({"content": [{"type": "thinking", "thinking": thinking}]}),
                None,
            )
        };
        let call = json!({"id": "abcdefghi", "index": 0,
            "function": {"name": "f", "arguments": "{\"x\":1}"}});
        let mut last = chunk(
            json!({"content": "", "tool_calls": [call]}),
            Some("tool_calls"),
        );
        last["usage"] = json!({"prompt_tokens": 3, "completion_tokens": 4});
        let events = [
            chunk(json!({"role": "assistant", "content": ""}), None),
            thought("H"),
            thought("m"),
            chunk(
                json!({"content": [{"type": "text", "text": "Good "}]}),
                None,
            ),
            chunk(json!({"content": "night"}), None),
            last,
        ];
        let events: String = events
            .iter()
            .map(|data| format!("data: {data}\n\n"))
            .collect();
        let stream = events + "data: [DONE]\n\n";
        let fold = || -> Box<dyn Fold> { Box::<Message>::default() };
        let answer = testing::answer(fold, &stream, "data: [DONE]");
        let expected = json!({"id": "c", "object": "chat.completion", "created": 7, "model": "m",
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
            "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
                "role": "assistant", "content": "Good night", "reasoning_content": "Hm",
                "tool_calls": [{"id": "abcdefghi",
                    "function": {"name": "f", "arguments": "{\"x\":1}"}}]}}]});
        assert_eq!(answer, expected);
    }
}

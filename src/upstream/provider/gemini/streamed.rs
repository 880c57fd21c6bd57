//! The events of a streamed answer, put together into the answer.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::classify;
use crate::upstream::provider::stream::{Added, Fold};
use crate::upstream::provider::tree::{Member, Tree};

/// No request asks for more answers than this: what is beyond is a mistake.
const CANDIDATES_MAX: u64 = 1_000;

/// An answer so far. Each event is an answer itself, which has a part of the whole.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// All but the candidates: what came last holds.
    top: Vec<Member<'static>>,
    candidates: BTreeMap<u64, Candidate>,
    /// How many candidates a whole answer has.
    wanted: u64,
}

#[derive(Debug, Default)]
struct Candidate {
    /// All but the parts of its content: what came last holds.
    members: Vec<Member<'static>>,
    /// As they are written.
    parts: Vec<Tree<'static>>,
}

impl Response {
    /// `wanted`: how many candidates were asked for, if that was said.
    pub(super) fn of(wanted: Option<u64>) -> Self {
        Self {
            wanted: wanted.unwrap_or(1),
            ..Self::default()
        }
    }

    fn part(&mut self, members: Vec<Member<'_>>) -> Option<Added> {
        let (mut held, mut is_content) = (0, false);
        for (key, value) in members {
            if key != "candidates" {
                held += update(&mut self.top, &key, value);
                continue;
            }
            let Tree::List(candidates) = value else {
                return None;
            };
            for candidate in candidates {
                let index = candidate.get("index").and_then(Tree::whole).unwrap_or(0);
                let Tree::Object(members) = candidate else {
                    return None;
                };
                if index >= CANDIDATES_MAX {
                    return None;
                }
                let (more, says) = self.candidates.entry(index).or_default().add(members);
                held += more;
                is_content |= says;
            }
        }
        Some(Added::Part { held, is_content })
    }

    /// Whether the request was refused in place of an answer.
    fn is_blocked(&self) -> bool {
        let feedback = self.top.iter().find(|(key, _)| key == "promptFeedback");
        feedback.is_some_and(|(_, feedback)| feedback.get("blockReason").is_some())
    }
}

/// Sets a member. Returns how many bytes more are held.
fn update(own: &mut Vec<Member<'static>>, key: &str, value: Tree<'_>) -> usize {
    let (value, known) = (
        value.into_owned(),
        own.iter_mut().find(|(known, _)| known == key),
    );
    if let Some((_, own)) = known {
        let held = value.weight().saturating_sub(own.weight());
        *own = value;
        return held;
    }
    let held = key.len() + value.weight();
    own.push((Cow::Owned(key.to_owned()), value));
    held
}

impl Candidate {
    /// Adds a piece. Returns how many bytes more are held, and whether the piece has something that
    /// the model wrote.
    fn add(&mut self, members: Vec<Member<'_>>) -> (usize, bool) {
        let (mut held, mut is_content) = (0, false);
        for (key, value) in members {
            if key != "content" {
                held += update(&mut self.members, &key, value);
                continue;
            }
            let parts = value.get("parts").and_then(Tree::list).unwrap_or_default();
            is_content |= !parts.is_empty();
            for part in parts {
                let part = Tree::Plain(Cow::Owned(part.written()));
                held += part.weight();
                self.parts.push(part);
            }
        }
        (held, is_content)
    }

    /// `None`: it has not ended.
    fn whole(self) -> Option<Tree<'static>> {
        let mut members = self.members;
        members.iter().find(|(key, _)| key == "finishReason")?;
        let content = Tree::object([
            ("parts", Tree::List(self.parts)),
            ("role", Tree::string("model")),
        ]);
        members.insert(0, (Cow::Borrowed("content"), content));
        Some(Tree::Object(members))
    }
}

impl Fold for Response {
    fn add(&mut self, event: Tree<'_>) -> Added {
        if let Some(error) = classify::error(&event) {
            let code = error.get("code").and_then(Tree::whole);
            let code = code.and_then(|code| u16::try_from(code).ok());
            return Added::Error {
                status: code.filter(|code| (400..600).contains(code)).or(Some(500)),
                body: event.written(),
            };
        }
        match event {
            Tree::Object(members) => self.part(members).unwrap_or(Added::Unfit),
            _ => Added::Unfit,
        }
    }

    /// There is no mark of the end: each candidate says that it has ended. One that has not begun
    /// yet is missed by their number.
    fn whole(&mut self, _is_done: bool) -> Option<String> {
        if (self.candidates.len() as u64) < self.wanted && !self.is_blocked() {
            return None;
        }
        let mut top = std::mem::take(&mut self.top);
        let candidates = std::mem::take(&mut self.candidates).into_values();
        let candidates = candidates
            .map(Candidate::whole)
            .collect::<Option<Vec<_>>>()?;
        if !candidates.is_empty() {
            top.insert(0, (Cow::Borrowed("candidates"), Tree::List(candidates)));
        }
        Some(Tree::Object(top).written())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::upstream::provider::stream::{Gathered, testing};

    fn response() -> Box<dyn Fold> {
        Box::new(Response::of(None))
    }

    fn stream_of(events: &[Value]) -> String {
        events
            .iter()
            .map(|data| format!("data: {data}\n\n"))
            .collect()
    }

    fn event(candidates: Value, tokens: u64) -> Value {
        json!({"candidates": candidates, "modelVersion": "gemini-3", "responseId": "r",
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": tokens}})
    }

    fn parts(parts: Value) -> Value {
        json!({"content": {"parts": parts, "role": "model"}, "index": 0})
    }

    #[test]
    fn row_22_an_answer_is_what_a_plain_one_would_have_been_wherever_its_bytes_are_cut() {
        let thought = json!({"text": "Hm", "thought": true});
        let call = json!({"functionCall": {"name": "f", "args": {"x": 1.5}},
            "thoughtSignature": "c2ln"});
        let mut last = parts(json!([{"text": "night"}, call]));
        last["finishReason"] = "STOP".into();
        let stream = stream_of(&[
            event(json!([parts(json!([thought]))]), 1),
            event(json!([parts(json!([{"text": "Gö\"od "}]))]), 2),
            event(
                json!([{"content": {"parts": [{"text": "x"}]}, "index": 1}]),
                2,
            ),
            event(json!([{"index": 1, "finishReason": "MAX_TOKENS"}]), 3),
            event(json!([last]), 5),
        ]);
        let answer = testing::answer(response, &stream, "data:");
        let expected = event(
            json!([
                {"index": 0, "finishReason": "STOP", "content": {"role": "model",
                    "parts": [thought, {"text": "Gö\"od "}, {"text": "night"}, call]}},
                {"index": 1, "finishReason": "MAX_TOKENS",
                    "content": {"role": "model", "parts": [{"text": "x"}]}},
            ]),
            5,
        );
        assert_eq!(answer, expected);
    }

    #[test]
    fn an_answer_is_whole_when_each_candidate_that_was_asked_for_has_ended() {
        let of = |index: u64| {
            let content = json!({"parts": [{"text": "x"}]});
            event(
                json!([{"content": content, "index": index, "finishReason": "STOP"}]),
                1,
            )
        };
        let two = || -> Box<dyn Fold> { Box::new(Response::of(Some(2))) };
        let gathered = |events: &[Value]| testing::gathered(two, &stream_of(events));
        assert_eq!(gathered(&[of(0)]), Gathered::Incomplete);
        assert!(matches!(gathered(&[of(0), of(1)]), Gathered::Answer(_)));
        let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}});
        assert!(matches!(gathered(&[blocked]), Gathered::Answer(_)));
    }

    #[test]
    fn a_request_that_is_blocked_has_an_answer_without_candidates() {
        let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}, "responseId": "r"});
        let stream = stream_of(std::slice::from_ref(&blocked));
        assert_eq!(testing::answer(response, &stream, "data:"), blocked);
    }

    #[test]
    fn an_error_in_the_middle_has_its_own_status() {
        let error = json!({"error": {"code": 503, "status": "UNAVAILABLE", "message": "no"}});
        let begun = event(json!([parts(json!([{"text": "x"}]))]), 1);
        let gathered = testing::gathered(response, &stream_of(&[begun, error]));
        let Gathered::Error { status, .. } = gathered else {
            panic!("is an error: {gathered:?}");
        };
        assert_eq!(status, Some(503));
    }
}

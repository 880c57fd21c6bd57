//! An answer of Anthropic's Messages API as one to a request for a chat completion.

use std::borrow::Cow;

use bytes::Bytes;

use crate::domain::outcome::{Warning, WarningCode};
use crate::domain::usage::Usage;
use crate::upstream::provider::answer::{self, Choice, Completion, ToolCall};
use crate::upstream::provider::http::Head;
use crate::upstream::provider::interface::{Decoded, Request};
use crate::upstream::provider::tree::Tree;

/// No answer has more tokens than this: what is beyond is a mistake.
const TOKENS_MAX: u64 = 1_000_000_000;

/// A failure, with its error in OpenAI's form.
pub(super) fn failure(head: &Head, said: Bytes) -> Decoded {
    let body = std::str::from_utf8(&said).ok().and_then(|text| {
        let said = Tree::read(text)?;
        let error = said.get("error")?;
        let message = error.get("message").and_then(Tree::text)?;
        let kind = error.get("type").and_then(Tree::text);
        let code = super::classify::detail(error).or(kind);
        let code = code.as_deref();
        Some(answer::error(head.status, &message, code, &said.written()))
    });
    answer::failure(said, body)
}

/// A success.
pub(super) fn success(said: Bytes, request: Request) -> Decoded {
    let text = std::str::from_utf8(&said).ok();
    let Some(message) = text.and_then(Tree::read) else {
        return answer::failure(said, None);
    };
    if message
        .get("type")
        .is_some_and(|kind| kind.is_text("error"))
    {
        let mut decoded = answer::failure(said, None);
        decoded.is_bare_error = true;
        return decoded;
    }
    let Some(blocks) = message.get("content").and_then(Tree::list) else {
        return answer::unusable(said, "the answer has no content");
    };
    let usage = usage(message.get("usage"));
    let mut warnings = request.warnings;
    let mut choice = choice(blocks, &request.names, request.answers_by);
    let stop = message.get("stop_reason").and_then(Tree::text);
    let stop = stop.unwrap_or_default();
    let is_refused = stop == "refusal";
    choice.finish_reason = match &*stop {
        "end_turn" | "stop_sequence" => "stop",
        "max_tokens" | "model_context_window_exceeded" | "pause_turn" => "length",
        "tool_use" if request.answers_by.is_some() => "stop",
        "tool_use" => "tool_calls",
        "refusal" => "content_filter",
        other => {
            warnings.push(Warning {
                code: WarningCode::AnswerChanged,
                param: "choices[0].finish_reason".to_owned(),
                message: format!("the model server stopped for another reason: \"{other}\""),
            });
            "stop"
        }
    };
    if is_refused {
        let details = message.get("stop_details");
        let why = details.and_then(|details| details.get("explanation")?.text());
        choice.refusal = why.map(Cow::into_owned);
    }
    let is_whole = choice.finish_reason == "stop";
    if request.wants_json && is_whole {
        let content = choice.content.as_deref().unwrap_or_default();
        match answer::json_object(content).map(str::to_owned) {
            Some(object) => choice.content = Some(object),
            None => return answer::unusable(said, "the model's answer is no JSON object"),
        }
    }
    if request.answers_by.is_some() && is_whole && choice.content.is_none() {
        return answer::unusable(said, "the model did not answer by the schema");
    }
    let text = |key: &str| message.get(key).and_then(Tree::text);
    let completion = Completion {
        id: text("id").unwrap_or_default().into_owned(),
        created: request.created,
        model: text("model").map_or(request.model, Cow::into_owned),
        choices: vec![choice],
        usage,
        cache_write_tokens: Some(usage.cache_written_tokens),
    };
    answer::made(completion.written(), usage, warnings)
}

fn choice(blocks: &[Tree<'_>], names: &[(String, String)], answers_by: Option<&str>) -> Choice {
    let mut choice = Choice::default();
    for block in blocks {
        let text = |key: &str| block.get(key).and_then(Tree::text);
        let kind = text("type").unwrap_or_default();
        match &*kind {
            "text" => {
                let content = choice.content.get_or_insert_default();
                content.push_str(&text("text").unwrap_or_default());
            }
            "thinking" => {
                let reasoning = choice.reasoning.get_or_insert_default();
                reasoning.push_str(&text("thinking").unwrap_or_default());
            }
            "tool_use" => {
                let name = text("name").unwrap_or_default();
                let input = block.get("input");
                let arguments = input.map_or_else(|| "{}".to_owned(), Tree::written);
                if answers_by.is_some_and(|tool| name == tool) {
                    choice.content = Some(arguments);
                    continue;
                }
                let own = names.iter().find(|(sent, _)| *sent == name);
                choice.tool_calls.push(ToolCall {
                    id: text("id").unwrap_or_default().into_owned(),
                    name: own.map_or_else(|| name.into_owned(), |(_, own)| own.clone()),
                    arguments,
                    signature: None,
                });
            }
            // Thinking that is kept secret, and what later versions have.
            _ => {}
        }
    }
    choice.reasoning = choice.reasoning.filter(|text| !text.is_empty());
    choice
}

fn usage(usage: Option<&Tree<'_>>) -> Usage {
    let count = |usage: Option<&Tree<'_>>, key: &str| {
        let tokens = usage.and_then(|usage| usage.get(key)?.whole());
        tokens.unwrap_or(0).min(TOKENS_MAX) as i64
    };
    let cached_tokens = count(usage, "cache_read_input_tokens");
    let cache_written_tokens = count(usage, "cache_creation_input_tokens");
    let input_tokens = count(usage, "input_tokens") + cached_tokens + cache_written_tokens;
    let output_tokens = count(usage, "output_tokens");
    let details = usage.and_then(|usage| usage.get("output_tokens_details"));
    Usage {
        input_tokens,
        cached_tokens,
        cache_written_tokens,
        output_tokens,
        reasoning_tokens: count(details, "thinking_tokens"),
        total_tokens: input_tokens + output_tokens,
    }
}

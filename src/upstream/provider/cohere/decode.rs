//! Answers of Cohere's API in OpenAI's form.

use std::borrow::Cow;

use bytes::Bytes;

use crate::domain::id;
use crate::domain::outcome::{Warning, WarningCode};
use crate::domain::usage::Usage;
use crate::upstream::provider::answer::{self, Choice, Completion, ToolCall};
use crate::upstream::provider::http::Head;
use crate::upstream::provider::interface::{Decoded, EMBEDDINGS, Request};
use crate::upstream::provider::tree::Tree;

/// No answer has more tokens than this: what is beyond is a mistake.
const TOKENS_MAX: u64 = 1_000_000_000;

/// A failure, with its error in OpenAI's form.
pub(super) fn failure(head: &Head, said: Bytes) -> Decoded {
    let body = std::str::from_utf8(&said).ok().and_then(|text| {
        let said = Tree::read(text)?;
        let message = said.get("message").and_then(Tree::text)?;
        Some(answer::error(head.status, &message, None, &said.written()))
    });
    answer::failure(said, body)
}

/// A success.
pub(super) fn success(said: Bytes, request: Request) -> Decoded {
    let text = std::str::from_utf8(&said).ok();
    let Some(body) = text.and_then(Tree::read) else {
        return answer::failure(said, None);
    };
    if request.path == EMBEDDINGS {
        return embeddings(&said, &body, request);
    }
    let message = body.get("message");
    let Some(message) = message.filter(|message| message.members().is_some()) else {
        return answer::unusable(said.clone(), "the answer has no message");
    };
    let mut warnings = request.warnings;
    let mut choice = choice(message, &request.names);
    let reason = body.get("finish_reason").and_then(Tree::text);
    choice.finish_reason = match reason.as_deref().unwrap_or_default() {
        "COMPLETE" | "STOP_SEQUENCE" if !choice.tool_calls.is_empty() => "tool_calls",
        "COMPLETE" | "STOP_SEQUENCE" => "stop",
        "MAX_TOKENS" => "length",
        "TOOL_CALL" => "tool_calls",
        broken @ ("ERROR" | "TIMEOUT") => {
            return answer::unusable(said.clone(), format!("the model broke off: {broken}"));
        }
        other => {
            warnings.push(Warning {
                code: WarningCode::AnswerChanged,
                param: "choices[0].finish_reason".to_owned(),
                message: format!("the model server stopped for another reason: \"{other}\""),
            });
            "stop"
        }
    };
    let usage = usage(body.get("usage"), "tokens");
    let own_id = body.get("id").and_then(Tree::text);
    let completion = Completion {
        id: own_id.map_or_else(id::request, Cow::into_owned),
        created: request.created,
        model: request.model,
        choices: vec![choice],
        usage,
        cache_write_tokens: None,
    };
    answer::made(completion.written(), usage, warnings)
}

fn choice(message: &Tree<'_>, names: &[(String, String)]) -> Choice {
    let list = |key: &str| message.get(key).and_then(Tree::list).unwrap_or_default();
    let mut choice = Choice::default();
    // What the model means to do with tools is thought, too.
    let plan = message.get("tool_plan").and_then(Tree::text);
    choice.reasoning = plan.map(Cow::into_owned);
    for part in list("content") {
        if let Some(text) = part.get("text").and_then(Tree::text) {
            choice.content.get_or_insert_default().push_str(&text);
        } else if let Some(thought) = part.get("thinking").and_then(Tree::text) {
            choice.reasoning.get_or_insert_default().push_str(&thought);
        }
    }
    for call in list("tool_calls") {
        let of_function = |key: &str| call.get("function")?.get(key)?.text();
        let name = of_function("name").unwrap_or_default();
        let own = names.iter().find(|(sent, _)| *sent == name);
        let id = call.get("id").and_then(Tree::text);
        choice.tool_calls.push(ToolCall {
            id: id.map_or_else(|| format!("call_{}", id::request()), Cow::into_owned),
            name: own.map_or_else(|| name.clone().into_owned(), |(_, own)| own.clone()),
            arguments: of_function("arguments").map_or_else(|| "{}".to_owned(), Cow::into_owned),
            signature: None,
        });
    }
    let citations = message.get("citations");
    let citations = citations.filter(|all| all.list().is_some_and(|all| !all.is_empty()));
    choice.citations = citations.map(Tree::written);
    choice.reasoning = choice.reasoning.filter(|text| !text.is_empty());
    if !choice.tool_calls.is_empty() {
        choice.content = choice.content.filter(|text| !text.is_empty());
    }
    choice
}

fn embeddings(said: &Bytes, body: &Tree<'_>, request: Request) -> Decoded {
    let all = body.get("embeddings");
    let Some(all) = all.and_then(|all| all.get("float")?.list()) else {
        return answer::unusable(said.clone(), "the answer has no embeddings");
    };
    let usage = usage(body.get("meta"), "billed_units");
    answer::embeddings(said, all.iter().map(Some), usage, request)
}

/// The tokens used. `first`: which of the two counts is the better one here.
fn usage(usage: Option<&Tree<'_>>, first: &str) -> Usage {
    let count = |tokens: Option<&Tree<'_>>| {
        let tokens = tokens.and_then(Tree::whole);
        tokens.map(|tokens| tokens.min(TOKENS_MAX) as i64)
    };
    let of = |key: &str| {
        let counts = [first, "tokens", "billed_units"];
        let mut counts = counts.iter().filter_map(|one| usage?.get(one)?.get(key));
        count(counts.next()).unwrap_or(0)
    };
    let (input_tokens, output_tokens) = (of("input_tokens"), of("output_tokens"));
    let cached = usage.and_then(|usage| usage.get("cached_tokens"));
    Usage {
        input_tokens,
        cached_tokens: count(cached).unwrap_or(0),
        cache_written_tokens: 0,
        output_tokens,
        reasoning_tokens: 0,
        total_tokens: input_tokens + output_tokens,
    }
}

//! Answers of Gemini's API in OpenAI's form.

use std::borrow::Cow;

use bytes::Bytes;

use super::classify;
use crate::domain::id;
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
        let error = classify::error(&said)?;
        let message = error.get("message").and_then(Tree::text)?;
        let code = error.get("status").and_then(Tree::text);
        Some(answer::error(
            head.status,
            &message,
            code.as_deref(),
            &said.written(),
        ))
    });
    answer::failure(said, body)
}

/// A success.
pub(super) fn success(said: Bytes, request: Request) -> Decoded {
    let text = std::str::from_utf8(&said).ok();
    let Some(body) = text.and_then(Tree::read) else {
        return answer::failure(said, None);
    };
    if classify::error(&body).is_some() {
        let mut decoded = answer::failure(said, None);
        decoded.is_bare_error = true;
        return decoded;
    }
    if request.path == EMBEDDINGS {
        return embeddings(&said, &body, request);
    }
    let usage = usage(body.get("usageMetadata"));
    let text = |key: &str| body.get(key).and_then(Tree::text);
    let candidates = body
        .get("candidates")
        .and_then(Tree::list)
        .unwrap_or_default();
    let mut choices = Vec::with_capacity(candidates.len().max(1));
    for candidate in candidates {
        match choice(candidate, &request.names) {
            Ok(choice) => choices.push(choice),
            Err(fault) => return answer::unusable(said.clone(), fault),
        }
    }
    let is_blocked = body
        .get("promptFeedback")
        .is_some_and(|it| it.get("blockReason").is_some());
    if choices.is_empty() && is_blocked {
        choices.push(Choice {
            finish_reason: "content_filter",
            ..Choice::default()
        });
    }
    if choices.is_empty() {
        return answer::unusable(said.clone(), "the answer has no candidates");
    }
    let completion = Completion {
        id: text("responseId").map_or_else(id::request, Cow::into_owned),
        created: request.created,
        model: text("modelVersion").map_or(request.model, Cow::into_owned),
        choices,
        usage,
        cache_write_tokens: None,
    };
    answer::made(completion.written(), usage, request.warnings)
}

/// A candidate. An error says why it is none, in words.
fn choice(candidate: &Tree<'_>, names: &[(String, String)]) -> Result<Choice, String> {
    let mut choice = Choice::default();
    let parts = candidate
        .get("content")
        .and_then(|content| content.get("parts")?.list());
    for part in parts.unwrap_or_default() {
        if let Some(call) = part.get("functionCall") {
            let name = call.get("name").and_then(Tree::text).unwrap_or_default();
            let own = names.iter().find(|(sent, _)| *sent == name);
            let id = call.get("id").and_then(Tree::text);
            let signature = part.get("thoughtSignature").and_then(Tree::text);
            choice.tool_calls.push(ToolCall {
                id: id.map_or_else(|| format!("call_{}", id::request()), Cow::into_owned),
                name: own.map_or_else(|| name.into_owned(), |(_, own)| own.clone()),
                arguments: call
                    .get("args")
                    .map_or_else(|| "{}".to_owned(), Tree::written),
                signature: signature.map(Cow::into_owned),
            });
        } else if let Some(text) = part.get("text").and_then(Tree::text) {
            let is_thought = part.get("thought").is_some_and(|it| it.is_plain("true"));
            let said = if is_thought {
                &mut choice.reasoning
            } else {
                &mut choice.content
            };
            said.get_or_insert_default().push_str(&text);
        }
    }
    let reason = candidate
        .get("finishReason")
        .and_then(Tree::text)
        .unwrap_or_default();
    choice.finish_reason = match &*reason {
        "STOP" | "" if !choice.tool_calls.is_empty() => "tool_calls",
        "STOP" | "" => "stop",
        "MAX_TOKENS" | "CONTINUATION" => "length",
        "MALFORMED_FUNCTION_CALL"
        | "UNEXPECTED_TOOL_CALL"
        | "TOO_MANY_TOOL_CALLS"
        | "MALFORMED_RESPONSE"
        | "MISSING_THOUGHT_SIGNATURE" => {
            return Err(format!("the model broke off: {reason}"));
        }
        // SAFETY, RECITATION, LANGUAGE, BLOCKLIST, PROHIBITED_CONTENT, SPII, those of images,
        // OTHER.
        _ => "content_filter",
    };
    Ok(choice)
}

fn embeddings(said: &Bytes, body: &Tree<'_>, request: Request) -> Decoded {
    let Some(all) = body.get("embeddings").and_then(Tree::list) else {
        return answer::unusable(said.clone(), "the answer has no embeddings");
    };
    let vectors = all.iter().map(|one| one.get("values"));
    let usage = usage(body.get("usageMetadata"));
    answer::embeddings(said, vectors, usage, request)
}

/// The tokens used. What was thought counts as output; what tools put into the prompt as input.
fn usage(usage: Option<&Tree<'_>>) -> Usage {
    let count = |key: &str| {
        let tokens = usage.and_then(|usage| usage.get(key)?.whole());
        tokens.unwrap_or(0).min(TOKENS_MAX) as i64
    };
    let input_tokens = count("promptTokenCount") + count("toolUsePromptTokenCount");
    let (said, reasoning_tokens) = (count("candidatesTokenCount"), count("thoughtsTokenCount"));
    let total = count("totalTokenCount");
    // Some models count what was thought among the candidates' tokens.
    let is_counted = total > 0 && input_tokens + said == total;
    let output_tokens = if is_counted {
        said
    } else {
        said + reasoning_tokens
    };
    Usage {
        input_tokens,
        cached_tokens: count("cachedContentTokenCount"),
        cache_written_tokens: 0,
        output_tokens,
        reasoning_tokens,
        total_tokens: if total > 0 {
            total
        } else {
            input_tokens + output_tokens
        },
    }
}

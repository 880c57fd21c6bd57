//! A chat completion as a Message.

use crate::domain::id;
use crate::domain::outcome::{Warning, WarningCode};
use crate::upstream::provider::chat::asks_for_nothing;
use crate::upstream::provider::tree::Tree;
use crate::upstream::provider::via_chat::completion::{Completion, arguments, says_something};
use crate::upstream::provider::via_chat::request::typed;

/// The Message. `stops`: where the request told the model to stop, as JSON. An error says why there
/// is none, in words.
pub(in crate::upstream::provider::via_chat) fn written(
    completion: &Completion<'_, '_>,
    stops: &str,
    warnings: &mut Vec<Warning>,
) -> Result<String, &'static str> {
    let id = match &*completion.id {
        "" => id::request(),
        id => id.to_owned(),
    };
    let id = match id.strip_prefix("msg_") {
        Some(_) => id,
        None => format!("msg_{id}"),
    };
    let is_cut = completion.finish_reason == "length";
    let content = content(completion, is_cut, warnings)?;
    let has_calls = !completion.calls().is_empty();
    // Some servers say where they stopped, and some say something else there.
    let stops = Tree::read(stops);
    let stops = stops.as_ref().and_then(Tree::list).unwrap_or_default();
    let stopped_by = completion.choice.get("stop_reason");
    let stopped_by = stopped_by.and_then(|by| stops.iter().find(|stop| stop.text() == by.text()));
    let stopped_by = stopped_by.filter(|by| by.is_string());
    for key in ["annotations", "citations"] {
        let said = completion.message.get(key);
        if said.is_some_and(|said| !asks_for_nothing(key, said)) {
            warnings.push(Warning {
                code: WarningCode::AnswerChanged,
                param: "content".to_owned(),
                message: format!("what the server told of its sources in `{key}` is left out"),
            });
        }
    }
    let (reason, stopped_by) = match &*completion.finish_reason {
        "length" => ("max_tokens", None),
        "content_filter" => ("refusal", None),
        _ if has_calls => ("tool_use", None),
        _ if completion.refusal().is_some() => ("refusal", None),
        _ if stopped_by.is_some() => ("stop_sequence", stopped_by),
        _ => ("end_turn", None),
    };
    let mut message = Tree::object([
        ("id", Tree::string(&id)),
        ("type", Tree::string("message")),
        ("role", Tree::string("assistant")),
        ("model", Tree::string(&completion.model)),
        ("content", Tree::List(content)),
        ("stop_reason", Tree::string(reason)),
        (
            "stop_sequence",
            stopped_by.cloned().unwrap_or_else(Tree::null),
        ),
        ("usage", usage(completion)),
    ]);
    if reason == "refusal" {
        let why = completion.refusal();
        let why = why.unwrap_or_else(Tree::null);
        let details = Tree::object([
            ("type", Tree::string("refusal")),
            ("category", Tree::null()),
            ("explanation", why),
        ]);
        message.set("stop_details", details);
    }
    Ok(message.written())
}

fn content<'a>(
    completion: &Completion<'_, 'a>,
    is_cut: bool,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Tree<'a>>, &'static str> {
    let mut content = Vec::new();
    if let Some(thought) = completion.reasoning() {
        let mut block = typed("thinking", "thinking", thought);
        // Nobody has signed it.
        block.set("signature", Tree::string(""));
        content.push(block);
    }
    let said = [completion.content(), completion.refusal()];
    let said = said.into_iter().flatten().filter(says_something);
    content.extend(said.map(|said| typed("text", "text", said)));
    for (place, call) in completion.calls().iter().enumerate() {
        let function = call.get("function");
        let of = |key: &str| function.and_then(|function| function.get(key)?.text());
        let arguments = arguments(call);
        let arguments = arguments.text();
        let input = match arguments.as_deref().map(str::trim) {
            Some("") => Some(Tree::object([])),
            Some(arguments) => Tree::read(arguments).filter(|input| input.members().is_some()),
            // It has half a surrogate pair.
            None => None,
        };
        let Some(input) = input else {
            if !is_cut {
                return Err("the arguments of a call are no JSON object");
            }
            warnings.push(Warning {
                code: WarningCode::AnswerChanged,
                param: format!("content[{}]", content.len()),
                message: format!("call {place} of a tool was cut short, and is left out"),
            });
            continue;
        };
        let call_id = call.get("id").and_then(Tree::text).unwrap_or_default();
        let call_id = match &*call_id {
            "" => format!("toolu_{}", id::request()),
            id => id.to_owned(),
        };
        let mut block = Tree::object([
            ("type", Tree::string("tool_use")),
            ("id", Tree::string(&call_id)),
            ("name", Tree::string(&of("name").unwrap_or_default())),
            ("input", Tree::Plain(input.written().into())),
        ]);
        if let Some(extra) = call.get("extra_content") {
            block.set("extra_content", extra.clone());
        }
        content.push(block);
    }
    Ok(content)
}

/// The tokens used. The Messages API counts what was read from a cache, and written to one, beside
/// the input.
fn usage<'a>(completion: &Completion<'_, '_>) -> Tree<'a> {
    let usage = completion.usage.unwrap_or_default();
    let cached = u64::try_from(usage.cached_tokens).unwrap_or(0);
    let input = u64::try_from(usage.input_tokens).unwrap_or(0);
    let written = completion.cache_write_tokens;
    let thinking = Tree::object([("thinking_tokens", Tree::number(usage.reasoning_tokens))]);
    Tree::object([
        (
            "input_tokens",
            Tree::number(input.saturating_sub(cached).saturating_sub(written)),
        ),
        ("cache_creation_input_tokens", Tree::number(written)),
        ("cache_read_input_tokens", Tree::number(cached)),
        ("output_tokens", Tree::number(usage.output_tokens)),
        ("output_tokens_details", thinking),
    ])
}

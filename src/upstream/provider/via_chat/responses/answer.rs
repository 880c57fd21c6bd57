//! A chat completion as a Response.

use crate::domain::id;
use crate::upstream::provider::tree::Tree;
use crate::upstream::provider::via_chat::completion::{Completion, arguments, says_something};
use crate::upstream::provider::via_chat::request::typed;

/// The Response. `echo`: the members that it has from the request.
pub(in crate::upstream::provider::via_chat) fn written(
    completion: &Completion<'_, '_>,
    echo: &str,
) -> String {
    let id = match &*completion.id {
        "" => id::request(),
        id => id.to_owned(),
    };
    let cut = match &*completion.finish_reason {
        "length" => Some("max_output_tokens"),
        "content_filter" => Some("content_filter"),
        _ => None,
    };
    let status = if cut.is_some() {
        "incomplete"
    } else {
        "completed"
    };
    let why = cut.map_or_else(Tree::null, |reason| {
        Tree::object([("reason", Tree::string(reason))])
    });
    let mut response = Tree::object([
        ("id", Tree::string(&format!("resp_{id}"))),
        ("object", Tree::string("response")),
        ("created_at", Tree::number(completion.created)),
        ("status", Tree::string(status)),
        ("background", Tree::boolean(false)),
        ("error", Tree::null()),
        ("incomplete_details", why),
        ("previous_response_id", Tree::null()),
        ("truncation", Tree::string("disabled")),
        ("model", Tree::string(&completion.model)),
        ("output", Tree::List(output(completion, &id, status))),
        ("usage", usage(completion)),
    ]);
    if let Some(tier) = completion.service_tier {
        response.set("service_tier", tier.clone());
    }
    let written = response.written();
    // The members of the request stand before those of the answer.
    format!("{{{echo}{}", written.get(1..).unwrap_or_default())
}

fn output<'a>(completion: &Completion<'_, 'a>, id: &str, status: &str) -> Vec<Tree<'a>> {
    let mut output = Vec::new();
    if let Some(thought) = completion.reasoning() {
        let part = typed("reasoning_text", "text", thought);
        output.push(Tree::object([
            ("id", Tree::string(&format!("rs_{id}"))),
            ("type", Tree::string("reasoning")),
            ("summary", Tree::List(Vec::new())),
            ("content", Tree::List(vec![part])),
        ]));
    }
    let mut parts = Vec::new();
    let calls = completion.calls();
    if let Some(said) = completion.content()
        && (says_something(&said) || (calls.is_empty() && completion.refusal().is_none()))
    {
        let mut part = typed("output_text", "text", said);
        part.set("annotations", Tree::List(annotations(completion)));
        part.set("logprobs", Tree::List(logprobs(completion)));
        parts.push(part);
    }
    if let Some(refusal) = completion.refusal() {
        parts.push(typed("refusal", "refusal", refusal));
    }
    if !parts.is_empty() {
        let mut message = Tree::object([
            ("id", Tree::string(&format!("msg_{id}"))),
            ("type", Tree::string("message")),
            ("status", Tree::string(status)),
            ("role", Tree::string("assistant")),
            ("content", Tree::List(parts)),
        ]);
        // What a text is taken from, in a provider's own form.
        if let Some(citations) = completion.message.get("citations") {
            message.set("citations", citations.clone());
        }
        output.push(message);
    }
    for (place, call) in calls.iter().enumerate() {
        output.push(tool_call(call, &format!("{id}_{place}"), status));
    }
    output
}

fn tool_call<'a>(call: &Tree<'a>, id: &str, status: &str) -> Tree<'a> {
    let of = |object: Option<&Tree<'a>>, key: &str| {
        let value = object.and_then(|object| object.get(key)).cloned();
        value.unwrap_or_else(|| Tree::string(""))
    };
    let custom = call.get("custom");
    let function = call.get("function");
    let (kind, prefix, key, made) = match custom {
        Some(_) => ("custom_tool_call", "ctc", "input", custom),
        None => ("function_call", "fc", "arguments", function),
    };
    // The call's output names it.
    let call_id = match call.get("id") {
        Some(own) if says_something(own) => own.clone(),
        _ => Tree::string(&format!("call_{id}")),
    };
    let said = match custom {
        Some(_) => of(made, key),
        None => arguments(call),
    };
    let mut out = Tree::object([
        ("id", Tree::string(&format!("{prefix}_{id}"))),
        ("type", Tree::string(kind)),
        ("call_id", call_id),
        ("name", of(made, "name")),
        (key, said),
    ]);
    if custom.is_none() {
        out.set("status", Tree::string(status));
    }
    if let Some(extra) = call.get("extra_content") {
        out.set("extra_content", extra.clone());
    }
    out
}

/// Chat completions have what is said of a URL in an object of its own.
fn annotations<'a>(completion: &Completion<'_, 'a>) -> Vec<Tree<'a>> {
    let annotations = completion.message.get("annotations").and_then(Tree::list);
    let annotations = annotations.unwrap_or_default().iter();
    let flat = annotations.map(|annotation| {
        let cited = annotation.get("url_citation").and_then(Tree::members);
        let Some(cited) = cited else {
            return annotation.clone();
        };
        let mut flat = Tree::Object(cited.to_vec());
        flat.set("type", Tree::string("url_citation"));
        flat
    });
    flat.collect()
}

fn logprobs<'a>(completion: &Completion<'_, 'a>) -> Vec<Tree<'a>> {
    let logprobs = completion.choice.get("logprobs");
    let tokens = logprobs.and_then(|logprobs| logprobs.get("content")?.list());
    let tokens = tokens.unwrap_or_default().iter();
    tokens.map(token).collect()
}

/// A token, with its bytes and its likely others, which Responses always have.
fn token<'a>(token: &Tree<'a>) -> Tree<'a> {
    let mut out = with_bytes(token);
    let others = token.get("top_logprobs").and_then(Tree::list);
    let others = others.unwrap_or_default().iter().map(with_bytes);
    out.set("top_logprobs", Tree::List(others.collect()));
    out
}

fn with_bytes<'a>(token: &Tree<'a>) -> Tree<'a> {
    let mut out = token.clone();
    if token.get("bytes").is_none() {
        out.set("bytes", Tree::List(Vec::new()));
    }
    out
}

fn usage<'a>(completion: &Completion<'_, '_>) -> Tree<'a> {
    let Some(usage) = completion.usage else {
        return Tree::null();
    };
    let input = Tree::object([
        ("cached_tokens", Tree::number(usage.cached_tokens)),
        (
            "cache_write_tokens",
            Tree::number(completion.cache_write_tokens),
        ),
    ]);
    let output = [("reasoning_tokens", Tree::number(usage.reasoning_tokens))];
    Tree::object([
        ("input_tokens", Tree::number(usage.input_tokens)),
        ("input_tokens_details", input),
        ("output_tokens", Tree::number(usage.output_tokens)),
        ("output_tokens_details", Tree::object(output)),
        ("total_tokens", Tree::number(usage.total_tokens)),
    ])
}

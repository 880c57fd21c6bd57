//! A chat completion as its answer is read, whichever server made it.

use std::borrow::Cow;

use crate::domain::usage::{self, Usage};
use crate::upstream::provider::tree::Tree;

/// What a chat completion says.
#[derive(Debug)]
pub(super) struct Completion<'t, 'a> {
    /// Without the prefix that ids of chat completions have.
    pub(super) id: Cow<'t, str>,
    /// In Unix seconds.
    pub(super) created: u64,
    pub(super) model: Cow<'t, str>,
    pub(super) message: &'t Tree<'a>,
    pub(super) choice: &'t Tree<'a>,
    pub(super) finish_reason: Cow<'t, str>,
    /// As the server reports it; `None`: it does not.
    pub(super) usage: Option<Usage>,
    /// Those of the input that were written to a cache.
    pub(super) cache_write_tokens: u64,
    pub(super) service_tier: Option<&'t Tree<'a>>,
}

impl<'t, 'a> Completion<'t, 'a> {
    /// `None`: it is no chat completion.
    pub(super) fn read(body: &'t Tree<'a>) -> Option<Self> {
        let choice = body.get("choices")?.list()?.first()?;
        let text = |object: &'t Tree<'a>, key: &str| object.get(key).and_then(Tree::text);
        let usage = body.get("usage");
        let input = usage.and_then(|usage| usage.get("prompt_tokens_details"));
        let written = input.and_then(|input| input.get("cache_write_tokens")?.whole());
        let id = text(body, "id").unwrap_or_default();
        Some(Self {
            id: match id.strip_prefix("chatcmpl-") {
                Some(id) => Cow::Owned(id.to_owned()),
                None => id,
            },
            created: body.get("created").and_then(Tree::whole).unwrap_or(0),
            model: text(body, "model").unwrap_or_default(),
            message: choice.get("message")?,
            choice,
            finish_reason: text(choice, "finish_reason").unwrap_or_default(),
            usage: usage.and_then(|usage| usage::parse(&usage.written())),
            cache_write_tokens: written.unwrap_or(0),
            service_tier: body.get("service_tier"),
        })
    }

    /// What the model said, as it is written: half a surrogate pair in it is no reason to lose it.
    /// Some servers send a list of parts.
    pub(super) fn content(&self) -> Option<Tree<'a>> {
        let content = self.message.get("content")?;
        let Some(parts) = content.list() else {
            return content.is_string().then(|| content.clone());
        };
        let texts = parts.iter().filter_map(|part| inner(part.get("text")?));
        let texts: String = texts.collect();
        Some(Tree::Plain(Cow::Owned(format!("\"{texts}\""))))
    }

    /// What the model thought, under either of the names that servers have for it.
    pub(super) fn reasoning(&self) -> Option<Tree<'a>> {
        let names = ["reasoning_content", "reasoning"].into_iter();
        let mut texts = names.filter_map(|name| self.message.get(name));
        texts.find(|text| says_something(text)).cloned()
    }

    pub(super) fn refusal(&self) -> Option<Tree<'a>> {
        let refusal = self.message.get("refusal");
        refusal.filter(|text| says_something(text)).cloned()
    }

    pub(super) fn calls(&self) -> &'t [Tree<'a>] {
        let calls = self.message.get("tool_calls").and_then(Tree::list);
        calls.unwrap_or_default()
    }
}

/// The arguments of a call, as the text that they should be. Some servers send the object itself,
/// and some nothing where a function takes nothing.
pub(super) fn arguments<'a>(call: &Tree<'a>) -> Tree<'a> {
    let function = call.get("function");
    match function.and_then(|function| function.get("arguments")) {
        Some(text) if text.is_string() => text.clone(),
        Some(object) => Tree::string(&object.written()),
        None => Tree::string("{}"),
    }
}

/// Whether it is a text, and not the empty one.
pub(super) fn says_something(text: &Tree<'_>) -> bool {
    inner(text).is_some_and(|inner| !inner.is_empty())
}

/// What stands between the quotes of a text, as JSON writes it.
fn inner<'t>(text: &'t Tree<'_>) -> Option<&'t str> {
    match text {
        Tree::Plain(written) => written.strip_prefix('"')?.strip_suffix('"'),
        Tree::List(_) | Tree::Object(_) => None,
    }
}

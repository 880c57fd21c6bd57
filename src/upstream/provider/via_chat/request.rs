//! A request for a chat completion that is made of one for another endpoint.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::domain::outcome::Warning;
use crate::upstream::provider::chat::{Notes, Rules, asks_for_nothing, refused};
use crate::upstream::provider::interface::Unsupported;
use crate::upstream::provider::tree::{Member, Tree};

/// As messages to users name what requests are asked as.
pub(super) const API: &str = "a chat completion";

/// A request for a chat completion.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) body: String,
    /// Members that the answer has from the request, as JSON writes them, each with a comma
    /// behind it.
    pub(super) echo: String,
    pub(super) warnings: Vec<Warning>,
    pub(super) places: Places,
}

/// Where in the line stands what stands at a place of the request for a chat completion.
#[derive(Debug)]
pub(super) struct Places {
    /// Of each message.
    pub(super) messages: Vec<String>,
    /// Of what has another name: the name in a chat completion, and the line's own.
    pub(super) names: &'static [(&'static str, &'static str)],
}

impl Places {
    /// The line's own name for a parameter of the request for a chat completion.
    pub(super) fn own(&self, param: &str) -> String {
        let end = param.find(['.', '[']).unwrap_or(param.len());
        let (key, rest) = param.split_at(end);
        if key == "messages"
            && let Some((number, _)) = rest.strip_prefix('[').and_then(|it| it.split_once(']'))
            && let Some(place) = number
                .parse()
                .ok()
                .and_then(|at: usize| self.messages.get(at))
        {
            return place.clone();
        }
        match self.names.iter().find(|(name, _)| *name == key) {
            Some((_, own)) => (*own).to_owned(),
            None => param.replace(".function", ""),
        }
    }
}

/// The messages of a request that is being made.
#[derive(Debug, Default)]
pub(super) struct Messages<'a> {
    all: Vec<Tree<'a>>,
    places: Vec<String>,
    /// What was thought for the last message: it is put there once, when no more is thought.
    thought: String,
}

impl<'a> Messages<'a> {
    pub(super) fn push(&mut self, message: Tree<'a>, place: impl Into<String>) {
        self.place_thought();
        self.all.push(message);
        self.places.push(place.into());
    }

    /// All messages, and the place of each.
    pub(super) fn done(mut self) -> (Vec<Tree<'a>>, Vec<String>) {
        self.place_thought();
        (self.all, self.places)
    }

    /// Adds to what was thought for the last message, if that is the assistant's; whether it is.
    pub(super) fn think(&mut self, said: &str) -> bool {
        let is_of_assistant = self.of_assistant().is_some();
        if is_of_assistant {
            self.thought.push_str(said);
        }
        is_of_assistant
    }

    fn place_thought(&mut self) {
        if self.thought.is_empty() {
            return;
        }
        let thought = Tree::string(&std::mem::take(&mut self.thought));
        if let Some(last) = self.all.last_mut() {
            last.set("reasoning_content", thought);
        }
    }

    /// Adds to what the last message says, if that is one of the assistant's with calls. Else
    /// returns what it would say.
    pub(super) fn say_beside_calls(&mut self, said: Tree<'a>) -> Option<Tree<'a>> {
        let last = self.of_assistant();
        let Some(Tree::Object(members)) = last.filter(|last| last.get("tool_calls").is_some())
        else {
            return Some(said);
        };
        let content = members.iter_mut().find(|(key, _)| key == "content");
        let Some((_, content)) = content else {
            return Some(said);
        };
        *content = match std::mem::replace(content, Tree::null()) {
            before if before.is_null() => said,
            before => {
                let mut before = parts(before);
                before.extend(parts(said));
                Tree::List(before)
            }
        };
        None
    }

    /// The last message, if it is the assistant's.
    fn of_assistant(&mut self) -> Option<&mut Tree<'a>> {
        let last = self.all.last_mut()?;
        is_of(last, "assistant").then_some(last)
    }

    /// Adds a call to the assistant's message.
    pub(super) fn call(&mut self, call: Tree<'a>, place: &str) {
        if self.of_assistant().is_none() {
            self.push(message("assistant", Tree::null()), place);
        }
        if let Some(last) = self.of_assistant() {
            append(last, "tool_calls", call);
        }
    }
}

/// What was said, as a list.
fn parts(said: Tree<'_>) -> Vec<Tree<'_>> {
    match said {
        Tree::List(parts) => parts,
        text => vec![typed("text", "text", text)],
    }
}

fn is_of(message: &Tree<'_>, role: &str) -> bool {
    message.get("role").is_some_and(|own| own.is_text(role))
}

/// Adds an item to the list that a member is.
fn append<'a>(object: &mut Tree<'a>, key: &'a str, item: Tree<'a>) {
    if let Tree::Object(members) = object
        && let Some((_, Tree::List(items))) = members.iter_mut().find(|(own, _)| own == key)
    {
        items.push(item);
        return;
    }
    object.set(key, Tree::List(vec![item]));
}

pub(super) fn message<'a>(role: &str, content: Tree<'a>) -> Tree<'a> {
    Tree::object([("role", Tree::string(role)), ("content", content)])
}

pub(super) fn typed<'a>(kind: &str, key: &'a str, value: Tree<'a>) -> Tree<'a> {
    Tree::object([("type", Tree::string(kind)), (key, value)])
}

/// A call of a function, as chat completions have it. `call`: what it is made of, for members that
/// are passed on.
pub(super) fn function_call<'a>(
    id: Tree<'a>,
    name: Tree<'a>,
    arguments: Tree<'a>,
    call: &Tree<'a>,
) -> Tree<'a> {
    let function = Tree::object([("name", name), ("arguments", arguments)]);
    let mut out = Tree::object([
        ("id", id),
        ("type", Tree::string("function")),
        ("function", function),
    ]);
    // A provider wants it back with the call.
    if let Some(extra) = call.get("extra_content") {
        out.set("extra_content", extra.clone());
    }
    out
}

/// One text is a string; all else a list.
pub(super) fn content(mut parts: Vec<Tree<'_>>) -> Tree<'_> {
    let is_text = |part: &Tree<'_>| part.get("type").is_some_and(|kind| kind.is_text("text"));
    if parts.len() == 1
        && is_text(&parts[0])
        && let Some(Tree::Object(members)) = parts.pop()
    {
        let text = members.into_iter().find(|(key, _)| key == "text");
        return text.map_or_else(Tree::null, |(_, text)| text);
    }
    Tree::List(parts)
}

/// A member that must be a string.
pub(super) fn text<'a>(object: &Tree<'a>, key: &str, place: &str) -> Result<Tree<'a>, Unsupported> {
    match object.get(key) {
        Some(text) if text.is_string() => Ok(text.clone()),
        _ => Err(refused(
            format!("{place}.{key}"),
            "it is missing, or no text",
        )),
    }
}

/// The decoded text of a member, or nothing.
pub(super) fn word<'t>(object: &'t Tree<'_>, key: &str) -> Cow<'t, str> {
    object.get(key).and_then(Tree::text).unwrap_or_default()
}

pub(super) fn members<'t, 'a>(
    object: &'t Tree<'a>,
    place: &str,
) -> Result<&'t [Member<'a>], Unsupported> {
    let members = object.members();
    members.ok_or_else(|| refused(place, "it is no object"))
}

pub(super) fn list<'t, 'a>(
    value: &'t Tree<'a>,
    place: &str,
) -> Result<&'t [Tree<'a>], Unsupported> {
    value.list().ok_or_else(|| refused(place, "it is no list"))
}

/// Tools are called by the model itself, and not by programs that it writes.
pub(super) fn check_callers(object: &Tree<'_>, key: &str, place: &str) -> Result<(), Unsupported> {
    let is_direct = match object.get(key) {
        None => true,
        Some(Tree::List(callers)) => callers.iter().any(|one| one.is_text("direct")),
        Some(caller) => word(caller, "type") == "direct",
    };
    let reason = "a program that the model writes cannot call a tool here";
    is_direct
        .then_some(())
        .ok_or_else(|| refused(format!("{place}.{key}"), reason))
}

/// Judges the members of a part of a request; none is passed on.
pub(super) fn judge(
    notes: &mut Notes,
    object: &Tree<'_>,
    rules: &Rules,
    place: &str,
) -> Result<(), Unsupported> {
    let is_asked_for = |(key, value): &&Member<'_>| key != "async" || !value.is_plain("false");
    let place_of = format!("{place}.");
    for member in members(object, place)?.iter().filter(is_asked_for) {
        let is_passed = notes.passes(member, rules, &place_of, API)?;
        debug_assert!(!is_passed, "no key of a part is passed on");
    }
    Ok(())
}

/// Judges the members of a request; returns those that are passed on. What nobody knows is passed
/// on, too: the server behind judges it.
pub(super) fn judge_all<'a>(
    notes: &mut Notes,
    members: &[Member<'a>],
    rules: &Rules,
) -> Result<Vec<Member<'a>>, Unsupported> {
    let mut passed: Vec<Member<'a>> = Vec::new();
    let mut place_of = HashMap::new();
    for member @ (key, value) in members {
        let is_known = is_known(rules, key);
        if !is_known && OWN.contains(&&**key) && !asks_for_nothing(key, value) {
            return Err(refused(&**key, NOT_OF_THE_ENDPOINT));
        }
        let is_passed = if is_known {
            notes.passes(member, rules, "", API)?
        } else {
            !OWN.contains(&&**key)
        };
        if !is_passed {
            continue;
        }
        // Of a key that stands twice the last counts, as with most readers.
        if let Some(place) = place_of.get(&**key) {
            passed[*place] = member.clone();
        } else {
            place_of.insert(&**key, passed.len());
            passed.push(member.clone());
        }
    }
    Ok(passed)
}

/// Why a key of [`OWN`] is rejected.
pub(super) const NOT_OF_THE_ENDPOINT: &str = "the line's endpoint has nothing like it";

pub(super) fn is_known(rules: &Rules, key: &str) -> bool {
    rules.iter().any(|(known, _)| *known == key)
}

/// The keys of chat completions that the translation writes, or that would ask for an answer that
/// it does not read.
pub(super) const OWN: [&str; 14] = [
    "audio",
    "function_call",
    "functions",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "modalities",
    "n",
    "reasoning_effort",
    "response_format",
    "top_logprobs",
    "verbosity",
    "web_search_options",
];

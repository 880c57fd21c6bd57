//! A request for a chat completion that is made of one for another endpoint.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::domain::asked;
use crate::domain::outcome::Warning;
use crate::upstream::capabilities::NOT_TAKEN;
use crate::upstream::provider::chat::{Notes, Rules, asks_for_nothing, refused};
use crate::upstream::provider::interface::Unsupported;
use crate::upstream::provider::tree::{Member, Tree};
use crate::upstream::settings::{
    Capabilities, CapabilitySettings, ReasoningKey, UnsupportedParams, UpstreamSettings,
};

/// As messages to users name what requests are asked as.
pub(super) const API: &str = "a chat completion";

/// What a translation knows of the server that is asked.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) policy: UnsupportedParams,
    /// The server is asked for the chat completion as it is: no provider translates it again.
    pub(super) is_direct: bool,
    reasoning_key: Option<ReasoningKey>,
    base_url: String,
    says: Vec<CapabilitySettings>,
}

impl Server {
    pub(super) fn new(settings: &UpstreamSettings, is_direct: bool) -> Self {
        Self {
            policy: settings.unsupported_params,
            is_direct,
            reasoning_key: settings.reasoning_key,
            base_url: settings.base_url.clone(),
            says: settings.capabilities.clone(),
        }
    }

    /// Under which key it takes what the assistant thought before; `None`: it does not.
    pub(super) fn thought_key(&self) -> Option<&'static str> {
        match self.reasoning_key {
            _ if !self.is_direct => Some(ReasoningKey::ReasoningContent.as_str()),
            key => key.map(ReasoningKey::as_str),
        }
    }

    /// Whether a model thinks, as far as that is known.
    pub(super) fn thinks(&self, model: &str) -> Option<bool> {
        Capabilities::thinks(&self.base_url, &self.says, model)
    }

    /// Leaves out of a request for a chat completion what its model does not take, as far as the
    /// configuration says so, or rejects it.
    pub(super) fn check(
        &self,
        request: &mut Tree<'_>,
        model: &str,
        places: &Places,
        notes: &mut Notes,
    ) -> Result<(), Unsupported> {
        let Tree::Object(members) = request else {
            return Ok(());
        };
        if self.says.is_empty() {
            return Ok(());
        }
        let says = Capabilities::said(&self.says, model);
        let mut refused = Ok(());
        members.retain(|(key, value)| {
            let is_taken = refused.is_err()
                || !says.refuses(key)
                || asked::asks_for_no_ability(key, &value.written());
            if !is_taken {
                refused = notes.unsupported(places.own(key), NOT_TAKEN);
            }
            is_taken
        });
        refused
    }
}

/// A request for a chat completion.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) body: String,
    /// Members that the answer has from the request, as JSON writes them, each with a comma
    /// behind it.
    pub(super) echo: String,
    /// Where the model is to stop, as the line says it: JSON, or nothing.
    pub(super) stops: String,
    pub(super) warnings: Vec<Warning>,
    pub(super) places: Places,
}

/// Where in the line stands what stands at a place of the request for a chat completion.
#[derive(Debug)]
pub(super) struct Places {
    /// Of each message.
    pub(super) messages: Vec<String>,
    /// Of what has another name: the name in a chat completion, and the line's own. One that begins
    /// with a dot stands within others.
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
        if let Some((_, own)) = self.names.iter().find(|(name, _)| *name == key) {
            return (*own).to_owned();
        }
        let within = self.names.iter().filter(|(name, _)| name.starts_with('.'));
        let param = param.replace(".function", "");
        within.fold(param, |param, (name, own)| param.replace(name, own))
    }
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

/// Says how tools are to be called. Where there are none, it is an error to say it: what asks for
/// nothing is left out, and a call that must be made is rejected.
pub(super) fn tool_options<'a>(
    out: &mut Tree<'a>,
    has_tools: bool,
    choice: Option<Tree<'a>>,
    parallel: Option<Tree<'a>>,
) -> Result<(), Unsupported> {
    if has_tools {
        if let Some(choice) = choice {
            out.set("tool_choice", choice);
        }
        if let Some(parallel) = parallel {
            out.set("parallel_tool_calls", parallel);
        }
        return Ok(());
    }
    match choice {
        Some(choice) if !choice.is_text("auto") && !choice.is_text("none") => {
            Err(refused("tool_choice", "there are no tools"))
        }
        _ => Ok(()),
    }
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

//! Puts the events of a streamed answer together into one answer: chats and completions, which come
//! in chunks, and the Responses API, whose last event has the whole answer.
//!
//! Some servers and gateways stream whatever they were asked for. The answer was computed, so it is
//! not thrown away.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::upstream::provider::stream::{Added, Fold};
use crate::upstream::provider::tree::{Member, Tree};

/// The keys of a message whose texts come whole, however often. All other texts come in pieces.
const WHOLE_KEYS: [&str; 8] = [
    "created", "format", "id", "name", "object", "role", "status", "type",
];
/// How many items a list may have at most whose items come in pieces, such as tool calls. For each
/// piece the list is searched.
const ITEMS_MAX: usize = 1_000;
/// No request asks for more choices than this: what is beyond is a mistake.
const CHOICES_MAX: u64 = 1_000;
/// The list whose items are told apart by their index, or by their id where they have none.
const TOOL_CALLS: &str = "tool_calls";
/// The events that end a stream of the Responses API with an answer.
const LAST_EVENTS: [&str; 2] = ["response.completed", "response.incomplete"];
/// The events that end a stream without an answer.
const ERROR_EVENTS: [&str; 2] = ["error", "response.failed"];
/// How the types of events of the Responses API begin, and how those end that have a piece.
const OF_RESPONSE: &str = "response.";
const PIECE: &str = ".delta";
/// Keys of a chunk that only change its length, against those who measure it.
const PADDING: [&str; 2] = ["obfuscation", "p"];

/// The chunks so far of an answer to a chat or a completion, or the answer of the Responses API.
#[derive(Debug)]
pub(in crate::upstream::provider) struct Chunks {
    /// A stream was asked for. Then the server marks its end.
    is_asked: bool,
    top: Vec<Member<'static>>,
    choices: BTreeMap<u64, Choice>,
    /// The last chunk has come, which has the usage alone.
    has_last: bool,
    response: Option<String>,
}

/// A choice: what is said of it, and its message or text.
#[derive(Debug, Default)]
struct Choice {
    members: Vec<Member<'static>>,
    message: Option<Vec<Member<'static>>>,
}

impl Chunks {
    /// `is_asked`: a stream was asked for, with its usage in a last chunk.
    pub(in crate::upstream::provider) fn new(is_asked: bool) -> Self {
        Self {
            is_asked,
            top: Vec::new(),
            choices: BTreeMap::new(),
            has_last: false,
            response: None,
        }
    }

    /// Adds a chunk. `None` if it is no chunk of such an answer.
    fn chunk(&mut self, members: Vec<Member<'_>>) -> Option<Added> {
        let (mut held, mut is_content, mut has_choices, mut has_usage) = (0, false, false, false);
        for (key, value) in members {
            match &*key {
                "choices" => {
                    let choices = match value {
                        Tree::List(choices) => choices,
                        null if null.is_null() => Vec::new(),
                        _ => return None,
                    };
                    // Holds its place among the members.
                    held += update(&mut self.top, vec![(key, Tree::null())]);
                    has_choices = !choices.is_empty();
                    for choice in choices {
                        let (added, says) = self.choice(choice)?;
                        held += added;
                        is_content |= says;
                    }
                }
                key if PADDING.contains(&key) => {}
                _ => {
                    has_usage |= key == "usage" && !is_unsaid(&value);
                    held += update(&mut self.top, vec![(key, value)]);
                }
            }
        }
        self.has_last |= has_usage && !has_choices;
        Some(Added::Part { held, is_content })
    }

    /// Adds a piece of a choice. Returns how many bytes more are held, and whether the piece has
    /// something that the model wrote.
    fn choice(&mut self, piece: Tree<'_>) -> Option<(usize, bool)> {
        let index = piece.get("index").and_then(Tree::whole).unwrap_or(0);
        let Tree::Object(members) = piece else {
            return None;
        };
        if index >= CHOICES_MAX {
            return None;
        }
        let (mut held, mut is_content) = (0, false);
        let choice = self.choices.entry(index).or_insert_with(|| {
            held += size_of::<Choice>();
            Choice::default()
        });
        let has_delta = members.iter().any(|(key, value)| {
            key == "delta" && value.members().is_some_and(|piece| !piece.is_empty())
        });
        for (key, value) in members {
            match (&*key, value) {
                // Some servers repeat the whole message so far beside each piece.
                ("message", Tree::Object(_)) if has_delta => {}
                (key @ ("delta" | "message"), Tree::Object(piece)) => {
                    let says = |(key, value): &Member<'_>| key != "role" && !is_unsaid(value);
                    let says = piece.iter().any(says);
                    is_content |= says;
                    if key == "message" && says {
                        // The message so far, and no piece of it.
                        choice.message = None;
                    }
                    let message = choice.message.get_or_insert_default();
                    held += merge(message, piece, |key| !WHOLE_KEYS.contains(&key))?;
                }
                ("delta" | "message", null) if null.is_null() => {}
                ("delta" | "message", _) => return None,
                (text, value) => {
                    is_content |= text == "text" && !is_unsaid(&value);
                    held += merge(&mut choice.members, vec![(key, value)], |key| key == "text")?;
                }
            }
        }
        Some((held, is_content))
    }
}

impl Fold for Chunks {
    fn add(&mut self, event: Tree<'_>) -> Added {
        let kind = event.get("type").and_then(Tree::text).unwrap_or_default();
        if LAST_EVENTS.contains(&&*kind) {
            let response = event.get("response");
            let response = response.filter(|response| response.members().is_some());
            self.response = response.map(Tree::written);
            return match self.response {
                Some(_) => Added::Last,
                None => Added::Unfit,
            };
        }
        if event.get("error").is_some() || ERROR_EVENTS.contains(&&*kind) {
            return error(&event);
        }
        if kind.starts_with(OF_RESPONSE) {
            return Added::Part {
                held: 0,
                is_content: kind.ends_with(PIECE),
            };
        }
        drop(kind);
        match event {
            Tree::Object(members) => self.chunk(members).unwrap_or(Added::Unfit),
            _ => Added::Unfit,
        }
    }

    fn whole(&mut self, is_done: bool) -> Option<String> {
        if let Some(response) = self.response.take() {
            return Some(response);
        }
        if self.choices.is_empty() || (self.is_asked && !is_done && !self.has_last) {
            return None;
        }
        let is_chat = self.choices.values().any(|choice| choice.message.is_some());
        let choices = std::mem::take(&mut self.choices).into_values();
        let choices = choices.map(Choice::whole).collect::<Option<Vec<_>>>()?;
        let object = if is_chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut top = std::mem::take(&mut self.top);
        top.retain(|(key, value)| key != "usage" || !value.is_null());
        put(&mut top, "object", Tree::string(object));
        put(&mut top, "choices", Tree::List(choices));
        Some(Tree::Object(top).written())
    }
}

impl Choice {
    /// `None`: it has not ended.
    fn whole(self) -> Option<Tree<'static>> {
        let Self {
            mut members,
            message,
        } = self;
        let mut reasons = members.iter().filter(|(key, _)| key == "finish_reason");
        reasons.next().filter(|(_, reason)| !is_unsaid(reason))?;
        if let Some(mut message) = message {
            if find(&mut message, "role").is_none() {
                put(&mut message, "role", Tree::string("assistant"));
            }
            let calls = find(&mut message, TOOL_CALLS);
            if let Some(Tree::List(calls)) = calls {
                for call in calls {
                    let Tree::Object(call) = call else {
                        return None;
                    };
                    // The index only said to which call a piece belongs.
                    call.retain(|(key, _)| key != "index");
                }
            }
            let mut others = message.iter();
            let has_other = others.any(|(key, value)| {
                matches!(&**key, TOOL_CALLS | "function_call" | "refusal" | "audio")
                    && !is_unsaid(value)
            });
            let is_unwritten = match find(&mut message, "content") {
                None => true,
                // A stream begins with an empty text, whatever comes.
                Some(content) => has_other && is_unsaid(content),
            };
            if is_unwritten {
                put(&mut message, "content", Tree::null());
            }
            // Between the index and what is said of the whole, as in a plain answer.
            let place = members.iter().position(|(key, _)| key == "index");
            let place = place.map_or(0, |place| place + 1);
            members.insert(place, (Cow::Borrowed("message"), Tree::Object(message)));
        }
        Some(Tree::Object(members))
    }
}

/// The error of an event.
fn error(event: &Tree<'_>) -> Added {
    let of_response = event.get("response").and_then(|one| one.get("error"));
    let error = event.get("error").or(of_response).unwrap_or(event);
    Added::Error {
        status: status(error),
        body: Tree::object([("error", error.clone())]).written(),
    }
}

/// The status that an error would have had in place of a stream. `None`: the error does not say.
fn status(error: &Tree<'_>) -> Option<u16> {
    let words = ["code", "type", "status"].map(|key| error.get(key));
    let mut numbers = words.iter().flatten().filter_map(|word| match word {
        Tree::Plain(written) => written.trim_matches('"').parse().ok(),
        _ => None,
    });
    if let Some(status) = numbers.find(|status| (400..600).contains(status)) {
        return Some(status);
    }
    let mut statuses = words.into_iter().flatten().filter_map(|word| {
        Some(match &*word.text()? {
            "invalid_request_error"
            | "invalid_prompt"
            | "context_length_exceeded"
            | "content_policy_violation"
            | "BadRequestError" => 400,
            "authentication_error" | "invalid_api_key" => 401,
            "billing_error" => 402,
            "permission_error" => 403,
            "not_found_error" | "model_not_found" | "NotFoundError" => 404,
            "insufficient_quota"
            | "rate_limit_error"
            | "rate_limit_exceeded"
            | "requests"
            | "tokens" => 429,
            "server_error" | "api_error" | "internal_error" | "InternalServerError" => 500,
            "overloaded_error" | "overloaded" | "engine_overloaded" => 503,
            "timeout" | "timeout_error" => 504,
            _ => return None,
        })
    });
    statuses.next()
}

/// Whether a value says nothing. Servers send null or an empty text for what they leave out or have
/// sent before.
fn is_unsaid(value: &Tree<'_>) -> bool {
    value.is_null() || value.is_plain("\"\"")
}

fn find<'m, 'a>(members: &'m mut [Member<'a>], key: &str) -> Option<&'m mut Tree<'a>> {
    let mut members = members.iter_mut();
    members
        .find(|(known, _)| known == key)
        .map(|(_, value)| value)
}

/// Sets a member, in its place.
fn put(members: &mut Vec<Member<'static>>, key: &'static str, value: Tree<'static>) {
    match find(members, key) {
        Some(own) => *own = value,
        None => members.push((Cow::Borrowed(key), value)),
    }
}

/// Adds a member that was not there. Returns how many bytes more are held.
fn add(whole: &mut Vec<Member<'static>>, key: Cow<'_, str>, value: Tree<'_>) -> usize {
    let held = key.len() + value.weight();
    whole.push((Cow::Owned(key.into_owned()), value.into_owned()));
    held
}

/// Adds what a chunk says of the whole answer. Such values never come in pieces. Returns how many
/// bytes more are held.
fn update(whole: &mut Vec<Member<'static>>, chunk: Vec<Member<'_>>) -> usize {
    let mut held = 0;
    for (key, value) in chunk {
        match (find(whole, &key), value) {
            (None, value) => held += add(whole, key, value),
            (Some(_), value) if is_unsaid(&value) => {}
            // The usage may come in two parts.
            (Some(Tree::Object(whole)), Tree::Object(value)) => held += update(whole, value),
            (Some(own), value) => {
                held += value.weight().saturating_sub(own.weight());
                *own = value.into_owned();
            }
        }
    }
    held
}

/// Adds what a chunk says to what earlier chunks said. `is_pieced`: whether the texts of a key come
/// in pieces. Returns how many bytes more are held; `None` if the two do not go together.
fn merge(
    whole: &mut Vec<Member<'static>>,
    piece: Vec<Member<'_>>,
    is_pieced: fn(&str) -> bool,
) -> Option<usize> {
    let mut held = 0;
    for (key, mut piece) in piece {
        let own = find(whole, &key);
        if let (TOOL_CALLS, Tree::List(calls)) = (&*key, &mut piece) {
            place(
                own.as_deref().and_then(Tree::list).unwrap_or_default(),
                calls,
            );
        }
        let Some(own) = own else {
            held += add(whole, key, joinable(piece));
            continue;
        };
        match (own, piece) {
            (_, piece) if is_unsaid(&piece) => {}
            (own, piece) if is_unsaid(own) => {
                held += piece.weight();
                *own = joinable(piece).into_owned();
            }
            (Tree::Plain(own), Tree::Plain(piece))
                if is_pieced(&key) && own.starts_with('"') && piece.starts_with('"') =>
            {
                held += piece.len();
                join(own, &piece);
            }
            (Tree::Object(own), Tree::Object(piece)) => held += merge(own, piece, is_pieced)?,
            (Tree::List(own), Tree::List(pieces)) => {
                for piece in pieces {
                    held += merge_item(own, piece, is_pieced)?;
                }
            }
            (Tree::Plain(own), Tree::Plain(piece)) if kind(own) == kind(&piece) => {
                held += piece.len().saturating_sub(own.len());
                *own = Cow::Owned(piece.into_owned());
            }
            // For example a text, and then a list of texts: neither alone is the answer.
            _ => return None,
        }
    }
    Some(held)
}

/// What a scalar is, by how it begins.
fn kind(written: &str) -> u8 {
    match written.as_bytes().first() {
        Some(b'"') => b'"',
        Some(b't' | b'f') => b't',
        _ => b'0',
    }
}

/// Puts a text behind another one, both as JSON writes them.
fn join(whole: &mut Cow<'static, str>, piece: &str) {
    let whole = whole.to_mut();
    whole.pop();
    whole.push_str(piece.get(1..).unwrap_or_default());
}

/// A value to which more may be added: the items of a list that are whole are kept as they are
/// written, which takes less memory.
fn joinable(mut value: Tree<'_>) -> Tree<'_> {
    if let Tree::List(items) = &mut value {
        for item in items {
            if item.get("index").is_none() {
                *item = Tree::Plain(Cow::Owned(item.written()));
            }
        }
    }
    value
}

/// Gives tool calls that have no index the index of their place. A call with the id of a known one
/// is a piece of that one. A call with neither an id nor a name is a piece of the last.
fn place(known: &[Tree<'_>], calls: &mut [Tree<'_>]) {
    let said = |call: &Tree<'_>, key: &str| call.get(key).is_some_and(|one| !is_unsaid(one));
    let index = |call: &Tree<'_>| call.get("index").and_then(Tree::whole);
    let mut next = known
        .iter()
        .filter_map(index)
        .max()
        .map_or(0, |last| last + 1);
    let mut last = known.last().map(|call| (index(call), said(call, "id")));
    for call in calls {
        if call.get("index").is_some() {
            continue;
        }
        let has_id = said(call, "id");
        let of_id = known
            .iter()
            .find(|one| has_id && one.get("id") == call.get("id"));
        let is_named = call
            .get("function")
            .is_some_and(|function| said(function, "name"));
        // Servers that give no ids send each call whole.
        let of_last = last.filter(|(_, last_has_id)| !has_id && (*last_has_id || !is_named));
        let own = of_id
            .and_then(index)
            .or(of_last.and_then(|(index, _)| index));
        let own = own.unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        call.set("index", Tree::number(own));
        last = Some((Some(own), has_id));
    }
}

/// Adds an item to a list. An item with the index of another one is a piece of that one, unless the
/// two have different ids or types: some servers give all tool calls the same index.
fn merge_item(
    whole: &mut Vec<Tree<'static>>,
    piece: Tree<'_>,
    is_pieced: fn(&str) -> bool,
) -> Option<usize> {
    let Some(index) = piece.get("index").and_then(Tree::whole) else {
        let item = Tree::Plain(Cow::Owned(piece.written()));
        let held = item.weight();
        whole.push(item);
        return Some(held);
    };
    if whole.len() > ITEMS_MAX {
        return None;
    }
    let agrees = |item: &Tree<'_>, key: &str| {
        let own = item.get(key).filter(|own| !is_unsaid(own));
        let other = piece.get(key).filter(|other| !is_unsaid(other));
        own.zip(other).is_none_or(|(own, other)| own == other)
    };
    let same = |item: &&mut Tree<'_>| {
        item.get("index").and_then(Tree::whole) == Some(index)
            && agrees(item, "id")
            && agrees(item, "type")
    };
    match (whole.iter_mut().rfind(same), piece) {
        (Some(Tree::Object(item)), Tree::Object(piece)) => merge(item, piece, is_pieced),
        (_, piece) => {
            let held = piece.weight();
            whole.push(piece.into_owned());
            Some(held)
        }
    }
}

#[cfg(test)]
mod tests;

//! The messages of a request for a chat completion, in the order that chat completions want: the
//! outputs of tools right behind their calls.

use std::collections::HashSet;

use super::request::{Server, content, message, typed, word};
use crate::upstream::provider::chat::Notes;
use crate::upstream::provider::tree::Tree;

/// The messages of a request that is being made.
#[derive(Debug)]
pub(super) struct Messages<'a> {
    all: Vec<Placed<'a>>,
    /// Those that stand between calls and their outputs: they come behind the outputs, as chat
    /// completions want it.
    held: Vec<Placed<'a>>,
    /// The calls whose outputs are still to come, by their ids.
    awaited: HashSet<String>,
    /// Where in `all` the message with those calls is.
    calls_at: usize,
    /// What was thought for the message that was added last: it is put there once, when no more is
    /// thought.
    thought: String,
    is_last_held: bool,
    /// Under which key thoughts are sent; `None`: the server does not take them.
    thought_key: Option<&'static str>,
    /// What tools have returned beside texts, where a message of a tool has texts alone.
    attached: Option<Attached<'a>>,
}

/// A message, and its place in the line.
type Placed<'a> = (Tree<'a>, String);

/// Parts that a user's message says behind the outputs of tools.
#[derive(Debug, Default)]
struct Attached<'a> {
    parts: Vec<Tree<'a>>,
    place: String,
    /// How many the request has had.
    count: u64,
}

impl<'a> Messages<'a> {
    pub(super) fn new(server: &Server) -> Self {
        Self {
            all: Vec::new(),
            held: Vec::new(),
            awaited: HashSet::new(),
            calls_at: 0,
            thought: String::new(),
            is_last_held: false,
            thought_key: server.thought_key(),
            attached: server.is_direct.then(Attached::default),
        }
    }

    /// Adds a message that is no output of a tool.
    pub(super) fn push(&mut self, message: Tree<'a>, place: impl Into<String>) {
        self.place_thought();
        self.is_last_held = !self.awaited.is_empty();
        let placed = (message, place.into());
        if self.is_last_held {
            self.held.push(placed);
        } else {
            self.add(placed);
        }
    }

    /// Adds what a tool has returned to a call.
    pub(super) fn output(
        &mut self,
        id: Tree<'a>,
        parts: Vec<Tree<'a>>,
        place: &str,
        notes: &mut Notes,
    ) {
        self.place_thought();
        self.is_last_held = false;
        if let Some(id) = id.text() {
            self.awaited.remove(&*id);
        }
        let parts = self.attach(parts, place, notes);
        let said = if parts.is_empty() {
            Tree::string("")
        } else {
            content(parts)
        };
        let mut out = message("tool", said);
        out.set("tool_call_id", id);
        self.all.push((out, place.to_owned()));
        if self.awaited.is_empty() {
            for held in std::mem::take(&mut self.held) {
                self.add(held);
            }
        }
    }

    /// The parts of an output that its message can have. A user's message says the others.
    fn attach(&mut self, parts: Vec<Tree<'a>>, place: &str, notes: &mut Notes) -> Vec<Tree<'a>> {
        let Some(attached) = &mut self.attached else {
            return parts;
        };
        let before = attached.count;
        let parts = parts.into_iter().map(|part| {
            if word(&part, "type") == "text" {
                return part;
            }
            attached.count += 1;
            let name = format!("Attachment {}", attached.count);
            let heading = Tree::string(&format!("{name}:"));
            attached.parts.push(typed("text", "text", heading));
            attached.parts.push(part);
            typed("text", "text", Tree::string(&format!("See {name}.")))
        });
        let parts = parts.collect();
        if attached.count > before {
            place.clone_into(&mut attached.place);
            let message = "what is no text stands in a message of the user behind it";
            notes.changed(place, message);
        }
        parts
    }

    /// Adds a message that is no output of a tool, behind what tools have returned.
    fn add(&mut self, (mut message, place): Placed<'a>) {
        if let Some(mut parts) = self.take_attached() {
            if is_of(&message, "user")
                && let Tree::Object(members) = &mut message
                && let Some((_, said)) = members.iter_mut().find(|(key, _)| key == "content")
            {
                parts.extend(list_of(std::mem::replace(said, Tree::null())));
                *said = Tree::List(parts);
            } else {
                self.add_attached(parts);
            }
        }
        self.all.push((message, place));
    }

    fn take_attached(&mut self) -> Option<Vec<Tree<'a>>> {
        let parts = std::mem::take(&mut self.attached.as_mut()?.parts);
        (!parts.is_empty()).then_some(parts)
    }

    fn add_attached(&mut self, parts: Vec<Tree<'a>>) {
        let place = self
            .attached
            .as_ref()
            .map(|attached| attached.place.clone());
        let said = message("user", Tree::List(parts));
        self.all.push((said, place.unwrap_or_default()));
    }

    /// All messages, and the place of each.
    pub(super) fn done(mut self) -> (Vec<Tree<'a>>, Vec<String>) {
        self.place_thought();
        for held in std::mem::take(&mut self.held) {
            self.add(held);
        }
        if let Some(parts) = self.take_attached() {
            self.add_attached(parts);
        }
        self.all.into_iter().unzip()
    }

    /// Adds to what was thought for the message that was added last, if that is the assistant's.
    /// Else, or where the server takes no thoughts, says that it is left out.
    pub(super) fn think(&mut self, said: &str, place: impl Into<String>, notes: &mut Notes) {
        if self.thought_key.is_none() {
            let message = "the upstream has no `reasoning_key`, by which it would take thoughts";
            notes.dropped(place, message);
        } else if self.last_of_assistant().is_some() {
            self.thought.push_str(said);
        } else {
            notes.dropped(place, "nothing of the assistant's stands behind it");
        }
    }

    fn place_thought(&mut self) {
        if self.thought.is_empty() {
            return;
        }
        let thought = Tree::string(&std::mem::take(&mut self.thought));
        let key = self.thought_key;
        if let (Some(last), Some(key)) = (self.last(), key) {
            last.set(key, thought);
        }
    }

    /// Adds to what the assistant has said beside its calls, if the last message is one with calls.
    /// Else returns what it would say.
    pub(super) fn say_beside_calls(&mut self, said: Tree<'a>) -> Option<Tree<'a>> {
        let last = self.last_of_assistant();
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
                let mut before = list_of(before);
                before.extend(list_of(said));
                Tree::List(before)
            }
        };
        None
    }

    /// The message that was added last.
    fn last(&mut self) -> Option<&mut Tree<'a>> {
        let all = if self.is_last_held {
            &mut self.held
        } else {
            &mut self.all
        };
        all.last_mut().map(|(message, _)| message)
    }

    fn last_of_assistant(&mut self) -> Option<&mut Tree<'a>> {
        self.last().filter(|last| is_of(last, "assistant"))
    }

    /// Adds a call to the assistant's message. `awaited`: the call's id, where its output comes
    /// later. As long as outputs are awaited, calls are of the message whose outputs they are.
    pub(super) fn call(&mut self, call: Tree<'a>, awaited: Option<String>, place: &str) {
        if self.awaited.is_empty() {
            if self.last_of_assistant().is_none() {
                self.push(message("assistant", Tree::null()), place);
            }
            self.calls_at = self.all.len().saturating_sub(1);
        }
        if let Some((message, _)) = self.all.get_mut(self.calls_at) {
            append(message, "tool_calls", call);
        }
        self.awaited.extend(awaited);
    }
}

/// What was said, as a list.
fn list_of(said: Tree<'_>) -> Vec<Tree<'_>> {
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

//! Messages and their blocks as messages of a chat completion.

use crate::upstream::provider::chat::{Notes, Rule, refused};
use crate::upstream::provider::interface::Unsupported;
use crate::upstream::provider::tree::Tree;
use crate::upstream::provider::via_chat::request::{
    content, function_call, judge, list, message, text, typed, word,
};
use crate::upstream::provider::via_chat::turns::Messages;

const MESSAGE_RULES: [(&str, Rule); 2] = [("role", Rule::Mapped), ("content", Rule::Mapped)];

const TEXT_RULES: [(&str, Rule); 4] = [
    ("type", Rule::Mapped),
    ("text", Rule::Mapped),
    ("cache_control", Rule::Harmless),
    // Of an earlier answer.
    ("citations", Rule::Mapped),
];
const IMAGE_RULES: [(&str, Rule); 4] = [
    ("type", Rule::Mapped),
    ("source", Rule::Mapped),
    ("cache_control", Rule::Harmless),
    ("transformations", Rule::Unsupported),
];
const DOCUMENT_RULES: [(&str, Rule); 6] = [
    ("type", Rule::Mapped),
    ("source", Rule::Mapped),
    ("title", Rule::Mapped),
    ("context", Rule::Mapped),
    ("citations", Rule::Mapped),
    ("cache_control", Rule::Harmless),
];
const USE_RULES: [(&str, Rule); 8] = [
    ("type", Rule::Mapped),
    ("id", Rule::Mapped),
    ("name", Rule::Mapped),
    ("input", Rule::Mapped),
    ("caller", Rule::Mapped),
    ("extra_content", Rule::Mapped),
    ("cache_control", Rule::Harmless),
    ("toolset_name", Rule::Refused),
];
const RESULT_RULES: [(&str, Rule); 6] = [
    ("type", Rule::Mapped),
    ("tool_use_id", Rule::Mapped),
    ("content", Rule::Mapped),
    ("is_error", Rule::Mapped),
    ("cache_control", Rule::Harmless),
    ("toolset_name", Rule::Refused),
];
const THINKING_RULES: [(&str, Rule); 3] = [
    ("type", Rule::Mapped),
    ("thinking", Rule::Mapped),
    // Only the model that has signed can read it.
    ("signature", Rule::Mapped),
];

/// What stands before the result of a tool that has failed.
const FAILED: &str = "Error: ";

/// What a source may have, by its type.
const SOURCE_RULES: [(&str, Rule); 6] = [
    ("type", Rule::Mapped),
    ("media_type", Rule::Mapped),
    ("data", Rule::Mapped),
    ("url", Rule::Mapped),
    ("content", Rule::Mapped),
    ("file_id", Rule::Mapped),
];

/// The media type of documents that are sent as files.
const PDF: &str = "application/pdf";

/// Whether nothing is said.
pub(super) fn is_empty(said: &Tree<'_>) -> bool {
    said.list().is_some_and(<[_]>::is_empty) || said.is_plain("\"\"")
}

/// The texts of the system.
pub(super) fn texts<'a>(
    said: &Tree<'a>,
    place: &str,
    notes: &mut Notes,
) -> Result<Tree<'a>, Unsupported> {
    if said.is_string() {
        return Ok(said.clone());
    }
    let blocks = list(said, place)?.iter().enumerate();
    let parts = blocks.map(|(at, block)| {
        let place = format!("{place}[{at}]");
        match &*word(block, "type") {
            "text" => text_part(block, &place, notes),
            _ => Err(refused(place, "the system says texts alone")),
        }
    });
    Ok(content(parts.collect::<Result<_, _>>()?))
}

/// Adds a message. The results of tools are messages of their own, before all else that the user
/// says.
pub(super) fn message_of<'a>(
    own: &Tree<'a>,
    place: &str,
    messages: &mut Messages<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    judge(notes, own, &MESSAGE_RULES, place)?;
    let param = format!("{place}.content");
    let said = own.get("content");
    let said = said.ok_or_else(|| refused(&*param, "it is missing"))?;
    let role = match &*word(own, "role") {
        "user" => "user",
        "assistant" => "assistant",
        "system" => {
            let said = texts(said, &param, notes)?;
            if !is_empty(&said) {
                messages.push(message("system", said), place);
            }
            return Ok(());
        }
        role => {
            let reason = format!("the role \"{role}\" is not known");
            return Err(refused(format!("{place}.role"), reason));
        }
    };
    if said.is_string() {
        messages.push(message(role, said.clone()), place);
        return Ok(());
    }
    let blocks = list(said, &param)?.iter().enumerate();
    let blocks = blocks.map(|(at, block)| (format!("{param}[{at}]"), block));
    if role == "assistant" {
        return of_assistant(blocks, place, messages, notes);
    }
    let mut parts = Vec::new();
    for (at, block) in blocks {
        if word(block, "type") == "tool_result" {
            tool_result(block, &at, messages, notes)?;
        } else {
            parts.extend(part(block, &at, notes)?);
        }
    }
    if !parts.is_empty() {
        messages.push(message(role, content(parts)), place);
    }
    Ok(())
}

fn of_assistant<'t, 'a: 't>(
    blocks: impl Iterator<Item = (String, &'t Tree<'a>)>,
    place: &str,
    messages: &mut Messages<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    let (mut parts, mut calls) = (Vec::new(), Vec::new());
    let mut thought: Option<(String, String)> = None;
    for (at, block) in blocks {
        match &*word(block, "type") {
            "text" => parts.push(text_part(block, &at, notes)?),
            "tool_use" => calls.push(tool_use(block, &at, notes)?),
            "thinking" => {
                judge(notes, block, &THINKING_RULES, &at)?;
                let (thought, _) = thought.get_or_insert_with(|| (String::new(), at));
                thought.push_str(&word(block, "thinking"));
            }
            "redacted_thinking" => {
                notes.dropped(at, "only the model that has thought it can read it");
            }
            _ => return Err(unknown(block, &at)),
        }
    }
    if parts.is_empty() && calls.is_empty() && thought.is_none() {
        return Ok(());
    }
    let said = if parts.is_empty() {
        Tree::null()
    } else {
        content(parts)
    };
    let mut own = message("assistant", said);
    if !calls.is_empty() {
        own.set("tool_calls", Tree::List(calls));
    }
    messages.push(own, place);
    if let Some((thought, at)) = thought {
        messages.think(&thought, at, notes);
    }
    Ok(())
}

fn unknown(block: &Tree<'_>, place: &str) -> Unsupported {
    let kind = word(block, "type");
    let reason = format!("a chat completion has nothing like a block \"{kind}\"");
    refused(format!("{place}.type"), reason)
}

fn text_part<'a>(
    block: &Tree<'a>,
    place: &str,
    notes: &mut Notes,
) -> Result<Tree<'a>, Unsupported> {
    judge(notes, block, &TEXT_RULES, place)?;
    Ok(typed("text", "text", text(block, "text", place)?))
}

/// The parts that a block of a user is.
fn part<'a>(
    block: &Tree<'a>,
    place: &str,
    notes: &mut Notes,
) -> Result<Vec<Tree<'a>>, Unsupported> {
    match &*word(block, "type") {
        "text" => Ok(vec![text_part(block, place, notes)?]),
        "image" => {
            judge(notes, block, &IMAGE_RULES, place)?;
            let at = format!("{place}.source");
            Ok(vec![image(block.get("source"), &at, notes)?])
        }
        "document" => document(block, place, notes),
        _ => Err(unknown(block, place)),
    }
}

fn image<'a>(
    source: Option<&Tree<'a>>,
    place: &str,
    notes: &mut Notes,
) -> Result<Tree<'a>, Unsupported> {
    let source = source.ok_or_else(|| refused(place, "it is missing"))?;
    judge(notes, source, &SOURCE_RULES, place)?;
    let url = match &*word(source, "type") {
        "base64" => data_url(source, &word(source, "media_type"), place)?,
        "url" => text(source, "url", place)?,
        _ => {
            let reason = "files that were uploaded elsewhere are not there: send the image itself";
            return Err(refused(place, reason));
        }
    };
    Ok(typed(
        "image_url",
        "image_url",
        Tree::object([("url", url)]),
    ))
}

fn data_url<'a>(source: &Tree<'_>, media_type: &str, place: &str) -> Result<Tree<'a>, Unsupported> {
    let data = source.get("data").and_then(Tree::text);
    let data = data.ok_or_else(|| refused(format!("{place}.data"), "it is missing, or no text"))?;
    Ok(Tree::string(&format!("data:{media_type};base64,{data}")))
}

/// A document: a file where it is a PDF, else its text.
fn document<'a>(
    block: &Tree<'a>,
    place: &str,
    notes: &mut Notes,
) -> Result<Vec<Tree<'a>>, Unsupported> {
    judge(notes, block, &DOCUMENT_RULES, place)?;
    let citations = block.get("citations").and_then(|it| it.get("enabled"));
    if citations.is_some_and(|it| it.is_plain("true")) {
        let reason = "the answer does not say what it is taken from";
        notes.unsupported(format!("{place}.citations"), reason)?;
    }
    let at = format!("{place}.source");
    let source = block.get("source");
    let source = source.ok_or_else(|| refused(&*at, "it is missing"))?;
    judge(notes, source, &SOURCE_RULES, &at)?;
    let title = word(block, "title");
    let mut parts = Vec::new();
    let mut say = |words: &str| parts.push(typed("text", "text", Tree::string(words)));
    if !word(block, "context").is_empty() {
        say(&word(block, "context"));
    }
    let kind = word(source, "type");
    if !title.is_empty() && kind != "base64" {
        say(&title);
    }
    match &*kind {
        "base64" => {
            let media_type = source.get("media_type");
            if media_type.is_some_and(|it| !it.is_text(PDF)) {
                let reason = format!("a document in base64 can only be {PDF}");
                return Err(refused(format!("{at}.media_type"), reason));
            }
            let url = data_url(source, PDF, &at)?;
            let name = if title.is_empty() {
                "document.pdf"
            } else {
                &*title
            };
            let file = [("file_data", url), ("filename", Tree::string(name))];
            parts.push(typed("file", "file", Tree::object(file)));
        }
        "text" => parts.push(typed("text", "text", text(source, "data", &at)?)),
        "content" => match source.get("content") {
            Some(said) if said.is_string() => parts.push(typed("text", "text", said.clone())),
            said => {
                let at = format!("{at}.content");
                let blocks = said.and_then(Tree::list);
                let blocks = blocks.ok_or_else(|| refused(&*at, "it is missing, or no list"))?;
                for (number, block) in blocks.iter().enumerate() {
                    parts.extend(part(block, &format!("{at}[{number}]"), notes)?);
                }
            }
        },
        _ => {
            let reason = "only documents that stand in the request can be sent";
            return Err(refused(at, reason));
        }
    }
    Ok(parts)
}

fn tool_use<'a>(block: &Tree<'a>, place: &str, notes: &mut Notes) -> Result<Tree<'a>, Unsupported> {
    judge(notes, block, &USE_RULES, place)?;
    if block
        .get("caller")
        .is_some_and(|it| word(it, "type") != "direct")
    {
        let reason = "a program that the model writes cannot call a tool here";
        return Err(refused(format!("{place}.caller"), reason));
    }
    let input = block.get("input").filter(|it| it.members().is_some());
    let input = input.ok_or_else(|| refused(format!("{place}.input"), "it is no object"))?;
    let arguments = Tree::string(&input.written());
    let (id, name) = (text(block, "id", place)?, text(block, "name", place)?);
    Ok(function_call(id, name, arguments, block))
}

fn tool_result<'a>(
    block: &Tree<'a>,
    place: &str,
    messages: &mut Messages<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    judge(notes, block, &RESULT_RULES, place)?;
    let param = format!("{place}.content");
    let mut parts = Vec::new();
    match block.get("content") {
        None => {}
        Some(said) if said.is_string() => parts.push(typed("text", "text", said.clone())),
        Some(said) => {
            for (at, block) in list(said, &param)?.iter().enumerate() {
                parts.extend(part(block, &format!("{param}[{at}]"), notes)?);
            }
        }
    }
    if block.get("is_error").is_some_and(|it| it.is_plain("true")) {
        let message = "that the tool has failed is said in the text of its result";
        notes.changed(format!("{place}.is_error"), message);
        parts.insert(0, typed("text", "text", Tree::string(FAILED)));
    }
    messages.output(text(block, "tool_use_id", place)?, parts, place, notes);
    Ok(())
}

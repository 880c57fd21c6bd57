//! The items of a request's input as messages of a chat completion.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::upstream::provider::chat::{Notes, Rule, refused};
use crate::upstream::provider::interface::Unsupported;
use crate::upstream::provider::tree::Tree;
use crate::upstream::provider::via_chat::request::{
    check_callers, content, function_call, judge, list, message, text, typed, word,
};
use crate::upstream::provider::via_chat::turns::Messages;

/// What becomes of the keys of items. `id` and `status` say what an earlier answer said of an item.
const MESSAGE_RULES: [(&str, Rule); 6] = [
    ("type", Rule::Mapped),
    ("id", Rule::Mapped),
    ("status", Rule::Mapped),
    ("role", Rule::Mapped),
    ("content", Rule::Mapped),
    ("phase", Rule::Harmless),
];
const CALL_RULES: [(&str, Rule); 11] = [
    ("type", Rule::Mapped),
    ("id", Rule::Mapped),
    ("status", Rule::Mapped),
    ("call_id", Rule::Mapped),
    ("name", Rule::Mapped),
    ("arguments", Rule::Mapped),
    ("input", Rule::Mapped),
    ("caller", Rule::Mapped),
    ("extra_content", Rule::Mapped),
    ("async", Rule::Unsupported),
    ("namespace", Rule::Unsupported),
];
const OUTPUT_RULES: [(&str, Rule); 8] = [
    ("type", Rule::Mapped),
    ("id", Rule::Mapped),
    ("status", Rule::Mapped),
    ("call_id", Rule::Mapped),
    ("output", Rule::Mapped),
    ("caller", Rule::Mapped),
    // The call says it.
    ("name", Rule::Mapped),
    ("namespace", Rule::Unsupported),
];
const REASONING_RULES: [(&str, Rule); 6] = [
    ("type", Rule::Mapped),
    ("id", Rule::Mapped),
    ("status", Rule::Mapped),
    ("summary", Rule::Mapped),
    ("content", Rule::Mapped),
    ("encrypted_content", Rule::Harmless),
];

/// What becomes of the keys of parts.
const PART_RULES: [(&str, Rule); 13] = [
    ("type", Rule::Mapped),
    ("text", Rule::Mapped),
    ("refusal", Rule::Mapped),
    ("image_url", Rule::Mapped),
    ("detail", Rule::Mapped),
    ("file_data", Rule::Mapped),
    ("file_id", Rule::Mapped),
    ("filename", Rule::Mapped),
    ("input_audio", Rule::Mapped),
    // Of an earlier answer.
    ("annotations", Rule::Mapped),
    ("logprobs", Rule::Mapped),
    ("file_url", Rule::Refused),
    ("prompt_cache_breakpoint", Rule::Harmless),
];

/// The messages that an input is.
pub(super) fn input<'a>(
    input: Option<&Tree<'a>>,
    messages: &mut Messages<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    let Some(input) = input else {
        return Ok(());
    };
    if input.is_string() {
        messages.push(message("user", input.clone()), "input");
        return Ok(());
    }
    let items = list(input, "input")?;
    let last_outputs = last_outputs(items);
    let mut thought: Option<(String, String)> = None;
    for (at, item) in items.iter().enumerate() {
        let place = format!("input[{at}]");
        let kind = word(item, "type");
        if kind == "reasoning" {
            let said = reasoning(item, &place, notes)?;
            thought = match (thought, said) {
                (Some((mut before, place)), Some(said)) => {
                    before.push_str("\n\n");
                    before.push_str(&said);
                    Some((before, place))
                }
                (None, Some(said)) => Some((said, place)),
                (before, None) => before,
            };
            continue;
        }
        match &*kind {
            "" | "message" => of_a_role(item, &place, messages, notes)?,
            "function_call" | "custom_tool_call" => {
                let call = call(item, &kind, &place, notes)?;
                let id = word(item, "call_id");
                let is_awaited = last_outputs.get(&*id).is_some_and(|output| *output > at);
                messages.call(call, is_awaited.then(|| id.into_owned()), &place);
            }
            "function_call_output" | "custom_tool_call_output" => {
                output(item, &place, messages, notes)?;
            }
            kind => {
                let reason = format!(
                    "an item \"{kind}\" is of a tool that OpenAI's own servers run, or of what \
                     they have stored"
                );
                return Err(refused(format!("{place}.type"), reason));
            }
        }
        // What was thought stands in the message of the assistant that it led to.
        if let Some((said, place)) = thought.take() {
            messages.think(&said, place, notes);
        }
    }
    if let Some((_, place)) = thought {
        notes.dropped(place, "nothing of the assistant's stands behind it");
    }
    Ok(())
}

/// Where the last output of each call stands.
fn last_outputs<'t>(items: &'t [Tree<'_>]) -> HashMap<Cow<'t, str>, usize> {
    let is_output = |item: &&Tree<'_>| word(item, "type").ends_with("_call_output");
    let places = items.iter().enumerate();
    let outputs = places.filter(|(_, item)| is_output(item));
    outputs
        .map(|(at, item)| (word(item, "call_id"), at))
        .collect()
}

fn of_a_role<'a>(
    item: &Tree<'a>,
    place: &str,
    messages: &mut Messages<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    judge(notes, item, &MESSAGE_RULES, place)?;
    let role = match &*word(item, "role") {
        // Each server knows the older word.
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        role => {
            let reason = format!("the role \"{role}\" is not known");
            return Err(refused(format!("{place}.role"), reason));
        }
    };
    let param = format!("{place}.content");
    let said = content(parts(item.get("content"), &param, notes)?);
    // Behind a call comes its output: what the assistant said beside the call stands in one message
    // with the call.
    let alone = match role {
        "assistant" => messages.say_beside_calls(said),
        _ => Some(said),
    };
    if let Some(said) = alone {
        messages.push(message(role, said), place);
    }
    Ok(())
}

fn parts<'a>(
    said: Option<&Tree<'a>>,
    param: &str,
    notes: &mut Notes,
) -> Result<Vec<Tree<'a>>, Unsupported> {
    match said {
        None => Err(refused(param, "it is missing")),
        Some(said) if said.is_string() => Ok(vec![typed("text", "text", said.clone())]),
        Some(said) => {
            let items = list(said, param)?.iter().enumerate();
            let parts = items.map(|(place, it)| part(it, &format!("{param}[{place}]"), notes));
            parts.collect()
        }
    }
}

fn part<'a>(part: &Tree<'a>, place: &str, notes: &mut Notes) -> Result<Tree<'a>, Unsupported> {
    judge(notes, part, &PART_RULES, place)?;
    match &*word(part, "type") {
        "input_text" | "output_text" | "text" => {
            Ok(typed("text", "text", text(part, "text", place)?))
        }
        "refusal" => Ok(typed("refusal", "refusal", text(part, "refusal", place)?)),
        "input_image" => {
            if part.get("file_id").is_some() {
                let reason = "files that were uploaded elsewhere are not there: send `image_url`";
                return Err(refused(format!("{place}.file_id"), reason));
            }
            let mut image = Tree::object([("url", text(part, "image_url", place)?)]);
            if let Some(detail) = part.get("detail") {
                image.set("detail", detail.clone());
            }
            Ok(typed("image_url", "image_url", image))
        }
        "input_file" => {
            let mut file = Tree::object([]);
            for key in ["file_data", "file_id", "filename"] {
                if let Some(value) = part.get(key) {
                    file.set(key, value.clone());
                }
            }
            if part.get("detail").is_some_and(|it| !it.is_text("auto")) {
                let reason = "how closely a file is looked at cannot be said";
                notes.dropped(format!("{place}.detail"), reason);
            }
            Ok(typed("file", "file", file))
        }
        "input_audio" => {
            let audio = part.get("input_audio").cloned();
            let audio = audio.ok_or_else(|| refused(format!("{place}.input_audio"), "is missing"));
            Ok(typed("input_audio", "input_audio", audio?))
        }
        kind => {
            let reason = format!("a part of the type \"{kind}\" is not known");
            Err(refused(format!("{place}.type"), reason))
        }
    }
}

fn call<'a>(
    item: &Tree<'a>,
    kind: &str,
    place: &str,
    notes: &mut Notes,
) -> Result<Tree<'a>, Unsupported> {
    judge(notes, item, &CALL_RULES, place)?;
    check_callers(item, "caller", place)?;
    let (id, name) = (text(item, "call_id", place)?, text(item, "name", place)?);
    if kind == "function_call" {
        return Ok(function_call(
            id,
            name,
            text(item, "arguments", place)?,
            item,
        ));
    }
    let custom = Tree::object([("name", name), ("input", text(item, "input", place)?)]);
    let mut call = typed("custom", "custom", custom);
    call.set("id", id);
    if let Some(extra) = item.get("extra_content") {
        call.set("extra_content", extra.clone());
    }
    Ok(call)
}

fn output<'a>(
    item: &Tree<'a>,
    place: &str,
    messages: &mut Messages<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    judge(notes, item, &OUTPUT_RULES, place)?;
    check_callers(item, "caller", place)?;
    let parts = parts(item.get("output"), &format!("{place}.output"), notes)?;
    messages.output(text(item, "call_id", place)?, parts, place, notes);
    Ok(())
}

/// What was thought, where it can be read.
fn reasoning(
    item: &Tree<'_>,
    place: &str,
    notes: &mut Notes,
) -> Result<Option<String>, Unsupported> {
    judge(notes, item, &REASONING_RULES, place)?;
    let texts = |key: &str| {
        let parts = item.get(key).and_then(Tree::list).unwrap_or_default();
        let texts = parts.iter().filter_map(|part| part.get("text")?.text());
        texts.collect::<Vec<_>>().join("\n\n")
    };
    let (content, summary) = (texts("content"), texts("summary"));
    if !content.is_empty() && !summary.is_empty() {
        notes.dropped(format!("{place}.summary"), "the whole thought is sent");
    }
    let said = if content.is_empty() { summary } else { content };
    Ok(Some(said).filter(|said| !said.is_empty()))
}

//! Requests in the form that Mistral's API takes. It is OpenAI's form, read strictly: a member that
//! the API does not know is an error.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

use crate::upstream::provider::chat::{
    self, Aliases, DataUrl, Form, Notes, Part, Placed, Rule, has_scheme, is_blank, items, refused,
    tool_names,
};
use crate::upstream::provider::interface::{CHAT, EMBEDDINGS, Request, Unsupported};
use crate::upstream::provider::tree::Tree;
use crate::upstream::settings::UnsupportedParams;

/// As messages to users name the API.
const API: &str = "Mistral's API";

/// What becomes of the keys of a request for a chat completion.
pub(super) const RULES: [(&str, Rule); 46] = [
    ("model", Rule::Mapped),
    ("messages", Rule::Mapped),
    ("max_completion_tokens", Rule::Mapped),
    ("max_tokens", Rule::Mapped),
    ("seed", Rule::Mapped),
    ("tools", Rule::Mapped),
    ("tool_choice", Rule::Mapped),
    ("prediction", Rule::Mapped),
    ("service_tier", Rule::Mapped),
    ("temperature", Rule::Passed),
    ("top_p", Rule::Passed),
    ("stop", Rule::Passed),
    ("n", Rule::Passed),
    ("presence_penalty", Rule::Passed),
    ("frequency_penalty", Rule::Passed),
    ("logprobs", Rule::Passed),
    ("top_logprobs", Rule::Passed),
    ("parallel_tool_calls", Rule::Passed),
    ("response_format", Rule::Passed),
    ("reasoning_effort", Rule::Passed),
    ("metadata", Rule::Passed),
    ("prompt_cache_key", Rule::Passed),
    // Mistral's own, for those who know it.
    ("random_seed", Rule::Passed),
    ("safe_prompt", Rule::Passed),
    ("prompt_mode", Rule::Passed),
    ("guardrails", Rule::Passed),
    ("min_tokens", Rule::Passed),
    ("top_k", Rule::Passed),
    ("repetition_penalty", Rule::Passed),
    ("prompt_logprobs", Rule::Passed),
    ("top_prompt_logprobs", Rule::Passed),
    ("user", Rule::Harmless),
    ("safety_identifier", Rule::Harmless),
    ("store", Rule::Harmless),
    ("stream_options", Rule::Harmless),
    ("prompt_cache_options", Rule::Harmless),
    ("prompt_cache_retention", Rule::Harmless),
    ("logit_bias", Rule::Unsupported),
    ("verbosity", Rule::Unsupported),
    ("moderation", Rule::Unsupported),
    ("stream", Rule::Refused),
    ("modalities", Rule::Refused),
    ("audio", Rule::Refused),
    ("web_search_options", Rule::Refused),
    ("functions", Rule::Refused),
    ("function_call", Rule::Refused),
];

/// What becomes of the keys of a message.
const MESSAGE_RULES: [(&str, Rule); 11] = [
    ("role", Rule::Mapped),
    ("content", Rule::Mapped),
    ("refusal", Rule::Mapped),
    ("tool_calls", Rule::Mapped),
    ("tool_call_id", Rule::Mapped),
    ("name", Rule::Mapped),
    ("prefix", Rule::Mapped),
    ("annotations", Rule::Harmless),
    ("reasoning_content", Rule::Harmless),
    ("audio", Rule::Refused),
    ("function_call", Rule::Refused),
];

/// What becomes of the keys of a function that is a tool.
const FUNCTION_RULES: [(&str, Rule); 4] = [
    ("name", Rule::Mapped),
    ("description", Rule::Mapped),
    ("parameters", Rule::Mapped),
    ("strict", Rule::Mapped),
];

/// What becomes of the keys of a request for embeddings.
const EMBEDDING_RULES: [(&str, Rule); 8] = [
    ("model", Rule::Mapped),
    ("input", Rule::Mapped),
    ("dimensions", Rule::Mapped),
    ("encoding_format", Rule::Passed),
    ("metadata", Rule::Passed),
    ("output_dimension", Rule::Passed),
    ("output_dtype", Rule::Passed),
    ("user", Rule::Harmless),
];

/// Names of functions have letters, digits, underscores and dashes.
const NAME: Form = Form {
    fits: |name| (1..=NAME_MAX).contains(&name.len()) && name.chars().all(is_allowed),
    fitted: |own, nth| chat::spelled(own, nth, is_allowed, NAME_MAX),
};
const NAME_MAX: usize = 64;

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// Ids of calls have exactly nine letters and digits.
const ID_LENGTH: usize = 9;
const CALL_ID: Form = Form {
    fits: |id| id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
    fitted: |own, nth| {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let hash = Sha256::digest(format!("{nth}/{own}"));
        let letters = hash.iter().take(ID_LENGTH);
        letters
            .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
            .collect()
    },
};

/// What becomes of the keys of a request, by its `url`.
fn rules(path: &str) -> Option<&'static chat::Rules> {
    match path {
        CHAT => Some(&RULES),
        EMBEDDINGS => Some(&EMBEDDING_RULES),
        _ => None,
    }
}

/// Why no line of this `url`, or with this key, is taken.
pub(super) fn refuses(path: &str, key: Option<&str>, policy: UnsupportedParams) -> Option<String> {
    chat::refuses(rules(path), key, policy, API)
}

/// A request, and what its answer's translation needs to know.
pub(super) fn encode(
    path: &'static str,
    body: &Tree<'_>,
    model: &str,
    policy: UnsupportedParams,
) -> Result<(String, Request), Unsupported> {
    let Some(members) = body.members() else {
        return Err(refused("body", "it is no object"));
    };
    let mut notes = Notes::new(policy);
    let no_rules = || refused("url", format!("{API} has nothing like {path}"));
    let rules = rules(path).ok_or_else(no_rules)?;
    let passed = notes.judge(members, rules, "", API)?;
    let mut out = Tree::Object(passed);
    out.set("model", Tree::string(model));
    let mut names = Aliases::new(NAME, tool_names(body));
    if path == CHAT {
        chat_completion(body, &mut out, &mut names, &mut notes)?;
    } else {
        embeddings(body, &mut out)?;
    }
    let request = Request {
        names: names.renamed(),
        warnings: notes.warnings,
        ..Request::default()
    };
    Ok((out.written(), request))
}

fn embeddings<'a>(body: &Tree<'a>, out: &mut Tree<'a>) -> Result<(), Unsupported> {
    let input = body.get("input");
    let is_text = |input: &Tree<'_>| match input {
        Tree::List(items) => items.iter().all(Tree::is_string),
        other => other.is_string(),
    };
    let input = input.filter(|input| is_text(input));
    let reason = "it is neither a text nor a list of texts: tokens are those of one model family";
    let input = input.ok_or_else(|| refused("input", reason))?;
    out.set("input", input.clone());
    if let Some(dimensions) = body.get("dimensions") {
        out.set("output_dimension", dimensions.clone());
    }
    Ok(())
}

fn chat_completion<'a>(
    body: &Tree<'a>,
    out: &mut Tree<'a>,
    names: &mut Aliases,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    if let Some(most) = chat::max_output(body)? {
        out.set("max_tokens", Tree::number(most));
    }
    if let Some(seed) = body.get("seed") {
        out.set("random_seed", seed.clone());
    }
    match body.get("service_tier").and_then(Tree::text).as_deref() {
        None | Some("auto") => {}
        Some("default") => out.set("service_tier", Tree::string("standard_only")),
        Some(_) => notes.unsupported("service_tier", format!("{API} has no such tier"))?,
    }
    prediction(body, out, notes);
    tools(body, out, names, notes)?;
    let messages = body.get("messages").and_then(Tree::list);
    let messages = messages.ok_or_else(|| refused("messages", "it is no list"))?;
    let messages = self::messages(messages, names, notes)?;
    out.set("messages", Tree::List(messages));
    Ok(())
}

/// What the answer is expected to be: a text, as the API has it.
fn prediction<'a>(body: &Tree<'a>, out: &mut Tree<'a>, notes: &mut Notes) {
    let Some(prediction) = body.get("prediction") else {
        return;
    };
    let content = prediction.get("content");
    let texts = match content {
        Some(Tree::List(parts)) => parts.iter().map(|part| part.get("text")?.text()).collect(),
        content => content.and_then(Tree::text).map(|text| vec![text]),
    };
    if let Some(texts) = texts {
        let content = ("content", Tree::string(&texts.concat()));
        let prediction = Tree::object([("type", Tree::string("content")), content]);
        out.set("prediction", prediction);
    } else {
        notes.dropped("prediction", "its content is no text");
    }
}

fn tools<'a>(
    body: &Tree<'a>,
    out: &mut Tree<'a>,
    names: &mut Aliases,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    let all = body.get("tools").and_then(Tree::list).unwrap_or_default();
    if all.is_empty() {
        // What else a request says of tools is an error where there are none.
        if let Tree::Object(members) = out {
            members.retain(|(key, _)| key != "parallel_tool_calls");
        }
        return Ok(());
    }
    let mut tools = Vec::with_capacity(all.len());
    for (place, tool) in all.iter().enumerate() {
        let function = tool.get("function");
        let Some(members) = function.and_then(Tree::members) else {
            let param = format!("tools[{place}].type");
            return Err(refused(param, "only functions are known"));
        };
        let param = format!("tools[{place}].function.");
        notes.judge(members, &FUNCTION_RULES, &param, API)?;
        let kept = members.iter().filter(|(_, value)| !value.is_null());
        let mut function = Tree::Object(kept.cloned().collect());
        let schema = match function.get("parameters") {
            Some(schema @ Tree::Object(_)) => without_ids(schema),
            None => Tree::object([
                ("type", Tree::string("object")),
                ("properties", Tree::object([])),
            ]),
            Some(_) => return Err(refused(format!("{param}parameters"), "it is no object")),
        };
        function.set("parameters", schema);
        let name = function.get("name").and_then(Tree::text);
        let name = name.ok_or_else(|| refused(format!("{param}name"), "it is missing"))?;
        let name = Tree::string(&names.of(&name));
        function.set("name", name);
        tools.push(Tree::object([
            ("type", Tree::string("function")),
            ("function", function),
        ]));
    }
    out.set("tools", Tree::List(tools));
    let Some(choice) = body.get("tool_choice") else {
        return Ok(());
    };
    let chosen = choice.get("function").and_then(|it| it.get("name")?.text());
    let choice = match (choice.text().as_deref(), chosen) {
        (Some("auto" | "none" | "required" | "any"), _) => choice.clone(),
        (None, Some(name)) => Tree::object([
            ("type", Tree::string("function")),
            (
                "function",
                Tree::object([("name", Tree::string(&names.of(&name)))]),
            ),
        ]),
        _ => {
            let reason = "only functions can be chosen, each by itself";
            return Err(refused("tool_choice", reason));
        }
    };
    out.set("tool_choice", choice);
    Ok(())
}

/// A schema without what the API does not take.
fn without_ids<'a>(schema: &Tree<'a>) -> Tree<'a> {
    match schema {
        Tree::Object(members) => {
            let members = members.iter();
            // A property may be called so: then its value is a schema, and no text.
            let is_id = |key: &str, value: &Tree<'_>| {
                ["$id", "$schema"].contains(&key) && value.is_string()
            };
            let kept = members.filter(|(key, value)| !is_id(key, value));
            Tree::Object(
                kept.map(|(key, value)| (key.clone(), without_ids(value)))
                    .collect(),
            )
        }
        Tree::List(items) => Tree::List(items.iter().map(without_ids).collect()),
        plain @ Tree::Plain(_) => plain.clone(),
    }
}

fn messages<'a>(
    messages: &[Tree<'a>],
    names: &mut Aliases,
    notes: &mut Notes,
) -> Result<Vec<Tree<'a>>, Unsupported> {
    let calls = messages
        .iter()
        .flat_map(|message| items(message.get("tool_calls")));
    let ids = calls.filter_map(|call| call.get("id")?.text());
    let mut ids = Aliases::new(CALL_ID, ids);
    let (mut out, mut before) = (Vec::new(), String::new());
    for (place, message) in messages.iter().enumerate() {
        let param = format!("messages[{place}]");
        let members = message.members();
        let members = members.ok_or_else(|| refused(&*param, "it is no object"))?;
        notes.judge(members, &MESSAGE_RULES, &format!("{param}."), API)?;
        let role = message.get("role").and_then(Tree::text).unwrap_or_default();
        let role = match &*role {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            role => {
                let reason = format!("the role \"{role}\" is not known");
                return Err(refused(format!("{param}.role"), reason));
            }
        };
        if role == "user" && before == "tool" {
            let message =
                format!("{API} wants a word of the assistant behind the results of tools");
            notes.changed(&*param, message);
            out.push(Tree::object([
                ("role", Tree::string("assistant")),
                ("content", Tree::string("OK.")),
            ]));
        }
        if message.get("name").is_some() && role != "tool" {
            notes.dropped(
                format!("{param}.name"),
                format!("{API} has nothing like it"),
            );
        }
        if let Some(message) = one(message, role, &param, (names, &mut ids), notes)? {
            out.push(message);
            role.clone_into(&mut before);
        }
    }
    end(&mut out)?;
    Ok(out)
}

/// Sees to it that the last message is one that the API takes.
fn end(messages: &mut [Tree<'_>]) -> Result<(), Unsupported> {
    let Some(last) = messages.last_mut() else {
        return Err(refused("messages", "it is empty"));
    };
    let role = last.get("role").and_then(Tree::text).unwrap_or_default();
    match &*role {
        "assistant" => last.set("prefix", Tree::boolean(true)),
        "system" => {
            let reason = "the last message is one of the system, to which nobody answers";
            return Err(refused("messages", reason));
        }
        _ => {}
    }
    Ok(())
}

/// A message. `None`: it says nothing, and is of the assistant, whose messages must not be empty.
fn one<'a>(
    message: &Tree<'a>,
    role: &str,
    param: &str,
    (names, ids): (&mut Aliases, &mut Aliases),
    notes: &mut Notes,
) -> Result<Option<Tree<'a>>, Unsupported> {
    let mut out = Tree::object([("role", Tree::string(role))]);
    let place = format!("{param}.content");
    let mut parts = Vec::new();
    for placed in chat::parts(message.get("content"), &place, notes)? {
        parts.push(part(placed)?);
    }
    if let Some(refusal) = message.get("refusal")
        && role == "assistant"
    {
        parts.push(text(refusal.clone()));
    }
    let is_said = parts.iter().any(|part| match part.get("text") {
        Some(Tree::Plain(written)) => !is_blank(written),
        _ => part.get("type").is_some(),
    });
    let calls = message.get("tool_calls").and_then(Tree::list);
    let calls = calls.filter(|calls| !calls.is_empty());
    match (role, is_said, calls) {
        ("assistant", false, None) => return Ok(None),
        ("assistant", false, Some(_)) => out.set("content", Tree::string("")),
        ("user" | "system", false, _) => return Err(refused(place, "it is empty")),
        _ => {
            let content = match message.get("content") {
                Some(content) if content.is_string() && parts.len() == 1 => content.clone(),
                None if parts.is_empty() => Tree::string(""),
                _ => Tree::List(parts),
            };
            out.set("content", content);
        }
    }
    if let Some(calls) = calls {
        let calls = calls.iter().map(|call| {
            let id = call.get("id").and_then(Tree::text).unwrap_or_default();
            let function = call.get("function");
            let mut function = function.cloned().unwrap_or_else(|| Tree::object([]));
            if let Some(name) = function.get("name").and_then(Tree::text) {
                let name = Tree::string(&names.of(&name));
                function.set("name", name);
            }
            Tree::object([
                ("id", Tree::string(&ids.anew(&id))),
                ("type", Tree::string("function")),
                ("function", function),
            ])
        });
        out.set("tool_calls", Tree::List(calls.collect()));
    }
    if role == "tool" {
        let id = message.get("tool_call_id").and_then(Tree::text);
        let id = id.ok_or_else(|| refused(format!("{param}.tool_call_id"), "it is missing"))?;
        out.set("tool_call_id", Tree::string(&ids.of(&id)));
        if let Some(name) = message.get("name").and_then(Tree::text) {
            out.set("name", Tree::string(&names.of(&name)));
        }
    }
    Ok(Some(out))
}

fn text(written: Tree<'_>) -> Tree<'_> {
    Tree::object([("type", Tree::string("text")), ("text", written)])
}

fn part<'a>(placed: Placed<'_, '_>) -> Result<Tree<'a>, Unsupported> {
    let Placed { part, param, .. } = placed;
    Ok(match part {
        Part::Text(written) => text(Tree::Plain(Cow::Owned(written.into_owned()))),
        Part::Image { url } => {
            if !has_scheme(&url, "https") && DataUrl::read(&url).is_none() {
                return Err(refused(param, "an image is an https: or a data: URL"));
            }
            let image = Tree::object([("url", Tree::string(&url))]);
            Tree::object([("type", Tree::string("image_url")), ("image_url", image)])
        }
        Part::File { data, name } => {
            let data = data.ok_or_else(|| refused(&*param, "it has no `file_data`"))?;
            let is_pdf = DataUrl::read(&data).is_some_and(|it| it.media_type == "application/pdf");
            if !is_pdf {
                return Err(refused(param, "a file is a PDF as a data: URL"));
            }
            let kind = ("type", Tree::string("document_url"));
            let mut part = Tree::object([kind, ("document_url", Tree::string(&data))]);
            if let Some(name) = name {
                part.set("document_name", Tree::string(&name));
            }
            part
        }
        Part::Audio { data, .. } => Tree::object([
            ("type", Tree::string("input_audio")),
            ("input_audio", Tree::string(&data)),
        ]),
    })
}

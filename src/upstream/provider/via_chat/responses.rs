//! Requests of OpenAI's Responses API, asked as chat completions. What needs a state that the
//! server keeps, or a tool that the server runs, cannot be asked so.

pub(super) mod answer;
mod items;

use super::request::{
    API, ChatRequest, Places, Server, check_callers, judge, judge_all, list, members, message,
    text as text_of, tool_options, typed, word,
};
use super::turns::Messages;
use crate::upstream::provider::chat::{Notes, Rule, asks_for_nothing, refused};
use crate::upstream::provider::interface::Unsupported;
use crate::upstream::provider::tree::Tree;

/// What becomes of the keys of a request. Keys that nobody knows are passed on.
pub(super) const RULES: [(&str, Rule); 34] = [
    ("model", Rule::Mapped),
    ("input", Rule::Mapped),
    ("instructions", Rule::Mapped),
    ("include", Rule::Mapped),
    ("max_output_tokens", Rule::Mapped),
    ("reasoning", Rule::Mapped),
    ("text", Rule::Mapped),
    ("tools", Rule::Mapped),
    ("tool_choice", Rule::Mapped),
    ("top_logprobs", Rule::Mapped),
    ("truncation", Rule::Mapped),
    // It comes back in the answer, as in OpenAI's.
    ("metadata", Rule::Mapped),
    ("moderation", Rule::Passed),
    ("parallel_tool_calls", Rule::Mapped),
    ("prompt_cache_key", Rule::Passed),
    ("prompt_cache_options", Rule::Passed),
    ("prompt_cache_retention", Rule::Passed),
    ("safety_identifier", Rule::Passed),
    ("service_tier", Rule::Passed),
    ("temperature", Rule::Passed),
    ("top_p", Rule::Passed),
    ("user", Rule::Passed),
    // Of tools that the server runs, of which there are none.
    ("max_tool_calls", Rule::Harmless),
    ("store", Rule::Harmless),
    ("stream_options", Rule::Harmless),
    ("access_programs", Rule::Unsupported),
    ("context_management", Rule::Unsupported),
    ("image", Rule::Unsupported),
    ("background", Rule::Refused),
    ("background_options", Rule::Refused),
    ("conversation", Rule::Refused),
    ("previous_response_id", Rule::Refused),
    ("prompt", Rule::Refused),
    ("stream", Rule::Refused),
];

const REASONING_RULES: [(&str, Rule); 5] = [
    ("effort", Rule::Mapped),
    ("context", Rule::Mapped),
    ("mode", Rule::Mapped),
    // What was thought comes back as it is, where the server tells it.
    ("summary", Rule::Harmless),
    ("generate_summary", Rule::Harmless),
];

const TEXT_RULES: [(&str, Rule); 2] = [("format", Rule::Mapped), ("verbosity", Rule::Mapped)];

const FUNCTION_RULES: [(&str, Rule); 9] = [
    ("type", Rule::Mapped),
    ("name", Rule::Mapped),
    ("description", Rule::Mapped),
    ("parameters", Rule::Mapped),
    ("strict", Rule::Mapped),
    ("allowed_callers", Rule::Mapped),
    ("output_schema", Rule::Harmless),
    ("async", Rule::Unsupported),
    ("defer_loading", Rule::Unsupported),
];

const CUSTOM_RULES: [(&str, Rule); 7] = [
    ("type", Rule::Mapped),
    ("name", Rule::Mapped),
    ("description", Rule::Mapped),
    ("format", Rule::Mapped),
    ("allowed_callers", Rule::Mapped),
    ("async", Rule::Unsupported),
    ("defer_loading", Rule::Unsupported),
];

/// What becomes of the keys of a chosen tool, and of a list of allowed tools.
const CHOICE_RULES: [(&str, Rule); 2] = [("type", Rule::Mapped), ("name", Rule::Mapped)];
const ALLOWED_RULES: [(&str, Rule); 3] = [
    ("type", Rule::Mapped),
    ("mode", Rule::Mapped),
    ("tools", Rule::Mapped),
];

/// What an answer of a chat completion cannot include.
const NOT_INCLUDED: [&str; 7] = [
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];

/// Where chat completions have another name.
const NAMES: [(&str, &str); 7] = [
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_tokens", "max_output_tokens"),
    ("response_format", "text.format"),
    ("verbosity", "text.verbosity"),
    ("reasoning_effort", "reasoning.effort"),
    ("logprobs", "top_logprobs"),
];

/// What the answer has from the request, where the request has it.
const ECHOED: [&str; 11] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "top_logprobs",
    "top_p",
    "user",
];

/// The request as one for a chat completion.
pub(super) fn request(
    body: &Tree<'_>,
    model: &str,
    server: &Server,
) -> Result<ChatRequest, Unsupported> {
    let mut notes = Notes::new(server.policy);
    let passed = judge_all(&mut notes, members(body, "body")?, &RULES)?;
    let mut out = Tree::object([("model", Tree::string(model))]);
    let mut messages = Messages::new(server);
    if let Some(instructions) = body.get("instructions")
        && !instructions.is_text("")
    {
        if !instructions.is_string() {
            return Err(refused("instructions", "it is no text"));
        }
        messages.push(message("system", instructions.clone()), "instructions");
    }
    items::input(body.get("input"), &mut messages, &mut notes)?;
    let (all, places) = messages.done();
    if all.is_empty() {
        return Err(refused("input", "it is missing, or empty"));
    }
    out.set("messages", Tree::List(all));
    if let Some(most) = body.get("max_output_tokens") {
        out.set("max_completion_tokens", most.clone());
    }
    reasoning(body, &mut out, &mut notes)?;
    text(body, &mut out, &mut notes)?;
    logprobs(body, &mut out, &mut notes)?;
    tools(body, &mut out, &mut notes)?;
    if body
        .get("truncation")
        .is_some_and(|it| !it.is_text("disabled"))
    {
        notes.unsupported("truncation", format!("{API} has nothing like it"))?;
    }
    if let Tree::Object(members) = &mut out {
        members.extend(passed);
    }
    let places = Places {
        messages: places,
        names: &NAMES,
    };
    server.check(&mut out, model, &places, &mut notes)?;
    Ok(ChatRequest {
        body: out.written(),
        echo: echo(body),
        stops: String::new(),
        warnings: notes.warnings,
        places,
    })
}

fn reasoning<'a>(
    body: &Tree<'a>,
    out: &mut Tree<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    let Some(reasoning) = body.get("reasoning") else {
        return Ok(());
    };
    judge(notes, reasoning, &REASONING_RULES, "reasoning")?;
    for (key, usual) in [("context", "auto"), ("mode", "standard")] {
        if reasoning.get(key).is_some_and(|it| !it.is_text(usual)) {
            let reason = format!("{API} has nothing like it");
            notes.unsupported(format!("reasoning.{key}"), reason)?;
        }
    }
    if let Some(effort) = reasoning.get("effort") {
        out.set("reasoning_effort", effort.clone());
    }
    Ok(())
}

fn text<'a>(body: &Tree<'a>, out: &mut Tree<'a>, notes: &mut Notes) -> Result<(), Unsupported> {
    let Some(text) = body.get("text") else {
        return Ok(());
    };
    judge(notes, text, &TEXT_RULES, "text")?;
    if let Some(verbosity) = text.get("verbosity")
        && !asks_for_nothing("verbosity", verbosity)
    {
        out.set("verbosity", verbosity.clone());
    }
    let Some(format) = text.get("format") else {
        return Ok(());
    };
    match &*word(format, "type") {
        "text" => {}
        "json_object" => out.set("response_format", format.clone()),
        "json_schema" => {
            let described = members(format, "text.format")?.iter();
            let described = described.filter(|(key, _)| key != "type");
            let mut out_format = Tree::object([("type", Tree::string("json_schema"))]);
            out_format.set("json_schema", Tree::Object(described.cloned().collect()));
            out.set("response_format", out_format);
        }
        _ => return Err(refused("text.format.type", "it is none that is known")),
    }
    Ok(())
}

/// Asked for by either of two keys.
fn logprobs<'a>(body: &Tree<'a>, out: &mut Tree<'a>, notes: &mut Notes) -> Result<(), Unsupported> {
    let mut is_asked_for = false;
    if let Some(include) = body.get("include") {
        let mut is_told = [false; NOT_INCLUDED.len()];
        for (place, one) in list(include, "include")?.iter().enumerate() {
            if one.is_text("message.output_text.logprobs") {
                is_asked_for = true;
                continue;
            }
            let param = format!("include[{place}]");
            let known = NOT_INCLUDED.iter().position(|word| one.is_text(word));
            let known = known.ok_or_else(|| refused(&*param, "it is none that is known"))?;
            if !std::mem::replace(&mut is_told[known], true) {
                notes.dropped(param, format!("the answer of {API} does not have it"));
            }
        }
    }
    let most = body.get("top_logprobs");
    if let Some(most) = most.filter(|most| most.float() != Some(0.0)) {
        out.set("top_logprobs", most.clone());
        is_asked_for = true;
    }
    if is_asked_for {
        out.set("logprobs", Tree::boolean(true));
    }
    Ok(())
}

fn tools<'a>(body: &Tree<'a>, out: &mut Tree<'a>, notes: &mut Notes) -> Result<(), Unsupported> {
    let mut has_tools = false;
    if let Some(tools) = body.get("tools") {
        let own = list(tools, "tools")?;
        let tools = own.iter().enumerate();
        let tools = tools.map(|(place, it)| tool(it, &format!("tools[{place}]"), notes));
        let tools = tools.collect::<Result<Vec<_>, _>>()?;
        has_tools = !tools.is_empty();
        if has_tools {
            out.set("tools", Tree::List(tools));
        }
        let says_nothing =
            |tool: &Tree<'_>| word(tool, "type") == "function" && tool.get("strict").is_none();
        if let Some(place) = own.iter().position(says_nothing) {
            let message = format!("{API} is strict only where `strict` is true");
            notes.changed(format!("tools[{place}].strict"), message);
        }
    }
    let choice = body.get("tool_choice");
    let choice = choice
        .map(|choice| tool_choice(choice, notes))
        .transpose()?;
    let parallel = body.get("parallel_tool_calls");
    let parallel = parallel.filter(|it| !asks_for_nothing("parallel_tool_calls", it));
    tool_options(out, has_tools, choice, parallel.cloned())
}

fn tool<'a>(tool: &Tree<'a>, place: &str, notes: &mut Notes) -> Result<Tree<'a>, Unsupported> {
    let kind = word(tool, "type");
    let (rules, kept): (&[(&str, Rule)], &[&'static str]) = match &*kind {
        "function" => (
            &FUNCTION_RULES,
            &["name", "description", "parameters", "strict"],
        ),
        "custom" => (&CUSTOM_RULES, &["name", "description"]),
        kind => {
            let reason = format!("\"{kind}\" is a tool that OpenAI's own servers run");
            return Err(refused(format!("{place}.type"), reason));
        }
    };
    judge(notes, tool, rules, place)?;
    check_callers(tool, "allowed_callers", place)?;
    let mut described = Tree::object([]);
    for key in kept {
        if let Some(value) = tool.get(key) {
            described.set(key, value.clone());
        }
    }
    if kind == "custom" {
        if let Some(format) = tool.get("format") {
            described.set("format", format_of(format));
        }
        return Ok(typed("custom", "custom", described));
    }
    Ok(typed("function", "function", described))
}

/// A grammar stands in an object of its own in chat completions.
fn format_of<'a>(format: &Tree<'a>) -> Tree<'a> {
    match format.members() {
        Some(members) if word(format, "type") == "grammar" => {
            let grammar = members.iter().filter(|(key, _)| key != "type");
            let grammar = Tree::Object(grammar.cloned().collect());
            typed("grammar", "grammar", grammar)
        }
        _ => format.clone(),
    }
}

fn tool_choice<'a>(choice: &Tree<'a>, notes: &mut Notes) -> Result<Tree<'a>, Unsupported> {
    const PLACE: &str = "tool_choice";
    if choice.is_string() {
        return Ok(choice.clone());
    }
    let kind = word(choice, "type");
    if kind != "allowed_tools" {
        return named(choice, PLACE, notes);
    }
    judge(notes, choice, &ALLOWED_RULES, PLACE)?;
    let tools = choice.get("tools").and_then(Tree::list).unwrap_or_default();
    let tools = tools.iter().enumerate();
    let tools = tools.map(|(at, tool)| named(tool, &format!("{PLACE}.tools[{at}]"), notes));
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    let mode = choice.get("mode").cloned().unwrap_or_else(Tree::null);
    let allowed = Tree::object([("mode", mode), ("tools", Tree::List(tools))]);
    Ok(typed("allowed_tools", "allowed_tools", allowed))
}

fn named<'a>(tool: &Tree<'a>, place: &str, notes: &mut Notes) -> Result<Tree<'a>, Unsupported> {
    let kind = match &*word(tool, "type") {
        "function" => "function",
        "custom" => "custom",
        _ => {
            let reason = "only functions and custom tools can be chosen";
            return Err(refused(place, reason));
        }
    };
    judge(notes, tool, &CHOICE_RULES, place)?;
    let named = Tree::object([("name", text_of(tool, "name", place)?)]);
    Ok(typed(kind, kind, named))
}

/// What the answer has from the request, as JSON writes members.
fn echo(body: &Tree<'_>) -> String {
    let mut echo = String::new();
    let mut member = |key: &str, value: &Tree<'_>| {
        Tree::string(key).write(&mut echo);
        echo.push(':');
        value.write(&mut echo);
        echo.push(',');
    };
    for key in ECHOED {
        if let Some(value) = body.get(key) {
            member(key, value);
        }
    }
    let or = |key: &str, usual: Tree<'static>| match body.get(key) {
        Some(value) => value.clone(),
        None => usual,
    };
    member(
        "parallel_tool_calls",
        &or("parallel_tool_calls", Tree::boolean(true)),
    );
    member("tool_choice", &or("tool_choice", Tree::string("auto")));
    member("tools", &or("tools", Tree::List(Vec::new())));
    echo
}

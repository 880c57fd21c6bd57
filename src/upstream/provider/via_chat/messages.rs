//! Requests of Anthropic's Messages API, asked as chat completions.

pub(super) mod answer;
mod blocks;

use super::request::{
    API, ChatRequest, OWN, Places, Server, judge, judge_all, list, members, message, text,
    tool_options, typed, word,
};
use super::turns::Messages;
use crate::upstream::provider::answer as made;
use crate::upstream::provider::chat::{Notes, Rule, refused};
use crate::upstream::provider::http::{self, Head};
use crate::upstream::provider::interface::{Decoded, Unsupported};
use crate::upstream::provider::tree::Tree;

/// What becomes of the keys of a request. Keys that nobody knows are passed on.
pub(super) const RULES: [(&str, Rule); 21] = [
    ("model", Rule::Mapped),
    ("messages", Rule::Mapped),
    ("max_tokens", Rule::Mapped),
    ("system", Rule::Mapped),
    ("metadata", Rule::Mapped),
    ("output_config", Rule::Mapped),
    ("service_tier", Rule::Mapped),
    ("stop_sequences", Rule::Mapped),
    ("thinking", Rule::Mapped),
    ("tools", Rule::Mapped),
    ("tool_choice", Rule::Mapped),
    ("temperature", Rule::Passed),
    ("top_p", Rule::Passed),
    ("top_k", Rule::Passed),
    // Servers of other kinds keep what they like in their caches.
    ("cache_control", Rule::Harmless),
    ("context_management", Rule::Unsupported),
    ("inference_geo", Rule::Unsupported),
    ("container", Rule::Refused),
    ("mcp_servers", Rule::Refused),
    ("stop", Rule::Refused),
    ("stream", Rule::Refused),
];

const METADATA_RULES: [(&str, Rule); 1] = [("user_id", Rule::Mapped)];

const OUTPUT_RULES: [(&str, Rule); 2] = [("effort", Rule::Mapped), ("format", Rule::Mapped)];

const FORMAT_RULES: [(&str, Rule); 2] = [("type", Rule::Mapped), ("schema", Rule::Mapped)];

const THINKING_RULES: [(&str, Rule); 3] = [
    ("type", Rule::Mapped),
    ("budget_tokens", Rule::Mapped),
    ("display", Rule::Harmless),
];

const TOOL_RULES: [(&str, Rule); 10] = [
    ("type", Rule::Mapped),
    ("name", Rule::Mapped),
    ("description", Rule::Mapped),
    ("input_schema", Rule::Mapped),
    ("strict", Rule::Mapped),
    ("allowed_callers", Rule::Mapped),
    ("cache_control", Rule::Harmless),
    ("eager_input_streaming", Rule::Harmless),
    ("defer_loading", Rule::Unsupported),
    ("input_examples", Rule::Unsupported),
];

const CHOICE_RULES: [(&str, Rule); 3] = [
    ("type", Rule::Mapped),
    ("name", Rule::Mapped),
    ("disable_parallel_tool_use", Rule::Mapped),
];

/// Where chat completions have another name.
const NAMES: [(&str, &str); 7] = [
    (".parameters", ".input_schema"),
    ("max_completion_tokens", "max_tokens"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "thinking"),
    ("stop", "stop_sequences"),
    (
        "parallel_tool_calls",
        "tool_choice.disable_parallel_tool_use",
    ),
    ("user", "metadata.user_id"),
];

/// As many tokens of thinking, at least, as the words for an effort stand for.
const EFFORTS: [(u64, &str); 3] = [(16_384, "high"), (4_096, "medium"), (0, "low")];

/// The request as one for a chat completion.
pub(super) fn request(
    body: &Tree<'_>,
    model: &str,
    server: &Server,
) -> Result<ChatRequest, Unsupported> {
    let mut notes = Notes::new(server.policy);
    let passed = judge_all(&mut notes, members(body, "body")?, &RULES)?;
    debug_assert!(passed.iter().all(|(key, _)| !OWN.contains(&&**key)));
    let mut out = Tree::object([("model", Tree::string(model))]);
    let mut messages = Messages::new(server);
    if let Some(system) = body.get("system") {
        let said = blocks::texts(system, "system", &mut notes)?;
        if !blocks::is_empty(&said) {
            messages.push(message("system", said), "system");
        }
    }
    let own = body.get("messages").and_then(Tree::list);
    let own = own.filter(|own| !own.is_empty());
    let own = own.ok_or_else(|| refused("messages", "it is no list, or empty"))?;
    for (place, own) in own.iter().enumerate() {
        blocks::message_of(
            own,
            &format!("messages[{place}]"),
            &mut messages,
            &mut notes,
        )?;
    }
    let (all, places) = messages.done();
    if server.is_direct {
        check_end(body, &all, &places)?;
    }
    out.set("messages", Tree::List(all));
    let most = body.get("max_tokens").and_then(Tree::whole);
    let most = most.filter(|most| *most > 0);
    let reason = "it is missing, or no whole number above 0";
    let most = most.ok_or_else(|| refused("max_tokens", reason))?;
    out.set("max_completion_tokens", Tree::number(most));
    let mut stops = None;
    if let Some(own) = body.get("stop_sequences")
        && !list(own, "stop_sequences")?.is_empty()
    {
        out.set("stop", own.clone());
        stops = Some(own.written());
    }
    output_config(body, &mut out, &mut notes)?;
    let thinks = || server.thinks(model);
    thinking(body, &mut out, thinks, &mut notes)?;
    tools(body, &mut out, &mut notes)?;
    if let Some(metadata) = body.get("metadata") {
        judge(&mut notes, metadata, &METADATA_RULES, "metadata")?;
        if let Some(user) = metadata.get("user_id") {
            out.set("user", user.clone());
        }
    }
    match body.get("service_tier").and_then(Tree::text).as_deref() {
        None | Some("auto") => {}
        Some("standard_only") => out.set("service_tier", Tree::string("default")),
        Some(_) => notes.unsupported("service_tier", format!("{API} has no such tier"))?,
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
        echo: String::new(),
        stops: stops.unwrap_or_default(),
        warnings: notes.warnings,
        places,
    })
}

/// A last message of the assistant is one that the model goes on with. A chat completion answers
/// it, but where the request asks in the way of vLLM.
fn check_end(body: &Tree<'_>, all: &[Tree<'_>], places: &[String]) -> Result<(), Unsupported> {
    let goes_on = body.get("continue_final_message");
    let goes_on = goes_on.is_some_and(|it| it.is_plain("true"));
    let role = all.last().and_then(|last| last.get("role"));
    if goes_on || !role.is_some_and(|role| role.is_text("assistant")) {
        return Ok(());
    }
    let reason = format!("{API} does not go on with a last message of the assistant");
    Err(refused(
        places.last().map_or("messages", String::as_str),
        reason,
    ))
}

fn output_config<'a>(
    body: &Tree<'a>,
    out: &mut Tree<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    const PLACE: &str = "output_config.format";
    let Some(config) = body.get("output_config") else {
        return Ok(());
    };
    judge(notes, config, &OUTPUT_RULES, "output_config")?;
    if let Some(effort) = config.get("effort") {
        out.set("reasoning_effort", effort.clone());
    }
    let Some(format) = config.get("format") else {
        return Ok(());
    };
    judge(notes, format, &FORMAT_RULES, PLACE)?;
    let schema = format.get("schema").filter(|it| it.members().is_some());
    let schema = schema.filter(|_| word(format, "type") == "json_schema");
    let schema = schema.ok_or_else(|| refused(PLACE, "it is no schema of an answer"))?;
    let described = Tree::object([
        ("name", Tree::string("answer")),
        ("schema", schema.clone()),
        // The Messages API always keeps to the schema.
        ("strict", Tree::boolean(true)),
    ]);
    out.set(
        "response_format",
        typed("json_schema", "json_schema", described),
    );
    Ok(())
}

/// `thinks`: whether the model does so, as far as that is known.
fn thinking<'a>(
    body: &Tree<'a>,
    out: &mut Tree<'a>,
    thinks: impl Fn() -> Option<bool>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    let Some(thinking) = body.get("thinking") else {
        return Ok(());
    };
    judge(notes, thinking, &THINKING_RULES, "thinking")?;
    match &*word(thinking, "type") {
        // How much is up to the model, or said as an effort.
        "adaptive" => {}
        "disabled" => {
            if out.get("reasoning_effort").is_some() {
                notes.dropped("output_config.effort", "`thinking` is disabled");
                out.remove("reasoning_effort");
            }
            match thinks() {
                Some(true) => out.set("reasoning_effort", Tree::string("none")),
                Some(false) => {}
                // One that does not think refuses to be told not to.
                None => notes.dropped("thinking", "nobody knows whether the model thinks"),
            }
        }
        "enabled" => {
            let budget = thinking.get("budget_tokens").and_then(Tree::whole);
            let budget = budget.ok_or_else(|| {
                refused(
                    "thinking.budget_tokens",
                    "it is missing, or no whole number",
                )
            })?;
            if out.get("reasoning_effort").is_some() {
                let message = "`output_config.effort` says how much to think";
                notes.dropped("thinking.budget_tokens", message);
            } else {
                let word = EFFORTS.iter().find(|(least, _)| budget >= *least);
                let word = word.map_or("low", |(_, word)| word);
                out.set("reasoning_effort", Tree::string(word));
                let message = format!("{API} is told how much to think in a word: {word}");
                notes.changed("thinking.budget_tokens", message);
            }
        }
        _ => notes.unsupported("thinking.type", format!("{API} has nothing like it"))?,
    }
    Ok(())
}

fn tools<'a>(body: &Tree<'a>, out: &mut Tree<'a>, notes: &mut Notes) -> Result<(), Unsupported> {
    let mut has_tools = false;
    if let Some(tools) = body.get("tools") {
        let tools = list(tools, "tools")?.iter().enumerate();
        let tools = tools.map(|(place, it)| tool(it, &format!("tools[{place}]"), notes));
        let tools = tools.collect::<Result<Vec<_>, _>>()?;
        has_tools = !tools.is_empty();
        if has_tools {
            out.set("tools", Tree::List(tools));
        }
    }
    let Some(choice) = body.get("tool_choice") else {
        return Ok(());
    };
    judge(notes, choice, &CHOICE_RULES, "tool_choice")?;
    let chosen = match &*word(choice, "type") {
        "auto" => Tree::string("auto"),
        "any" => Tree::string("required"),
        "none" => Tree::string("none"),
        "tool" => {
            let name = text(choice, "name", "tool_choice")?;
            typed("function", "function", Tree::object([("name", name)]))
        }
        _ => return Err(refused("tool_choice.type", "it is none that is known")),
    };
    let is_alone = choice.get("disable_parallel_tool_use");
    let is_alone = is_alone.is_some_and(|it| it.is_plain("true"));
    let parallel = is_alone.then(|| Tree::boolean(false));
    tool_options(out, has_tools, Some(chosen), parallel)
}

fn tool<'a>(tool: &Tree<'a>, place: &str, notes: &mut Notes) -> Result<Tree<'a>, Unsupported> {
    let kind = word(tool, "type");
    if !matches!(&*kind, "" | "custom") {
        let reason = format!("\"{kind}\" is a tool that Anthropic's API alone knows");
        return Err(refused(format!("{place}.type"), reason));
    }
    judge(notes, tool, &TOOL_RULES, place)?;
    if let Some(callers) = tool.get("allowed_callers")
        && !list(callers, place)?
            .iter()
            .any(|one| one.is_text("direct"))
    {
        let reason = "a program that the model writes cannot call a tool here";
        return Err(refused(format!("{place}.allowed_callers"), reason));
    }
    let mut function = Tree::object([("name", text(tool, "name", place)?)]);
    for (key, name) in [
        ("description", "description"),
        ("input_schema", "parameters"),
        ("strict", "strict"),
    ] {
        if let Some(value) = tool.get(key) {
            function.set(name, value.clone());
        }
    }
    Ok(typed("function", "function", function))
}

/// A failure, with its error as the Messages API has it. What the server said stands beside it.
pub(super) fn failure(head: &Head, decoded: Decoded) -> Decoded {
    let text = String::from_utf8_lossy(&decoded.body);
    let read = Tree::read(&text);
    let message = read.as_ref().and_then(message_of);
    let message = message.unwrap_or_else(|| said_without_a_message(head, &text));
    let provider = match &read {
        Some(body) => body.get("provider").unwrap_or(body).written(),
        None => Tree::string(&text).written(),
    };
    let kind = match head.status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        408 | 504 => "timeout_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    };
    let id = decoded.request_id.as_deref();
    let error = Tree::object([
        ("type", Tree::string(kind)),
        ("message", Tree::string(&message)),
    ]);
    let body = Tree::object([
        ("type", Tree::string("error")),
        ("error", error),
        ("request_id", id.map_or_else(Tree::null, Tree::string)),
        ("provider", Tree::Plain(provider.into())),
    ]);
    let said = decoded.said().clone();
    Decoded {
        request_id: decoded.request_id,
        ..made::failure(said, Some(body.written()))
    }
}

/// What an error says, in whichever of the usual forms.
fn message_of(body: &Tree<'_>) -> Option<String> {
    let body = match body.list() {
        Some(items) => items.first()?,
        None => body,
    };
    let error = body.get("error");
    let within = error.and_then(|error| error.get("message").or_else(|| error.get("detail")));
    let beside = || ["message", "detail"].iter().find_map(|key| body.get(key));
    let said = within
        .or_else(|| error.filter(|error| error.is_string()))
        .or_else(beside)?;
    let message = match said.text() {
        Some(text) => text.into_owned(),
        None => said.written(),
    };
    Some(message).filter(|message| !message.is_empty())
}

/// A message in place of one that nobody can read.
fn said_without_a_message(head: &Head, said: &str) -> String {
    let mut message = format!("The model server answered {}.", head.status);
    if !said.trim().is_empty() {
        message.push(' ');
        message.push_str(&http::excerpt(said.as_bytes()));
    }
    message
}

//! Requests in the form that Cohere's API takes. It is read strictly: a member that the API does
//! not know is an error.

use std::borrow::Cow;

use crate::upstream::provider::chat::{
    self, Aliases, DataUrl, Form, Notes, Part, Placed, Rule, has_scheme, is_blank, items, refused,
    tool_names,
};
use crate::upstream::provider::interface::{CHAT, EMBEDDINGS, Request, Unsupported};
use crate::upstream::provider::tree::Tree;
use crate::upstream::settings::UnsupportedParams;

/// As messages to users name the API.
const API: &str = "Cohere's API";

/// What becomes of the keys of a request for a chat completion.
pub(super) const RULES: [(&str, Rule); 45] = [
    ("model", Rule::Mapped),
    ("messages", Rule::Mapped),
    ("max_completion_tokens", Rule::Mapped),
    ("max_tokens", Rule::Mapped),
    ("top_p", Rule::Mapped),
    ("stop", Rule::Mapped),
    ("presence_penalty", Rule::Mapped),
    ("frequency_penalty", Rule::Mapped),
    ("tools", Rule::Mapped),
    ("tool_choice", Rule::Mapped),
    ("parallel_tool_calls", Rule::Mapped),
    ("response_format", Rule::Mapped),
    ("reasoning_effort", Rule::Mapped),
    ("temperature", Rule::Passed),
    ("seed", Rule::Passed),
    // Cohere's own, for those who know it.
    ("k", Rule::Passed),
    ("p", Rule::Passed),
    ("documents", Rule::Passed),
    ("citation_options", Rule::Passed),
    ("safety_mode", Rule::Passed),
    ("strict_tools", Rule::Passed),
    ("thinking", Rule::Passed),
    ("priority", Rule::Passed),
    ("user", Rule::Harmless),
    ("safety_identifier", Rule::Harmless),
    ("metadata", Rule::Harmless),
    ("store", Rule::Harmless),
    ("prediction", Rule::Harmless),
    ("prompt_cache_key", Rule::Harmless),
    ("prompt_cache_options", Rule::Harmless),
    ("prompt_cache_retention", Rule::Harmless),
    ("stream_options", Rule::Harmless),
    ("service_tier", Rule::Unsupported),
    // Cohere's have numbers in place of the tokens, which OpenAI's cannot do without.
    ("logprobs", Rule::Unsupported),
    ("top_logprobs", Rule::Unsupported),
    ("logit_bias", Rule::Unsupported),
    ("verbosity", Rule::Unsupported),
    ("moderation", Rule::Unsupported),
    ("n", Rule::Refused),
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
    ("reasoning_content", Rule::Mapped),
    ("name", Rule::Harmless),
    ("annotations", Rule::Harmless),
    ("citations", Rule::Harmless),
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
const EMBEDDING_RULES: [(&str, Rule); 9] = [
    ("model", Rule::Mapped),
    ("input", Rule::Mapped),
    ("dimensions", Rule::Mapped),
    ("encoding_format", Rule::Mapped),
    ("input_type", Rule::Mapped),
    // Cohere's own, for those who know it.
    ("truncate", Rule::Passed),
    ("max_tokens", Rule::Passed),
    ("priority", Rule::Passed),
    ("user", Rule::Harmless),
];

/// As many texts as a call takes.
pub(super) const TEXTS_MAX: usize = 96;
/// As many stop sequences as a call takes.
const STOPS_MAX: usize = 5;

/// The least and the most of the probability that `p` takes.
const P_MIN: f64 = 0.01;
const P_MAX: f64 = 0.99;

const NAME_MAX: usize = 128;
const NAME: Form = Form {
    fits: |name| {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        name.len() <= NAME_MAX && name.starts_with(is_first) && name.chars().all(is_allowed)
    },
    fitted: |own, nth| chat::spelled(own, nth, is_allowed, NAME_MAX),
};

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

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
    let mut request = Request::default();
    if path == CHAT {
        let mut translation = Translation {
            body,
            out,
            notes: &mut notes,
            names: Aliases::new(NAME, tool_names(body)),
        };
        translation.chat_completion()?;
        out = translation.out;
        request.names = translation.names.renamed();
    } else {
        embeddings(body, &mut out, &mut notes)?;
        let format = body.get("encoding_format");
        request.wants_base64 = format.is_some_and(|format| format.is_text("base64"));
    }
    request.warnings = notes.warnings;
    Ok((out.written(), request))
}

fn embeddings<'a>(
    body: &Tree<'a>,
    out: &mut Tree<'a>,
    notes: &mut Notes,
) -> Result<(), Unsupported> {
    let reason = "it is neither a text nor a list of texts: tokens are those of one model family";
    let texts = match body.get("input") {
        Some(Tree::List(items)) if items.iter().all(Tree::is_string) => items.clone(),
        Some(one) if one.is_string() => vec![one.clone()],
        _ => return Err(refused("input", reason)),
    };
    if texts.len() > TEXTS_MAX {
        let reason = format!("it has more than {TEXTS_MAX} texts, which {API} takes at once");
        return Err(refused("input", reason));
    }
    out.set("texts", Tree::List(texts));
    let kind = body.get("input_type").cloned().unwrap_or_else(|| {
        let reason = "the texts are taken for documents to be searched: `defaults` of the model \
                      say otherwise";
        notes.changed("input_type", reason);
        Tree::string("search_document")
    });
    out.set("input_type", kind);
    let types = vec![Tree::string("float")];
    out.set("embedding_types", Tree::List(types));
    if let Some(dimensions) = body.get("dimensions") {
        out.set("output_dimension", dimensions.clone());
    }
    Ok(())
}

struct Translation<'t, 'a, 'n> {
    body: &'t Tree<'a>,
    out: Tree<'a>,
    notes: &'n mut Notes,
    names: Aliases,
}

impl<'a> Translation<'_, 'a, '_> {
    fn chat_completion(&mut self) -> Result<(), Unsupported> {
        if let Some(most) = chat::max_output(self.body)? {
            self.out.set("max_tokens", Tree::number(most));
        }
        self.sampling()?;
        let stops = chat::stops(self.body);
        if stops.len() > STOPS_MAX {
            let reason = format!("{API} takes at most {STOPS_MAX}");
            self.notes.unsupported("stop", reason)?;
        } else if !stops.is_empty() {
            let stops = stops.into_iter().cloned().collect();
            self.out.set("stop_sequences", Tree::List(stops));
        }
        self.reasoning()?;
        self.tools()?;
        self.response_format()?;
        let messages = self.body.get("messages").and_then(Tree::list);
        let messages = messages.ok_or_else(|| refused("messages", "it is no list"))?;
        let mut out = Vec::with_capacity(messages.len());
        for (place, message) in messages.iter().enumerate() {
            out.extend(self.message(message, &format!("messages[{place}]"))?);
        }
        if out.is_empty() {
            return Err(refused("messages", "they say nothing"));
        }
        self.out.set("messages", Tree::List(out));
        Ok(())
    }

    fn sampling(&mut self) -> Result<(), Unsupported> {
        for key in ["presence_penalty", "frequency_penalty"] {
            let Some(penalty) = self.body.get(key) else {
                continue;
            };
            match penalty.float() {
                Some(0.0) => {}
                Some(number) if (0.0..=1.0).contains(&number) => {
                    self.out.set(key, penalty.clone());
                }
                _ => {
                    let reason = format!("{API} takes a number from 0 to 1");
                    self.notes.unsupported(key, reason)?;
                }
            }
        }
        let Some(top_p) = self.body.get("top_p") else {
            return Ok(());
        };
        let number = top_p.float();
        let number = number.ok_or_else(|| refused("top_p", "it is no number"))?;
        let within = number.clamp(P_MIN, P_MAX);
        if number >= 1.0 {
            // All tokens count: nothing is asked for.
        } else if (P_MIN..=P_MAX).contains(&number) {
            self.out.set("p", top_p.clone());
        } else {
            let message = format!("{API} takes {P_MIN} to {P_MAX}: {within} is sent");
            self.notes.changed("top_p", message);
            self.out.set("p", Tree::number(within));
        }
        Ok(())
    }

    fn reasoning(&mut self) -> Result<(), Unsupported> {
        const PARAM: &str = "reasoning_effort";
        let Some(effort) = self.body.get(PARAM).and_then(Tree::text) else {
            return Ok(());
        };
        let mut thinking = Tree::object([("type", Tree::string("enabled"))]);
        let budget = match &*effort {
            "none" => {
                thinking.set("type", Tree::string("disabled"));
                None
            }
            "minimal" => Some(512),
            "low" => Some(1_024),
            "medium" => Some(8_192),
            "high" | "xhigh" | "max" => None,
            _ => return Err(refused(PARAM, "it is none that is known")),
        };
        if let Some(budget) = budget {
            let message = format!("the model may think for {budget} tokens");
            self.notes.changed(PARAM, message);
            thinking.set("token_budget", Tree::number(budget));
        }
        self.out.set("thinking", thinking);
        Ok(())
    }

    fn tools(&mut self) -> Result<(), Unsupported> {
        let all = items(self.body.get("tools"));
        if all.is_empty() {
            return Ok(());
        }
        let chosen = self.tool_choice()?;
        let (mut tools, mut strict) = (Vec::with_capacity(all.len()), Vec::new());
        for (place, tool) in all.iter().enumerate() {
            let function = tool.get("function");
            let Some(members) = function.and_then(Tree::members) else {
                let param = format!("tools[{place}].type");
                return Err(refused(param, "only functions are known"));
            };
            let param = format!("tools[{place}].function");
            self.notes
                .judge(members, &FUNCTION_RULES, &format!("{param}."), API)?;
            let get = |key: &str| function.and_then(|function| function.get(key));
            let name = get("name").and_then(Tree::text);
            let name = name.ok_or_else(|| refused(format!("{param}.name"), "it is missing"))?;
            if chosen.as_ref().is_some_and(|chosen| *chosen != name) {
                continue;
            }
            let mut made = Tree::object([("name", Tree::string(&self.names.of(&name)))]);
            if let Some(description) = get("description") {
                made.set("description", description.clone());
            }
            let schema = match get("parameters") {
                Some(schema @ Tree::Object(_)) => schema.clone(),
                None => Tree::object([
                    ("type", Tree::string("object")),
                    ("properties", Tree::object([])),
                ]),
                Some(_) => return Err(refused(format!("{param}.parameters"), "it is no object")),
            };
            made.set("parameters", schema);
            let is_strict = get("strict").is_some_and(|strict| strict.is_plain("true"));
            strict.push((is_strict, format!("{param}.strict")));
            tools.push(Tree::object([
                ("type", Tree::string("function")),
                ("function", made),
            ]));
        }
        if tools.is_empty() {
            return Err(refused("tool_choice", "the function is none of the tools"));
        }
        if chosen.is_some() && all.len() > tools.len() {
            let message = format!("{API} is sent no other tool, so that it must call this one");
            self.notes.changed("tool_choice", message);
        }
        let is_strict = strict.iter().all(|(is_strict, _)| *is_strict);
        if is_strict {
            self.out.set("strict_tools", Tree::boolean(true));
        } else {
            // Either all are, or none is.
            for (_, param) in strict.into_iter().filter(|(is_strict, _)| *is_strict) {
                let reason = format!("{API} takes it for all tools or for none");
                self.notes.unsupported(param, reason)?;
            }
        }
        self.out.set("tools", Tree::List(tools));
        let parallel = self.body.get("parallel_tool_calls");
        if parallel.is_some_and(|value| value.is_plain("false")) {
            let reason = "the model may call several tools at once";
            self.notes.unsupported("parallel_tool_calls", reason)?;
        }
        Ok(())
    }

    /// Says whether the model is to call a tool. Returns the one that it must call, if any.
    fn tool_choice(&mut self) -> Result<Option<String>, Unsupported> {
        let Some(choice) = self.body.get("tool_choice") else {
            return Ok(None);
        };
        let (word, chosen) = match choice.text().as_deref() {
            Some("auto") => return Ok(None),
            Some("none") => ("NONE", None),
            Some("required") => ("REQUIRED", None),
            _ => {
                let name = choice.get("function").and_then(|it| it.get("name")?.text());
                let reason = "only functions can be chosen, each by itself";
                let name = name.ok_or_else(|| refused("tool_choice", reason))?;
                ("REQUIRED", Some(name.into_owned()))
            }
        };
        self.out.set("tool_choice", Tree::string(word));
        Ok(chosen)
    }

    fn response_format(&mut self) -> Result<(), Unsupported> {
        const PARAM: &str = "response_format";
        let Some(format) = self.body.get(PARAM) else {
            return Ok(());
        };
        let mut made = Tree::object([("type", Tree::string("json_object"))]);
        let kind = format.get("type").and_then(Tree::text).unwrap_or_default();
        match &*kind {
            "text" => return Ok(()),
            "json_object" => {}
            "json_schema" => {
                let schema = format.get("json_schema").and_then(|it| it.get("schema"));
                let param = "response_format.json_schema.schema";
                let schema = schema.ok_or_else(|| refused(param, "it is missing"))?;
                chat::undescribed(format, API, self.notes);
                made.set("json_schema", schema.clone());
            }
            _ => return Err(refused(format!("{PARAM}.type"), "it is none that is known")),
        }
        for other in ["tools", "documents"] {
            if self.out.get(other).is_some() {
                let reason = format!("{API} does not take it beside {other}");
                return Err(refused(PARAM, reason));
            }
        }
        self.out.set(PARAM, made);
        Ok(())
    }

    /// A message. `None`: it says nothing, and is of the system or the assistant.
    fn message(
        &mut self,
        message: &Tree<'a>,
        param: &str,
    ) -> Result<Option<Tree<'a>>, Unsupported> {
        let members = message.members();
        let members = members.ok_or_else(|| refused(param, "it is no object"))?;
        self.notes
            .judge(members, &MESSAGE_RULES, &format!("{param}."), API)?;
        let role = message.get("role").and_then(Tree::text).unwrap_or_default();
        let role = match &*role {
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            role => {
                let reason = format!("the role \"{role}\" is not known");
                return Err(refused(format!("{param}.role"), reason));
            }
        };
        let place = format!("{param}.content");
        let mut parts = Vec::new();
        for placed in chat::parts(message.get("content"), &place, self.notes)? {
            let is_blank = matches!(&placed.part, Part::Text(text) if is_blank(text));
            // The result of a tool may be empty.
            if !is_blank || role == "tool" {
                parts.push(part(placed, role)?);
            }
        }
        if let Some(refusal) = message.get("refusal")
            && role == "assistant"
        {
            parts.push(text(refusal.clone()));
        }
        let mut out = Tree::object([("role", Tree::string(role))]);
        let calls = items(message.get("tool_calls"));
        if role == "assistant" {
            self.assistant(message, param, &mut parts, &mut out)?;
        }
        if role == "tool" {
            let id = message.get("tool_call_id").filter(|id| id.is_string());
            let id = id.ok_or_else(|| refused(format!("{param}.tool_call_id"), "it is missing"))?;
            out.set("tool_call_id", id.clone());
        }
        match (role, parts.is_empty()) {
            ("user", true) => return Err(refused(place, "it is empty")),
            ("system", true) => return Ok(None),
            ("assistant", true) if calls.is_empty() => return Ok(None),
            ("assistant", true) => return Ok(Some(out)),
            _ => {}
        }
        let content = match message.get("content") {
            Some(content) if content.is_string() && parts.len() == 1 => content.clone(),
            None if parts.is_empty() => Tree::string(""),
            _ => Tree::List(parts),
        };
        out.set("content", content);
        Ok(Some(out))
    }

    /// What only messages of the assistant have: calls, and what was thought before them or before
    /// the text.
    fn assistant(
        &mut self,
        message: &Tree<'a>,
        param: &str,
        parts: &mut Vec<Tree<'a>>,
        out: &mut Tree<'a>,
    ) -> Result<(), Unsupported> {
        let mut calls = Vec::new();
        for (place, call) in items(message.get("tool_calls")).iter().enumerate() {
            let function = call.get("function");
            let get = |key: &str| {
                let value = function.and_then(|function| function.get(key));
                value.filter(|value| value.is_string())
            };
            let (Some(id), Some(name)) = (call.get("id"), get("name").and_then(Tree::text)) else {
                let param = format!("{param}.tool_calls[{place}]");
                return Err(refused(param, "it is no call of a function with an id"));
            };
            let arguments = get("arguments").cloned();
            let function = Tree::object([
                ("name", Tree::string(&self.names.of(&name))),
                ("arguments", arguments.unwrap_or_else(|| Tree::string("{}"))),
            ]);
            calls.push(Tree::object([
                ("id", id.clone()),
                ("type", Tree::string("function")),
                ("function", function),
            ]));
        }
        let thought = message.get("reasoning_content");
        let thought = thought.filter(|thought| thought.is_string() && !thought.is_text(""));
        if calls.is_empty() {
            if let Some(thought) = thought
                && !parts.is_empty()
            {
                let kind = ("type", Tree::string("thinking"));
                parts.insert(0, Tree::object([kind, ("thinking", thought.clone())]));
            }
            return Ok(());
        }
        if let Some(plan) = thought {
            out.set("tool_plan", plan.clone());
        }
        out.set("tool_calls", Tree::List(calls));
        Ok(())
    }
}

fn text(written: Tree<'_>) -> Tree<'_> {
    Tree::object([("type", Tree::string("text")), ("text", written)])
}

fn part<'a>(placed: Placed<'_, '_>, role: &str) -> Result<Tree<'a>, Unsupported> {
    let Placed { part, param, .. } = placed;
    match part {
        Part::Text(written) => Ok(text(Tree::Plain(Cow::Owned(written.into_owned())))),
        Part::Image { url } if role == "user" => {
            if !has_scheme(&url, "https") && DataUrl::read(&url).is_none() {
                return Err(refused(param, "an image is an https: or a data: URL"));
            }
            let image = Tree::object([("url", Tree::string(&url))]);
            Ok(Tree::object([
                ("type", Tree::string("image_url")),
                ("image_url", image),
            ]))
        }
        Part::Image { .. } => Err(refused(param, "images stand in messages of users alone")),
        Part::File { .. } => {
            let reason = format!("{API} takes no files: send their text in `documents`");
            Err(refused(param, reason))
        }
        Part::Audio { .. } => Err(refused(param, format!("{API} takes no audio"))),
    }
}

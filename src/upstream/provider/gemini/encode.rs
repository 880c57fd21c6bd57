//! Requests as Gemini's `generateContent` and `batchEmbedContents` take them.

use std::borrow::Cow;
use std::collections::HashMap;

use super::models::{self, Abilities, Thinking};
use crate::upstream::provider::chat::{
    self, Aliases, DataUrl, Form, Notes, Part, Placed, Rule, is_blank, items, refused, tool_names,
};
use crate::upstream::provider::interface::{CHAT, EMBEDDINGS, Request, Unsupported};
use crate::upstream::provider::tree::Tree;
use crate::upstream::settings::{CapabilitySettings, UnsupportedParams};

/// As messages to users name the API.
const API: &str = "Gemini's API";

/// Where files are that were uploaded to Gemini itself: the only URLs that it fetches.
const FILES: &str = "https://generativelanguage.googleapis.com/";

/// What stands for the signature of a call that Gemini has not made, or whose signature is lost.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

/// What becomes of the keys of a request for a chat completion.
pub(super) const RULES: [(&str, Rule); 37] = [
    ("model", Rule::Mapped),
    ("messages", Rule::Mapped),
    ("max_completion_tokens", Rule::Mapped),
    ("max_tokens", Rule::Mapped),
    ("temperature", Rule::Mapped),
    ("top_p", Rule::Mapped),
    ("n", Rule::Mapped),
    ("seed", Rule::Mapped),
    ("stop", Rule::Mapped),
    ("presence_penalty", Rule::Mapped),
    ("frequency_penalty", Rule::Mapped),
    ("tools", Rule::Mapped),
    ("tool_choice", Rule::Mapped),
    ("parallel_tool_calls", Rule::Mapped),
    ("response_format", Rule::Mapped),
    ("reasoning_effort", Rule::Mapped),
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
    ("logprobs", Rule::Unsupported),
    ("top_logprobs", Rule::Unsupported),
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
const MESSAGE_RULES: [(&str, Rule); 10] = [
    ("role", Rule::Mapped),
    ("content", Rule::Mapped),
    ("refusal", Rule::Mapped),
    ("tool_calls", Rule::Mapped),
    ("tool_call_id", Rule::Mapped),
    ("name", Rule::Harmless),
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
    ("strict", Rule::Unsupported),
];

/// What becomes of the keys of a request for embeddings.
const EMBEDDING_RULES: [(&str, Rule); 5] = [
    ("model", Rule::Mapped),
    ("input", Rule::Mapped),
    ("dimensions", Rule::Mapped),
    ("encoding_format", Rule::Mapped),
    ("user", Rule::Harmless),
];

const NAME_MAX: usize = 128;
const NAME: Form = Form {
    fits: |name| {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        name.len() <= NAME_MAX && name.starts_with(is_first) && name.chars().all(is_allowed)
    },
    fitted: |own, nth| chat::spelled(own, nth, is_allowed, NAME_MAX),
};

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.:-".contains(c)
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
    says: &[CapabilitySettings],
) -> Result<(String, Request), Unsupported> {
    let Some(members) = body.members() else {
        return Err(refused("body", "it is no object"));
    };
    let mut notes = Notes::new(policy);
    let (out, mut request) = match path {
        CHAT => {
            notes.judge(members, &RULES, "", API)?;
            let mut translation = Translation {
                body,
                abilities: Abilities::of(model, says),
                notes: &mut notes,
                names: Aliases::new(NAME, tool_names(body)),
            };
            let out = translation.chat_completion()?;
            let request = Request {
                names: translation.names.renamed(),
                choices: body.get("n").and_then(Tree::whole),
                ..Request::default()
            };
            (out, request)
        }
        EMBEDDINGS => {
            notes.judge(members, &EMBEDDING_RULES, "", API)?;
            let format = body.get("encoding_format");
            let request = Request {
                wants_base64: format.is_some_and(|format| format.is_text("base64")),
                ..Request::default()
            };
            (embeddings(body, model)?, request)
        }
        path => return Err(refused("url", format!("{API} has nothing like {path}"))),
    };
    request.warnings = notes.warnings;
    Ok((out.written(), request))
}

fn embeddings<'a>(body: &Tree<'a>, model: &str) -> Result<Tree<'a>, Unsupported> {
    let reason = "it is neither a text nor a list of texts: tokens are those of one model family";
    let texts = match body.get("input") {
        Some(Tree::List(items)) if items.iter().all(Tree::is_string) => items.clone(),
        Some(one) if one.is_string() => vec![one.clone()],
        _ => return Err(refused("input", reason)),
    };
    let name = models::resource(model);
    let requests = texts.into_iter().map(|text| {
        let parts = Tree::List(vec![Tree::object([("text", text)])]);
        let mut request = Tree::object([
            ("model", Tree::string(&name)),
            ("content", Tree::object([("parts", parts)])),
        ]);
        if let Some(dimensions) = body.get("dimensions") {
            request.set("outputDimensionality", dimensions.clone());
        }
        request
    });
    Ok(Tree::object([("requests", Tree::List(requests.collect()))]))
}

struct Translation<'t, 'a, 'n> {
    body: &'t Tree<'a>,
    abilities: Abilities,
    notes: &'n mut Notes,
    names: Aliases,
}

/// A message of the request that is made: messages in a row of one role are one.
struct Turn<'t> {
    role: &'static str,
    parts: Vec<Tree<'t>>,
}

impl<'t> Translation<'t, '_, '_> {
    fn chat_completion(&mut self) -> Result<Tree<'t>, Unsupported> {
        let mut system = Vec::new();
        let turns = self.messages(&mut system)?;
        let contents = turns.into_iter().map(|turn| {
            Tree::object([
                ("role", Tree::string(turn.role)),
                ("parts", Tree::List(turn.parts)),
            ])
        });
        let mut out = Tree::object([("contents", Tree::List(contents.collect()))]);
        if !system.is_empty() {
            let instruction = Tree::object([("parts", Tree::List(system))]);
            out.set("systemInstruction", instruction);
        }
        self.tools(&mut out)?;
        let config = self.generation_config()?;
        if config.members().is_some_and(|members| !members.is_empty()) {
            out.set("generationConfig", config);
        }
        Ok(out)
    }

    fn messages(&mut self, system: &mut Vec<Tree<'t>>) -> Result<Vec<Turn<'t>>, Unsupported> {
        let messages = self.body.get("messages").and_then(Tree::list);
        let messages = messages.ok_or_else(|| refused("messages", "it is no list"))?;
        let mut turns: Vec<Turn<'t>> = Vec::new();
        // By id: the name of the function that was called.
        let mut called: HashMap<Cow<'t, str>, String> = HashMap::new();
        for (place, message) in messages.iter().enumerate() {
            let param = format!("messages[{place}]");
            let members = message.members();
            let members = members.ok_or_else(|| refused(&*param, "it is no object"))?;
            let place = format!("{param}.");
            self.notes.judge(members, &MESSAGE_RULES, &place, API)?;
            let role = message.get("role").and_then(Tree::text).unwrap_or_default();
            match &*role {
                "system" | "developer" => {
                    let parts = self.parts(message, &param)?;
                    if turns.is_empty() {
                        system.extend(parts);
                    } else if !parts.is_empty() {
                        let told = "the model takes system messages only before all others: this \
                                    one is told as a user's, marked as the operator's";
                        self.notes.changed(&*param, told);
                        let mut marked = vec![text(Tree::string("<system>"))];
                        marked.extend(parts);
                        marked.push(text(Tree::string("</system>")));
                        push(&mut turns, "user", marked);
                    }
                }
                "user" => {
                    let parts = self.parts(message, &param)?;
                    if parts.is_empty() {
                        return Err(refused(format!("{param}.content"), "it is empty"));
                    }
                    push(&mut turns, "user", parts);
                }
                "assistant" => {
                    let mut parts = self.parts(message, &param)?;
                    if let Some(refusal) = message.get("refusal") {
                        parts.push(text(Tree::Plain(Cow::Owned(refusal.written()))));
                    }
                    self.calls(message, &param, &mut parts, &mut called)?;
                    push(&mut turns, "model", parts);
                }
                "tool" => {
                    let part = self.tool_result(message, &param, &called)?;
                    push(&mut turns, "user", vec![part]);
                }
                role => {
                    let reason = format!("the role \"{role}\" is not known");
                    return Err(refused(format!("{param}.role"), reason));
                }
            }
        }
        if turns.is_empty() {
            return Err(refused("messages", "it has no message of a user"));
        }
        Ok(turns)
    }

    /// The parts of a message, without texts that say nothing.
    fn parts(&mut self, message: &'t Tree<'_>, param: &str) -> Result<Vec<Tree<'t>>, Unsupported> {
        let param = format!("{param}.content");
        let parts = chat::parts(message.get("content"), &param, self.notes)?;
        let is_said = |placed: &Placed<'_, '_>| match &placed.part {
            Part::Text(written) => !is_blank(written),
            _ => true,
        };
        for placed in &parts {
            if let Part::File { name: Some(_), .. } = &placed.part {
                let param = format!("{}.file.filename", placed.param);
                self.notes
                    .dropped(param, format!("{API} has nothing like it"));
            }
        }
        parts.into_iter().filter(is_said).map(part).collect()
    }

    fn calls(
        &mut self,
        message: &'t Tree<'_>,
        param: &str,
        parts: &mut Vec<Tree<'t>>,
        called: &mut HashMap<Cow<'t, str>, String>,
    ) -> Result<(), Unsupported> {
        for (place, call) in items(message.get("tool_calls")).iter().enumerate() {
            let param = format!("{param}.tool_calls[{place}]");
            let Some(function) = call.get("function") else {
                return Err(refused(param, "only calls of functions are known"));
            };
            let own = function.get("name").and_then(Tree::text);
            let own = own.ok_or_else(|| refused(format!("{param}.function.name"), "is missing"))?;
            let name = self.names.of(&own);
            let arguments = function
                .get("arguments")
                .and_then(Tree::text)
                .unwrap_or_default();
            let arguments = match arguments.trim() {
                "" => "{}",
                arguments => arguments,
            };
            let Some(args) = Tree::read(arguments).filter(|args| args.members().is_some()) else {
                let param = format!("{param}.function.arguments");
                return Err(refused(param, "it is no object as JSON"));
            };
            let args = Tree::Plain(Cow::Owned(args.written()));
            let mut made = Tree::object([("name", Tree::string(&name)), ("args", args)]);
            let id = call.get("id").and_then(Tree::text).unwrap_or_default();
            if self.abilities.call_ids && !id.is_empty() {
                made.set("id", Tree::string(&id));
            }
            called.insert(id, name);
            let mut part = Tree::object([("functionCall", made)]);
            let extra = call
                .get("extra_content")
                .and_then(|extra| extra.get("google"));
            let signature = extra.and_then(|google| google.get("thought_signature"));
            match signature {
                Some(signature) => {
                    part.set(
                        "thoughtSignature",
                        Tree::Plain(Cow::Owned(signature.written())),
                    );
                }
                None if place == 0 && self.abilities.call_ids => {
                    part.set("thoughtSignature", Tree::string(NO_SIGNATURE));
                }
                None => {}
            }
            parts.push(part);
        }
        Ok(())
    }

    fn tool_result(
        &mut self,
        message: &'t Tree<'_>,
        param: &str,
        called: &HashMap<Cow<'_, str>, String>,
    ) -> Result<Tree<'t>, Unsupported> {
        let id = message
            .get("tool_call_id")
            .and_then(Tree::text)
            .unwrap_or_default();
        let Some(name) = called.get(&id) else {
            let reason = "no call before it has this id, so nobody knows whose result it is";
            return Err(refused(format!("{param}.tool_call_id"), reason));
        };
        let place = format!("{param}.content");
        let mut output = String::new();
        for placed in chat::parts(message.get("content"), &place, self.notes)? {
            let Part::Text(written) = placed.part else {
                return Err(refused(placed.param, "a result of a tool is text alone"));
            };
            let said = crate::domain::json::text(&written);
            let said = said.ok_or_else(|| refused(placed.param, "it has half a surrogate pair"))?;
            output.push_str(&said);
        }
        let response = Tree::object([("output", Tree::string(&output))]);
        let mut made = Tree::object([("name", Tree::string(name)), ("response", response)]);
        if self.abilities.call_ids && !id.is_empty() {
            made.set("id", Tree::string(&id));
        }
        Ok(Tree::object([("functionResponse", made)]))
    }

    fn tools(&mut self, out: &mut Tree<'t>) -> Result<(), Unsupported> {
        let all = items(self.body.get("tools"));
        if all.is_empty() {
            return Ok(());
        }
        let mut declarations = Vec::with_capacity(all.len());
        for (place, tool) in all.iter().enumerate() {
            let function = tool.get("function");
            let Some(members) = function.and_then(Tree::members) else {
                let param = format!("tools[{place}].type");
                return Err(refused(param, "only functions are known"));
            };
            let param = format!("tools[{place}].function");
            let place = format!("{param}.");
            self.notes.judge(members, &FUNCTION_RULES, &place, API)?;
            let get = |key: &str| function.and_then(|function| function.get(key));
            let name = get("name").and_then(Tree::text);
            let name = name.ok_or_else(|| refused(format!("{param}.name"), "it is missing"))?;
            let mut made = Tree::object([("name", Tree::string(&self.names.of(&name)))]);
            if let Some(description) = get("description") {
                made.set(
                    "description",
                    Tree::Plain(Cow::Owned(description.written())),
                );
            }
            // An object without properties is refused, and no schema means the same.
            if let Some(schema) = get("parameters")
                && !says_nothing(schema)
            {
                let schema = Tree::Plain(Cow::Owned(schema.written()));
                made.set("parametersJsonSchema", schema);
            }
            declarations.push(made);
        }
        let is_one_at_a_time = self.body.get("parallel_tool_calls");
        let is_one_at_a_time = is_one_at_a_time.is_some_and(|value| value.is_plain("false"));
        if is_one_at_a_time && declarations.len() > 1 {
            let reason = "the model may call several tools at once";
            self.notes.unsupported("parallel_tool_calls", reason)?;
        }
        let declarations = Tree::object([("functionDeclarations", Tree::List(declarations))]);
        out.set("tools", Tree::List(vec![declarations]));
        let Some(choice) = self.body.get("tool_choice") else {
            return Ok(());
        };
        let mode = |mode: &str| Tree::object([("mode", Tree::string(mode))]);
        let config = match choice.text().as_deref() {
            Some("auto") => mode("AUTO"),
            Some("none") => mode("NONE"),
            Some("required") => mode("ANY"),
            _ => {
                let name = choice.get("function").and_then(|it| it.get("name")?.text());
                let name = name.ok_or_else(|| {
                    refused(
                        "tool_choice",
                        "only functions can be chosen, each by itself",
                    )
                })?;
                let mut config = mode("ANY");
                let names = vec![Tree::string(&self.names.of(&name))];
                config.set("allowedFunctionNames", Tree::List(names));
                config
            }
        };
        let config = Tree::object([("functionCallingConfig", config)]);
        out.set("toolConfig", config);
        Ok(())
    }

    fn generation_config(&mut self) -> Result<Tree<'t>, Unsupported> {
        let mut config = Tree::object([]);
        let owned = |value: &Tree<'_>| Tree::Plain(Cow::Owned(value.written()));
        if let Some(most) = chat::max_output(self.body)? {
            config.set("maxOutputTokens", Tree::number(most));
        }
        for (key, name) in [
            ("temperature", "temperature"),
            ("top_p", "topP"),
            ("seed", "seed"),
        ] {
            if let Some(value) = self.body.get(key) {
                config.set(name, owned(value));
            }
        }
        if let Some(count) = self
            .body
            .get("n")
            .filter(|n| !chat::asks_for_nothing("n", n))
        {
            config.set("candidateCount", owned(count));
        }
        for (key, name) in [
            ("presence_penalty", "presencePenalty"),
            ("frequency_penalty", "frequencyPenalty"),
        ] {
            let value = self.body.get(key);
            let Some(value) = value.filter(|value| !chat::asks_for_nothing(key, value)) else {
                continue;
            };
            if self.abilities.penalties {
                config.set(name, owned(value));
            } else {
                self.notes.unsupported(key, "the model has no penalties")?;
            }
        }
        let stops = chat::stops(self.body);
        if stops.iter().any(|stop| !stop.is_string()) {
            return Err(refused(
                "stop",
                "it is neither a string nor a list of strings",
            ));
        }
        if !stops.is_empty() {
            config.set(
                "stopSequences",
                Tree::List(stops.into_iter().map(owned).collect()),
            );
        }
        self.response_format(&mut config)?;
        self.reasoning(&mut config)?;
        Ok(config)
    }

    fn response_format(&mut self, config: &mut Tree<'t>) -> Result<(), Unsupported> {
        let Some(format) = self.body.get("response_format") else {
            return Ok(());
        };
        let kind = format.get("type").and_then(Tree::text).unwrap_or_default();
        match &*kind {
            "text" => {}
            "json_object" => config.set("responseMimeType", Tree::string("application/json")),
            "json_schema" => {
                let schema = format.get("json_schema").and_then(|it| it.get("schema"));
                let Some(schema) = schema else {
                    let param = "response_format.json_schema.schema";
                    return Err(refused(param, "it is missing"));
                };
                chat::undescribed(format, API, self.notes);
                config.set("responseMimeType", Tree::string("application/json"));
                let schema = Tree::Plain(Cow::Owned(schema.written()));
                config.set("responseJsonSchema", schema);
            }
            _ => return Err(refused("response_format.type", "it is none that is known")),
        }
        Ok(())
    }

    fn reasoning(&mut self, config: &mut Tree<'t>) -> Result<(), Unsupported> {
        const PARAM: &str = "reasoning_effort";
        let Some(effort) = self.body.get(PARAM).and_then(Tree::text) else {
            return Ok(());
        };
        let (level, budget) = match &*effort {
            "none" => ("", 0),
            "minimal" => ("MINIMAL", 512),
            "low" => ("LOW", 1_024),
            "medium" => ("MEDIUM", 8_192),
            "high" => ("HIGH", 24_576),
            "xhigh" | "max" => ("XHIGH", 24_576),
            _ => return self.notes.unsupported(PARAM, "it is none that is known"),
        };
        let thinking = match self.abilities.thinking {
            Thinking::None => return self.notes.unsupported(PARAM, "the model does not think"),
            Thinking::Budget => Tree::object([("thinkingBudget", Tree::number(budget))]),
            Thinking::Level if level.is_empty() => {
                return self.notes.unsupported(PARAM, "the model always thinks");
            }
            Thinking::Level => Tree::object([("thinkingLevel", Tree::string(level))]),
        };
        config.set("thinkingConfig", thinking);
        Ok(())
    }
}

/// Whether a schema is that of an object without properties.
fn says_nothing(schema: &Tree<'_>) -> bool {
    let members = schema.members().unwrap_or_default();
    members.iter().all(|(key, value)| {
        let is_known = ["$schema", "additionalProperties", "type"].contains(&&**key);
        is_known || chat::asks_for_nothing("", value)
    })
}

fn text(written: Tree<'_>) -> Tree<'_> {
    Tree::object([("text", written)])
}

fn push<'t>(turns: &mut Vec<Turn<'t>>, role: &'static str, parts: Vec<Tree<'t>>) {
    match turns.last_mut() {
        _ if parts.is_empty() => {}
        Some(last) if last.role == role => last.parts.extend(parts),
        _ => turns.push(Turn { role, parts }),
    }
}

fn part<'t>(placed: Placed<'t, '_>) -> Result<Tree<'t>, Unsupported> {
    let Placed { part, param, .. } = placed;
    let inline = |kind: &str, data: &str| {
        let data = [
            ("mimeType", Tree::string(kind)),
            ("data", Tree::string(data)),
        ];
        Tree::object([("inlineData", Tree::object(data))])
    };
    match part {
        Part::Text(written) => Ok(text(Tree::Plain(written))),
        Part::Image { url } if url.starts_with(FILES) => {
            let data = Tree::object([("fileUri", Tree::string(&url))]);
            Ok(Tree::object([("fileData", data)]))
        }
        Part::Image { url } => match DataUrl::read(&url).filter(|data| data.is_base64) {
            Some(data) => Ok(inline(&data.media_type, data.data)),
            None => Err(refused(
                param,
                "Gemini fetches no images: send a data: URL in base64",
            )),
        },
        Part::File { data, .. } => {
            let data = data.ok_or_else(|| refused(&*param, "it has no `file_data`"))?;
            match DataUrl::read(&data).filter(|data| data.is_base64) {
                Some(data) => Ok(inline(&data.media_type, data.data)),
                None => Err(refused(param, "a file is a data: URL in base64")),
            }
        }
        Part::Audio { data, format } => Ok(inline(&format!("audio/{format}"), &data)),
    }
}

//! A request for a chat completion as Anthropic's Messages API takes it.

use std::borrow::Cow;

use super::models::{Abilities, Thinking};
use super::schema;
use crate::upstream::provider::chat::{
    self, Aliases, DataUrl, Form, Notes, Part, Placed, Rule, has_scheme, is_blank, items, refused,
    tool_names,
};
use crate::upstream::provider::interface::{CHAT, Request, Unsupported};
use crate::upstream::provider::tree::Tree;
use crate::upstream::settings::{CapabilitySettings, UnsupportedParams};

/// As messages to users name the API.
const API: &str = "Anthropic's API";

/// The first version without `temperature`, `top_p` and `top_k`.
const WITHOUT_SAMPLING: &str = "2026-10-21";

/// An answer of more tokens may take longer than ten minutes. Anthropic's own clients ask for a
/// stream from there on: what answers for longer without a byte is cut on its way.
pub(super) const PLAIN_OUTPUT_MAX: u64 = 21_333;

/// What becomes of the keys of a request.
pub(super) const RULES: [(&str, Rule); 40] = [
    ("model", Rule::Mapped),
    ("messages", Rule::Mapped),
    ("max_completion_tokens", Rule::Mapped),
    ("max_tokens", Rule::Mapped),
    ("temperature", Rule::Mapped),
    ("top_p", Rule::Mapped),
    ("stop", Rule::Mapped),
    ("tools", Rule::Mapped),
    ("tool_choice", Rule::Mapped),
    ("parallel_tool_calls", Rule::Mapped),
    ("response_format", Rule::Mapped),
    ("reasoning_effort", Rule::Mapped),
    ("user", Rule::Mapped),
    ("safety_identifier", Rule::Mapped),
    ("service_tier", Rule::Mapped),
    // Anthropic's own, for those who know it.
    ("top_k", Rule::Mapped),
    ("thinking", Rule::Passed),
    ("cache_control", Rule::Passed),
    ("metadata", Rule::Harmless),
    ("store", Rule::Harmless),
    ("prediction", Rule::Harmless),
    ("prompt_cache_key", Rule::Harmless),
    ("prompt_cache_options", Rule::Harmless),
    ("prompt_cache_retention", Rule::Harmless),
    ("stream_options", Rule::Harmless),
    ("seed", Rule::Unsupported),
    ("logprobs", Rule::Unsupported),
    ("top_logprobs", Rule::Unsupported),
    ("logit_bias", Rule::Unsupported),
    ("presence_penalty", Rule::Unsupported),
    ("frequency_penalty", Rule::Unsupported),
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
    ("strict", Rule::Mapped),
];

const TOOL_NAME: Form = Form {
    fits: |name| fits(name, NAME_MAX),
    fitted: |own, nth| chat::spelled(own, nth, is_allowed, NAME_MAX),
};
const TOOL_ID: Form = Form {
    fits: |id| fits(id, ID_MAX),
    fitted: |own, nth| chat::spelled(own, nth, is_allowed, ID_MAX),
};
const NAME_MAX: usize = 128;
/// Not documented: longer than any that servers make.
const ID_MAX: usize = 256;

/// The tool that stands for a structured answer of models that know no schemas of answers.
pub(super) const ANSWER_TOOL: &str = "json_tool_call";

/// The least that a model may be given to think.
const LEAST_BUDGET: u64 = 1_024;

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn fits(name: &str, longest: usize) -> bool {
    (1..=longest).contains(&name.len()) && name.chars().all(is_allowed)
}

/// Why no line of this `url`, or with this key, is taken.
pub(super) fn refuses(path: &str, key: Option<&str>, policy: UnsupportedParams) -> Option<String> {
    let rules: Option<&chat::Rules> = (path == CHAT).then_some(&RULES);
    chat::refuses(rules, key, policy, API)
}

/// The request, and what its answer's translation needs to know.
pub(super) fn encode(
    body: &Tree<'_>,
    model: &str,
    version: &str,
    policy: UnsupportedParams,
    says: &[CapabilitySettings],
) -> Result<(String, Request), Unsupported> {
    if body.members().is_none() {
        return Err(refused("body", "it is no object"));
    }
    let mut translation = Translation {
        body,
        abilities: Abilities::of(model, says),
        notes: Notes::new(policy),
        names: Aliases::new(TOOL_NAME, tool_names(body)),
        ids: Aliases::new(TOOL_ID, ids(body)),
        out: Tree::object([]),
        request: Request::default(),
        has_sampling: version < WITHOUT_SAMPLING,
        thinks: false,
    };
    translation.run(model)?;
    let Translation {
        notes,
        names,
        out,
        mut request,
        ..
    } = translation;
    request.names = names.renamed();
    request.warnings = notes.warnings;
    Ok((out.written(), request))
}

/// The ids of all calls.
fn ids<'t>(body: &'t Tree<'_>) -> impl Iterator<Item = Cow<'t, str>> {
    let messages = items(body.get("messages")).iter();
    let calls = messages.flat_map(|message| items(message.get("tool_calls")));
    calls.filter_map(|call| call.get("id")?.text())
}

struct Translation<'t, 'a> {
    body: &'t Tree<'a>,
    abilities: Abilities,
    notes: Notes,
    names: Aliases,
    ids: Aliases,
    out: Tree<'t>,
    request: Request,
    /// Whether this version of the API has temperatures.
    has_sampling: bool,
    /// Whether the model is asked to think.
    thinks: bool,
}

/// A message of the request that is made: messages in a row of one role are one.
struct Turn<'t> {
    role: &'static str,
    /// Results of tools, which stand before all else in a user's turn.
    results: Vec<Tree<'t>>,
    blocks: Vec<Tree<'t>>,
    /// Where the first message of it stands.
    param: String,
}

impl<'t> Translation<'t, '_> {
    fn run(&mut self, model: &str) -> Result<(), Unsupported> {
        let members = self.body.members().unwrap_or_default();
        let passed = self.notes.judge(members, &RULES, "", API)?;
        self.out.set("model", Tree::string(model));
        let max_tokens = self.max_tokens()?;
        self.out.set("max_tokens", Tree::number(max_tokens));
        self.request.streams = max_tokens > PLAIN_OUTPUT_MAX;
        let mut system = Vec::new();
        let turns = self.messages(&mut system)?;
        self.response_format(&mut system)?;
        if !system.is_empty() {
            self.out.set("system", Tree::List(system));
        }
        self.out.set("messages", written(turns));
        self.reasoning(max_tokens)?;
        self.thinks |= passed.iter().any(|(key, _)| key == "thinking");
        self.tools()?;
        self.sampling()?;
        self.stop()?;
        self.user();
        self.service_tier()?;
        for (key, value) in passed {
            // Parsed from the request, and written as they are.
            let value = Tree::Plain(Cow::Owned(value.written()));
            if key == "thinking" {
                self.out.set("thinking", value);
            } else {
                self.out.set("cache_control", value);
            }
        }
        Ok(())
    }

    fn max_tokens(&mut self) -> Result<u64, Unsupported> {
        if let Some(stated) = chat::max_output(self.body)? {
            return Ok(stated);
        }
        let most = self.abilities.max_output;
        if !self.abilities.is_known {
            let message = format!(
                "{API} wants to know the most that the model may write, and the request does not \
                 say: {most}"
            );
            self.notes.changed("max_completion_tokens", message);
        }
        Ok(most)
    }

    /// The messages but for the leading ones of the system, which go to `system`.
    fn messages(&mut self, system: &mut Vec<Tree<'t>>) -> Result<Vec<Turn<'t>>, Unsupported> {
        let messages = self.body.get("messages").and_then(Tree::list);
        let messages = messages.ok_or_else(|| refused("messages", "it is no list"))?;
        let mut turns: Vec<Turn<'t>> = Vec::new();
        for (place, message) in messages.iter().enumerate() {
            let param = format!("messages[{place}]");
            let members = message.members();
            let members = members.ok_or_else(|| refused(&*param, "it is no object"))?;
            let place_of = format!("{param}.");
            let passed = self.notes.judge(members, &MESSAGE_RULES, &place_of, API)?;
            debug_assert!(passed.is_empty(), "no key of a message is passed on");
            let role = message.get("role").and_then(Tree::text).unwrap_or_default();
            match &*role {
                "system" | "developer" if turns.is_empty() => {
                    system.extend(self.texts(message, &param)?);
                }
                "system" | "developer" => {
                    let next = messages.get(place + 1);
                    self.system_midway(message, param, next, &mut turns)?;
                }
                "user" => {
                    let blocks = self.content(message, &param)?;
                    if blocks.is_empty() {
                        return Err(refused(format!("{param}.content"), "it is empty"));
                    }
                    push(&mut turns, "user", blocks, param);
                }
                "assistant" => {
                    let blocks = self.of_assistant(message, &param)?;
                    push(&mut turns, "assistant", blocks, param);
                }
                "tool" => {
                    let block = self.tool_result(message, &param)?;
                    push_result(&mut turns, block, param);
                }
                role => {
                    let reason = format!("the role \"{role}\" is not known");
                    return Err(refused(format!("{param}.role"), reason));
                }
            }
        }
        self.end(&mut turns)?;
        Ok(turns)
    }

    /// Sees to it that the last message is one that the model takes.
    fn end(&mut self, turns: &mut [Turn<'t>]) -> Result<(), Unsupported> {
        let Some(last) = turns.last_mut() else {
            return Err(refused("messages", "it has no message of a user"));
        };
        if last.role != "assistant" {
            return Ok(());
        }
        if !self.abilities.prefill {
            let reason = "the model does not go on with a last message of the assistant";
            return Err(refused(&*last.param, reason));
        }
        if let Some(block) = last.blocks.last_mut()
            && let Some(text) = block.get("text").and_then(Tree::text)
        {
            let trimmed = Tree::string(text.trim_end());
            block.set("text", trimmed);
        }
        Ok(())
    }

    /// The texts of a message of the system.
    fn texts(&mut self, message: &'t Tree<'_>, param: &str) -> Result<Vec<Tree<'t>>, Unsupported> {
        let param = format!("{param}.content");
        let parts = chat::parts(message.get("content"), &param, &mut self.notes)?;
        let mut blocks = Vec::new();
        for placed in parts {
            match &placed.part {
                Part::Text(written) if is_blank(written) => {}
                Part::Text(_) => blocks.push(block(placed)?),
                _ => return Err(refused(placed.param, "a system message is text alone")),
            }
        }
        Ok(blocks)
    }

    /// A message of the system behind others.
    fn system_midway(
        &mut self,
        message: &'t Tree<'_>,
        param: String,
        next: Option<&Tree<'_>>,
        turns: &mut Vec<Turn<'t>>,
    ) -> Result<(), Unsupported> {
        let blocks = self.texts(message, &param)?;
        let is_behind_a_user = turns.last().is_some_and(|turn| turn.role == "user");
        let is_before_an_answer = next.is_none_or(|next| {
            next.get("role")
                .is_some_and(|role| role.is_text("assistant"))
        });
        if blocks.is_empty() {
            return Ok(());
        }
        if self.abilities.system_midway && is_behind_a_user && is_before_an_answer {
            push(turns, "system", blocks, param);
            return Ok(());
        }
        let message = "the model takes system messages only before all others: this one is told as \
                       a user's, marked as the operator's";
        self.notes.changed(&*param, message);
        let text = |text: &str| {
            Tree::object([("type", Tree::string("text")), ("text", Tree::string(text))])
        };
        let mut marked = vec![text("<system>")];
        marked.extend(blocks);
        marked.push(text("</system>"));
        push(turns, "user", marked, param);
        Ok(())
    }

    /// The blocks of a user's message.
    fn content(
        &mut self,
        message: &'t Tree<'_>,
        param: &str,
    ) -> Result<Vec<Tree<'t>>, Unsupported> {
        let param = format!("{param}.content");
        let parts = chat::parts(message.get("content"), &param, &mut self.notes)?;
        let is_said = |placed: &Placed<'_, '_>| match &placed.part {
            // The API refuses empty texts.
            Part::Text(written) => !is_blank(written),
            _ => true,
        };
        let parts = parts.into_iter().filter(is_said);
        parts.map(block).collect()
    }

    fn of_assistant(
        &mut self,
        message: &'t Tree<'_>,
        param: &str,
    ) -> Result<Vec<Tree<'t>>, Unsupported> {
        let mut blocks = self.content(message, param)?;
        if let Some(Tree::Plain(refusal)) = message.get("refusal")
            && !is_blank(refusal)
        {
            blocks.push(text_block(refusal));
        }
        let calls = items(message.get("tool_calls")).iter().enumerate();
        for (place, call) in calls {
            let param = format!("{param}.tool_calls[{place}]");
            blocks.push(self.tool_use(call, &param)?);
        }
        Ok(blocks)
    }

    fn tool_use(&mut self, call: &'t Tree<'_>, param: &str) -> Result<Tree<'t>, Unsupported> {
        let Some(function) = call.get("function") else {
            return Err(refused(param, "only calls of functions are known"));
        };
        let text = |key: &str| function.get(key).and_then(Tree::text);
        let name = text("name");
        let name = name.ok_or_else(|| refused(format!("{param}.function.name"), "is missing"))?;
        let arguments = text("arguments").unwrap_or_default();
        let arguments = match arguments.trim() {
            "" => "{}",
            arguments => arguments,
        };
        let input = Tree::read(arguments).filter(|input| input.members().is_some());
        let Some(input) = input else {
            let param = format!("{param}.function.arguments");
            return Err(refused(param, "it is no object as JSON"));
        };
        let input = Tree::Plain(Cow::Owned(input.written()));
        let id = call.get("id").and_then(Tree::text).unwrap_or_default();
        Ok(Tree::object([
            ("type", Tree::string("tool_use")),
            ("id", Tree::string(&self.ids.anew(&id))),
            ("name", Tree::string(&self.names.of(&name))),
            ("input", input),
        ]))
    }

    fn tool_result(&mut self, message: &'t Tree<'_>, param: &str) -> Result<Tree<'t>, Unsupported> {
        let id = message.get("tool_call_id").and_then(Tree::text);
        let id = id.ok_or_else(|| refused(format!("{param}.tool_call_id"), "it is missing"))?;
        let blocks = self.content(message, param)?;
        let mut result = Tree::object([
            ("type", Tree::string("tool_result")),
            ("tool_use_id", Tree::string(&self.ids.of(&id))),
        ]);
        if !blocks.is_empty() {
            result.set("content", Tree::List(blocks));
        }
        Ok(result)
    }

    fn tools(&mut self) -> Result<(), Unsupported> {
        let mut tools = Vec::new();
        for (place, tool) in items(self.body.get("tools")).iter().enumerate() {
            let param = format!("tools[{place}]");
            tools.push(self.tool(tool, &param)?);
        }
        let is_structured = self.request.answers_by.is_some();
        if is_structured && !tools.is_empty() {
            let reason = "the model knows no schemas of answers, and cannot both answer by one and \
                          call tools";
            return Err(refused("response_format", reason));
        }
        if is_structured {
            return Ok(());
        }
        let has_tools = !tools.is_empty();
        if !has_tools {
            tools = self.tools_of_old();
        }
        if tools.is_empty() {
            return Ok(());
        }
        self.out.set("tools", Tree::List(tools));
        let mut choice = if has_tools {
            self.tool_choice()?
        } else {
            Some(kind_of("none"))
        };
        let one_at_a_time = self.body.get("parallel_tool_calls");
        if one_at_a_time.is_some_and(|value| value.is_plain("false")) && has_tools {
            let choice = choice.get_or_insert_with(|| kind_of("auto"));
            if !choice.get("type").is_some_and(|kind| kind.is_text("none")) {
                choice.set("disable_parallel_tool_use", Tree::boolean(true));
            }
        }
        if let Some(choice) = choice {
            self.out.set("tool_choice", choice);
        }
        Ok(())
    }

    fn tool(&mut self, tool: &'t Tree<'_>, param: &str) -> Result<Tree<'t>, Unsupported> {
        let is_function = tool.get("type").is_none_or(|kind| kind.is_text("function"));
        let function = tool.get("function").filter(|_| is_function);
        let Some(members) = function.and_then(Tree::members) else {
            return Err(refused(format!("{param}.type"), "only functions are known"));
        };
        let param = format!("{param}.function");
        self.notes
            .judge(members, &FUNCTION_RULES, &format!("{param}."), API)?;
        let get = |key: &str| function.and_then(|function| function.get(key));
        let name = get("name").and_then(Tree::text);
        let name = name.ok_or_else(|| refused(format!("{param}.name"), "it is missing"))?;
        let mut out = Tree::object([("name", Tree::string(&self.names.of(&name)))]);
        if let Some(Tree::Plain(description)) = get("description") {
            out.set("description", Tree::Plain(Cow::Borrowed(description)));
        }
        let schema = match get("parameters") {
            Some(Tree::Object(members)) if !members.is_empty() => {
                let is_typed = members.iter().any(|(key, _)| key == "type");
                let kind = (Cow::Borrowed("type"), Tree::string("object"));
                let kind = (!is_typed).then_some(kind);
                let members = members
                    .iter()
                    .map(|(key, value)| (key.clone(), Tree::Plain(Cow::Owned(value.written()))));
                Tree::Object(kind.into_iter().chain(members).collect())
            }
            Some(Tree::Object(_)) | None => empty_schema(),
            Some(_) => return Err(refused(format!("{param}.parameters"), "it is no object")),
        };
        out.set("input_schema", schema);
        if get("strict").is_some_and(|strict| strict.is_plain("true")) {
            if self.abilities.structured {
                out.set("strict", Tree::boolean(true));
            } else {
                let reason = "the model does not keep to the schemas of tools strictly";
                self.notes.unsupported(format!("{param}.strict"), reason)?;
            }
        }
        Ok(out)
    }

    /// The tools that were called in the messages: the API wants them declared, even if none may be
    /// called any more.
    fn tools_of_old(&mut self) -> Vec<Tree<'t>> {
        let mut names: Vec<Cow<'_, str>> = tool_names(self.body).collect();
        names.sort_unstable();
        names.dedup();
        let tool = |name: Cow<'_, str>| {
            Tree::object([
                ("name", Tree::string(&self.names.of(&name))),
                ("input_schema", empty_schema()),
            ])
        };
        names.into_iter().map(tool).collect()
    }

    fn tool_choice(&mut self) -> Result<Option<Tree<'t>>, Unsupported> {
        let Some(choice) = self.body.get("tool_choice") else {
            return Ok(None);
        };
        let word = choice.text();
        let choice = match word.as_deref() {
            Some("auto") => return Ok(Some(kind_of("auto"))),
            Some("none") => return Ok(Some(kind_of("none"))),
            Some("required") => kind_of("any"),
            Some(_) => return Err(refused("tool_choice", "it is none that is known")),
            None => {
                let name = choice.get("function").and_then(|it| it.get("name")?.text());
                let name = name.ok_or_else(|| {
                    refused(
                        "tool_choice",
                        "only functions can be chosen, each by itself",
                    )
                })?;
                let mut choice = kind_of("tool");
                choice.set("name", Tree::string(&self.names.of(&name)));
                choice
            }
        };
        if !self.abilities.forced_tools {
            return Err(refused(
                "tool_choice",
                "the model cannot be made to call a tool",
            ));
        }
        if self.thinks {
            let reason = "a model that is asked to think cannot be made to call a tool";
            return Err(refused("tool_choice", reason));
        }
        Ok(Some(choice))
    }

    fn response_format(&mut self, system: &mut Vec<Tree<'t>>) -> Result<(), Unsupported> {
        let Some(format) = self.body.get("response_format") else {
            return Ok(());
        };
        let kind = format.get("type").and_then(Tree::text).unwrap_or_default();
        match &*kind {
            "text" => {}
            "json_object" => {
                self.request.wants_json = true;
                system.push(Tree::object([
                    ("type", Tree::string("text")),
                    (
                        "text",
                        Tree::string(
                            "Answer with one JSON object and nothing else: no other text, no \
                             Markdown.",
                        ),
                    ),
                ]));
            }
            "json_schema" => self.json_schema(format)?,
            _ => return Err(refused("response_format.type", "it is none that is known")),
        }
        Ok(())
    }

    fn json_schema(&mut self, format: &Tree<'_>) -> Result<(), Unsupported> {
        let described = format.get("json_schema");
        let Some(schema) = described.and_then(|described| described.get("schema")) else {
            let param = "response_format.json_schema.schema";
            return Err(refused(param, "it is missing"));
        };
        let param = "response_format.json_schema.schema";
        if self.abilities.structured {
            chat::undescribed(format, API, &mut self.notes);
            let (schema, is_moved) = schema::fitted(schema);
            if is_moved {
                let message = format!(
                    "{API} does not see to each constraint: those stand in the descriptions"
                );
                self.notes.changed(param, message);
            }
            let schema = Tree::Plain(Cow::Owned(schema.written()));
            let format = [("type", Tree::string("json_schema")), ("schema", schema)];
            let config = Tree::object([("format", Tree::object(format))]);
            self.out.set("output_config", config);
            return Ok(());
        }
        if schema.members().is_none() {
            return Err(refused(param, "it is no object"));
        }
        let mut tool = Tree::object([("name", Tree::string(ANSWER_TOOL))]);
        if let Some(description) = described.and_then(|it| it.get("description")) {
            tool.set(
                "description",
                Tree::Plain(Cow::Owned(description.written())),
            );
        }
        tool.set("input_schema", Tree::Plain(Cow::Owned(schema.written())));
        self.out.set("tools", Tree::List(vec![tool]));
        let mut choice = kind_of("tool");
        choice.set("name", Tree::string(ANSWER_TOOL));
        self.out.set("tool_choice", choice);
        self.request.answers_by = Some(ANSWER_TOOL);
        Ok(())
    }

    fn reasoning(&mut self, max_tokens: u64) -> Result<(), Unsupported> {
        const PARAM: &str = "reasoning_effort";
        let Some(effort) = self.body.get(PARAM) else {
            return Ok(());
        };
        let effort = effort.text().unwrap_or_default();
        if effort == "none" {
            if self.abilities.thinks_always {
                return self.notes.unsupported(PARAM, "the model always thinks");
            }
            if self.abilities.thinks_unasked {
                self.out.set("thinking", kind_of("disabled"));
            }
            return Ok(());
        }
        let (word, budget) = match &*effort {
            "minimal" => ("low", 1_024),
            "low" => ("low", 2_048),
            "medium" => ("medium", 4_096),
            "high" => ("high", 8_192),
            "xhigh" => ("xhigh", 16_384),
            "max" => ("max", 32_768),
            _ => return self.notes.unsupported(PARAM, "it is none that is known"),
        };
        if self.request.answers_by.is_some() {
            let reason = "the model cannot both think and answer by a schema";
            return self.notes.unsupported(PARAM, reason);
        }
        match self.abilities.thinking {
            Thinking::None => self.notes.unsupported(PARAM, "the model does not think"),
            Thinking::Budget if max_tokens <= LEAST_BUDGET => {
                let reason = format!("to think takes more than {LEAST_BUDGET} tokens of output");
                self.notes.unsupported(PARAM, reason)
            }
            Thinking::Budget => {
                let budget = budget.min(max_tokens - 1).max(LEAST_BUDGET);
                let mut thinking = kind_of("enabled");
                thinking.set("budget_tokens", Tree::number(budget));
                self.out.set("thinking", thinking);
                self.thinks = true;
                Ok(())
            }
            Thinking::Effort => {
                let is_taken = self.abilities.efforts.iter().any(|one| one == word);
                let word = if is_taken { word } else { "high" };
                if !is_taken {
                    let message = format!("the model has no such effort: {word}");
                    self.notes.changed(PARAM, message);
                }
                self.out.set("thinking", kind_of("adaptive"));
                let config = self.out.get("output_config").cloned();
                let mut config = config.unwrap_or_else(|| Tree::object([]));
                config.set("effort", Tree::string(word));
                self.out.set("output_config", config);
                self.thinks = true;
                Ok(())
            }
        }
    }

    fn sampling(&mut self) -> Result<(), Unsupported> {
        let mut is_sampled = false;
        for key in ["temperature", "top_p", "top_k"] {
            let Some(value) = self.body.get(key) else {
                continue;
            };
            let number = value.float();
            let number = number.ok_or_else(|| refused(key, "it is no number"))?;
            let is_usual = number == 1.0 && key != "top_k";
            let reason = if !self.has_sampling {
                Some("this version of Anthropic's API does not have it")
            } else if !self.abilities.sampling {
                Some("the model does not take it")
            } else if self.thinks && !is_usual {
                Some("a model that is asked to think does not take it")
            } else if is_sampled && key == "top_p" && !self.abilities.sampling_both {
                Some("the model takes either a temperature or top_p")
            } else {
                None
            };
            match reason {
                // The usual value asks for nothing.
                Some(_) if is_usual => continue,
                Some(reason) => {
                    self.notes.unsupported(key, reason)?;
                    continue;
                }
                None => {}
            }
            let value = if key == "temperature" && number > 1.0 {
                let reason = "a temperature is at most 1";
                self.notes.unsupported(key, reason)?;
                Tree::number(1)
            } else {
                Tree::Plain(Cow::Owned(value.written()))
            };
            is_sampled = true;
            self.out.set(key, value);
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Unsupported> {
        let mut stops = Vec::new();
        for stop in chat::stops(self.body) {
            match stop {
                Tree::Plain(written) if is_blank(written) => {
                    let reason = "the model cannot be stopped by white space";
                    self.notes.unsupported("stop", reason)?;
                }
                Tree::Plain(written) if stop.is_string() => {
                    stops.push(Tree::Plain(Cow::Borrowed(&**written)));
                }
                _ => {
                    return Err(refused(
                        "stop",
                        "it is neither a string nor a list of strings",
                    ));
                }
            }
        }
        if !stops.is_empty() {
            self.out.set("stop_sequences", Tree::List(stops));
        }
        Ok(())
    }

    /// Whose request it is, where that is no address and no telephone number: those are refused.
    fn user(&mut self) {
        let mut taken = None;
        for key in ["safety_identifier", "user"] {
            let Some(id) = self.body.get(key).and_then(Tree::text) else {
                continue;
            };
            let digits = id.chars().filter(char::is_ascii_digit).count();
            let is_telephone = digits >= 7
                && id
                    .chars()
                    .all(|c| c.is_ascii_digit() || " +-()./".contains(c));
            if id.is_empty() {
                continue;
            }
            if id.contains('@') || is_telephone {
                let message = format!("{API} takes no addresses and no telephone numbers");
                self.notes.dropped(key, message);
            } else if taken.is_some() {
                let message = format!("{API} has one name for a user: safety_identifier");
                self.notes.dropped(key, message);
            } else {
                taken = Some(Tree::string(&id));
            }
        }
        if let Some(id) = taken {
            self.out.set("metadata", Tree::object([("user_id", id)]));
        }
    }

    fn service_tier(&mut self) -> Result<(), Unsupported> {
        let tier = self.body.get("service_tier").and_then(Tree::text);
        match tier.as_deref() {
            None => {}
            Some("auto") => self.out.set("service_tier", Tree::string("auto")),
            Some("default") => self.out.set("service_tier", Tree::string("standard_only")),
            Some(_) => {
                let reason = format!("{API} has no such tier");
                self.notes.unsupported("service_tier", reason)?;
            }
        }
        Ok(())
    }
}

/// A part of a message.
fn block<'t>(placed: Placed<'t, '_>) -> Result<Tree<'t>, Unsupported> {
    let Placed { part, param, whole } = placed;
    let mut block = match part {
        Part::Text(written) => Tree::object([
            ("type", Tree::string("text")),
            ("text", Tree::Plain(written)),
        ]),
        Part::Image { url } => {
            let source = image(&url).map_err(|reason| refused(&*param, reason))?;
            Tree::object([("type", Tree::string("image")), ("source", source)])
        }
        Part::File { data, name } => {
            let data = data.ok_or_else(|| refused(&*param, "it has no `file_data`"))?;
            let source = document(&data).map_err(|reason| refused(&*param, reason))?;
            let kind = ("type", Tree::string("document"));
            let mut block = Tree::object([kind, ("source", source)]);
            if let Some(name) = name {
                block.set("title", Tree::string(&name));
            }
            block
        }
        Part::Audio { .. } => return Err(refused(param, format!("{API} hears nothing"))),
    };
    if let Some(control) = whole.and_then(|whole| whole.get("cache_control")) {
        block.set("cache_control", Tree::Plain(Cow::Owned(control.written())));
    }
    Ok(block)
}

fn kind_of<'a>(kind: &str) -> Tree<'a> {
    Tree::object([("type", Tree::string(kind))])
}

fn empty_schema<'a>() -> Tree<'a> {
    let members = [
        ("type", Tree::string("object")),
        ("properties", Tree::object([])),
    ];
    Tree::object(members)
}

fn text_block(written: &str) -> Tree<'_> {
    let text = Tree::Plain(Cow::Borrowed(written));
    Tree::object([("type", Tree::string("text")), ("text", text)])
}

fn push<'t>(turns: &mut Vec<Turn<'t>>, role: &'static str, blocks: Vec<Tree<'t>>, param: String) {
    match turns.last_mut() {
        _ if blocks.is_empty() => {}
        Some(last) if last.role == role => last.blocks.extend(blocks),
        _ => turns.push(Turn {
            role,
            results: Vec::new(),
            blocks,
            param,
        }),
    }
}

fn push_result<'t>(turns: &mut Vec<Turn<'t>>, block: Tree<'t>, param: String) {
    match turns.last_mut() {
        Some(last) if last.role == "user" => last.results.push(block),
        _ => turns.push(Turn {
            role: "user",
            results: vec![block],
            blocks: Vec::new(),
            param,
        }),
    }
}

fn written(turns: Vec<Turn<'_>>) -> Tree<'_> {
    let messages = turns.into_iter().map(|mut turn| {
        turn.results.append(&mut turn.blocks);
        Tree::object([
            ("role", Tree::string(turn.role)),
            ("content", Tree::List(turn.results)),
        ])
    });
    Tree::List(messages.collect())
}

/// Where an image comes from. Nothing is fetched here: a URL is passed on, or refused.
fn image<'a>(url: &str) -> Result<Tree<'a>, String> {
    if has_scheme(url, "https") {
        let kind = ("type", Tree::string("url"));
        return Ok(Tree::object([kind, ("url", Tree::string(url))]));
    }
    let data = DataUrl::read(url);
    let data = data.ok_or("an image is an https: or a data: URL")?;
    let known = ["image/jpeg", "image/png", "image/gif", "image/webp"];
    if !data.is_base64 || !known.contains(&data.media_type.as_str()) {
        return Err("an image is JPEG, PNG, GIF or WebP, in base64".to_owned());
    }
    Ok(base64(&data))
}

fn base64<'a>(data: &DataUrl<'_>) -> Tree<'a> {
    Tree::object([
        ("type", Tree::string("base64")),
        ("media_type", Tree::string(&data.media_type)),
        ("data", Tree::string(data.data)),
    ])
}

/// A document: a PDF, or plain text.
fn document<'a>(url: &str) -> Result<Tree<'a>, String> {
    use base64::Engine as _;

    let data = DataUrl::read(url).ok_or("a file is a data: URL")?;
    match data.media_type.as_str() {
        "application/pdf" if data.is_base64 => Ok(base64(&data)),
        "text/plain" | "" => {
            let engine = base64::engine::general_purpose::STANDARD;
            let bytes = if data.is_base64 {
                engine
                    .decode(data.data)
                    .map_err(|_| "its base64 is broken")?
            } else {
                percent_encoding::percent_decode_str(data.data).collect()
            };
            let text = String::from_utf8(bytes).map_err(|_| "its text is not UTF-8")?;
            Ok(Tree::object([
                ("type", Tree::string("text")),
                ("media_type", Tree::string("text/plain")),
                ("data", Tree::string(&text)),
            ]))
        }
        _ => Err("a file is a PDF in base64, or plain text".to_owned()),
    }
}

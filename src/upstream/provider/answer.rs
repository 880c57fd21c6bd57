//! Answers in the form of OpenAI's API, made of what other providers say.

use base64::Engine as _;
use bytes::Bytes;

use super::http::{self, Head};
use super::interface::{Decoded, Request};
use super::tree::Tree;
use crate::domain::json;
use crate::domain::outcome::{Form, Warning};
use crate::domain::usage::Usage;
use crate::upstream::attempt::result::CallResult;

/// An answer to a request for a chat completion.
#[derive(Debug, Default)]
pub(super) struct Completion {
    pub(super) id: String,
    /// In Unix seconds.
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) choices: Vec<Choice>,
    pub(super) usage: Usage,
    /// Those of the input that were written to a cache; `None`: the provider does not say.
    pub(super) cache_write_tokens: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Choice {
    /// `None`: there is no text.
    pub(super) content: Option<String>,
    pub(super) reasoning: Option<String>,
    pub(super) refusal: Option<String>,
    pub(super) tool_calls: Vec<ToolCall>,
    /// What the text is taken from, in the provider's own form: JSON.
    pub(super) citations: Option<String>,
    pub(super) finish_reason: &'static str,
}

#[derive(Debug)]
pub(super) struct ToolCall {
    pub(super) id: String,
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
    /// Of what was thought before the call. The provider wants it back with the call.
    pub(super) signature: Option<String>,
}

impl Completion {
    pub(super) fn written(&self) -> String {
        let choices = self.choices.iter().enumerate();
        let choices = choices.map(|(index, choice)| choice.tree(index)).collect();
        let usage = &self.usage;
        let mut input = Tree::object([("cached_tokens", Tree::number(usage.cached_tokens))]);
        if let Some(tokens) = self.cache_write_tokens {
            input.set("cache_write_tokens", Tree::number(tokens));
        }
        let output = [("reasoning_tokens", Tree::number(usage.reasoning_tokens))];
        let usage = Tree::object([
            ("prompt_tokens", Tree::number(usage.input_tokens)),
            ("completion_tokens", Tree::number(usage.output_tokens)),
            ("total_tokens", Tree::number(usage.total_tokens)),
            ("prompt_tokens_details", input),
            ("completion_tokens_details", Tree::object(output)),
        ]);
        let completion = Tree::object([
            ("id", Tree::string(&self.id)),
            ("object", Tree::string("chat.completion")),
            ("created", Tree::number(self.created)),
            ("model", Tree::string(&self.model)),
            ("choices", Tree::List(choices)),
            ("usage", usage),
        ]);
        completion.written()
    }
}

impl Choice {
    fn tree(&self, index: usize) -> Tree<'_> {
        let text = |text: &Option<String>| text.as_deref().map_or_else(Tree::null, Tree::string);
        let mut message = Tree::object([
            ("role", Tree::string("assistant")),
            ("content", text(&self.content)),
            ("refusal", text(&self.refusal)),
        ]);
        if self.reasoning.is_some() {
            message.set("reasoning_content", text(&self.reasoning));
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(ToolCall::tree).collect();
            message.set("tool_calls", Tree::List(calls));
        }
        if let Some(citations) = &self.citations {
            message.set("citations", Tree::Plain(citations.into()));
        }
        Tree::object([
            ("index", Tree::number(index)),
            ("message", message),
            ("logprobs", Tree::null()),
            ("finish_reason", Tree::string(self.finish_reason)),
        ])
    }
}

impl ToolCall {
    fn tree(&self) -> Tree<'_> {
        let function = [
            ("name", Tree::string(&self.name)),
            ("arguments", Tree::string(&self.arguments)),
        ];
        let mut call = Tree::object([
            ("id", Tree::string(&self.id)),
            ("type", Tree::string("function")),
            ("function", Tree::object(function)),
        ]);
        if let Some(signature) = &self.signature {
            let google = Tree::object([("thought_signature", Tree::string(signature))]);
            call.set("extra_content", Tree::object([("google", google)]));
        }
        call
    }
}

/// An answer to a request for embeddings. `vectors`: lists of numbers, in the order of the inputs.
pub(super) fn embeddings<'t, 'a: 't>(
    said: &Bytes,
    vectors: impl Iterator<Item = Option<&'t Tree<'a>>>,
    usage: Usage,
    request: Request,
) -> Decoded {
    let mut data = Vec::new();
    for (index, vector) in vectors.enumerate() {
        let Some(vector @ Tree::List(numbers)) = vector else {
            return unusable(said.clone(), "an embedding has no values");
        };
        let embedding = if request.wants_base64 {
            let numbers = numbers.iter();
            let numbers = numbers.map(|number| number.float().unwrap_or(0.0) as f32);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            Tree::string(&base64::engine::general_purpose::STANDARD.encode(bytes))
        } else {
            vector.clone()
        };
        data.push(Tree::object([
            ("object", Tree::string("embedding")),
            ("index", Tree::number(index)),
            ("embedding", embedding),
        ]));
    }
    let tokens = Tree::object([
        ("prompt_tokens", Tree::number(usage.input_tokens)),
        ("total_tokens", Tree::number(usage.total_tokens)),
    ]);
    let list = Tree::object([
        ("object", Tree::string("list")),
        ("data", Tree::List(data)),
        ("model", Tree::string(&request.model)),
        ("usage", tokens),
    ]);
    made(list.written(), usage, request.warnings)
}

/// An error as OpenAI's API has it. `code`: the provider's own word; `said`: the provider's own
/// error, which is kept beside.
pub(super) fn error(status: u16, message: &str, code: Option<&str>, said: &str) -> String {
    let kind = match status {
        401 => "authentication_error",
        402 => "insufficient_quota",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    let error = [
        ("message", Tree::string(message)),
        ("type", Tree::string(kind)),
        ("param", Tree::null()),
        ("code", code.map_or_else(Tree::null, Tree::string)),
    ];
    let said = Tree::Plain(said.into());
    Tree::object([("error", Tree::object(error)), ("provider", said)]).written()
}

/// An answer that was made here.
pub(super) fn made(body: String, usage: Usage, warnings: Vec<Warning>) -> Decoded {
    Decoded {
        form: Form::of(&body, None),
        body: Bytes::from(body),
        usage: Some(usage),
        is_bare_error: false,
        fault: None,
        said: None,
        request_id: None,
        warnings,
    }
}

/// A failure: `body` in place of what the server said, where that could be read.
pub(super) fn failure(said: Bytes, body: Option<String>) -> Decoded {
    let decoded = |body: Bytes, form, said| Decoded {
        body,
        form,
        usage: None,
        is_bare_error: false,
        fault: None,
        said,
        request_id: None,
        warnings: Vec::new(),
    };
    if let Some(body) = body {
        let form = Form::of(&body, None);
        return decoded(Bytes::from(body), form, Some(said));
    }
    let form = std::str::from_utf8(&said).map(|text| Form::of(text, None));
    decoded(said, form.unwrap_or(Form::NotJson), None)
}

/// A success with no answer in it. `fault`: why, in words.
pub(super) fn unusable(said: Bytes, fault: impl Into<String>) -> Decoded {
    Decoded {
        fault: Some(fault.into()),
        ..failure(said, None)
    }
}

/// The text of an answer that is to be a JSON object: without the fence that models put around it.
/// `None` if it is no object.
pub(super) fn json_object(text: &str) -> Option<&str> {
    let text = text.trim();
    let fenced = text
        .strip_prefix("```json")
        .or_else(|| text.strip_prefix("```"));
    let fenced = fenced.and_then(|text| text.strip_suffix("```"));
    let text = fenced.map_or(text, str::trim);
    (text.starts_with('{') && json::is_valid(text)).then_some(text)
}

/// The words by which errors say that a request is longer than the model takes: OpenAI's, vLLM's
/// and Mistral's, Anthropic's, llama.cpp's, Gemini's, and Cohere's. "Too many tokens" alone is said
/// of the pace, too.
const TOO_LONG: [&str; 5] = [
    "maximum context length",
    "prompt is too long",
    "exceeds the available context size",
    "exceeds the maximum number of tokens allowed",
    "too many tokens: total number",
];

/// Whether an error's message says that the request is longer than the model takes.
pub(super) fn is_of_the_context(message: &str) -> bool {
    TOO_LONG.iter().any(|words| message.contains(words))
}

/// How a call went that was answered with a success.
pub(super) fn classify(head: &Head, answer: &Decoded) -> CallResult {
    let is_json = http::is_json(&head.headers) && !answer.body.trim_ascii().is_empty();
    match answer.form {
        _ if answer.fault.is_some() => CallResult::Unusable,
        Form::Json | Form::Tight if answer.is_bare_error => CallResult::Garbled,
        Form::Json | Form::Tight => CallResult::Succeeded,
        Form::Deep | Form::Long | Form::Incomplete => CallResult::Malformed,
        Form::NotJson if is_json => CallResult::Malformed,
        Form::NotJson => CallResult::Garbled,
    }
}

/// A failure, in words for the line's user.
pub(super) fn explain(head: &Head, answer: &Decoded) -> String {
    let status = head.status;
    match &answer.fault {
        Some(fault) => format!("the model server answered {status}, but {fault}"),
        None => format!("the model server answered {status}"),
    }
}

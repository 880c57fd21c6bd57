//! Lines of an input file: the envelope around a request, and what can be wrong with it.

use std::borrow::Cow;
use std::str::Utf8Error;

use super::asked::Shape;
use super::endpoint::{self, ENDPOINTS, Endpoint, Endpoints};
use super::json;
use super::jsonl::BYTE_ORDER_MARK;

/// How deep a line's arrays and objects may be nested, the line's own object counted.
const MAX_NESTING: usize = 128;
/// How long the name of a model may be.
const MAX_MODEL_BYTES: usize = 256;
/// The key of a line's model.
pub(super) const MODEL: &str = "body.model";
/// The code of a fault about the batch's task.
pub(super) const INVALID_TASK: &str = "invalid_task";
/// How much of a user's text a message repeats.
const MAX_QUOTED_CHARS: usize = 100;

/// A line, as far as is needed to run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub custom_id: Cow<'a, str>,
    /// The endpoint's path. A line may write it without its `/v1`.
    pub url: Cow<'a, str>,
    /// The endpoint itself. `None` for a path that is not in the table of endpoints.
    pub endpoint: Option<&'static Endpoint>,
    /// The body as the line writes it: raw JSON.
    pub body: &'a str,
}

/// Reads a line in which [`check`] found no fault. `None` for a line that is no request.
#[must_use]
pub fn read(line: &str) -> Option<Envelope<'_>> {
    let (keys, _) = Keys::read(line)?;
    keys.envelope()
}

/// The same, and shows each member of the body: its key and its value, as raw JSON.
pub fn read_with_body<'a>(line: &'a str, each: impl FnMut(&str, &'a str)) -> Option<Envelope<'a>> {
    let mut keys = Keys::default();
    let is_object =
        json::members_and_within(line, "body", |key, value| keys.note(key, value), each);
    keys.envelope().filter(|_| is_object)
}

/// What a line of an uploaded file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check<'a> {
    /// Nothing but white space. Such a line is skipped.
    Blank,
    Request(Request<'a>),
    /// The line is no request, whatever the batch's endpoint is.
    Fault(Fault),
}

/// A line with a whole envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub custom_id: Cow<'a, str>,
    /// The `url` as the line writes it.
    pub url: Cow<'a, str>,
    /// The endpoint that the `url` names. `None` if the `url` cannot be batched.
    pub endpoint: Option<&'static Endpoint>,
    /// `None` if the body names no model, or one that `fault` is about.
    pub model: Option<Cow<'a, str>>,
    /// What is wrong with the body, for the line's own endpoint.
    pub fault: Option<Fault>,
    /// Where the fault is that the body names no model: what else is wrong with the body. In a
    /// batch that has a task a line need not name a model.
    pub fault_beside_model: Option<Fault>,
    /// The body, as raw JSON, and which keys of it ask for something.
    pub body: &'a str,
    pub shape: Shape,
}

/// What is wrong with a line, in OpenAI's words where they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
    /// The key that the fault is about.
    pub param: Option<Cow<'static, str>>,
}

/// Checks a line of an uploaded file for the endpoints that can be batched, with or without its
/// line end. At most one fault is reported: the first, in the order JSON, `custom_id`, `method`,
/// `url`, `body`, and in the body the model, the keys that the endpoint requires, streaming,
/// background mode, the limit of the answer. A key that is null counts as missing. So does an empty
/// `custom_id` or `url`, and an empty model where a model is required.
#[must_use]
pub fn check(line: &[u8], endpoints: Endpoints) -> Check<'_> {
    if line.iter().all(|&byte| json::is_space(byte)) {
        return Check::Blank;
    }
    match request(line, endpoints) {
        Ok(request) => Check::Request(request),
        Err(fault) => Check::Fault(fault),
    }
}

/// Reads a line that is not blank. The error is the first fault in it.
fn request(line: &[u8], endpoints: Endpoints) -> Result<Request<'_>, Fault> {
    let line = std::str::from_utf8(line).map_err(|error| Fault::not_utf8(line, error))?;
    let (keys, shape) = Keys::read(line).ok_or_else(|| Fault::not_an_object(line))?;
    if shape.depth > MAX_NESTING {
        return Err(Fault::nested_too_deep());
    }
    let custom_id = required_text(keys.custom_id, "custom_id")?;
    let method = required_text(keys.method, "method")?;
    if method != "POST" {
        return Err(Fault::invalid_method(&method));
    }
    let url = required_text(keys.url, "url")?;
    let endpoint = endpoints.find(&url);
    let body = Body::read(keys.body, endpoint)?;
    let (model, fault, fault_beside_model) = match body.model() {
        Ok(model) => (model, body.fault(), None),
        Err(fault) if fault.is_missing_model() => (None, Some(fault), body.fault()),
        Err(fault) => (None, Some(fault), None),
    };
    Ok(Request {
        custom_id,
        url,
        endpoint,
        model,
        fault,
        fault_beside_model,
        body: body.text,
        shape: body.shape,
    })
}

/// The values of an envelope's keys, as raw JSON. Where a key stands twice, the last one counts.
#[derive(Default)]
struct Keys<'a> {
    custom_id: Option<&'a str>,
    method: Option<&'a str>,
    url: Option<&'a str>,
    body: Option<&'a str>,
}

impl<'a> Keys<'a> {
    /// With how the line is written.
    fn read(line: &'a str) -> Option<(Self, json::Shape)> {
        let mut keys = Self::default();
        let shape = json::members(line, |key, value| keys.note(key, value))?;
        Some((keys, shape))
    }

    fn note(&mut self, key: &str, value: &'a str) {
        match key {
            "custom_id" => self.custom_id = Some(value),
            "method" => self.method = Some(value),
            "url" => self.url = Some(value),
            "body" => self.body = Some(value),
            _ => {}
        }
    }

    fn envelope(&self) -> Option<Envelope<'a>> {
        let url = json::text(self.url?)?;
        let endpoint = endpoint::find(&url);
        Some(Envelope {
            custom_id: json::text(self.custom_id?)?,
            url: endpoint.map_or(url, |endpoint| endpoint.path.into()),
            endpoint,
            body: self.body?,
        })
    }
}

/// The values of those keys of a body that are checked, as raw JSON.
struct Body<'a> {
    text: &'a str,
    shape: Shape,
    endpoint: Option<&'static Endpoint>,
    model: Option<&'a str>,
    stream: Option<&'a str>,
    background: Option<&'a str>,
    /// Which of the endpoint's required keys are there: a bit for each, in their order.
    present: u32,
    /// Whether the endpoint's key for a limit of the answer is there.
    has_limit: bool,
}

impl<'a> Body<'a> {
    fn read(body: Option<&'a str>, endpoint: Option<&'static Endpoint>) -> Result<Self, Fault> {
        let body = required(body, "body")?;
        let required = endpoint.map_or(&[][..], |endpoint| endpoint.required);
        let limit = endpoint.and_then(|endpoint| endpoint.limit);
        let (mut model, mut stream, mut background) = (None, None, None);
        let (mut present, mut has_limit) = (0, false);
        let mut shape = Shape::default();
        json::members(body, |key, value| match key {
            "model" => model = Some(value),
            "stream" => stream = Some(value),
            "background" => background = Some(value),
            _ if limit == Some(key) => has_limit = value != "null",
            _ => {
                if let Some(bit) = required.iter().position(|&required| required == key) {
                    present &= !(1 << bit);
                    present |= u32::from(value != "null") << bit;
                } else {
                    shape.add(key, value);
                }
            }
        })
        .ok_or_else(|| Fault::invalid_type("body", "an object", body))?;
        Ok(Self {
            text: body,
            shape,
            endpoint,
            model,
            stream,
            background,
            present,
            has_limit,
        })
    }

    /// The model that the body names. Where the endpoint is unknown, the body need not name one.
    fn model(&self) -> Result<Option<Cow<'a, str>>, Fault> {
        match required_text(self.model, "body.model") {
            Ok(model) if model.len() > MAX_MODEL_BYTES => Err(Fault::long_model()),
            // Postgres stores no text with a NUL character.
            Ok(model) if model.contains('\0') => Err(Fault::nul_model()),
            Ok(model) => Ok(Some(model)),
            Err(fault) => match self.endpoint {
                Some(endpoint) if endpoint.model_required || fault.code != Fault::MISSING => {
                    Err(fault)
                }
                _ => Ok(None),
            },
        }
    }

    /// What is wrong with the rest of the body.
    fn fault(&self) -> Option<Fault> {
        let endpoint = self.endpoint?;
        let mut required = (0..).zip(endpoint.required);
        if let Some((_, key)) = required.find(|(bit, _)| self.present & (1 << bit) == 0) {
            return Some(Fault::missing(format!("body.{key}").into()));
        }
        if self.stream == Some("true") {
            return Some(Fault::streaming(endpoint));
        }
        if endpoint.has_background && self.background == Some("true") {
            return Some(Fault::background(endpoint));
        }
        let limit = endpoint.limit.filter(|_| !self.has_limit)?;
        Some(Fault::missing(format!("body.{limit}").into()))
    }
}

/// Whether a fault with this code and this parameter is that a key of the body is missing.
pub(super) fn lacks(code: &str, param: Option<&str>, key: &str) -> bool {
    let param = param.and_then(|param| param.strip_prefix("body."));
    code == Fault::MISSING && param == Some(key)
}

/// The value of a key that must be there and not null.
fn required<'a>(value: Option<&'a str>, param: &'static str) -> Result<&'a str, Fault> {
    value
        .filter(|&value| value != "null")
        .ok_or_else(|| Fault::missing(param.into()))
}

/// The text of a key that must be there and not be empty.
fn required_text<'a>(value: Option<&'a str>, param: &'static str) -> Result<Cow<'a, str>, Fault> {
    let value = required(value, param)?;
    if !value.starts_with('"') {
        return Err(Fault::invalid_type(param, "a string", value));
    }
    match json::text(value) {
        Some(text) if text.is_empty() => Err(Fault::missing(param.into())),
        Some(text) => Ok(text),
        None => Err(Fault::half_a_character(param)),
    }
}

impl Fault {
    pub(super) const MISSING: &'static str = "missing_required_parameter";

    /// The line is longer than the server takes.
    #[must_use]
    pub fn line_too_long(max_bytes: usize) -> Self {
        Self {
            code: "line_too_long",
            message: format!("This line is longer than the maximum of {max_bytes} bytes."),
            param: None,
        }
    }

    /// The line's `url` is not its batch's endpoint. `url` is `None` where it was not stored.
    #[must_use]
    pub fn invalid_url(url: Option<&str>, endpoint: &str) -> Self {
        let given = url.map_or(String::new(), |url| {
            format!("The line's url is '{}', and ", quoted(url))
        });
        let the = if given.is_empty() { "The" } else { "the" };
        Self {
            code: "invalid_url",
            message: format!(
                "The URL provided for this request does not match the batch endpoint. \
                 {given}{the} batch's endpoint is '{endpoint}'."
            ),
            param: Some("url".into()),
        }
    }

    /// The line's `url` is its batch's endpoint, which could not be batched when the file was
    /// uploaded.
    #[must_use]
    pub fn older_than_endpoint(endpoint: &str) -> Self {
        Self {
            code: "invalid_url",
            message: format!(
                "The file was uploaded before '{endpoint}' could be batched here, and this request \
                 was not checked for it: upload the file again."
            ),
            param: Some("url".into()),
        }
    }

    /// The line's `url` names no endpoint, in a batch of lines for any endpoint.
    #[must_use]
    pub fn unknown_url() -> Self {
        let known: Vec<_> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        Self {
            code: "invalid_url",
            message: format!(
                "The URL provided for this request cannot be batched. Supported values are: {}, and \
                 those under [[endpoints]] in the configuration.",
                known.join(", ")
            ),
            param: Some("url".into()),
        }
    }

    /// No route of the line's model takes a key of its body, or its endpoint (`None`). `why`: in
    /// words, of one of the routes.
    #[must_use]
    pub fn unsupported(key: Option<&str>, model: &str, why: &str) -> Self {
        let key_or_url = quoted(key.unwrap_or("url"));
        Self {
            code: "unsupported_parameter",
            message: format!(
                "Unsupported parameter: '{key_or_url}' is not supported with the model '{}': {why}.",
                quoted(model)
            ),
            param: Some(match key {
                Some(_) => format!("body.{key_or_url}").into(),
                None => "url".into(),
            }),
        }
    }

    /// An earlier line has the same `custom_id`.
    #[must_use]
    pub fn duplicate_custom_id(custom_id: &str) -> Self {
        Self {
            code: "duplicate_custom_id",
            message: format!(
                "The custom_id '{}' for this request is a duplicate of another request. The \
                 custom_id parameter must be unique for each request in a batch.",
                quoted(custom_id)
            ),
            param: Some("custom_id".into()),
        }
    }

    /// No upstream serves the line's model.
    #[must_use]
    pub fn model_not_found(model: &str) -> Self {
        Self {
            code: "model_not_found",
            message: format!(
                "The provided model '{}' is not supported by the Batch API.",
                quoted(model)
            ),
            param: Some("body.model".into()),
        }
    }

    /// The batch's task is not there, or the line names a model that is none of its.
    #[must_use]
    pub fn invalid_task(task: &str, model: Option<&str>) -> Self {
        let task = quoted(task);
        Self {
            code: INVALID_TASK,
            message: match model {
                Some(model) => format!(
                    "The model '{}' is none of those of the batch's task '{task}'.",
                    quoted(model)
                ),
                None => format!("There is no task '{task}', which is the batch's task."),
            },
            param: Some(match model {
                Some(_) => "body.model".into(),
                None => "nightshift.task".into(),
            }),
        }
    }

    /// Whether the fault is that the line names no model.
    #[must_use]
    pub fn is_missing_model(&self) -> bool {
        self.code == Self::MISSING && self.param.as_deref() == Some(MODEL)
    }

    /// Whether the fault is that the line lacks this key of its body.
    #[must_use]
    pub fn is_missing(&self, key: &str) -> bool {
        lacks(self.code, self.param.as_deref(), key)
    }

    /// The line is no JSON object: OpenAI's sentence, and one of ours that says `why`.
    fn not_json(why: &str) -> Self {
        Self {
            code: "invalid_json_line",
            message: format!("This line is not parseable as valid JSON. {why}"),
            param: None,
        }
    }

    fn not_utf8(line: &[u8], error: Utf8Error) -> Self {
        let at = error.valid_up_to();
        let byte = line.get(at).copied().unwrap_or_default();
        Self::not_json(&format!(
            "Byte {} is 0x{byte:02X}, which is not valid UTF-8: save the file as UTF-8.",
            at + 1
        ))
    }

    /// The line is no JSON object. The message says what it is instead.
    fn not_an_object(line: &str) -> Self {
        if line.starts_with(BYTE_ORDER_MARK) {
            return Self::not_json(
                "It begins with a byte order mark: save the file as UTF-8 without one.",
            );
        }
        match json::error(line) {
            Some(error) if error.is_eof() => Self::not_json(
                "The JSON does not end on this line: write each request on one line.",
            ),
            Some(error) => Self::not_json(&format!("It is no JSON from {}.", json::reason(&error))),
            None => Self::not_json(&format!(
                "It is {}: each line must be one object with custom_id, method, url and body{}.",
                json::type_name(line.trim_ascii_start()),
                if line.trim_ascii_start().starts_with('[') {
                    ", without brackets around them or commas between them"
                } else {
                    ""
                }
            )),
        }
    }

    fn nested_too_deep() -> Self {
        Self::not_json(&format!(
            "Its arrays and objects are nested deeper than {MAX_NESTING}."
        ))
    }

    fn half_a_character(param: &str) -> Self {
        Self::not_json(&format!(
            "'{}' has an escape that is half of a character (a lone surrogate).",
            in_request(param)
        ))
    }

    fn missing(param: Cow<'static, str>) -> Self {
        Self {
            code: Self::MISSING,
            message: format!("Missing required parameter: '{}'.", in_request(&param)),
            param: Some(param),
        }
    }

    fn invalid_type(param: &'static str, expected: &str, value: &str) -> Self {
        Self {
            code: "invalid_type",
            message: format!(
                "Invalid type for '{}': expected {expected}, but got {} instead.",
                in_request(param),
                json::type_name(value)
            ),
            param: Some(param.into()),
        }
    }

    fn invalid_method(method: &str) -> Self {
        Self {
            code: "invalid_value",
            message: format!(
                "Invalid value: '{}'. Supported values are: 'POST'.",
                quoted(method)
            ),
            param: Some("method".into()),
        }
    }

    fn nul_model() -> Self {
        Self {
            code: "invalid_value",
            message: "Invalid value for 'model': it has a NUL character.".to_owned(),
            param: Some(Cow::Borrowed("body.model")),
        }
    }

    fn long_model() -> Self {
        Self {
            code: "invalid_value",
            message: format!(
                "Invalid value for 'model': expected at most {MAX_MODEL_BYTES} bytes."
            ),
            param: Some("body.model".into()),
        }
    }

    fn background(endpoint: &Endpoint) -> Self {
        Self {
            code: "background_unsupported",
            message: format!(
                "{}: Background mode is not supported in the Batch API. A batch runs in the \
                 background anyway.",
                endpoint.name
            ),
            param: Some("body.background".into()),
        }
    }

    fn streaming(endpoint: &Endpoint) -> Self {
        Self {
            code: "streaming_unsupported",
            message: format!(
                "{}: Streaming is not supported in the Batch API.",
                endpoint.name
            ),
            param: Some("body.stream".into()),
        }
    }
}

/// How a message names a key: as the request itself calls it, without the envelope.
fn in_request(param: &str) -> &str {
    param.strip_prefix("body.").unwrap_or(param)
}

/// A user's text for a message, cut off where it is long.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests;

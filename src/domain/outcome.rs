//! How a line ended, and the line of the output or error file that says so.

use serde::{Deserialize, Serialize};

use super::file::Kind;
use super::json;

/// What a line whose batch's window has ended says.
pub const EXPIRED: &str =
    "This request could not be executed before the completion window expired.";
/// What a line whose batch was cancelled says.
pub const CANCELLED: &str = "This request was not executed because the batch was cancelled.";
/// What a line says that was on its way whenever its process died.
pub const CRASHED: &str =
    "The server died twice while it ran this request, so the request is not sent again.";

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// With an HTTP answer of whatever status.
    Answer {
        status: u16,
        request_id: &'a str,
        /// In the form of OpenAI's API.
        body: &'a [u8],
        /// Of that body.
        form: Form,
    },
    /// Without one.
    Error { code: ErrorCode, message: &'a str },
}

/// What a line says under `nightshift`, a key that OpenAI's lines do not have. Left out where there
/// is nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extension<'a> {
    pub warnings: &'a [Warning],
    /// The line got the answer to an equal one.
    pub is_cached: bool,
    /// What a line says only where its batch asks for it. Then the line says all.
    pub details: Option<Details<'a>>,
}

/// How a line was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details<'a> {
    /// The upstream's name. `None`: the line was never sent.
    pub upstream: Option<&'a str>,
    /// The model's public name, likewise.
    pub model: Option<&'a str>,
    /// Calls that were sent.
    pub attempts: u32,
    /// Of the last of them.
    pub latency_ms: Option<u64>,
    /// Of all of them, as a decimal number. `None`: not known.
    pub cost: Option<&'a str>,
}

/// What a line's user is to know beside the line's answer: what its request asked for and the
/// answer does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    pub code: WarningCode,
    /// What of the request's body, such as `messages[0].name`.
    pub param: String,
    /// In words.
    pub message: String,
}

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarningCode {
    /// Left out of what the model server was asked.
    ParameterDropped,
    /// Asked of the model server in another way, which is not quite the same.
    ParameterChanged,
    /// What the answer says cannot be told quite as OpenAI's API has it.
    AnswerChanged,
}

impl WarningCode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WarningCode::ParameterDropped => "parameter_dropped",
            WarningCode::ParameterChanged => "parameter_changed",
            WarningCode::AnswerChanged => "answer_changed",
        }
    }
}

/// How deep the arrays and objects of an answer may be nested. Many JSON readers refuse text that
/// is nested deeper: Python's gives up at about 1,000 levels, others sooner.
const MAX_NESTING: usize = 128;

/// How many digits an integer in an answer may have: Python's JSON reader refuses more.
const MAX_DIGITS: usize = 4_300;

/// Whether an answer's body can stand in a line as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    /// JSON without white space between tokens, as most model servers write it: only to be copied.
    Tight,
    /// JSON that is nested too deep for many readers.
    Deep,
    /// JSON with an integer that is too long for many readers.
    Long,
    NotJson,
    /// Pieces that are not all of an answer.
    Incomplete,
}

impl Form {
    /// The form of a text. `shape`: how the text is written, if it was read and is JSON, so that it
    /// need not be read again.
    #[must_use]
    pub fn of(text: &str, shape: Option<json::Shape>) -> Self {
        match shape.or_else(|| json::shape(text)) {
            None => Form::NotJson,
            Some(shape) if shape.depth > MAX_NESTING => Form::Deep,
            Some(_) if json::has_longer_integer(text, MAX_DIGITS) => Form::Long,
            Some(shape) if shape.is_tight => Form::Tight,
            Some(_) => Form::Json,
        }
    }

    /// Whether a body of this form is JSON that every reader reads.
    #[must_use]
    pub fn is_json(self) -> bool {
        matches!(self, Form::Json | Form::Tight)
    }

    /// Why a body of this form can be no answer, in words. `None` if the body can be one.
    fn fault(self, body: &[u8]) -> Option<String> {
        match self {
            Form::Json | Form::Tight => None,
            Form::Deep => Some(format!(
                "The model server's answer is nested deeper than {MAX_NESTING} levels."
            )),
            Form::Long => Some(format!(
                "The model server's answer has an integer of more than {MAX_DIGITS} digits."
            )),
            Form::Incomplete => Some(
                "The model server streamed its answer, which it was not asked to do, and the events \
                 are not a whole answer."
                    .to_owned(),
            ),
            Form::NotJson => {
                let fault = json::fault(body).unwrap_or_default();
                Some(format!(
                    "The model server's answer is not valid JSON: {fault}."
                ))
            }
        }
    }
}

/// What failed lines have in common, as the error file says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The model server answered with this status.
    Status(u16),
    Code(ErrorCode),
    /// Their stored text cannot be read: the error file has no line for them.
    Unreadable,
}

/// Why a line never got an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorCode {
    BatchExpired,
    BatchCancelled,
    /// Every attempt timed out.
    RequestTimeout,
    /// No attempt reached the upstream, or none was answered.
    UpstreamUnavailable,
    /// The upstream answered with a success that no JSON reader can read.
    InvalidResponse,
    /// The upstream's answer was larger than it may be.
    ResponseTooLarge,
    /// The process that sent it died, more than once.
    RequestCrashed,
    /// The request may need more than a whole rate limit allows.
    RequestTooLarge,
    /// The request asks for what no upstream of its model can do.
    UnsupportedParameter,
}

impl ErrorCode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BatchExpired => "batch_expired",
            ErrorCode::BatchCancelled => "batch_cancelled",
            ErrorCode::RequestTimeout => "request_timeout",
            ErrorCode::UpstreamUnavailable => "upstream_unavailable",
            ErrorCode::InvalidResponse => "invalid_response",
            ErrorCode::ResponseTooLarge => "response_too_large",
            ErrorCode::RequestCrashed => "request_crashed",
            ErrorCode::RequestTooLarge => "request_too_large",
            ErrorCode::UnsupportedParameter => "unsupported_parameter",
        }
    }
}

/// Writes the line that says how a request ended, its line end included. Returns which file the
/// line belongs to.
pub fn write(
    out: &mut Vec<u8>,
    (id, custom_id): (&str, &str),
    outcome: Outcome<'_>,
    extension: &Extension<'_>,
) -> Kind {
    out.extend(b"{\"id\":");
    json::string(id, out);
    out.extend(b",\"custom_id\":");
    json::string(custom_id, out);
    let kind = match outcome {
        Outcome::Answer {
            status,
            request_id,
            body,
            form,
        } => {
            out.extend(b",\"response\":{\"status_code\":");
            digits(status, out);
            out.extend(b",\"request_id\":");
            json::string(request_id, out);
            out.extend(b",\"body\":");
            match form {
                Form::Json => json::compact(body, out),
                Form::Tight => json::push_escaped(body, out),
                _ => json::string(&String::from_utf8_lossy(body), out),
            }
            out.extend(b"},\"error\":");
            let is_success = (200..300).contains(&status);
            if let Some(fault) = form.fault(body).filter(|_| is_success) {
                error(ErrorCode::InvalidResponse, &fault, out);
                Kind::Error
            } else {
                out.extend(b"null");
                if is_success {
                    Kind::Output
                } else {
                    Kind::Error
                }
            }
        }
        Outcome::Error { code, message } => {
            out.extend(b",\"response\":null,\"error\":");
            error(code, message, out);
            Kind::Error
        }
    };
    if *extension != Extension::default() {
        write_extension(extension, out);
    }
    out.extend(b"}\n");
    kind
}

/// Writes what a line says that OpenAI's lines do not say.
fn write_extension(extension: &Extension<'_>, out: &mut Vec<u8>) {
    out.extend(b",\"nightshift\":");
    let from = out.len();
    let key = |name: &str, out: &mut Vec<u8>| {
        out.push(if out.len() == from { b'{' } else { b',' });
        json::string(name, out);
        out.push(b':');
    };
    let says_all = extension.details.is_some();
    if let Some(details) = &extension.details {
        for (name, value) in [("upstream", details.upstream), ("model", details.model)] {
            key(name, out);
            match value {
                Some(value) => json::string(value, out),
                None => out.extend(b"null"),
            }
        }
        key("attempts", out);
        out.extend(details.attempts.to_string().as_bytes());
        key("latency_ms", out);
        let latency = details.latency_ms.map(|latency| latency.to_string());
        out.extend(latency.as_deref().unwrap_or("null").as_bytes());
    }
    if says_all || extension.is_cached {
        key("cached", out);
        out.extend(extension.is_cached.to_string().as_bytes());
    }
    if let Some(details) = &extension.details {
        key("cost", out);
        out.extend(details.cost.unwrap_or("null").as_bytes());
    }
    if says_all || !extension.warnings.is_empty() {
        key("warnings", out);
        write_warnings(extension.warnings, out);
    }
    out.push(b'}');
}

fn write_warnings(warnings: &[Warning], out: &mut Vec<u8>) {
    out.push(b'[');
    for (place, warning) in warnings.iter().enumerate() {
        out.extend(if place > 0 {
            &b",{\"code\":"[..]
        } else {
            b"{\"code\":"
        });
        json::string(warning.code.as_str(), out);
        out.extend(b",\"param\":");
        json::string(&warning.param, out);
        out.extend(b",\"message\":");
        json::string(&warning.message, out);
        out.push(b'}');
    }
    out.push(b']');
}

/// Writes the value of a line's `error`.
fn error(code: ErrorCode, message: &str, out: &mut Vec<u8>) {
    out.extend(b"{\"code\":");
    json::string(code.as_str(), out);
    out.extend(b",\"message\":");
    json::string(message, out);
    out.push(b'}');
}

/// A status has three digits.
fn digits(status: u16, out: &mut Vec<u8>) {
    out.extend([status / 100 % 10, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(custom_id: &str, outcome: Outcome<'_>) -> (String, Kind) {
        let mut out = b"before\n".to_vec();
        let extension = Extension::default();
        let kind = write(&mut out, ("batch_req_1", custom_id), outcome, &extension);
        let line = String::from_utf8(out.split_off(7)).expect("UTF-8");
        (line, kind)
    }

    fn answer(status: u16, body: &[u8]) -> Outcome<'_> {
        Outcome::Answer {
            status,
            request_id: "req_1",
            body,
            form: std::str::from_utf8(body).map_or(Form::NotJson, |text| Form::of(text, None)),
        }
    }

    #[test]
    fn an_answer_is_written_as_openai_writes_it() {
        let body = b"{ \"b\": 1.0, \"a\": \"x\",\r\n \"usage\": {\"prompt_tokens\": 3} }\n";
        let (line, kind) = written("a\"\u{2028}", answer(200, body));
        assert_eq!(
            line,
            concat!(
                r#"{"id":"batch_req_1","custom_id":"a\"\u2028","response":{"status_code":200,"#,
                r#""request_id":"req_1","body":{"b":1.0,"a":"x","usage":{"prompt_tokens":3}}},"#,
                r#""error":null}"#,
                "\n"
            )
        );
        assert_eq!(kind, Kind::Output);
    }

    #[test]
    fn what_the_user_is_to_know_stands_in_a_key_of_its_own() {
        let warning = |param: &str| Warning {
            code: WarningCode::ParameterDropped,
            param: param.to_owned(),
            message: "the provider has no \"seeds\"".to_owned(),
        };
        let outcome = Outcome::Answer {
            status: 200,
            request_id: "req_1",
            body: b"{}",
            form: Form::Json,
        };
        let warnings = [warning("seed"), warning("messages[0].name")];
        let extended = |extension: Extension<'_>| {
            let mut out = Vec::new();
            let kind = write(&mut out, ("batch_req_1", "a"), outcome, &extension);
            assert_eq!(kind, Kind::Output);
            serde_json::from_slice::<Value>(&out).expect("JSON")
        };
        let line = extended(Extension {
            warnings: &warnings,
            ..Extension::default()
        });
        let warning = |param: &str| {
            json!({
                "code": "parameter_dropped",
                "param": param,
                "message": "the provider has no \"seeds\"",
            })
        };
        let warnings = [warning("seed"), warning("messages[0].name")];
        assert_eq!(line["nightshift"], json!({"warnings": warnings}));
        assert_eq!(line["error"], Value::Null);
        let cached = Extension {
            is_cached: true,
            ..Extension::default()
        };
        assert_eq!(extended(cached)["nightshift"], json!({"cached": true}));
        assert_eq!(extended(Extension::default()).get("nightshift"), None);
    }

    #[test]
    fn only_2xx_goes_to_the_output_file() {
        for (status, kind) in [
            (199, Kind::Error),
            (200, Kind::Output),
            (299, Kind::Output),
            (300, Kind::Error),
            (400, Kind::Error),
            (503, Kind::Error),
        ] {
            let (line, written) = written("a", answer(status, b"\"oops\""));
            assert_eq!(written, kind, "{status}");
            assert!(
                line.ends_with(",\"body\":\"oops\"},\"error\":null}\n"),
                "{line}"
            );
        }
    }

    #[test]
    fn a_success_that_cannot_be_read_goes_to_the_error_file_and_says_where_it_breaks() {
        let at_the_limit = [vec![b'['; 128], vec![b']'; 128]].concat();
        let deep = [&b"["[..], &at_the_limit, b"]"].concat();
        let long = format!("{{\"a\":[1.5,{}]}}", "7".repeat(4_301));
        let cases: [(&[u8], &str); 6] = [
            (
                long.as_bytes(),
                "The model server's answer has an integer of more than 4300 digits.",
            ),
            (
                b"{\"a\":NaN}",
                "The model server's answer is not valid JSON: expected value at line 1 column 6.",
            ),
            (
                b"{\"a\":\"\xFF\"}",
                "The model server's answer is not valid JSON: byte 0xFF at offset 6 is not UTF-8.",
            ),
            (
                b"{\"a\":\"one\ntwo\"}",
                "The model server's answer is not valid JSON: control character (\\u0000-\\u001F) \
                 found while parsing a string at line 1 column 9.",
            ),
            (
                b"{\"a\":",
                "The model server's answer is not valid JSON: EOF while parsing a value at line 1 \
                 column 5.",
            ),
            (
                &deep,
                "The model server's answer is nested deeper than 128 levels.",
            ),
        ];
        for (body, message) in cases {
            let (line, kind) = written("a", answer(200, body));
            assert_eq!(kind, Kind::Error, "{line}");
            let line: Value = serde_json::from_str(&line).expect("JSON");
            let kept = String::from_utf8_lossy(body);
            assert_eq!(line["response"]["body"], *kept, "{line}");
            assert_eq!(line["error"]["code"], "invalid_response", "{line}");
            assert_eq!(line["error"]["message"], message, "{line}");
            // An error of the server has nothing to be read as.
            let (line, _) = written("a", answer(500, body));
            assert!(line.ends_with("\"},\"error\":null}\n"), "{line}");
        }
        let (_, kind) = written("a", answer(200, &at_the_limit));
        assert_eq!(kind, Kind::Output, "as deep as it may be");
        let digits = "7".repeat(4_300);
        for fine in [
            format!("[-{digits}]"),
            format!("[{digits}7.5]"),
            format!("[0.{digits}7]"),
            format!("[{digits}7e1]"),
            format!("{{\"{digits}7\":\"a\\\"{digits}7\"}}"),
        ] {
            let (_, kind) = written("a", answer(200, fine.as_bytes()));
            assert_eq!(kind, Kind::Output, "{fine}");
        }
    }

    #[test]
    fn a_line_without_an_answer_says_why() {
        for (code, message, expected) in [
            (ErrorCode::BatchExpired, EXPIRED, "batch_expired"),
            (ErrorCode::BatchCancelled, CANCELLED, "batch_cancelled"),
            (ErrorCode::RequestTimeout, "slow", "request_timeout"),
            (ErrorCode::RequestCrashed, CRASHED, "request_crashed"),
            (
                ErrorCode::UpstreamUnavailable,
                "\u{85}\n",
                "upstream_unavailable",
            ),
        ] {
            let (line, kind) = written("a", Outcome::Error { code, message });
            assert_eq!(kind, Kind::Error);
            assert_eq!(
                serde_json::from_str::<Value>(&line).expect("JSON"),
                json!({
                    "id": "batch_req_1",
                    "custom_id": "a",
                    "response": null,
                    "error": {"code": expected, "message": message},
                })
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_the_upstream_sends_is_one_line_of_json(
            custom_id in any::<String>(),
            body in prop_oneof![
                any::<Vec<u8>>(),
                json::tests::texts().prop_map(String::into_bytes),
            ],
        ) {
            let (line, kind) = written(&custom_id, answer(200, &body));
            let is_json = json::fault(&body).is_none();
            prop_assert_eq!(kind == Kind::Output, is_json);
            let value: Value = serde_json::from_str(&line).expect("JSON");
            prop_assert_eq!(&value["custom_id"], &custom_id);
            let expected: Value = serde_json::from_slice(&body)
                .unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
            prop_assert_eq!(&value["response"]["body"], &expected);
            prop_assert_eq!(line.find(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']), Some(line.len() - 1));
        }
    }
}

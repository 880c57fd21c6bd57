//! OpenAI's API, and the many servers that speak it.

mod classify;
pub(super) mod streamed;

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, InvalidHeaderValue};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use self::streamed::Chunks;
use super::edit::{self, Edit, NOTHING, Spelling};
use super::http::{self, Head};
use super::interface::{
    Asked, CHAT, Decoded, Encoded, Line, MESSAGES, ModelPage, Provider, RESPONSES, Unsupported,
};
use super::stream::{Assembly, Gathered};
use crate::domain::json;
use crate::domain::outcome::Form;
use crate::domain::usage;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::models::ModelInfo;
use crate::upstream::settings::UpstreamSettings;

/// Some servers begin JSON with it, and JSON readers refuse it.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The members of which an answer has one, whatever it was asked for, but for those that never
/// have an `error`.
const ANSWERS: [&str; 4] = ["choices", "data", "output", "results"];

/// An endpoint whose answers can be streamed.
const COMPLETIONS: &str = "/v1/completions";

/// What a request says for its answer to be streamed: of chats and completions, and of the
/// Responses and the Messages API, whose last events have the usage in any case.
static OF_CHUNKS: LazyLock<Option<Edit>> =
    LazyLock::new(|| asking(json!({"stream": true, "stream_options": {"include_usage": true}})));
pub(super) static OF_EVENTS: LazyLock<Option<Edit>> =
    LazyLock::new(|| asking(json!({"stream": true})));

fn asking(members: Value) -> Option<Edit> {
    match members {
        Value::Object(members) => Edit::new(None, &[], &[&members]),
        _ => None,
    }
}

#[derive(Debug)]
pub(super) struct OpenAi {
    /// The server knows no `max_completion_tokens`.
    only_max_tokens: bool,
    /// Answers are streamed, where there are streams.
    streams: bool,
}

impl OpenAi {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            only_max_tokens: settings.only_max_tokens,
            streams: settings.stream,
        }
    }

    /// What asks for a stream at an endpoint that has streams.
    fn streaming(&self, path: &str) -> Option<&'static Edit> {
        if !self.streams {
            return None;
        }
        match path {
            CHAT | COMPLETIONS => OF_CHUNKS.as_ref(),
            RESPONSES => OF_EVENTS.as_ref(),
            _ => None,
        }
    }
}

/// A list of models, as OpenAI has it or bare.
#[derive(Deserialize)]
#[serde(untagged)]
enum List {
    Object { data: Vec<Model> },
    Bare(Vec<Model>),
}

/// Servers leave out all but the id, or write it as they like.
#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    created: serde_json::Value,
    #[serde(default)]
    owned_by: serde_json::Value,
    #[serde(default)]
    shutdown_date: serde_json::Value,
}

impl Provider for OpenAi {
    fn speaks(&self, path: &str) -> bool {
        path != MESSAGES
    }

    fn url(&self, base: &Url, path: &str, _model: &str) -> Url {
        http::behind(base, path.strip_prefix("/v1").unwrap_or(path))
    }

    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue> {
        http::bear(key, headers)
    }

    fn encode<'a>(&self, line: &Line<'a>) -> Result<Encoded<'a>, Unsupported> {
        let edit = line.edit.unwrap_or(&NOTHING);
        let splice = match (self.streaming(line.path), line.edit, self.only_max_tokens) {
            (None, None, false) => None,
            (streaming, _, only_max_tokens) => {
                let above = streaming.unwrap_or(&NOTHING);
                let spelling = Spelling::of(line.path, only_max_tokens);
                edit::splice(above, edit, line.body, spelling)
            }
        };
        Ok(match splice {
            Some(splice) => Encoded::Spliced(splice, None),
            None => Encoded::Unchanged,
        })
    }

    fn assembly(&self, path: &str, _asked: Option<&Asked>) -> Option<Assembly> {
        self.streaming(path)
            .map(|_| Assembly::new(Box::new(Chunks::new(true))))
    }

    fn decode(&self, head: &Head, body: Bytes, _asked: Option<Asked>) -> Decoded {
        let body = without_byte_order_mark(body);
        // One that was asked for is put together by now, and calls itself a stream all the same.
        let is_streamed = head.is_success() && http::is_event_stream(&head.headers);
        let gathered = (is_streamed && !is_object(&body)).then(|| unasked(&body));
        let is_incomplete = gathered == Some(Gathered::Incomplete);
        let body = match gathered {
            Some(Gathered::Answer(whole) | Gathered::Error { body: whole, .. }) => whole,
            _ => body,
        };
        let request_id = http::request_id(&head.headers).map(str::to_owned);
        let mut decoded = read(body, request_id);
        if is_incomplete && decoded.form == Form::NotJson {
            decoded.form = Form::Incomplete;
        }
        decoded
    }

    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult {
        classify::classify(head, answer)
    }

    fn retry_after(&self, head: &Head, _answer: &Decoded, now: SystemTime) -> Option<Duration> {
        http::exact_retry_after(&head.headers, now)
    }

    fn explain(&self, result: CallResult, head: &Head, answer: &Decoded) -> String {
        classify::explain(result, head, answer)
    }

    fn is_own(&self, headers: &HeaderMap) -> bool {
        http::is_json(headers) || http::is_event_stream(headers)
    }

    fn models_url(&self, base: &Url, _after: Option<&str>) -> Url {
        http::behind(base, "/models")
    }

    fn models(&self, body: &[u8]) -> Option<ModelPage> {
        read_models(body)
    }
}

/// What comes of a stream that nobody asked for.
fn unasked(body: &Bytes) -> Gathered {
    let mut assembly = Assembly::new(Box::new(Chunks::new(false)));
    assembly.feed(body.clone());
    assembly.finish()
}

/// Whether a body begins as a JSON object, which no stream of events does.
fn is_object(body: &[u8]) -> bool {
    body.trim_ascii_start().starts_with(b"{")
}

/// Reads a list of models, as this API has it.
pub(super) fn read_models(body: &[u8]) -> Option<ModelPage> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let data = match serde_json::from_slice(body).ok()? {
        // An empty array is anything.
        List::Bare(data) if data.is_empty() => return None,
        List::Object { data } | List::Bare(data) => data,
    };
    let models = data.into_iter().map(|model| ModelInfo {
        id: model.id,
        created: model.created.as_i64().unwrap_or(0),
        owned_by: model.owned_by.as_str().unwrap_or_default().to_owned(),
        shutdown_date: model.shutdown_date.as_str().map(str::to_owned),
    });
    Some(ModelPage {
        models: models.collect(),
        next: None,
    })
}

fn without_byte_order_mark(body: Bytes) -> Bytes {
    if body.starts_with(BYTE_ORDER_MARK) {
        body.slice(BYTE_ORDER_MARK.len()..)
    } else {
        body
    }
}

/// What a body is found to be. It is parsed only once where it is an object, as it should be.
pub(super) fn read(body: Bytes, request_id: Option<String>) -> Decoded {
    let (mut form, mut usage, mut is_bare_error) = (Form::NotJson, None, false);
    if let Ok(text) = std::str::from_utf8(&body) {
        let (mut has_error, mut has_answer) = (false, false);
        let each = |key: &str, value| match key {
            "usage" => usage = Some(value),
            "error" => has_error = value != "null",
            _ => has_answer |= ANSWERS.contains(&key) && !is_nothing(value),
        };
        let shape = json::members(text, each);
        let is_object = shape.is_some();
        form = Form::of(text, shape);
        usage = usage.filter(|_| is_object);
        is_bare_error = is_object && has_error && !has_answer;
    }
    Decoded {
        form,
        usage: usage.and_then(usage::parse),
        is_bare_error,
        fault: None,
        said: None,
        request_id,
        warnings: Vec::new(),
        body,
    }
}

/// Whether a member's value says that there is none: servers fill a member in beside an error.
fn is_nothing(value: &str) -> bool {
    let list = value
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    value == "null" || list.is_some_and(|items| items.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::AUTHORIZATION;

    use super::*;

    const PLAIN: OpenAi = OpenAi {
        only_max_tokens: false,
        streams: false,
    };

    #[test]
    fn a_lines_path_without_its_v1_goes_behind_the_base() {
        let cases = [
            ("http://h:8000/v1", "http://h:8000/v1/chat/completions"),
            (
                "https://h/api/openai/",
                "https://h/api/openai/chat/completions",
            ),
            (
                "https://h/x?api-version=1",
                "https://h/x/chat/completions?api-version=1",
            ),
        ];
        for (base, expected) in cases {
            let base = Url::parse(base).expect("a URL");
            let url = PLAIN.url(&base, "/v1/chat/completions", "");
            assert_eq!(url.as_str(), expected);
        }
    }

    #[test]
    fn a_list_of_models_may_be_bare() {
        let body = br#"[{"id":"a","type":"chat"},{"id":"b"}]"#;
        let models = PLAIN.models(body).expect("a list").models;
        let ids: Vec<_> = models.iter().map(|model| model.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn a_list_of_models_is_read_leniently() {
        let body = br#"{"object":"list","data":[{"id":"a","created":17,"owned_by":"me","x":{},
            "shutdown_date":"2027-01-31"},
            {"id":"b","created":null},{"id":"c","created":"2024-01-01"}]}"#;
        let models = PLAIN.models(body).expect("a list").models;
        let ids: Vec<_> = models.iter().map(|m| (m.id.as_str(), m.created)).collect();
        assert_eq!(ids, [("a", 17), ("b", 0), ("c", 0)]);
        assert_eq!(models[0].owned_by, "me");
        assert_eq!(models[0].shutdown_date.as_deref(), Some("2027-01-31"));
        assert_eq!(models[1].shutdown_date, None);
        for junk in ["", "<html>", "[]", "{}", r#"{"data":[{"name":"a"}]}"#] {
            assert!(PLAIN.models(junk.as_bytes()).is_none(), "{junk}");
        }
    }

    #[test]
    fn the_key_is_sent_as_a_bearer_token_and_never_shown() {
        let mut headers = HeaderMap::new();
        let key = SecretString::from("sk-1");
        PLAIN.authorize(&key, &mut headers).expect("a header");
        assert_eq!(headers[AUTHORIZATION], "Bearer sk-1");
        assert!(!format!("{headers:?}").contains("sk-1"));
        let bad = SecretString::from("sk\n1");
        assert!(PLAIN.authorize(&bad, &mut headers).is_err());
    }

    #[test]
    fn an_error_stands_alone_where_there_is_nothing_beside_it_that_would_be_an_answer() {
        for (body, is_bare) in [
            (r#"{"error":{"message":"no"}}"#, true),
            (r#"{"error":{"message":"no"},"choices":null}"#, true),
            (r#"{"error":{"message":"no"},"choices":[]}"#, true),
            (r#"{"error":{"message":"no"},"output":[ ]}"#, true),
            (r#"{"error":null,"choices":[]}"#, false),
            (r#"{"error":"","results":[{"flagged":false}]}"#, false),
            (r#"{"error":{},"choices":[{}]}"#, false),
        ] {
            let answer = read(Bytes::from(body), None);
            assert_eq!(answer.is_bare_error, is_bare, "{body}");
        }
    }

    #[test]
    fn the_usage_that_an_answer_reports_is_read_with_it() {
        let body = br#"{"choices":[],"usage":{"prompt_tokens":3}}"#;
        let answer = read(Bytes::from_static(body), None);
        assert_eq!(answer.usage, usage::read(body));
        assert_eq!(answer.usage.map(|usage| usage.input_tokens), Some(3));
    }

    proptest! {
        #[test]
        fn an_answer_is_read_as_its_form_and_its_usage_are_alone(
            body in prop_oneof![
                any::<Vec<u8>>(),
                json::tests::texts().prop_map(String::into_bytes),
            ],
        ) {
            let answer = read(Bytes::from(body.clone()), None);
            prop_assert_eq!(answer.form.is_json(), json::fault(&body).is_none());
            prop_assert_eq!(answer.usage, usage::read(&body));
        }
    }
}

//! Anthropic's Messages API. Requests for chat completions are translated; there is nothing like
//! the other endpoints.

mod classify;
mod decode;
mod encode;
mod models;
mod schema;
mod streamed;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::answer;
use super::chat::refused;
use super::edit::{self, Spelling};
use super::http::{self, Head};
use super::interface::{
    Asked, CHAT, Decoded, Encoded, Line, MESSAGES, ModelPage, Provider, Request, Unsupported,
};
use super::openai;
use super::stream::Assembly;
use super::translation;
use super::tree::Tree;
use crate::domain::json;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::models::ModelInfo;
use crate::upstream::settings::{CapabilitySettings, UnsupportedParams, UpstreamSettings};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// The version of the API that is spoken where the settings name none: the last with temperatures.
const DEFAULT_VERSION: &str = "2023-06-01";

/// As many models as a page has at most.
const PAGE: &str = "1000";

#[derive(Debug)]
pub(super) struct Anthropic {
    version: String,
    policy: UnsupportedParams,
    /// What the configuration says of its models.
    says: Vec<CapabilitySettings>,
    /// Answers are streamed however long they may be.
    streams: bool,
}

impl Anthropic {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        let version = settings.api_version.as_deref().unwrap_or(DEFAULT_VERSION);
        Self {
            version: version.to_owned(),
            policy: settings.unsupported_params,
            says: settings.capabilities.clone(),
            streams: settings.stream,
        }
    }

    /// A line of this API: as it is, but that its answer may be asked for as a stream.
    fn passed_on<'a>(&self, line: &Line<'a>) -> Encoded<'a> {
        let streams = self.streams || max_tokens(line) > encode::PLAIN_OUTPUT_MAX;
        let Some(asking) = openai::OF_EVENTS.as_ref().filter(|_| streams) else {
            return line.as_it_is();
        };
        let edit = line.edit.unwrap_or(&edit::NOTHING);
        match edit::splice(asking, edit, line.body, Spelling::of(MESSAGES, false)) {
            Some(splice) => {
                let request = Request {
                    path: MESSAGES,
                    streams,
                    ..Request::default()
                };
                Encoded::Spliced(splice, Some(Asked(Box::new(request))))
            }
            None => Encoded::Unchanged,
        }
    }
}

/// How much the model may write, as the line and what its route changes say.
fn max_tokens(line: &Line<'_>) -> u64 {
    let mut stated = None;
    if let Ok(body) = std::str::from_utf8(line.body) {
        json::members(body, |key, value| {
            if key == "max_tokens" {
                stated = Tree::Plain(value.into()).whole();
            }
        });
    }
    let stated = match line.edit {
        Some(edit) => edit.max_output(stated),
        None => stated,
    };
    stated.unwrap_or(0)
}

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
    #[serde(default)]
    has_more: bool,
    #[serde(default)]
    last_id: Option<String>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    created_at: Option<String>,
}

impl Provider for Anthropic {
    fn speaks(&self, path: &str) -> bool {
        path == MESSAGES
    }

    fn url(&self, base: &Url, _path: &str, _model: &str) -> Url {
        http::behind_version(base, "/v1", "/messages")
    }

    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue> {
        http::secret(API_KEY, key.expose_secret(), headers)
    }

    fn introduce(&self, headers: &mut HeaderMap) {
        if let Ok(version) = HeaderValue::from_str(&self.version) {
            headers.insert(VERSION, version);
        }
    }

    fn refuses(&self, path: &str, key: Option<&str>) -> Option<String> {
        encode::refuses(path, key, self.policy)
    }

    fn encode<'a>(&self, line: &Line<'a>) -> Result<Encoded<'a>, Unsupported> {
        if line.path == MESSAGES {
            return Ok(self.passed_on(line));
        }
        if line.path != CHAT {
            let reason = format!("Anthropic's API has nothing like {}", line.path);
            return Err(refused("url", reason));
        }
        translation::encode(line, |body| {
            let encoded = encode::encode(body, line.model, &self.version, self.policy, &self.says)?;
            Ok(translation::streamed(encoded, self.streams))
        })
    }

    fn assembly(&self, _path: &str, asked: Option<&Asked>) -> Option<Assembly> {
        translation::assembly::<streamed::Message>(asked)
    }

    fn decode(&self, head: &Head, body: Bytes, asked: Option<Asked>) -> Decoded {
        if asked.as_ref().is_some_and(|asked| asked.0.path == MESSAGES) {
            return openai::read(body, http::request_id(&head.headers).map(str::to_owned));
        }
        translation::decode(head, body, asked, decode::success, decode::failure)
    }

    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult {
        classify::classify(head, answer)
    }

    fn retry_after(&self, head: &Head, _answer: &Decoded, now: SystemTime) -> Option<Duration> {
        http::exact_retry_after(&head.headers, now)
    }

    fn explain(&self, _result: CallResult, head: &Head, answer: &Decoded) -> String {
        answer::explain(head, answer)
    }

    fn models_url(&self, base: &Url, after: Option<&str>) -> Url {
        let mut url = http::behind_version(base, "/v1", "/models");
        url.query_pairs_mut().append_pair("limit", PAGE);
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after_id", after);
        }
        url
    }

    fn models(&self, body: &[u8]) -> Option<ModelPage> {
        let list: List = serde_json::from_slice(body).ok()?;
        let created = |at: &str| {
            at.parse::<jiff::Timestamp>()
                .map_or(0, jiff::Timestamp::as_second)
        };
        let models = list.data.into_iter().map(|model| ModelInfo {
            created: model.created_at.as_deref().map_or(0, created),
            id: model.id,
            owned_by: "anthropic".to_owned(),
            shutdown_date: None,
        });
        Some(ModelPage {
            models: models.collect(),
            next: list.last_id.filter(|_| list.has_more),
        })
    }
}

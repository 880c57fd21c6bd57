//! Gemini's own API, `generateContent` and `batchEmbedContents`, in the version `v1beta`: the
//! stable one lacks much of what requests ask for.

mod classify;
mod decode;
mod encode;
mod models;
mod streamed;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, InvalidHeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::answer;
use super::http::{self, Head};
use super::interface::{
    Asked, Decoded, EMBEDDINGS, Encoded, Line, ModelPage, Provider, Unsupported,
};
use super::stream::Assembly;
use super::translation;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::models::ModelInfo;
use crate::upstream::settings::{CapabilitySettings, UnsupportedParams, UpstreamSettings};

const API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");
const VERSION: &str = "/v1beta";

/// As many inputs as `batchEmbedContents` takes.
const INPUTS_MAX: usize = 100;

/// As many models as a page has at most.
const PAGE: &str = "1000";

#[derive(Debug)]
pub(super) struct Gemini {
    policy: UnsupportedParams,
    /// What the configuration says of its models.
    says: Vec<CapabilitySettings>,
    streams: bool,
}

impl Gemini {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            policy: settings.unsupported_params,
            says: settings.capabilities.clone(),
            streams: settings.stream,
        }
    }

    /// Whether answers of an endpoint are streamed.
    fn streams(&self, path: &str) -> bool {
        self.streams && path != EMBEDDINGS
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    #[serde(default)]
    models: Vec<Model>,
    #[serde(default)]
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
}

impl Provider for Gemini {
    fn inputs_max(&self) -> usize {
        INPUTS_MAX
    }

    fn names_models_in_urls(&self) -> bool {
        true
    }

    fn url(&self, base: &Url, path: &str, model: &str) -> Url {
        let method = match path {
            EMBEDDINGS => "batchEmbedContents",
            path if self.streams(path) => "streamGenerateContent",
            _ => "generateContent",
        };
        let path_of_model = format!("/{}:{method}", models::resource(model));
        let mut url = http::behind_version(base, VERSION, &path_of_model);
        if self.streams(path) {
            url.query_pairs_mut().append_pair("alt", "sse");
        }
        url
    }

    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue> {
        http::secret(API_KEY, key.expose_secret(), headers)
    }

    fn refuses(&self, path: &str, key: Option<&str>) -> Option<String> {
        encode::refuses(path, key, self.policy)
    }

    fn encode<'a>(&self, line: &Line<'a>) -> Result<Encoded<'a>, Unsupported> {
        translation::encode(line, |body| {
            let encoded = encode::encode(line.path, body, line.model, self.policy, &self.says)?;
            let (out, mut request) = encoded;
            // Its URL asks for the stream.
            request.streams = self.streams(line.path);
            Ok((out, request))
        })
    }

    fn assembly(&self, _path: &str, asked: Option<&Asked>) -> Option<Assembly> {
        let asked = &asked?.0;
        let response = || Box::new(streamed::Response::of(asked.choices));
        asked.streams.then(|| Assembly::new(response()))
    }

    fn decode(&self, head: &Head, body: Bytes, asked: Option<Asked>) -> Decoded {
        translation::decode(head, body, asked, decode::success, decode::failure)
    }

    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult {
        classify::classify(head, answer)
    }

    fn retry_after(&self, head: &Head, answer: &Decoded, now: SystemTime) -> Option<Duration> {
        let of_header = http::exact_retry_after(&head.headers, now);
        of_header.or_else(|| classify::retry_after(answer))
    }

    fn explain(&self, _result: CallResult, head: &Head, answer: &Decoded) -> String {
        answer::explain(head, answer)
    }

    fn models_url(&self, base: &Url, after: Option<&str>) -> Url {
        let mut url = http::behind_version(base, VERSION, "/models");
        url.query_pairs_mut().append_pair("pageSize", PAGE);
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("pageToken", after);
        }
        url
    }

    fn models(&self, body: &[u8]) -> Option<ModelPage> {
        let is_list = serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(body);
        is_list.ok().filter(|list| list.contains_key("models"))?;
        let list: List = serde_json::from_slice(body).ok()?;
        let models = list.models.into_iter().map(|model| ModelInfo {
            id: match model.name.strip_prefix("models/") {
                Some(id) => id.to_owned(),
                None => model.name,
            },
            created: 0,
            owned_by: "google".to_owned(),
            shutdown_date: None,
        });
        Some(ModelPage {
            models: models.collect(),
            next: list.next_page_token.filter(|token| !token.is_empty()),
        })
    }
}

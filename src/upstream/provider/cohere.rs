//! Cohere's own API, version 2: `chat` and `embed`.

mod classify;
mod decode;
mod encode;
mod streamed;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, InvalidHeaderValue};
use secrecy::SecretString;
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
use crate::upstream::settings::{UnsupportedParams, UpstreamSettings};

const VERSION: &str = "/v2";
/// Models are listed by the version before alone.
const MODELS_VERSION: &str = "/v1";

/// As many models as a page has at most.
const PAGE: &str = "1000";

/// As Cohere names a request's id.
const TRACE_ID: HeaderName = HeaderName::from_static("x-debug-trace-id");

#[derive(Debug)]
pub(super) struct Cohere {
    policy: UnsupportedParams,
    streams: bool,
}

impl Cohere {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            policy: settings.unsupported_params,
            streams: settings.stream,
        }
    }
}

#[derive(Deserialize)]
struct List {
    models: Vec<Model>,
    #[serde(default)]
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
}

impl Provider for Cohere {
    fn inputs_max(&self) -> usize {
        encode::TEXTS_MAX
    }

    fn url(&self, base: &Url, path: &str, _model: &str) -> Url {
        let method = if path == EMBEDDINGS {
            "/embed"
        } else {
            "/chat"
        };
        http::behind_version(base, VERSION, method)
    }

    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue> {
        http::bear(key, headers)
    }

    fn refuses(&self, path: &str, key: Option<&str>) -> Option<String> {
        encode::refuses(path, key, self.policy)
    }

    fn encode<'a>(&self, line: &Line<'a>) -> Result<Encoded<'a>, Unsupported> {
        translation::encode(line, |body| {
            let encoded = encode::encode(line.path, body, line.model, self.policy)?;
            let is_wanted = self.streams && line.path != EMBEDDINGS;
            Ok(translation::streamed(encoded, is_wanted))
        })
    }

    fn assembly(&self, _path: &str, asked: Option<&Asked>) -> Option<Assembly> {
        translation::assembly::<streamed::Response>(asked)
    }

    fn decode(&self, head: &Head, body: Bytes, asked: Option<Asked>) -> Decoded {
        let mut decoded = translation::decode(head, body, asked, decode::success, decode::failure);
        if let Some(id) = http::text(&head.headers, &TRACE_ID).filter(|id| !id.is_empty()) {
            decoded.request_id = Some(id.to_owned());
        }
        decoded
    }

    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult {
        classify::classify(head, answer)
    }

    fn retry_after(&self, head: &Head, _answer: &Decoded, now: SystemTime) -> Option<Duration> {
        let of_header = http::exact_retry_after(&head.headers, now);
        of_header.or_else(|| classify::reset(&head.headers, now))
    }

    fn explain(&self, _result: CallResult, head: &Head, answer: &Decoded) -> String {
        answer::explain(head, answer)
    }

    fn models_url(&self, base: &Url, after: Option<&str>) -> Url {
        let mut base = base.clone();
        let own = base.path().trim_end_matches('/');
        let own = own.strip_suffix(VERSION).unwrap_or(own).to_owned();
        base.set_path(&own);
        let mut url = http::behind_version(&base, MODELS_VERSION, "/models");
        url.query_pairs_mut().append_pair("page_size", PAGE);
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("page_token", after);
        }
        url
    }

    fn models(&self, body: &[u8]) -> Option<ModelPage> {
        let list: List = serde_json::from_slice(body).ok()?;
        let models = list.models.into_iter().map(|model| ModelInfo {
            id: model.name,
            created: 0,
            owned_by: "cohere".to_owned(),
            shutdown_date: None,
        });
        Some(ModelPage {
            models: models.collect(),
            next: list.next_page_token.filter(|token| !token.is_empty()),
        })
    }
}

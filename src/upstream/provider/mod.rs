//! What differs between providers: URLs, how a key is sent, the JSON they answer with. One file a
//! dialect, and one line in [`of`]; nothing outside this folder knows one.

pub(super) mod classify;
pub(super) mod edit;
mod openai;

use std::fmt;

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, InvalidHeaderValue};
use secrecy::SecretString;

use super::ModelInfo;
use crate::upstream::settings::UpstreamSettings;

/// The dialect of a model server.
pub(super) trait Provider: fmt::Debug + Send + Sync {
    /// Where to send a line whose `url` is `path`, such as `/v1/chat/completions`.
    fn url(&self, base: &Url, path: &str) -> Url;

    /// Where it lists its models.
    fn models_url(&self, base: &Url) -> Url;

    /// Adds the headers that carry the key.
    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue>;

    /// Reads the list of models; `None` if it is none.
    fn models(&self, body: &[u8]) -> Option<Vec<ModelInfo>>;

    /// The answer that was streamed, as server-sent events, as if it had not been.
    fn fold(&self, body: &Bytes) -> Folded;

    /// The server's own id for a request.
    fn request_id<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str>;
}

/// What the events of a stream are together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Folded {
    /// The answer, as if it had not been streamed.
    Answer(Bytes),
    /// The server gave up, and said so: its error, as if it had not been streamed.
    Error(Bytes),
    /// There are no events.
    Empty,
    /// They are not all of an answer.
    Incomplete,
}

/// The dialect that an upstream speaks.
pub(super) fn of(_upstream: &UpstreamSettings) -> &'static dyn Provider {
    &openai::OpenAi
}

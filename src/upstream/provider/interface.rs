//! What a provider is asked, and what it answers.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, InvalidHeaderValue};
use secrecy::SecretString;

use super::edit::{Edit, Splice};
use super::http::{self, Head};
use super::remaining;
use crate::domain::outcome::Form;
use crate::domain::usage::Usage;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::limits::rate::Remaining;
use crate::upstream::models::ModelInfo;

/// A kind of model server, and its API.
pub(in crate::upstream) trait Provider: fmt::Debug + Send + Sync {
    /// Where a line goes whose `url` is `path`, such as `/v1/chat/completions`.
    fn url(&self, base: &Url, path: &str) -> Url;

    /// Adds the headers that carry the key.
    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue>;

    /// What is sent for a line's body. `edit`: what its route changes.
    fn encode<'a>(&self, body: &'a [u8], edit: Option<&'a Edit>) -> Encoded<'a>;

    /// Reads an answer, and brings it into the form that its line gets.
    fn decode(&self, head: &Head, body: Bytes) -> Decoded;

    /// How the call went that was answered so.
    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult;

    /// How long the server asks to be left alone, beside a failure.
    fn retry_after(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        http::retry_after(headers, now)
    }

    /// What the server says is left of its rate limits, beside any answer. What cannot be read is
    /// left out.
    fn remaining(&self, headers: &HeaderMap, now: SystemTime) -> Vec<Remaining> {
        remaining::read(headers, now)
    }

    /// A failure, in words for the line's user: no addresses, no secrets.
    fn explain(&self, result: CallResult, head: &Head, answer: &Decoded) -> String;

    /// Whether an answer calls itself what such servers answer with. A proxy's page does not.
    fn is_own(&self, headers: &HeaderMap) -> bool;

    /// Where the server lists its models.
    fn models_url(&self, base: &Url) -> Url;

    /// Reads the list of models; `None` if the body is no such list.
    fn models(&self, body: &[u8]) -> Option<Vec<ModelInfo>>;
}

/// What is sent for a line's body.
#[derive(Debug)]
pub(in crate::upstream) enum Encoded<'a> {
    /// The line's own bytes.
    Unchanged,
    /// A changed copy, whose length is known before the copy is made.
    Spliced(Splice<'a>),
}

/// An answer in the form that its line gets, and what was found in it.
#[derive(Debug)]
pub(in crate::upstream) struct Decoded {
    pub(in crate::upstream) body: Bytes,
    pub(in crate::upstream) form: Form,
    /// What the answer reports.
    pub(in crate::upstream) usage: Option<Usage>,
    /// The answer has an error, and nothing that would be an answer.
    pub(in crate::upstream) is_bare_error: bool,
    /// The server's own id for the request.
    pub(in crate::upstream) request_id: Option<String>,
}

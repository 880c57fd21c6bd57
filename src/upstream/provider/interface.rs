//! What a provider is asked, and what it answers.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, InvalidHeaderValue};
use secrecy::SecretString;

use super::edit::{Edit, Spelling, Splice};
use super::http::{self, Head};
use super::remaining;
use super::stream::Assembly;
use crate::domain::clock::Clock;
use crate::domain::endpoint;
use crate::domain::outcome::{Form, Warning};
use crate::domain::usage::Usage;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::limits::rate::Remaining;
use crate::upstream::models::ModelInfo;

/// The endpoints of which requests are translated, as a line's `url` gives them.
pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const EMBEDDINGS: &str = endpoint::EMBEDDINGS;
pub(super) const RESPONSES: &str = "/v1/responses";
pub(super) const MESSAGES: &str = "/v1/messages";

/// A kind of model server, and its API.
pub(in crate::upstream) trait Provider: fmt::Debug + Send + Sync {
    /// Whether the provider has this endpoint as lines have it, so that they are sent as they are.
    fn speaks(&self, _path: &str) -> bool {
        false
    }

    /// How often a line is translated before it is sent. Memory for each form is reserved before.
    fn translations(&self, path: &str) -> usize {
        usize::from(!self.speaks(path))
    }

    /// How many inputs a call for embeddings may have.
    fn inputs_max(&self) -> usize {
        usize::MAX
    }

    /// Whether the URL of a call depends on its model.
    fn names_models_in_urls(&self) -> bool {
        false
    }

    /// Where a line goes whose `url` is `path`, such as `/v1/chat/completions`. `model`: what the
    /// upstream calls the line's model.
    fn url(&self, base: &Url, path: &str, model: &str) -> Url;

    /// Adds the headers that carry the key.
    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue>;

    /// Adds the headers that each call has, beside the key's.
    fn introduce(&self, _headers: &mut HeaderMap) {}

    /// What is sent for a line.
    ///
    /// # Errors
    /// When the provider cannot take what the line asks for.
    fn encode<'a>(&self, line: &Line<'a>) -> Result<Encoded<'a>, Unsupported>;

    /// Why the provider takes no line of this `url` (`None`), or none whose body has this key at
    /// its top, whatever its value asks for. In words for the line's user.
    fn refuses(&self, _path: &str, _key: Option<&str>) -> Option<String> {
        None
    }

    /// Puts the answer together, where it was asked for as a stream. `asked`: as below.
    fn assembly(&self, path: &str, asked: Option<&Asked>) -> Option<Assembly>;

    /// Reads an answer, and brings it into the form that its line gets. `asked`: what the encoding
    /// of the line remembers, where it was [translated](Encoded::Translated).
    fn decode(&self, head: &Head, body: Bytes, asked: Option<Asked>) -> Decoded;

    /// How the call went that was answered so.
    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult;

    /// How long the server asks to be left alone, beside a failure.
    fn retry_after(&self, head: &Head, _answer: &Decoded, now: SystemTime) -> Option<Duration> {
        http::retry_after(&head.headers, now)
    }

    /// What the server says is left of its rate limits, beside any answer. What cannot be read is
    /// left out.
    fn remaining(&self, headers: &HeaderMap, now: SystemTime) -> Vec<Remaining> {
        remaining::read(headers, now)
    }

    /// A failure, in words for the line's user: no addresses, no secrets.
    fn explain(&self, result: CallResult, head: &Head, answer: &Decoded) -> String;

    /// Whether an answer calls itself what such servers answer with. A proxy's page does not.
    fn is_own(&self, headers: &HeaderMap) -> bool {
        http::is_json(headers)
    }

    /// Where the server lists its models. `after`: where the page before says that the list goes
    /// on.
    fn models_url(&self, base: &Url, after: Option<&str>) -> Url;

    /// Reads a page of the list of models; `None` if the body is no such list.
    fn models(&self, body: &[u8]) -> Option<ModelPage>;
}

/// A line that is to be sent.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Line<'a> {
    /// The line's `url`, such as `/v1/chat/completions`.
    pub(in crate::upstream) path: &'static str,
    /// What the upstream calls the model.
    pub(in crate::upstream) model: &'a str,
    pub(in crate::upstream) body: &'a [u8],
    /// What the route changes.
    pub(in crate::upstream) edit: Option<&'a Edit>,
    pub(in crate::upstream) clock: &'a Clock,
}

impl<'a> Line<'a> {
    /// The body as the route changes it.
    pub(in crate::upstream) fn edited(&self) -> Cow<'a, [u8]> {
        match self.splice() {
            Some(splice) => Cow::Owned(splice.copy().into()),
            None => Cow::Borrowed(self.body),
        }
    }

    /// The line as the route changes it, in its own form.
    pub(super) fn as_it_is(&self) -> Encoded<'a> {
        match self.splice() {
            Some(splice) => Encoded::Spliced(splice, None),
            None => Encoded::Unchanged,
        }
    }

    fn splice(&self) -> Option<Splice<'a>> {
        self.edit?.splice(self.body, Spelling::of(self.path, false))
    }
}

/// What is sent for a line.
#[derive(Debug)]
pub(in crate::upstream) enum Encoded<'a> {
    /// The line's own bytes.
    Unchanged,
    /// A changed copy, whose length is known before the copy is made; and what the reading of its
    /// answer needs to know, if anything.
    Spliced(Splice<'a>, Option<Asked>),
    /// A body in the provider's own form.
    Translated { body: Bytes, asked: Asked },
}

/// What the translation of an answer needs to know of its request. In a box: few calls have one.
#[derive(Debug)]
pub(in crate::upstream) struct Asked(pub(super) Box<Request>);

impl Asked {
    /// The bytes that come back in the answer.
    pub(in crate::upstream) fn bytes(&self) -> usize {
        let through = self.0.through.as_ref();
        through.map_or(0, |through| through.echo.len() + through.stops.len())
    }
}

/// What a request asked for, as far as its answer depends on it.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// The line's `url`.
    pub(super) path: &'static str,
    /// What the upstream calls the model.
    pub(super) model: String,
    /// When it was asked, in Unix seconds.
    pub(super) created: i64,
    /// The names of functions that were sent under another name: that name, and the request's own.
    pub(super) names: Vec<(String, String)>,
    /// The answer is to be a JSON object, and the provider does not see to that.
    pub(super) wants_json: bool,
    /// The name of the function that stands for the answer itself.
    pub(super) answers_by: Option<&'static str>,
    /// Vectors are to be written in base64.
    pub(super) wants_base64: bool,
    /// The answer was asked for as a stream.
    pub(super) streams: bool,
    /// How many answers were asked for, where the provider gives several and that was said.
    pub(super) choices: Option<u64>,
    /// What was left out of the request.
    pub(super) warnings: Vec<Warning>,
    /// The line has another endpoint, and was asked as a chat completion.
    pub(super) through: Option<Through>,
}

/// What the answer to a line depends on that was asked as a chat completion.
#[derive(Debug, Default)]
pub(super) struct Through {
    /// The line's own `url`.
    pub(super) path: &'static str,
    /// Members that the answer has from the request, as JSON writes them, each with a comma
    /// behind it.
    pub(super) echo: String,
    /// Where the model was told to stop: a list as JSON writes it, or nothing.
    pub(super) stops: String,
    /// What was left out of the request before the provider saw it.
    pub(super) warnings: Vec<Warning>,
    /// The provider remembers something of the request, too.
    pub(super) is_translated_again: bool,
}

/// Why a line cannot be sent to an upstream of this provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Unsupported {
    /// What of the body, such as `messages[0].content[1]`.
    pub(in crate::upstream) param: String,
    /// In words for the line's user.
    pub(in crate::upstream) reason: String,
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
    /// Why the answer is none although the server says so, in words: the model broke off, say.
    /// Another attempt may bring one.
    pub(in crate::upstream) fault: Option<String>,
    /// What the server itself said, where that was translated and is no success.
    pub(in crate::upstream) said: Option<Bytes>,
    /// The server's own id for the request.
    pub(in crate::upstream) request_id: Option<String>,
    /// What the line's user is to know beside the answer.
    pub(in crate::upstream) warnings: Vec<Warning>,
}

impl Decoded {
    /// What the server itself said.
    pub(super) fn said(&self) -> &Bytes {
        self.said.as_ref().unwrap_or(&self.body)
    }
}

/// A part of a server's list of models.
#[derive(Debug)]
pub(in crate::upstream) struct ModelPage {
    pub(in crate::upstream) models: Vec<ModelInfo>,
    /// Where the list goes on, if it does.
    pub(in crate::upstream) next: Option<String>,
}

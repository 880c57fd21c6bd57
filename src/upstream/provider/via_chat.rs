//! Lines of endpoints that a provider does not have, asked as chat completions: those of OpenAI's
//! Responses API and of Anthropic's Messages API. This stands in front of each provider, which then
//! sees a request for a chat completion like any other.

mod completion;
mod messages;
mod request;
mod responses;
#[cfg(test)]
mod tests;
mod turns;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, InvalidHeaderValue};
use secrecy::SecretString;

use self::completion::Completion;
use self::request::{API, ChatRequest, NOT_OF_THE_ENDPOINT, OWN, Server, is_known};
use super::answer;
use super::chat::{Rule, Rules, refused, refuses, rule_of};
use super::http::{self, Head};
use super::interface::{
    Asked, CHAT, Decoded, Encoded, Line, MESSAGES, ModelPage, Provider, RESPONSES, Request,
    Through, Unsupported,
};
use super::openai;
use super::stream::Assembly;
use super::translation;
use super::tree::Tree;
use crate::domain::outcome::{Warning, WarningCode};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::limits::rate::Remaining;
use crate::upstream::settings::UpstreamSettings;

/// A provider, and in front of it the translation of what it does not have.
#[derive(Debug)]
pub(super) struct ViaChat {
    server: Server,
    provider: Box<dyn Provider>,
    translates_responses: bool,
}

impl ViaChat {
    pub(super) fn new(provider: Box<dyn Provider>, settings: &UpstreamSettings) -> Self {
        Self {
            server: Server::new(settings, provider.speaks(CHAT)),
            provider,
            translates_responses: settings.translates_responses,
        }
    }

    /// Whether a line is asked as a chat completion.
    fn is_via_chat(&self, path: &str) -> bool {
        match path {
            RESPONSES => self.translates_responses || !self.provider.speaks(path),
            MESSAGES => !self.provider.speaks(path),
            _ => false,
        }
    }

    fn encode_via_chat(&self, line: &Line<'_>) -> Result<Encoded<'static>, Unsupported> {
        let body = line.edited();
        let text = std::str::from_utf8(&body).ok();
        let tree = text.and_then(Tree::read);
        let tree = tree.ok_or_else(|| refused("body", translation::UNREADABLE))?;
        let translate = match line.path {
            RESPONSES => responses::request,
            _ => messages::request,
        };
        let ChatRequest {
            body,
            mut echo,
            stops,
            warnings,
            places,
        } = translate(&tree, line.model, &self.server)?;
        drop(tree);
        let chat = Line {
            path: CHAT,
            body: body.as_bytes(),
            edit: None,
            ..*line
        };
        let encoded = self.provider.encode(&chat);
        let encoded = encoded.map_err(|unsupported| Unsupported {
            param: places.own(&unsupported.param),
            ..unsupported
        });
        let (changed, asked) = match encoded? {
            Encoded::Translated { body, asked } => (Some(body), Some(asked.0)),
            Encoded::Spliced(splice, asked) => (Some(splice.copy()), asked.map(|asked| asked.0)),
            Encoded::Unchanged => (None, None),
        };
        let out = changed.unwrap_or_else(|| Bytes::from(body));
        let is_translated_again = asked.is_some();
        let mut request = asked.unwrap_or_default();
        for warning in &mut request.warnings {
            warning.param = places.own(&warning.param);
        }
        let left_out = warnings.iter().chain(&request.warnings);
        let left_out = left_out.filter(|warning| warning.code == WarningCode::ParameterDropped);
        let mut left_out = left_out.map(|warning| &*warning.param).peekable();
        if !echo.is_empty() && left_out.peek().is_some() {
            echo = without(echo, left_out);
        }
        request.through = Some(Through {
            path: line.path,
            echo,
            stops,
            warnings,
            is_translated_again,
        });
        Ok(Encoded::Translated {
            body: out,
            asked: Asked(request),
        })
    }

    fn decode_via_chat(
        &self,
        head: &Head,
        body: Bytes,
        through: Through,
        request: Box<Request>,
    ) -> Decoded {
        let asked = through.is_translated_again.then_some(Asked(request));
        let decoded = self.provider.decode(head, body, asked);
        let is_answer = decoded.form.is_json() && decoded.fault.is_none() && !decoded.is_bare_error;
        if head.is_success() && is_answer {
            return success(decoded, through);
        }
        if head.is_success() || through.path == RESPONSES {
            return decoded;
        }
        messages::failure(head, decoded)
    }
}

/// What the answer has from the request, without what was left out of that: keys, and keys within
/// others.
fn without<'w>(echo: String, left_out: impl Iterator<Item = &'w str>) -> String {
    let object = format!("{{{}}}", echo.strip_suffix(',').unwrap_or(&echo));
    let Some(Tree::Object(mut members)) = Tree::read(&object) else {
        return echo;
    };
    for param in left_out {
        let (key, within) = param.split_once('.').unwrap_or((param, ""));
        match members.iter_mut().find(|(known, _)| known == key) {
            Some(_) if within.is_empty() => members.retain(|(known, _)| known != key),
            Some((_, value)) => value.remove(within),
            None => {}
        }
    }
    let written = Tree::Object(members).written();
    let members = written
        .strip_prefix('{')
        .and_then(|it| it.strip_suffix('}'));
    match members.unwrap_or_default() {
        "" => String::new(),
        members => format!("{members},"),
    }
}

/// An answer in the form of the line's own endpoint.
fn success(decoded: Decoded, through: Through) -> Decoded {
    let mut warnings = Vec::new();
    match written(&decoded.body, &through, &mut warnings) {
        Ok(body) => {
            let of_decoding = decoded.warnings.into_iter().map(|mut warning| {
                if warning.param == FINISH_REASON {
                    warning.param = why_it_ended(through.path).to_owned();
                }
                warning
            });
            let before = through.warnings.into_iter().chain(of_decoding);
            warnings = before.chain(warnings).collect();
            let usage = decoded.usage;
            Decoded {
                usage,
                request_id: decoded.request_id,
                ..answer::made(body, usage.unwrap_or_default(), warnings)
            }
        }
        Err(fault) => Decoded {
            fault: Some(fault.to_owned()),
            ..decoded
        },
    }
}

/// A chat completion in the form of the line's own endpoint. An error says why there is none, in
/// words.
fn written(
    body: &[u8],
    through: &Through,
    warnings: &mut Vec<Warning>,
) -> Result<String, &'static str> {
    let tree = std::str::from_utf8(body).ok().and_then(Tree::read);
    let completion = tree.as_ref().and_then(Completion::read);
    let completion = completion.ok_or("the answer has no choices")?;
    if through.path == RESPONSES {
        return Ok(responses::answer::written(&completion, &through.echo));
    }
    messages::answer::written(&completion, &through.stops, warnings)
}

/// Where a chat completion says why it ended.
const FINISH_REASON: &str = "choices[0].finish_reason";

/// Where the answer of an endpoint says the same.
fn why_it_ended(path: &str) -> &'static str {
    if path == RESPONSES {
        "incomplete_details"
    } else {
        "stop_reason"
    }
}

impl Provider for ViaChat {
    fn inputs_max(&self) -> usize {
        self.provider.inputs_max()
    }

    fn speaks(&self, path: &str) -> bool {
        !self.is_via_chat(path) && self.provider.speaks(path)
    }

    fn translations(&self, path: &str) -> usize {
        if self.is_via_chat(path) {
            1 + self.provider.translations(CHAT)
        } else {
            self.provider.translations(path)
        }
    }

    fn names_models_in_urls(&self) -> bool {
        self.provider.names_models_in_urls()
    }

    fn url(&self, base: &Url, path: &str, model: &str) -> Url {
        let path = if self.is_via_chat(path) { CHAT } else { path };
        self.provider.url(base, path, model)
    }

    fn authorize(
        &self,
        key: &SecretString,
        headers: &mut HeaderMap,
    ) -> Result<(), InvalidHeaderValue> {
        self.provider.authorize(key, headers)
    }

    fn introduce(&self, headers: &mut HeaderMap) {
        self.provider.introduce(headers);
    }

    fn encode<'a>(&self, line: &Line<'a>) -> Result<Encoded<'a>, Unsupported> {
        if self.is_via_chat(line.path) {
            return self.encode_via_chat(line);
        }
        self.provider.encode(line)
    }

    fn assembly(&self, path: &str, asked: Option<&Asked>) -> Option<Assembly> {
        let path = if self.is_via_chat(path) { CHAT } else { path };
        self.provider.assembly(path, asked)
    }

    fn refuses(&self, path: &str, key: Option<&str>) -> Option<String> {
        if !self.is_via_chat(path) {
            let refuses = || self.provider.refuses(path, key);
            return (!self.provider.speaks(path)).then(refuses).flatten();
        }
        let rules: &Rules = match path {
            RESPONSES => &responses::RULES,
            _ => &messages::RULES,
        };
        match key {
            Some(key) if OWN.contains(&key) && !is_known(rules, key) => {
                Some(NOT_OF_THE_ENDPOINT.to_owned())
            }
            Some(key) if is_known(rules, key) && rule_of(rules, key) != Rule::Passed => {
                refuses(Some(rules), Some(key), self.server.policy, API)
            }
            key => self.provider.refuses(CHAT, key),
        }
    }

    fn decode(&self, head: &Head, body: Bytes, asked: Option<Asked>) -> Decoded {
        match asked {
            Some(Asked(mut request)) => match request.through.take() {
                Some(through) => self.decode_via_chat(head, body, through, request),
                None => self.provider.decode(head, body, Some(Asked(request))),
            },
            // The line was sent as it is, and its answer stays as it is.
            None if !self.provider.speaks(CHAT) => {
                openai::read(body, http::request_id(&head.headers).map(str::to_owned))
            }
            None => self.provider.decode(head, body, None),
        }
    }

    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult {
        if head.is_success() && answer.fault.is_some() {
            return CallResult::Unusable;
        }
        self.provider.classify(head, answer)
    }

    fn retry_after(&self, head: &Head, answer: &Decoded, now: SystemTime) -> Option<Duration> {
        self.provider.retry_after(head, answer, now)
    }

    fn remaining(&self, headers: &HeaderMap, now: SystemTime) -> Vec<Remaining> {
        self.provider.remaining(headers, now)
    }

    fn explain(&self, result: CallResult, head: &Head, answer: &Decoded) -> String {
        if answer.fault.is_some() {
            return answer::explain(head, answer);
        }
        self.provider.explain(result, head, answer)
    }

    fn is_own(&self, headers: &HeaderMap) -> bool {
        self.provider.is_own(headers)
    }

    fn models_url(&self, base: &Url, after: Option<&str>) -> Url {
        self.provider.models_url(base, after)
    }

    fn models(&self, body: &[u8]) -> Option<ModelPage> {
        self.provider.models(body)
    }
}

//! Mistral's API: OpenAI's form, read strictly, with some names of its own.

mod encode;
mod streamed;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderMap, InvalidHeaderValue};
use secrecy::SecretString;

use super::answer;
use super::http::{self, Head};
use super::interface::{
    Asked, Decoded, EMBEDDINGS, Encoded, Line, ModelPage, Provider, Request, Unsupported,
};
use super::openai;
use super::stream::Assembly;
use super::translation;
use super::tree::Tree;
use crate::domain::usage;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::settings::{UnsupportedParams, UpstreamSettings};

#[derive(Debug)]
pub(super) struct Mistral {
    policy: UnsupportedParams,
    streams: bool,
}

impl Mistral {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            policy: settings.unsupported_params,
            streams: settings.stream,
        }
    }
}

impl Provider for Mistral {
    fn url(&self, base: &Url, path: &str, _model: &str) -> Url {
        http::behind_version(base, "/v1", path.strip_prefix("/v1").unwrap_or(path))
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
        translation::assembly::<streamed::Message>(asked)
    }

    fn decode(&self, head: &Head, body: Bytes, asked: Option<Asked>) -> Decoded {
        translation::decode(head, body, asked, success, failure)
    }

    fn classify(&self, head: &Head, answer: &Decoded) -> CallResult {
        if head.is_success() {
            return answer::classify(head, answer);
        }
        let said = std::str::from_utf8(answer.said()).ok();
        let said = said.and_then(Tree::read);
        let of = |key: &str| said.as_ref().and_then(|said| said.get(key));
        let kind = of("type").and_then(Tree::text).unwrap_or_default();
        let message = of("message").and_then(Tree::text).unwrap_or_default();
        match head.status {
            401 => CallResult::KeyRefused,
            402 => CallResult::Unpaid,
            403 => CallResult::Refused,
            400 | 404 if kind == "invalid_model" => CallResult::ModelMissing,
            400 if answer::is_of_the_context(&message) => CallResult::ContextTooLong,
            404 if of("message").is_some() => CallResult::Rejected,
            300..=399 | 404 => CallResult::Misdirected,
            429 => CallResult::Limited,
            status if http::is_of_a_gateway(status) => CallResult::Unavailable,
            408 | 409 | 500..=599 => CallResult::ServerError,
            _ => CallResult::Rejected,
        }
    }

    fn retry_after(&self, head: &Head, _answer: &Decoded, now: SystemTime) -> Option<Duration> {
        http::exact_retry_after(&head.headers, now)
    }

    fn explain(&self, _result: CallResult, head: &Head, answer: &Decoded) -> String {
        answer::explain(head, answer)
    }

    fn models_url(&self, base: &Url, _after: Option<&str>) -> Url {
        http::behind_version(base, "/v1", "/models")
    }

    fn models(&self, body: &[u8]) -> Option<ModelPage> {
        openai::read_models(body)
    }
}

/// A failure, with its error in OpenAI's form. Its message is a text, or what is wrong in detail.
fn failure(head: &Head, said: Bytes) -> Decoded {
    let body = std::str::from_utf8(&said).ok().and_then(|text| {
        let said = Tree::read(text)?;
        let message = said.get("message").or_else(|| said.get("detail"))?;
        let message = match message.text() {
            Some(text) => text.into_owned(),
            None => message.get("detail").unwrap_or(message).written(),
        };
        let code = said.get("type").and_then(Tree::text);
        Some(answer::error(
            head.status,
            &message,
            code.as_deref(),
            &said.written(),
        ))
    });
    answer::failure(said, body)
}

/// A success: what is not quite OpenAI's form is brought into it, and all else stays.
fn success(said: Bytes, request: Request) -> Decoded {
    let text = std::str::from_utf8(&said).ok();
    let Some(mut body) = text.and_then(Tree::read) else {
        return answer::failure(said, None);
    };
    if body
        .get("object")
        .is_some_and(|object| object.is_text("error"))
    {
        let mut decoded = answer::failure(said, None);
        decoded.is_bare_error = true;
        return decoded;
    }
    let list = if request.path == EMBEDDINGS {
        "data"
    } else {
        "choices"
    };
    let Tree::Object(members) = &mut body else {
        return answer::unusable(said, "the answer is no object");
    };
    let found = members.iter_mut().find(|(key, _)| key == list);
    let Some((_, Tree::List(items))) = found else {
        return answer::unusable(said, format!("the answer has no {list}"));
    };
    for (index, item) in items.iter_mut().enumerate() {
        if item.get("index").is_none() {
            item.set("index", Tree::number(index));
        }
        if list == "choices" && !choice(item, &request.names) {
            return answer::unusable(said, "the model broke off");
        }
    }
    let usage = body.get("usage").map(Tree::written);
    let usage = usage.and_then(|usage| usage::parse(&usage));
    let mut decoded = answer::made(body.written(), usage.unwrap_or_default(), request.warnings);
    decoded.usage = usage;
    decoded
}

/// Brings a choice into OpenAI's form. False: it is no answer.
fn choice(choice: &mut Tree<'_>, names: &[(String, String)]) -> bool {
    let stopped_by = |reason: &str| {
        let own = choice.get("finish_reason");
        own.is_some_and(|own| own.is_text(reason))
    };
    if stopped_by("error") {
        return false;
    }
    if stopped_by("model_length") {
        choice.set("finish_reason", Tree::string("length"));
    }
    let Tree::Object(members) = choice else {
        return false;
    };
    let Some((_, message)) = members.iter_mut().find(|(key, _)| key == "message") else {
        return false;
    };
    let calls = message.get("tool_calls").and_then(Tree::list);
    let has_calls = calls.is_some_and(|calls| !calls.is_empty());
    if let Some(Tree::List(chunks)) = message.get("content") {
        let (mut said, mut thought) = (String::new(), String::new());
        for chunk in chunks {
            if let Some(text) = chunk.get("text").and_then(Tree::text) {
                said.push_str(&text);
            }
            let thinking = chunk
                .get("thinking")
                .and_then(Tree::list)
                .unwrap_or_default();
            for part in thinking {
                thought.push_str(&part.get("text").and_then(Tree::text).unwrap_or_default());
            }
        }
        message.set("content", Tree::string(&said));
        if !thought.is_empty() {
            message.set("reasoning_content", Tree::string(&thought));
        }
    }
    let is_empty = message
        .get("content")
        .is_none_or(|content| content.is_text(""));
    if is_empty && has_calls {
        message.set("content", Tree::null());
    }
    if let Tree::Object(members) = message {
        // OpenAI's messages have calls or no such key.
        members.retain(|(key, value)| key != "tool_calls" || has_calls && !value.is_null());
        let calls = members.iter_mut().find(|(key, _)| key == "tool_calls");
        if let Some((_, Tree::List(calls))) = calls {
            for one in calls {
                call(one, names);
            }
        }
    }
    true
}

/// The arguments of a call are a text, its kind is said, and its function has the name that the
/// request gave it.
fn call(call: &mut Tree<'_>, names: &[(String, String)]) {
    if call.get("type").is_none() {
        call.set("type", Tree::string("function"));
    }
    let Tree::Object(members) = call else {
        return;
    };
    let Some((_, function)) = members.iter_mut().find(|(key, _)| key == "function") else {
        return;
    };
    let name = function.get("name").and_then(Tree::text);
    let own = names
        .iter()
        .find(|(sent, _)| name.as_deref() == Some(sent.as_str()));
    if let Some((_, own)) = own {
        function.set("name", Tree::string(own));
    }
    let written = match function.get("arguments") {
        Some(arguments) if arguments.is_string() => return,
        Some(arguments) => arguments.written(),
        None => "{}".to_owned(),
    };
    function.set("arguments", Tree::string(&written));
}

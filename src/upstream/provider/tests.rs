//! What holds for every provider that translates.

mod failures;
mod kept;
mod requests;
mod rows;

use std::time::SystemTime;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::http::Head;
use super::interface::{CHAT, Decoded, EMBEDDINGS};
use super::kind::ProviderKind;
use super::{Asked, Encoded, Line, Provider, Unsupported, of};
use crate::domain::clock::Clock;
use crate::domain::outcome::Warning;
use crate::upstream::settings::UnsupportedParams;
use crate::upstream::tests::upstream;

/// The providers that translate, each with models of different generations.
const TRANSLATED: [(ProviderKind, &[&str]); 4] = [
    (
        ProviderKind::Anthropic,
        &[
            "claude-3-haiku-20240307",
            "claude-sonnet-4-5",
            "claude-opus-5-5",
            "qwen-3",
        ],
    ),
    (
        ProviderKind::Gemini,
        &["gemini-1.5-pro", "gemini-2.5-flash", "gemini-3-pro"],
    ),
    (ProviderKind::Mistral, &["mistral-large-latest"]),
    (ProviderKind::Cohere, &["command-a-03-2025"]),
];

fn provider(kind: ProviderKind, policy: UnsupportedParams) -> Box<dyn Provider> {
    let mut settings = upstream("one", "https://api.example.com");
    settings.provider = kind;
    settings.unsupported_params = policy;
    of(&settings)
}

/// A request as a provider gets it.
#[derive(Debug)]
struct Sent {
    body: Value,
    warnings: Vec<Warning>,
    asked: Asked,
}

fn sent(provider: &dyn Provider, model: &str, body: &Value) -> Result<Sent, Unsupported> {
    sent_to(provider, CHAT, model, body)
}

/// The same, for a line with this `url`.
fn sent_to(
    provider: &dyn Provider,
    path: &'static str,
    model: &str,
    body: &Value,
) -> Result<Sent, Unsupported> {
    let body = body.to_string();
    let line = Line {
        path,
        model,
        body: body.as_bytes(),
        edit: None,
        clock: &Clock::default(),
    };
    match provider.encode(&line)? {
        Encoded::Translated { body, asked } => Ok(Sent {
            body: serde_json::from_slice(&body).expect("what is sent is JSON"),
            warnings: asked.0.warnings.clone(),
            asked,
        }),
        other => panic!("not translated: {other:?}"),
    }
}

/// An answer, as its line gets it.
fn decoded(provider: &dyn Provider, head: &Head, body: &str, asked: Option<Asked>) -> Decoded {
    // A line that was sent as it is has nothing that is remembered.
    let asked = asked.unwrap_or_else(|| Asked(Box::default()));
    provider.decode(head, Bytes::copy_from_slice(body.as_bytes()), Some(asked))
}

fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Head {
    let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let more = headers.iter().map(|(name, value)| {
        let value = HeaderValue::from_static(value);
        (HeaderName::from_static(name), value)
    });
    let headers: HeaderMap = [json].into_iter().chain(more).collect();
    Head { status, headers }
}

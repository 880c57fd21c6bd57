//! How model servers are spoken to. A provider has a file here that implements [`Provider`], a name
//! in [`kind`], and a line in [`of`]. Nothing outside this folder knows what a provider's URLs,
//! headers, errors, streams or usage look like.
//!
//! Lines and their answers are in the form of OpenAI's API, whichever provider answers.

mod answer;
mod anthropic;
mod chat;
mod cohere;
pub(super) mod edit;
mod gemini;
pub(super) mod http;
mod interface;
pub(super) mod kind;
mod mistral;
mod openai;
mod remaining;
pub(super) mod stream;
#[cfg(test)]
mod tests;
mod translation;
mod tree;
mod via_chat;

pub(super) use self::interface::{Asked, Encoded, Line, Provider, Unsupported};

use self::kind::ProviderKind;
use self::via_chat::ViaChat;
use crate::upstream::settings::UpstreamSettings;

/// The provider of an upstream.
pub(super) fn of(upstream: &UpstreamSettings) -> Box<dyn Provider> {
    let provider: Box<dyn Provider> = match upstream.provider {
        ProviderKind::OpenAi => Box::new(openai::OpenAi::new(upstream)),
        ProviderKind::Anthropic => Box::new(anthropic::Anthropic::new(upstream)),
        ProviderKind::Gemini => Box::new(gemini::Gemini::new(upstream)),
        ProviderKind::Mistral => Box::new(mistral::Mistral::new(upstream)),
        ProviderKind::Cohere => Box::new(cohere::Cohere::new(upstream)),
    };
    Box::new(ViaChat::new(provider, upstream))
}

//! How model servers are spoken to. A provider has a file here that implements [`Provider`], and a
//! line in [`of`]. Nothing outside this folder knows what a provider's URLs, headers, errors,
//! streams or usage look like.
//!
//! Lines and their answers are in the form of OpenAI's API, whichever provider answers.

pub(super) mod edit;
pub(super) mod http;
mod interface;
mod openai;
mod remaining;

pub(super) use self::interface::{Encoded, Provider};

use crate::upstream::settings::UpstreamSettings;

/// The provider of an upstream.
pub(super) fn of(_upstream: &UpstreamSettings) -> &'static dyn Provider {
    &openai::OpenAi
}

//! Reuse of answers: which requests may be answered by the answer to an equal one, when two
//! requests are equal, and which answers may be kept.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::json;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const EMBEDDINGS: &str = "/v1/embeddings";
const MESSAGES: &str = "/v1/messages";
const MODERATIONS: &str = "/v1/moderations";
const RESPONSES: &str = "/v1/responses";

/// What stands before all that a key is made of: another number wherever the rest is put together
/// in another way, so that no answer is found by a key that meant something else.
const VERSION: &[u8] = b"nightshift reuse 1\0";

/// Which requests may be answered by an answer that was given before. Each mode takes all that the
/// one before it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    #[default]
    Off,
    /// Embeddings.
    Embeddings,
    /// Also moderations, and chat completions with a temperature of 0 or a seed.
    Deterministic,
    /// Of every endpoint.
    All,
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Off, Mode::Embeddings, Mode::Deterministic, Mode::All];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::Embeddings => "embeddings",
            Mode::Deterministic => "deterministic",
            Mode::All => "all",
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }

    /// Whether a request may be answered so. `body` is JSON, as it would be sent.
    #[must_use]
    pub fn takes(self, path: &str, body: &str) -> bool {
        match self {
            Mode::Off => false,
            Mode::Embeddings => path == EMBEDDINGS,
            Mode::Deterministic => match path {
                EMBEDDINGS | MODERATIONS => true,
                CHAT => is_deterministic(body),
                _ => false,
            },
            Mode::All => true,
        }
    }
}

/// What a batch asks for where its lines could be answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The answers of the batch are asked for anew, each once, and kept in the place of others.
    Refresh,
    Mode(Mode),
}

impl Choice {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Choice::Refresh => "refresh",
            Choice::Mode(mode) => mode.as_str(),
        }
    }

    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == Choice::Refresh.as_str() {
            return Some(Choice::Refresh);
        }
        Mode::parse(name).map(Choice::Mode)
    }

    /// What a batch may choose where the operator allows this mode.
    #[must_use]
    pub fn allowed(by: Mode) -> Vec<&'static str> {
        let modes = Mode::ALL.into_iter().filter(|mode| *mode <= by);
        let modes = modes.map(Mode::as_str);
        match by {
            Mode::Off => modes.collect(),
            _ => modes.chain([Choice::Refresh.as_str()]).collect(),
        }
    }
}

/// What an operator says of reuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    pub mode: Mode,
    /// How long a kept answer is used, from when it was kept.
    pub ttl: Duration,
    /// How many bytes all kept answers may have, as they stand in the store.
    pub max_bytes: u64,
}

impl Terms {
    /// The mode that holds for a batch.
    #[must_use]
    pub fn mode_of(&self, choice: Option<Choice>) -> Mode {
        match choice {
            None | Some(Choice::Refresh) => self.mode,
            Some(Choice::Mode(mode)) => mode.min(self.mode),
        }
    }
}

/// Tells requests apart: two with one key would get one answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// `None` if these are no key's bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

/// Whom a request is for, and where it is sent: all that its answer depends on beside its body.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub tenant: &'a str,
    /// The line's endpoint, such as `/v1/embeddings`.
    pub path: &'a str,
    /// The upstream's name.
    pub upstream: &'a str,
    /// The URL that is called.
    pub url: &'a str,
    /// The version of the provider's API. Empty where it has none.
    pub api_version: &'a str,
}

impl Place<'_> {
    /// The key of a request. `body`: in the endpoint's own form, as its route changes it.
    /// `sent`: what is sent instead, where the upstream speaks another API or its model does not
    /// take all of the body. `None` where a body has [no canonical form](json::canonical).
    #[must_use]
    pub fn key(&self, body: &str, sent: Option<&str>) -> Option<Key> {
        let mut hasher = Sha256::new();
        hasher.update(VERSION);
        let mut part = |bytes: &[u8]| {
            // The length first: no two lists of parts have the same bytes.
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for text in [
            self.tenant,
            self.path,
            self.upstream,
            self.url,
            self.api_version,
        ] {
            part(text.as_bytes());
        }
        part(&json::canonical(body, left_out(self.path))?);
        if let Some(sent) = sent {
            part(&json::canonical(sent, &[])?);
        }
        Some(Key(hasher.finalize().into()))
    }
}

/// Keys at the top of a body that cannot change the answer to it.
///
/// Those of the Responses API are none: its answers repeat them.
#[must_use]
pub fn left_out(path: &str) -> &'static [&'static str] {
    match path {
        CHAT => &[
            "metadata",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "store",
            "user",
        ],
        COMPLETIONS | EMBEDDINGS => &["user"],
        MESSAGES => &["metadata"],
        _ => &[],
    }
}

/// A body without what cannot change its answer.
#[must_use]
pub fn without_left_out<'a>(path: &str, body: &'a str) -> Cow<'a, str> {
    let left_out = left_out(path);
    let (mut kept, mut is_changed) = (Vec::new(), false);
    json::members(body, |key, value| {
        if left_out.contains(&key) {
            is_changed = true;
        } else {
            kept.push((key.to_owned(), value));
        }
    });
    if !is_changed {
        return Cow::Borrowed(body);
    }
    let mut written = Vec::with_capacity(body.len());
    for (place, (key, value)) in kept.into_iter().enumerate() {
        written.push(if place == 0 { b'{' } else { b',' });
        json::string(&key, &mut written);
        written.push(b':');
        written.extend_from_slice(value.as_bytes());
    }
    if written.is_empty() {
        written.push(b'{');
    }
    written.push(b'}');
    String::from_utf8(written).map_or(Cow::Borrowed(body), Cow::Owned)
}

/// Whether a chat completion asks for the same answer each time, as far as its model can do that.
fn is_deterministic(body: &str) -> bool {
    let mut is = false;
    json::members(body, |key, value| {
        is |= match key {
            "temperature" => json::is_zero(value),
            "seed" => value != "null",
            _ => false,
        };
    });
    is
}

/// Whether an answer ends where its model ended it, and not because it was cut or withheld. `body`
/// is JSON, in the form of the endpoint.
#[must_use]
pub fn ends_naturally(path: &str, body: &str) -> bool {
    let text_of = |wanted: &str| {
        let mut text = None;
        json::members(body, |key, value| {
            if key == wanted {
                text = json::text(value);
            }
        });
        text
    };
    match path {
        CHAT | COMPLETIONS => {
            let mut choices = None;
            json::members(body, |key, value| {
                if key == "choices" {
                    choices = serde_json::from_str::<Vec<Choices>>(value).ok();
                }
            });
            let is_natural = |choice: &Choices| {
                let reason = choice.finish_reason.as_deref();
                matches!(reason, Some("stop" | "tool_calls" | "function_call"))
            };
            choices.is_some_and(|all| !all.is_empty() && all.iter().all(is_natural))
        }
        MESSAGES => matches!(
            text_of("stop_reason").as_deref(),
            Some("end_turn" | "stop_sequence" | "tool_use")
        ),
        RESPONSES => text_of("status").as_deref() == Some("completed"),
        _ => true,
    }
}

/// One of the answers to a chat completion.
#[derive(serde::Deserialize)]
struct Choices {
    #[serde(default)]
    finish_reason: Option<String>,
}

#[cfg(test)]
mod tests;

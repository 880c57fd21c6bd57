//! What a model can do, as far as a request depends on it, and how URLs name it. The first is data:
//! `models.toml`.

use std::sync::LazyLock;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::upstream::settings::{Capabilities, CapabilitySettings};

/// What a model's name may have in a URL as it is.
const IN_NAMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// What the generations can do that this version of the program knows.
static KNOWN: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct File {
        models: Vec<Entry>,
    }
    // A test reads the file.
    toml::from_str::<File>(include_str!("models.toml")).map_or_else(|_| Vec::new(), |it| it.models)
});

/// How a model is asked to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Thinking {
    /// It does not think.
    None,
    /// With a number of tokens.
    Budget,
    /// With a word.
    Level,
}

/// An entry of `models.toml`, where the keys are explained.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    from: u32,
    call_ids: Option<bool>,
    penalties: Option<bool>,
    thinking: Option<Thinking>,
}

/// What a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    pub(super) call_ids: bool,
    pub(super) penalties: bool,
    pub(super) thinking: Thinking,
}

impl Abilities {
    /// What the model of this name can do; what the configuration says of it wins.
    pub(super) fn of(model: &str, says: &[CapabilitySettings]) -> Self {
        let generation = generation(model).unwrap_or(u32::MAX);
        let mut all = Self {
            call_ids: false,
            penalties: true,
            thinking: Thinking::None,
        };
        for entry in KNOWN.iter().filter(|entry| entry.from <= generation) {
            all.call_ids = entry.call_ids.unwrap_or(all.call_ids);
            all.penalties = entry.penalties.unwrap_or(all.penalties);
            all.thinking = entry.thinking.unwrap_or(all.thinking);
        }
        let said = Capabilities::said(says, model);
        if said.refuses("presence_penalty") || said.refuses("frequency_penalty") {
            all.penalties = false;
        }
        if said.reasoning == Some(false) {
            all.thinking = Thinking::None;
        }
        all
    }
}

/// `gemini-2.5-flash` is of the second.
fn generation(model: &str) -> Option<u32> {
    let behind = &model[model.find("gemini-")? + "gemini-".len()..];
    behind.split(['.', '-']).next()?.parse().ok()
}

/// A model as URLs name it.
pub(super) fn resource(model: &str) -> String {
    let (kind, name) = match model.split_once('/') {
        Some((kind @ ("models" | "tunedModels"), name)) => (kind, name),
        _ => ("models", model),
    };
    format!("{kind}/{}", utf8_percent_encode(name, IN_NAMES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_each_generation_can_do() {
        let abilities = |call_ids, penalties, thinking| Abilities {
            call_ids,
            penalties,
            thinking,
        };
        let newest = abilities(true, false, Thinking::Level);
        for (model, expected) in [
            ("gemini-1.5-pro", abilities(false, true, Thinking::None)),
            ("gemini-2.5-flash", abilities(false, true, Thinking::Budget)),
            (
                "models/gemini-2.0",
                abilities(false, true, Thinking::Budget),
            ),
            ("gemini-3-pro-preview", newest),
            ("gemini-4-argon", newest),
            ("gemini-flash-latest", newest),
            ("gemma-3", newest),
        ] {
            assert_eq!(Abilities::of(model, &[]), expected, "{model}");
        }
    }
}

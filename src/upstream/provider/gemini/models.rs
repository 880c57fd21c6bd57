//! What the name of a model says of it, and how URLs have it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a model's name may have in a URL as it is.
const IN_NAMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Which generation of models a model is of: `gemini-2.5-flash` is of the second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generation(Option<u32>);

impl Generation {
    pub(super) fn of(model: &str) -> Self {
        let behind = model
            .find("gemini-")
            .map(|at| &model[at + "gemini-".len()..]);
        let number = behind.and_then(|rest| rest.split(['.', '-']).next());
        Self(number.and_then(|number| number.parse().ok()))
    }

    pub(super) fn major(self) -> Option<u32> {
        self.0
    }

    /// Whether calls of functions have ids, and signatures of what was thought before them. A name
    /// that does not tell is taken for one of the newest.
    pub(super) fn has_call_ids(self) -> bool {
        self.0.is_none_or(|major| major >= 3)
    }

    pub(super) fn has_penalties(self) -> bool {
        !self.has_call_ids()
    }
}

/// A model as URLs name it.
pub(super) fn resource(model: &str) -> String {
    let (kind, name) = match model.split_once('/') {
        Some((kind @ ("models" | "tunedModels"), name)) => (kind, name),
        _ => ("models", model),
    };
    format!("{kind}/{}", utf8_percent_encode(name, IN_NAMES))
}

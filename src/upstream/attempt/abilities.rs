//! What a line asks for that its model does not take, as far as the configuration says so.

use bytes::Bytes;
use serde_json::Value;

use crate::domain::asked::asks_for_no_ability;
use crate::domain::json;
use crate::domain::outcome::{Warning, WarningCode};
use crate::upstream::capabilities::NOT_TAKEN;
use crate::upstream::provider::{Line, Unsupported};
use crate::upstream::settings::{
    Capabilities, CapabilitySettings, UnsupportedParams, UpstreamSettings,
};

/// Keys without which an answer would be one to another request: they are never left out.
const NEEDED: [&str; 14] = [
    "audio",
    "dimensions",
    "function_call",
    "functions",
    "input",
    "messages",
    "modalities",
    "model",
    "n",
    "output_config",
    "prompt",
    "stream",
    "text",
    "web_search_options",
];

/// What the models of an upstream take.
#[derive(Debug)]
pub(super) struct Abilities {
    says: Vec<CapabilitySettings>,
    policy: UnsupportedParams,
}

/// A line's body without what its model does not take. In a box: few calls have one.
#[derive(Debug)]
pub(super) struct Less {
    pub(super) body: Bytes,
    /// One for each key that is left out.
    pub(super) warnings: Vec<Warning>,
}

impl Abilities {
    pub(super) fn new(settings: &UpstreamSettings) -> Self {
        Self {
            says: settings.capabilities.clone(),
            policy: settings.unsupported_params,
        }
    }

    /// Why no line with this key at the top of its body is taken for a model, whatever its value
    /// asks for: in words.
    pub(super) fn refuses(&self, model: &str, key: &str) -> Option<String> {
        let is_refused = self.policy == UnsupportedParams::Reject
            && Capabilities::said(&self.says, model).refuses(key);
        is_refused.then(|| NOT_TAKEN.to_owned())
    }

    /// What is sent in place of a line's body; `None`: the model takes all of it. What a route
    /// writes over does not count.
    ///
    /// # Errors
    /// When the line asks for what its model does not take, and that is not to be left out.
    pub(super) fn less(&self, line: &Line<'_>) -> Result<Option<Box<Less>>, Unsupported> {
        if self.says.is_empty() {
            return Ok(None);
        }
        let says = Capabilities::said(&self.says, line.model);
        let is_refused = |key: &str, value: &str| {
            says.refuses(key)
                && !asks_for_no_ability(key, value)
                && !line.edit.is_some_and(|edit| edit.writes_over(key))
        };
        let Ok(body) = std::str::from_utf8(line.body) else {
            return Ok(None);
        };
        let mut refused: Vec<String> = Vec::new();
        let mut unsupported = None;
        json::members(body, |key, value| {
            if !is_refused(key, value) {
                return;
            }
            let is_dropped = self.policy == UnsupportedParams::Drop && !is_needed(key, value);
            if !is_dropped && unsupported.is_none() {
                unsupported = Some(Unsupported {
                    param: key.to_owned(),
                    reason: NOT_TAKEN.to_owned(),
                });
            }
            // A key may stand twice.
            if !refused.iter().any(|known| known == key) {
                refused.push(key.to_owned());
            }
        });
        if let Some(unsupported) = unsupported {
            return Err(unsupported);
        }
        Ok((!refused.is_empty()).then(|| {
            Box::new(Less {
                body: without(body, &refused),
                warnings: refused.into_iter().map(left_out).collect(),
            })
        }))
    }
}

/// Whether an answer without this member would be one to another request.
fn is_needed(key: &str, value: &str) -> bool {
    match key {
        "tool_choice" => value != "\"auto\"",
        "response_format" => {
            let format = serde_json::from_str::<Value>(value);
            format.map_or(true, |format| format["type"] != "text")
        }
        _ => NEEDED.contains(&key),
    }
}

/// The object without the members of these keys. The others stay as they are written.
fn without(body: &str, keys: &[String]) -> Bytes {
    let mut left = String::with_capacity(body.len());
    json::members(body, |key, value| {
        if keys.iter().any(|refused| refused == key) {
            return;
        }
        left.push(if left.is_empty() { '{' } else { ',' });
        left.push_str(&Value::from(key).to_string());
        left.push(':');
        left.push_str(value);
    });
    left.push_str(if left.is_empty() { "{}" } else { "}" });
    left.into()
}

fn left_out(key: String) -> Warning {
    Warning {
        code: WarningCode::ParameterDropped,
        param: key,
        message: NOT_TAKEN.to_owned(),
    }
}

//! `[[endpoints]]`: what can be batched beside OpenAI's endpoints.

use std::collections::BTreeSet;

use super::reader::{Item, Reader};
use crate::domain::endpoint::{AddedEndpoint, ENDPOINTS, Endpoints, VERSION};

/// Longer than any that a server has, in bytes.
const PATH_BYTES_MAX: usize = 256;
/// More keys than any request has. Which of them a body has is kept in bits.
const REQUIRED_MAX: usize = 32;

/// Reads `[[endpoints]]`.
pub(super) fn read_all(readers: Vec<Reader<'_>>) -> Endpoints {
    let mut paths = BTreeSet::new();
    let mut added = Vec::new();
    for mut reader in readers {
        let path = reader.need("path").and_then(|item| {
            let path = path_of(&item)?;
            if !paths.insert(path.clone()) {
                item.fault("another endpoint has this path");
            }
            Some(path)
        });
        let required = reader.take("required").map(read_required);
        let model_required = reader.take("model_required");
        let model_required = model_required.and_then(|mut item| item.boolean());
        reader.finish();
        if let Some(path) = path {
            added.push(AddedEndpoint {
                path,
                required: required.unwrap_or_default(),
                model_required: model_required.unwrap_or(false),
            });
        }
    }
    Endpoints::with(&added)
}

fn path_of(item: &Item<'_>) -> Option<String> {
    let path = item.string()?;
    let fault = |message: &str| {
        item.fault(message);
        None
    };
    let rest = path.strip_prefix(VERSION).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let is_segment = |segment: &str| {
        !segment.is_empty() && !matches!(segment, "." | "..") && segment.chars().all(is_plain)
    };
    if !rest.starts_with('/') {
        return fault(
            "expected a path that begins with /v1/, such as \"/v1/rerank\": what follows /v1 goes \
             behind an upstream's `base_url`",
        );
    }
    if path.len() > PATH_BYTES_MAX || !rest[1..].split('/').all(is_segment) {
        return fault(
            "expected names of letters, digits and `-._~` between slashes, without a slash at the \
             end, a query or anything else",
        );
    }
    if ENDPOINTS.iter().any(|endpoint| endpoint.path == path) {
        return fault("this endpoint can be batched in any case");
    }
    Some(path)
}

fn read_required(item: Item<'_>) -> Vec<String> {
    let mut required: Vec<String> = Vec::new();
    for item in item.array().into_iter().flatten() {
        let Some(key) = item.string() else {
            continue;
        };
        match key.as_str() {
            "model" => item.fault("write `model_required = true`"),
            "stream" => item.fault("answers in a batch are never streamed"),
            "background" => item.fault("a batch runs in the background anyway"),
            _ if required.contains(&key) => item.fault("stands in the list already"),
            _ if required.len() == REQUIRED_MAX => {
                item.fault(format!("at most {REQUIRED_MAX} keys can be required"));
                break;
            }
            _ => required.push(key),
        }
    }
    required
}

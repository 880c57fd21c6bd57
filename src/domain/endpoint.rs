//! The endpoints whose requests can be batched: one row each in one table.

/// What is known about an endpoint before its request is sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The path, as a line's `url` and a batch's `endpoint` give it.
    pub path: &'static str,
    /// How messages to users call it.
    pub name: &'static str,
    /// The keys that a body must have, beside `model`; null does not count.
    pub required: &'static [&'static str],
    /// The keys under which a body says what it asks, as opposed to how.
    pub input: &'static [&'static str],
    /// Whether a body must name its model.
    pub model_required: bool,
    /// Whether OpenAI has announced the endpoint's end. Its lines run like all others.
    pub deprecated: bool,
    /// Whether a body may ask for its answer to be computed in the background. Then the model
    /// server answers at once, with nothing.
    pub has_background: bool,
}

/// All of them: OpenAI's in the order in which its errors list them, then Anthropic's.
pub static ENDPOINTS: [Endpoint; 9] = [
    // A response can be asked for without an input: from a stored prompt or a conversation.
    Endpoint {
        has_background: true,
        input: &["input"],
        ..endpoint("/v1/responses", "Responses", &[], true)
    },
    endpoint(
        "/v1/chat/completions",
        "Chat Completions",
        &["messages"],
        true,
    ),
    endpoint("/v1/embeddings", "Embeddings", &["input"], true),
    endpoint("/v1/completions", "Completions", &["prompt"], true),
    endpoint("/v1/moderations", "Moderations", &["input"], false),
    endpoint(
        "/v1/images/generations",
        "Image Generations",
        &["prompt"],
        false,
    ),
    endpoint("/v1/images/edits", "Image Edits", &["prompt"], false),
    Endpoint {
        deprecated: true,
        ..endpoint("/v1/videos", "Videos", &["prompt"], false)
    },
    Endpoint {
        required: &["max_tokens", "messages"],
        ..endpoint("/v1/messages", "Messages", &["messages"], true)
    },
];

/// The prefix of every path, which Azure's clients leave out.
const VERSION: &str = "/v1";

/// Stands for all of them, in a batch whose lines each go to the endpoint that their `url` names.
/// The API makes no such batch.
pub static ANY: Endpoint = endpoint("*", "Any", &[], false);

/// The endpoint of a batch, by its path.
#[must_use]
pub fn of_batch(path: &str) -> Option<&'static Endpoint> {
    if path == ANY.path {
        return Some(&ANY);
    }
    find(path)
}

/// The endpoint with that path, be it with or without its `/v1`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Endpoint> {
    ENDPOINTS
        .iter()
        .find(|endpoint| endpoint.path == path || endpoint.path.strip_prefix(VERSION) == Some(path))
}

const fn endpoint(
    path: &'static str,
    name: &'static str,
    input: &'static [&'static str],
    model_required: bool,
) -> Endpoint {
    Endpoint {
        path,
        name,
        required: input,
        input,
        model_required,
        deprecated: false,
        has_background: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_found_by_its_path_alone() {
        for endpoint in &ENDPOINTS {
            assert_eq!(find(endpoint.path), Some(endpoint));
            assert_eq!(find(&endpoint.path["/v1".len()..]), Some(endpoint));
            assert_eq!(find(&endpoint.path[1..]), None);
            assert_eq!(find(&format!("{}/", endpoint.path)), None);
        }
        assert_eq!(find("/v1/audio/speech"), None);
        assert_eq!(find(""), None);
    }
}

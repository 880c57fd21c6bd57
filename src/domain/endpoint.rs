//! The endpoints whose requests can be batched: one row each in one table, and those that an
//! operator has added.

use std::sync::{Mutex, PoisonError};

/// What is known about an endpoint before its request is sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The path, as a line's `url` and a batch's `endpoint` give it.
    pub path: &'static str,
    /// How messages to users call it.
    pub name: &'static str,
    /// The keys that a body must have, beside `model`; null does not count.
    pub required: &'static [&'static str],
    /// The key that says how much the model may write, where a body must have it unless the routes
    /// of its model fill it in.
    pub limit: Option<&'static str>,
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

/// The endpoint whose lines may share calls.
pub const EMBEDDINGS: &str = "/v1/embeddings";

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
    endpoint(EMBEDDINGS, "Embeddings", &["input"], true),
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
        limit: Some("max_tokens"),
        ..endpoint("/v1/messages", "Messages", &["messages"], true)
    },
];

/// The prefix of every path, which Azure's clients leave out.
pub const VERSION: &str = "/v1";

/// Stands for all of them, in a batch whose lines each go to the endpoint that their `url` names.
/// The API makes no such batch.
pub static ANY: Endpoint = endpoint("*", "Any", &[], false);

/// The endpoint of a batch, by its path. A batch that was made for an endpoint goes on when its
/// operator has taken the endpoint away: all that is needed to run its lines is the path.
#[must_use]
pub fn of_batch(path: &str) -> &'static Endpoint {
    if path == ANY.path {
        return &ANY;
    }
    find(path).unwrap_or_else(|| {
        let added = AddedEndpoint {
            path: path.to_owned(),
            required: Vec::new(),
            model_required: false,
        };
        leaked(&[added]).first().unwrap_or(&ANY)
    })
}

/// An endpoint that an operator has added to those in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedEndpoint {
    pub path: String,
    /// As many as 32.
    pub required: Vec<String>,
    pub model_required: bool,
}

/// The endpoints that can be batched here: those in the table, and those that were added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(&'static [Endpoint]);

impl Endpoints {
    /// Those in the table alone.
    pub const USUAL: Endpoints = Endpoints(&[]);

    /// None of those added has the path of another one.
    #[must_use]
    pub fn with(added: &[AddedEndpoint]) -> Self {
        Self(leaked(added))
    }

    /// The endpoint with that path; if there is none, the one with that path behind `/v1`.
    #[must_use]
    pub fn find(self, path: &str) -> Option<&'static Endpoint> {
        let of = |path: &str| self.0.iter().find(|endpoint| endpoint.path == path);
        let added = || self.0.iter().find(|endpoint| endpoint.has_path(path));
        find(path).or_else(|| of(path)).or_else(added)
    }

    /// All of them, in the order in which errors list them.
    pub fn all(self) -> impl Iterator<Item = &'static Endpoint> {
        ENDPOINTS.iter().chain(self.0)
    }

    /// Those that were added.
    #[must_use]
    pub fn added(self) -> &'static [Endpoint] {
        self.0
    }
}

/// These endpoints, for as long as the process lives: so they are handed on like those in the
/// table. The same ones take memory once, however often a configuration is read.
fn leaked(added: &[AddedEndpoint]) -> &'static [Endpoint] {
    static LEAKED: Mutex<Vec<&'static [Endpoint]>> = Mutex::new(Vec::new());
    if added.is_empty() {
        return &[];
    }
    let mut all = LEAKED.lock().unwrap_or_else(PoisonError::into_inner);
    let are_these = |known: &&'static [Endpoint]| {
        known.len() == added.len() && known.iter().zip(added).all(|(known, one)| known.is(one))
    };
    if let Some(known) = all.iter().copied().find(are_these) {
        return known;
    }
    let leaked = added.iter().map(|one| {
        let path: &str = one.path.clone().leak();
        let required = one.required.iter().map(|key| &*key.clone().leak());
        let required: Vec<&'static str> = required.collect();
        endpoint(path, path, required.leak(), one.model_required)
    });
    let leaked: &[Endpoint] = leaked.collect::<Vec<_>>().leak();
    all.push(leaked);
    leaked
}

impl Endpoint {
    /// Whether that is its path, be it with or without its `/v1`.
    fn has_path(&self, path: &str) -> bool {
        self.path == path || self.path.strip_prefix(VERSION) == Some(path)
    }

    fn is(&self, added: &AddedEndpoint) -> bool {
        self.path == added.path
            && self.required == added.required
            && self.model_required == added.model_required
    }
}

/// The endpoint of the table with that path, be it with or without its `/v1`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Endpoint> {
    ENDPOINTS.iter().find(|endpoint| endpoint.has_path(path))
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
        limit: None,
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

    #[test]
    fn endpoints_that_are_added_are_found_beside_the_others() {
        let rerank = AddedEndpoint {
            path: "/v1/rerank".to_owned(),
            required: vec!["query".to_owned(), "documents".to_owned()],
            model_required: true,
        };
        let endpoints = Endpoints::with(std::slice::from_ref(&rerank));
        let found = endpoints.find("/rerank").expect("is there");
        assert_eq!((found.path, found.model_required), ("/v1/rerank", true));
        assert_eq!(found.required, ["query", "documents"]);
        assert_eq!(endpoints.find("/v1/embeddings"), find("/v1/embeddings"));
        assert_eq!(endpoints.all().count(), ENDPOINTS.len() + 1);
        assert_eq!(Endpoints::USUAL.find("/v1/rerank"), None);
        let again = Endpoints::with(&[rerank])
            .find("/v1/rerank")
            .expect("is there");
        assert!(std::ptr::eq(found, again), "the same one takes memory once");
    }

    #[test]
    fn an_endpoint_is_found_by_its_own_path_before_another_behind_v1() {
        let added = ["/v1/v1/x", "/v1/x"].map(|path| AddedEndpoint {
            path: path.to_owned(),
            required: Vec::new(),
            model_required: false,
        });
        let endpoints = Endpoints::with(&added);
        for path in ["/v1/x", "/v1/v1/x"] {
            assert_eq!(endpoints.find(path).map(|found| found.path), Some(path));
        }
        assert_eq!(endpoints.find("/x").map(|found| found.path), Some("/v1/x"));
    }

    #[test]
    fn a_batch_keeps_its_endpoint_though_nobody_knows_it_any_more() {
        let endpoint = of_batch("/v1/of-last-year");
        assert_eq!(endpoint.path, "/v1/of-last-year");
        assert!(std::ptr::eq(endpoint, of_batch("/v1/of-last-year")));
        assert_eq!(of_batch("*"), &ANY);
        assert_eq!(Some(of_batch("/v1/embeddings")), find("/v1/embeddings"));
    }
}

//! The paths of Azure's OpenAI clients: `/openai/files?api-version=…` is `/v1/files`.

use axum::extract::Request;
use axum::http::uri::{PathAndQuery, Uri};

/// The URL that the client has sent, where another one was put in its place.
#[derive(Clone, Debug)]
pub struct AskedUri(pub Uri);

/// The route of all these paths.
pub const ROUTE: &str = "/openai/{*rest}";
const PREFIX: &str = "/openai";
/// The part of the path that only Azure's newer clients send.
const VERSION: &str = "/v1/";

/// The same request, with the path that the API knows. The query stays, and its `api-version` is
/// ignored.
#[must_use]
pub fn rewritten(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    let path_and_query = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let behind = path_and_query.strip_prefix(PREFIX).unwrap_or_default();
    let version = if behind.starts_with(VERSION) {
        ""
    } else {
        "/v1"
    };
    let mut known = parts.uri.clone().into_parts();
    known.path_and_query = format!("{version}{behind}").parse().ok();
    // The route that matched so far, and its parameters, do not belong to the new path.
    parts.extensions.clear();
    if let Ok(known) = Uri::from_parts(known) {
        let asked = std::mem::replace(&mut parts.uri, known);
        parts.extensions.insert(AskedUri(asked));
    }
    Request::from_parts(parts, body)
}

/// The path that a client has asked for.
#[must_use]
pub fn asked_path(request: &Request) -> &str {
    let asked = request.extensions().get::<AskedUri>();
    asked.map_or(request.uri(), |asked| &asked.0).path()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn azures_paths_are_the_apis() {
        for (asked, known) in [
            ("/openai/files", "/v1/files"),
            (
                "/openai/files/file-1/content?api-version=2024-10-21",
                "/v1/files/file-1/content?api-version=2024-10-21",
            ),
            ("/openai/v1/batches?limit=2", "/v1/batches?limit=2"),
            ("/openai/models/org%2Fm", "/v1/models/org%2Fm"),
        ] {
            let request = Request::builder().uri(asked).body(Body::empty()).unwrap();
            let request = rewritten(request);
            assert_eq!(request.uri(), known);
            assert!(asked.starts_with(asked_path(&request)), "{asked}");
        }
    }
}

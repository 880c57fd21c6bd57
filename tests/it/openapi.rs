//! The OpenAPI document: committed, served, and shown by a page that needs nothing from elsewhere.

use serde_json::Value;

use crate::support::{Server, client_with};

#[test]
fn the_committed_document_is_the_programs() {
    let document = nightshift::internals::api::document()
        .to_pretty_json()
        .expect("is JSON")
        + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == document,
        "openapi/openapi.json is not the program's: renew it with\n  \
         cargo run -- openapi > openapi/openapi.json"
    );
}

/// Fetches without a key.
async fn fetch(server: &Server, path: &str) -> String {
    let response = client_with(None)
        .get(server.url(path))
        .send()
        .await
        .expect("answers");
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.expect("is text")
}

#[tokio::test]
async fn the_document_is_served_without_a_key() {
    let server = Server::start().await;
    let served: Value = serde_json::from_str(&fetch(&server, "/openapi.json").await).expect("JSON");
    assert_eq!(served, document());
    for path in [
        "/v1/files",
        "/v1/batches",
        "/v1/batches/{batch_id}/cancel",
        "/v1/models",
    ] {
        assert!(served["paths"].get(path).is_some(), "{path} is described");
    }
}

#[tokio::test]
async fn the_root_says_what_this_is_and_where_its_documentation_is() {
    let server = Server::start().await;
    let root: Value = serde_json::from_str(&fetch(&server, "/").await).expect("JSON");
    assert_eq!(root["name"], "Nightshift");
    assert_eq!(root["api"], "/v1");
    for page in ["docs", "openapi"] {
        let path = root[page].as_str().expect("a path");
        fetch(&server, path).await;
    }
}

#[test]
fn every_operation_has_the_errors_that_any_request_may_get() {
    let document = document();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let responses = operation["responses"].as_object().expect("responses");
            // Without a key: the health of the process, and what the server is.
            let open = ["/", "/healthz", "/readyz", "/version"].contains(&path.as_str());
            let expected = if open {
                &["403"][..]
            } else {
                &["401", "403", "500", "503"]
            };
            for status in expected {
                assert!(responses.contains_key(*status), "{method} {path}: {status}");
            }
        }
    }
}

#[test]
fn a_schema_requires_what_every_answer_has() {
    let document = document();
    for (schema, key) in [
        ("List_Batch", "first_id"),
        ("List_Batch", "last_id"),
        ("List_File", "first_id"),
        ("List_File", "last_id"),
        ("Error", "param"),
        ("Error", "code"),
    ] {
        let schema = &document["components"]["schemas"][schema];
        let required = schema["required"].as_array().expect("a list");
        assert!(required.contains(&Value::from(key)), "{key}: {schema}");
        let types = schema["properties"][key]["type"].as_array().expect("types");
        assert!(types.contains(&Value::from("null")), "{key}: {schema}");
    }
    let model = &document["components"]["schemas"]["Model"];
    assert!(model["properties"].get("shutdown_date").is_some());
}

#[test]
fn an_endpoint_that_openai_has_deprecated_is_marked_so() {
    let document = document();
    let request = &document["components"]["schemas"]["BatchRequest"];
    let endpoints = request["properties"]["endpoint"]["anyOf"].as_array();
    for endpoint in endpoints.expect("the endpoints") {
        let is_videos = endpoint["enum"][0] == "/v1/videos";
        assert_eq!(endpoint["deprecated"] == true, is_videos, "{endpoint}");
    }
}

fn document() -> Value {
    let document = nightshift::internals::api::document().to_json();
    serde_json::from_str(&document.expect("is JSON")).expect("is JSON")
}

/// The values of an attribute in a page.
fn values<'a>(page: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!("{attribute}=\"");
    let value = |(at, _)| {
        page[at + start.len()..]
            .split('"')
            .next()
            .expect("has a beginning")
    };
    page.match_indices(&start).map(value).collect()
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let server = Server::start().await;
    let page = fetch(&server, "/docs").await;
    assert_eq!(fetch(&server, "/docs/").await, page);
    let sources = [values(&page, "src"), values(&page, "href")].concat();
    assert!(sources.len() >= 4, "{page}");
    for source in sources {
        assert!(
            source.starts_with("/docs/"),
            "{source} is not the server's own"
        );
        let asset = client_with(None)
            .get(server.url(source))
            .send()
            .await
            .expect("answers");
        assert_eq!(asset.status(), 200, "{source}");
        if std::path::Path::new(source)
            .extension()
            .is_some_and(|ext| ext.eq_ignore_ascii_case("css"))
        {
            let style = asset.text().await.expect("is text");
            assert!(!style.contains("@import"), "{source}");
            let elsewhere =
                |at| style[at..].starts_with("url(http") || style[at..].starts_with("url(//");
            assert!(
                !style.match_indices("url(").any(|(at, _)| elsewhere(at)),
                "{source}"
            );
        }
    }
    let setup = fetch(&server, "/docs/swagger-initializer.js").await;
    assert!(
        setup.contains("/openapi.json") && !setup.contains("http"),
        "{setup}"
    );
}

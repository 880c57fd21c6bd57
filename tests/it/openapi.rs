//! The OpenAPI document: committed, served, and shown by a page that needs nothing from elsewhere.

use serde_json::Value;

use crate::support::{Server, client_with};

#[test]
fn the_committed_document_is_the_programs() {
    let document = nightshift::api::openapi::document()
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
    let document = nightshift::api::openapi::document()
        .to_json()
        .expect("is JSON");
    assert_eq!(
        served,
        serde_json::from_str::<Value>(&document).expect("is JSON")
    );
    for path in [
        "/v1/files",
        "/v1/batches",
        "/v1/batches/{batch_id}/cancel",
        "/v1/models",
    ] {
        assert!(served["paths"].get(path).is_some(), "{path} is described");
    }
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
        if source.ends_with(".css") {
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

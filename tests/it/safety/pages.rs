//! Web pages that use the API from a browser.

use reqwest::{Method, Response};

use crate::support::{Server, client_with};

const ALLOWED: &str = "https://app.example";
const TOML: &str = "[server]\nallowed_origins = [\"https://app.example\"]";

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    let value = response.headers().get(name)?;
    Some(value.to_str().expect("is text"))
}

/// What a browser sends before a request with a key.
async fn preflight(server: &Server, origin: &str) -> Response {
    let request = client_with(None)
        .request(Method::OPTIONS, server.url("/v1/batches"))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,x-stainless-lang",
        );
    request.send().await.expect("answers")
}

#[tokio::test]
async fn a_page_that_the_operator_names_may_ask_with_a_key() {
    let server = Server::with(TOML).await;
    let told = preflight(&server, ALLOWED).await;
    assert_eq!(told.status(), 200);
    assert_eq!(header(&told, "access-control-allow-origin"), Some(ALLOWED));
    let methods = header(&told, "access-control-allow-methods").expect("are there");
    assert!(methods.contains("POST"), "{methods}");
    assert_eq!(
        header(&told, "access-control-allow-headers"),
        Some("authorization,x-stainless-lang")
    );
    assert_eq!(header(&told, "access-control-allow-credentials"), None);

    let asked = |client: reqwest::Client| {
        let request = client.get(server.url("/v1/batches"));
        request.header("origin", ALLOWED).send()
    };
    // Errors can be read, too.
    for (client, status) in [(server.client(), 200), (client_with(None), 401)] {
        let answer = asked(client).await.expect("answers");
        assert_eq!(answer.status(), status);
        assert_eq!(
            header(&answer, "access-control-allow-origin"),
            Some(ALLOWED)
        );
        let shown = header(&answer, "access-control-expose-headers").expect("are there");
        assert!(shown.contains("x-request-id"), "{shown}");
    }
}

#[tokio::test]
async fn no_other_page_may_read_anything() {
    let named = Server::with(TOML).await;
    let usual = Server::start().await;
    for (server, origin) in [
        (&named, "https://evil.example"),
        (&named, "https://app.example.evil.example"),
        (&named, "http://app.example"),
        (&named, "null"),
        (&usual, ALLOWED),
    ] {
        let told = preflight(server, origin).await;
        assert_eq!(
            header(&told, "access-control-allow-origin"),
            None,
            "{origin}"
        );
        let request = server.client().get(server.url("/v1/batches"));
        let answer = request
            .header("origin", origin)
            .send()
            .await
            .expect("answers");
        assert_eq!(
            header(&answer, "access-control-allow-origin"),
            None,
            "{origin}"
        );
    }
}

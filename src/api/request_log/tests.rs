use std::io::{self, Write};
use std::sync::{Arc, Mutex, Once};

use axum::http::header;
use axum::routing::get;
use axum::{Router, middleware};
use futures::{FutureExt as _, StreamExt as _, stream};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;

/// What is logged, for as long as it lives.
struct Log {
    bytes: Arc<Mutex<Vec<u8>>>,
    _begun: tracing::subscriber::DefaultGuard,
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn begin() -> Self {
        // Somebody listens in every thread and for ever. Otherwise a line that another test's
        // thread reaches at this very moment could be remembered as one that nobody wants.
        static LISTENS: Once = Once::new();
        LISTENS.call_once(|| {
            let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        });
        let bytes = Arc::new(Mutex::default());
        let sink = Arc::clone(&bytes);
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || Sink(Arc::clone(&sink)))
            .finish();
        Log {
            bytes,
            _begun: tracing::subscriber::set_default(subscriber),
        }
    }

    /// The only line so far.
    fn line(&self) -> Value {
        serde_json::from_slice(&self.bytes.lock().unwrap()).expect("one line")
    }

    fn is_empty(&self) -> bool {
        self.bytes.lock().unwrap().is_empty()
    }
}

fn router() -> Router {
    let pieces = || stream::iter(["one", "two"]).map(Ok::<_, io::Error>);
    let broken = || stream::iter([Ok("one"), Err(io::Error::other("broken"))]);
    Router::new()
        .route("/quick/{id}", get(|| async { "quick" }))
        .route("/never", get(std::future::pending::<()>))
        .route(
            "/pieces",
            get(move || async move { Body::from_stream(pieces()) }),
        )
        .route(
            "/measured",
            get(move || async move {
                ([(header::CONTENT_LENGTH, "6")], Body::from_stream(pieces()))
            }),
        )
        .route(
            "/broken",
            get(move || async move { Body::from_stream(broken()) }),
        )
        .layer(middleware::from_fn(observe))
}

fn ask(method: &str, path: &str) -> impl Future<Output = Response> {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(Body::empty()).unwrap();
    router().oneshot(request).map(Result::unwrap)
}

#[tokio::test]
async fn a_request_has_one_line_when_its_answer_has_ended() {
    for (method, path, bytes) in [
        ("GET", "/quick/file-a", 5),
        ("GET", "/pieces", 6),
        ("HEAD", "/pieces", 0),
        ("HEAD", "/measured", 0),
    ] {
        let log = Log::begin();
        let response = ask(method, path).await;
        assert!(
            method == "HEAD" || log.is_empty(),
            "its answer has not ended"
        );
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        drop(response.into_body().collect().await.unwrap());
        let line = log.line();
        assert_eq!(line["status"], 200, "{line}");
        assert_eq!(line["request.id"], id, "{line}");
        assert_eq!(line["http.path"], path, "{line}");
        assert_eq!(line["bytes"], bytes, "{line}");
        assert_eq!(line["cut_off"], Value::Null, "{line}");
    }
}

#[tokio::test]
async fn the_line_names_the_path_and_its_route() {
    let log = Log::begin();
    drop(ask("GET", "/quick/file-a?key=secret").await);
    let line = log.line();
    assert_eq!(line["http.path"], "/quick/file-a");
    assert_eq!(line["route"], "/quick/{id}");
}

#[tokio::test]
async fn a_body_that_has_its_announced_length_is_whole() {
    let log = Log::begin();
    let mut body = ask("GET", "/measured").await.into_body();
    for _ in 0..2 {
        body.frame().await.unwrap().unwrap();
    }
    drop(body);
    assert_eq!(log.line()["cut_off"], Value::Null);
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_leaves_a_line() {
    let log = Log::begin();
    assert!(ask("GET", "/never").now_or_never().is_none());
    let line = log.line();
    assert_eq!(line["status"], NOT_ANSWERED, "{line}");
    assert_eq!(line["cut_off"], true, "{line}");
    assert!(
        line["request.id"].as_str().unwrap().starts_with("req_"),
        "{line}"
    );
}

#[tokio::test]
async fn an_answer_that_is_broken_off_says_so_in_its_one_line() {
    for path in ["/pieces", "/broken"] {
        let log = Log::begin();
        let mut body = ask("GET", path).await.into_body();
        body.frame().await.unwrap().unwrap();
        if path == "/broken" {
            body.frame().await.unwrap().unwrap_err();
        }
        drop(body);
        let line = log.line();
        assert_eq!(line["status"], 200, "{line}");
        assert_eq!(line["bytes"], 3, "{line}");
        assert_eq!(line["cut_off"], true, "{line}");
    }
}

#[test]
fn a_key_in_a_path_is_not_logged() {
    assert_eq!(without_keys("/v1/files/file-a"), "/v1/files/file-a");
    assert_eq!(without_keys("/v1/models/sk-ns-x/y"), "/v1/models/***/y");
    assert_eq!(without_keys("/"), "/");
    assert!(without_keys(&"/a".repeat(10_000)).len() < 300);
}

//! Heads that never become requests.

use axum::routing::any;

use super::*;

/// What hyper says by itself, as a file may have it.
const BARE: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
const GOOD: &str = "GET /quick HTTP/1.1\r\nhost: x\r\n\r\n";

/// A head of so many bytes in all.
fn head_of(length: usize) -> String {
    let begin = "GET /quick HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-large: ";
    let rest = length - begin.len() - 4;
    format!("{begin}{}\r\n\r\n", "a".repeat(rest))
}

/// Asserts that a text is one answer as all are, with this status, and the last of its connection.
fn is_refusal(answer: &str, status: u16) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    let has = |line: &str| head.lines().any(|header| header.starts_with(line));
    for header in [
        "content-type: application/json",
        "x-request-id: req_",
        "connection: close",
        "date: ",
        &format!("content-length: {}", body.len()),
    ] {
        assert!(has(header), "{header} is missing: {head}");
    }
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["error"].as_object().expect("an object").len(), 4);
    assert_eq!(body["error"]["type"], "invalid_request_error");
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_refused_like_any_request() {
    let server = Server::start(LONG, LONG * 10).await;
    for (sent, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (
            "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
            400,
        ),
        ("GET / HTTP/3.7\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}", 400),
        (&head_of(HEAD_BYTES_MAX + 1), 431),
        (&head_of(HEAD_BYTES_MAX * 5), 431),
        (
            &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)),
            431,
        ),
        (
            &format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101)),
            431,
        ),
    ] {
        let mut stream = server.send(sent).await;
        is_refusal(&rest(&mut stream).await, status);
    }
}

#[tokio::test]
async fn a_head_of_just_the_limit_passes() {
    let server = Server::start(LONG, LONG * 10).await;
    let mut stream = server.send(&head_of(HEAD_BYTES_MAX)).await;
    let answer = rest(&mut stream).await;
    assert!(answer.ends_with("quick"), "{answer}");
}

#[tokio::test]
async fn a_broken_head_behind_good_requests_is_refused_and_they_are_answered() {
    let server = Server::start(LONG, LONG * 10).await;
    let mut stream = server.send(&format!("{GOOD}{GOOD}nonsense\r\n\r\n")).await;
    let answers = rest(&mut stream).await;
    let parts: Vec<&str> = answers.split("quick").collect();
    assert_eq!(parts.len(), 3, "{answers}");
    is_refusal(parts[2], 400);

    let mut stream = server.send(GOOD).await;
    let mut begun = [0; 15];
    stream.read_exact(&mut begun).await.unwrap();
    stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let answers = rest(&mut stream).await;
    let (_, refusal) = answers.split_once("quick").expect("the first answer");
    is_refusal(refusal, 400);
}

#[tokio::test]
async fn a_client_that_reads_late_has_all_of_its_answer_and_the_refusal() {
    let server = Server::start(LONG, LONG * 20).await;
    let post = "POST /large HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n";
    for asked in [
        "GET /large HTTP/1.1\r\nhost: x\r\n\r\n",
        // Hyper reads the rest of a body that nobody wants while it still writes the answer, and
        // then the next head.
        &format!("{post}{}", "b".repeat(10_000)),
    ] {
        let mut stream = server.send(&format!("{asked}nonsense\r\n\r\n")).await;
        // The socket's buffers are full by then, and the rest waits in the server.
        tokio::time::sleep(IDLE).await;
        let answers = rest(&mut stream).await;
        let (_, rest) = answers.split_once("\r\n\r\n").expect("a head");
        let (body, refusal) = rest.split_at(LARGE);
        assert!(body.bytes().all(|byte| byte == b'x'));
        is_refusal(refusal, 400);
    }
}

#[tokio::test]
async fn content_that_looks_like_a_bare_refusal_is_sent_as_it_is() {
    let server = Server::start(LONG, LONG * 10).await;
    for path in ["/bare", "/bare-in-chunks"] {
        let asked = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut stream = server
            .send(&format!("{asked}{asked}nonsense\r\n\r\n"))
            .await;
        let answers = rest(&mut stream).await;
        assert_eq!(answers.matches(BARE).count(), 4, "{answers}");
        let last = answers.rfind("HTTP/1.1 400").expect("the refusal");
        is_refusal(&answers[last..], 400);
    }
}

/// Larger than what a socket's buffers take.
pub(super) const LARGE: usize = 32 << 20;

pub(super) fn routes() -> Router {
    let pieces = || futures::stream::iter([Ok::<_, io::Error>(BARE), Ok(BARE)]);
    Router::new()
        .route("/large", any(|| async { "x".repeat(LARGE) }))
        .route("/bare", get(|| async { format!("{BARE}{BARE}") }))
        .route(
            "/bare-in-chunks",
            get(move || async move { Body::from_stream(pieces()) }),
        )
}

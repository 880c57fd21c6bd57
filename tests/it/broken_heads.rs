//! Requests that are none, over raw TCP: each is answered like any other, and stands in the log.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::binary::Binary;

/// Sends bytes; returns all that comes until the server closes the connection.
async fn exchange(base: &str, bytes: &[u8]) -> String {
    let address = base.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(bytes).await.expect("sends");
    let mut answer = Vec::new();
    let whole = stream.read_to_end(&mut answer);
    let whole = tokio::time::timeout(Duration::from_secs(60), whole).await;
    whole.expect("closes").expect("is not reset");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The `x-request-id` of an answer that is OpenAI's envelope with this status.
fn refused(answer: &str, status: u16) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["error"]["type"], "invalid_request_error");
    id_of(head)
}

fn id_of(head: &str) -> String {
    let mut lines = head.lines();
    let id = lines.find_map(|line| line.strip_prefix("x-request-id: "));
    id.expect("an id").to_owned()
}

/// The one line of a log in JSON that tells of this request.
fn line_of(log: &str, id: &str) -> Value {
    let mut lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "answered" && line["request.id"] == id);
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("{id} is not in the log: {log}"));
    assert_eq!(lines.next(), None, "{id} is there twice");
    line
}

#[tokio::test]
async fn a_broken_head_has_an_answer_and_a_line_in_the_log() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let server = Binary::serve(&["--database", &url], &[("NIGHTSHIFT_LOG__FORMAT", "json")]).await;

    let large = format!(
        "GET /v1/files HTTP/1.1\r\nx: {}\r\n\r\n",
        "a".repeat(300_000)
    );
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(80_000));
    let mut expected = Vec::new();
    for (sent, status) in [
        (&b"one two three four\r\n\r\n"[..], 400),
        (b"GET /v1/files HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (large.as_bytes(), 431),
        (long.as_bytes(), 431),
    ] {
        let id = refused(&exchange(&server.base, sent).await, status);
        expected.push((id, status, Value::Null));
    }
    let good = b"GET /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\nnonsense\r\n\r\n";
    let answers = exchange(&server.base, good).await;
    let second = answers.rfind("HTTP/1.1 ").expect("two answers");
    let (first, second) = answers.split_at(second);
    assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
    expected.push((id_of(first), 200, Value::from("/v1/files")));
    expected.push((refused(second, 400), 400, Value::Null));

    let log = server.terminate().await;
    for (id, status, path) in expected {
        let line = line_of(&log, &id);
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["http.path"], path, "{line}");
        assert_eq!(line["cut_off"], Value::Null, "{line}");
    }
}

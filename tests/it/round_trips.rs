//! What is uploaded comes back byte for byte, whole and in ranges.

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use crate::support::{Server, on_every_engine};

/// Where the server cuts a file into chunks: after the line that reaches a bound, of bytes, lines
/// that are not blank, or all lines. A line longer than a piece is cut inside.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNK_FILLED_LINES: usize = 512;
const CHUNK_LINES: usize = 65_536;
const PIECE_BYTES: usize = 1024 * 1024;

/// A good line with this id, made `bytes` long where that is longer.
fn line(id: &str, bytes: usize) -> String {
    let start = format!(r#"{{"custom_id":"{id}","method":"POST","url":"/v1/chat/completions","#);
    let start = start + r#""body":{"model":"sim-small","messages":[],"user":""#;
    let filling = "x".repeat(bytes.saturating_sub(start.len() + 3));
    format!("{start}{filling}\"}}}}")
}

fn lines(count: usize, bytes: usize) -> String {
    (0..count)
        .map(|n| line(&n.to_string(), bytes) + "\n")
        .collect()
}

/// Every file that is worth a look.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let (a, b) = (line("a", 0), line("b", 0));
    let short = lines(3, 0);
    let files = [
        ("one line", format!("{a}\n")),
        ("one line and no line end", a.clone()),
        ("no final line end", format!("{a}\n{b}")),
        ("CRLF", format!("{a}\r\n{b}\r\n")),
        ("CRLF and no final line end", format!("{a}\r\n{b}\r")),
        ("blank lines", format!("\n\n{a}\n\n \t\n\r\n{b}\n\n\n")),
        ("only blank lines", "\n\r\n \n".to_owned()),
        (
            "four-byte UTF-8",
            format!("{}\n{}\n", line("𝄞🌙", 0), line("𠮷", 0)),
        ),
        (
            "separators",
            format!("{}\n", line("a\u{2028}b\u{2029}c\u{85}d", 0)),
        ),
        ("a BOM", format!("\u{feff}{a}\n")),
        ("spaces around", format!("  {a}  \n\t{b}\t\n")),
        ("a line of 15 MB", format!("{}\n", line("long", 15_000_000))),
        (
            "a line of 15 MB among others",
            format!("{short}{}\n{a}\n", line("l", 15_000_000)),
        ),
        ("many short lines", lines(3 * CHUNK_FILLED_LINES + 7, 0)),
        ("just a chunk of lines", lines(CHUNK_FILLED_LINES, 0)),
        (
            "many blank lines",
            format!("{a}\n{}{b}\n", "\n".repeat(2 * CHUNK_LINES)),
        ),
        (
            "blank lines among many",
            lines(2 * CHUNK_FILLED_LINES, 0).replace('\n', "\n\n \r\n"),
        ),
        ("long lines", lines(1000, 1000)),
        ("just a chunk of bytes", line("a", CHUNK_BYTES - 1) + "\n"),
        ("a byte less", line("a", CHUNK_BYTES - 2) + "\n" + &b),
        ("just a piece", line("a", PIECE_BYTES)),
        (
            "just a piece and its line end",
            line("a", PIECE_BYTES) + "\n",
        ),
        (
            "a byte more than a piece",
            line("a", PIECE_BYTES + 1) + "\n" + &b + "\n",
        ),
        (
            "line end across pieces",
            line("a", PIECE_BYTES - 1) + "\r\n" + &b + "\r\n",
        ),
        (
            "three pieces among lines",
            format!("{short}{}\n{a}", line("l", 3 * PIECE_BYTES + 17)),
        ),
    ];
    let mut files: Vec<_> = files
        .into_iter()
        .map(|(name, text)| (name, text.into_bytes()))
        .collect();
    // Broken lines after the first fail the batch, not the upload.
    let mut bytes = format!("{a}\n").into_bytes();
    bytes.extend((0..=255_u8).chain((0..=255).rev()));
    files.push(("every byte", bytes));
    files
}

/// Where chunks and pieces end, by the rule above.
fn boundaries(content: &[u8]) -> Vec<usize> {
    let (mut ends, mut start, mut at) = (vec![0], 0, 0);
    let (mut filled, mut lines) = (0, 0);
    for line in content.split_inclusive(|&byte| byte == b'\n') {
        let pieces = (1..=line.len() / PIECE_BYTES).map(|piece| at + piece * PIECE_BYTES);
        ends.extend(pieces);
        at += line.len();
        lines += 1;
        filled += usize::from(!line.trim_ascii().is_empty());
        if at - start >= CHUNK_BYTES || filled >= CHUNK_FILLED_LINES || lines >= CHUNK_LINES {
            ends.push(at);
            (start, filled, lines) = (at, 0, 0);
        }
    }
    ends.push(content.len());
    ends
}

async fn upload(server: &Server, name: &str, content: &[u8]) -> String {
    let response = server
        .upload(content.to_vec(), "input.jsonl", "batch")
        .await;
    assert_eq!(response.status(), StatusCode::OK, "{name}");
    let file = response.bytes().await.expect("a file");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    assert_eq!(file["bytes"], content.len(), "{name}");
    let id = file["id"].as_str().expect("an id");
    server.url(&format!("/v1/files/{id}/content"))
}

async fn ask(server: &Server, method: Method, url: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = server.client().request(method, url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("an answer")
}

async fn ask_range(server: &Server, url: &str, range: &str) -> Response {
    ask(server, Method::GET, url, &[("range", range)]).await
}

#[track_caller]
fn header(response: &Response, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().expect("text"))
}

/// Asserts that the bytes are the same without printing megabytes of them.
#[track_caller]
fn assert_same(name: &str, found: &[u8], expected: &[u8]) {
    let differs = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "{name}: the first byte that differs");
    assert_eq!(found.len(), expected.len(), "{name}: the length");
}

/// Asserts an answer with the whole content.
async fn assert_whole(name: &str, response: Response, content: &[u8]) {
    assert_eq!(response.status(), StatusCode::OK, "{name}");
    assert_eq!(header(&response, CONTENT_RANGE), None, "{name}");
    let length = content.len().to_string();
    assert_eq!(header(&response, CONTENT_LENGTH), Some(&*length), "{name}");
    assert_eq!(
        header(&response, CONTENT_TYPE),
        Some("application/octet-stream"),
        "{name}"
    );
    assert_same(name, &response.bytes().await.expect("the content"), content);
}

/// Asserts an answer with the bytes from `first` to `last`, both included.
async fn assert_part(response: Response, content: &[u8], first: usize, last: usize) {
    let name = format!("{first}-{last} of {}", content.len());
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT, "{name}");
    let range = format!("bytes {first}-{last}/{}", content.len());
    assert_eq!(header(&response, CONTENT_RANGE), Some(&*range), "{name}");
    let length = (last + 1 - first).to_string();
    assert_eq!(header(&response, CONTENT_LENGTH), Some(&*length), "{name}");
    let bytes = response.bytes().await.expect("a part of the content");
    assert_same(&name, &bytes, &content[first..=last]);
}

async fn every_file_comes_back_byte_for_byte() {
    let server = Server::start().await;
    for (name, content) in files() {
        let url = upload(&server, name, &content).await;
        assert_whole(name, ask(&server, Method::GET, &url, &[]).await, &content).await;
    }
}

async fn every_range_at_a_boundary_comes_back() {
    let server = Server::start().await;
    for (name, content) in files() {
        let url = upload(&server, name, &content).await;
        let last = content.len() - 1;
        let mut edges: Vec<usize> = boundaries(&content)
            .into_iter()
            .flat_map(|end| [end.saturating_sub(1), end, end + 1])
            .filter(|&edge| edge <= last)
            .collect();
        edges.sort_unstable();
        edges.dedup();
        for &edge in &edges {
            let range = format!("bytes={edge}-{edge}");
            assert_part(ask_range(&server, &url, &range).await, &content, edge, edge).await;
            // The far ends of a large file would be gigabytes in all.
            if content.len() > 4 * PIECE_BYTES {
                continue;
            }
            let range = format!("bytes=0-{edge}");
            assert_part(ask_range(&server, &url, &range).await, &content, 0, edge).await;
            let range = format!("bytes={edge}-");
            assert_part(ask_range(&server, &url, &range).await, &content, edge, last).await;
            let range = format!("bytes=-{}", last + 1 - edge);
            assert_part(ask_range(&server, &url, &range).await, &content, edge, last).await;
        }
        // Across one boundary, and across several.
        for step in [1, 2, 5] {
            for pair in edges.windows(step + 1) {
                let (first, last) = (pair[0], pair[step]);
                let range = format!("bytes={first}-{last}");
                assert_part(
                    ask_range(&server, &url, &range).await,
                    &content,
                    first,
                    last,
                )
                .await;
            }
        }
    }
}

async fn ranges_follow_the_rules_of_http() {
    let server = Server::start().await;
    let content = lines(2000, 0).into_bytes();
    let url = upload(&server, "many lines", &content).await;
    let length = content.len();
    let last = length - 1;

    for (range, first, last) in [
        (format!("bytes=10-{}", length + 1000), 10, last),
        (format!("bytes=-{}", length + 1000), 0, last),
        (format!("bytes=0-{last}"), 0, last),
        ("bytes=0-".to_owned(), 0, last),
        ("BYTES=3-5".to_owned(), 3, 5),
    ] {
        assert_part(
            ask_range(&server, &url, &range).await,
            &content,
            first,
            last,
        )
        .await;
    }

    for range in [
        format!("bytes={length}-"),
        format!("bytes={length}-{length}"),
        "bytes=-0".into(),
    ] {
        let response = ask_range(&server, &url, &range).await;
        assert_eq!(
            response.status(),
            StatusCode::RANGE_NOT_SATISFIABLE,
            "{range}"
        );
        let unsatisfied = format!("bytes */{length}");
        assert_eq!(
            header(&response, CONTENT_RANGE),
            Some(&*unsatisfied),
            "{range}"
        );
    }

    // What is not understood is ignored, and several ranges are answered with the whole.
    for range in [
        "lines=1-2",
        "bytes=5-2",
        "bytes=a-b",
        "bytes=",
        "bytes=-",
        "bytes",
        "bytes=0-9,20-29",
        "bytes=0-0,-1",
    ] {
        assert_whole(range, ask_range(&server, &url, range).await, &content).await;
    }
}

async fn a_head_request_tells_what_a_get_would() {
    let server = Server::start().await;
    let content = lines(2000, 0).into_bytes();
    let url = upload(&server, "many lines", &content).await;
    let response = ask(&server, Method::HEAD, &url, &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(
        header(&response, CONTENT_LENGTH),
        Some(&*content.len().to_string())
    );
    assert_eq!(
        header(&response, CONTENT_TYPE),
        Some("application/octet-stream")
    );
    assert_eq!(header(&response, "accept-ranges"), Some("bytes"));
    assert_same("HEAD", &response.bytes().await.expect("no body"), b"");
    assert_whole(
        "GET after it",
        ask(&server, Method::GET, &url, &[]).await,
        &content,
    )
    .await;
}

async fn a_range_of_another_version_is_the_whole() {
    let server = Server::start().await;
    let content = lines(100, 0).into_bytes();
    let url = upload(&server, "lines", &content).await;
    let other = [("range", "bytes=1-2"), ("if-range", "\"another\"")];
    assert_whole(
        "If-Range",
        ask(&server, Method::GET, &url, &other).await,
        &content,
    )
    .await;

    let response = ask(&server, Method::GET, &url, &[]).await;
    if let Some(etag) = header(&response, "etag") {
        assert!(
            etag.starts_with('"'),
            "a file never changes, so its tag is a strong one: {etag}"
        );
        let same = [("range", "bytes=1-2"), ("if-range", etag)];
        assert_part(ask(&server, Method::GET, &url, &same).await, &content, 1, 2).await;
    }
}

async fn what_is_left_half_read_harms_nothing() {
    let server = Server::start().await;
    let content = format!("{}\n", line("long", 15_000_000)).into_bytes();
    let url = upload(&server, "long", &content).await;
    for _ in 0..8 {
        let mut response = ask(&server, Method::GET, &url, &[]).await;
        response
            .chunk()
            .await
            .expect("a chunk")
            .expect("some bytes");
    }
    assert_whole(
        "after it",
        ask(&server, Method::GET, &url, &[]).await,
        &content,
    )
    .await;
}

on_every_engine![
    every_file_comes_back_byte_for_byte,
    every_range_at_a_boundary_comes_back,
    ranges_follow_the_rules_of_http,
    a_head_request_tells_what_a_get_would,
    a_range_of_another_version_is_the_whole,
    what_is_left_half_read_harms_nothing,
];

//! Uploads that are refused or broken off.

use reqwest::StatusCode;

use super::case::Text::{Any, Holds, Null, Starts};
use super::case::{
    LINE, Request, case, check, field, file, form, get, json_of, listed, multipart, request,
};
use crate::support::{Server, on_every_engine};

const NOT_JSONL: &str = "Invalid file format for Batch API. Must be .jsonl";
const NOT_UTF8: &str = "Invalid file for Batch API. Must be utf-8 encoded";

/// A good upload but for `expires_after`.
fn expiring(anchor: &str, seconds: &str) -> Request {
    form(&[
        field("purpose", "batch"),
        field("expires_after[anchor]", anchor),
        field("expires_after[seconds]", seconds),
        file(LINE),
    ])
}

async fn an_upload_that_is_no_file_is_refused() {
    let server = Server::start().await;
    let purpose = || field("purpose", "batch");
    let bad = |name, request, holds| case(name, request, 400, (Any, Any, Holds(holds)));
    let any = |name, request| case(name, request, 400, (Any, Any, Any));
    let not_jsonl = |name, content: &str| {
        case(
            name,
            form(&[purpose(), file(content)]),
            400,
            (Null, Null, Starts(NOT_JSONL)),
        )
    };
    let good = form(&[purpose(), file(LINE)]);
    let whole = good.body.clone();
    let cut = |length: usize| multipart(&whole[..length]);
    let in_file = whole.len() - 60;
    let cases = vec![
        not_jsonl("nothing", ""),
        not_jsonl("words", "these are words\n"),
        not_jsonl(
            "a broken first line",
            &format!("{{\"custom_id\":\n{LINE}\n"),
        ),
        not_jsonl("a comma-separated table", "custom_id,body\na,b\n"),
        // The file is there before the purpose says that it is wrong.
        case(
            "nothing, before the purpose",
            form(&[file(""), purpose()]),
            400,
            (Null, Null, Starts(NOT_JSONL)),
        ),
        bad("no purpose", form(&[file(LINE)]), "purpose"),
        bad(
            "an empty purpose",
            form(&[field("purpose", ""), file(LINE)]),
            "Invalid value: ''",
        ),
        bad(
            "an unknown purpose",
            form(&[field("purpose", "nonsense"), file(LINE)]),
            "'nonsense'",
        ),
        bad(
            "an unknown purpose, last",
            form(&[file(LINE), field("purpose", "x y")]),
            "'x y'",
        ),
        bad(
            "a purpose of ours",
            form(&[field("purpose", "batch_output"), file(LINE)]),
            "'batch_output'",
        ),
        bad("no file", form(&[purpose()]), "file"),
        bad("no part at all", form(&[]), ""),
        bad(
            "a short life",
            expiring("created_at", "3599"),
            "expires_after",
        ),
        bad(
            "a long life",
            expiring("created_at", "2592001"),
            "expires_after",
        ),
        bad(
            "a life of words",
            expiring("created_at", "an hour"),
            "expires_after",
        ),
        bad(
            "a life from nowhere",
            expiring("last_used_at", "3600"),
            "'last_used_at'",
        ),
        bad(
            "a life without its beginning",
            form(&[
                purpose(),
                field("expires_after[seconds]", "3600"),
                file(LINE),
            ]),
            "expires_after",
        ),
        any("cut in the file", cut(in_file)),
        any(
            "cut before the last boundary",
            cut(whole.len() - "--XX--\r\n".len()),
        ),
        any("cut in a part's headers", cut(20)),
        any("no body", cut(0)),
        any(
            "no boundary",
            request("POST", "/v1/files").with("multipart/form-data", whole.clone()),
        ),
        any(
            "JSON",
            request("POST", "/v1/files").with("application/json", LINE),
        ),
        any(
            "no content type",
            Request {
                content_type: None,
                ..good.clone()
            },
        ),
        any(
            "another boundary",
            good.with("multipart/form-data; boundary=YY", whole.clone()),
        ),
        any("garbage", multipart(vec![0xAA; 100_000])),
        bad(
            "lines that end in LF alone",
            multipart(String::from_utf8_lossy(&whole).replace("\r\n", "\n")),
            "bare LF",
        ),
    ];
    check(&server, cases).await;
}

/// The beginnings of files that people take for JSON Lines, and what tells them apart.
async fn a_file_of_another_kind_is_told_what_it_is() {
    let server = Server::start().await;
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let pretty = "{\n  \"custom_id\": \"a\"\n}\n";
    let files: [(Vec<u8>, &str, &str); 9] = [
        (Vec::new(), NOT_JSONL, "is empty"),
        (utf16(&format!("\u{feff}{LINE}\n")), NOT_UTF8, "is UTF-16"),
        (utf16(&format!("{LINE}\n")), NOT_UTF8, "is UTF-16"),
        (
            b"{\"custom_id\":\"caf\xe9\"}\n".to_vec(),
            NOT_UTF8,
            "Windows-1252",
        ),
        (
            b"[\n{\"custom_id\":\"a\"}\n]\n".to_vec(),
            NOT_JSONL,
            "a JSON array",
        ),
        (pretty.into(), NOT_JSONL, "pretty-printed"),
        (b"custom_id,body\na,b\n".to_vec(), NOT_JSONL, "CSV"),
        (b"PK\x03\x04\x14\0\x06\0".to_vec(), NOT_JSONL, ".xlsx"),
        (b"words\n".to_vec(), NOT_JSONL, "no JSON"),
    ];
    let rows = server.rows().await;
    for (content, sentence, hint) in &files {
        let response = server.upload(content.clone(), "in.jsonl", "batch").await;
        assert_eq!(response.status(), 400, "{hint}");
        let error = json_of(response).await["error"].clone();
        let message = error["message"].as_str().expect("a message");
        assert!(message.starts_with(&format!("{sentence}. ")), "{message}");
        assert!(message.contains(hint), "{hint}: {message}");
        assert!(
            error["param"].is_null() && error["code"].is_null(),
            "{error}"
        );
        server.has_only(&rows).await;
    }
    // For any other purpose these are bytes.
    for (content, _, hint) in files {
        let response = server.upload(content, "in.jsonl", "user_data").await;
        assert_eq!(response.status(), 200, "{hint}");
    }
}

async fn a_file_over_the_limit_is_refused() {
    let server = Server::with("[limits]\nmax_file_bytes = 100_000").await;
    let just = "x".repeat(100_000 - LINE.len() - 1);
    let fits = format!("{LINE}\n{just}");
    let response = server
        .upload(fits.clone().into_bytes(), "in.jsonl", "batch")
        .await;
    assert_eq!(
        response.status(),
        StatusCode::OK,
        "the limit itself is allowed"
    );

    let mut cases = Vec::new();
    for size in [1, 1_000, 30_000_000] {
        let content = format!("{fits}{}", "x".repeat(size));
        for parts in [
            [field("purpose", "batch"), file(&content)],
            [file(&content), field("purpose", "user_data")],
        ] {
            cases.push(case("over the limit", form(&parts), 413, (Any, Null, Any)));
        }
    }
    check(&server, cases).await;
}

async fn an_upload_that_is_broken_off_leaves_nothing() {
    let server = Server::start().await;
    let (before, rows) = (listed(&server).await, server.rows().await);
    let start = format!(
        "{}--XX\r\ncontent-disposition: form-data; name=\"file\"; \
        filename=\"in.jsonl\"\r\n\r\n",
        field("purpose", "batch")
    );
    for lines in [0, 1, 5_000] {
        let sent = format!("{start}{}", format!("{LINE}\n").repeat(lines));
        let pieces = [Ok(sent), Err(std::io::Error::other("the client is gone"))];
        let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
        let sent = server
            .client()
            .post(server.url("/v1/files"))
            .header("content-type", "multipart/form-data; boundary=XX")
            .body(body)
            .send()
            .await;
        assert!(sent.is_err(), "{sent:?}");
        assert_eq!(listed(&server).await, before);
        server.has_only(&rows).await;
    }
}

async fn some_purposes_cannot_be_downloaded() {
    let server = Server::start().await;
    let mut cases = Vec::new();
    for purpose in ["assistants", "user_data", "vision"] {
        let response = server.upload(b"text".to_vec(), "a.txt", purpose).await;
        let file = json_of(response).await;
        let path = format!("/v1/files/{}/content", file["id"].as_str().expect("an id"));
        let message = format!("Not allowed to download files of purpose: {purpose}");
        cases.push(case(
            purpose,
            get(&path),
            400,
            (Null, Null, message.as_str()),
        ));
    }
    check(&server, cases).await;
}

on_every_engine![
    an_upload_that_is_no_file_is_refused,
    a_file_of_another_kind_is_told_what_it_is,
    a_file_over_the_limit_is_refused,
    an_upload_that_is_broken_off_leaves_nothing,
    some_purposes_cannot_be_downloaded,
];

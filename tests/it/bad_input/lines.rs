//! Batch files that are accepted, and fail at validation: the batch names each bad line.

use serde_json::{Value, json};

use super::case::Text::{self, Any, Holds, Null, Starts};
use super::case::{LINE, batch_but, ended, get, json_of, send};
use crate::support::{Batch, Server, on_every_engine};

const CHAT: &str = "/v1/chat/completions";
const UNPARSEABLE: &str = "This line is not parseable as valid JSON.";
const OTHER_URL: &str = "The URL provided for this request does not match the batch endpoint.";
const STREAMING: &str = "Chat Completions: Streaming is not supported in the Batch API.";
const DUPLICATE: &str = "The custom_id 'a' for this request is a duplicate of another request. \
    The custom_id parameter must be unique for each request in a batch.";
const EMPTY: &str =
    "The input file is empty. Please ensure that your batch contains at least one request.";

/// What a batch says of a line: its number (0 for none), code, param and message.
struct Finding(u64, Text, Text, Text);

fn finding(
    line: u64,
    (code, param, message): (impl Into<Text>, impl Into<Text>, impl Into<Text>),
) -> Finding {
    Finding(line, code.into(), param.into(), message.into())
}

fn unparseable(line: u64) -> Finding {
    finding(line, ("invalid_json_line", Null, Starts(UNPARSEABLE)))
}

/// A good line but for what `change` does to it, on a line of its own.
fn line(change: impl FnOnce(&mut Value)) -> String {
    let mut line: Value = serde_json::from_str(LINE).expect("JSON");
    line["custom_id"] = json!("b");
    change(&mut line);
    format!("{line}\n")
}

fn without(pointer: &'static str, key: &'static str) -> String {
    line(|line| {
        let holder = line.pointer_mut(pointer).and_then(Value::as_object_mut);
        holder.expect("an object").remove(key);
    })
}

/// Asserts that a batch failed before anything of it ran, and found just this.
#[track_caller]
fn assert_failed(name: &str, batch: &Batch, expected: &[Finding]) {
    assert_eq!(batch.status, "failed", "{name}: {batch}");
    assert_eq!(
        batch["request_counts"],
        json!({"total": 0, "completed": 0, "failed": 0})
    );
    assert!(
        batch["failed_at"].as_i64() >= batch["created_at"].as_i64(),
        "{name}: {batch}"
    );
    assert!(batch["expires_at"].is_i64(), "{name}: {batch}");
    for absent in ["in_progress_at", "output_file_id", "error_file_id", "usage"] {
        assert!(batch[absent].is_null(), "{name}: {absent} in {batch}");
    }
    assert_eq!(batch["errors"]["object"], "list");
    let found = batch["errors"]["data"]
        .as_array()
        .expect("a list of errors");
    for (found, Finding(line, code, param, message)) in found.iter().zip(expected) {
        let right = found.as_object().is_some_and(|keys| keys.len() == 4)
            && found["line"].as_u64().unwrap_or(0) == *line
            && code.accepts(&found["code"])
            && param.accepts(&found["param"])
            && message.accepts(&found["message"]);
        assert!(
            right,
            "{name}: {found}, not {line} {code:?} {param:?} {message:?}"
        );
    }
    let lines: Vec<u64> = expected.iter().map(|Finding(line, ..)| *line).collect();
    assert_eq!(
        found.len(),
        expected.len(),
        "{name}: {found:?}\n    not just lines {lines:?}"
    );
}

/// Uploads the file, makes a batch of it, and asserts that it failed with just these findings.
async fn check(server: &Server, name: &str, content: impl AsRef<[u8]>, expected: &[Finding]) {
    let batch = server.failed_batch(content, CHAT).await;
    assert_failed(name, &batch, expected);
    let path = format!("/v1/files/{}", batch.input_file_id);
    let file = send(server, &get(&path)).await;
    assert_eq!(
        file.status(),
        200,
        "{name}: the file stays beside its failed batch"
    );
}

async fn every_bad_line_is_named() {
    let server = Server::start().await;
    let missing = |key: &'static str, param: &'static str| {
        let message = format!("Missing required parameter: '{key}'.");
        finding(2, ("missing_required_parameter", param, message.as_str()))
    };
    let wrong = |param: &'static str| finding(2, (Any, param, Any));
    let unknown = "The provided model 'x' is not supported by the Batch API.";
    let rows: Vec<(&str, String, Finding)> = vec![
        ("no JSON", "not json\n".into(), unparseable(2)),
        (
            "half a line",
            format!("{}\n", &LINE[..LINE.len() - 1]),
            unparseable(2),
        ),
        ("two objects", format!("{LINE} {LINE}\n"), unparseable(2)),
        ("a comma after it", format!("{LINE},\n"), unparseable(2)),
        (
            "a trailing comma",
            "{\"custom_id\":\"b\",}\n".into(),
            unparseable(2),
        ),
        (
            "a control character",
            "{\"custom_id\":\"\t\"}\n".into(),
            unparseable(2),
        ),
        (
            "NaN",
            format!("{}\n", LINE.replace("[]", "NaN")),
            unparseable(2),
        ),
        (
            "an array",
            "[1]\n".into(),
            finding(2, (Any, Any, Holds("It is an array"))),
        ),
        (
            "a number",
            "7\n".into(),
            finding(2, (Any, Any, Holds("It is an integer"))),
        ),
        ("null", "null\n".into(), finding(2, (Any, Any, Any))),
        (
            "no custom_id",
            without("", "custom_id"),
            missing("custom_id", "custom_id"),
        ),
        (
            "no method",
            without("", "method"),
            missing("method", "method"),
        ),
        ("no url", without("", "url"), missing("url", "url")),
        ("no body", without("", "body"), missing("body", "body")),
        (
            "no model",
            without("/body", "model"),
            missing("model", "body.model"),
        ),
        (
            "no messages",
            without("/body", "messages"),
            missing("messages", "body.messages"),
        ),
        (
            "a numeric custom_id",
            line(|line| line["custom_id"] = json!(7)),
            wrong("custom_id"),
        ),
        (
            "a null custom_id",
            line(|line| line["custom_id"] = Value::Null),
            wrong("custom_id"),
        ),
        (
            "GET",
            line(|line| line["method"] = json!("GET")),
            wrong("method"),
        ),
        (
            "a body of text",
            line(|line| line["body"] = json!("text")),
            wrong("body"),
        ),
        (
            "a body in an array",
            line(|line| line["body"] = json!([{}])),
            wrong("body"),
        ),
        (
            "a model by number",
            line(|line| line["body"]["model"] = json!(7)),
            wrong("body.model"),
        ),
        (
            "a duplicate",
            format!("{LINE}\n"),
            finding(2, ("duplicate_custom_id", "custom_id", DUPLICATE)),
        ),
        (
            "a duplicate by another spelling",
            format!("{}\n", LINE.replace("\"a\"", "\"\\u0061\"")),
            finding(2, ("duplicate_custom_id", "custom_id", DUPLICATE)),
        ),
        (
            "another endpoint",
            line(|line| line["url"] = json!("/v1/embeddings")),
            finding(
                2,
                (
                    "invalid_url",
                    "url",
                    Holds("'/v1/embeddings', and the batch's"),
                ),
            ),
        ),
        (
            "an endpoint that is not",
            line(|line| line["url"] = json!("https://example.com/")),
            finding(
                2,
                ("invalid_url", "url", Holds("'https://example.com/', and")),
            ),
        ),
        (
            "streaming",
            line(|line| line["body"]["stream"] = json!(true)),
            finding(2, ("streaming_unsupported", "body.stream", STREAMING)),
        ),
        (
            "an unknown model",
            line(|line| line["body"]["model"] = json!("x")),
            finding(2, ("model_not_found", "body.model", unknown)),
        ),
    ];
    for (name, bad, expected) in rows {
        check(&server, name, format!("{LINE}\n{bad}"), &[expected]).await;
    }
}

async fn several_bad_lines_are_named_at_once() {
    let server = Server::start().await;
    // Blank lines count as lines, and a carriage return belongs to the line end.
    let content = format!(
        "{LINE}\r\n\r\n \n{}not json\r\n{LINE}\n\n{}",
        without("", "custom_id"),
        line(|line| line["url"] = json!("/v1/embeddings")),
    );
    let expected = [
        finding(4, ("missing_required_parameter", "custom_id", Any)),
        unparseable(5),
        finding(6, ("duplicate_custom_id", "custom_id", DUPLICATE)),
        finding(8, ("invalid_url", "url", Starts(OTHER_URL))),
    ];
    check(&server, "several", content, &expected).await;
}

async fn the_first_hundred_of_ten_thousand_bad_lines_are_named() {
    let server = Server::start().await;
    let content = format!("{LINE}\n{}", "not json\n".repeat(10_000));
    let mut expected: Vec<Finding> = (2..102).map(unparseable).collect();
    expected.push(finding(0, ("too_many_errors", Null, Any)));
    check(&server, "ten thousand", content, &expected).await;

    let content = format!("{LINE}\n").repeat(10_000);
    let duplicate = |n| finding(n, ("duplicate_custom_id", "custom_id", DUPLICATE));
    let mut expected: Vec<Finding> = (2..102).map(duplicate).collect();
    expected.push(finding(0, ("too_many_errors", Null, Any)));
    check(&server, "ten thousand of one", content, &expected).await;
}

async fn bytes_that_are_no_json_are_refused_line_by_line() {
    let server = Server::start().await;
    check(
        &server,
        "a BOM",
        format!("\u{feff}{LINE}\n"),
        &[unparseable(1)],
    )
    .await;

    for invalid in [
        &b"\xFF"[..],
        b"\xC3\x28",
        b"\xED\xA0\x80",
        b"\xF8\x88\x80\x80\x80",
    ] {
        let mut content = format!("{LINE}\n").into_bytes();
        content.extend_from_slice(LINE.replace("\"a\"", "\"b\"").as_bytes());
        let at = content.len() - 4;
        content.splice(at..at, invalid.iter().copied());
        content = [&content[..], b"\n"].concat();
        check(
            &server,
            "invalid UTF-8 outside a text",
            content,
            &[unparseable(2)],
        )
        .await;

        let mut content = format!("{LINE}\n{{\"custom_id\":\"").into_bytes();
        content.extend_from_slice(invalid);
        content.extend_from_slice(&LINE.as_bytes()[r#"{"custom_id":"a"#.len()..]);
        check(
            &server,
            "invalid UTF-8 in a text",
            content,
            &[unparseable(2)],
        )
        .await;
    }

    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
        let deep = LINE.replace("\"a\"", "\"b\"").replace("[]", &nested);
        check(
            &server,
            "10,000 deep",
            format!("{LINE}\n{deep}\n"),
            &[unparseable(2)],
        )
        .await;
        let unclosed = format!("{LINE}\n{}\n", open.repeat(10_000));
        check(
            &server,
            "10,000 deep and unclosed",
            unclosed,
            &[unparseable(2)],
        )
        .await;
    }
}

async fn a_line_of_twenty_megabytes_is_too_long() {
    let server = Server::start().await;
    let long = LINE
        .replace("\"a\"", "\"b\"")
        .replace("[]", &format!("[{:?}]", "x".repeat(20_000_000)));
    let too_long = || finding(2, ("line_too_long", Any, Any));
    let after = LINE.replace("\"a\"", "\"c\"");
    for content in [
        format!("{LINE}\n{long}\n{after}\n"),
        format!("{LINE}\n{long}"),
    ] {
        check(&server, "20 MB", content, &[too_long()]).await;
    }
    // It need not be JSON: nobody reads that far.
    let content = format!("{LINE}\n{}\nnot json\n", "x".repeat(20_000_000));
    check(
        &server,
        "20 MB of nothing",
        content,
        &[too_long(), unparseable(3)],
    )
    .await;
    // Line 3 repeats line 1, and line 5 repeats line 4.
    let repeats = |n| finding(n, ("duplicate_custom_id", "custom_id", Any));
    let content = format!("{LINE}\n{long}\n{LINE}\n{after}\n{after}\n");
    let expected = [too_long(), repeats(3), repeats(5)];
    check(&server, "20 MB between duplicates", content, &expected).await;
}

async fn a_file_of_blank_lines_is_empty() {
    let server = Server::start().await;
    for content in ["\n", "\r\n\r\n", " \n\t\n\n"] {
        check(
            &server,
            "blank",
            content,
            &[finding(0, ("empty_file", Null, EMPTY))],
        )
        .await;
    }
}

async fn too_many_lines_or_models_are_refused() {
    let server = Server::with("[limits]\nmax_requests_per_batch = 3").await;
    let content: String = (0..4)
        .map(|n| line(|line| line["custom_id"] = json!(n.to_string())))
        .collect();
    check(
        &server,
        "four",
        content,
        &[finding(0, ("too_many_requests", Any, Any))],
    )
    .await;

    for (max, toml) in [(100, ""), (3, "[limits]\nmax_models_per_file = 3")] {
        let server = Server::with(toml).await;
        let names_too_many = async |models: usize| {
            let lines: String = (0..models)
                .map(|n| {
                    line(|line| {
                        line["custom_id"] = json!(n.to_string());
                        line["body"]["model"] = json!(format!("model-{n}"));
                    })
                })
                .collect();
            // Beside that, each model is unknown.
            let batch = server.failed_batch(lines, CHAT).await;
            let found = batch["errors"]["data"].as_array();
            let mut found = found.expect("a list of errors").iter();
            found.any(|e| e["code"] == "too_many_models" && e["line"].is_null())
        };
        assert!(names_too_many(max + 1).await, "{}", max + 1);
        assert!(!names_too_many(max).await, "{max}");
    }
}

async fn a_file_that_is_no_batch_file_cannot_be_found() {
    let server = Server::start().await;
    let response = server
        .upload(format!("{LINE}\n").into_bytes(), "a.jsonl", "user_data")
        .await;
    let wrong_purpose = json_of(response).await;
    let none = || Starts("Cannot find file ");
    let purpose =
        || Holds("access to it. There is a file of that id, but its purpose is 'user_data'");
    for (id, message) in [
        (json!("file-x"), none()),
        (json!(""), none()),
        (wrong_purpose["id"].clone(), none()),
        (wrong_purpose["id"].clone(), purpose()),
    ] {
        let created = send(&server, &batch_but("input_file_id", id)).await;
        let failed = ended(&server, created).await;
        let expected = finding(0, ("invalid_request", "file_id", message));
        assert_failed("no such file", &failed, &[expected]);
    }
}

async fn what_only_looks_wrong_is_accepted() {
    let server = Server::start().await;
    let accepted = [
        line(|line| line["body"]["stream"] = json!(false)),
        line(|line| line["body"]["metadata"] = json!({"custom_id": "a", "url": "/v1/x"})),
        line(|line| line["extra"] = json!({"unknown": true})),
        line(|line| line["custom_id"] = json!("A")),
        line(|line| line["custom_id"] = json!("x".repeat(10_000))),
        LINE.replace("\"a\"", "\"b\"").replace(':', " :\t"),
        LINE.replace("\"a\"", "\"b\"")
            .replace("custom_id", "custom\\u005fid"),
    ];
    for good in accepted {
        let response = server
            .upload(format!("{LINE}\n{good}").into_bytes(), "a", "batch")
            .await;
        let file = json_of(response).await;
        let created = send(&server, &batch_but("input_file_id", file["id"].clone())).await;
        let batch = ended(&server, created).await;
        assert_eq!(batch.status, "completed", "{good}: {batch}");
    }
}

on_every_engine![
    every_bad_line_is_named,
    several_bad_lines_are_named_at_once,
    the_first_hundred_of_ten_thousand_bad_lines_are_named,
    bytes_that_are_no_json_are_refused_line_by_line,
    a_line_of_twenty_megabytes_is_too_long,
    a_file_of_blank_lines_is_empty,
    too_many_lines_or_models_are_refused,
    a_file_that_is_no_batch_file_cannot_be_found,
    what_only_looks_wrong_is_accepted,
];

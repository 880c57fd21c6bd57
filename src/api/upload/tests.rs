use std::convert::Infallible;
use std::time::Duration;

use axum::http::Request as HttpRequest;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::api::auth::Auth;
use crate::api::tests::{Answer, TestApi};

const LINE: &str = "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\
                    \"body\":{\"model\":\"m\",\"input\":\"x\"}}\n";

/// A part of a form, by its name: a text, or a file with its name.
#[derive(Clone, Copy)]
enum Field<'a> {
    Text(&'a str, &'a str),
    File(&'a str, &'a [u8]),
}
use Field::{File, Text};

fn form(fields: &[Field]) -> Vec<u8> {
    let mut body = Vec::new();
    for field in fields {
        body.extend_from_slice(b"--b-o-u-n-d\r\nContent-Disposition: form-data; ");
        match field {
            Text(name, text) => {
                body.extend_from_slice(format!("name=\"{name}\"\r\n\r\n{text}").as_bytes());
            }
            File(name, bytes) => {
                let head = format!(
                    "name=\"file\"; filename=\"{name}\"\r\n\
                     Content-Type: application/octet-stream\r\n\r\n"
                );
                body.extend_from_slice(head.as_bytes());
                body.extend_from_slice(bytes);
            }
        }
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--b-o-u-n-d--\r\n");
    body
}

fn post(headers: &[(&str, &str)], body: Body) -> HttpRequest<Body> {
    let mut request = HttpRequest::post("/v1/files");
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "multipart/form-data; boundary=b-o-u-n-d");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

/// A body that comes in pieces of a length, without saying how long it will be.
fn pieces(body: &[u8], length: usize) -> Body {
    let pieces: Vec<_> = body
        .chunks(length)
        .map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        .collect();
    Body::from_stream(stream::iter(pieces))
}

async fn upload(test: &TestApi, fields: &[Field<'_>]) -> Answer {
    test.send(post(&[], Body::from(form(fields)))).await
}

fn error(answer: &Answer) -> Value {
    answer.json()["error"].clone()
}

async fn content(test: &TestApi, id: &Value) -> Vec<u8> {
    let path = format!("/v1/files/{}/content", id.as_str().unwrap());
    let answer = test
        .send(crate::api::tests::request("GET", &path, &[], ""))
        .await;
    assert_eq!(answer.status, 200);
    answer.body
}

async fn no_files(test: &TestApi) {
    let answer = test
        .send(crate::api::tests::request("GET", "/v1/files", &[], ""))
        .await;
    assert_eq!(answer.json()["data"], json!([]));
}

#[tokio::test]
async fn the_answer_is_a_file_with_every_key() {
    let test = TestApi::new(Auth::Off).await;
    let file = File("in put é%22.jsonl", LINE.as_bytes());
    let answer = upload(&test, &[file, Text("purpose", "batch")]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    let mut object = answer.json();
    let id = object["id"].take();
    assert!(id.as_str().unwrap().starts_with("file-"), "{id}");
    let created_at = object["created_at"].as_i64().unwrap();
    assert_eq!(
        object,
        json!({
            "id": null, "object": "file", "bytes": LINE.len(), "created_at": created_at,
            "expires_at": created_at + 2_592_000, "filename": "in put é\".jsonl",
            "purpose": "batch", "status": "processed", "status_details": null,
        })
    );
    assert_eq!(content(&test, &id).await, LINE.as_bytes());
}

#[tokio::test]
async fn the_forms_of_java_and_dotnet_are_read() {
    let test = TestApi::new(Auth::Off).await;
    for (boundary, disposition, filename) in [
        // JavaMail and what is built on it: a boundary with `=`, and no quotes.
        ("----=_Part_0_1", "name=file; filename=in.jsonl", "in.jsonl"),
        // .NET's MultipartFormDataContent.
        (
            "\"9f2e6a3c\"",
            "name=file; filename=\"=?utf-8?B?ZMOpYnV0Lmpzb25s?=\"; \
             filename*=utf-8''d%C3%A9but.jsonl",
            "début.jsonl",
        ),
    ] {
        let line = boundary.trim_matches('"');
        let part = |disposition: &str, content: &str| {
            format!(
                "--{line}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n"
            )
        };
        let file = part(disposition, LINE);
        let body = format!("{}{file}--{line}--\r\n", part("name=purpose", "batch"));
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let request = post(&[("content-type", &content_type)], Body::from(body));
        let answer = test.send(request).await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        assert_eq!(answer.json()["filename"], filename);
    }
}

#[tokio::test]
async fn a_file_is_kept_as_long_as_was_asked() {
    let test = TestApi::new(Auth::Off).await;
    let file = File("a", LINE.as_bytes());
    for purpose in [
        "assistants",
        "batch",
        "fine-tune",
        "vision",
        "user_data",
        "evals",
    ] {
        let object = upload(&test, &[Text("purpose", purpose), file])
            .await
            .json();
        let kept = object["expires_at"]
            .as_i64()
            .map(|at| at - object["created_at"].as_i64().unwrap());
        assert_eq!(kept, (purpose == "batch").then_some(2_592_000), "{purpose}");
        assert_eq!(object["purpose"], purpose);
    }
    let (anchor, seconds) = ("expires_after[anchor]", "expires_after[seconds]");
    let fields = [
        file,
        Text(seconds, "3600"),
        Text("purpose", "evals"),
        Text(anchor, "created_at"),
    ];
    let object = upload(&test, &fields).await.json();
    let created_at = object["created_at"].as_i64().unwrap();
    assert_eq!(object["expires_at"], created_at + 3600);
}

#[tokio::test]
async fn a_form_that_says_the_wrong_thing_is_refused() {
    let test = TestApi::new(Auth::Off).await;
    let file = File("a", LINE.as_bytes());
    let purpose = Text("purpose", "batch");
    let (anchor, seconds) = ("expires_after[anchor]", "expires_after[seconds]");
    for (fields, code, param) in [
        (vec![], "missing_required_parameter", "file"),
        (vec![purpose], "missing_required_parameter", "file"),
        (vec![file], "missing_required_parameter", "purpose"),
        (
            vec![file, Text("purpose", "batch_output")],
            "invalid_value",
            "purpose",
        ),
        (vec![file, Text("purpose", "")], "invalid_value", "purpose"),
        (vec![file, purpose, purpose], "invalid_value", "purpose"),
        (vec![purpose, file, file], "invalid_value", "file"),
        (
            vec![purpose, file, Text(seconds, "3600")],
            "missing_required_parameter",
            anchor,
        ),
        (
            vec![purpose, file, Text(anchor, "created_at")],
            "missing_required_parameter",
            seconds,
        ),
        (
            vec![purpose, file, Text(anchor, "now")],
            "invalid_value",
            anchor,
        ),
        (
            vec![purpose, file, Text(seconds, "3599")],
            "integer_below_min_value",
            seconds,
        ),
        (
            vec![purpose, file, Text(seconds, "2592001")],
            "integer_above_max_value",
            seconds,
        ),
        (
            vec![purpose, file, Text(seconds, "99999999999999999999")],
            "integer_above_max_value",
            seconds,
        ),
        (
            vec![purpose, file, Text(seconds, "+3600")],
            "invalid_type",
            seconds,
        ),
        (
            vec![purpose, file, Text(seconds, "1 h")],
            "invalid_type",
            seconds,
        ),
    ] {
        let answer = upload(&test, &fields).await;
        assert_eq!(answer.status, 400);
        let error = error(&answer);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!(code), &json!(param)),
            "{error}"
        );
    }
    no_files(&test).await;
}

#[tokio::test]
async fn a_name_that_is_too_long_is_refused_before_the_file_is_stored() {
    let test = TestApi::new(Auth::Off).await;
    let send = async |name: &str| {
        let fields = [Text("purpose", "batch"), File(name, LINE.as_bytes())];
        upload(&test, &fields).await
    };
    let answer = send(&"é".repeat(256)).await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        error(&answer),
        json!({
            "message": "Invalid 'file': string too long. Expected a string with maximum length \
                255, but got a string with length 256 instead.",
            "type": "invalid_request_error", "param": "file", "code": "string_above_max_length",
        })
    );
    no_files(&test).await;
    let longest = "é".repeat(255);
    assert_eq!(send(&longest).await.json()["filename"], longest);
}

#[tokio::test]
async fn what_a_client_says_beside_the_file_is_ignored_within_bounds() {
    let test = TestApi::new(Auth::Off).await;
    let file = File("", LINE.as_bytes());
    let purpose = Text("purpose", "batch");
    let extra = Text("extra", "x");
    let answer = upload(&test, &[extra, file, extra, purpose]).await;
    assert_eq!(answer.json()["filename"], "upload");
    let long = "x".repeat(100_000);
    let answer = upload(&test, &[file, purpose, Text("extra", &long)]).await;
    assert_eq!(answer.status, 400);
    let many: Vec<_> = [file, purpose].into_iter().chain([extra; 100]).collect();
    assert_eq!(upload(&test, &many).await.status, 400);
}

#[tokio::test]
async fn a_batch_file_must_be_jsonl() {
    let test = TestApi::new(Auth::Off).await;
    for bytes in ["", "no json\n"] {
        let file = File("a.jsonl", bytes.as_bytes());
        for fields in [
            [file, Text("purpose", "batch")],
            [Text("purpose", "batch"), file],
        ] {
            let answer = upload(&test, &fields).await;
            assert_eq!(answer.status, 400);
            let error = error(&answer);
            let sentence = "Invalid file format for Batch API. Must be .jsonl. ";
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with(sentence), "{message}");
            assert_eq!(
                error,
                json!({
                    "message": message,
                    "type": "invalid_request_error", "param": null, "code": null,
                })
            );
        }
        assert_eq!(
            upload(&test, &[file, Text("purpose", "evals")])
                .await
                .status,
            200
        );
    }
}

#[tokio::test]
async fn a_body_that_is_no_whole_form_is_refused() {
    let test = TestApi::new(Auth::Off).await;
    let whole = form(&[Text("purpose", "batch"), File("a", LINE.as_bytes())]);
    for end in 0..whole.len() - 4 {
        let answer = test.send(post(&[], pieces(&whole[..end], 50))).await;
        assert_eq!(answer.status, 400, "{end}");
        assert!(
            error(&answer)["message"]
                .as_str()
                .unwrap()
                .contains("too early"),
            "{end}"
        );
    }
    for content_type in [
        "application/json",
        "multipart/form-data",
        "",
        "multipart/mixed; boundary=b",
    ] {
        let headers = [("content-type", content_type)];
        let answer = test.send(post(&headers, Body::from(whole.clone()))).await;
        assert_eq!(answer.status, 400, "{content_type}");
        assert!(
            error(&answer)["message"]
                .as_str()
                .unwrap()
                .contains("Content-Type")
        );
    }
    let broken = stream::iter([
        Ok(Bytes::copy_from_slice(&whole[..200])),
        Err(std::io::Error::other("reset")),
    ]);
    let answer = test.send(post(&[], Body::from_stream(broken))).await;
    assert_eq!(answer.status, 400);
    no_files(&test).await;
}

#[tokio::test]
async fn what_is_no_part_is_not_gathered_for_ever() {
    let test = TestApi::new(Auth::Off).await;
    let head = "--b-o-u-n-d\r\nX: ";
    for begin in ["", head] {
        let endless = stream::iter([Bytes::from(begin)])
            .chain(stream::repeat(Bytes::from_static(&[b'x'; 10_000])).take(20_000))
            .map(Ok::<_, Infallible>);
        let answer = test.send(post(&[], Body::from_stream(endless))).await;
        assert_eq!(answer.status, 400, "{begin:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused_and_read_to_its_end() {
    let test = TestApi::new(Auth::Off).await;
    let mut limits = (*test.api.limits.get()).clone();
    limits.max_file_bytes = 1_000_000;
    test.api.limits.replace(limits);
    let exact = vec![b'x'; 1_000_000];
    let answer = upload(&test, &[Text("purpose", "evals"), File("a", &exact)]).await;
    assert_eq!(answer.status, 200);

    let (read, counted) = (
        std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)),
        30_000_000,
    );
    let large = form(&[Text("purpose", "evals"), File("a", &vec![b'x'; counted])]);
    for headers in [&[][..], &[("content-length", "30000000")]] {
        read.store(0, std::sync::atomic::Ordering::Relaxed);
        let counter = std::sync::Arc::clone(&read);
        let frames = stream::iter(
            large
                .chunks(100_000)
                .map(Bytes::copy_from_slice)
                .collect::<Vec<_>>(),
        )
        .map(move |bytes| {
            counter.fetch_add(bytes.len(), std::sync::atomic::Ordering::Relaxed);
            Ok::<_, Infallible>(bytes)
        });
        let answer = test.send(post(headers, Body::from_stream(frames))).await;
        assert_eq!(answer.status, 413);
        assert_eq!(answer.headers["x-should-retry"], "false");
        assert_eq!(read.load(std::sync::atomic::Ordering::Relaxed), large.len());
    }
}

#[tokio::test]
async fn a_request_with_a_key_that_is_none_is_read_to_its_end() {
    let test = TestApi::new(Auth::Off).await;
    for path in ["/v1/files", "/v1/batches"] {
        let (tell, is_read) = tokio::sync::oneshot::channel();
        let end = stream::once(async move {
            tell.send(()).unwrap();
            Ok::<_, Infallible>(Bytes::from_static(b"}"))
        });
        let begin = stream::iter([Ok(Bytes::from_static(b"{"))]);
        let mut request = post(
            &[("idempotency-key", "")],
            Body::from_stream(begin.chain(end)),
        );
        *request.uri_mut() = path.parse().unwrap();
        let answer = test.send(request).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(is_read.await.is_ok(), "{path}: the body is read");
    }
}

#[tokio::test]
async fn a_key_makes_the_same_upload_once() {
    let test = TestApi::new(Auth::Off).await;
    let key = ("idempotency-key", "k-1");
    let send = async |fields: &[Field<'_>]| test.send(post(&[key], Body::from(form(fields)))).await;
    let (file, purpose) = (File("a", LINE.as_bytes()), Text("purpose", "batch"));
    // A failure is not remembered.
    assert_eq!(send(&[file]).await.status, 400);
    let first = send(&[file, purpose]).await;
    assert_eq!(first.status, 200);
    let again = send(&[purpose, Text("extra", "x"), file]).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    for other in [
        [File("b", LINE.as_bytes()), purpose],
        [File("a", b"{}\n"), purpose],
        [file, Text("purpose", "evals")],
    ] {
        let answer = send(&other).await;
        assert_eq!(answer.status, 400);
        assert_eq!(error(&answer)["code"], "idempotency_key_reused");
    }
    let list = test
        .send(crate::api::tests::request("GET", "/v1/files", &[], ""))
        .await;
    assert_eq!(list.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_whose_upload_is_under_way_is_refused_until_it_ends() {
    let test = TestApi::new(Auth::Off).await;
    let key = ("idempotency-key", "k-1");
    let whole = form(&[Text("purpose", "batch"), File("a", LINE.as_bytes())]);
    let (tell, is_read) = tokio::sync::oneshot::channel();
    let begin = Bytes::copy_from_slice(&whole[..150]);
    let begun = stream::once(async move {
        // A body is read once its key is claimed.
        tell.send(()).unwrap();
        Ok::<_, Infallible>(begin)
    });
    let body = Body::from_stream(begun.chain(stream::pending()));
    let router = crate::api::router(test.api.clone());
    let first = tokio::spawn(tower::ServiceExt::oneshot(router, post(&[key], body)));
    is_read.await.unwrap();
    let send = async || test.send(post(&[key], Body::from(whole.clone()))).await;
    let answer = send().await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.headers["x-should-retry"], "true");
    // The client goes away.
    first.abort();
    // Cut off, as it was meant to be.
    let _ = first.await;
    for _ in 0..6000 {
        if send().await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the key is still claimed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_form_is_read_however_it_is_cut(
        length in 1_usize..2000,
        lines in 1_usize..60,
        file_first in any::<bool>(),
    ) {
        let mut bytes = LINE.repeat(lines).into_bytes();
        // Nearly a boundary, over and over.
        bytes.extend(b"\r\n--b-o-u-n\r\n--b-o-u-n-\r\n\r--".repeat(lines));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let test = TestApi::new(Auth::Off).await;
            let (file, purpose) = (File("a", &bytes), Text("purpose", "batch"));
            let fields = if file_first { [file, purpose] } else { [purpose, file] };
            let answer = test.send(post(&[], pieces(&form(&fields), length))).await;
            assert_eq!(answer.status, 200);
            assert_eq!(content(&test, &answer.json()["id"]).await, bytes);
        });
    }
}

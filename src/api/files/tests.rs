use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::api::auth::Auth;
use crate::api::tests::{Answer, TestApi};

const BYTES: &[u8] = b"0123456789";

async fn upload(test: &TestApi, purpose: &str, name: &str, bytes: &[u8]) -> String {
    let mut form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n"
    )
    .into_bytes();
    form.extend_from_slice(bytes);
    form.extend_from_slice(b"\r\n--b--\r\n");
    let request = Request::post("/v1/files")
        .header("content-type", "multipart/form-data; boundary=b")
        .body(Body::from(form))
        .unwrap();
    let answer = test.send(request).await;
    assert_eq!(answer.status, 200);
    answer.json()["id"].as_str().unwrap().to_owned()
}

async fn ask(test: &TestApi, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    test.send(crate::api::tests::request(method, path, headers, ""))
        .await
}

fn ids(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap().iter();
    data.map(|file| file["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn files_are_listed_page_by_page() {
    let test = TestApi::new(Auth::Off).await;
    let mut files = Vec::new();
    for purpose in ["evals", "user_data", "evals", "evals"] {
        files.push(upload(&test, purpose, "a", BYTES).await);
        test.api.clock.advance_ms(10);
    }
    files.reverse();
    let whole = ask(&test, "GET", "/v1/files?purpose=", &[]).await.json();
    assert_eq!(ids(&whole), files);
    assert_eq!(
        (
            &whole["object"],
            &whole["first_id"],
            &whole["last_id"],
            &whole["has_more"]
        ),
        (
            &json!("list"),
            &json!(files[0]),
            &json!(files[3]),
            &json!(false)
        )
    );
    // A deleted file keeps its place.
    ask(&test, "DELETE", &format!("/v1/files/{}", files[1]), &[]).await;
    let path = format!("/v1/files?limit=1&after={}", files[1]);
    let page = ask(&test, "GET", &path, &[]).await.json();
    assert_eq!(
        (ids(&page), &page["has_more"]),
        (vec![files[2].as_str()], &json!(true))
    );
    let page = ask(&test, "GET", "/v1/files?order=asc&purpose=evals", &[])
        .await
        .json();
    assert_eq!(ids(&page), [&files[3], &files[0]]);
    let page = ask(&test, "GET", "/v1/files?purpose=fine-tune-results", &[])
        .await
        .json();
    assert_eq!((ids(&page), &page["last_id"]), (vec![], &Value::Null));
    for (query, status) in [
        ("limit=0", 400),
        ("limit=10001", 400),
        ("order=x", 400),
        ("after=x", 404),
    ] {
        let answer = ask(&test, "GET", &format!("/v1/files?{query}"), &[]).await;
        assert_eq!(answer.status, status, "{query}");
    }
}

#[tokio::test]
async fn a_deleted_or_expired_file_is_not_found() {
    let test = TestApi::new(Auth::Off).await;
    let id = upload(&test, "evals", "a", BYTES).await;
    let path = format!("/v1/files/{id}");
    assert_eq!(ask(&test, "GET", &path, &[]).await.json()["id"], json!(id));
    let deleted = ask(&test, "DELETE", &path, &[]).await;
    assert_eq!(
        deleted.json(),
        json!({"id": id, "object": "file", "deleted": true})
    );
    let expired = upload(&test, "batch", "a", b"{}\n").await;
    test.api.clock.advance_ms(31 * 24 * 3600 * 1000);
    for id in [id, expired, "file-x".to_owned()] {
        let path = format!("/v1/files/{id}");
        for (method, path) in [
            ("GET", path.clone()),
            ("DELETE", path.clone()),
            ("GET", format!("{path}/content")),
        ] {
            let answer = ask(&test, method, &path, &[]).await;
            assert_eq!(answer.status, 404, "{method} {path}");
            let error = answer.json()["error"].clone();
            assert_eq!(error["message"], format!("No such File object: {id}"));
            assert_eq!(error["param"], "id");
        }
    }
}

#[tokio::test]
async fn content_is_given_whole_or_in_part() {
    let test = TestApi::new(Auth::Off).await;
    let id = upload(&test, "evals", "é.jsonl", BYTES).await;
    let path = format!("/v1/files/{id}/content");
    let whole = ask(&test, "GET", &path, &[("accept-encoding", "gzip, deflate")]).await;
    assert_eq!((whole.status.as_u16(), &whole.body[..]), (200, BYTES));
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-length", "10"),
        ("accept-ranges", "bytes"),
        ("etag", &format!("\"{id}\"")),
        (
            "content-disposition",
            "attachment; filename=\"_.jsonl\"; filename*=UTF-8''%C3%A9.jsonl",
        ),
    ] {
        assert_eq!(whole.headers[name], value);
    }
    assert!(!whole.headers.contains_key("content-encoding"));
    let head = ask(&test, "HEAD", &path, &[("range", "bytes=0-1")]).await;
    assert_eq!((head.status.as_u16(), &head.body[..]), (200, &b""[..]));
    assert_eq!(head.headers["content-length"], "10");
    for from in 0..10 {
        for to in from..12 {
            let range = format!("bytes={from}-{to}");
            let part = ask(&test, "GET", &path, &[("range", &range)]).await;
            let last = to.min(9);
            assert_eq!(
                (part.status.as_u16(), &part.body[..]),
                (206, &BYTES[from..=last])
            );
            assert_eq!(
                part.headers["content-range"],
                format!("bytes {from}-{last}/10")
            );
            assert_eq!(
                part.headers["content-length"],
                (last - from + 1).to_string()
            );
        }
    }
    let beyond = ask(&test, "GET", &path, &[("range", "bytes=10-")]).await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.headers["content-range"], "bytes */10");
    assert_eq!(beyond.headers["content-type"], "application/json");
    let several = ask(&test, "GET", &path, &[("range", "bytes=0-1,3-4")]).await;
    assert_eq!((several.status.as_u16(), &several.body[..]), (200, BYTES));
    let tag = format!("\"{id}\"");
    let had = ask(
        &test,
        "GET",
        &path,
        &[("if-none-match", &tag), ("range", "bytes=0-1")],
    )
    .await;
    assert_eq!((had.status.as_u16(), &had.body[..]), (304, &b""[..]));
    assert_eq!(had.headers["etag"], tag.as_str());
    let other = [("if-range", "\"x\""), ("range", "bytes=0-1")];
    assert_eq!(ask(&test, "GET", &path, &other).await.status, 200);
}

#[tokio::test]
async fn some_purposes_are_not_given_back() {
    let test = TestApi::new(Auth::Off).await;
    for purpose in ["assistants", "user_data", "vision"] {
        let id = upload(&test, purpose, "a", BYTES).await;
        let answer = ask(&test, "GET", &format!("/v1/files/{id}/content"), &[]).await;
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.json()["error"]["message"],
            format!("Not allowed to download files of purpose: {purpose}")
        );
    }
    let empty = upload(&test, "evals", "a", b"").await;
    let answer = ask(&test, "GET", &format!("/v1/files/{empty}/content"), &[]).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b""[..]));
    assert_eq!(answer.headers["content-length"], "0");
}

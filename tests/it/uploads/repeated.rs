//! Requests with an `Idempotency-Key`, sent again.

use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

use super::{FILE, PURPOSE, Upload};
use crate::support::engines::rows;
use crate::support::{Batch, CHAT, Server, chat, eventually, on_every_engine};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// The status and the body of an answer.
async fn told(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    (status, response.text().await.expect("is text"))
}

/// The code of an error.
async fn code(response: Response, status: u16) -> Value {
    let (found, text) = told(response).await;
    assert_eq!(found, status, "{text}");
    let error: Value = serde_json::from_str(&text).expect("is JSON");
    error["error"]["code"].clone()
}

fn keyed(server: &Server, client: &Client, path: &str, key: &str) -> RequestBuilder {
    client.post(server.url(path)).header("idempotency-key", key)
}

async fn upload(server: &Server, client: &Client, key: &str, content: &str) -> Response {
    let part = reqwest::multipart::Part::text(content.to_owned()).file_name("in.jsonl");
    let form = reqwest::multipart::Form::new()
        .text("purpose", "batch")
        .part("file", part);
    keyed(server, client, "/v1/files", key)
        .multipart(form)
        .send()
        .await
        .expect("answers")
}

async fn delete(server: &Server, answer: &str) {
    let file: Value = serde_json::from_str(answer).expect("is JSON");
    let path = format!("/v1/files/{}", file["id"].as_str().expect("has an id"));
    let request = server.client().request(Method::DELETE, server.url(&path));
    assert_eq!(request.send().await.expect("answers").status(), 200);
}

async fn an_upload_that_is_sent_again_is_answered_as_before() {
    let server = Server::start().await;
    let (client, content) = (server.client(), chat("a", Value::Null));
    let first = told(upload(&server, &client, "k", &content).await).await;
    assert_eq!(first.0, 200);
    assert_eq!(
        told(upload(&server, &client, "k", &content).await).await,
        first
    );
    assert_eq!(rows(&server.database, "files").await, 1);

    let other = upload(&server, &client, "k", &chat("b", Value::Null)).await;
    assert_eq!(code(other, 400).await, "idempotency_key_reused");
    // Another key, or another tenant's, is another request.
    let second = told(upload(&server, &client, "k2", &content).await).await;
    let foreign = told(upload(&server, &server.other().client(), "k", &content).await).await;
    assert_eq!((second.0, foreign.0), (200, 200));
    assert_ne!(second.1, first.1);
    assert_ne!(foreign.1, first.1);

    // Also when the file is gone.
    delete(&server, &first.1).await;
    assert_eq!(
        told(upload(&server, &client, "k", &content).await).await,
        first
    );
    // But not for ever.
    server.clock.advance_ms(DAY_MS + 1);
    let anew = told(upload(&server, &client, "k", &content).await).await;
    assert_eq!(anew.0, 200);
    assert_ne!(anew.1, first.1);
}

async fn an_upload_that_is_under_way_is_not_begun_twice() {
    let server = Server::start().await;
    let (client, content) = (server.client(), chat("a", Value::Null));
    let running = Upload::send(keyed(&server, &client, "/v1/files", "k"));
    running.piece(PURPOSE).await;
    running.piece(FILE).await;
    eventually("it is under way", async || {
        rows(&server.database, "idempotency").await == 1
    })
    .await;

    let refused = upload(&server, &client, "k", &content).await;
    assert_eq!(refused.headers()["x-should-retry"], "true");
    assert_eq!(refused.status(), 409);
    let independent = upload(&server, &server.other().client(), "k", &content).await;
    assert_eq!(independent.status(), 200);

    running.piece(format!("{content}\r\n--XX--\r\n")).await;
    let first = told(running.finish().await).await;
    assert_eq!(first.0, 200, "{}", first.1);
    assert_eq!(
        told(upload(&server, &client, "k", &content).await).await,
        first
    );
}

async fn a_failure_is_not_remembered() {
    let server = Server::start().await;
    let (client, content) = (server.client(), chat("a", Value::Null));
    assert_eq!(upload(&server, &client, "k", "words\n").await.status(), 400);
    let broken = Upload::send(keyed(&server, &client, "/v1/files", "k"));
    broken.piece(PURPOSE).await;
    broken.piece(FILE).await;
    let claims = async || rows(&server.database, "idempotency").await;
    eventually("it is under way", async || claims().await == 1).await;
    broken.break_off().await;
    eventually("its claim is given up", async || claims().await == 0).await;
    assert_eq!(upload(&server, &client, "k", &content).await.status(), 200);

    let create = keyed(&server, &client, "/v1/batches", "k2").json(&json!({}));
    assert_eq!(create.send().await.expect("answers").status(), 400);
    let good = json!({
        "input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h",
    });
    let create = keyed(&server, &client, "/v1/batches", "k2").json(&good);
    assert_eq!(create.send().await.expect("answers").status(), 200);
}

async fn a_batch_that_is_created_again_is_the_same() {
    let server = Server::start().await;
    let file = server.upload_batch(chat("a", Value::Null)).await;
    let body = |window: &str| json!({"input_file_id": file, "endpoint": CHAT, "completion_window": window});
    let create = async |client: &Client, key: &str, window: &str| {
        let request = keyed(&server, client, "/v1/batches", key).json(&body(window));
        request.send().await.expect("answers")
    };
    let client = server.client();
    // The same key as an upload's is no trouble: it is another route.
    assert_eq!(
        upload(&server, &client, "k", &chat("b", Value::Null))
            .await
            .status(),
        200
    );
    // However many come at once, one batch is made.
    let tries = (0..8).map(|_| async { told(create(&client, "k", "24h").await).await });
    let answers = futures::future::join_all(tries).await;
    let good: Vec<_> = answers
        .iter()
        .filter(|(status, _)| *status == 200)
        .collect();
    assert!(!good.is_empty());
    assert!(
        answers
            .iter()
            .all(|(status, _)| [200, 409].contains(status)),
        "{answers:?}"
    );
    let first = good[0];
    assert!(good.iter().all(|answer| *answer == first), "{answers:?}");

    let batch: Value = serde_json::from_str(&first.1).expect("is JSON");
    let batch = server.ended(Batch::from(batch)).await;
    assert_eq!(batch.status, "completed");
    // The answer of then, not what has become of it.
    assert_eq!(told(create(&client, "k", "24h").await).await, *first);
    assert_eq!(
        server.get("/v1/batches").await["data"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert_eq!(server.simulator.stats().total.calls, 1);

    let reused = create(&client, "k", "48h").await;
    assert_eq!(code(reused, 400).await, "idempotency_key_reused");
    let foreign = told(create(&server.other().client(), "k", "24h").await).await;
    assert_eq!(foreign.0, 200);
    assert_ne!(foreign.1, first.1);
    delete(&server, &json!({"id": file}).to_string()).await;
    assert_eq!(told(create(&client, "k", "24h").await).await, *first);
}

on_every_engine![
    an_upload_that_is_sent_again_is_answered_as_before,
    an_upload_that_is_under_way_is_not_begun_twice,
    a_failure_is_not_remembered,
    a_batch_that_is_created_again_is_the_same,
];

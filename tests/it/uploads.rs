//! Uploads: broken off, in pieces, several at once, repeated, compressed, and those that expire.

mod compressed;
mod repeated;
mod slow;

use bytes::Bytes;
use nightshift::internals::domain::clock::Clock;
use nightshift::internals::store::Store;
use reqwest::{Body, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::engines::{is_empty, rows};
use crate::support::{CHAT, PATIENCE, Server, chat, eventually, ids, on_every_engine};

/// Longer than an upload may be silent.
const SILENCE_MS: i64 = 6 * 60 * 1000;

const BOUNDARY: &str = "XX";
const PURPOSE: &str = "--XX\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n";
const FILE: &str = "--XX\r\ncontent-disposition: form-data; name=\"file\"; \
                    filename=\"in.jsonl\"\r\n\r\n";

/// An upload whose body is sent piece by piece, with chunked encoding.
struct Upload {
    pieces: mpsc::Sender<std::io::Result<Bytes>>,
    answer: JoinHandle<reqwest::Result<Response>>,
}

impl Upload {
    fn start(server: &Server) -> Self {
        Self::send(server.client().post(server.url("/v1/files")))
    }

    fn send(request: RequestBuilder) -> Self {
        let (pieces, mut receiver) = mpsc::channel(1);
        let body = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let request = request
            .header(
                "content-type",
                format!("multipart/form-data; boundary={BOUNDARY}"),
            )
            .body(Body::wrap_stream(body));
        Upload {
            pieces,
            answer: tokio::spawn(request.send()),
        }
    }

    async fn piece(&self, bytes: impl Into<Bytes>) {
        // Where the server has answered already, the answer tells.
        let _ = self.pieces.send(Ok(bytes.into())).await;
    }

    /// Ends the body, and returns the answer.
    async fn finish(self) -> Response {
        drop(self.pieces);
        self.answer.await.expect("does not panic").expect("answers")
    }

    /// Goes away in the middle.
    async fn break_off(self) {
        let _ = self
            .pieces
            .send(Err(std::io::Error::other("the client is gone")))
            .await;
        let _ = self.answer.await;
    }
}

/// Lines enough that the server writes some before the end comes; no two files are alike.
fn long(name: &str) -> String {
    (0..8_000)
        .map(|number| {
            let text = format!("{name}-{number}-{}", random(number));
            chat(&text, Value::Null)
        })
        .collect()
}

/// Text that cannot be made much shorter.
fn random(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..40)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            format!("{state:016x}")
        })
        .collect()
}

async fn json_of(response: Response) -> Value {
    assert_eq!(response.status(), 200);
    response.json().await.expect("is JSON")
}

async fn nothing_is_listed(server: &Server) {
    let list = server.get("/v1/files").await;
    assert_eq!(list["data"], json!([]), "{list}");
}

async fn an_upload_shows_when_it_is_whole() {
    let server = Server::start().await;
    let upload = Upload::start(&server);
    upload.piece(PURPOSE).await;
    upload.piece(FILE).await;
    upload.piece(long("a")).await;
    eventually("chunks are written", async || {
        rows(&server.database, "chunks").await > 0
    })
    .await;
    nothing_is_listed(&server).await;
    upload.piece("\r\n--XX--\r\n").await;
    let file = json_of(upload.finish().await).await;
    let list = server.get("/v1/files").await;
    assert_eq!(list["data"], json!([file]));
}

async fn an_upload_that_is_broken_off_leaves_no_row() {
    let server = Server::start().await;
    for content in [String::new(), chat("a", Value::Null), long("b")] {
        let upload = Upload::start(&server);
        upload.piece(PURPOSE).await;
        upload.piece(FILE).await;
        let is_long = content.len() > 1_000_000;
        upload.piece(content).await;
        if is_long {
            eventually("it is under way", async || {
                rows(&server.database, "chunks").await > 0
            })
            .await;
        }
        upload.break_off().await;
        nothing_is_listed(&server).await;
        eventually("all of it is gone", async || {
            is_empty(&server.database).await
        })
        .await;
    }
}

async fn an_upload_that_died_with_the_server_is_swept() {
    let mut server = Server::with("").binary().await;
    let upload = Upload::start(&server);
    upload.piece(PURPOSE).await;
    upload.piece(FILE).await;
    upload.piece(long("a")).await;
    eventually("chunks are written", async || {
        rows(&server.database, "chunks").await > 0
    })
    .await;
    server.kill().await;
    upload.break_off().await;

    server.start_again().await;
    nothing_is_listed(&server).await;
    // It may be alive, for all that another process knows.
    let clock = Clock::default();
    let store = Store::open(&server.database, 1, clock.clone())
        .await
        .expect("opens");
    let sweep = async || {
        store
            .sweep_uploads(clock.now_ms() - SILENCE_MS)
            .await
            .expect("sweeps")
    };
    assert_eq!(sweep().await, 0);
    assert_eq!(rows(&server.database, "files").await, 1);
    clock.advance_ms(SILENCE_MS + 1);
    assert_eq!(sweep().await, 1);
    assert!(is_empty(&server.database).await);
    store.close().await;

    // The server is none the worse for it.
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    assert_eq!(batch.status, "completed");
}

async fn an_upload_may_come_in_any_pieces_with_its_purpose_last() {
    let server = Server::start().await;
    let content: String = ids(40).iter().map(|id| chat(id, Value::Null)).collect();
    let body = format!("{FILE}{content}\r\n{PURPOSE}--XX--\r\n").into_bytes();
    for size in [1, 7, 1000, body.len()] {
        let upload = Upload::start(&server);
        for piece in body.chunks(size) {
            upload.piece(piece.to_vec()).await;
        }
        let file = json_of(upload.finish().await).await;
        assert_eq!(file["bytes"], content.len());
        assert_eq!(file["purpose"], "batch");
        let id = file["id"].as_str().expect("has an id");
        let url = server.url(&format!("/v1/files/{id}/content"));
        let stored = server.client().get(url).send().await.expect("answers");
        assert_eq!(stored.text().await.expect("is text"), content);
    }
}

async fn uploads_do_not_mix() {
    let server = Server::start().await;
    let contents: Vec<String> = ["a", "b", "c", "d"].map(long).to_vec();
    let uploads = contents
        .iter()
        .map(|content| server.upload(content.clone().into_bytes(), "in.jsonl", "batch"));
    for (answer, content) in futures::future::join_all(uploads)
        .await
        .into_iter()
        .zip(&contents)
    {
        let file = json_of(answer).await;
        let id = file["id"].as_str().expect("has an id");
        let url = server.url(&format!("/v1/files/{id}/content"));
        let stored = server.client().get(url).send().await.expect("answers");
        assert!(
            stored.text().await.expect("is text") == *content,
            "another's bytes"
        );
    }
}

async fn a_file_expires() {
    let server = Server::start().await;
    let form = reqwest::multipart::Form::new()
        .text("expires_after[seconds]", "3600")
        .text("purpose", "batch")
        .text("expires_after[anchor]", "created_at")
        .part(
            "file",
            reqwest::multipart::Part::text(chat("a", Value::Null)).file_name("in"),
        );
    let upload = server
        .client()
        .post(server.url("/v1/files"))
        .multipart(form);
    let file = json_of(upload.send().await.expect("answers")).await;
    let created_at = file["created_at"].as_i64().expect("is a time");
    assert_eq!(file["expires_at"], created_at + 3600);
    let lasting = json_of(server.upload(b"text".to_vec(), "a.txt", "user_data").await).await;
    assert_eq!(lasting["expires_at"], Value::Null);

    let status = async |file: &Value, more: &str| {
        let id = file["id"].as_str().expect("has an id");
        let url = server.url(&format!("/v1/files/{id}{more}"));
        server
            .client()
            .get(url)
            .send()
            .await
            .expect("answers")
            .status()
    };
    server.clock.advance_ms(3_500_000);
    assert_eq!(status(&file, "").await, 200);
    assert_eq!(status(&file, "/content").await, 200);
    server.clock.advance_ms(101_000);
    assert_eq!(status(&file, "").await, 404);
    assert_eq!(status(&file, "/content").await, 404);
    assert_eq!(status(&lasting, "").await, 200);
    assert_eq!(server.get("/v1/files").await["data"], json!([lasting]));

    let body = json!({
        "input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h",
    });
    let batch = server.create(&body).await;
    assert_eq!(server.ended(&batch).await.status, "failed");
}

on_every_engine![
    an_upload_shows_when_it_is_whole,
    an_upload_that_is_broken_off_leaves_no_row,
    an_upload_that_died_with_the_server_is_swept,
    an_upload_may_come_in_any_pieces_with_its_purpose_last,
    uploads_do_not_mix,
    a_file_expires,
];

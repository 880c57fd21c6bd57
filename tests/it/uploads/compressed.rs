//! Uploads that are compressed with gzip or zstd.

use async_compression::Level;
use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use reqwest::multipart::{Form, Part};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::support::{CHAT, Server, chat, ids, on_every_engine};

async fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = GzipEncoder::new(content);
    encoder.read_to_end(&mut packed).await.expect("compresses");
    packed
}

/// zstd whose window has 2 to the power of `window` bytes.
async fn zstd(content: &[u8], window: u32) -> Vec<u8> {
    let mut packed = Vec::new();
    let window = CParameter::window_log(window);
    let mut encoder = ZstdEncoder::with_quality_and_params(content, Level::Default, &[window]);
    encoder.read_to_end(&mut packed).await.expect("compresses");
    packed
}

/// Where a form says what its file is for.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    First(&'static str),
    /// As the SDK for Node sends it.
    Last(&'static str),
}

const ORDERS: [Purpose; 2] = [Purpose::First("batch"), Purpose::Last("batch")];

/// Uploads a file; returns the status and the answer.
async fn upload(server: &Server, purpose: Purpose, file: &[u8], key: Option<&str>) -> (u16, Value) {
    let part = Part::bytes(file.to_vec()).file_name("in.jsonl.gz");
    let form = match purpose {
        Purpose::First(purpose) => Form::new().text("purpose", purpose).part("file", part),
        Purpose::Last(purpose) => Form::new().part("file", part).text("purpose", purpose),
    };
    let mut request = server.client().post(server.url("/v1/files"));
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let response = request.multipart(form).send().await.expect("answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("is JSON"))
}

async fn content(server: &Server, file: &Value) -> Vec<u8> {
    let path = format!("/v1/files/{}/content", file["id"].as_str().expect("an id"));
    let response = server.client().get(server.url(&path)).send().await;
    let response = response.expect("answers");
    response.bytes().await.expect("has a body").to_vec()
}

async fn a_compressed_batch_file_is_what_it_holds() {
    let server = Server::start().await;
    let ids = ids(200);
    let lines: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let mut files = 0;
    for packed in [
        gzip(lines.as_bytes()).await,
        zstd(lines.as_bytes(), 20).await,
        // Several members are one file, as `cat a.gz b.gz` makes them.
        [
            gzip(&lines.as_bytes()[..9]).await,
            gzip(&lines.as_bytes()[9..]).await,
        ]
        .concat(),
    ] {
        for order in ORDERS {
            let (status, file) = upload(&server, order, &packed, None).await;
            assert_eq!(status, 200, "{order:?}: {file}");
            assert_eq!(file["bytes"], lines.len(), "{order:?}");
            assert_eq!(file["filename"], "in.jsonl.gz");
            assert_eq!(content(&server, &file).await, lines.as_bytes(), "{order:?}");
            files += 1;
            // What was stored before the purpose was known is removed.
            server.until_rows("files", |count| count == files).await;
        }
    }
    let (_, file) = upload(&server, ORDERS[1], &gzip(lines.as_bytes()).await, None).await;
    let batch = serde_json::json!({
        "input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h",
    });
    let batch = server.create(&batch).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "completed", "{batch}");
    server.exactly_once(&batch, &ids).await;
}

async fn a_compressed_file_for_anything_else_stays_as_it_is() {
    let server = Server::start().await;
    let packed = gzip(b"words").await;
    for purpose in [Purpose::First("evals"), Purpose::Last("evals")] {
        let (status, file) = upload(&server, purpose, &packed, None).await;
        assert_eq!(status, 200, "{file}");
        assert_eq!(file["bytes"], packed.len(), "{purpose:?}");
        assert_eq!(content(&server, &file).await, packed, "{purpose:?}");
    }
}

async fn what_a_compressed_file_holds_must_keep_to_the_limits() {
    let server = Server::with("[limits]\nmax_file_bytes = 1_000_000").await;
    let rows = server.rows().await;
    let bomb = vec![b'\n'; 64 << 20];
    let largest = vec![b'\n'; 1_000_000];
    for bomb in [gzip(&bomb).await, zstd(&bomb, 20).await] {
        assert!(bomb.len() < 1_000_000, "it is small on the wire");
        for order in ORDERS {
            let (status, error) = upload(&server, order, &bomb, None).await;
            assert_eq!(status, 413, "{order:?}: {error}");
            server.has_only(&rows).await;
        }
    }
    for largest in [gzip(&largest).await, zstd(&largest, 20).await] {
        for order in ORDERS {
            let (status, file) = upload(&server, order, &largest, None).await;
            assert_eq!(status, 200, "{order:?}: {file}");
        }
    }
}

async fn a_compressed_file_that_cannot_be_read_is_refused() {
    let server = Server::start().await;
    let rows = server.rows().await;
    let line = chat("a", Value::Null);
    let (gz, zst) = (gzip(line.as_bytes()).await, zstd(line.as_bytes(), 20).await);
    let wide = zstd(&vec![b'\n'; 20 << 20], 25).await;
    for (file, message) in [
        (&gz[..gz.len() - 9], "gzip data: it was cut off"),
        (&zst[..zst.len() - 1], "zstd data: it was cut off"),
        (&[&gz[..], b"behind it"].concat(), "cannot be decompressed"),
        (&wide, "window is larger than 8 MiB"),
        (
            &gzip(&gz).await,
            "compressed with gzip: decompress it first",
        ),
        (&gzip(b"a,b\n").await, "Must be .jsonl. The first line"),
        (&gzip(b"").await, "The file is empty"),
    ] {
        for order in ORDERS {
            let (status, error) = upload(&server, order, file, None).await;
            assert_eq!(status, 400, "{message}, {order:?}: {error}");
            let found = error["error"]["message"].as_str().expect("a message");
            assert!(found.contains(message), "{message}, {order:?}: {found}");
            server.has_only(&rows).await;
        }
    }
}

async fn a_compressed_upload_that_is_sent_again_is_answered_as_before() {
    let server = Server::start().await;
    let packed = gzip(chat("a", Value::Null).as_bytes()).await;
    let first = upload(&server, ORDERS[1], &packed, Some("k")).await;
    assert_eq!(first.0, 200);
    for order in ORDERS {
        assert_eq!(upload(&server, order, &packed, Some("k")).await, first);
    }
    server.until_rows("files", |count| count == 1).await;
}

on_every_engine![
    a_compressed_batch_file_is_what_it_holds,
    a_compressed_file_for_anything_else_stays_as_it_is,
    what_a_compressed_file_holds_must_keep_to_the_limits,
    a_compressed_file_that_cannot_be_read_is_refused,
    a_compressed_upload_that_is_sent_again_is_answered_as_before,
];

//! Safe by default: who may ask, what they can see, and what is told to nobody.

mod pages;
mod scopes;
mod secrets;
mod tenants;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::support::binary::{Binary, command, ended};
use crate::support::{Server, client_with, on_every_engine};

const OPEN: &str = "[auth]\nrequired = false\n";

/// `nightshift serve` on all addresses of this machine, in a directory.
fn serve_to_all(directory: &Path, more: &[&str]) -> Command {
    let mut command = command(&[&["serve", "--listen", "0.0.0.0:0"], more].concat());
    command.current_dir(directory);
    command
}

#[tokio::test]
async fn on_loopback_no_key_is_needed_and_any_is_ignored() {
    let server = Server::with(OPEN).await;
    for client in [
        client_with(None),
        client_with(Some("unused")),
        server.other().client(),
    ] {
        let response = client
            .get(server.url("/v1/batches"))
            .send()
            .await
            .expect("answers");
        assert_eq!(response.status(), 200);
    }
    // Whoever asks is the same tenant.
    let file = server.upload(b"text".to_vec(), "a.txt", "user_data").await;
    let file: Value = file.json().await.expect("is JSON");
    let path = format!("/v1/files/{}", file["id"].as_str().expect("has an id"));
    let response = client_with(None)
        .get(server.url(&path))
        .send()
        .await
        .expect("answers");
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn without_keys_pages_from_elsewhere_are_refused() {
    let server = Server::with(OPEN).await;
    let port = server
        .url("")
        .rsplit_once(':')
        .expect("has a port")
        .1
        .to_owned();
    let local = format!("localhost:{port}");
    for (header, value, status) in [
        ("host", "evil.example", 403),
        ("host", "127.0.0.1.evil.example", 403),
        ("host", "192.168.1.1", 403),
        ("host", local.as_str(), 200),
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "http://localhost:3000", 200),
    ] {
        for (method, path) in [(Method::GET, "/v1/files"), (Method::GET, "/v1/models")] {
            let request = client_with(None)
                .request(method, server.url(path))
                .header(header, value);
            let response = request.send().await.expect("answers");
            assert_eq!(response.status(), status, "{header}: {value}");
            assert!(response.headers().contains_key("x-request-id"));
            assert!(
                !response
                    .headers()
                    .contains_key("access-control-allow-origin")
            );
        }
    }
    let refused = client_with(None)
        .post(server.url("/v1/batches"))
        .header("origin", "https://evil.example")
        .body("{}")
        .send();
    let refused = refused.await.expect("answers");
    assert_eq!(refused.status(), 403);
    let error: Value = refused.json().await.expect("is JSON");
    assert_eq!(
        error["error"].as_object().map(serde_json::Map::len),
        Some(4),
        "{error}"
    );
}

#[tokio::test]
async fn with_keys_everything_but_health_and_documents_needs_one() {
    let server = Server::start().await;
    let status = async |client: Client, path: &str| {
        let response = client.get(server.url(path)).send().await.expect("answers");
        (
            response.status().as_u16(),
            response.headers().contains_key("x-request-id"),
        )
    };
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/version",
        "/openapi.json",
        "/docs",
    ] {
        assert_eq!(status(client_with(None), path).await, (200, true), "{path}");
    }
    for path in [
        "/v1/files",
        "/v1/batches",
        "/v1/models",
        "/metrics",
        "/admin",
        "/nowhere",
        "/openai/files",
    ] {
        for client in [client_with(None), client_with(Some("sk-ns-wrong"))] {
            assert_eq!(status(client, path).await, (401, true), "{path}");
        }
    }
    for wrong in [
        format!("Basic {}", server.key()),
        server.key().to_owned(),
        "Bearer".into(),
    ] {
        let request = client_with(None)
            .get(server.url("/v1/files"))
            .header("authorization", wrong);
        assert_eq!(request.send().await.expect("answers").status(), 401);
    }
    // Azure's clients send the key in a header of its own.
    for (key, expected) in [(server.key(), 200), ("sk-ns-wrong", 401), ("", 401)] {
        let request = client_with(None)
            .get(server.url("/v1/files"))
            .header("api-key", key);
        assert_eq!(request.send().await.expect("answers").status(), expected);
    }
    // A header that can be no key does not hide a key in the other.
    let bearer = format!("Bearer {}", server.key());
    for (authorization, api_key, expected) in [
        ("Bearer clé", server.key(), 200),
        (bearer.as_str(), "clé", 200),
        ("Bearer clé", "sk-ns-wrong", 401),
        ("Bearer clé", "", 401),
    ] {
        let request = client_with(None)
            .get(server.url("/v1/files"))
            .header("authorization", authorization.as_bytes())
            .header("api-key", api_key.as_bytes());
        let status = request.send().await.expect("answers").status();
        assert_eq!(status, expected, "{authorization} {api_key}");
    }
    let longer = format!("{}x", server.key());
    assert_eq!(
        status(client_with(Some(&longer)), "/v1/files").await,
        (401, true)
    );
    // With keys, a page's origin and the name that it calls the server by do not matter.
    let request = server
        .client()
        .get(server.url("/v1/files"))
        .header("host", "batch.example");
    assert_eq!(request.send().await.expect("answers").status(), 200);
}

#[tokio::test]
async fn off_loopback_a_server_without_keys_refuses_to_start() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let refused = ended(serve_to_all(directory.path(), &[])).await;
    assert_eq!(
        (refused.code, refused.out.as_str()),
        (Some(1), ""),
        "{}",
        refused.errors
    );
    assert!(
        refused.errors.contains("nightshift keys create"),
        "{}",
        refused.errors
    );

    let mut open = serve_to_all(directory.path(), &[]);
    open.env("NIGHTSHIFT_AUTH__REQUIRED", "false");
    let refused = ended(open).await;
    assert_eq!(
        (refused.code, refused.out.as_str()),
        (Some(1), ""),
        "{}",
        refused.errors
    );
    assert!(
        refused.errors.contains("auth.required"),
        "{}",
        refused.errors
    );

    // A key that was revoked is as good as none.
    let keys = async |args: &[&str]| {
        let mut command = command(&[&["keys"], args].concat());
        command.current_dir(directory.path());
        ended(command).await
    };
    let created = keys(&["create", "--name", "a"]).await;
    let words = created.errors.split_whitespace();
    let id = words
        .into_iter()
        .find(|word| word.starts_with("key_"))
        .expect("names the key");
    assert_eq!(keys(&["revoke", id]).await.code, Some(0));
    let refused = ended(serve_to_all(directory.path(), &[])).await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.errors.contains("nightshift keys create"),
        "{}",
        refused.errors
    );
}

#[tokio::test]
async fn off_loopback_a_stored_or_a_bootstrap_key_lets_it_start() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("data/a.db").display());
    let all = ["--listen", "0.0.0.0:0", "--database", &url];
    let bootstrap = "sk-bootstrap-0123456789";
    let status = async |server: &Binary, key: &str| {
        let base = server.base.replace("0.0.0.0", "127.0.0.1");
        let request = client_with(Some(key)).get(format!("{base}/v1/batches"));
        request.send().await.expect("answers").status()
    };
    let variables = [("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", bootstrap)];
    let server = Binary::serve(&all, &variables).await;
    assert_eq!(status(&server, bootstrap).await, StatusCode::OK);
    assert_eq!(status(&server, "unused").await, StatusCode::UNAUTHORIZED);
    server.terminate().await;

    let file = directory.path().join("key");
    std::fs::write(&file, format!("{bootstrap}\n")).expect("writes");
    let variables = [(
        "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY_FILE",
        file.to_str().expect("is text"),
    )];
    let server = Binary::serve(&all, &variables).await;
    assert_eq!(status(&server, bootstrap).await, StatusCode::OK);
    server.terminate().await;

    let created = ended(command(&[
        "keys",
        "create",
        "--name",
        "a",
        "--database",
        &url,
    ]))
    .await;
    let server = Binary::serve(&all, &[]).await;
    assert_eq!(status(&server, created.out.trim()).await, StatusCode::OK);
    assert_eq!(status(&server, bootstrap).await, StatusCode::UNAUTHORIZED);
    server.terminate().await;
}

async fn every_response_names_its_request() {
    let server = Server::with("[limits]\nmax_file_bytes = 1000").await;
    let mut seen = std::collections::BTreeSet::new();
    let big = vec![b'x'; 10_000_000];
    for (method, path, body, status) in [
        (Method::GET, "/v1/batches", &b""[..], 200),
        (Method::GET, "/healthz", b"", 200),
        (Method::GET, "/nowhere", b"", 404),
        (Method::GET, "/v1/files/file-none", b"", 404),
        (Method::DELETE, "/v1/batches", b"", 405),
        (Method::PUT, "/v1/files", b"", 405),
        (Method::POST, "/v1/batches", b"{", 400),
        (Method::POST, "/v1/batches", &big, 413),
    ] {
        let request = server.client().request(method, server.url(path));
        let request = request
            .header("content-type", "application/json")
            .body(body.to_vec());
        let response = request.send().await.expect("answers");
        assert_eq!(response.status(), status, "{path}");
        let id = response
            .headers()
            .get("x-request-id")
            .expect("is there")
            .clone();
        assert!(
            seen.insert(id.to_str().expect("is text").to_owned()),
            "{path}"
        );
    }
    let too_large = server.upload(vec![b'x'; 2000], "a.txt", "user_data").await;
    assert_eq!(too_large.status(), 413);
    assert!(too_large.headers().contains_key("x-request-id"));
    let missing = client_with(None)
        .get(server.url("/v1/files"))
        .send()
        .await
        .expect("answers");
    assert_eq!(missing.status(), 401);
    assert!(missing.headers().contains_key("x-request-id"));
}

#[tokio::test]
async fn a_data_directory_is_for_its_owner_alone() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let data = directory.path().join("some/data");
    let url = format!("sqlite://{}", data.join("a.db").display());
    Binary::serve(&["--database", &url], &[])
        .await
        .terminate()
        .await;
    let mode = std::fs::metadata(&data)
        .expect("is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    for file in std::fs::read_dir(&data).expect("lists") {
        let file = file.expect("lists");
        let mode = file.metadata().expect("is there").permissions().mode();
        assert_eq!(
            mode & 0o077,
            0,
            "{:?} is for its owner alone",
            file.file_name()
        );
    }
}

/// What a server answers to these bytes, which it need not read to their end.
async fn answer_to(server: &Server, bytes: &[u8]) -> String {
    let address = server.url("").replace("http://", "");
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connects");
    let _ = stream.write_all(bytes).await;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    // The connection may be reset behind the answer.
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_head_of_a_hundred_kilobytes_is_refused() {
    let server = Server::with(OPEN).await;
    let start = "GET /v1/files HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let usual = answer_to(&server, format!("{start}x-small: y\r\n\r\n").as_bytes()).await;
    assert!(usual.starts_with("HTTP/1.1 200 "), "{usual}");
    for long in [
        format!("{start}x-long: {}\r\n\r\n", "y".repeat(100_000)),
        format!("{start}{}\r\n", "x-many: y\r\n".repeat(10_000)),
        format!(
            "GET /v1/files?after={} HTTP/1.1\r\nhost: localhost\r\n\r\n",
            "y".repeat(100_000)
        ),
    ] {
        let refused = answer_to(&server, long.as_bytes()).await;
        let status = refused.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "414", "431"].contains(&status), "{refused}");
    }
    let still = client_with(None)
        .get(server.url("/healthz"))
        .send()
        .await
        .expect("answers");
    assert_eq!(still.status(), 200);
}

on_every_engine![every_response_names_its_request];

//! What keys of each scope open, and what operators do to batches of others.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::binary::{Binary, Ended, command, ended};
use crate::support::{CHAT, Server, chat, client_with, ids, on_every_engine};

/// What is logged is JSON, and calls of a cancelled batch are cut at once.
const LOGGED: &str = "[log]\nformat = \"json\"\n[worker]\nsettle_timeout = \"0s\"\n";

async fn create(database: &str, args: &[&str]) -> Ended {
    let create = ["keys", "create", "--name", "test", "--database", database];
    ended(command(&[&create[..], args].concat())).await
}

/// A new key, and its id.
async fn key(database: &str, args: &[&str]) -> (String, String) {
    let made = create(database, args).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let id = made.errors.split_whitespace().nth(1).expect("says the id");
    (made.out.trim().to_owned(), id.to_owned())
}

async fn ask(server: &Server, key: &str, method: Method, path: &str) -> (u16, Value) {
    let request = client_with(Some(key)).request(method, server.url(path));
    let response = request.send().await.expect("answers");
    let status = response.status().as_u16();
    let text = response.text().await.expect("is text");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// Whoever scrapes is no tenant, and an operator need be none.
async fn each_scope_opens_its_own() {
    let server = Server::start().await;
    let database = &server.database;
    let batch = server.create_batch(chat("a", Value::Null), CHAT).await;
    let batch = batch.path();
    let tenants = ["--tenant", "tenant-a"];
    for (args, expected) in [
        (&tenants[..], [200, 200, 200, 403, 403, 404]),
        (&["--scope", "api"], [200, 200, 404, 403, 403, 404]),
        (&["--scope", "metrics"], [403, 403, 403, 200, 403, 403]),
        (&["--scope", "api,metrics"], [200, 200, 404, 200, 403, 404]),
        (&["--scope", "admin"], [403, 403, 200, 200, 200, 404]),
        (&["--admin"], [200, 200, 200, 200, 200, 404]),
    ] {
        let (key, _) = key(database, args).await;
        let paths = [
            "/v1/files",
            "/v1/models",
            &batch,
            "/metrics",
            "/admin/status",
            "/v1/batches/batch_nobody",
        ];
        for (path, expected) in paths.into_iter().zip(expected) {
            let (status, answer) = ask(&server, &key, Method::GET, path).await;
            assert_eq!(status, expected, "{args:?} {path}: {answer}");
            if status == 403 {
                let message = answer["error"]["message"].as_str().expect("says why");
                assert!(message.contains("Missing scopes: "), "{message}");
            }
        }
    }
    for (args, says) in [
        (&["--scope", "root"][..], "api, metrics, admin"),
        (&["--scope", "operator"], "api, metrics, admin"),
        (&["--scope", "admin", "--admin"], "cannot be used with"),
        (&["--scope", "metrics", "--tenant", "a"], "no tenant"),
    ] {
        let refused = create(database, args).await;
        assert!(refused.code > Some(0) && refused.out.is_empty(), "{args:?}");
        assert!(refused.errors.contains(says), "{}", refused.errors);
    }
}

async fn an_operator_sees_and_cancels_anybodys_batch_and_it_is_logged() {
    let mut server = Server::with(LOGGED).binary().await;
    let (operator, id) = key(&server.database, &["--scope", "admin"]).await;
    let jsonl: String = ids(3)
        .iter()
        .map(|id| chat(id, json!({"hang": true})))
        .collect();
    let batch = server.create_batch(jsonl, CHAT).await;
    let path = batch.path();
    let seen = ask(&server, &operator, Method::GET, &path).await;
    assert_eq!((seen.0, &seen.1["id"]), (200, &batch["id"]));
    // It is told whose key has made the batch.
    let (_, status) = ask(&server, &operator, Method::GET, "/admin/status").await;
    let made_by = status["live_batches"][0]["key_id"].as_str();
    assert!(made_by.is_some_and(|id| id.starts_with("key_")), "{status}");
    let cancel = format!("{path}/cancel");
    let (status, cancelled) = ask(&server, &operator, Method::POST, &cancel).await;
    assert_eq!(status, 200, "{cancelled}");
    let status = cancelled["status"].as_str().expect("is text");
    assert!(status.starts_with("cancel"), "{cancelled}");
    // Its lists and files are the tenant's own.
    let file = &batch.input_file_id;
    for path in [
        "/v1/batches".to_owned(),
        format!("/v1/files/{file}/content"),
    ] {
        assert_eq!(ask(&server, &operator, Method::GET, &path).await.0, 403);
    }

    server.ended(&batch).await;
    let log = server.binary_process().terminate().await;
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("is JSON"));
    let lines: Vec<Value> = lines.collect();
    let acts: Vec<_> = lines
        .iter()
        .filter(|line| line["message"] == "an operator acts on a tenant's batch")
        .map(|line| {
            assert_eq!(line["key.id"], id.as_str(), "{line}");
            assert_eq!(line["batch.id"], batch["id"], "{line}");
            assert_eq!(line["tenant"], "tenant-a", "{line}");
            line["act"].as_str().expect("says what")
        })
        .collect();
    assert_eq!(acts, ["retrieve", "cancel"]);
    let requests: Vec<_> = lines
        .iter()
        .filter(|line| line["message"] == "answered" && line["key.id"] == id.as_str())
        .collect();
    assert_eq!(requests.len(), 5, "each request names its key: {log}");
    assert!(
        requests.iter().all(|line| line["tenant"].is_null()),
        "{log}"
    );
    let created = lines
        .iter()
        .find(|line| line["message"] == "a batch was created");
    assert_eq!(
        created.expect("is logged")["key.id"],
        made_by.expect("is there")
    );
}

#[tokio::test]
async fn the_bootstrap_key_may_be_an_operators() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let key = "sk-bootstrap-0123456789";
    for (scope, metrics, files) in [("", 403, 200), ("admin", 200, 403), ("api,admin", 200, 200)] {
        let variables = [
            ("NIGHTSHIFT_AUTH__REQUIRED", "true"),
            ("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", key),
            ("NIGHTSHIFT_AUTH__BOOTSTRAP_SCOPE", scope),
        ];
        let server = Binary::serve(&["--database", &url], &variables).await;
        for (path, expected) in [("/metrics", metrics), ("/v1/files", files)] {
            let url = format!("{}{path}", server.base);
            let asked = client_with(Some(key)).get(url).send().await;
            assert_eq!(asked.expect("answers").status(), expected, "{scope} {path}");
        }
        let log = server.terminate().await;
        assert!(log.contains("bootstrap"), "requests name the key: {log}");
    }
}

on_every_engine![
    each_scope_opens_its_own,
    an_operator_sees_and_cancels_anybodys_batch_and_it_is_logged,
];

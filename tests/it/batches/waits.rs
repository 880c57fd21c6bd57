//! Long polls: an answer that comes when a batch has another status.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Batch, CHAT, Server, chat, granting, ids, on_every_engine};

/// Longer than any look takes, and much shorter than the waits in question.
const SOON: Duration = Duration::from_secs(30);

async fn look(server: &Server, batch: &Batch, query: &str) -> (u16, Value) {
    let path = format!("/v1/batches/{}?{query}", batch.id);
    let answer = server.client().get(server.url(&path)).send().await;
    let answer = answer.expect("answers");
    (
        answer.status().as_u16(),
        answer.json().await.expect("is JSON"),
    )
}

/// A batch in `in_progress` of one line that is not answered before the simulator grants an answer.
async fn begun(server: &Server) -> Batch {
    let jsonl = chat(&ids(1)[0], Value::Null);
    let batch = server.create_batch(jsonl, CHAT).await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await
}

async fn an_answer_comes_when_the_status_changes() {
    let server = Server::with("").upstream(granting(0)).await;
    let batch = begun(&server).await;
    for known in ["&status=in_progress", ""] {
        let query = format!("wait=1{known}");
        let (_, same) = look(&server, &batch, &query).await;
        assert_eq!(same["status"], "in_progress", "the time is over: {query}");
    }
    let wait = async {
        let mut status = "in_progress".to_owned();
        while status == "in_progress" || status == "finalizing" {
            let query = format!("wait=300&status={status}");
            let (_, changed) = look(&server, &batch, &query).await;
            assert_ne!(changed["status"], status);
            status = changed["status"].as_str().expect("is text").to_owned();
        }
        status
    };
    let grant = async {
        // By then the first look has been answered, if it was answered at once.
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.simulator.grant(1);
    };
    let (status, ()) = tokio::join!(timeout(SOON, wait), grant);
    assert_eq!(
        status.expect("does not wait for the end of its time"),
        "completed"
    );
}

async fn nobody_waits_for_what_is_so_already() {
    let server = Server::with("").upstream(granting(0)).await;
    let batch = begun(&server).await;
    let other = look(&server, &batch, "wait=300&status=validating");
    let (_, other) = timeout(SOON, other).await.expect("is answered at once");
    assert_eq!(other["status"], "in_progress");
    server.simulator.grant(1);
    let batch = server.ended(&batch).await;
    // It can get no other status.
    let ended = look(&server, &batch, "wait=300&status=completed");
    let (_, ended) = timeout(SOON, ended).await.expect("is answered at once");
    assert_eq!(ended["status"], "completed");
    // Without `wait` nothing is asked of the status.
    assert_eq!(look(&server, &batch, "status=none").await.0, 200);
    for (query, code, param) in [
        ("wait=301", "integer_above_max_value", "wait"),
        ("wait=-1", "integer_below_min_value", "wait"),
        ("wait=soon", "invalid_type", "wait"),
        ("wait=1&status=none", "invalid_value", "status"),
    ] {
        let (status, body) = look(&server, &batch, query).await;
        let error = (status, &body["error"]["code"], &body["error"]["param"]);
        assert_eq!(error, (400, &json!(code), &json!(param)), "{query}");
    }
}

async fn who_waits_does_not_keep_a_server_from_stopping() {
    // The line is not answered, and calls in flight are waited for.
    let config = "[worker]\nshutdown_grace = \"2s\"";
    let mut server = Server::with(config).upstream(granting(0)).await;
    let batch = begun(&server).await;
    let path = server.url(&format!("/v1/batches/{}?wait=300", batch.id));
    let wait = tokio::spawn(server.client().get(path).send());
    tokio::time::sleep(Duration::from_millis(300)).await;
    timeout(SOON, server.stop()).await.expect("stops");
    let answer = wait.await.expect("no panic").expect("is answered");
    assert_eq!(answer.status(), 200);
}

on_every_engine![
    an_answer_comes_when_the_status_changes,
    nobody_waits_for_what_is_so_already,
    who_waits_does_not_keep_a_server_from_stopping,
];

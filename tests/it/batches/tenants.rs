//! Tenants that share few places.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{CHAT, Server, chat, ids, on_every_engine};

const CONFIG: &str = r#"
[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 4

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

fn lines(count: usize) -> String {
    let line = |id: &String| chat(id, json!({"latency_ms": 50}));
    ids(count).iter().map(line).collect()
}

async fn completed(server: &Server, batch: &Value) -> bool {
    let path = format!("/v1/batches/{}", batch["id"].as_str().expect("has an id"));
    let response = server.other_client().get(server.url(&path)).send().await;
    let batch: Value = response.expect("answers").json().await.expect("is JSON");
    batch["status"] == "completed"
}

async fn a_small_batch_does_not_wait_for_another_tenants_large_one() {
    let server = Server::with(CONFIG).await;
    let large = server.create_batch(lines(2_000), CHAT).await;
    let done = |batch: &Value| batch["request_counts"]["completed"].as_i64();
    server.until(&large, |batch| done(batch) > Some(0)).await;

    let small = server.create_batch_as(server.other_key(), &lines(20)).await;
    let deadline = Instant::now() + Duration::from_secs(120);
    while !completed(&server, &small).await {
        assert!(Instant::now() < deadline, "the small batch does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let large = server.until(&large, |_| true).await;
    assert!(
        done(&large) < Some(1_000),
        "the small one had to wait: {large}"
    );
}

on_every_engine![a_small_batch_does_not_wait_for_another_tenants_large_one];

//! Tenants that share few places.

use serde_json::json;

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

async fn a_small_batch_does_not_wait_for_another_tenants_large_one() {
    let server = Server::with(CONFIG).await;
    let large = server.create_batch(lines(2_000), CHAT).await;
    server
        .until(&large, |batch| batch.counts.completed > 0)
        .await;

    let small = server.other().create_batch(lines(20), CHAT).await;
    let small = server.other().ended(&small).await;
    assert_eq!(small.status, "completed", "{small}");
    let large = server.batch(&large).await;
    assert!(
        large.counts.completed < 1_000,
        "the small one had to wait: {large}"
    );
}

on_every_engine![a_small_batch_does_not_wait_for_another_tenants_large_one];

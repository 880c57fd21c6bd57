//! A batch whose successive lines name many models: each chunk is as many small units.

use serde_json::json;

use crate::support::{CHAT, Server, ids, on_every_engine, request};

const MODELS: usize = 64;
/// Ten chunks.
const LINES: usize = 5_120;
const UNITS: usize = 10 * MODELS;

/// The server logs its statements, and its upstream serves every model.
const LOGGED: &str = r#"
    [log]
    filter = "warn,sqlx::query=debug"
    [[upstreams]]
    name = "simulated"
    base_url = "{simulated}"
"#;

async fn small_units_are_leased_many_at_a_time() {
    let mut server = Server::with(LOGGED).binary().await;
    let ids = ids(LINES);
    let line = |(number, id): (usize, &String)| {
        let model = format!("model-{}", number % MODELS);
        request(
            id,
            json!({"model": model, "messages": [{"role": "user", "content": id}]}),
        )
    };
    let jsonl: String = ids.iter().enumerate().map(line).collect();
    let batch = server.run(jsonl, CHAT).await;
    assert_eq!(batch.counts.completed, LINES, "{batch}");
    server.exactly_once(&batch, &ids).await;
    let log = server.binary_process().terminate().await;
    let leases = log.matches("summary=\"-- lease_units").count();
    println!("{leases} leases of {UNITS} units");
    assert!((1..UNITS / 2).contains(&leases), "{leases} leases");
}

on_every_engine![small_units_are_leased_many_at_a_time];

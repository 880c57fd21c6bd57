//! A server that is killed again and again in the middle of a batch.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::{CHAT, Server, chat, ids, on_every_engine};

const LINES: usize = 3000;
const KILLS: usize = 5;

/// Calls at once: what a kill can make be sent again, beside what was not flushed.
const CONFIG: &str = r#"
[worker]
lease = "1s"

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 32

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

async fn no_kill_loses_or_doubles_a_line() {
    let seed: u64 = rand::random();
    println!("seed: {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::binary(CONFIG).await;
    let ids = ids(LINES);
    let jsonl: String = ids
        .iter()
        .enumerate()
        .map(|(number, id)| {
            let fault = if number % 97 == 0 {
                json!({"status": 400})
            } else {
                Value::Null
            };
            let slow = json!({"latency_ms": random.random_range(10..40)});
            chat(id, if fault.is_null() { slow } else { fault })
        })
        .collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    let done = |batch: &Value| {
        let counts = &batch["request_counts"];
        counts["completed"].as_i64().unwrap_or(0) + counts["failed"].as_i64().unwrap_or(0)
    };
    let mut before = 0;
    for _ in 0..KILLS {
        // At least one flush since the last kill, with lines in flight.
        let at = before + random.random_range(50..400);
        let killed = server.until(&batch, |batch| done(batch) >= at).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        before = done(&killed);
        server.kill().await;
        server.start_binary_again().await;
    }
    let batch = server.ended(&batch).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    let lines = server.exactly_once(&batch, &ids).await;
    for (number, id) in ids.iter().enumerate() {
        let expected = if number % 97 == 0 { 400 } else { 200 };
        assert_eq!(lines[id]["response"]["status_code"], expected, "{id}");
    }
    assert_eq!(done(&batch), LINES as i64);
    // What was in flight at a kill, or not flushed yet, is sent again; nothing else is. At 32 in
    // flight and 25 ms a call, that is what half a second of answers comes to.
    let calls = server.simulator.stats().total.calls;
    println!("calls: {calls}");
    let most = (LINES + KILLS * (32 + 640)) as u64;
    assert!(calls >= LINES as u64 && calls <= most, "{calls} calls");
}

on_every_engine![no_kill_loses_or_doubles_a_line];

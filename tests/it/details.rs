//! What an output line says of how it was answered, where its batch or the configuration asks for
//! that.

use serde_json::{Value, json};

use crate::support::{Api, Batch, CHAT, Server, chat, on_every_engine};

const PRICED: &str = r#"
[pricing]
currency = "usd"

[[upstreams]]
name = "gpu"
base_url = "{simulated}"
concurrency = 1
price = { input = 1, output = 1, request = 0.25 }

[[models]]
name = "sim-small"
routes = [{ upstream = "gpu", model = "their-small" }]
"#;

async fn run(api: &Api, jsonl: &str, extension: Value) -> Batch {
    let file = api.upload_batch(jsonl).await;
    let body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "nightshift": extension,
    });
    let batch = api.create(&body).await;
    api.ended(&batch).await
}

fn keys(line: &Value) -> Vec<&str> {
    let extension = line["nightshift"].as_object().expect("an object");
    let mut keys: Vec<&str> = extension.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

const ALL: [&str; 7] = [
    "attempts",
    "cached",
    "cost",
    "latency_ms",
    "model",
    "upstream",
    "warnings",
];

async fn every_line_says_how_it_was_answered_those_that_failed_too() {
    let quick = "[retry]\nmax_attempts = 3\ninitial_backoff = \"5ms\"\nmax_backoff = \"5ms\"\n";
    let config = format!("[output]\ndetails = true\n{quick}{PRICED}");
    let server = Server::with(&config).await;
    let lines = [
        chat("good", Value::Null),
        chat("again", json!({"status": 500, "times": 1})),
        chat("refused", json!({"status": 400})),
        chat("lost", json!({"reset": true})),
    ];
    let batch = run(&server, &lines.concat(), json!({})).await;
    let ids = ["good", "again", "refused", "lost"].map(str::to_owned);
    let all = server.exactly_once(&batch, &ids).await;
    for (id, attempts) in [("good", 1), ("again", 2), ("refused", 1), ("lost", 3)] {
        let line = &all[id];
        assert_eq!(keys(line), ALL, "{line}");
        let told = &line["nightshift"];
        assert_eq!(told["upstream"], "gpu");
        assert_eq!(told["model"], "sim-small", "as the line names it");
        assert_eq!(told["attempts"], attempts, "{line}");
        assert_eq!(told["cached"], false);
        assert!(told["latency_ms"].is_u64(), "{line}");
        assert_eq!(told["warnings"], json!([]));
    }
    let usage = &all["good"]["response"]["body"]["usage"];
    let tokens = usage["total_tokens"].as_f64().expect("a number");
    let cost = all["good"]["nightshift"]["cost"].as_f64().expect("a cost");
    assert!((cost - 0.25 - tokens / 1e6).abs() < 1e-9, "{cost} {usage}");
    assert_eq!(
        all["lost"]["nightshift"]["cost"],
        Value::Null,
        "nobody knows"
    );
}

async fn a_batch_decides_for_itself_and_a_restart_changes_nothing() {
    let quick = "[worker]\nshutdown_grace = \"50ms\"\n";
    let config = format!("[output]\ndetails = true\n{quick}{PRICED}");
    let mut server = Server::with(&config).await;
    let batch = run(&server, &chat("a", Value::Null), json!({"details": false})).await;
    let line = &server.output(&batch).await[0];
    assert_eq!(line.get("nightshift"), None, "{line}");

    let hangs = chat("a", json!({"hang": true, "times": 1}));
    let file = server.upload_batch(&hangs).await;
    let body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "nightshift": {"details": true},
    });
    let batch = server.create(&body).await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    server.stop().await;
    server.start_again().await;
    let batch = server.ended(&batch).await;
    assert_eq!(keys(&server.output(&batch).await[0]), ALL);
}

async fn a_line_that_was_never_sent_says_so() {
    let config = format!("[worker]\nsettle_timeout = \"50ms\"\n{PRICED}");
    let server = Server::with(&config).await;
    let lines = chat("first", json!({"hang": true})) + &chat("second", Value::Null);
    let file = server.upload_batch(&lines).await;
    let body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "nightshift": {"details": true},
    });
    let batch = server.create(&body).await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    crate::support::eventually("the first line is in flight", async || {
        let now = server.simulator.stats().total.in_flight;
        if now == 1 { Ok(()) } else { Err(now) }
    })
    .await;
    server.cancel(&batch).await;
    let batch = server.ended(&batch).await;
    let errors = server.errors(&batch).await;
    let second = errors.iter().find(|line| line["custom_id"] == "second");
    let told = &second.expect("has a line")["nightshift"];
    let expected = json!({
        "upstream": null, "model": null, "attempts": 0, "latency_ms": null, "cached": false,
        "cost": 0, "warnings": [],
    });
    assert_eq!(told, &expected);
}

on_every_engine!(
    every_line_says_how_it_was_answered_those_that_failed_too,
    a_batch_decides_for_itself_and_a_restart_changes_nothing,
    a_line_that_was_never_sent_says_so,
);

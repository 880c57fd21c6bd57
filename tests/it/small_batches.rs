//! What a batch of few lines costs beside its lines: statements, and rows that stay.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{CHAT, Server, chat, engines, ids, on_every_engine};

/// How many batches run while the statements are counted.
const BATCHES: u64 = 40;
/// How many statements a batch may cost, from its creation to its files. BEGIN and COMMIT count.
/// Two of them add what the batch used: to the minute, and to the batch.
const STATEMENTS_MAX: u64 = 17;
/// How many rows a batch of one chunk may leave in all tables, its input included.
const ROWS_MAX: i64 = 5;

/// The server logs its statements.
const LOGGED: &str = r#"
    [log]
    filter = "warn,sqlx::query=debug"
"#;

/// Who looks at a batch runs these statements, and not the batch.
const OF_CLIENTS: [&str; 3] = ["batch", "batches_of", "keys_of_hashes"];

async fn small_batches_cost_few_statements_one_by_one_and_together() {
    for at_once in [1, BATCHES as usize] {
        let mut server = Server::with(LOGGED).binary().await;
        let file = server.upload_batch(lines(5)).await;
        let body = json!({
            "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        });
        let run = async || {
            let batch = server.create(&body).await;
            let batch = server.ended(&batch).await;
            assert_eq!((&*batch.status, batch.counts.completed), ("completed", 5));
        };
        for _ in 0..BATCHES as usize / at_once {
            join_all((0..at_once).map(|_| run())).await;
        }
        let statements = statements(&server.binary_process().terminate().await);
        let all: u64 = statements.values().sum();
        println!(
            "{at_once} at once: {:.1} a batch, {statements:?}",
            all as f64 / BATCHES as f64
        );
        assert!(statements["create_batch"] == BATCHES, "{statements:?}");
        assert!(all <= STATEMENTS_MAX * BATCHES, "{all}: {statements:?}");
    }
}

/// How often each statement ran from the first batch's creation on, by its name, or by its first
/// word. What the process does from time to time is left out.
fn statements(log: &str) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for line in log.lines() {
        let Some((_, summary)) = line.split_once("sqlx::query: summary=\"") else {
            continue;
        };
        let text = summary.strip_prefix("-- ").unwrap_or(summary);
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = text.split(|c| !is_letter(c)).next().unwrap_or_default();
        if name == "create_batch" || !counts.is_empty() {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts.retain(|name, count| {
        let is_of_batches = *count >= BATCHES / 4 || name.contains("batch");
        is_of_batches && !OF_CLIENTS.contains(&name.as_str())
    });
    counts
}

fn lines(count: usize) -> String {
    ids(count).iter().map(|id| chat(id, Value::Null)).collect()
}

async fn a_batch_of_one_chunk_leaves_few_rows() {
    let server = Server::start().await;
    let batch = server.run(lines(40), CHAT).await;
    assert_eq!((&*batch.status, batch.counts.completed), ("completed", 40));
    let rows = engines::all_rows(&server.database).await;
    let all: i64 = rows.iter().map(|(_, rows)| rows).sum();
    assert!(all <= ROWS_MAX, "{all}: {rows:?}");
}

on_every_engine![
    small_batches_cost_few_statements_one_by_one_and_together,
    a_batch_of_one_chunk_leaves_few_rows,
];

//! A server that is killed again and again in the middle of a batch.

use std::collections::BTreeMap;
use std::time::Duration;

use nightshift::simulate::Options;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::until;
use crate::support::session::Session;
use crate::support::{CHAT, Server, chat, ids, on_every_engine};

const KILLS: usize = 20;
/// More than run between two kills, so that the batch outlasts them.
const LINES_A_KILL: usize = 250;
const DURABLE: &str =
    "SELECT CAST(COALESCE(SUM(completed + failed), 0) AS BIGINT) FROM batch_counts";

/// A name, so that it goes on at once where others might have its lease.
const CONFIG: &str = r#"
[worker]
name = "killed"
lease = "1s"

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 16

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

async fn no_kill_loses_or_doubles_a_line() {
    let kills = given("NIGHTSHIFT_TEST_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed: u64 = given("NIGHTSHIFT_TEST_SEED").unwrap_or_else(rand::random);
    println!("kills: {kills}, seed: {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::binary(CONFIG).await;
    let ids = ids(kills * LINES_A_KILL);
    let requests = requests(&ids, &mut random);
    let jsonl: String = requests.values().map(String::as_str).collect();
    let batch = server.create_batch(&jsonl, CHAT).await;

    let (mut durable, mut calls, mut wasted) = (0, 0, 0);
    for _ in 0..kills {
        // At least one flush since the last kill, and then at any moment, with lines in flight.
        server.until(&batch, |batch| done(batch) > durable).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        until("lines are in flight", async || {
            server.simulator.stats().total.in_flight > 0
        })
        .await;
        server.kill().await;
        until("all calls are cut", async || {
            server.simulator.stats().total.in_flight == 0
        })
        .await;
        let stats = server.simulator.stats();
        assert_eq!(
            stats.bodies.expect("are tracked").most_calls,
            1,
            "one life of the server sends no line twice"
        );
        let before = durable;
        let mut session = Session::open(&server.database).await;
        durable = session.number(DURABLE).await;
        assert!(durable > before, "there was a flush since the last kill");
        calls += stats.total.calls;
        wasted += stats.total.calls as i64 - (durable - before);
        server.simulator.reset_stats();
        server.start_binary_again().await;
    }
    let batch = ended(&server, &batch, durable).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_right(&server, &batch, &ids, &requests).await;

    // What was in flight at a kill, or not flushed yet, is sent again; nothing else is: a life of
    // the server sends a line once, and the last one sends none that was durable when it began.
    let last = server.simulator.stats();
    assert_eq!(last.bodies.expect("are tracked").most_calls, 1);
    let left = ids.len() as i64 - durable;
    assert!(
        last.total.calls as i64 <= left,
        "{} calls for the last {left} lines",
        last.total.calls
    );
    calls += last.total.calls;
    println!(
        "calls: {calls} for {} lines; in flight or not flushed at the kills: {wasted}",
        ids.len()
    );
    assert!(calls as i64 <= ids.len() as i64 + wasted);
}

/// Each id's line: some slower than others, and some that the model server refuses.
fn requests(ids: &[String], random: &mut StdRng) -> BTreeMap<usize, String> {
    let mut request = |number: usize| {
        let simulate = if refused(number) {
            json!({"status": 400})
        } else {
            json!({"latency_ms": random.random_range(10..50)})
        };
        chat(&ids[number], simulate)
    };
    (0..ids.len())
        .map(|number| (number, request(number)))
        .collect()
}

fn refused(number: usize) -> bool {
    number.is_multiple_of(97)
}

fn done(batch: &Value) -> i64 {
    let counts = &batch["request_counts"];
    counts["completed"].as_i64().unwrap_or(0) + counts["failed"].as_i64().unwrap_or(0)
}

/// Waits for the end as long as it comes nearer.
async fn ended(server: &Server, batch: &Value, mut from: i64) -> Value {
    loop {
        let batch = server
            .until(batch, |batch| {
                batch["status"] == "completed" || done(batch) >= from + 1000
            })
            .await;
        from = done(&batch);
        if batch["status"] == "completed" {
            return batch;
        }
    }
}

/// Every line is there once, in order, with the answer that its own body gets.
async fn assert_right(
    server: &Server,
    batch: &Value,
    ids: &[String],
    requests: &BTreeMap<usize, String>,
) {
    let lines = server.exactly_once(batch, ids).await;
    for (number, id) in ids.iter().enumerate() {
        let response = &lines[id]["response"];
        if refused(number) {
            assert_eq!(response["status_code"], 400, "{id}");
            continue;
        }
        let request: Value = serde_json::from_str(&requests[&number]).expect("is JSON");
        let body = request["body"].to_string();
        let answer = Options::default().answer(CHAT, body.as_bytes());
        let answer: Value = serde_json::from_slice(&answer.expect("is answered")).expect("is JSON");
        assert_eq!(response["status_code"], 200, "{id}");
        assert_eq!(response["body"], answer, "{id}");
    }
    let failed = (0..ids.len()).filter(|&number| refused(number)).count();
    let counts = json!({"total": ids.len(), "completed": ids.len() - failed, "failed": failed});
    assert_eq!(batch["request_counts"], counts);
}

/// A number in a variable of the environment, for longer runs and for those that failed.
fn given(variable: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "whoever runs the tests may say")]
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("is a number"))
}

on_every_engine![no_kill_loses_or_doubles_a_line];

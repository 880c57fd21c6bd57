//! A server that is killed again and again in the middle of a batch.

use std::collections::BTreeMap;
use std::time::Duration;

use nightshift::internals::simulate::Options;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::binary::Launch;
use crate::support::session::Session;
use crate::support::{
    Batch, CHAT, Counts, Server, chat, engines, eventually, ids, on_every_engine,
};

const KILLS: usize = 20;
/// More than run between two kills, so that the batch outlasts them.
const LINES_A_KILL: usize = 250;

/// Calls that may be in flight.
const PERMITS: u64 = 16;
/// Room for the text of two units, and for some answers beside it.
const BUDGET: usize = 384 << 10;
/// No answer is shorter than this.
const ANSWER: usize = 12_000;
/// What a kill may cost, by the configuration alone: calls in flight, and answers that are not
/// durable yet, which the budget holds. One of them may overdraw it.
const LOST_A_KILL: u64 = PERMITS + (BUDGET / ANSWER) as u64 + 1;

/// A name, so that it goes on at once where others might have its lease.
const CONFIG: &str = r#"
[worker]
name = "killed"
lease = "1s"

[limits]
max_line_bytes = 65_536
max_in_flight_bytes = {budget}

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = {permits}

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

async fn no_kill_loses_or_doubles_a_line() {
    let kills = given("NIGHTSHIFT_TEST_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed: u64 = given("NIGHTSHIFT_TEST_SEED").unwrap_or_else(rand::random);
    println!("kills: {kills}, seed: {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let config = CONFIG.replace("{budget}", &BUDGET.to_string());
    let mut server = Server::with(&config.replace("{permits}", &PERMITS.to_string()))
        .binary()
        .await;
    let ids = ids(kills * LINES_A_KILL);
    let requests = requests(&ids, &mut random);
    let jsonl: String = requests.values().map(String::as_str).collect();
    let batch = server.create_batch(&jsonl, CHAT).await;

    let (mut durable, mut calls, mut most_lost) = (0, 0, 0);
    for _ in 0..kills {
        // At least one flush since the last kill, and then at any moment, with lines in flight.
        server
            .until(&batch, |batch| batch.done() as i64 > durable)
            .await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        eventually("lines are in flight", async || {
            server.simulator.stats().total.in_flight > 0
        })
        .await;
        server.kill().await;
        backends_are_through(&server).await;
        eventually("all calls are cut", async || {
            server.simulator.stats().total.in_flight == 0
        })
        .await;
        let made = calls_of_one_life(&server);
        let before = durable;
        let mut session = Session::open(&server.database).await;
        durable = session.number(engines::COUNTED).await;
        assert!(durable > before, "there was a flush since the last kill");
        // Not what was seen to be in flight, which would be right by definition: what may be.
        let written = u64::try_from(durable - before).expect("is positive");
        let lost = made.checked_sub(written).expect("what is done was sent");
        assert!(
            lost <= LOST_A_KILL,
            "{made} calls, {written} lines written: {lost} calls for nothing"
        );
        calls += made;
        most_lost = most_lost.max(lost);
        server.simulator.reset_stats();
        server.start_process(Launch::new()).await;
    }
    let batch = ended(&server, &batch, durable).await;
    assert_eq!(batch.status, "completed", "{batch}");
    assert_right(&server, &batch, &ids, &requests).await;

    // The last life sends what was not durable when it began, and nothing else.
    let left = ids.len() as u64 - u64::try_from(durable).expect("is positive");
    let last = calls_of_one_life(&server);
    assert_eq!(last, left, "calls for the last lines");
    calls += last;
    let (lines, allowed) = (ids.len() as u64, kills as u64 * LOST_A_KILL);
    println!(
        "calls: {calls} for {lines} lines; {} more, of {allowed} that may be; at most {most_lost} \
         at one kill",
        calls - lines
    );
    assert!(calls <= lines + allowed);
}

/// What a process had sent before it was killed, Postgres's backends still do.
async fn backends_are_through(server: &Server) {
    if server.database.starts_with("postgres") {
        let of_servers = "pg_stat_activity
            WHERE datname = current_database() AND application_name = 'nightshift'";
        server.until_rows(of_servers, |left| left == 0).await;
    }
}

/// How many calls the upstream saw of one life of the server: never more at once than permitted,
/// and no line twice.
fn calls_of_one_life(server: &Server) -> u64 {
    let stats = server.simulator.stats();
    assert!(stats.total.most_in_flight <= PERMITS, "{:?}", stats.total);
    let bodies = stats.bodies.expect("are tracked");
    assert_eq!(bodies.most_calls, 1, "one life sends no line twice");
    // A kill cuts connections, some of them before the upstream has read what was sent.
    let unread = stats.total.calls - bodies.distinct;
    assert!(
        unread <= stats.total.abandoned,
        "each call that was not cut off has a body: {stats:?}"
    );
    stats.total.calls
}

/// Each id's line: some slower than others, and some that the model server refuses. No answer is
/// short.
fn requests(ids: &[String], random: &mut StdRng) -> BTreeMap<usize, String> {
    let mut request = |number: usize| {
        let simulate = if refused(number) {
            json!({"status": 400, "body": "x".repeat(ANSWER)})
        } else {
            json!({"latency_ms": random.random_range(10..50), "bytes": ANSWER})
        };
        chat(&ids[number], simulate)
    };
    (0..ids.len())
        .map(|number| (number, request(number)))
        .collect()
}

fn refused(number: usize) -> bool {
    number % 499 == 7
}

/// Waits for the end as long as it comes nearer.
async fn ended(server: &Server, batch: &Batch, mut from: i64) -> Batch {
    loop {
        let batch = server
            .until(batch, |batch| {
                batch.status == "completed" || batch.done() as i64 >= from + 1000
            })
            .await;
        from = batch.done() as i64;
        if batch.status == "completed" {
            return batch;
        }
    }
}

/// Every line is there once, in order, with the answer that its own body gets.
async fn assert_right(
    server: &Server,
    batch: &Batch,
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
    let completed = ids.len() - failed;
    assert_eq!(batch.counts, Counts::of(ids.len(), completed, failed));
}

/// A number in a variable of the environment, for longer runs and for those that failed.
fn given(variable: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "whoever runs the tests may say")]
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("is a number"))
}

on_every_engine![no_kill_loses_or_doubles_a_line];

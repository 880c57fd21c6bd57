//! Replicas with a name of their own.

use nightshift::internals::store::Engine;
use serde_json::json;

use crate::support::binary::{Launch, command, ended};
use crate::support::session::Session;
use crate::support::{Batch, CHAT, Server, chat, eventually, ids, on};

fn config(lease: &str) -> String {
    format!("[worker]\nname = \"worker-1\"\nlease = \"{lease}\"")
}

/// A batch of so many lines, each of which takes so long.
async fn slow(server: &Server, lines: usize, latency_ms: u64) -> (Batch, Vec<String>) {
    let ids = ids(lines);
    let jsonl: String = ids
        .iter()
        .map(|id| chat(id, json!({"latency_ms": latency_ms})))
        .collect();
    (server.create_batch(&jsonl, CHAT).await, ids)
}

async fn some_are_done(server: &Server, batch: &Batch) {
    let is_done = |batch: &Batch| batch.counts.completed > 0;
    server.until(batch, is_done).await;
}

#[tokio::test]
async fn a_replica_that_is_started_again_under_its_name_goes_on_at_once() {
    let test = async {
        // Without the name it would wait for the old lease to run out, and for a lease more in
        // which others who live may come back: longer than anything is waited for here.
        let mut server = Server::with(&config("60s")).binary().await;
        let (batch, ids) = slow(&server, 600, 20).await;
        some_are_done(&server, &batch).await;
        server.kill().await;
        server.start_process(Launch::new()).await;
        let batch = server.ended(&batch).await;
        server.exactly_once(&batch, &ids).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn a_process_that_is_started_again_on_its_sqlite_file_goes_on_at_once_without_a_name() {
    let test = async {
        // Nobody else can have the file: nobody waits for a lease, which outlasts all that is
        // waited for here.
        let mut server = Server::with("[worker]\nlease = \"600s\"").binary().await;
        // The first line is not through before the kill.
        let mut ids = ids(600);
        ids.insert(0, "hangs".to_owned());
        let steering = |id: &str| match id {
            "hangs" => json!({"hang": true, "times": 1}),
            _ => json!(null),
        };
        let jsonl: String = ids.iter().map(|id| chat(id, steering(id))).collect();
        let batch = server.create_batch(&jsonl, CHAT).await;
        some_are_done(&server, &batch).await;
        server.kill().await;
        server
            .until_rows("units WHERE state = 'leased'", |count| count > 0)
            .await;
        server.start_process(Launch::new()).await;
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 601);
        server.exactly_once(&batch, &ids).await;
    };
    on(Engine::Sqlite, Box::pin(test)).await;
}

#[tokio::test]
async fn a_name_that_another_process_has_is_refused() {
    let test = async {
        let server = Server::with(&config("10s")).binary().await;
        let mut second = command(&["serve", "--config"]);
        second
            .arg(server.config_file())
            .env("DATABASE_URL", &server.database)
            .env("NIGHTSHIFT_SERVER__LISTEN", "127.0.0.1:0");
        let second = ended(second).await;
        assert_eq!((second.code, second.out.as_str()), (Some(1), ""));
        assert!(
            second
                .errors
                .contains("another process runs as worker.name = \"worker-1\""),
            "{}",
            second.errors
        );
        // The first is none the worse for it.
        let batch = server.run(chat("a", json!(null)), CHAT).await;
        assert_eq!(batch.counts.completed, 1);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn a_replica_that_was_silent_while_its_name_was_taken_ends_and_changes_nothing() {
    let test = async {
        let mut server = Server::with(&config("10s")).binary().await;
        let (batch, ids) = slow(&server, 200, 200).await;
        eventually("calls are in flight", async || {
            server.simulator.stats().total.in_flight > 30
        })
        .await;
        let silent = server.binary_process();
        silent.signal("STOP");
        server.start_process(Launch::new()).await;
        some_are_done(&server, &batch).await;
        silent.signal("CONT");
        let ended = silent.ended().await;
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        assert!(
            ended
                .errors
                .contains("another process has joined as \\\"worker-1\\\"")
                || ended
                    .errors
                    .contains("another process has joined as \"worker-1\""),
            "{}",
            ended.errors
        );
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 200);
        server.exactly_once(&batch, &ids).await;
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

#[tokio::test]
async fn the_share_of_a_namesake_is_not_given_away_while_its_lease_runs() {
    let test = async {
        let mut server = Server::with(&config("1s")).binary().await;
        server
            .until_rows("shares WHERE held = 64", |count| count > 0)
            .await;
        let silent = server.binary_process();
        silent.signal("STOP");
        // As if its turns, unlike its renewals, still reached the database.
        let mut database = Session::open(&server.database).await;
        let old = "UPDATE share_holders SET held_until = joined_at";
        database.execute(&format!("{old} + 3600000")).await;

        server.start_process(Launch::new()).await;
        let batch = server.create_batch(chat("a", json!(null)), CHAT).await;
        eventually("the new one wants a place", async || {
            let wants = "SELECT count(*) FROM shares WHERE wants > 0
                AND token IN (SELECT token FROM replicas)";
            database.number(wants).await > 0
        })
        .await;
        // It has turns enough to know of everybody.
        let turns = "SELECT COALESCE(MAX(held_until), 0) FROM share_holders
            WHERE token IN (SELECT token FROM replicas)";
        let then = database.number(turns).await + 3_000;
        eventually("it has had its turns", async || {
            database.number(turns).await > then
        })
        .await;
        assert_eq!(server.simulator.stats().total.calls, 0);

        // Now nobody has turns under the old lease any more.
        database
            .execute(&format!(
                "{old} WHERE token NOT IN (SELECT token FROM replicas)"
            ))
            .await;
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 1);
    };
    on(Engine::Postgres, Box::pin(test)).await;
}

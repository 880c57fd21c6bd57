//! Batches are paused and resumed, go before others, and wait for a time.

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::{Ended, Launch, command, ended};
use crate::support::{
    Batch, CHAT, Server, chat, eventually, granting, ids, on, on_every_engine, request,
};

/// One model, of which so many calls are made at once.
fn config(concurrency: usize) -> String {
    format!(
        "[[upstreams]]\nname = \"only\"\nbase_url = \"{{simulated}}\"\n\
         concurrency = {concurrency}\n\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"only\" }}]\n"
    )
}

fn lines(ids: &[String], latency_ms: u64) -> String {
    let line = |id: &String| chat(id, json!({"latency_ms": latency_ms}));
    ids.iter().map(line).collect()
}

/// Lines of several units.
fn padded(ids: &[String], latency_ms: u64) -> String {
    let padding = "x".repeat(2_000);
    let line = |id: &String| {
        let body = json!({
            "model": "sim-small", "messages": [{"role": "user", "content": padding}],
            "simulate": {"latency_ms": latency_ms},
        });
        request(id, body)
    };
    ids.iter().map(line).collect()
}

async fn steer(server: &Server, batch: &Batch, act: &str) -> Batch {
    let path = format!("{}/{act}", batch.path());
    server.post(&path, &json!({})).await.into()
}

/// The status and the body of an answer to a POST.
async fn posted(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let request = server.client().post(server.url(path)).json(body);
    let response = request.send().await.expect("answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("is JSON"))
}

/// Creates a batch that asks for what OpenAI does not have.
async fn create(server: &Server, jsonl: String, nightshift: Value) -> Batch {
    let file = server.upload_batch(jsonl).await;
    let body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "nightshift": nightshift,
    });
    server.create(&body).await
}

/// Waits until no unit of a batch is in hand, and so no call of it in flight.
async fn until_at_rest(server: &Server, batch: &Batch) {
    let leased = format!("units WHERE batch_id = '{}' AND state = 'leased'", batch.id);
    server.until_rows(&leased, |units| units == 0).await;
}

async fn nothing_of_a_paused_batch_is_sent_until_it_is_resumed_and_nothing_is_lost() {
    let server = Server::with(&config(4)).await;
    let ids = ids(300);
    let batch = server.create_batch(lines(&ids, 20), CHAT).await;
    assert_eq!(batch["nightshift"], Value::Null, "there is nothing to say");
    server.until(&batch, |batch| batch.done() >= 20).await;
    let paused = steer(&server, &batch, "pause").await;
    assert_eq!(paused["nightshift"]["paused"], true, "{paused}");
    assert!(paused["nightshift"]["paused_at"].is_i64(), "{paused}");
    let again = steer(&server, &batch, "pause").await;
    assert_eq!(again["nightshift"], paused["nightshift"], "it stays so");
    until_at_rest(&server, &batch).await;
    let sent = server.simulator.stats().total.calls;
    assert!(sent < 300, "{sent}");

    // Others go on meanwhile.
    let other = server.run(lines(&ids[..40], 0), CHAT).await;
    assert_eq!(other.counts.completed, 40, "{other}");
    assert_eq!(server.simulator.stats().total.calls, sent + 40);
    let paused = server.batch(&batch).await;
    assert_eq!(paused.status, "in_progress", "{paused}");
    assert_eq!(paused.done() as u64, sent, "each call has its answer");

    let resumed = steer(&server, &batch, "resume").await;
    assert_eq!(resumed["nightshift"], Value::Null, "{resumed}");
    let whole = server.ended(&batch).await;
    assert_eq!(whole.counts.completed, 300, "{whole}");
    server.exactly_once(&whole, &ids).await;
    assert_eq!(
        server.simulator.stats().total.calls,
        340,
        "no line was sent twice"
    );
}

#[tokio::test]
async fn a_pause_holds_over_all_replicas_whatever_becomes_of_one() {
    on(Engine::Postgres, async {
        let config = format!("[worker]\nlease = \"1s\"\n{}", config(6));
        let server = Server::with(&config).binary().await;
        let killed = server.replica(Launch::new()).await;
        let _other = server.replica(Launch::new()).await;
        let ids = ids(900);
        let batch = server.create_batch(padded(&ids, 10), CHAT).await;
        server.until(&batch, |batch| batch.done() >= 20).await;
        steer(&server, &batch, "pause").await;
        killed.signal("KILL");
        killed.ended().await;
        until_at_rest(&server, &batch).await;
        let sent = server.simulator.stats().total.calls;
        let other = server.run(lines(&ids[..40], 0), CHAT).await;
        assert_eq!(other.counts.completed, 40, "{other}");
        assert_eq!(server.simulator.stats().total.calls, sent + 40);
        steer(&server, &batch, "resume").await;
        let whole = server.ended(&batch).await;
        assert_eq!(whole.counts.completed, 900, "{whole}");
        server.exactly_once(&whole, &ids).await;
    })
    .await;
}

async fn a_batch_may_be_created_paused_and_a_paused_one_ends_like_any_other() {
    let server = Server::with(&config(4)).await;
    let ids = ids(10);
    let batch = create(&server, lines(&ids, 0), json!({"paused": true})).await;
    assert_eq!(batch["nightshift"]["paused"], true, "{batch}");
    let batch = server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    let other = server.run(lines(&ids, 0), CHAT).await;
    assert_eq!(other.counts.completed, 10);
    assert_eq!(server.simulator.stats().total.calls, 10);
    server.cancel(&batch).await;
    let cancelled = server.ended(&batch).await;
    assert_eq!((&*cancelled.status, cancelled.done()), ("cancelled", 0));
    for act in ["pause", "resume"] {
        let path = format!("{}/{act}", batch.path());
        let (status, error) = posted(&server, &path, &json!({})).await;
        let message = format!("Cannot {act} a batch with status 'cancelled'.");
        assert_eq!((status, &error["error"]["message"]), (409, &json!(message)));
        let path = format!("/v1/batches/batch_nobody_has/{act}");
        let (status, _) = posted(&server, &path, &json!({})).await;
        assert_eq!(status, 404);
    }
    assert_eq!(server.simulator.stats().total.calls, 10);
}

async fn within_a_tenant_a_batch_of_a_higher_priority_goes_first() {
    let options = granting(0);
    let server = Server::with(&config(1)).upstream(options).await;
    let ids = ids(20);
    let low = server.create_batch(lines(&ids, 0), CHAT).await;
    eventually("a line of it is on its way", async || {
        server.simulator.stats().total.in_flight == 1
    })
    .await;
    let high = create(&server, lines(&ids, 0), json!({"priority": 5})).await;
    assert_eq!(high["nightshift"], json!({"priority": 5}));
    let leased = format!("units WHERE batch_id = '{}' AND state = 'leased'", high.id);
    server.until_rows(&leased, |units| units == 1).await;
    // Of the other one lines are sent until the text of this one is read. By turns it would be as
    // many as of this one.
    let high = server
        .until(&high, |high| {
            server.simulator.grant(2);
            high.has_ended()
        })
        .await;
    assert_eq!(high.counts.completed, 20, "{high}");
    let behind = server.batch(&low).await;
    assert!(behind.done() <= 10, "{behind}");
    server.simulator.grant(40);
    let low = server.ended(&low).await;
    assert_eq!(low.counts.completed, 20, "{low}");
}

async fn no_line_is_sent_before_the_time_that_a_batch_names() {
    let server = Server::with(&config(4)).await;
    let ids = ids(10);
    let now = server.run(lines(&ids, 0), CHAT).await;
    let begin = now["created_at"].as_i64().expect("a time") + 3_600;
    let batch = create(&server, lines(&ids, 0), json!({"not_before": begin})).await;
    assert_eq!(batch["nightshift"], json!({"not_before": begin}));
    let batch = server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    server.run(lines(&ids, 0), CHAT).await;
    assert_eq!(server.batch(&batch).await.done(), 0);
    server.clock.advance_ms(3_601_000);
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 10, "{batch}");
}

async fn what_cannot_be_is_refused_by_name() {
    let bound = "[[tenants]]\nname = \"*\"\nmax_priority = 10\n";
    let server = Server::with(&format!("{}{bound}", config(4))).await;
    let file = server.upload_batch(lines(&ids(1), 0)).await;
    for (nightshift, code, param) in [
        (
            json!({"priority": 11}),
            "invalid_value",
            "nightshift.priority",
        ),
        (
            json!({"priority": -101}),
            "integer_below_min_value",
            "nightshift.priority",
        ),
        (
            json!({"priority": "x"}),
            "invalid_type",
            "nightshift.priority",
        ),
        (
            json!({"not_before": 253_402_300_799_i64}),
            "invalid_value",
            "nightshift.not_before",
        ),
        (json!({"paused": 1}), "invalid_type", "nightshift.paused"),
        (json!({"later": 1}), "unknown_parameter", "nightshift.later"),
    ] {
        let body = json!({
            "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
            "nightshift": nightshift,
        });
        let (status, answer) = posted(&server, "/v1/batches", &body).await;
        assert_eq!(status, 400, "{answer}");
        let error = &answer["error"];
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!(code), &json!(param))
        );
    }
}

/// A command about a batch of this server.
async fn commanded(server: &Server, words: &[&str]) -> Ended {
    let mut command = command(words);
    command.args(["--url", &server.url(""), "--api-key-env", "A_KEY"]);
    command.env("A_KEY", server.key());
    ended(command).await
}

async fn a_batch_is_paused_resumed_and_cancelled_from_the_command_line() {
    let options = Options {
        granted: Some(0),
        ..Options::default()
    };
    let server = Server::with(&config(2)).upstream(options).await;
    let batch = server.create_batch(lines(&ids(5), 0), CHAT).await;
    let paused = commanded(&server, &["pause", &batch.id]).await;
    assert_eq!(paused.code, Some(0), "{paused:?}");
    assert_eq!(paused.out, format!("{} is paused\n", batch.id));
    let shown = commanded(&server, &["resume", &batch.id, "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.out).expect("is JSON");
    assert_eq!(
        (&shown["id"], &shown["nightshift"]),
        (&json!(batch.id), &Value::Null)
    );
    let unknown = commanded(&server, &["pause", "batch_nobody_has"]).await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(
        unknown.errors.contains("No such batch") || unknown.errors.contains("404"),
        "{unknown:?}"
    );
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    let cancelled = commanded(&server, &["cancel", &batch.id]).await;
    assert_eq!(cancelled.out, format!("{} is cancelling\n", batch.id));
    server.simulator.grant(5);
    server.ended(&batch).await;
}

on_every_engine![
    nothing_of_a_paused_batch_is_sent_until_it_is_resumed_and_nothing_is_lost,
    a_batch_may_be_created_paused_and_a_paused_one_ends_like_any_other,
    within_a_tenant_a_batch_of_a_higher_priority_goes_first,
    no_line_is_sent_before_the_time_that_a_batch_names,
    what_cannot_be_is_refused_by_name,
    a_batch_is_paused_resumed_and_cancelled_from_the_command_line,
];

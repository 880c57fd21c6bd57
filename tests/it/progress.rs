//! One picture of how a batch goes.

use serde_json::{Value, json};

use crate::support::binary::Launch;
use crate::support::metrics::operator;
use crate::support::{
    Batch, CHAT, Server, chat, client_with, eventually, granting, ids, on_every_engine,
};

const CONFIG: &str = r#"
[pricing]
currency = "usd"

[[upstreams]]
name = "only"
base_url = "{simulated}"
concurrency = 4
price = { input = 1000, output = 1000 }

[[models]]
name = "sim-small"
routes = [{ upstream = "only" }]
"#;

fn lines(count: usize) -> String {
    let line = |id: &String| chat(id, Value::Null);
    ids(count).iter().map(line).collect()
}

async fn picture(server: &Server, batch: &Batch) -> Value {
    let picture = server.get(&format!("{}/progress", batch.path())).await;
    let lines = ["running", "waiting", "completed", "failed", "cancelled"];
    let lines: i64 = lines
        .iter()
        .map(|key| picture[key].as_i64().expect("a number"))
        .sum();
    assert_eq!(lines, picture["total"], "{picture}");
    picture
}

/// Waits until something holds of the picture.
async fn until(server: &Server, batch: &Batch, holds: impl Fn(&Value) -> bool) -> Value {
    eventually("the picture is so", async || {
        let picture = picture(server, batch).await;
        if holds(&picture) {
            Ok(picture)
        } else {
            Err(picture)
        }
    })
    .await
}

async fn a_batch_is_told_of_while_it_runs_while_it_is_paused_and_at_its_end() {
    let server = Server::with(CONFIG).upstream(granting(6)).await;
    let batch = server.create_batch(lines(20), CHAT).await;
    let runs = until(&server, &batch, |picture| {
        picture["running"] == 4 && picture["completed"] == 6
    })
    .await;
    assert_eq!((&runs["total"], &runs["waiting"]), (&json!(20), &json!(10)));
    assert_eq!(
        (&runs["object"], &runs["status"]),
        (&json!("batch.progress"), &json!("in_progress"))
    );
    assert_eq!(runs["paused"], false);
    let paced = until(&server, &batch, |picture| picture["eta_seconds"].is_i64()).await;
    for pace in ["lines_per_second", "tokens_per_second"] {
        assert!(
            paced[pace].as_f64().is_some_and(|pace| pace > 0.0),
            "{paced}"
        );
    }
    assert_eq!(paced["window_holds"], true, "{paced}");
    let limit = "the limit of the model sim-small";
    let waits = |picture: &Value| picture["waits_for"].as_str().unwrap_or_default().to_owned();
    until(&server, &batch, |picture| waits(picture).starts_with(limit)).await;
    for (list, name) in [("models", "sim-small"), ("upstreams", "only")] {
        let [part] = &paced[list].as_array().expect("a list")[..] else {
            panic!("{paced}");
        };
        assert_eq!(
            (&part["name"], &part["lines"]),
            (&json!(name), &json!(6)),
            "{paced}"
        );
        let tokens = |key: &str| part[key].as_i64().expect("a number");
        // A thousand for a million tokens.
        let thousandths = tokens("input_tokens") + tokens("output_tokens");
        let cost: f64 = part["cost"]
            .as_str()
            .expect("a decimal")
            .parse()
            .expect("a number");
        assert!((cost * 1_000.0 - thousandths as f64).abs() < 1e-6, "{part}");
        assert_eq!(part["cost"], paced["cost"], "{paced}");
        assert!(part["latency_ms"].is_i64(), "{part}");
    }

    server
        .post(&format!("{}/pause", batch.path()), &json!({}))
        .await;
    let paused = picture(&server, &batch).await;
    assert_eq!(
        (&paused["paused"], &paused["eta_seconds"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(paused["waits_for"], "the batch is paused");
    server
        .post(&format!("{}/resume", batch.path()), &json!({}))
        .await;
    server.simulator.grant(14);
    server.ended(&batch).await;
    let ended = picture(&server, &batch).await;
    assert_eq!(
        (
            &ended["completed"],
            &ended["running"],
            &ended["eta_seconds"]
        ),
        (&json!(20), &json!(0), &json!(0)),
        "{ended}"
    );
    assert_eq!(
        (&ended["waits_for"], &ended["window_holds"]),
        (&Value::Null, &Value::Null)
    );
}

async fn a_picture_names_what_a_batch_waits_for() {
    let server = Server::with(CONFIG).upstream(granting(0)).await;
    let key = operator(&server.database).await;
    let switch = async |act: &str| {
        let url = server.url(&format!("/admin/upstreams/only/{act}"));
        let switched = client_with(Some(&key)).post(url).send().await;
        assert_eq!(switched.expect("answers").status(), 200);
    };
    let batch = server.create_batch(lines(20), CHAT).await;
    until(&server, &batch, |picture| picture["running"] == 4).await;
    switch("disable").await;
    let words = "the upstream only, which is disabled";
    until(&server, &batch, |picture| picture["waits_for"] == words).await;

    let file = server.upload_batch(lines(3)).await;
    let begin = batch["created_at"].as_i64().expect("a time") + 3_600;
    let later = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "nightshift": {"not_before": begin},
    });
    let later = server.create(&later).await;
    let words = "the time before which no line is sent (not_before)";
    until(&server, &later, |picture| picture["waits_for"] == words).await;

    let path = "/v1/batches/batch_nobody_has/progress";
    let unknown = server.client().get(server.url(path)).send().await;
    assert_eq!(unknown.expect("answers").status(), 404);
    switch("enable").await;
    server.simulator.grant(20);
    server.ended(&batch).await;
}

async fn what_a_process_told_goes_with_the_batch_and_with_its_lease() {
    let mut server = Server::with(CONFIG).upstream(granting(0)).binary().await;
    let batch = server.create_batch(lines(20), CHAT).await;
    server.until_rows("batch_progress", |rows| rows == 1).await;
    server.simulator.grant(20);
    server.ended(&batch).await;
    server.until_rows("batch_progress", |rows| rows == 0).await;

    let batch = server.create_batch(lines(20), CHAT).await;
    server.until_rows("batch_progress", |rows| rows == 1).await;
    server.kill().await;
    server.start_process(Launch::new()).await;
    server.simulator.grant(20);
    server.ended(&batch).await;
    server.until_rows("batch_progress", |rows| rows == 0).await;
}

on_every_engine![
    a_batch_is_told_of_while_it_runs_while_it_is_paused_and_at_its_end,
    a_picture_names_what_a_batch_waits_for,
    what_a_process_told_goes_with_the_batch_and_with_its_lease,
];

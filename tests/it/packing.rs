//! Lines of `/v1/embeddings` that share calls.

use std::collections::BTreeMap;

use nightshift::internals::simulate::Options;
use serde_json::{Value, json};

use crate::support::binary::Launch;
use crate::support::metrics::operator;
use crate::support::{
    Batch, Counts, Server, client_with, eventually, granting, ids, on_every_engine,
};

const EMBEDDINGS: &str = "/v1/embeddings";

/// One upstream, and a route by which this many inputs share a call.
fn packs(inputs: usize) -> String {
    format!(
        r#"
[retry]
initial_backoff = "5ms"
max_backoff = "50ms"

[[upstreams]]
name = "simulated"
base_url = "{{simulated}}"
concurrency = 4

[[models]]
name = "sim-embed"
routes = [{{ upstream = "simulated", pack = {inputs} }}]
"#
    )
}

/// A line that asks for small vectors.
fn line(custom_id: &str, input: &Value) -> String {
    let body = json!({"model": "sim-embed", "input": input, "dimensions": 4});
    line_of(custom_id, &body)
}

fn line_of(custom_id: &str, body: &Value) -> String {
    let line = json!({"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": body});
    format!("{line}\n")
}

/// Lines with one text each, all of different lengths.
fn texts(ids: &[String]) -> String {
    let text = |(place, id): (usize, &String)| format!("{id} {}", "word ".repeat(place % 17));
    let texts = ids.iter().enumerate().map(text);
    let lines = ids.iter().zip(texts);
    lines.map(|(id, text)| line(id, &json!(text))).collect()
}

/// What each line was answered, without its tokens.
async fn vectors(server: &Server, batch: &Batch) -> BTreeMap<String, Value> {
    let output = server.output(batch).await.into_iter();
    let own = output.map(|line| {
        let body = &line["response"]["body"];
        assert_eq!(body["object"], "list", "{line}");
        let id = line["custom_id"].as_str().expect("a text").to_owned();
        (id, json!([body["data"], body["model"]]))
    });
    own.collect()
}

/// The tokens of all lines together.
async fn tokens(server: &Server, batch: &Batch) -> i64 {
    let output = server.output(batch).await;
    let of_line = |line: &Value| line["response"]["body"]["usage"]["prompt_tokens"].as_i64();
    output
        .iter()
        .map(|line| of_line(line).expect("tokens"))
        .sum()
}

async fn lines_share_calls_and_each_gets_what_it_would_get_alone() {
    let ids = ids(640);
    let alone = Server::with(&packs(1)).await;
    let batch = alone.run(texts(&ids), EMBEDDINGS).await;
    assert_eq!(batch.counts, Counts::of(640, 640, 0), "{batch}");
    assert_eq!(alone.simulator.stats().total.calls, 640);
    let expected = vectors(&alone, &batch).await;
    let spent = tokens(&alone, &batch).await;

    let together = Server::with(&packs(64)).await;
    let batch = together.run(texts(&ids), EMBEDDINGS).await;
    assert_eq!(batch.counts, Counts::of(640, 640, 0), "{batch}");
    together.exactly_once(&batch, &ids).await;
    assert_eq!(vectors(&together, &batch).await, expected);
    // A chunk has 512 lines: 8 calls for the first, and 2 for the second.
    assert_eq!(together.simulator.stats().total.calls, 10);
    assert_eq!(tokens(&together, &batch).await, spent);
    assert_eq!(batch["usage"]["input_tokens"], spent, "{batch}");

    let key = operator(&together.database).await;
    let url = together.url("/admin/status");
    let status = client_with(Some(&key)).get(url).send().await;
    let status: Value = status.expect("answers").json().await.expect("is JSON");
    let models = status["models"].as_array().expect("a list").iter();
    let mut models = models.filter(|model| model["model"] == "sim-embed");
    let pack = &models.next().expect("the model")["routes"][0]["pack"];
    let expected = json!({"inputs_max": 64, "calls": 10, "lines": 640, "lines_per_call": 64.0});
    assert_eq!(*pack, expected);
}

async fn an_input_that_is_refused_fails_alone() {
    let refuses = Options {
        refused_text: Some("poison".to_owned()),
        ..Options::default()
    };
    let server = Server::with(&packs(64)).upstream(refuses).await;
    let ids = ids(64);
    let lines = ids.iter().map(|id| match id.as_str() {
        "line-37" => line(id, &json!("poison")),
        _ => line(id, &json!(id)),
    });
    let batch = server.run(lines.collect::<String>(), EMBEDDINGS).await;
    assert_eq!(batch.counts, Counts::of(64, 63, 1), "{batch}");
    let found = server.exactly_once(&batch, &ids).await;
    let refused = &found["line-37"]["response"];
    assert_eq!(refused["status_code"], 400, "{refused}");
    assert_eq!(
        refused["body"]["error"]["type"], "invalid_request_error",
        "{refused}"
    );
    // The call of all, and then of each half one that fails and one that does not.
    let total = server.simulator.stats().total;
    assert_eq!((total.calls, total.errors), (13, [(400, 7)].into()));
}

async fn a_server_that_fails_costs_the_lines_of_a_call_no_attempt() {
    // Each line is in three calls that fail before it is alone, and fails once there.
    let config = packs(8).replace("[retry]", "[retry]\nmax_attempts = 2");
    let server = Server::with(&config).await;
    let ids = ids(8);
    let body = |id: &str| {
        json!({
            "model": "sim-embed", "input": id, "dimensions": 4,
            "simulate": {"status": 500, "times": 1},
        })
    };
    let lines: String = ids.iter().map(|id| line_of(id, &body(id))).collect();
    let batch = server.run(lines, EMBEDDINGS).await;
    assert_eq!(batch.counts, Counts::of(8, 8, 0), "{batch}");
    let total = server.simulator.stats().total;
    assert_eq!((total.calls, total.errors), (15 + 8, [(500, 15)].into()));
}

async fn only_lines_with_the_same_parameters_share_a_call() {
    let server = Server::with(&packs(8)).await;
    let (mut jsonl, mut expected) = (String::new(), BTreeMap::new());
    for id in ids(24) {
        let number: usize = id["line-".len()..].parse().expect("a number");
        let (input, inputs) = match number % 4 {
            0 => (json!([id, "", "b"]), 3),
            1 => (json!([1, 2, number]), 1),
            _ => (json!(id), 1),
        };
        let dimensions = 2 + number % 3;
        let body = json!({"model": "sim-embed", "input": input, "dimensions": dimensions});
        jsonl += &line_of(&id, &body);
        expected.insert(id, (inputs, dimensions));
    }
    let batch = server.run(jsonl, EMBEDDINGS).await;
    assert_eq!(batch.counts, Counts::of(24, 24, 0), "{batch}");
    for line in server.output(&batch).await {
        let data = line["response"]["body"]["data"].as_array().expect("a list");
        let (inputs, dimensions) = expected[line["custom_id"].as_str().expect("a text")];
        assert_eq!(data.len(), inputs, "{line}");
        for (index, vector) in data.iter().enumerate() {
            assert_eq!(vector["index"], index, "{line}");
            assert_eq!(
                vector["embedding"].as_array().expect("a list").len(),
                dimensions
            );
        }
    }
    // Of each of three parameters: two lines of tokens share a call, and six lines of texts with
    // ten inputs need two.
    assert_eq!(server.simulator.stats().total.calls, 9);
}

async fn a_batch_that_is_cancelled_ends_each_line_once() {
    let config = format!("[worker]\nsettle_timeout = \"1ms\"\n{}", packs(64));
    let server = Server::with(&config).upstream(granting(1)).await;
    let ids = ids(640);
    let batch = server.create_batch(texts(&ids), EMBEDDINGS).await;
    eventually("a call is answered, and others are in flight", async || {
        let total = server.simulator.stats().total;
        total.answered == 1 && total.in_flight == 4
    })
    .await;
    server.cancel(&batch).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "cancelled", "{batch}");
    assert_eq!(batch.counts.completed, 64, "{batch}");
    assert_eq!(server.simulator.stats().total.calls, 5);
    server.exactly_once(&batch, &ids).await;
}

async fn a_process_that_dies_with_calls_in_flight_loses_and_doubles_no_line() {
    let config = format!("[worker]\nname = \"killed\"\nlease = \"1s\"\n{}", packs(64));
    let server = Server::with(&config).upstream(granting(3)).binary();
    let mut server = server.await;
    let ids = ids(1_280);
    let batch = server.create_batch(texts(&ids), EMBEDDINGS).await;
    server.until(&batch, |batch| batch.done() > 0).await;
    eventually("calls are in flight", async || {
        server.simulator.stats().total.in_flight == 4
    })
    .await;
    server.kill().await;
    server.simulator.grant(1_000);
    server.start_process(Launch::new()).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts, Counts::of(1_280, 1_280, 0), "{batch}");
    server.exactly_once(&batch, &ids).await;
    // At most the calls that were in flight, and the answers that were not on disk, came twice.
    let calls = server.simulator.stats().total.calls;
    assert!((20..=20 + 4 + 3).contains(&calls), "{calls}");
}

on_every_engine!(
    lines_share_calls_and_each_gets_what_it_would_get_alone,
    an_input_that_is_refused_fails_alone,
    a_server_that_fails_costs_the_lines_of_a_call_no_attempt,
    only_lines_with_the_same_parameters_share_a_call,
    a_batch_that_is_cancelled_ends_each_line_once,
    a_process_that_dies_with_calls_in_flight_loses_and_doubles_no_line,
);

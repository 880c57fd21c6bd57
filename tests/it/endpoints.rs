//! Endpoints that an operator has added to those that can be batched.

use std::fs;

use nightshift::internals::simulate::Options;
use serde_json::{Value, json};

use crate::support::binary::Launch;
use crate::support::{Server, eventually, granting, ids, on_every_engine};

const RERANK: &str = "/v1/rerank";

const ADDED: &str = "[[endpoints]]\npath = \"/v1/rerank\"\n\
                     required = [\"query\", \"documents\"]\nmodel_required = true\n";

fn upstream(more: &str) -> String {
    format!("[[upstreams]]\nname = \"u\"\nbase_url = \"{{simulated}}\"\n{more}\n")
}

fn rerank(custom_id: &str, url: &str, body: &Value) -> String {
    let line = json!({"custom_id": custom_id, "method": "POST", "url": url, "body": body});
    format!("{line}\n")
}

/// A request as it should be.
fn good() -> Value {
    json!({"model": "m", "query": "night", "documents": ["day", "night", "shift"], "top_n": 2})
}

async fn a_line_goes_through_as_it_is_and_has_its_answer() {
    let server = Server::with(&format!("{}{ADDED}", upstream("stream = true"))).await;
    // One writes the path as Azure's clients do.
    let lines = rerank("a", RERANK, &good()) + &rerank("b", "/rerank", &good());
    let batch = server.run(&lines, RERANK).await;
    assert_eq!(batch["endpoint"], RERANK);
    assert_eq!(batch.counts.completed, 2, "{batch}");
    let answer = Options::default().answer(RERANK, good().to_string().as_bytes());
    let answer: Value = serde_json::from_slice(&answer.expect("an answer")).expect("is JSON");
    assert_eq!(answer["results"].as_array().map(Vec::len), Some(2));
    for line in server.output(&batch).await {
        assert_eq!(line["response"]["body"], answer, "no stream was asked for");
    }
}

async fn what_is_wrong_with_lines_is_found_before_any_is_sent() {
    let server = Server::with(&format!("{}{ADDED}", upstream(""))).await;
    let without = |key: &str| {
        let mut body = good();
        body.as_object_mut().expect("an object").remove(key);
        body
    };
    let mut streams = good();
    streams["stream"] = true.into();
    let lines = [
        rerank("a", RERANK, &good()),
        rerank("b", RERANK, &without("query")),
        rerank("c", RERANK, &without("documents")),
        rerank("d", RERANK, &without("model")),
        rerank("e", RERANK, &streams),
        rerank("f", "/v1/embeddings", &json!({"model": "m", "input": "x"})),
        rerank("g", "/v1/reranks", &good()),
    ];
    let batch = server.failed_batch(lines.concat(), RERANK).await;
    let found = batch["errors"]["data"].as_array().expect("a list").iter();
    let found: Vec<_> = found
        .map(|one| {
            let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            (
                one["line"].as_u64().expect("a line"),
                text("code"),
                text("param"),
            )
        })
        .collect();
    let expected = [
        (2, "missing_required_parameter", "body.query"),
        (3, "missing_required_parameter", "body.documents"),
        (4, "missing_required_parameter", "body.model"),
        (5, "streaming_unsupported", "body.stream"),
        (6, "invalid_url", "url"),
        (7, "invalid_url", "url"),
    ];
    let expected = expected.map(|(line, code, param)| (line, code.to_owned(), param.to_owned()));
    assert_eq!(found, expected, "{batch}");
    assert_eq!(server.simulator.stats().total.calls, 0);
}

async fn what_was_not_added_is_refused_and_the_answer_names_what_was() {
    let server = Server::with(&format!("{}{ADDED}", upstream(""))).await;
    let file = server.upload_batch(rerank("a", "/v1/score", &good())).await;
    let body = json!({
        "input_file_id": file, "endpoint": "/v1/score", "completion_window": "24h",
    });
    let url = server.url("/v1/batches");
    let answer = server
        .client()
        .post(url)
        .json(&body)
        .send()
        .await
        .expect("answers");
    assert_eq!(answer.status(), 400);
    let error: Value = answer.json().await.expect("is JSON");
    let message = error["error"]["message"].as_str().expect("a text");
    assert!(
        message.contains("'/v1/embeddings'") && message.contains("'/v1/rerank'"),
        "{message}"
    );
}

async fn a_provider_that_translates_says_that_it_has_nothing_like_it() {
    let provider = "provider = \"anthropic\"";
    let server = Server::with(&format!("{}{ADDED}", upstream(provider))).await;
    let batch = server
        .failed_batch(rerank("a", RERANK, &good()), RERANK)
        .await;
    let found = &batch["errors"]["data"][0];
    assert_eq!(found["line"], 1, "{batch}");
    let message = found["message"].as_str().expect("a text");
    assert!(
        message.contains("Anthropic's API has nothing like it"),
        "{message}"
    );
    assert_eq!(server.simulator.stats().total.calls, 0);
}

async fn batches_of_an_endpoint_that_is_taken_away_go_on() {
    let toml = format!("{}{ADDED}", upstream("concurrency = 2"));
    let mut server = Server::with(&toml).upstream(granting(1)).await;
    let ids = ids(20);
    let lines: String = ids.iter().map(|id| rerank(id, RERANK, &good())).collect();
    let batch = server.create_batch(lines, RERANK).await;
    eventually("a line is answered", async || {
        match server.simulator.stats().total.answered {
            0 => Err("none"),
            _ => Ok(()),
        }
    })
    .await;
    server.stop().await;
    let file = server.config_file();
    let config = fs::read_to_string(&file).expect("reads the configuration");
    fs::write(&file, config.replace(ADDED, "")).expect("writes the configuration");
    server.simulator.grant(1_000);
    server.start_process(Launch::new()).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");
    server.exactly_once(&batch, &ids).await;
    // None is begun any more.
    let file = server.upload_batch(rerank("a", RERANK, &good())).await;
    let body = json!({
        "input_file_id": file, "endpoint": RERANK, "completion_window": "24h",
    });
    let url = server.url("/v1/batches");
    let answer = server
        .client()
        .post(url)
        .json(&body)
        .send()
        .await
        .expect("answers");
    assert_eq!(answer.status(), 400);
}

on_every_engine!(
    a_line_goes_through_as_it_is_and_has_its_answer,
    what_is_wrong_with_lines_is_found_before_any_is_sent,
    what_was_not_added_is_refused_and_the_answer_names_what_was,
    a_provider_that_translates_says_that_it_has_nothing_like_it,
    batches_of_an_endpoint_that_is_taken_away_go_on,
);

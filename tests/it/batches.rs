//! A batch's life, from upload to output.

mod tenants;
mod waits;

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::session::Session;
use crate::support::{CHAT, Server, chat, granting, ids, on_every_engine, request};

fn requests(ids: &[String], simulate: &Value) -> String {
    ids.iter().map(|id| chat(id, simulate.clone())).collect()
}

async fn a_batch_runs_from_upload_to_output() {
    let server = Server::start().await;
    let ids = ids(1300);
    let jsonl: String = ids
        .iter()
        .enumerate()
        .map(|(n, id)| {
            chat(
                id,
                if n % 100 == 50 {
                    json!({"status": 400})
                } else {
                    Value::Null
                },
            )
        })
        .collect();
    let file = server.upload_batch(&jsonl).await;
    let body = json!({
        "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "metadata": {"night": "first"},
    });
    let created = server.create(&body).await;
    assert_eq!(created.status, "validating");
    assert_eq!(
        created["request_counts"],
        json!({"total": 0, "completed": 0, "failed": 0})
    );
    for absent in [
        "output_file_id",
        "error_file_id",
        "errors",
        "in_progress_at",
        "usage",
        "model",
    ] {
        assert_eq!(
            created.json.get(absent),
            Some(&Value::Null),
            "{absent} is there, and null"
        );
    }

    let batch = server.ended(&created).await;
    assert_eq!(batch.status, "completed", "{batch}");
    assert_eq!(
        batch["request_counts"],
        json!({"total": 1300, "completed": 1287, "failed": 13})
    );
    assert_eq!(batch["model"], "sim-small");
    assert_eq!(batch["metadata"], json!({"night": "first"}));
    assert_eq!(
        batch["expires_at"].as_i64(),
        batch["created_at"].as_i64().map(|at| at + 86_400)
    );
    for time in ["in_progress_at", "finalizing_at", "completed_at"] {
        assert!(batch[time].is_i64(), "{time} is set");
    }
    for time in ["failed_at", "expired_at", "cancelling_at", "cancelled_at"] {
        assert!(batch[time].is_null(), "{time} is not set");
    }

    let lines = server.exactly_once(&batch, &ids).await;
    let mut tokens = 0;
    for (number, id) in ids.iter().enumerate() {
        let line = &lines[id];
        let status = if number % 100 == 50 { 400 } else { 200 };
        assert_eq!(line["response"]["status_code"], status, "{line}");
        assert!(line["error"].is_null() && line["id"].as_str().is_some());
        tokens += line["response"]["body"]["usage"]["total_tokens"]
            .as_i64()
            .unwrap_or(0);
    }
    assert_eq!(
        batch["usage"]["total_tokens"], tokens,
        "usage is the sum over all lines"
    );
    let bodies = server.simulator.stats().bodies.expect("are tracked");
    assert_eq!(bodies.most_calls, 1, "nothing was sent twice");
}

async fn the_bytes_of_a_line_reach_the_upstream_unchanged() {
    let server = Server::start().await;
    let body = r#"{ "messages" : [ ] ,"z":1.0e2,"model":"sim-small","a":12345678901234567890123, "simulate":{"echo":true}}"#;
    let line = format!(
        r#"{{"body":{body},"url":"/v1/chat/completions","method":"POST","custom_id":"é\u2028"}}"#
    );
    let batch = server.run(&line, CHAT).await;
    let lines = server.output(&batch).await;
    assert_eq!(lines[0]["custom_id"], "é\u{2028}");
    let echo = &lines[0]["response"]["body"]["echo"];
    assert_eq!(echo["body"].as_str(), Some(body), "{echo}");
}

async fn the_lines_of_several_models_keep_their_order() {
    let config = r#"
        [[upstreams]]
        name = "one"
        base_url = "{simulated}"

        [[models]]
        name = "fast"
        routes = [{ upstream = "one" }]

        [[models]]
        name = "slow"
        concurrency = 5
        routes = [{ upstream = "one", model = "another-name" }]
        defaults = { temperature = 0.25 }
    "#;
    let server = Server::with(config).await;
    let ids = ids(900);
    let jsonl: String = ids
        .iter()
        .enumerate()
        .map(|(n, id)| {
            let model = if n % 3 == 0 { "slow" } else { "fast" };
            request(
                id,
                json!({"model": model, "messages": [], "n": n, "simulate": {"echo": true}}),
            )
        })
        .collect();
    let batch = server.run(&jsonl, CHAT).await;
    assert_eq!(batch.status, "completed", "{batch}");
    assert!(
        batch["model"].is_null(),
        "a batch of several models has none"
    );
    let lines = server.exactly_once(&batch, &ids).await;
    for (n, id) in ids.iter().enumerate() {
        let sent = &lines[id]["response"]["body"]["echo"]["body"];
        let sent: Value = serde_json::from_str(sent.as_str().expect("is text")).expect("is JSON");
        assert_eq!(sent["n"], n, "each answer stands on its own line");
        let slow = n % 3 == 0;
        assert_eq!(sent["model"], if slow { "another-name" } else { "fast" });
        assert_eq!(
            sent.get("temperature").and_then(Value::as_f64),
            slow.then_some(0.25)
        );
    }
    let models = server.simulator.stats().models;
    assert!(
        models["another-name"].most_in_flight <= 5,
        "the model's limit holds"
    );
}

async fn an_upstream_is_never_asked_for_more_than_its_limit() {
    let config = r#"
        [[upstreams]]
        name = "one"
        base_url = "{simulated}"
        concurrency = 7
    "#;
    let options = Options {
        latency: Duration::from_millis(50),
        ..Options::default()
    };
    let server = Server::with(config).upstream(options).await;
    let ids = ids(300);
    let jsonl: String = ids
        .iter()
        .enumerate()
        .map(|(n, id)| request(id, json!({"model": format!("m{}", n % 4), "messages": []})))
        .collect();
    let batch = server.run(&jsonl, CHAT).await;
    server.exactly_once(&batch, &ids).await;
    assert_eq!(
        server.simulator.stats().total.most_in_flight,
        7,
        "the limit is used, and holds"
    );
}

async fn counts_move_while_a_batch_runs() {
    let server = Server::with("").upstream(granting(200)).await;
    let jsonl = requests(&ids(201), &Value::Null);
    let batch = server.create_batch(&jsonl, CHAT).await;
    let moving = server
        .until(&batch, |batch| batch.counts.completed == 200)
        .await;
    assert_eq!(moving.status, "in_progress");
    assert_eq!(moving.counts.total, 201);
    assert!(moving["output_file_id"].is_null(), "it is not whole yet");
    server.simulator.grant(1);
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 201);
}

async fn a_cancelled_batch_keeps_what_has_run() {
    let server = Server::start().await;
    let ids = ids(2000);
    let jsonl: String = ids
        .iter()
        .enumerate()
        .map(|(n, id)| chat(id, json!({"latency_ms": if n < 100 { 0 } else { 2000 }})))
        .collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    server.until(&batch, |b| b.counts.completed >= 100).await;
    let cancelling = server.cancel(&batch).await;
    assert_eq!(cancelling.status, "cancelling");
    let batch = server.ended(&cancelling).await;
    assert_eq!(batch.status, "cancelled");
    assert!(batch["finalizing_at"].is_null() && batch["cancelled_at"].is_i64());
    let again = server.cancel(&batch).await;
    assert_eq!(again, batch, "cancelling again changes nothing");

    let lines = server.exactly_once(&batch, &ids).await;
    let answered = lines
        .values()
        .filter(|line| line["error"].is_null())
        .count();
    assert_eq!(batch.counts.completed, answered);
    assert_eq!(batch.counts.failed, 0, "what never ran has not failed");
    assert_eq!(batch.counts.total, 2000);
    assert!((100..2000).contains(&answered), "{answered}");
    for line in lines.values().filter(|line| !line["error"].is_null()) {
        assert_eq!(line["error"]["code"], "batch_cancelled");
        assert!(line["response"].is_null());
    }
    let calls = server.simulator.stats().total.calls;
    assert_eq!(calls, answered as u64, "calls in flight were let finish");
}

async fn a_batch_whose_window_ends_keeps_what_has_run() {
    let server = Server::start().await;
    let ids = ids(1000);
    let jsonl: String = ids
        .iter()
        .enumerate()
        .map(|(n, id)| chat(id, json!({"latency_ms": if n < 50 { 0 } else { 600 }})))
        .collect();
    let batch = server.create_batch_within(&jsonl, CHAT, "5m").await;
    server.until(&batch, |b| b.counts.completed >= 50).await;
    server.clock.advance_ms(5 * 60 * 1000);
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "expired", "{batch}");
    assert!(batch["finalizing_at"].is_null() && batch["expired_at"].is_i64());
    let lines = server.exactly_once(&batch, &ids).await;
    let expired = lines
        .values()
        .filter(|line| line["error"]["code"] == "batch_expired")
        .count();
    assert!(expired > 0);
    assert_eq!(batch.counts.failed, expired, "expired lines have failed");
    assert_eq!(batch.counts.completed, 1000 - expired);
    let cancel = format!("{}/cancel", batch.path());
    let refused = server
        .client()
        .post(server.url(&cancel))
        .send()
        .await
        .expect("answers");
    assert_eq!(refused.status(), 409);
}

async fn an_input_may_be_deleted_while_its_batch_runs() {
    let server = Server::start().await;
    let ids = ids(700);
    let file = server
        .upload_batch(requests(&ids, &json!({"latency_ms": 20})))
        .await;
    let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "1h"});
    let batch = server.create(&body).await;
    let url = server.url(&format!("/v1/files/{file}"));
    let deleted = server.client().delete(&url).send().await.expect("answers");
    assert_eq!(deleted.status(), 200);
    assert_eq!(
        server
            .client()
            .get(&url)
            .send()
            .await
            .expect("answers")
            .status(),
        404
    );
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "completed");
    server.exactly_once(&batch, &ids).await;
}

async fn a_batch_goes_on_when_the_server_is_started_again() {
    let mut server = Server::start().await;
    let ids = ids(1500);
    let batch = server
        .create_batch(requests(&ids, &json!({"latency_ms": 30})), CHAT)
        .await;
    server.until(&batch, |b| b.counts.completed >= 200).await;
    server.stop().await;
    server.start_again().await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "completed");
    server.exactly_once(&batch, &ids).await;
    let bodies = server.simulator.stats().bodies.expect("are tracked");
    assert_eq!(
        bodies.most_calls, 1,
        "a server that was stopped politely sends nothing twice"
    );
}

async fn every_endpoint_can_be_batched() {
    let server = Server::start().await;
    let model = "sim-small";
    for (endpoint, body) in [
        ("/v1/responses", json!({"model": model, "input": "x"})),
        (
            "/v1/chat/completions",
            json!({"model": model, "messages": []}),
        ),
        ("/v1/embeddings", json!({"model": model, "input": "x"})),
        ("/v1/completions", json!({"model": model, "prompt": "x"})),
        ("/v1/moderations", json!({"model": model, "input": "x"})),
        (
            "/v1/images/generations",
            json!({"model": model, "prompt": "x"}),
        ),
        (
            "/v1/images/edits",
            json!({"model": model, "prompt": "x", "images": []}),
        ),
        ("/v1/videos", json!({"model": model, "prompt": "x"})),
        (
            "/v1/messages",
            json!({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}),
        ),
    ] {
        let line = json!({"custom_id": "a", "method": "POST", "url": endpoint, "body": body});
        let batch = server.run(line.to_string(), endpoint).await;
        assert_eq!(batch.status, "completed", "{endpoint}: {batch}");
        assert_eq!(batch.counts.completed, 1, "{endpoint}");
        assert_eq!(batch["endpoint"], endpoint);
    }
}

async fn many_batches_of_several_tenants_all_end() {
    let server = Server::start().await;
    let mut batches = Vec::new();
    for number in 0..12 {
        let jsonl = requests(&ids(60), &json!({"latency_ms": 5}));
        if number % 3 == 2 {
            let key = server.other().key().to_owned();
            batches.push((Some(key), server.other().create_batch(&jsonl, CHAT).await));
        } else {
            batches.push((None, server.create_batch(&jsonl, CHAT).await));
        }
    }
    for (key, batch) in &batches {
        if key.is_none() {
            let batch = server.ended(batch).await;
            assert_eq!(batch.counts.completed, 60);
        }
    }
    let foreign: Vec<_> = batches.iter().filter(|(key, _)| key.is_some()).collect();
    assert_eq!(foreign.len(), 4);
    for (_, batch) in foreign {
        let path = batch.path();
        let response = server
            .client()
            .get(server.url(&path))
            .send()
            .await
            .expect("answers");
        assert_eq!(
            response.status(),
            404,
            "another tenant's batch is not there"
        );
    }
}

const REFUSE: &str = "
    CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'not this one';
    END $$;
    CREATE TRIGGER refused BEFORE UPDATE ON batches FOR EACH ROW
    WHEN (NEW.status = 'in_progress' AND NEW.metadata LIKE '%poison%')
    EXECUTE FUNCTION refused()";
const REFUSE_SQLITE: &str = "
    CREATE TRIGGER refused BEFORE UPDATE ON batches
    WHEN NEW.status = 'in_progress' AND NEW.metadata LIKE '%poison%'
    BEGIN
        SELECT RAISE(ABORT, 'not this one');
    END";

async fn a_batch_that_cannot_be_let_run_holds_up_no_other() {
    let mut server = Server::start().await;
    let mut database = Session::open(&server.database).await;
    database
        .execute(match database.engine() {
            Engine::Sqlite => REFUSE_SQLITE,
            Engine::Postgres => REFUSE,
        })
        .await;
    let file = server.upload_batch(chat("a", Value::Null)).await;
    server.stop().await;
    // Found together, when nobody knows yet that one of them is refused.
    let now = database.now_ms().await;
    let create = |number: usize, is: &str| {
        format!(
            "INSERT INTO batches (id, tenant, endpoint, input_file_id, completion_window,
                output_expires_seconds, metadata, status, created_at, expires_at)
             VALUES ('batch_{number}', 'tenant-a', '{CHAT}', '{file}', '24h', 0,
                '{{\"is\":\"{is}\"}}', 'validating', {now} + {number}, {now} + 86400000);"
        )
    };
    let others = [0, 1, 3, 4];
    let created: String = others.iter().map(|&other| create(other, "well")).collect();
    database.execute(&(created + &create(2, "poison"))).await;
    server.start_again().await;
    for other in others {
        let batch = server.ended(format!("batch_{other}")).await;
        assert_eq!(batch.status, "completed");
    }
    let still = server.batch("batch_2").await;
    assert_eq!(still.status, "validating");
    database
        .execute(match database.engine() {
            Engine::Sqlite => "DROP TRIGGER refused",
            Engine::Postgres => "DROP TRIGGER refused ON batches",
        })
        .await;
    assert_eq!(server.ended(&still).await.status, "completed");
}

async fn a_batch_that_cannot_be_ended_holds_up_no_other() {
    let server = Server::start().await;
    let mut database = Session::open(&server.database).await;
    let is_running = "NEW.status = 'in_progress'";
    let refuse = match database.engine() {
        Engine::Sqlite => REFUSE_SQLITE,
        Engine::Postgres => REFUSE,
    };
    let refuse = refuse.replace(is_running, "NEW.status = 'completed'");
    database.execute(&refuse).await;
    let file = server.upload_batch(chat("a", Value::Null)).await;
    let create = async |is: &str| {
        let body = json!({
            "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
            "metadata": {"is": is},
        });
        server.create(&body).await
    };
    let poison = create("poison").await;
    for _ in 0..4 {
        let other = create("well").await;
        assert_eq!(server.ended(&other).await.status, "completed");
    }
    let still = server.batch(&poison).await;
    assert_eq!(still.status, "in_progress");
    database
        .execute(match database.engine() {
            Engine::Sqlite => "DROP TRIGGER refused",
            Engine::Postgres => "DROP TRIGGER refused ON batches",
        })
        .await;
    let ended = server.ended(&still).await;
    assert_eq!((&*ended.status, ended.counts.completed), ("completed", 1));
    let calls = server.simulator.stats().total.calls;
    assert_eq!(
        calls, 5,
        "the answers were written meanwhile, and no line ran again"
    );
}

on_every_engine![
    a_batch_runs_from_upload_to_output,
    the_bytes_of_a_line_reach_the_upstream_unchanged,
    the_lines_of_several_models_keep_their_order,
    an_upstream_is_never_asked_for_more_than_its_limit,
    counts_move_while_a_batch_runs,
    a_cancelled_batch_keeps_what_has_run,
    a_batch_whose_window_ends_keeps_what_has_run,
    an_input_may_be_deleted_while_its_batch_runs,
    a_batch_goes_on_when_the_server_is_started_again,
    every_endpoint_can_be_batched,
    many_batches_of_several_tenants_all_end,
    a_batch_that_cannot_be_let_run_holds_up_no_other,
    a_batch_that_cannot_be_ended_holds_up_no_other,
];

//! What operators see: metrics that agree with what batches say, and a picture of the whole.

mod away;
mod documented;
mod logged;
mod spans;

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::{Ended, Launch, command, ended};
use crate::support::metrics::{Metrics, operator};
use crate::support::{
    CHAT, Server, chat, client_with, eventually, granting, ids, on, on_every_engine,
};

/// Retries without long pauses, and a cancel without any.
const QUICK: &str = r#"
    [retry]
    max_attempts = 3
    initial_backoff = "10ms"
    max_backoff = "50ms"

    [worker]
    settle_timeout = "0s"
"#;

/// 23 lines: 18 are answered, two of them after a 429; three fail after three calls each, and two
/// at once.
fn mixed() -> String {
    let mut text = String::new();
    for (place, id) in ids(23).iter().enumerate() {
        text += &chat(
            id,
            match place {
                0..3 => json!({"status": 500}),
                3..5 => json!({"status": 400}),
                5..7 => json!({"status": 429, "times": 1, "retry_after_ms": 20}),
                _ => Value::Null,
            },
        );
    }
    text
}

async fn metrics_agree_with_what_the_batch_says() {
    let server = Server::with(QUICK).binary().await;
    let key = operator(&server.database).await;
    let batch = server.run(mixed(), CHAT).await;
    let counts = &batch["request_counts"];
    assert_eq!(*counts, json!({"total": 23, "completed": 18, "failed": 5}));
    let number = |value: &Value| value.as_f64().expect("is a number");

    let base = server.url("");
    let metrics = Metrics::until(&base, &key, |metrics| {
        metrics.sum("nightshift_batches_ended_total", &[r#"status="completed""#]) == 1.0
            && metrics.sum("nightshift_lines_total", &[]) == 23.0
            && metrics.sum("nightshift_database_up", &[]) == 1.0
    })
    .await;
    let lines = |outcome: &str| {
        let labels = [r#"model="sim-small""#, outcome];
        metrics.sum("nightshift_lines_total", &labels)
    };
    assert_eq!(
        lines(r#"outcome="completed""#),
        number(&counts["completed"])
    );
    assert_eq!(lines(r#"outcome="failed""#), number(&counts["failed"]));
    let tokens = |kind: &str| metrics.sum("nightshift_tokens_total", &[kind]);
    let usage = &batch["usage"];
    assert_eq!(tokens(r#"kind="input""#), number(&usage["input_tokens"]));
    assert_eq!(tokens(r#"kind="output""#), number(&usage["output_tokens"]));
    assert!(tokens(r#"kind="output""#) > 0.0);

    let retries = |cause: &str| metrics.sum("nightshift_retries_total", &[cause]);
    assert_eq!(
        retries(r#"cause="server_error""#),
        6.0,
        "three lines, twice"
    );
    assert_eq!(retries(r#"cause="rate_limited""#), 2.0);
    assert_eq!(retries(""), 8.0);
    let made = server.simulator.stats().total.calls as f64;
    assert_eq!(metrics.sum("nightshift_upstream_calls_total", &[]), made);
    let count = "nightshift_upstream_call_duration_seconds_count";
    let labels = [r#"upstream="simulated""#, r#"model="sim-small""#];
    assert_eq!(metrics.sum(count, &labels), made);

    assert_eq!(metrics.sum("nightshift_flush_lines_sum", &[]), 23.0);
    assert!(metrics.sum("nightshift_flush_bytes_sum", &[]) > 0.0);
    let up = [r#"upstream="simulated""#, r#"state="up""#];
    assert_eq!(metrics.sum("nightshift_upstream_state", &up), 1.0);
    assert_eq!(metrics.sum("nightshift_model_limit", &[]), 64.0);
    assert_eq!(metrics.sum("nightshift_replicas", &[]), 1.0);
    assert_eq!(metrics.sum("nightshift_budget_used_bytes", &[]), 0.0);
    let created = [
        r#"method="POST""#,
        r#"route="/v1/batches""#,
        r#"status="200""#,
    ];
    assert_eq!(metrics.sum("nightshift_http_requests_total", &created), 1.0);
}

async fn lines_that_never_ran_are_told_as_such() {
    let server = Server::with(QUICK).binary().await;
    let key = operator(&server.database).await;
    let slow: String = ids(100)
        .iter()
        .map(|id| chat(id, json!({"hang": true})))
        .collect();
    let batch = server.create_batch(slow, CHAT).await;
    let base = server.url("");
    // As many as there may be are on their way, the others wait.
    let metrics = Metrics::until(&base, &key, |metrics| {
        metrics.sum("nightshift_model_in_flight", &[r#"model="sim-small""#]) == 64.0
            && metrics.sum("nightshift_upstream_in_flight", &[]) == 64.0
            && metrics.sum("nightshift_queue_units", &[r#"state="leased""#]) == 1.0
            && metrics.sum("nightshift_batches", &[r#"status="in_progress""#]) == 1.0
    })
    .await;
    assert!(metrics.sum("nightshift_budget_used_bytes", &[]) > 0.0);
    Metrics::until(&base, &key, |metrics| {
        let model = [r#"model="sim-small""#];
        metrics.sum("nightshift_queue_oldest_seconds", &model) > 0.0
            && metrics.sum("nightshift_queue_window_used_ratio", &model) > 0.0
    })
    .await;

    server.cancel(&batch).await;
    server.ended(&batch).await;
    Metrics::until(&base, &key, |metrics| {
        metrics.sum("nightshift_lines_total", &[r#"outcome="cancelled""#]) == 100.0
            && metrics.sum("nightshift_batches_ended_total", &[r#"status="cancelled""#]) == 1.0
            && metrics.sum("nightshift_queue_units", &[]) == 0.0
    })
    .await;
}

async fn only_operators_look_inside() {
    let server = Server::start().await;
    let key = operator(&server.database).await;
    for path in ["/metrics", "/admin/status"] {
        for (key, status) in [
            (None, 401),
            (Some("sk-ns-nobodys-key"), 401),
            (Some(server.key()), 403),
            (Some(key.as_str()), 200),
        ] {
            let asked = client_with(key).get(server.url(path)).send().await;
            let answer = asked.expect("answers");
            assert_eq!(answer.status(), status, "{path}");
            if status != 200 {
                let envelope: Value = answer.json().await.expect("is JSON");
                assert!(envelope["error"]["message"].is_string(), "{envelope}");
            }
        }
    }
}

async fn without_keys_only_this_machine_looks_inside() {
    let server = Server::with("[auth]\nrequired = false").await;
    for path in ["/metrics", "/admin/status"] {
        let ask = || client_with(None).get(server.url(path));
        let answer = ask().send().await.expect("answers");
        assert_eq!(answer.status(), 200, "{path}");
        for (header, value) in [("host", "evil.example"), ("origin", "https://evil.example")] {
            let answer = ask().header(header, value).send().await.expect("answers");
            assert_eq!(answer.status(), 403, "{path}: {header}");
        }
    }
}

/// What `nightshift status` prints.
async fn status_of(arguments: &[&str], key: &str) -> Ended {
    let mut command = command(&[&["status"], arguments].concat());
    command.env("OPS_KEY", key);
    ended(command).await
}

async fn an_operator_sees_what_goes_on() {
    let server = Server::with(QUICK).binary().await;
    let key = operator(&server.database).await;
    let mut text: String = ids(10).iter().map(|id| chat(id, Value::Null)).collect();
    text += &chat("slow", json!({"hang": true}));
    let batch = server.create_batch(text, CHAT).await;
    server
        .until(&batch, |batch| batch.counts.completed == 10)
        .await;
    let id = &batch.id;

    let base = server.url("");
    let at = ["--url", base.as_str(), "--api-key-env", "OPS_KEY"];
    // A look that the database was too slow for says so, and is kept for a moment.
    let printed = eventually("the database is up", async || {
        let printed = status_of(&at, &key).await;
        if printed.out.contains("(up)") {
            Ok(printed)
        } else {
            Err(format!("{printed:?}"))
        }
    })
    .await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let row = |name: &str| {
        let line = printed.out.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{}", printed.out))
    };
    assert!(row("batches: ").contains("1 in_progress"));
    assert!(row("simulated ").contains("up     1      "));
    assert!(row(id).contains("10/11 ") && row(id).contains(" 90% "));
    assert!(row("sim-small ").contains(" 64 "));
    assert!(row(id).contains("tenant-a"));
    assert!(printed.out.contains("answers here"), "{}", printed.out);

    let printed = status_of(&[&at[..], &["--json"]].concat(), &key).await;
    let told: Value = serde_json::from_str(&printed.out).expect("is JSON");
    assert_eq!(told["live_batches"][0]["id"], batch["id"]);
    assert_eq!(told["live_batches"][0]["done"], 10);
    assert_eq!(told["upstreams"][0]["in_flight"], 1);
    assert_eq!(told["models"][0]["leased_units"], 1);
    assert_eq!(told["replicas"][0]["answers"], true);
    assert_eq!(told["database"]["answers"], true);
}

/// What `/admin/status` says, once the database has answered in time.
async fn told(server: &Server, key: &str) -> Value {
    let operator = server.by(key);
    eventually("the database answers", async || {
        let told = operator.get("/admin/status").await;
        if told["database"]["answers"] == true {
            Ok(told)
        } else {
            Err(told)
        }
    })
    .await
}

async fn operators_see_what_has_ended_within_the_hour() {
    let server = Server::start().await;
    let key = operator(&server.database).await;
    let lines = chat("a", json!({"status": 400})) + &chat("b", Value::Null);
    let completed = server.run(lines, CHAT).await;
    let foreign = server.other().run(chat("c", Value::Null), CHAT).await;

    let status = told(&server, &key).await;
    assert_eq!(status["live_batches"], json!([]));
    let ended = status["ended_batches"].as_array().expect("is a list");
    let ids: Vec<&Value> = ended.iter().map(|batch| &batch["id"]).collect();
    assert_eq!(ids, [&foreign.id, &completed.id], "the last one first");
    assert_eq!(ended[0]["tenant"], "tenant-b");
    let first = &ended[1];
    assert_eq!(first["status"], "completed");
    assert_eq!(first["ended_at"], completed["completed_at"]);
    for (field, expected) in [("total", 2), ("done", 2), ("failed", 1)] {
        assert_eq!(first[field], expected, "{field}: {first}");
    }
    assert_eq!(first["eta_seconds"], Value::Null);

    // A tenant is told of none of that, of what is its own neither.
    for tenant in [server.key(), server.other().key()] {
        let asked = client_with(Some(tenant)).get(server.url("/admin/status"));
        let answer = asked.send().await.expect("answers");
        assert_eq!(answer.status(), 403);
        let text = answer.text().await.expect("is text");
        let tells = text.contains(&foreign.id) || text.contains("tenant-");
        assert!(!tells, "{text}");
    }

    let base = server.url("");
    let at = ["--url", base.as_str(), "--api-key-env", "OPS_KEY"];
    let row = eventually("it is printed", async || {
        let printed = status_of(&at, &key).await.out;
        let row = printed.lines().find(|line| line.starts_with(&foreign.id));
        row.map(str::to_owned).ok_or(printed)
    })
    .await;
    assert!(
        row.contains("tenant-b") && row.contains("completed"),
        "{row}"
    );
    assert!(row.ends_with(" ago") || row.ends_with("just now"), "{row}");

    server.clock.advance_ms(3_600_000);
    let status = told(&server, &key).await;
    assert_eq!(status["ended_batches"], json!([]), "{status}");
}

async fn an_upstream_that_was_not_called_yet_is_not_called_up() {
    // It takes connections, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds");
    let address = silent.local_addr().expect("has an address");
    let server = Server::with(&format!(
        "[[upstreams]]\nname = \"silent\"\nbase_url = \"http://{address}/v1\"\n\
         [[upstreams]]\nname = \"simulated\"\nbase_url = \"{{simulated}}\"\n\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"simulated\" }}]\n"
    ))
    .await;
    let key = operator(&server.database).await;
    let batch = server.run(chat("a", Value::Null), CHAT).await;
    assert_eq!(batch.status, "completed");
    let status = told(&server, &key).await;
    let states = [0, 1].map(|index| &status["upstreams"][index]["state"]);
    assert_eq!(states, ["unknown", "up"], "{status}");
    let base = server.url("");
    let at = ["--url", base.as_str(), "--api-key-env", "OPS_KEY"];
    let printed = status_of(&at, &key).await;
    let row = printed.out.lines().find(|line| line.starts_with("silent "));
    assert!(
        row.is_some_and(|row| row.contains("not called yet")),
        "{}",
        printed.out
    );
    // It is no reason for an alarm.
    let metrics = Metrics::of(&base, Some(&key)).await;
    assert_eq!(
        metrics.sum("nightshift_upstream_state", &[r#"state="up""#]),
        2.0
    );
}

#[tokio::test]
async fn status_says_why_it_has_no_picture() {
    let server = Server::start().await;
    let base = server.url("");
    let refused = status_of(&["--url", &base], "").await;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.errors.contains("--scope admin"),
        "{}",
        refused.errors
    );
    let unset = status_of(&["--url", &base, "--api-key-env", "NOT_SET_AT_ALL"], "").await;
    assert_eq!(unset.code, Some(1));
    assert!(unset.errors.contains("NOT_SET_AT_ALL"), "{}", unset.errors);
    // A port that was free a moment ago, and is again.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let nobody = format!("http://{}", free.local_addr().expect("has an address"));
    drop(free);
    let away = status_of(&["--url", &nobody], "").await;
    assert_eq!(away.code, Some(1));
    assert!(away.errors.contains("cannot reach the server"), "{away:?}");
}

#[tokio::test]
async fn names_that_nobody_knows_are_one_label() {
    let options = Options {
        models: vec!["known".to_owned()],
        ..Options::default()
    };
    let config = "[[upstreams]]\nname = \"a\"\nbase_url = \"{simulated}\"\n";
    let server = Server::with(config).upstream(options).binary().await;
    let key = operator(&server.database).await;
    let base = server.url("");
    eventually("the upstream has told its models", async || {
        server.get("/v1/models").await["data"] != json!([])
    })
    .await;
    let line = |id: &str, model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi."}]});
        crate::support::request(id, body)
    };
    let text = line("a", "known") + &line("b", "invented-1") + &line("c", "invented-2");
    let batch = server.run(text, CHAT).await;
    assert_eq!(batch.counts.completed, 1, "{batch}");
    let metrics = Metrics::until(&base, &key, |metrics| {
        metrics.sum("nightshift_lines_total", &[]) == 3.0
    })
    .await;
    let failed = [r#"model="other""#, r#"outcome="failed""#];
    assert_eq!(metrics.sum("nightshift_lines_total", &failed), 2.0);
    assert!(!metrics.0.contains("invented"), "{}", metrics.0);
}

#[tokio::test]
async fn each_half_tells_what_it_knows() {
    on(
        Engine::Postgres,
        Box::pin(async {
            let mut server = Server::with("").binary().await;
            let key = operator(&server.database).await;
            server.stop().await;
            server
                .start_process(Launch::new().flags(&["--role", "api"]))
                .await;
            let worker = server
                .replica(Launch::new().flags(&["--role", "worker"]))
                .await;
            let batch = server.run(chat("a", Value::Null), CHAT).await;
            assert_eq!(batch.status, "completed", "{batch}");

            let metrics = Metrics::until(&worker.base, &key, |metrics| {
                metrics.sum("nightshift_lines_total", &[]) == 1.0
                    && metrics.sum("nightshift_database_up", &[]) == 1.0
            })
            .await;
            assert_eq!(metrics.sum("nightshift_replicas", &[]), 1.0);
            let api = Metrics::of(&server.url(""), Some(&key)).await;
            assert_eq!(api.sum("nightshift_lines_total", &[]), 0.0);
            assert!(!api.0.contains("nightshift_model_in_flight"));

            let base = server.url("");
            let at = ["--url", base.as_str(), "--api-key-env", "OPS_KEY", "--json"];
            let told = status_of(&at, &key).await;
            let told: Value = serde_json::from_str(&told.out).expect("is JSON");
            let [replica] = told["replicas"].as_array().expect("a list").as_slice() else {
                panic!("one works: {told}");
            };
            assert_eq!(replica["answers"], false, "that is the other half");
            worker.terminate().await;
            server.stop().await;
        }),
    )
    .await;
}

async fn lines_that_a_cancellation_left_out_are_not_shown_as_done() {
    let server = Server::with(QUICK).upstream(granting(3)).await;
    let key = operator(&server.database).await;
    let jsonl: String = ids(10).iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch(jsonl, CHAT).await;
    server.until(&batch, |batch| batch.done() == 3).await;
    server.cancel(&batch).await;
    let batch = server.ended(&batch).await;
    assert_eq!(
        (batch.status.as_str(), batch.counts.completed),
        ("cancelled", 3)
    );

    let status = told(&server, &key).await;
    let ended = &status["ended_batches"][0];
    for (field, expected) in [("total", 10), ("done", 3), ("failed", 0)] {
        assert_eq!(ended[field], expected, "{field}: {ended}");
    }
}

on_every_engine![
    metrics_agree_with_what_the_batch_says,
    lines_that_never_ran_are_told_as_such,
    only_operators_look_inside,
    without_keys_only_this_machine_looks_inside,
    an_operator_sees_what_goes_on,
    operators_see_what_has_ended_within_the_hour,
    an_upstream_that_was_not_called_yet_is_not_called_up,
    lines_that_a_cancellation_left_out_are_not_shown_as_done,
];

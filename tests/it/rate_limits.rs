//! Limits on requests and tokens in a time: no window has more than they say, however it is laid,
//! and none stays unused. The simulator checks every window.

use std::time::Duration;

use nightshift::internals::simulate::{Dialect, Options, RateKind, RateLimit};
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::Launch;
use crate::support::metrics::operator;
use crate::support::{
    Api, Batch, CHAT, Server, client_with, eventually, ids, on, on_every_engine, request,
};

const QUICK: &str = r#"
    [retry]
    initial_backoff = "10ms"
    max_backoff = "50ms"
"#;

/// A simulator that enforces these limits, of so many seconds each.
fn enforces(dialect: Dialect, limits: &[(RateKind, u64)], seconds: u64) -> Options {
    let limit = |&(kind, limit): &(RateKind, u64)| RateLimit {
        kind,
        limit,
        period: Duration::from_secs(seconds),
    };
    Options {
        track: true,
        latency: Duration::from_millis(200),
        jitter: Duration::from_millis(150),
        rate_limits: limits.iter().map(limit).collect(),
        dialect,
        ..Options::default()
    }
}

/// One upstream with these limits.
fn limited(limits: &str) -> String {
    format!(
        r#"
        {QUICK}
        [[upstreams]]
        name = "simulated"
        base_url = "{{simulated}}"
        concurrency = 64
        rate_limits = [{limits}]

        [[models]]
        name = "sim-small"
        routes = [{{ upstream = "simulated" }}]
        "#
    )
}

/// A line that states how long its answer may be.
fn line(id: &str, content: &str, max_tokens: u64, simulate: Value) -> String {
    let mut body = json!({
        "model": "sim-small",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
    });
    if !simulate.is_null() {
        body["simulate"] = simulate;
    }
    request(id, body)
}

/// Lines of mixed lengths, some of which fail once.
fn mixed(ids: &[String]) -> String {
    let lines = ids.iter().enumerate().map(|(number, id)| {
        let content = "word ".repeat(1 + 7 * (number % 40));
        let simulate = match number % 15 {
            3 => json!({"status": 500, "times": 1}),
            8 => json!({"reset": true, "times": 1}),
            _ => Value::Null,
        };
        let most = 20 + 13 * (number as u64 % 9);
        line(id, &content, most, simulate)
    });
    lines.collect()
}

async fn status(server: &Server, key: &str) -> Value {
    let url = server.url("/admin/status");
    let answer = client_with(Some(key)).get(url).send().await;
    answer.expect("answers").json().await.expect("is JSON")
}

/// What the simulator saw of its limits: the most in any window, and calls beyond a limit.
fn seen(server: &Server) -> Vec<(u64, u64)> {
    let limits = server.simulator.stats().limits.expect("it has limits");
    let seen = limits.iter().map(|limit| (limit.most, limit.violations));
    seen.collect()
}

async fn nothing_is_reserved(server: &Server) {
    let key = operator(&server.database).await;
    eventually("nothing stays reserved", async || {
        let status = status(server, &key).await;
        let limits = status["rate_limits"].as_array().expect("a list");
        limits.iter().all(|limit| limit["reserved"] == 0)
    })
    .await;
}

async fn requests_are_held_and_used() {
    let toml = limited(r#"{ type = "requests", limit = 120, period = "3s" }"#);
    let most = most_in_a_window(&toml, Dialect::OpenAi, RateKind::Requests, 120).await;
    assert!((108..=120).contains(&most), "{most} of 120");
}

async fn tokens_are_held_and_used() {
    let toml = limited(r#"{ type = "tokens", limit = 20_000, period = "3s" }"#);
    let most = most_in_a_window(&toml, Dialect::Anthropic, RateKind::Tokens, 20_000).await;
    assert!((16_000..=20_000).contains(&most), "{most} of 20,000");
}

/// Runs 400 lines of all kinds against an upstream that has the same limit in 3 s, and returns the
/// most that came in any window. No call is over the limit, and nothing stays reserved.
async fn most_in_a_window(toml: &str, dialect: Dialect, kind: RateKind, limit: u64) -> u64 {
    let limits = enforces(dialect, &[(kind, limit)], 3);
    let server = Server::with(toml).upstream(limits).await;
    let ids = ids(400);
    let batch = server.run(mixed(&ids), CHAT).await;
    assert_eq!(batch.counts.completed, 400, "{batch}");
    server.exactly_once(&batch, &ids).await;
    let [(most, violations)] = seen(&server)[..] else {
        panic!("one limit");
    };
    assert_eq!(violations, 0);
    nothing_is_reserved(&server).await;
    most
}

async fn a_limit_of_a_day_survives_a_restart_and_a_crash() {
    let toml = limited(r#"{ type = "requests", limit = 1, period = "1d" }"#);
    let mut server = Server::with(&toml).binary().await;
    let ids = ids(20);
    let lines: String = ids.iter().map(|id| line(id, "a", 5, Value::Null)).collect();
    let batch = server.create_batch(lines, CHAT).await;
    let key = operator(&server.database).await;
    let is_spent = async |server: &Server| {
        eventually("the day's limit is spent", async || {
            let status = status(server, &key).await;
            let limit = &status["rate_limits"][0];
            let until = limit["until"].as_i64().unwrap_or(0);
            let now = status["now"].as_i64().expect("a time");
            let is_so = limit["reason"] == "limit" && until > now + 80_000;
            if is_so { Ok(()) } else { Err(status) }
        })
        .await;
    };
    is_spent(&server).await;
    let calls = |server: &Server| server.simulator.stats().total.calls;
    assert_eq!(calls(&server), 1);
    server.stop().await;
    server.start_process(Launch::new()).await;
    is_spent(&server).await;
    assert_eq!(calls(&server), 1, "it goes on where it stopped");
    server.kill().await;
    server.start_process(Launch::new()).await;
    is_spent(&server).await;
    assert_eq!(calls(&server), 1, "it goes on where it was killed");
    let running = server.batch(&batch).await;
    assert_eq!((running.counts.completed, running.counts.failed), (1, 0));
    server.stop().await;
}

async fn a_line_that_needs_more_than_a_limit_ends_and_others_go_on() {
    let toml = limited(r#"{ type = "tokens", limit = 1_000, period = "1m" }"#);
    let server = Server::with(&toml).await;
    let lines = line("small", "a", 10, Value::Null) + &line("large", "b", 5_000, Value::Null);
    let batch = server.run(lines, CHAT).await;
    let ids = ["small".to_owned(), "large".to_owned()];
    let lines = server.exactly_once(&batch, &ids).await;
    assert_eq!(lines["small"]["response"]["status_code"], 200);
    let error = &lines["large"]["error"];
    assert_eq!(error["code"], "request_too_large", "{error}");
    let message = error["message"].as_str().expect("is text");
    assert!(
        message.contains("1000 tokens") && message.contains("upstream simulated"),
        "{message}"
    );
    assert_eq!(server.simulator.stats().total.calls, 1);
}

async fn what_one_upstream_may_not_take_another_one_does() {
    let toml = r#"
        [[upstreams]]
        name = "limited"
        base_url = "{simulated}"

        [[upstreams]]
        name = "free"
        base_url = "{simulated}"

        [[models]]
        name = "sim-small"
        rate_limits = [{ type = "requests", limit = 100_000, period = "1h" }]
        routes = [
            { upstream = "limited", rate_limits = [{ type = "requests", limit = 3, period = "1d" }] },
            { upstream = "free" },
        ]
    "#;
    let server = Server::with(toml).await;
    let ids = ids(60);
    let lines: String = ids.iter().map(|id| line(id, "a", 5, Value::Null)).collect();
    let batch = server.run(lines, CHAT).await;
    assert_eq!(batch.counts.completed, 60, "{batch}");
    let key = operator(&server.database).await;
    let status = status(&server, &key).await;
    let limits = status["rate_limits"].as_array().expect("a list");
    let names: Vec<_> = limits
        .iter()
        .map(|limit| (limit["scope"].as_str(), limit["name"].as_str()))
        .collect();
    let expected = [
        (Some("model"), Some("sim-small")),
        (Some("route"), Some("sim-small at limited")),
    ];
    assert_eq!(names, expected);
    assert!(limits[1]["saturation"].as_f64() <= Some(1.0));
    assert!(limits[0]["saturation"].as_f64() > Some(0.0));
}

on_every_engine!(
    requests_are_held_and_used,
    tokens_are_held_and_used,
    a_limit_of_a_day_survives_a_restart_and_a_crash,
    a_line_that_needs_more_than_a_limit_ends_and_others_go_on,
    what_one_upstream_may_not_take_another_one_does,
);

#[tokio::test]
async fn processes_hold_a_limit_together_and_one_goes_on_when_the_other_is_killed() {
    on(Engine::Postgres, async {
        const LIMIT: u64 = 120;
        let limits = enforces(Dialect::OpenAi, &[(RateKind::Requests, LIMIT)], 3);
        let toml = limited(r#"{ type = "requests", limit = 120, period = "3s" }"#);
        let toml = format!("{toml}\n[worker]\nlease = \"2s\"\nreclaim_after = \"1s\"\n");
        let server = Server::with(&toml).upstream(limits).binary().await;
        let other = server.replica(Launch::new()).await;
        let batches: Vec<(Vec<String>, Batch)> = {
            let mut batches = Vec::new();
            // A server may lease what it has accepted itself, so each is given something.
            let at_other = server.at(&other.base);
            let apis: [&Api; 2] = [&at_other, &server];
            for _ in 0..10 {
                for api in apis {
                    let ids = ids(30);
                    let batch = api.create_batch(mixed(&ids), CHAT).await;
                    batches.push((ids, batch));
                }
            }
            batches
        };
        server.until_rows("rate_grants", |count| count == 2).await;
        server
            .until(&batches[0].1, |batch| batch.counts.completed > 6)
            .await;
        other.signal("KILL");
        other.ended().await;
        for (ids, batch) in batches {
            let batch = server.ended(&batch).await;
            assert_eq!(batch.counts.completed, 30, "{batch}");
            server.exactly_once(&batch, &ids).await;
        }
        let [(most, violations)] = seen(&server)[..] else {
            panic!("one limit");
        };
        assert_eq!(violations, 0);
        assert!(most <= LIMIT, "{most} of {LIMIT}");
        nothing_is_reserved(&server).await;
    })
    .await;
}

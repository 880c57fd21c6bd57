//! Trouble upstream: what is tried again, what is the line's answer, and what waits.

use std::time::Duration;

use nightshift::internals::simulate::{ApiKey, Options, Simulator};
use serde_json::{Value, json};

use crate::support::metrics::{Metrics, operator};
use crate::support::{
    Batch, CHAT, Counts, Server, chat, eventually, granting, ids, on_every_engine, request,
};

/// Retries without long pauses.
const QUICK: &str = r#"
    [retry]
    max_attempts = 4
    initial_backoff = "10ms"
    max_backoff = "50ms"
"#;

fn tracked() -> Options {
    Options {
        track: true,
        ..Options::default()
    }
}

/// Runs one line that is steered; returns the batch, the line and how many calls it took.
async fn one_line(server: &Server, simulate: Value) -> (Batch, Value, u64) {
    server.simulator.reset_stats();
    let batch = server.run(chat("a", simulate), CHAT).await;
    assert_eq!(batch.status, "completed", "{batch}");
    let line = server
        .exactly_once(&batch, &["a".to_owned()])
        .await
        .remove("a")
        .expect("is there");
    (batch, line, server.simulator.stats().total.calls)
}

async fn trouble_that_passes_is_tried_again() {
    let server = Server::with(QUICK).await;
    for (simulate, calls) in [
        (json!({"status": 500, "times": 2}), 3),
        (json!({"status": 408, "times": 1}), 2),
        (json!({"status": 409, "times": 1}), 2),
        (json!({"status": 502, "times": 3}), 4),
        (json!({"reset": true, "times": 1}), 2),
        (json!({"truncate": true, "times": 1}), 2),
        (json!({"status": 429, "times": 1, "retry_after_ms": 30}), 2),
        (json!({"status": 429, "times": 9, "retry_after_ms": 5}), 10),
        (json!({"status": 503, "times": 1, "retry_after_ms": 20}), 2),
    ] {
        let (batch, line, made) = one_line(&server, simulate.clone()).await;
        assert_eq!(batch.counts.completed, 1, "{simulate}");
        assert_eq!(line["response"]["status_code"], 200, "{simulate}");
        assert_eq!(made, calls, "{simulate}");
    }
}

async fn any_other_refusal_is_the_lines_answer_at_once() {
    let server = Server::with(QUICK).await;
    for status in [400, 404, 413, 415, 422] {
        let (batch, line, calls) = one_line(&server, json!({"status": status})).await;
        assert_eq!(calls, 1, "{status} is not tried again");
        assert_eq!(batch.counts.failed, 1);
        assert!(
            batch["output_file_id"].is_null(),
            "nothing succeeded: no output file"
        );
        assert_eq!(line["response"]["status_code"], status);
        assert!(line["error"].is_null(), "there was an HTTP answer");
        assert!(line["response"]["body"]["error"].is_object(), "{line}");
    }
}

async fn the_last_answer_stands_when_no_attempt_is_left() {
    let server = Server::with(QUICK).await;
    let (batch, line, calls) = one_line(&server, json!({"status": 500})).await;
    assert_eq!(calls, 4, "max_attempts");
    assert_eq!(batch.counts.failed, 1);
    assert_eq!(line["response"]["status_code"], 500);
    assert!(line["error"].is_null());

    let (_, line, calls) = one_line(&server, json!({"reset": true})).await;
    assert_eq!(calls, 4);
    assert!(line["response"].is_null(), "nothing ever answered");
    assert_eq!(line["error"]["code"], "upstream_unavailable");
}

async fn a_call_that_takes_too_long_is_given_up() {
    let config = r#"
        [retry]
        max_attempts = 5
        initial_backoff = "10ms"
        max_backoff = "20ms"

        [[upstreams]]
        name = "slow"
        base_url = "{simulated}"
        timeout = "200ms"
    "#;
    let server = Server::with(config).await;
    let (_, line, calls) = one_line(&server, json!({"hang": true})).await;
    assert_eq!(calls, 2, "it was most likely computed");
    assert_eq!(line["error"]["code"], "request_timeout", "{line}");
}

async fn a_refusal_that_is_no_json_becomes_a_string() {
    let server = Server::with(QUICK).await;
    let html = "<html>\u{2028}no \"JSON\"</html>";
    let (_, line, _) = one_line(&server, json!({"status": 400, "body": html})).await;
    assert_eq!(line["response"]["body"], html);
}

async fn a_model_server_that_is_restarted_fails_no_line() {
    let latency = Duration::from_millis(20);
    let first = Simulator::start(
        "127.0.0.1:0",
        Options {
            latency,
            granted: Some(200),
            ..tracked()
        },
    )
    .await;
    let first = first.expect("starts");
    let address = first.address();
    let config = format!(
        "[retry]\nmax_attempts = 2\ninitial_backoff = \"10ms\"\n\n\
         [[upstreams]]\nname = \"restarted\"\nbase_url = \"{}\"\nconcurrency = 8",
        first.base_url()
    );
    let server = Server::with(&config).await;
    let ids = ids(400);
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch(&jsonl, CHAT).await;
    server.until(&batch, |b| b.counts.completed >= 50).await;
    first.stop().await;
    // Long enough that lines would have used up their attempts if each refusal cost one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let running = server.batch(&batch).await;
    assert_eq!(running.status, "in_progress");
    let again = Simulator::start(address, tracked())
        .await
        .expect("starts again");
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts, Counts::of(400, 400, 0));
    server.exactly_once(&batch, &ids).await;
    assert!(again.stats().total.answered > 0);
}

async fn row_10_lines_of_an_upstream_that_is_down_go_to_another_and_few_are_tried_there() {
    let gone = Simulator::start("127.0.0.1:0", tracked())
        .await
        .expect("starts");
    let base = gone.base_url();
    gone.stop().await;
    let config = format!(
        "[[upstreams]]\nname = \"gone\"\nbase_url = \"{base}\"\nconcurrency = 8\n\n\
         [[upstreams]]\nname = \"there\"\nbase_url = \"{{simulated}}\"\n\n\
         [[models]]\nname = \"sim-small\"\n\
         routes = [{{ upstream = \"gone\", weight = 9 }}, {{ upstream = \"there\" }}]"
    );
    let server = Server::with(&config).binary().await;
    let ids = ids(300);
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.run(&jsonl, CHAT).await;
    assert_eq!(batch.counts.completed, 300, "{batch}");
    server.exactly_once(&batch, &ids).await;
    let key = operator(&server.database).await;
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    let calls = "nightshift_upstream_calls_total";
    let tried = metrics.sum(calls, &["upstream=\"gone\""]);
    assert!(
        (1.0..=8.0).contains(&tried),
        "no more than at once: {tried}"
    );
}

/// Two hundred calls at once, of which many are turned away or fail: what was no fault of a line
/// leaves no trace in the batch's files, and the counts are those of the lines.
async fn row_15_row_16_of_two_hundred_calls_at_once_no_429_is_an_answer_and_the_counts_are_the_lines()
 {
    let options = Options {
        rate_limit_rate: 0.05,
        error_rate: 0.05,
        ..granting(0)
    };
    let simulator = Simulator::start("127.0.0.1:0", options)
        .await
        .expect("starts");
    let config = format!(
        "[retry]\nmax_attempts = 50\ninitial_backoff = \"5ms\"\nmax_backoff = \"50ms\"\n\
         [[upstreams]]\nname = \"one\"\nbase_url = \"{}\"\nconcurrency = 200\n",
        simulator.base_url()
    );
    let server = Server::with(&config).binary().await;
    let ids = ids(2_000);
    let is_wrong = |place: usize| place % 50 == 7;
    let lines = ids.iter().enumerate().map(|(place, id)| {
        chat(
            id,
            match place {
                _ if is_wrong(place) => json!({"status": 400}),
                _ if place % 50 == 9 => json!({"status": 429, "times": 3, "retry_after_ms": 5}),
                _ if place % 50 == 11 => json!({"truncate": true, "times": 2}),
                _ => Value::Null,
            },
        )
    });
    let batch = server.create_batch(lines.collect::<String>(), CHAT).await;
    eventually(
        "two hundred calls are under way",
        async || match simulator.stats().total.in_flight {
            200 => Ok(()),
            other => Err(other),
        },
    )
    .await;
    simulator.grant(1_000_000);
    let batch = server.ended(&batch).await;
    let wrong = (0..ids.len()).filter(|&place| is_wrong(place)).count();
    let counts = Counts::of(ids.len(), ids.len() - wrong, wrong);
    assert_eq!(batch.counts, counts, "{batch}");
    server.exactly_once(&batch, &ids).await;
    let (output, errors) = (server.output(&batch).await, server.errors(&batch).await);
    assert_eq!(
        (output.len(), errors.len()),
        (counts.completed, counts.failed)
    );
    for line in &output {
        assert_eq!(line["response"]["status_code"], 200, "{line}");
        assert_eq!(
            line["response"]["body"]["object"], "chat.completion",
            "{line}"
        );
    }
    for line in &errors {
        assert_eq!(line["response"]["status_code"], 400, "{line}");
    }
    let key = operator(&server.database).await;
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    let calls = |outcome: &str| metrics.sum("nightshift_upstream_calls_total", &[outcome]);
    let turned_away = calls("outcome=\"rate_limited\"");
    assert!(turned_away >= 100.0, "many were turned away: {turned_away}");
}

async fn a_rate_limit_closes_its_model_only() {
    let config = r#"
        [[upstreams]]
        name = "one"
        base_url = "{simulated}"
        concurrency = 4

        [[models]]
        name = "limited"
        routes = [{ upstream = "one" }]

        [[models]]
        name = "free"
        routes = [{ upstream = "one" }]
    "#;
    let server = Server::with(config).await;
    let closed = json!({"status": 429, "times": 1, "retry_after_ms": 3_600_000});
    let body = |model: &str, simulate: Value| json!({"model": model, "messages": [], "simulate": simulate});
    let mut jsonl = request("limited", body("limited", closed));
    for number in 0..100 {
        jsonl += &request(
            &format!("free-{number}"),
            body("free", json!({"latency_ms": 1})),
        );
    }
    let batch = server.create_batch(&jsonl, CHAT).await;
    let running = server
        .until(&batch, |batch| batch.counts.completed >= 100)
        .await;
    assert_eq!(running.counts.completed, 100, "only the limited one waits");
    server.cancel(&batch).await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "cancelled");
    assert_eq!(batch.counts.completed, 100);
}

async fn a_refused_key_fails_no_line_before_the_window_ends() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-right-key")],
        ..tracked()
    };
    let server = Server::with("").upstream(options).await;
    let ids = ids(300);
    let jsonl: String = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.create_batch_within(&jsonl, CHAT, "10m").await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    eventually("a call is made", async || {
        let stats = server.simulator.stats().total;
        stats.calls > 0 && stats.in_flight == 0
    })
    .await;
    let running = server.batch(&batch).await;
    assert_eq!(running.counts.failed, 0, "no line fails for a key");
    server.clock.advance_ms(10 * 60 * 1000);
    let batch = server.ended(&batch).await;
    assert_eq!(batch.status, "expired");
    let lines = server.exactly_once(&batch, &ids).await;
    let refused = lines
        .values()
        .filter(|line| line["response"]["status_code"] == 401)
        .count();
    let expired = lines
        .values()
        .filter(|line| line["error"]["code"] == "batch_expired")
        .count();
    assert!(refused > 0, "what was answered has its answer");
    assert_eq!(refused + expired, 300);
    let calls = server.simulator.stats().total.calls;
    assert!(
        calls < 300,
        "an upstream that refuses the key is ejected: {calls}"
    );
}

on_every_engine![
    trouble_that_passes_is_tried_again,
    any_other_refusal_is_the_lines_answer_at_once,
    the_last_answer_stands_when_no_attempt_is_left,
    a_call_that_takes_too_long_is_given_up,
    a_refusal_that_is_no_json_becomes_a_string,
    a_model_server_that_is_restarted_fails_no_line,
    row_10_lines_of_an_upstream_that_is_down_go_to_another_and_few_are_tried_there,
    row_15_row_16_of_two_hundred_calls_at_once_no_429_is_an_answer_and_the_counts_are_the_lines,
    a_rate_limit_closes_its_model_only,
    a_refused_key_fails_no_line_before_the_window_ends,
];

//! Answers that are asked for as streams and put together.

use nightshift::internals::simulate::{Options, Simulator};
use serde_json::{Value, json};

use crate::support::metrics::{Metrics, operator};
use crate::support::{CHAT, Server, chat, ids, on_every_engine};

/// What a request says for its answer to be streamed, behind all that it says itself.
const ASKING: &str = r#","stream":true,"stream_options":{"include_usage":true}}"#;

/// Retries without long pauses, and streams.
fn streaming(base_url: &str) -> String {
    format!(
        "[retry]\nmax_attempts = 30\ninitial_backoff = \"5ms\"\nmax_backoff = \"50ms\"\n\
         [[upstreams]]\nname = \"streaming\"\nbase_url = \"{base_url}\"\nconcurrency = 64\n\
         stream = true\nidle_timeout = \"2s\"\n"
    )
}

/// What the simulator answers to a line's body with a wish for a stream, had it not streamed.
fn plain(line: &str) -> Value {
    let (_, body) = line.split_once("\"body\":").expect("a body");
    let (body, _) = body.split_once(",\"custom_id\"").expect("another key");
    let sent = body.strip_suffix('}').expect("an object").to_owned() + ASKING;
    let answer = Options::default().answer(CHAT, sent.as_bytes());
    serde_json::from_slice(&answer.expect("an answer")).expect("is JSON")
}

async fn streams_that_stall_or_break_off_are_sent_again_and_the_answers_are_the_plain_ones() {
    let server = Server::with(&streaming("{simulated}")).await;
    let ids = ids(40);
    let lines: Vec<String> = ids
        .iter()
        .enumerate()
        .map(|(number, id)| {
            chat(
                id,
                match number % 4 {
                    0 => json!({"stall": true, "times": 1}),
                    1 => json!({"truncate": true, "times": 2}),
                    2 => json!({"status": 503, "times": 1}),
                    _ => Value::Null,
                },
            )
        })
        .collect();
    let batch = server.run(lines.concat(), CHAT).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");
    let answers = server.exactly_once(&batch, &ids).await;
    for (id, line) in ids.iter().zip(&lines) {
        assert_eq!(answers[id]["response"]["body"], plain(line), "{id}");
    }
    let key = operator(&server.database).await;
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    let calls = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        metrics.sum(
            "nightshift_upstream_calls_total",
            &["upstream=\"streaming\"", &outcome],
        )
    };
    assert!(calls("stalled") >= 10.0, "each stall counts as one");
    assert!(calls("broken") >= 20.0);
    let begun = "nightshift_upstream_first_token_seconds_count";
    assert!(metrics.sum(begun, &["upstream=\"streaming\""]) >= 40.0);
}

async fn with_bad_luck_every_line_is_answered_once_and_whole() {
    let options = Options {
        stall_rate: 0.05,
        break_rate: 0.2,
        error_rate: 0.1,
        track: true,
        ..Options::default()
    };
    let simulator = Simulator::start("127.0.0.1:0", options)
        .await
        .expect("starts");
    let server = Server::with(&streaming(&simulator.base_url())).await;
    let ids = ids(200);
    let lines: Vec<String> = ids.iter().map(|id| chat(id, Value::Null)).collect();
    let batch = server.run(lines.concat(), CHAT).await;
    assert_eq!(batch.counts.completed, ids.len(), "{batch}");
    let answers = server.exactly_once(&batch, &ids).await;
    for (id, line) in ids.iter().zip(&lines) {
        assert_eq!(answers[id]["response"]["body"], plain(line), "{id}");
    }
    let seen = simulator.stats();
    assert!(seen.total.cut > 0 && seen.total.abandoned > 0, "{seen:?}");
    let bodies = seen.bodies.expect("are tracked");
    assert_eq!(bodies.most_answered, 1, "no whole answer is thrown away");
}

on_every_engine!(
    streams_that_stall_or_break_off_are_sent_again_and_the_answers_are_the_plain_ones,
    with_bad_luck_every_line_is_answered_once_and_whole,
);

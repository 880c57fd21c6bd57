//! `concurrency = "auto"`: how many calls at once an engine takes is found out, kept, shared, and
//! left to others who use the engine, too.

use nightshift::internals::simulate::Options;
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::Launch;
use crate::support::metrics::{Metrics, operator};
use crate::support::{CHAT, Server, client_with, eventually, ids, on, on_every_engine, request};

/// As many calls at once slow nothing down.
const KNEE: u64 = 32;
/// What is tried first.
const START: u64 = 16;

const AUTO: &str = r#"
    [[upstreams]]
    name = "simulated"
    base_url = "{simulated}"
    concurrency = "auto"
    {more}

    [[models]]
    name = "sim-small"
    routes = [{ upstream = "simulated" }]
"#;

/// A server, and the key of its operator, with an engine whose calls take a third of a second each,
/// and more lines than the engine answers while a test looks.
async fn server(more: &str) -> (Server, String) {
    let engine = Options {
        slow_beyond: Some(KNEE as usize),
        tokens_per_second: Some(120.0),
        answer_tokens: 40,
        ..Options::default()
    };
    let server = Server::with(&AUTO.replace("{more}", more));
    let server = server.upstream(engine).await;
    let key = operator(&server.database).await;
    let lines = ids(10_000).into_iter().map(|id| {
        let messages = json!([{"role": "user", "content": format!("{id}?")}]);
        request(&id, json!({"model": "sim-small", "messages": messages}))
    });
    server.create_batch(lines.collect::<String>(), CHAT).await;
    (server, key)
}

/// How the window stands, as a server at this address says.
async fn window(base: &str, key: &str) -> Value {
    let url = format!("{base}/admin/status");
    let answer = client_with(Some(key)).get(url).send().await;
    let mut status: Value = answer.expect("answers").json().await.expect("is JSON");
    status["windows"][0].take()
}

/// Waits until the window is as it should be: by its size and the reason for it.
async fn until(base: &str, key: &str, what: &str, is_so: impl Fn(u64, &str) -> bool) -> Value {
    eventually(what, async || {
        let window = window(base, key).await;
        let size = window["window"].as_u64().unwrap_or(0);
        let reason = window["reason"].as_str().unwrap_or("");
        if is_so(size, reason) {
            Ok(window)
        } else {
            Err(window)
        }
    })
    .await
}

fn generation(window: &Value) -> Option<u64> {
    window["generation"].as_u64()
}

async fn a_window_is_found_and_a_restart_goes_on_with_it() {
    let (mut server, key) = server("").await;
    let found = until(
        &server.url(""),
        &key,
        "the knee is found",
        |size, reason| {
            let is_near = (KNEE * 3 / 4..=KNEE * 5 / 4).contains(&size);
            // On the way up the window has this size, too.
            is_near && !matches!(reason, "start" | "growth")
        },
    )
    .await;
    assert_eq!(found["limit"], 1024, "the most that is tried");
    Metrics::until(&server.url(""), &key, |metrics| {
        let labels = ["upstream=\"simulated\"", "model=\"sim-small\""];
        let window = metrics.sum("nightshift_auto_window", &labels);
        let grown = metrics.sum("nightshift_auto_changes_total", &["reason=\"growth\""]);
        window > START as f64 && grown > 0.0
    })
    .await;

    server.stop().await;
    server.start_again().await;
    let first = eventually("the window is read", async || {
        let window = window(&server.url(""), &key).await;
        if generation(&window) > Some(0) {
            Ok(window)
        } else {
            Err(window)
        }
    })
    .await;
    assert!(generation(&first) >= generation(&found), "{found} {first}");
}

async fn others_who_use_the_engine_have_the_right_of_way() {
    let (server, key) = server(
        "metrics_url = \"{simulated}/../metrics\"\n\
         yield_to = \"interactive\"",
    )
    .await;
    let base = server.url("");
    until(&base, &key, "it has grown", |size, _| size >= KNEE).await;

    // Half of the engine. Their answers are long.
    let body = json!({"model": "sim-small", "messages": [], "simulate": {"bytes": 300_000}});
    let url = format!("{}/chat/completions", server.simulator.base_url());
    let others: Vec<_> = (0..KNEE / 2)
        .map(|_| {
            let request = client_with(None).post(&url).body(body.to_string());
            tokio::spawn(request.send())
        })
        .collect();
    until(&base, &key, "the other half is ours", |size, reason| {
        reason == "yield" && (KNEE / 4..=KNEE * 5 / 8).contains(&size)
    })
    .await;
    let metrics = format!("http://{}/metrics", server.simulator.address());
    eventually("nobody waits", async || {
        let text = client_with(None).get(&metrics).send().await;
        let text = text.expect("answers").text().await.expect("is text");
        let mut lines = text.lines();
        lines.any(|line| line.starts_with("vllm:num_requests_waiting{") && line.ends_with(" 0.0"))
    })
    .await;

    for other in others {
        other.abort();
    }
    until(&base, &key, "all of it is ours again", |size, reason| {
        reason != "yield" && size > KNEE * 5 / 8
    })
    .await;
}

#[tokio::test]
async fn two_servers_find_one_window_and_share_it() {
    on(Engine::Postgres, async {
        const MOST: u64 = 24;
        let (server, key) = server(&format!("max_concurrency = {MOST}")).await;
        let other = server.replica(Launch::new()).await;
        let base = server.url("");
        eventually("both know the same, and send", async || {
            let windows = [window(&base, &key).await, window(&other.base, &key).await];
            let all = |is_so: &dyn Fn(&Value) -> bool| windows.iter().all(is_so);
            let is_known = generation(&windows[0]) == generation(&windows[1]);
            let is_found = all(&|window| window["window"].as_u64() > Some(START));
            let is_sending = all(&|window| window["in_flight"].as_u64() > Some(0));
            if is_known && is_found && is_sending {
                Ok(())
            } else {
                Err(format!("{windows:?}"))
            }
        })
        .await;
        let most = server.simulator.stats().models["sim-small"].most_in_flight;
        assert!((START..=MOST).contains(&most), "{most} calls at once");
    })
    .await;
}

on_every_engine!(
    a_window_is_found_and_a_restart_goes_on_with_it,
    others_who_use_the_engine_have_the_right_of_way,
);

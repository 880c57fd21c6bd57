//! Several keys of one upstream, in a whole server.

use std::time::Duration;

use nightshift::internals::simulate::{ApiKey, Options, RateKind, RateLimit};
use serde_json::Value;

use crate::support::metrics::{Metrics, operator};
use crate::support::{Api, CHAT, Server, chat, eventually, ids, on_every_engine};

const A: &str = "sk-of-a-3f1d2c9b";
const B: &str = "sk-of-b-77e0aa41";
const VARIABLES: &[(&str, &str)] = &[("VENDOR_KEY_A", A), ("VENDOR_KEY_B", B)];

/// An upstream of two keys, with more of its section.
fn of_two_keys(more: &str) -> String {
    format!(
        "[log]\nfilter = \"trace\"\n\
         [retry]\ninitial_backoff = \"10ms\"\nmax_backoff = \"50ms\"\n\
         [[upstreams]]\nname = \"vendor\"\nbase_url = \"{{simulated}}\"\nconcurrency = 16\n\
         api_key_envs = [\"VENDOR_KEY_A\", \"VENDOR_KEY_B\"]\n{more}\n\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"vendor\" }}]\n"
    )
}

fn accepts_both() -> Options {
    Options {
        track: true,
        api_keys: vec![
            ApiKey::new("VENDOR_KEY_A", A),
            ApiKey::new("VENDOR_KEY_B", B),
        ],
        ..Options::default()
    }
}

fn lines(ids: &[String]) -> String {
    ids.iter().map(|id| chat(id, Value::Null)).collect()
}

/// The keys in `/admin/status`, and how each is.
async fn states(server: &Api, key: &str) -> Vec<(String, String)> {
    let status = server.by(key).get("/admin/status").await;
    let keys = status["upstreams"][0]["keys"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("is text").to_owned();
    let state = |key: &Value| (text(&key["name"]), text(&key["state"]));
    keys.iter().map(state).collect()
}

async fn are_in_states(server: &Api, key: &str, of_a: &str, of_b: &str) {
    let expected = [("VENDOR_KEY_A", of_a), ("VENDOR_KEY_B", of_b)];
    let expected = expected.map(|(name, state)| (name.to_owned(), state.to_owned()));
    eventually("the keys are so", async || {
        let states = states(server, key).await;
        if states == expected {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    })
    .await;
}

async fn a_refused_key_fails_no_line_is_named_by_its_variable_and_comes_back() {
    let toml = of_two_keys("");
    let server = Server::with(&toml).variables(VARIABLES);
    let mut server = server.upstream(accepts_both()).binary().await;
    server.simulator.turn_key("VENDOR_KEY_B", 401);
    let key = operator(&server.database).await;
    let first = ids(60);
    let batch = server.run(lines(&first), CHAT).await;
    assert_eq!(batch.counts.completed, 60, "{batch}");
    server.exactly_once(&batch, &first).await;
    are_in_states(&server, &key, "up", "ejected").await;
    let keys = server.simulator.stats().keys.expect("keys are named");
    assert_eq!(keys[0].calls, 60, "the other key goes on: {keys:?}");
    assert!(keys[1].calls <= 16, "it is set aside: {keys:?}");

    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    for (name, state) in [("VENDOR_KEY_A", "up"), ("VENDOR_KEY_B", "ejected")] {
        let labels = [format!("key=\"{name}\""), format!("state=\"{state}\"")];
        let labels = [&*labels[0], &*labels[1]];
        let is_so = metrics.sum("nightshift_upstream_key_state", &labels);
        assert!(is_so > 0.5, "{name} is {state}");
    }
    let status = server.by(&key).get("/admin/status").await.to_string();
    let client = server.by(&key).client();
    let metrics = client.get(server.url("/metrics")).send().await;
    let metrics = metrics.expect("answers").text().await.expect("is text");

    server.simulator.turn_key("VENDOR_KEY_B", 200);
    eventually("a line has tried the key", async || {
        let batch = server.run(chat("again", Value::Null), CHAT).await;
        assert_eq!(batch.counts.completed, 1, "{batch}");
        states(&server, &key).await[1].1 == "up"
    })
    .await;

    let log = server.binary_process().terminate().await;
    assert!(log.contains("VENDOR_KEY_B"), "the log names the key");
    for text in [&log, &status, &metrics] {
        for (name, secret) in VARIABLES {
            assert!(!text.contains(secret), "{name} is shown");
        }
    }
}

async fn lines_wait_while_one_key_is_refused_and_the_account_of_the_other_is_to_be_paid() {
    let toml = of_two_keys("");
    let server = Server::with(&toml).variables(VARIABLES);
    let server = server.upstream(accepts_both()).await;
    server.simulator.turn_key("VENDOR_KEY_A", 401);
    server.simulator.turn_key("VENDOR_KEY_B", 402);
    let key = operator(&server.database).await;
    let ids = ids(40);
    let batch = server.create_batch(lines(&ids), CHAT).await;
    are_in_states(&server, &key, "ejected", "ejected").await;
    for status in [401, 402] {
        let refused = || server.simulator.stats().total.errors[&status];
        let before = refused();
        eventually("the key is tried now and then", async || refused() > before).await;
    }
    let waiting = server.batch(&batch).await;
    assert_eq!((waiting.done(), waiting.counts.failed), (0, 0), "{waiting}");

    for name in ["VENDOR_KEY_A", "VENDOR_KEY_B"] {
        server.simulator.turn_key(name, 200);
    }
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 40, "{batch}");
    server.exactly_once(&batch, &ids).await;
}

async fn each_key_has_the_rate_limit_for_itself() {
    let toml = of_two_keys(r#"rate_limits = [{ type = "requests", limit = 60, period = "3s" }]"#);
    let limit = RateLimit {
        kind: RateKind::Requests,
        limit: 60,
        period: Duration::from_secs(3),
    };
    let upstream = Options {
        rate_limits: vec![limit],
        ..accepts_both()
    };
    let server = Server::with(&toml).variables(VARIABLES);
    let server = server.upstream(upstream).await;
    let ids = ids(240);
    let batch = server.run(lines(&ids), CHAT).await;
    assert_eq!(batch.counts.completed, 240, "{batch}");
    server.exactly_once(&batch, &ids).await;
    let limits = server.simulator.stats().limits.expect("it has limits");
    assert_eq!(limits.len(), 2, "one for each key: {limits:?}");
    for limit in &limits {
        assert_eq!(limit.violations, 0, "{limit:?}");
        assert!((50..=60).contains(&limit.most), "it is used: {limit:?}");
    }
}

on_every_engine![
    a_refused_key_fails_no_line_is_named_by_its_variable_and_comes_back,
    lines_wait_while_one_key_is_refused_and_the_account_of_the_other_is_to_be_paid,
    each_key_has_the_rate_limit_for_itself,
];

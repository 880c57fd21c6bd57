//! Which upstream a line goes to: by strategy, by tier, by what is down.

use std::fmt::Write as _;
use std::time::Duration;

use nightshift::internals::simulate::{Options, Simulator};
use serde_json::{Value, json};

use crate::support::metrics::operator;
use crate::support::{CHAT, Server, chat, client_with, eventually, granting, ids, on_every_engine};

/// Attempts without long pauses.
const QUICK: &str = "[retry]\ninitial_backoff = \"5ms\"\nmax_backoff = \"50ms\"\n";

async fn simulators<const N: usize>(options: [Options; N]) -> [Simulator; N] {
    let mut started = Vec::new();
    for options in options {
        let simulator = Simulator::start("127.0.0.1:0", options).await;
        started.push(simulator.expect("starts"));
    }
    started.try_into().ok().expect("as many")
}

/// An `[[upstreams]]` entry for each, called `u0` and so on.
fn upstreams(simulators: &[Simulator], concurrency: usize) -> String {
    let mut toml = QUICK.to_owned();
    for (place, simulator) in simulators.iter().enumerate() {
        let url = simulator.base_url();
        let _ = write!(
            toml,
            "[[upstreams]]\nname = \"u{place}\"\nbase_url = \"{url}\"\n\
             concurrency = {concurrency}\n"
        );
    }
    toml
}

fn lines(count: usize) -> String {
    let line = |id: &String| chat(id, Value::Null);
    ids(count).iter().map(line).collect()
}

async fn status(server: &Server, key: &str) -> Value {
    let url = server.url("/admin/status");
    let response = client_with(Some(key)).get(url).send().await;
    response.expect("answers").json().await.expect("is JSON")
}

/// Why each route of the model is passed over, in order.
async fn skipped(server: &Server, key: &str) -> Vec<Option<String>> {
    let status = status(server, key).await;
    let models = status["models"].as_array().expect("a list").iter();
    let mut named = models.filter(|model| model["model"] == "sim-small");
    let model = named.next().expect("the model");
    let routes = model["routes"].as_array().expect("a list").iter();
    routes
        .map(|route| route["skipped"].as_str().map(str::to_owned))
        .collect()
}

async fn row_09_thirty_lines_at_once_over_three_upstreams_are_ten_each() {
    for balance in [
        "least_busy",
        "weighted",
        "round_robin",
        "least_recently_used",
    ] {
        // None is answered until all are there.
        let three = simulators([0; 3].map(granting)).await;
        let toml = upstreams(&three, 64)
            + &format!(
                "[[models]]\nname = \"sim-*\"\nbalance = \"{balance}\"\nroutes = [\
                 {{ upstream = \"u0\" }}, {{ upstream = \"u1\" }}, {{ upstream = \"u2\" }}]\n"
            );
        let server = Server::with(&toml).await;
        let batch = server.create_batch(lines(30), CHAT).await;
        let in_flight = || three.each_ref().map(|one| one.stats().total.in_flight);
        eventually("all lines are sent", async || {
            let in_flight = in_flight();
            match in_flight.iter().sum() {
                30 => Ok(()),
                _ => Err(format!("{in_flight:?}")),
            }
        })
        .await;
        assert_eq!(in_flight(), [10, 10, 10], "{balance}");
        for one in &three {
            one.grant(30);
        }
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 30, "{balance}: {batch}");
    }
}

async fn every_strategy_answers_all_lines() {
    for balance in ["fastest", "random"] {
        let three = simulators([(); 3].map(|()| Options::default())).await;
        let toml = upstreams(&three, 4)
            + &format!(
                "[[models]]\nname = \"*\"\nbalance = \"{balance}\"\nroutes = [\
                 {{ upstream = \"u0\", weight = 5 }}, {{ upstream = \"u1\" }}, \
                 {{ upstream = \"u2\" }}]\n"
            );
        let server = Server::with(&toml).await;
        let batch = server.run(lines(300), CHAT).await;
        assert_eq!(batch.counts.completed, 300, "{balance}: {batch}");
        for one in &three {
            let total = one.stats().total;
            assert!(
                total.calls > 0 && total.most_in_flight <= 4,
                "{balance}: {total:?}"
            );
        }
    }
}

async fn lines_go_to_the_next_tier_while_the_first_is_down_and_come_back() {
    let [own, paid] = simulators([granting(100), Options::default()]).await;
    let address = own.address();
    let both = [own, paid];
    let toml = upstreams(&both, 4)
        + "[[models]]\nname = \"sim-small\"\nroutes = [\
           { upstream = \"u1\", tier = 1, model = \"sim-paid\" }, { upstream = \"u0\" }]\n";
    let [own, paid] = both;
    let server = Server::with(&toml).await;
    let key = operator(&server.database).await;
    let batch = server.create_batch(lines(400), CHAT).await;
    eventually("the own upstream is full", async || {
        let total = own.stats().total;
        match (total.answered, total.in_flight) {
            (100, 4) => Ok(()),
            _ => Err(format!("{total:?}")),
        }
    })
    .await;
    let passed_over = Some("tier".to_owned());
    assert_eq!(skipped(&server, &key).await[1], passed_over);
    assert_eq!(paid.stats().total.calls, 0, "full is not closed");

    own.stop().await;
    eventually("the other one answers", async || {
        let total = paid.stats().total;
        if total.answered >= 100 {
            Ok(())
        } else {
            Err(format!("{total:?}"))
        }
    })
    .await;
    let own = Simulator::start(address, Options::default()).await;
    let own = own.expect("starts again");
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 400, "{ended}");
    assert!(paid.stats().models.contains_key("sim-paid"));
    eventually("the own upstream is up", async || {
        let skipped = skipped(&server, &key).await;
        if skipped[0].is_none() {
            Ok(())
        } else {
            Err(format!("{skipped:?}"))
        }
    })
    .await;
    let (before, of_own) = (paid.stats().total.calls, own.stats().total.calls);
    let batch = server.run(lines(100), CHAT).await;
    assert_eq!(batch.counts.completed, 100, "{batch}");
    assert_eq!(own.stats().total.calls, of_own + 100);
    assert_eq!(paid.stats().total.calls, before);
}

async fn lines_overflow_into_the_next_tier_where_that_is_configured() {
    let both = simulators([0, 0].map(granting)).await;
    let toml = upstreams(&both, 4)
        + "[[models]]\nname = \"sim-small\"\nspill = \"full\"\nroutes = [\
           { upstream = \"u0\" }, { upstream = \"u1\", tier = 1, concurrency = 2 }]\n";
    let server = Server::with(&toml).await;
    let key = operator(&server.database).await;
    let batch = server.create_batch(lines(50), CHAT).await;
    eventually("as many are sent as may be", async || {
        let in_flight = both.each_ref().map(|one| one.stats().total.in_flight);
        if in_flight == [4, 2] {
            Ok(())
        } else {
            Err(format!("{in_flight:?}"))
        }
    })
    .await;
    let full = Some("full".to_owned());
    assert_eq!(skipped(&server, &key).await, [full.clone(), full]);
    for one in &both {
        one.grant(50);
    }
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 50, "{batch}");
    let most = both.each_ref().map(|one| one.stats().total.most_in_flight);
    assert_eq!(most, [4, 2]);
}

async fn an_upstream_that_dies_twice_fails_no_line_and_none_is_sent_past_a_limit() {
    const PLACES: usize = 4;
    let of_speed = |latency: u64, granted| Options {
        latency: Duration::from_millis(latency),
        // More at once would be refused, and counted.
        max_concurrency: Some(PLACES),
        granted: Some(granted),
        track: true,
        ..Options::default()
    };
    let three = simulators([of_speed(2, 200), of_speed(5, 200), of_speed(10, 200)]).await;
    let toml = upstreams(&three, PLACES)
        + "[[models]]\nname = \"sim-small\"\nroutes = [\
           { upstream = \"u0\" }, { upstream = \"u1\" }, { upstream = \"u2\" }]\n";
    let server = Server::with(&toml).await;
    let batch = server.create_batch(lines(1_500), CHAT).await;
    let [mut mortal, others @ ..] = three;
    let mut seen = Vec::new();
    for _ in 0..2 {
        eventually("it is in the middle of its work", async || {
            let total = mortal.stats().total;
            match (total.answered, total.in_flight) {
                (200, 1..) => Ok(()),
                _ => Err(format!("{total:?}")),
            }
        })
        .await;
        let address = mortal.address();
        seen.push(mortal.stats().total);
        mortal.stop().await;
        mortal = Simulator::start(address, of_speed(2, 200))
            .await
            .expect("starts again");
    }
    mortal.grant(1_500);
    for other in &others {
        other.grant(1_500);
    }
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 1_500, "{batch}");
    assert_eq!(batch.counts.failed, 0, "{batch}");
    seen.push(mortal.stats().total);
    seen.extend(others.iter().map(|other| other.stats().total));
    for total in seen {
        assert_eq!(total.errors, [].into(), "{total:?}");
        assert!(total.most_in_flight <= PLACES as u64, "{total:?}");
    }
}

async fn what_a_model_sets_is_in_the_request_and_a_pattern_keeps_the_lines_own_model() {
    let server = Server::with(
        "[[upstreams]]\nname = \"u\"\nbase_url = \"{simulated}\"\n\
         [[models]]\nname = \"sim-*\"\nroutes = [{ upstream = \"u\" }]\n\
         defaults = { temperature = 0.25, seed = 1 }\noverrides = { store = false }\n",
    )
    .await;
    let body = json!({
        "model": "sim-small", "messages": [], "seed": 7, "store": true, "unknown": [1.5],
        "simulate": {"echo": true},
    });
    let line = json!({"custom_id": "a", "method": "POST", "url": CHAT, "body": body});
    let batch = server.run(format!("{line}\n"), CHAT).await;
    let output = server.output(&batch).await;
    let sent = &output[0]["response"]["body"]["echo"]["body"];
    let mut expected = body;
    expected["store"] = false.into();
    expected["temperature"] = 0.25.into();
    let sent = match sent {
        Value::String(text) => serde_json::from_str(text).expect("JSON"),
        other => other.clone(),
    };
    assert_eq!(sent, expected);
}

on_every_engine!(
    row_09_thirty_lines_at_once_over_three_upstreams_are_ten_each,
    every_strategy_answers_all_lines,
    lines_go_to_the_next_tier_while_the_first_is_down_and_come_back,
    lines_overflow_into_the_next_tier_where_that_is_configured,
    an_upstream_that_dies_twice_fails_no_line_and_none_is_sent_past_a_limit,
    what_a_model_sets_is_in_the_request_and_a_pattern_keeps_the_lines_own_model,
);

//! Nobody holds up anybody: a line, a tenant, a batch or an outage costs the others next to
//! nothing.

use std::collections::BTreeMap;

use nightshift::internals::simulate::Options;
use nightshift::internals::store::{Engine, Store};
use serde_json::{Value, json};

use crate::support::binary::{command, ended};
use crate::support::engines::add_key;
use crate::support::metrics::{Metrics, operator};
use crate::support::session::Session;
use crate::support::{
    Batch, CHAT, Counts, Server, chat, client_with, eventually, granting, ids, on_every_engine,
    request,
};

/// Retries without long pauses.
const QUICK: &str = r#"
    [retry]
    initial_backoff = "20ms"
    max_backoff = "200ms"
"#;

fn with_places(places: usize) -> String {
    format!(
        "{QUICK}\n[[upstreams]]\nname = \"simulated\"\nbase_url = \"{{simulated}}\"\n\
         concurrency = {places}\n[[models]]\nname = \"sim-small\"\n\
         routes = [{{ upstream = \"simulated\" }}]\n"
    )
}

fn healthy(count: usize) -> String {
    let line = |id: &String| chat(id, Value::Null);
    ids(count).iter().map(line).collect()
}

async fn a_line_that_always_fails_holds_up_nobody() {
    for steered in [
        json!({"status": 401}),
        json!({"status": 402}),
        json!({"status": 403}),
        json!({"status": 429}),
        json!({"status": 429, "retry_after_ms": 10}),
        json!({"status": 500}),
        json!({"status": 503}),
    ] {
        let options = Options {
            latency: std::time::Duration::from_millis(5),
            ..granting(usize::MAX >> 4)
        };
        let server = Server::with(&with_places(4)).upstream(options).await;
        let jsonl = chat("bad", steered.clone()) + &healthy(5);
        let failing = server.create_batch(jsonl, CHAT).await;
        let others = server.other().create_batch(healthy(400), CHAT).await;
        let others = server.other().ended(&others).await;
        assert_eq!(others.counts.completed, 400, "{steered}");
        // It ends with what it was told, as soon as it is clear that others are told better.
        let more = server.run(healthy(200), CHAT).await;
        assert_eq!(more.counts.completed, 200, "{steered}");
        let failing = server.ended(&failing).await;
        assert_eq!(failing.counts.failed, 1, "{steered}");
        assert_eq!(failing.counts.completed, 5, "{steered}");
        let lines = server.errors(&failing).await;
        assert_eq!(lines[0]["response"]["status_code"], steered["status"]);
        let calls = server.simulator.stats().total.calls;
        assert!(calls < 605 + 20, "{steered}: {calls}");
    }
}

async fn a_429_that_can_never_pass_is_the_lines_answer() {
    let server = Server::with(&with_places(4)).await;
    let body = r#"{"error":{"message":"Request too large for gpt on tokens per min (TPM): Limit 30000, Requested 342389.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#;
    let bad = chat("bad", json!({"status": 429, "body": body}));
    let batch = server.run(bad + &healthy(10), CHAT).await;
    assert_eq!(batch.counts, Counts::of(11, 10, 1));
    assert_eq!(server.simulator.stats().total.calls, 11);
}

async fn a_server_that_takes_four_calls_is_sent_four() {
    let options = Options {
        latency: std::time::Duration::from_millis(30),
        max_concurrency: Some(4),
        track: true,
        ..Options::default()
    };
    let server = Server::with(&with_places(64)).upstream(options).await;
    let batch = server.run(healthy(300), CHAT).await;
    assert_eq!(batch.counts.completed, 300, "{batch}");
    let stats = server.simulator.stats().total;
    let refused = stats.calls - 300;
    // The first wave is 64 calls, of which four are taken.
    let later = refused.saturating_sub(60);
    assert!(
        later * 10 <= stats.calls - 64,
        "{later} of {}",
        stats.calls - 64
    );
}

async fn an_outage_loses_no_line_and_is_said_once() {
    for status in [500, 502, 529] {
        let options = Options {
            latency: std::time::Duration::from_millis(5),
            track: true,
            ..Options::default()
        };
        let quick = with_places(16).replace("200ms", "20ms");
        let mut server = Server::with(&quick).upstream(options).binary().await;
        let batch = server.create_batch(healthy(600), CHAT).await;
        server
            .until(&batch, |batch| batch.counts.completed >= 50)
            .await;
        server.simulator.fail_all(Some(status));
        let key = operator(&server.database).await;
        eventually("the model is closed", async || {
            let status = admin_status(&server, &key).await;
            !status["upstreams"][0]["closed"]
                .as_array()
                .expect("a list")
                .is_empty()
        })
        .await;
        // Far longer than the attempts of a line would last.
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let running = server.batch(&batch).await;
        assert_eq!(running.counts.failed, 0, "{status}");
        server.simulator.fail_all(None);
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 600, "{status}: {batch}");
        let log = server.binary_process().terminate().await;
        let said = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        assert_eq!(said("the model fails"), 1, "{log}");
        assert_eq!(said("the model works again"), 1, "{log}");
    }
}

async fn admin_status(server: &Server, key: &str) -> Value {
    let url = server.url("/admin/status");
    let response = client_with(Some(key)).get(url).send().await;
    response.expect("answers").json().await.expect("is JSON")
}

async fn a_spent_quota_is_said_and_is_what_expired_lines_were_told() {
    let server = Server::with(&with_places(4)).await;
    let body = r#"{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    let steered = json!({"status": 429, "body": body, "headers": {"x-should-retry": "false"}});
    let ids = ids(20);
    let jsonl: String = ids.iter().map(|id| chat(id, steered.clone())).collect();
    let batch = server.create_batch_within(jsonl, CHAT, "10m").await;
    let key = operator(&server.database).await;
    eventually("it is said", async || {
        let status = admin_status(&server, &key).await;
        let upstream = &status["upstreams"][0];
        // The account is spent, whichever model is asked for.
        upstream["state"] == "ejected" && upstream["closed"] == json!([])
    })
    .await;
    let status = admin_status(&server, &key).await;
    let cause = status["upstreams"][0]["cause"].as_str().expect("is text");
    assert!(cause.contains("quota"), "{cause}");
    server.clock.advance_ms(10 * 60 * 1000);
    let batch = server.ended(&batch).await;
    let lines = server.exactly_once(&batch, &ids).await;
    let told = lines
        .values()
        .filter(|line| line["response"]["status_code"] == 429)
        .count();
    assert!(told > 0, "what was answered has its answer");
    assert!(
        server.simulator.stats().total.calls < 20,
        "the rest was not sent"
    );
}

async fn a_model_that_nobody_has_is_answered_without_a_call_for_each_line() {
    let options = Options {
        models: vec!["there".to_owned()],
        track: true,
        ..Options::default()
    };
    let config = format!(
        "{QUICK}[[upstreams]]\nname = \"simulated\"\nbase_url = \"{{simulated}}\"\nconcurrency = 8\n\
         [[models]]\nname = \"*\"\nroutes = [{{ upstream = \"simulated\" }}]\n"
    );
    let server = Server::with(&config).upstream(options).await;
    let ids = ids(2_000);
    let body = |model: &str| json!({"model": model, "messages": []});
    let mut jsonl: String = ids.iter().map(|id| request(id, body("gone"))).collect();
    jsonl += &request("there", body("there"));
    let batch = server.run(jsonl, CHAT).await;
    assert_eq!(batch.counts, Counts::of(2_001, 1, 2_000));
    let lines = server.errors(&batch).await;
    assert_eq!(lines.len(), 2_000);
    for line in lines {
        assert_eq!(line["response"]["status_code"], 404, "{line}");
        assert_eq!(line["response"]["body"]["error"]["code"], "model_not_found");
    }
    let calls = server.simulator.stats().total.calls;
    assert!(calls < 100, "{calls}");
}

async fn what_the_operator_must_mend_costs_few_calls_and_no_line() {
    // The base URL names a path that is not there.
    let config = format!(
        "{QUICK}[[upstreams]]\nname = \"simulated\"\nbase_url = \"{{simulated}}/v1\"\nconcurrency = 8\n"
    );
    let server = Server::with(&config).await;
    let batch = server.create_batch(healthy(1_000), CHAT).await;
    let key = operator(&server.database).await;
    eventually("it is ejected", async || {
        admin_status(&server, &key).await["upstreams"][0]["state"] == "ejected"
    })
    .await;
    let running = server.batch(&batch).await;
    assert_eq!(running.counts.failed, 0, "{running}");
    let status = admin_status(&server, &key).await;
    assert_eq!(status["upstreams"][0]["closed"][0]["reason"], "misdirected");
}

/// The batches whose answers the database refuses, by a rule of its own.
async fn refuse_segments(server: &Server, words: &str) -> Session {
    let mut session = Session::open(&server.database).await;
    match session.engine() {
        Engine::Sqlite => {
            session
                .execute(&format!(
                    "CREATE TRIGGER refuse BEFORE INSERT ON segments WHEN {words} \
                     BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
                ))
                .await;
        }
        Engine::Postgres => {
            session
                .execute(&format!(
                    "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN \
                     RAISE EXCEPTION 'refused by the test'; END $$ LANGUAGE plpgsql; \
                     CREATE TRIGGER refuse BEFORE INSERT ON segments FOR EACH ROW \
                     WHEN ({words}) EXECUTE FUNCTION refuse()"
                ))
                .await;
        }
    }
    session
}

async fn a_batch_whose_answers_are_refused_is_sent_a_few_times_and_no_more() {
    let server = Server::with(&with_places(8)).upstream(granting(0)).await;
    let bad = server.create_batch(healthy(5), CHAT).await;
    let id = &bad.id;
    let _session = refuse_segments(&server, &format!("NEW.batch_id = '{id}'")).await;
    server.simulator.grant(10_000);
    let key = operator(&server.database).await;
    eventually("there is an alarm", async || {
        let status = admin_status(&server, &key).await;
        let alarms = status["alarms"].as_array().expect("a list").clone();
        alarms
            .iter()
            .any(|alarm| alarm.as_str().is_some_and(|text| text.contains(id)))
    })
    .await;
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    assert_eq!(metrics.sum("nightshift_alarms", &[]), 1.0);
    let calls = server.simulator.stats().total.calls;
    assert!(calls <= 3 * 5, "{calls}");
    // The others go on.
    let batch = server.run(healthy(50), CHAT).await;
    assert_eq!(batch.counts.completed, 50, "{batch}");
    assert_eq!(server.simulator.stats().total.calls, calls + 50);
}

async fn nothing_is_sent_while_no_answer_can_be_written() {
    let server = Server::with(&with_places(4)).upstream(granting(0)).await;
    let first = server.create_batch(healthy(200), CHAT).await;
    let second = server.create_batch(healthy(200), CHAT).await;
    let mut session = refuse_segments(&server, "1 = 1").await;
    server.simulator.grant(100_000);
    let key = operator(&server.database).await;
    eventually("there is an alarm", async || {
        let status = admin_status(&server, &key).await;
        let alarms = status["alarms"].as_array().expect("a list").clone();
        alarms.iter().any(|alarm| {
            alarm
                .as_str()
                .is_some_and(|text| text.contains("nothing is sent"))
        })
    })
    .await;
    let calls = server.simulator.stats().total.calls;
    let failures = async || {
        let metrics = Metrics::of(&server.url(""), Some(&key)).await;
        metrics.sum("nightshift_flush_failures_total", &[])
    };
    let before = failures().await;
    eventually("the answers are tried again and again", async || {
        failures().await >= before + 2.0
    })
    .await;
    assert_eq!(
        server.simulator.stats().total.calls,
        calls,
        "nothing is sent"
    );
    let drop = match session.engine() {
        Engine::Sqlite => "DROP TRIGGER refuse",
        Engine::Postgres => "DROP TRIGGER refuse ON segments",
    };
    session.execute(drop).await;
    for batch in [first, second] {
        let batch = server.ended(&batch).await;
        assert_eq!(batch.counts.completed, 200, "{batch}");
    }
}

/// How many lines of each tenant were answered.
async fn answered(server: &Server, batches: &[(String, Batch)]) -> BTreeMap<String, usize> {
    let mut answered = BTreeMap::new();
    for (key, batch) in batches {
        let batch = server.by(key).batch(batch).await;
        answered.insert(key.clone(), batch.counts.completed);
    }
    answered
}

async fn twelve_tenants_share_four_permits() {
    const TENANTS: usize = 12;
    const PERMITS: usize = 4;
    let server = Server::with(&with_places(PERMITS))
        .upstream(granting(0))
        .await;
    let opened = Store::open(&server.database, 1, server.clock.clone()).await;
    let store = opened.expect("opens");
    let mut batches = Vec::new();
    for tenant in 0..TENANTS {
        let key = add_key(&store, &format!("tenant-{tenant}")).await;
        let batch = server.by(&key).create_batch(healthy(30), CHAT).await;
        batches.push((key, batch));
    }
    store.close().await;
    // Whose lines are not in hand yet has no turn.
    let in_hand = "(SELECT DISTINCT batch_id FROM units WHERE state = 'leased') AS in_hand";
    let has_all = |batches| batches == TENANTS as i64;
    server.until_rows(in_hand, has_all).await;
    eventually("all places are taken", async || {
        server.simulator.stats().total.in_flight == PERMITS as u64
    })
    .await;
    // Twice the turn of each.
    server.simulator.grant(2 * TENANTS);
    eventually("so many are answered", async || {
        let sum: usize = answered(&server, &batches).await.values().sum();
        sum == 2 * TENANTS
    })
    .await;
    let early = answered(&server, &batches).await;
    assert!(early.values().all(|lines| *lines >= 1), "{early:?}");
    server.simulator.grant(8 * TENANTS);
    eventually("so many are answered", async || {
        let sum: usize = answered(&server, &batches).await.values().sum();
        sum == 10 * TENANTS
    })
    .await;
    let later = answered(&server, &batches).await;
    let (least, most) = (later.values().min(), later.values().max());
    assert!(most <= least.map(|least| 2 * least).as_ref(), "{later:?}");
}

async fn a_small_batch_goes_beside_a_large_one_of_its_tenant() {
    let server = Server::with(&with_places(4)).upstream(granting(0)).await;
    let large = server.create_batch(healthy(5_000), CHAT).await;
    eventually("all places are taken", async || {
        server.simulator.stats().total.in_flight == 4
    })
    .await;
    let small = server.create_batch(healthy(10), CHAT).await;
    server
        .until(&small, |batch| batch.status == "in_progress")
        .await;
    let leased = format!("units WHERE state = 'leased' AND batch_id = '{}'", small.id);
    server.until_rows(&leased, |units| units > 0).await;
    server.simulator.grant(40);
    let small = server.ended(&small).await;
    assert_eq!(small.counts.completed, 10, "{small}");
    let large = server.batch(&large).await;
    assert!(large.counts.completed <= 30, "{large}");
}

/// Where there is room for few requests, those of one tenant or batch make way for another's.
async fn who_has_nothing_in_hand_is_made_room_for() {
    let config = format!(
        "[limits]\nmax_line_bytes = 65_536\nmax_in_flight_bytes = 262_144\n{}",
        with_places(1)
    );
    let server = Server::with(&config).upstream(granting(0)).await;
    let long = |id: &String| {
        let text = "x".repeat(60_000);
        let message = json!([{"role": "user", "content": text}]);
        request(id, json!({"model": "sim-small", "messages": message}))
    };
    let large: String = ids(80).iter().map(long).collect();
    let large = server.create_batch(large, CHAT).await;
    eventually("a line is on its way", async || {
        server.simulator.stats().total.in_flight == 1
    })
    .await;
    let small: String = ids(3).iter().map(long).collect();
    let of_other = server.other().create_batch(&small, CHAT).await;
    let of_same = server.create_batch(&small, CHAT).await;
    let running = "batches WHERE status = 'in_progress'";
    server.until_rows(running, |batches| batches == 3).await;
    server.simulator.grant(40);
    server.other().ended(&of_other).await;
    let of_same = server.ended(&of_same).await;
    assert_eq!(of_same.counts.completed, 3, "{of_same}");
    let large = server.batch(&large).await;
    assert_eq!(large.status, "in_progress", "{large}");
}

async fn an_operator_opens_what_a_server_has_asked_to_leave_alone() {
    let server = Server::with(&format!("{}\n", with_places(4))).await;
    let first = chat(
        "line-0",
        json!({"status": 429, "times": 1, "retry_after_ms": 86_400_000}),
    );
    let rest: String = ids(50)[1..]
        .iter()
        .map(|id| chat(id, Value::Null))
        .collect();
    let batch = server.create_batch(first + &rest, CHAT).await;
    let key = operator(&server.database).await;
    eventually("it is closed", async || {
        let status = admin_status(&server, &key).await;
        status["upstreams"][0]["closed"][0]["reason"] == "limited"
    })
    .await;
    let status = admin_status(&server, &key).await;
    let closed = &status["upstreams"][0]["closed"][0];
    let left = closed["until"].as_i64().expect("a time") - status["now"].as_i64().expect("a time");
    assert!(
        (60..=600).contains(&left),
        "no longer than ten minutes: {left}"
    );

    let url = server.url("/admin/upstreams/other/reset");
    let refused = client_with(Some(&key))
        .post(&url)
        .send()
        .await
        .expect("answers");
    assert_eq!(refused.status(), 404);
    let refused = server.client().post(&url).send().await.expect("answers");
    assert_eq!(refused.status(), 403, "it is for operators");

    let base = server.url("");
    let mut reset = command(&["upstreams", "reset", "simulated", "--url", &base]);
    reset
        .args(["--api-key-env", "OPS_KEY"])
        .env("OPS_KEY", &key);
    let reset = ended(reset).await;
    assert_eq!(reset.code, Some(0), "{reset:?}");
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 50, "{batch}");
}

on_every_engine![
    a_line_that_always_fails_holds_up_nobody,
    a_429_that_can_never_pass_is_the_lines_answer,
    a_server_that_takes_four_calls_is_sent_four,
    an_outage_loses_no_line_and_is_said_once,
    a_spent_quota_is_said_and_is_what_expired_lines_were_told,
    a_model_that_nobody_has_is_answered_without_a_call_for_each_line,
    what_the_operator_must_mend_costs_few_calls_and_no_line,
    a_batch_whose_answers_are_refused_is_sent_a_few_times_and_no_more,
    nothing_is_sent_while_no_answer_can_be_written,
    twelve_tenants_share_four_permits,
    a_small_batch_goes_beside_a_large_one_of_its_tenant,
    who_has_nothing_in_hand_is_made_room_for,
    an_operator_opens_what_a_server_has_asked_to_leave_alone,
];

//! The configuration is read again while a server runs: by SIGHUP, and by `POST /admin/reload`.

use nightshift::internals::simulate::{ApiKey, Options, Simulator};
use serde_json::Value;

use crate::support::metrics::operator;
use crate::support::{CHAT, Server, chat, client_with, eventually, granting, ids, on_every_engine};

/// One model over these upstreams, each with its places.
fn config(upstreams: &[(&str, &str, usize)]) -> String {
    let mut toml = "[auth]\nrequired = true\n".to_owned();
    let mut routes = Vec::new();
    for (name, base_url, concurrency) in upstreams {
        toml += &format!(
            "[[upstreams]]\nname = \"{name}\"\nbase_url = \"{base_url}\"\n\
             concurrency = {concurrency}\n"
        );
        routes.push(format!("{{ upstream = \"{name}\" }}"));
    }
    let routes = routes.join(", ");
    toml + &format!("[[models]]\nname = \"sim-small\"\nroutes = [{routes}]\n")
}

fn write(server: &Server, toml: &str) {
    std::fs::write(server.config_file(), toml).expect("writes the configuration");
}

/// Has the configuration read again, by HTTP.
async fn reload(server: &Server, key: &str) -> (u16, Value) {
    let request = client_with(Some(key)).post(server.url("/admin/reload"));
    let response = request.send().await.expect("answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("is JSON"))
}

/// The same with another file, which has no mistakes.
async fn reload_with(server: &Server, key: &str, toml: &str) -> Value {
    write(server, toml);
    let (status, loaded) = reload(server, key).await;
    assert_eq!(status, 200, "{loaded}");
    loaded
}

async fn configuration(server: &Server, key: &str) -> Value {
    server.by(key).get("/admin/status").await["configuration"].clone()
}

async fn simulator(options: Options) -> Simulator {
    let started = Simulator::start("127.0.0.1:0", options).await;
    started.expect("starts")
}

fn lines(count: usize) -> String {
    let line = |id: &String| chat(id, Value::Null);
    ids(count).iter().map(line).collect()
}

async fn in_flight(simulator: &Simulator, calls: u64) {
    eventually("so many calls are in flight", async || {
        let now = simulator.stats().total.in_flight;
        if now == calls { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Upstreams come, go and move, and limits change, while a batch runs: no line is lost, none is
/// sent twice, and nothing is sent where it must not be.
async fn a_batch_goes_on_while_upstreams_come_and_go() {
    let server = Server::with(&config(&[("a", "{simulated}", 2)]))
        .upstream(granting(0))
        .await;
    let key = operator(&server.database).await;
    let (a, [b, moved]) = (
        &server.simulator,
        [simulator(granting(0)).await, simulator(granting(0)).await],
    );
    let batch = server.create_batch(lines(100), CHAT).await;
    in_flight(a, 2).await;

    // Another one comes, and the first may have more.
    let both = |at: &str| config(&[("a", at, 3), ("b", &b.base_url(), 4)]);
    reload_with(&server, &key, &both(&a.base_url())).await;
    in_flight(a, 3).await;
    in_flight(&b, 4).await;

    // The first moves: what is in flight goes on where it is, and the limit holds for both places.
    reload_with(&server, &key, &both(&moved.base_url())).await;
    a.grant(2);
    in_flight(a, 1).await;
    in_flight(&moved, 2).await;

    // The second is gone, and may have less before.
    a.grant(10);
    in_flight(&moved, 3).await;
    reload_with(&server, &key, &config(&[("a", &moved.base_url(), 1)])).await;
    b.grant(1_000);
    in_flight(&b, 0).await;
    let calls = b.stats().total.calls;
    assert_eq!(calls, 4, "nothing more was sent there");
    moved.grant(2);
    in_flight(&moved, 1).await;

    moved.grant(1_000);
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 100, "{ended}");
    server.exactly_once(&ended, &ids(100)).await;
    let sent = a.stats().total.calls + b.stats().total.calls + moved.stats().total.calls;
    assert_eq!(sent, 100, "no line was sent twice");
}

/// Lines of a model that is gone wait as those of a model that nobody serves.
async fn lines_of_a_model_that_is_gone_wait_until_it_is_back() {
    let toml = config(&[("a", "{simulated}", 2)]);
    let server = Server::with(&toml).upstream(granting(0)).await;
    let key = operator(&server.database).await;
    let toml = toml.replace("{simulated}", &server.simulator.base_url());
    let batch = server.create_batch(lines(10), CHAT).await;
    in_flight(&server.simulator, 2).await;
    reload_with(&server, &key, &toml.replace("sim-small", "sim-other")).await;
    server.simulator.grant(1_000);
    let done = server
        .until(&batch, |batch| batch.counts.completed == 2)
        .await;
    assert_eq!(
        done.counts.failed, 0,
        "what was in flight has ended: {done}"
    );
    server
        .until_rows("units WHERE state = 'waiting'", |count| count == 1)
        .await;
    assert_eq!(server.simulator.stats().total.calls, 2);
    reload_with(&server, &key, &toml).await;
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 10, "{ended}");
    server.exactly_once(&ended, &ids(10)).await;
}

/// All mistakes are told at once: in the answer, in the log, and in the status until a reload
/// succeeds. What ran before runs on.
async fn a_configuration_with_mistakes_changes_nothing() {
    let server = Server::start().await;
    let key = operator(&server.database).await;
    let before = configuration(&server, &key).await;
    let good = std::fs::read_to_string(server.config_file()).expect("reads");
    write(
        &server,
        &format!("{good}\n[retry]\nmax_attempts = 0\nmax_atempts = 3\n"),
    );
    let (status, answer) = reload(&server, &key).await;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(answer["error"]["code"], "invalid_configuration", "{answer}");
    let message = answer["error"]["message"].as_str().expect("has words");
    for told in [
        "retry.max_attempts",
        "retry.max_atempts",
        "nightshift.toml:",
    ] {
        assert!(message.contains(told), "{told}: {message}");
    }
    let now = configuration(&server, &key).await;
    assert_eq!(now["hash"], before["hash"], "{now}");
    assert_eq!(now["faults"].as_array().map(Vec::len), Some(2), "{now}");
    assert!(now["failed_at"].is_i64(), "{now}");
    let batch = server.run(lines(10), CHAT).await;
    assert_eq!(batch.counts.completed, 10, "{batch}");

    let loaded = reload_with(&server, &key, &good).await;
    assert_eq!(loaded, configuration(&server, &key).await);
    assert_eq!(loaded["faults"], serde_json::json!([]), "{loaded}");
    assert_eq!(loaded["hash"], before["hash"], "it says the same as before");
    std::fs::remove_file(server.config_file()).expect("removes");
    let (status, answer) = reload(&server, &key).await;
    assert_eq!(status, 400, "{answer}");
}

/// What cannot change while a server runs is said, and the rest holds.
async fn keys_that_need_a_restart_are_told_and_the_rest_holds() {
    let server = Server::with("[worker]\nlease = \"10s\"\n").await;
    let key = operator(&server.database).await;
    let before = configuration(&server, &key).await;
    let toml = std::fs::read_to_string(server.config_file()).expect("reads");
    let toml = toml.replace("\"10s\"", "\"11s\"").replace("= 64", "= 63");
    let loaded = reload_with(&server, &key, &toml).await;
    assert_eq!(loaded["needs_restart"], serde_json::json!(["worker.lease"]));
    assert_ne!(loaded["hash"], before["hash"]);
    let status = server.by(&key).get("/admin/status").await;
    assert_eq!(status["upstreams"][0]["limit"], 63, "{status}");
    let again = reload_with(&server, &key, &toml).await;
    assert_eq!(again["needs_restart"], loaded["needs_restart"], "still");
}

/// The process with this hash, as the store has it.
async fn one_runs_by(server: &Server, hash: &str) {
    let table = format!("replicas WHERE config_hash = '{hash}'");
    server.until_rows(&table, |count| count == 1).await;
}

/// Others see what a process runs by, and that two of them differ.
async fn each_process_says_what_it_runs_by() {
    let server = Server::start().await;
    let key = operator(&server.database).await;
    let before = configuration(&server, &key).await;
    let hash = before["hash"].as_str().expect("is text");
    assert!(hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
    one_runs_by(&server, hash).await;
    let toml = std::fs::read_to_string(server.config_file()).expect("reads");
    let loaded = reload_with(&server, &key, &toml.replace("= 64", "= 63")).await;
    let status = server.by(&key).get("/admin/status").await;
    let replica = &status["replicas"][0];
    assert_eq!(replica["configuration"], loaded["hash"], "{status}");
    assert_eq!(replica["loaded_at"], loaded["loaded_at"], "{status}");
    one_runs_by(&server, loaded["hash"].as_str().expect("is text")).await;
}

/// Other sections hold for what comes from then on.
async fn what_holds_for_uploads_keys_and_batches_changes_too() {
    let server = Server::with("[limits]\nmax_requests_per_batch = 9\n").await;
    let key = operator(&server.database).await;
    let refused = server.run(lines(10), CHAT).await;
    assert_eq!(refused.status, "failed", "{refused}");
    let toml = std::fs::read_to_string(server.config_file()).expect("reads");
    let limits = "max_requests_per_batch = 10\nmax_file_bytes = 4_000\nmax_line_bytes = 9_000";
    let first_key = "sk-bootstrap-0123456789";
    let file = server.config_file() + ".key";
    std::fs::write(&file, first_key).expect("writes the key");
    let auth = format!("[auth]\nbootstrap_key_file = \"{file}\"");
    let toml = toml.replace("max_requests_per_batch = 9", limits);
    let toml = toml.replace("[auth]", &auth) + "\n[retention]\ninput_files = \"2d\"\n";
    let loaded = reload_with(&server, &key, &toml).await;
    let fixed = serde_json::json!(["limits.max_line_bytes"]);
    assert_eq!(loaded["needs_restart"], fixed, "{loaded}");
    let taken = server.run(lines(10), CHAT).await;
    assert_eq!(taken.counts.completed, 10, "{taken}");
    let by_first = server.by(first_key);
    let file = by_first.upload_batch(lines(1)).await;
    let file = by_first.get(&format!("/v1/files/{file}")).await;
    let days = |file: &Value| {
        let at = |name: &str| file[name].as_i64().expect("is a time");
        (at("expires_at") - at("created_at")) / (24 * 60 * 60)
    };
    assert_eq!(days(&file), 2, "{file}");
    let too_large = server.upload(lines(40).into_bytes(), "in.jsonl", "batch");
    assert_eq!(too_large.await.status(), 413);
}

async fn only_operators_reload() {
    let server = Server::start().await;
    let (status, answer) = reload(&server, server.key()).await;
    assert_eq!(status, 403, "{answer}");
}

/// Keys are read again with the file that names theirs.
async fn a_key_that_was_rotated_in_its_file_holds() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-new-secret")],
        ..Options::default()
    };
    let directory = tempfile::tempdir().expect("makes a directory");
    let file = directory.path().join("key");
    std::fs::write(&file, "sk-old-secret\n").expect("writes the key");
    let toml = format!(
        "[[upstreams]]\nbase_url = \"{{simulated}}\"\napi_key_file = \"{}\"\n",
        file.display()
    );
    let server = Server::with(&toml).upstream(options).await;
    let key = operator(&server.database).await;
    let before = configuration(&server, &key).await;
    let batch = server.create_batch(lines(10), CHAT).await;
    eventually("the old key is refused", async || {
        let status = server.by(&key).get("/admin/status").await;
        if status["upstreams"][0]["state"] == "ejected" {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    std::fs::write(&file, "sk-new-secret\n").expect("writes the key");
    let (status, loaded) = reload(&server, &key).await;
    assert_eq!(status, 200, "{loaded}");
    assert_eq!(loaded["hash"], before["hash"], "no secret is in it");
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 10, "{ended}");
}

/// Reloads at once go one after the other, and a batch runs through a hundred of them.
async fn reloads_at_once_go_one_after_the_other() {
    let toml = config(&[("a", "{simulated}", 8)]);
    let server = Server::with(&toml).await;
    let key = operator(&server.database).await;
    let toml = toml.replace("{simulated}", &server.simulator.base_url());
    let batch = server.create_batch(lines(500), CHAT).await;
    for turn in 0..25 {
        write(
            &server,
            &toml.replace("= 8", &format!("= {}", 1 + turn % 8)),
        );
        let four = futures::future::join_all((0..4).map(|_| reload(&server, &key))).await;
        for (status, loaded) in four {
            assert_eq!(status, 200, "{loaded}");
        }
    }
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 500, "{ended}");
    server.exactly_once(&ended, &ids(500)).await;
    assert_eq!(server.simulator.stats().total.calls, 500);
}

/// The real binary, and the signal.
async fn a_hangup_has_the_configuration_read_again() {
    let server = Server::with(&config(&[("a", "{simulated}", 2)]))
        .upstream(granting(0))
        .binary()
        .await;
    let key = operator(&server.database).await;
    let batch = server.create_batch(lines(20), CHAT).await;
    in_flight(&server.simulator, 2).await;
    let url = server.simulator.base_url();
    write(&server, &config(&[("a", &url, 5)]));
    server.signal("HUP");
    in_flight(&server.simulator, 5).await;
    write(&server, "[[upstreams]]\nbase_url = \"nowhere\"\n");
    server.signal("HUP");
    eventually("the mistake is told", async || {
        let now = configuration(&server, &key).await;
        let faults = now["faults"].as_array().cloned().unwrap_or_default();
        if faults.is_empty() { Err(now) } else { Ok(()) }
    })
    .await;
    server.simulator.grant(100);
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 20, "{ended}");
    server.exactly_once(&ended, &ids(20)).await;
}

/// The file vanishes, comes back without the upstream that has 64 calls in flight, and two signals
/// come at once.
async fn an_upstream_that_is_gone_ends_its_64_calls_and_gets_no_more() {
    let server = Server::with(&config(&[("a", "{simulated}", 64)]))
        .upstream(granting(0))
        .binary()
        .await;
    let key = operator(&server.database).await;
    let (a, b) = (&server.simulator, simulator(granting(0)).await);
    let batch = server.create_batch(lines(100), CHAT).await;
    in_flight(a, 64).await;
    std::fs::remove_file(server.config_file()).expect("removes");
    server.signal("HUP");
    eventually("the file is missed", async || {
        let now = configuration(&server, &key).await;
        if now["failed_at"].is_i64() {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
    write(&server, &config(&[("b", &b.base_url(), 8)]));
    server.signal("HUP");
    server.signal("HUP");
    in_flight(&b, 8).await;
    in_flight(a, 64).await;
    a.grant(1_000);
    in_flight(a, 0).await;
    b.grant(1_000);
    let ended = server.ended(&batch).await;
    assert_eq!(ended.counts.completed, 100, "{ended}");
    server.exactly_once(&ended, &ids(100)).await;
    let calls = (a.stats().total.calls, b.stats().total.calls);
    assert_eq!(calls, (64, 36), "each line was sent once");
}

/// What is logged changes, too.
async fn the_log_follows_another_filter() {
    let mut server = Server::with("[log]\nfilter = \"off\"\n").binary().await;
    let toml = std::fs::read_to_string(server.config_file()).expect("reads");
    write(&server, &toml.replace("\"off\"", "\"info\""));
    server.signal("HUP");
    let mut process = server.binary_process();
    process.says("the configuration was read again").await;
    process.terminate().await;
}

on_every_engine![
    the_log_follows_another_filter,
    an_upstream_that_is_gone_ends_its_64_calls_and_gets_no_more,
    a_batch_goes_on_while_upstreams_come_and_go,
    lines_of_a_model_that_is_gone_wait_until_it_is_back,
    a_configuration_with_mistakes_changes_nothing,
    keys_that_need_a_restart_are_told_and_the_rest_holds,
    each_process_says_what_it_runs_by,
    only_operators_reload,
    a_key_that_was_rotated_in_its_file_holds,
    what_holds_for_uploads_keys_and_batches_changes_too,
    reloads_at_once_go_one_after_the_other,
    a_hangup_has_the_configuration_read_again,
];

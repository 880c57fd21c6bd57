//! Upstreams are enabled, disabled and drained while they are in use.

use nightshift::internals::simulate::{Options, Simulator};
use nightshift::internals::store::Engine;
use serde_json::{Value, json};

use crate::support::binary::{Ended, Launch, Process, command, ended};
use crate::support::metrics::{Metrics, operator};
use crate::support::{
    Api, CHAT, Server, chat, client_with, eventually, granting, ids, on, on_every_engine,
};

/// `first` is the simulator that each server has, and `second` another one.
fn two(second: &Simulator) -> String {
    format!(
        "[[upstreams]]\nname = \"first\"\nbase_url = \"{{simulated}}\"\nconcurrency = 4\n\
         [[upstreams]]\nname = \"second\"\nbase_url = \"{}\"\nconcurrency = 4\n\
         [[models]]\nname = \"sim-small\"\nroutes = [\
         {{ upstream = \"first\" }}, {{ upstream = \"second\", tier = 1 }}]\n",
        second.base_url()
    )
}

const ONE: &str = "[[upstreams]]\nname = \"only\"\nbase_url = \"{simulated}\"\nconcurrency = 4\n\
    [[models]]\nname = \"sim-small\"\nroutes = [{ upstream = \"only\" }]\n";

async fn second() -> Simulator {
    let started = Simulator::start("127.0.0.1:0", Options::default()).await;
    started.expect("starts")
}

fn lines(count: usize) -> String {
    let line = |id: &String| chat(id, Value::Null);
    ids(count).iter().map(line).collect()
}

async fn post(server: &Api, key: &str, path: &str) -> (u16, Value) {
    let request = client_with(Some(key)).post(server.url(path));
    let response = request.send().await.expect("answers");
    let status = response.status().as_u16();
    (status, response.json().await.expect("is JSON"))
}

/// An upstream in `/admin/status`.
async fn upstream(server: &Api, key: &str, name: &str) -> Value {
    let status = server.by(key).get("/admin/status").await;
    let mut upstreams = status["upstreams"].as_array().expect("a list").iter();
    let found = upstreams.find(|upstream| upstream["name"] == name);
    found.expect("the upstream").clone()
}

async fn is_in_state(server: &Api, key: &str, name: &str, state: &str) {
    eventually("the upstream is so", async || {
        let found = upstream(server, key, name).await;
        if found["state"] == state {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
}

/// Why the routes of the model are passed over.
async fn skipped(server: &Api, key: &str) -> Vec<Option<String>> {
    let status = server.by(key).get("/admin/status").await;
    let mut models = status["models"].as_array().expect("a list").iter();
    let model = models.find(|model| model["model"] == "sim-small");
    let routes = model.expect("the model")["routes"].as_array();
    let why = |route: &Value| route["skipped"].as_str().map(str::to_owned);
    routes.expect("a list").iter().map(why).collect()
}

/// `nightshift upstreams` with these words.
async fn upstreams(words: &[&str]) -> Ended {
    ended(command(&[&["upstreams"], words].concat())).await
}

async fn asked_of_the_server(server: &Api, key: &str, words: &[&str]) -> Ended {
    let mut command = command(&[&["upstreams"], words].concat());
    command.args(["--url", &server.url(""), "--api-key-env", "OPS_KEY"]);
    command.env("OPS_KEY", key);
    ended(command).await
}

async fn lines_of_a_disabled_upstream_go_elsewhere_also_after_a_restart() {
    let second = second().await;
    let mut server = Server::with(&two(&second)).await;
    let key = operator(&server.database).await;
    let (status, set) = post(&server, &key, "/admin/upstreams/first/disable").await;
    assert_eq!(
        (status, &set["enabled"]),
        (200, &Value::Bool(false)),
        "{set}"
    );
    let by = set["changed_by"].as_str().expect("who").to_owned();
    assert!(by.starts_with("key_"), "{set}");
    is_in_state(&server, &key, "first", "disabled").await;

    // The next tier takes lines though nothing is wrong with the first.
    let batch = server.run(lines(20), CHAT).await;
    assert_eq!(batch.counts.completed, 20, "{batch}");
    server.stop().await;
    server.start_again().await;
    let batch = server.run(lines(20), CHAT).await;
    assert_eq!(batch.counts.completed, 20, "{batch}");
    assert_eq!(server.simulator.stats().total.calls, 0);
    assert_eq!(second.stats().total.calls, 40);

    let shown = upstream(&server, &key, "first").await;
    assert_eq!(shown["changed_by"], by.as_str(), "{shown}");
    assert_eq!(shown["changed_at"], set["changed_at"], "{shown}");
    let cause = format!("disabled by {by}");
    assert_eq!(shown["cause"], cause.as_str(), "{shown}");
    assert_eq!(
        skipped(&server, &key).await,
        [Some("disabled".to_owned()), None]
    );
    let metrics = Metrics::of(&server.url(""), Some(&key)).await;
    let labels = ["upstream=\"first\"", "state=\"disabled\""];
    assert!(metrics.sum("nightshift_upstream_state", &labels) > 0.5);

    let again = post(&server, &key, "/admin/upstreams/first/disable").await;
    assert_eq!(
        again,
        (200, set),
        "it was so, and it is said who has set it"
    );
    let (status, set) = post(&server, &key, "/admin/upstreams/first/enable").await;
    assert_eq!(
        (status, &set["enabled"]),
        (200, &Value::Bool(true)),
        "{set}"
    );
    eventually("the upstream takes lines", async || {
        skipped(&server, &key).await == [None, Some("tier".to_owned())]
    })
    .await;
    let batch = server.run(lines(20), CHAT).await;
    assert_eq!(batch.counts.completed, 20, "{batch}");
    assert_eq!(server.simulator.stats().total.calls, 20);
}

async fn a_model_without_an_enabled_upstream_waits_and_fails_no_line() {
    let server = Server::with(ONE).await;
    let key = operator(&server.database).await;
    let config = server.config_file();
    let place = ["--database", &server.database, "--config", &config];
    let disabled = upstreams(&[&["disable", "only"], &place[..]].concat()).await;
    assert_eq!(disabled.code, Some(0), "{disabled:?}");
    assert!(disabled.out.starts_with("only is disabled"), "{disabled:?}");
    is_in_state(&server, &key, "only", "disabled").await;

    let batch = server.create_batch(lines(20), CHAT).await;
    let running = "batches WHERE status = 'in_progress'";
    server.until_rows(running, |batches| batches == 1).await;
    assert_eq!(skipped(&server, &key).await, [Some("disabled".to_owned())]);
    let listed = upstreams(&[&["list"], &place[..]].concat()).await;
    assert!(
        listed.out.contains("disabled by the command line"),
        "{listed:?}"
    );
    assert!(listed.out.contains("nothing is in flight"), "{listed:?}");
    assert_eq!(server.batch(&batch).await.done(), 0);
    assert_eq!(server.simulator.stats().total.calls, 0);

    let enabled = upstreams(&[&["enable", "only"], &place[..]].concat()).await;
    assert_eq!(enabled.code, Some(0), "{enabled:?}");
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 20, "{batch}");
}

async fn a_drain_waits_for_what_is_in_flight_and_aborts_nothing() {
    let mut server = Server::with(ONE).upstream(granting(0)).binary().await;
    let key = operator(&server.database).await;
    let batch = server.create_batch(lines(20), CHAT).await;
    let total = |server: &Server| server.simulator.stats().total;
    eventually("four calls are in flight", async || {
        if total(&server).in_flight == 4 {
            Ok(())
        } else {
            Err(format!("{:?}", total(&server)))
        }
    })
    .await;
    let (api, ops) = (server.at(&server.url("")), key.clone());
    let draining =
        tokio::spawn(async move { asked_of_the_server(&api, &ops, &["drain", "only"]).await });
    is_in_state(&server, &key, "only", "disabled").await;
    // A client that goes away ends the wait, not the drain.
    let request = client_with(Some(&key)).post(server.url("/admin/upstreams/only/drain"));
    let patience = std::time::Duration::from_millis(300);
    let left = request.timeout(patience).send().await;
    assert!(
        left.is_err_and(|error| error.is_timeout()),
        "calls are in flight"
    );
    assert!(!draining.is_finished(), "calls are in flight");
    assert_eq!(total(&server).in_flight, 4, "nothing is aborted");

    server.simulator.grant(20);
    let drained = draining.await.expect("ends");
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert_eq!((total(&server).in_flight, total(&server).calls), (0, 4));
    server
        .until(&batch, |batch| batch.counts.completed == 4)
        .await;

    server.kill().await;
    server.start_process(Launch::new()).await;
    is_in_state(&server, &key, "only", "disabled").await;
    let list = asked_of_the_server(&server, &key, &["list", "--json"]).await;
    let list: Value = serde_json::from_str(&list.out).expect("is JSON");
    assert_eq!(
        (&list[0]["state"], &list[0]["in_flight"]),
        (&"disabled".into(), &0.into())
    );
    let enabled = asked_of_the_server(&server, &key, &["enable", "only"]).await;
    assert_eq!(enabled.code, Some(0), "{enabled:?}");
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 20, "{batch}");
    assert_eq!(total(&server).calls, 20, "each line was sent once");
}

/// What a drain answers at once: its status, and whom it waits for.
async fn drain_at_once(server: &Api, key: &str) -> (u16, Value) {
    let (status, answer) = post(server, key, "/admin/upstreams/only/drain?timeout=0").await;
    (status, answer["waits_for"].clone())
}

/// What it is to say while a process has so many calls in flight.
fn waiting_for(replica: &Value, calls: usize) -> Value {
    json!([{"replica": replica, "in_flight": calls}])
}

async fn a_drain_says_whom_it_waits_for() {
    let server = Server::with(ONE).upstream(granting(0)).binary().await;
    let key = operator(&server.database).await;
    let batch = server.create_batch(lines(20), CHAT).await;
    eventually("four calls are in flight", async || {
        server.simulator.stats().total.in_flight == 4
    })
    .await;
    let status = server.by(&key).get("/admin/status").await;
    let replica = &status["replicas"][0]["name"];
    let four = waiting_for(replica, 4);
    eventually("the process has told how many calls it has", async || {
        let answer = drain_at_once(&server, &key).await;
        if answer == (202, four.clone()) {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await;
    assert_eq!(upstream(&server, &key, "only").await["waits_for"], four);

    let mut command = command(&["upstreams", "drain", "only"]);
    command.args(["--url", &server.url(""), "--api-key-env", "OPS_KEY"]);
    command.env("OPS_KEY", &key);
    let mut draining = Process::start(command, b"");
    let name = replica.as_str().expect("a name");
    draining
        .says(&format!("Waiting for {name} (4 calls in flight)"))
        .await;
    server.simulator.grant(1);
    draining
        .says(&format!("Waiting for {name} (3 calls in flight)"))
        .await;
    server.simulator.grant(3);
    let drained = draining.ended().await;
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert_eq!(drain_at_once(&server, &key).await, (200, json!([])));
    assert_eq!(
        upstream(&server, &key, "only").await["waits_for"],
        json!([])
    );

    for wrong in ["-1", "soon", "86401"] {
        let path = format!("/admin/upstreams/only/drain?timeout={wrong}");
        let (status, error) = post(&server, &key, &path).await;
        assert_eq!((status, &error["error"]["param"]), (400, &"timeout".into()));
    }
    post(&server, &key, "/admin/upstreams/only/enable").await;
    server.simulator.grant(20);
    server.ended(&batch).await;
}

#[tokio::test]
async fn a_drain_at_a_process_that_makes_no_calls_ends_with_the_process_and_names_the_others() {
    on(Engine::Postgres, async {
        let server = Server::with(ONE).upstream(granting(0)).binary().await;
        let flags = ["--role", "api"];
        let halves = server.replica(Launch::new().flags(&flags)).await;
        let api = server.at(&halves.base);
        let key = operator(&server.database).await;
        let batch = server.create_batch(lines(20), CHAT).await;
        eventually("four calls are in flight", async || {
            server.simulator.stats().total.in_flight == 4
        })
        .await;
        let status = api.by(&key).get("/admin/status").await;
        let replica = status["replicas"][0]["name"].clone();
        let four = waiting_for(&replica, 4);
        let (asked, ops) = (server.at(&halves.base), key.clone());
        let draining =
            tokio::spawn(async move { post(&asked, &ops, "/admin/upstreams/only/drain").await });
        eventually("the worker has told how many calls it has", async || {
            let shown = upstream(&api, &key, "only").await;
            if shown["waits_for"] == four {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
        assert!(!draining.is_finished(), "calls are in flight");
        halves.terminate().await;
        let (status, error) = draining.await.expect("ends");
        assert_eq!(status, 503, "{error}");
        let message = error["error"]["message"].as_str().expect("a message");
        let name = replica.as_str().expect("a name");
        assert!(
            message.contains(&format!("{name} (4 calls in flight)")),
            "{message}"
        );

        server.simulator.grant(4);
        let (status, set) = post(&server, &key, "/admin/upstreams/only/drain").await;
        assert_eq!((status, &set["waits_for"]), (200, &json!([])), "{set}");
        post(&server, &key, "/admin/upstreams/only/enable").await;
        server.simulator.grant(20);
        server.ended(&batch).await;
    })
    .await;
}

async fn a_drain_ends_when_somebody_enables_the_upstream() {
    let server = Server::with(ONE).upstream(granting(0)).await;
    let key = operator(&server.database).await;
    let batch = server.create_batch(lines(4), CHAT).await;
    eventually("a call is in flight", async || {
        server.simulator.stats().total.in_flight > 0
    })
    .await;
    let (api, ops) = (server.at(&server.url("")), key.clone());
    let draining =
        tokio::spawn(async move { post(&api, &ops, "/admin/upstreams/only/drain").await });
    is_in_state(&server, &key, "only", "disabled").await;
    post(&server, &key, "/admin/upstreams/only/enable").await;
    let (status, error) = draining.await.expect("ends");
    assert_eq!(status, 409, "{error}");
    server.simulator.grant(4);
    server.ended(&batch).await;
}

async fn the_configuration_disables_and_an_operator_enables() {
    let off = ONE.replace("concurrency", "enabled = false\nconcurrency");
    let server = Server::with(&off).await;
    let key = operator(&server.database).await;
    let shown = upstream(&server, &key, "only").await;
    assert_eq!(shown["state"], "disabled", "{shown}");
    assert_eq!(shown["cause"], "disabled in the configuration", "{shown}");
    assert_eq!(shown["changed_by"], Value::Null, "{shown}");
    let batch = server.create_batch(lines(5), CHAT).await;
    post(&server, &key, "/admin/upstreams/only/enable").await;
    let batch = server.ended(&batch).await;
    assert_eq!(batch.counts.completed, 5, "{batch}");
}

async fn only_operators_switch_and_only_what_there_is() {
    let server = Server::with(ONE).await;
    let key = operator(&server.database).await;
    for what in ["disable", "enable", "drain"] {
        let path = format!("/admin/upstreams/only/{what}");
        let (status, error) = post(&server, server.key(), &path).await;
        assert_eq!(status, 403, "{error}");
        let path = format!("/admin/upstreams/onyl/{what}");
        let (status, error) = post(&server, &key, &path).await;
        assert_eq!(status, 404, "{error}");
        let config = server.config_file();
        let place = ["--database", &server.database, "--config", &config];
        let unknown = upstreams(&[&[what, "onyl"], &place[..]].concat()).await;
        assert_eq!(unknown.code, Some(1), "{unknown:?}");
        assert!(
            unknown.errors.contains("the nearest is only"),
            "{unknown:?}"
        );
    }
    assert_eq!(
        upstream(&server, &key, "only").await["changed_by"],
        Value::Null
    );
}

#[tokio::test]
async fn every_replica_follows_and_a_drain_waits_for_all() {
    on(Engine::Postgres, async {
        let server = Server::with(ONE).upstream(granting(0)).binary().await;
        let other = server.replica(Launch::new()).await;
        let other_api = server.at(&other.base);
        let key = operator(&server.database).await;
        // Two models' worth of units, so that both have something in hand.
        let batch = server.create_batch(lines(1_500), CHAT).await;
        let in_flight = async |api: &Api| upstream(api, &key, "only").await["in_flight"].clone();
        eventually("both have calls in flight", async || {
            let both = (in_flight(&server).await, in_flight(&other_api).await);
            if both.0 == 0 || both.1 == 0 {
                // Places change hands when they become free.
                server.simulator.grant(2);
                Err(format!("{both:?}"))
            } else {
                Ok(())
            }
        })
        .await;
        let (api, ops) = (server.at(&server.url("")), key.clone());
        let draining =
            tokio::spawn(async move { post(&api, &ops, "/admin/upstreams/only/drain").await });
        for api in [&server as &Api, &other_api] {
            is_in_state(api, &key, "only", "disabled").await;
        }
        let calls = server.simulator.stats().total.calls;
        assert!(!draining.is_finished(), "calls are in flight");
        server.simulator.grant(10_000);
        let (status, set) = draining.await.expect("ends");
        assert_eq!(status, 200, "{set}");
        let total = server.simulator.stats().total;
        assert_eq!((total.in_flight, total.calls), (0, calls));
        server.cancel(&batch).await;
        server.ended(&batch).await;
        other.terminate().await;
    })
    .await;
}

on_every_engine![
    lines_of_a_disabled_upstream_go_elsewhere_also_after_a_restart,
    a_model_without_an_enabled_upstream_waits_and_fails_no_line,
    a_drain_waits_for_what_is_in_flight_and_aborts_nothing,
    a_drain_says_whom_it_waits_for,
    a_drain_ends_when_somebody_enables_the_upstream,
    the_configuration_disables_and_an_operator_enables,
    only_operators_switch_and_only_what_there_is,
];

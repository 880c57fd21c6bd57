//! What the log says to whoever looks for a cause, and what it does not say.

use serde_json::{Value, json};

use crate::support::binary::{Binary, command, ended};
use crate::support::metrics::{Metrics, operator};
use crate::support::{Batch, CHAT, Server, chat, client_with, on_every_engine};

const AS_JSON: &str = "[log]\nformat = \"json\"\n";

/// The lines of a server's log, once it has been stopped.
async fn log(mut server: Server) -> Vec<Value> {
    let log = server.binary_process().terminate().await;
    let lines = log.lines();
    let lines = lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")));
    lines.collect()
}

fn line<'a>(log: &'a [Value], message: &str) -> &'a Value {
    let found = log.iter().find(|line| line["message"] == message);
    found.unwrap_or_else(|| panic!("no line says {message}: {log:#?}"))
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {line}"))
}

async fn the_start_names_the_database_and_the_upstreams() {
    let server = Server::with(AS_JSON).binary().await;
    let upstream = format!("simulated {}", server.simulator.base_url());
    let database = server.database.clone();
    let log = log(server).await;
    let start = line(&log, "nightshift starts");
    assert_eq!(start, &log[0], "nothing is said before");
    assert_eq!(text(start, "version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(text(start, "upstreams"), upstream);
    let told = text(start, "database");
    let name = database
        .rsplit('/')
        .find(|part| part.contains("test"))
        .expect("is there");
    let name = name.split('?').next().expect("is there");
    assert!(told.contains(name), "{told} of {database}");
    assert!(!told.contains('@'), "a user is not told: {told}");
}

/// Whoever looks for why a server does not start has to know what it was told to use.
#[tokio::test]
async fn a_start_that_fails_names_the_database_and_the_upstreams() {
    let url = "postgres://nobody:sk-hunter2-41f0@127.0.0.1:1/no-database";
    let upstream = "http://127.0.0.1:2/v1";
    let mut command = command(&["serve", "--listen", "127.0.0.1:0", "--upstream", upstream]);
    command.env("DATABASE_URL", url);
    command.env("NIGHTSHIFT_DATABASE__START_TIMEOUT", "0s");
    let ended = ended(command).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let (first, rest) = ended.errors.split_once('\n').expect("says more");
    let shown = "postgres://127.0.0.1:1/no-database";
    for told in [env!("CARGO_PKG_VERSION"), shown, upstream] {
        assert!(first.contains(told), "{told}: {first}");
    }
    let error = format!("error: cannot use the database {shown}: ");
    assert!(rest.contains(&error), "{rest}");
    assert!(
        !ended.errors.contains("sk-hunter2-41f0"),
        "{}",
        ended.errors
    );
}

async fn a_failed_batch_says_why() {
    let server = Server::with(AS_JSON).binary().await;
    let jsonl =
        chat("a", Value::Null) + &chat("private-id", Value::Null).replace("sim-small", "m2");
    let unknown = server.failed_batch(jsonl, CHAT).await;
    let twice = chat("private-id", Value::Null) + &chat("private-id", Value::Null);
    let twice = server.failed_batch(twice, CHAT).await;
    let body = json!({
        "input_file_id": "private-file-id", "endpoint": CHAT, "completion_window": "24h",
    });
    let missing = server.create(&body).await;
    let missing = server.ended(&missing).await;
    let log = log(server).await;
    let why = |batch: &Batch| {
        let mut lines = log
            .iter()
            .filter(|line| line["message"] == "the batch is failed");
        let line = lines.find(|line| line["batch.id"] == batch["id"]);
        text(line.expect("is logged"), "batch.errors").to_owned()
    };
    let unknown = why(&unknown);
    assert!(
        unknown.starts_with("line 2: model_not_found: "),
        "{unknown}"
    );
    assert!(unknown.contains("m2"), "{unknown}");
    // What a line holds is its owner's.
    assert_eq!(why(&twice), "line 2: duplicate_custom_id (custom_id)");
    // A client may give a key where an id is meant.
    assert_eq!(why(&missing), "invalid_request (file_id)");
    assert!(
        !log.iter()
            .any(|line| line.to_string().contains("private-id"))
    );
}

/// Nobody listens there.
const AWAY: &str = r#"
    [log]
    format = "json"

    [[upstreams]]
    name = "away"
    base_url = "http://127.0.0.1:1/v1"
"#;

async fn what_closes_an_upstream_has_its_url() {
    let server = Server::with(AWAY).binary().await;
    let key = operator(&server.database).await;
    server.create_batch(chat("a", Value::Null), CHAT).await;
    Metrics::until(&server.url(""), &key, |metrics| {
        metrics.sum("nightshift_upstream_state", &[r#"state="down""#]) == 1.0
    })
    .await;
    let log = log(server).await;
    let closed = log.iter().filter(|line| line["upstream.name"] == "away");
    let closed: Vec<_> = closed.collect();
    assert!(!closed.is_empty(), "{log:#?}");
    for line in closed {
        assert_eq!(text(line, "upstream.url"), "http://127.0.0.1:1/v1");
    }
}

#[tokio::test]
async fn a_variable_that_is_nearly_one_that_is_read_is_warned_of() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let meant = [
        ("NIGHTSHIFT_LISTEN", "127.0.0.1:1"),
        ("NIGHTSHIFT_BOOTSTRAP_KEY", "sk-hunter2-41f0"),
        ("NIGHTSHIFT_PORT", "tcp://10.0.0.1:8080"),
    ];
    let server = Binary::serve(&["--database", &url], &meant).await;
    let mut said = vec![server.terminate().await];
    for args in [&["keys", "list"][..], &["check"]] {
        let mut command = command(&[args, &["--database", &url]].concat());
        command.envs(meant).current_dir(directory.path());
        let ended = ended(command).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:?}");
        said.push(ended.out + &ended.errors);
    }
    for said in said {
        for name in [
            "NIGHTSHIFT_SERVER__LISTEN",
            "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY",
        ] {
            assert!(said.contains(name), "{name}: {said}");
        }
        for not_told in ["sk-hunter2-41f0", "NIGHTSHIFT_PORT"] {
            assert!(!said.contains(not_told), "{not_told}: {said}");
        }
    }
}

/// Names that a section begins, which whoever runs the server has chosen.
#[tokio::test]
async fn a_variable_that_the_configuration_names_is_not_warned_of() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    // As it is written, this one would be a slip.
    let named = "NIGHTSHIFT_SERVER_LISTN";
    let config = directory.path().join("nightshift.toml");
    let upstream = format!(
        "[[upstreams]]\nname = \"a\"\nbase_url = \"http://127.0.0.1:1/v1\"\n\
         api_key_env = \"{named}\"\n"
    );
    std::fs::write(&config, upstream).expect("writes");
    let variables = [
        (named, "sk-named-key"),
        ("NIGHTSHIFT_UPSTREAMS_KEY", "sk-another-key"),
        ("NIGHTSHIFT_DATABASE_PASSWORD", "sk-a-third-key"),
    ];
    let file = config.to_str().expect("is text");
    let flags = ["--upstream", "http://127.0.0.1:1/v1", "--api-key-env"];
    for which in [&["--config", file][..], &[&flags[..], &[named]].concat()] {
        let server = Binary::serve(&[which, &["--database", &url]].concat(), &variables).await;
        let mut said = vec![server.terminate().await];
        let mut check = command(&[&["check", "--database", &url], which].concat());
        check.envs(variables);
        let checked = ended(check).await;
        assert!(checked.out.contains("ok    configuration"), "{checked:?}");
        said.push(checked.out + &checked.errors);
        for said in said {
            assert!(!said.contains("is not read"), "{said}");
        }
    }
}

#[tokio::test]
async fn anybody_may_ask_for_the_version() {
    let server = Server::start().await;
    let asked = client_with(None).get(server.url("/version")).send().await;
    let version: Value = asked.expect("answers").json().await.expect("is JSON");
    let expected = json!({"name": "nightshift", "version": env!("CARGO_PKG_VERSION")});
    assert_eq!(version, expected);
}

on_every_engine![
    the_start_names_the_database_and_the_upstreams,
    a_failed_batch_says_why,
    what_closes_an_upstream_has_its_url,
];

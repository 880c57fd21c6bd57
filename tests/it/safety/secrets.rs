//! Secrets go where they are meant to go and nowhere else: no log, no answer, no row.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Mutex;

use futures::FutureExt as _;
use nightshift::internals::simulate::{ApiKey, Options, Simulator};
use serde_json::json;

use crate::support::binary::{Binary, Process, command, ended};
use crate::support::engines::execute;
use crate::support::receiver::Receiver;
use crate::support::secrets::Log;
use crate::support::{Api, CHAT, Server, chat, client_with, on_every_engine};

const UPSTREAM_KEY: &str = "sk-upstream-7c1d5e0b9a";
const WRONG_UPSTREAM_KEY: &str = "sk-upstream-wrong-52ab";
const BOOTSTRAP_KEY: &str = "sk-bootstrap-41f0c6d2e8";
/// What the line that is sent asks.
const PROMPT: &str = "This is a.";
const GUESSED_KEY: &str = "sk-guessed-key-b83a97";

/// Runs one line through a server, as a client with this key; returns all that it answered.
async fn session(base: &str, key: &str) -> String {
    let client = Api::new(base, key);
    let mut answers = String::new();
    let batch = client.run(chat("a", json!({"echo": true})), CHAT).await;
    assert_eq!(batch.counts.completed, 1, "{batch}");
    let output = batch.output_file_id.as_ref().expect("is there");
    let output = client.url(&format!("/v1/files/{output}/content"));
    let output = client.client().get(output).send().await.expect("answers");
    let output = output.text().await.expect("is text");
    // The upstream echoes what it was sent: this is where its key is meant to arrive.
    assert!(output.contains(UPSTREAM_KEY), "{output}");

    for client in [client_with(Some(GUESSED_KEY)), client_with(Some(key))] {
        for path in [
            "/v1/files",
            "/v1/files/file-x",
            "/nowhere",
            "/v1/models",
            "/metrics",
            "/admin/status",
            "/readyz",
        ] {
            let response = client
                .get(format!("{base}{path}"))
                .send()
                .await
                .expect("answers");
            answers.push_str(&format!("{:?}", response.headers()));
            answers.push_str(&response.text().await.expect("is text"));
        }
    }
    answers
}

/// Everything below a directory, as one run of bytes.
fn bytes_below(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("can be read") {
        bytes.extend(std::fs::read(entry.expect("can be read").path()).expect("can be read"));
    }
    bytes
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn secrets_are_in_no_log_no_answer_and_no_row() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", UPSTREAM_KEY)],
        ..Options::default()
    };
    let simulator = Simulator::start("127.0.0.1:0", options)
        .await
        .expect("starts");
    let (receiver, spans_to) = Receiver::start().await;
    let directory = tempfile::tempdir().expect("makes a directory");
    let data = directory.path().join("data");
    let url = format!("sqlite://{}", data.join("a.db").display());
    let created = ended(command(&[
        "keys",
        "create",
        "--name",
        "a",
        "--admin",
        "--database",
        &url,
    ]))
    .await;
    let key = created.out.trim();

    let toml = format!(
        "[[upstreams]]\nname = \"one\"\nbase_url = \"{0}\"\napi_key_env = \"ONE_KEY\"\n\
         [[upstreams]]\nname = \"two\"\nbase_url = \"{0}\"\napi_key_env = \"TWO_KEY\"\n\
         [[models]]\nname = \"sim-small\"\nroutes = [{{ upstream = \"one\" }}]\n\
         [[models]]\nname = \"refused\"\nroutes = [{{ upstream = \"two\" }}]\n\
         [auth]\nrequired = true\n[log]\nfilter = \"trace\"\n\
         [telemetry]\notlp_endpoint = \"{1}\"\nsample_ratio = 1.0\n",
        simulator.base_url(),
        spans_to
    );
    let file = directory.path().join("nightshift.toml");
    std::fs::write(&file, toml).expect("writes");
    let variables = [
        ("ONE_KEY", UPSTREAM_KEY),
        ("TWO_KEY", WRONG_UPSTREAM_KEY),
        ("NIGHTSHIFT_AUTH__BOOTSTRAP_KEY", BOOTSTRAP_KEY),
    ];
    let config = [
        "--config",
        file.to_str().expect("is text"),
        "--database",
        &url,
    ];
    let server = Binary::serve(&config, &variables).await;
    let mut answers = String::new();
    for key in [key, BOOTSTRAP_KEY] {
        answers += &session(&server.base, key).await;
    }
    let log = server.terminate().await;
    assert!(
        log.contains("TRACE") && log.contains("answered"),
        "it is the whole log"
    );

    let mut check = command(&[&["check"], &config[..]].concat());
    let checked = ended({
        check.envs(variables);
        check
    })
    .await;
    assert_eq!(
        checked.code,
        Some(1),
        "one upstream refuses its key: {}",
        checked.out
    );

    assert!(receiver.holds(b"upstream call"), "spans were exported");
    assert!(answers.contains("nightshift_lines_total"), "metrics, too");
    assert!(answers.contains("live_batches"), "and the picture");
    assert!(!log.contains(PROMPT), "a prompt is in the log");
    assert!(!receiver.holds(PROMPT.as_bytes()), "a prompt is in a span");
    let stored = bytes_below(&data);
    for secret in [
        key,
        UPSTREAM_KEY,
        WRONG_UPSTREAM_KEY,
        BOOTSTRAP_KEY,
        GUESSED_KEY,
    ] {
        // The echo that holds the upstream's key is compressed in the store, and not searched.
        assert!(!holds(&stored, secret), "{secret} is stored");
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!answers.contains(secret), "{secret} is in an answer");
        assert!(!receiver.holds(secret.as_bytes()), "{secret} is in a span");
        assert!(
            !format!("{checked:?}").contains(secret),
            "{secret} is told by check"
        );
        assert!(!created.errors.contains(secret), "{secret} is told by keys");
    }
}

#[tokio::test]
async fn a_secret_in_a_broken_configuration_is_not_repeated() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let file = directory.path().join("nightshift.toml");
    let toml = format!("[[upstreams]]\nbase_url = \"http://a\"\napi_key = \"{UPSTREAM_KEY}\"\n");
    std::fs::write(&file, toml).expect("writes");
    for name in ["serve", "check"] {
        let mut command = command(&[name]);
        command
            .current_dir(directory.path())
            .env(
                "NIGHTSHIFT_AUTH__BOOTSTRAP_KEY",
                format!("{BOOTSTRAP_KEY} with spaces\n"),
            )
            .env("DATABASE_URL", format!("mysql://a:{GUESSED_KEY}@b/c"));
        let refused = ended(command).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        for secret in [UPSTREAM_KEY, BOOTSTRAP_KEY, GUESSED_KEY] {
            assert!(
                !format!("{refused:?}").contains(secret),
                "{name}: {refused:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_database_url_with_a_misspelled_password_is_not_logged() {
    let directory = tempfile::tempdir().expect("makes a directory");
    // A host that is no socket, so that nobody waits for a database to come up.
    let url = format!("postgres:///name?host=/nowhere&pasword={GUESSED_KEY}");
    let mut command = command(&["serve", "--database", &url]);
    command
        .current_dir(directory.path())
        .env("NIGHTSHIFT_LOG__FILTER", "trace");
    let refused = ended(command).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(!format!("{refused:?}").contains(GUESSED_KEY), "{refused:?}");
}

const PLANTED: &str = "sk-planted-0123456789";

/// Whether it fails.
fn fails(what: impl FnOnce()) -> bool {
    std::panic::catch_unwind(AssertUnwindSafe(what)).is_err()
}

/// The search that ends each test finds what is there.
async fn a_key_is_found_wherever_it_stands() {
    let server = Server::start().await;
    let name = format!("UPDATE api_keys SET name = '{PLANTED}'");
    execute(&server.database, &name).await;
    assert!(fails(|| drop(server)), "it stands in a row");

    let server = Server::start().await;
    let body = json!({
        "input_file_id": server.upload_batch(chat("a", json!({}))).await, "endpoint": CHAT,
        "completion_window": "24h", "metadata": {"key": PLANTED},
    });
    let created = AssertUnwindSafe(server.create(&body)).catch_unwind().await;
    assert!(created.is_err(), "it stands in an answer");
    assert!(fails(|| drop(server)), "it stands in a row");

    let mut writes = tokio::process::Command::new("sh");
    writes.args(["-c", &format!("echo {PLANTED} >&2")]);
    let mut writes = Process::start(writes, b"");
    writes.says(PLANTED).await;
    assert!(fails(|| drop(writes)), "it stands in a log");
}

#[test]
fn a_key_is_found_in_the_log_of_a_server_in_this_process() {
    static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(|| Log(&FOUND))
        .finish();
    tracing::subscriber::with_default(subscriber, || tracing::info!(key = PLANTED, "said"));
    let found = FOUND.lock().expect("no panic");
    assert!(found.len() == 1 && found[0].contains(PLANTED), "{found:?}");
}

on_every_engine![a_key_is_found_wherever_it_stands];

//! Servers to test, and what tests do with them again and again.

pub mod binary;
pub mod engines;
pub mod metrics;
pub mod pooler;
pub mod postgres;
pub mod proxy;
pub mod receiver;
pub mod session;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nightshift::app::App;
use nightshift::config::{Config, Environment, Overrides};
use nightshift::domain::clock::Clock;
use nightshift::simulate::{Options, Simulator};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use binary::Binary;
pub use engines::on;
pub(crate) use engines::on_every_engine;

pub const CHAT: &str = "/v1/chat/completions";
/// How long anything may take that is waited for. Far more than it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// One upstream, the simulator, and one model.
const USUAL: &str = r#"
[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 64

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]
"#;

/// A server with a database of its own, and a simulated upstream behind it. It asks for keys.
pub struct Server {
    base: String,
    key: String,
    other_key: String,
    pub clock: Clock,
    pub simulator: Simulator,
    pub database: String,
    config: Config,
    running: Running,
    directory: TempDir,
}

enum Running {
    /// In this process.
    App {
        stop: CancellationToken,
        task: JoinHandle<anyhow::Result<()>>,
    },
    Binary(Box<Binary>),
    Stopped,
}

impl Server {
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// A server in this process, with more configuration. Where it names no upstream, there is
    /// the usual one. `{simulated}` stands for the simulator's base URL.
    pub async fn with(toml: &str) -> Self {
        Self::build(
            toml,
            Options {
                track: true,
                ..Options::default()
            },
            false,
        )
        .await
    }

    /// The same with another upstream.
    pub async fn simulating(options: Options, toml: &str) -> Self {
        Self::build(toml, options, false).await
    }

    /// A server that is a process: the real binary.
    pub async fn binary(toml: &str) -> Self {
        Self::build(
            toml,
            Options {
                track: true,
                ..Options::default()
            },
            true,
        )
        .await
    }

    /// The same with another upstream.
    pub async fn simulating_binary(options: Options, toml: &str) -> Self {
        Self::build(toml, options, true).await
    }

    async fn build(toml: &str, options: Options, as_process: bool) -> Self {
        let directory = tempfile::tempdir().expect("makes a directory");
        let database = engines::database(directory.path()).await;
        let simulator = Simulator::start("127.0.0.1:0", options)
            .await
            .expect("starts");
        let usual = if toml.contains("[[upstreams]]") {
            ""
        } else {
            USUAL
        };
        let toml = format!("{toml}\n{usual}").replace("{simulated}", &simulator.base_url());
        // In front: a table of the test's own must not swallow it.
        let toml = if toml.contains("[auth]") {
            toml
        } else {
            format!("[auth]\nrequired = true\n\n{toml}")
        };
        let file = directory.path().join("nightshift.toml");
        std::fs::write(&file, toml).expect("writes the configuration");
        let overrides = Overrides {
            config: Some(file.clone()),
            database: Some(database.clone()),
            listen: Some("127.0.0.1:0".to_owned()),
            ..Overrides::default()
        };
        let config = Config::load(&overrides, &Environment::default())
            .unwrap_or_else(|errors| panic!("{errors}"));
        let clock = Clock::default();
        let store = nightshift::app::open_store(&config, clock.clone())
            .await
            .expect("opens");
        let key = engines::add_key(&store, "tenant-a").await;
        let other_key = engines::add_key(&store, "tenant-b").await;
        store.close().await;
        drop(store);
        let (base, running) = if as_process {
            let file = file.to_str().expect("is text");
            let binary = serve(file, &database, &[], &[]).await;
            (binary.base.clone(), Running::Binary(Box::new(binary)))
        } else {
            start(&config, clock.clone()).await
        };
        Server {
            base,
            key,
            other_key,
            clock,
            simulator,
            database,
            config,
            running,
            directory,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn other_key(&self) -> &str {
        &self.other_key
    }

    /// A client that sends the key of tenant-a.
    pub fn client(&self) -> Client {
        client_with(Some(&self.key))
    }

    /// A client that sends the key of tenant-b.
    pub fn other_client(&self) -> Client {
        client_with(Some(&self.other_key))
    }

    /// Stops the server politely; its database and upstream stay.
    pub async fn stop(&mut self) {
        match std::mem::replace(&mut self.running, Running::Stopped) {
            Running::App { stop, task } => {
                stop.cancel();
                task.await.expect("does not panic").expect("stops well");
            }
            Running::Binary(binary) => drop(binary.terminate().await),
            Running::Stopped => {}
        }
    }

    /// One more server on the same database, with the same configuration but for these variables.
    pub async fn replica(&self, variables: &[(&str, &str)]) -> Binary {
        serve(&self.config_file(), &self.database, &[], variables).await
    }

    /// One more server on the same database, with the same configuration but for these flags.
    pub async fn beside(&self, flags: &[&str]) -> Binary {
        serve(&self.config_file(), &self.database, flags, &[]).await
    }

    /// Sends the server's process a signal.
    pub fn signal(&self, name: &str) {
        match &self.running {
            Running::Binary(binary) => binary.signal(name),
            _ => panic!("it is no process, or has been stopped"),
        }
    }

    /// Waits until a count in the database is so: of the rows of a table, or of what stands after
    /// `SELECT count(*) FROM`.
    pub async fn until_rows(&self, table: &str, is_so: impl Fn(i64) -> bool) -> i64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let count = engines::rows(&self.database, table).await;
            if is_so(count) {
                return count;
            }
            assert!(Instant::now() < deadline, "it stays at {count}: {table}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The server's process, taken out of it; the rest stays.
    pub fn binary_process(&mut self) -> Binary {
        match std::mem::replace(&mut self.running, Running::Stopped) {
            Running::Binary(binary) => *binary,
            _ => panic!("it is no process, or has been stopped"),
        }
    }

    /// Kills the server's process, as a power cut would.
    pub async fn kill(&mut self) {
        let binary = self.binary_process();
        binary.signal("KILL");
        binary.ended().await;
    }

    /// Starts it again, as a process, on the same database. Its address is another one.
    pub async fn start_binary_again(&mut self) {
        self.serve_as(&[]).await;
    }

    /// Starts it again, as a process, with more variables.
    pub async fn serve_as(&mut self, variables: &[(&str, &str)]) {
        let binary = self.replica(variables).await;
        self.run_as(binary);
    }

    /// Starts it again, as a process with more flags, on the same database. Its address is
    /// another one.
    pub async fn start_binary_with(&mut self, flags: &[&str]) {
        let binary = self.beside(flags).await;
        self.run_as(binary);
    }

    fn run_as(&mut self, binary: Binary) {
        self.base.clone_from(&binary.base);
        self.running = Running::Binary(Box::new(binary));
    }

    /// Starts it again, as a process that is begun by a shell's words, on the same database. Its
    /// address is another one.
    pub async fn start_binary_after(&mut self, words: &str) {
        let file = self.config_file();
        let mut serve = binary::command_after(words, &["serve", "--config", &file]);
        serve
            .env("DATABASE_URL", &self.database)
            .env("NIGHTSHIFT_SERVER__LISTEN", "127.0.0.1:0");
        self.run_as(Binary::listening(binary::Process::start(serve, b"")).await);
    }

    /// The number of the server's process.
    pub fn process_id(&self) -> u32 {
        match &self.running {
            Running::Binary(binary) => binary.id(),
            _ => panic!("it is no process, or has been stopped"),
        }
    }

    /// The path of its configuration, for commands beside it.
    pub fn config_file(&self) -> String {
        let file = self.directory.path().join("nightshift.toml");
        file.to_str().expect("is text").to_owned()
    }

    /// Starts it again, in this process, on the same database. Its address is another one.
    pub async fn start_again(&mut self) {
        (self.base, self.running) = start(&self.config, self.clock.clone()).await;
    }

    pub async fn get(&self, path: &str) -> Value {
        let response = self
            .client()
            .get(self.url(path))
            .send()
            .await
            .expect("answers");
        assert!(
            response.status().is_success(),
            "{path}: {}",
            response.status()
        );
        response.json().await.expect("is JSON")
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let response = self.client().post(self.url(path)).json(body).send().await;
        let response = response.expect("answers");
        let status = response.status();
        let text = response.text().await.expect("is text");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).expect("is JSON")
    }

    pub async fn upload(&self, bytes: Vec<u8>, name: &str, purpose: &str) -> Response {
        let part = Part::bytes(bytes).file_name(name.to_owned());
        let form = Form::new()
            .text("purpose", purpose.to_owned())
            .part("file", part);
        let request = self.client().post(self.url("/v1/files")).multipart(form);
        request.send().await.expect("answers")
    }

    /// How many rows there are of everything that a request can leave behind.
    pub async fn rows(&self) -> Vec<(String, i64)> {
        engines::all_rows(&self.database).await
    }

    /// Waits until there are so many rows as there were: what a refused request has written is
    /// removed in the background.
    pub async fn has_only(&self, before: &[(String, i64)]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.rows().await;
            if now == before {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "something of a refused request stays: {now:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Uploads a batch file; returns its id.
    pub async fn upload_batch(&self, jsonl: impl AsRef<[u8]>) -> String {
        let response = self
            .upload(jsonl.as_ref().to_vec(), "in.jsonl", "batch")
            .await;
        let status = response.status();
        let text = response.text().await.expect("is text");
        assert_eq!(status, 200, "{text}");
        let file: Value = serde_json::from_str(&text).expect("is JSON");
        file["id"].as_str().expect("has an id").to_owned()
    }

    /// Uploads a file and creates a batch of it.
    pub async fn create_batch(&self, jsonl: impl AsRef<[u8]>, endpoint: &str) -> Value {
        self.create_batch_within(jsonl, endpoint, "24h").await
    }

    pub async fn create_batch_within(
        &self,
        jsonl: impl AsRef<[u8]>,
        endpoint: &str,
        window: &str,
    ) -> Value {
        let file = self.upload_batch(jsonl).await;
        let body = json!({
            "input_file_id": file, "endpoint": endpoint, "completion_window": window,
        });
        self.post("/v1/batches", &body).await
    }

    /// Uploads a file and creates a batch of it with another key.
    pub async fn create_batch_as(&self, key: &str, jsonl: &str) -> Value {
        let client = client_with(Some(key));
        let part = Part::text(jsonl.to_owned()).file_name("in.jsonl");
        let form = Form::new().text("purpose", "batch").part("file", part);
        let upload = client
            .post(self.url("/v1/files"))
            .multipart(form)
            .send()
            .await;
        let file: Value = upload.expect("answers").json().await.expect("is JSON");
        let body = json!({
            "input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h",
        });
        let created = client
            .post(self.url("/v1/batches"))
            .json(&body)
            .send()
            .await;
        created.expect("answers").json().await.expect("is JSON")
    }

    /// Waits until a batch is in a state in which it stays.
    pub async fn ended(&self, batch: &Value) -> Value {
        self.until(batch, |batch| {
            let status = batch["status"].as_str().unwrap_or_default();
            ["completed", "failed", "expired", "cancelled"].contains(&status)
        })
        .await
    }

    /// Waits until something holds of a batch.
    pub async fn until(&self, batch: &Value, holds: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v1/batches/{}", batch["id"].as_str().expect("has an id"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let batch = self.get(&path).await;
            if holds(&batch) {
                return batch;
            }
            assert!(
                Instant::now() < deadline,
                "it does not come to that: {batch}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a batch to its end.
    pub async fn run(&self, jsonl: impl AsRef<[u8]>, endpoint: &str) -> Value {
        let batch = self.create_batch(jsonl, endpoint).await;
        self.ended(&batch).await
    }

    /// Runs a batch that must fail validation.
    pub async fn failed_batch(&self, jsonl: impl AsRef<[u8]>, endpoint: &str) -> Value {
        let batch = self.run(jsonl, endpoint).await;
        assert_eq!(batch["status"], "failed", "{batch}");
        batch
    }

    /// The lines of one of a batch's files (`output_file_id` or `error_file_id`); none where
    /// there is no file.
    pub async fn lines(&self, batch: &Value, file: &str) -> Vec<Value> {
        let Some(id) = batch[file].as_str() else {
            return Vec::new();
        };
        let url = self.url(&format!("/v1/files/{id}/content"));
        let response = self.client().get(url).send().await.expect("answers");
        assert_eq!(response.status(), 200);
        let text = response.text().await.expect("is text");
        assert!(text.ends_with('\n'), "a file ends with a line end");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("is JSON"))
            .collect()
    }

    /// Asserts that both files together have exactly one line for each of these ids, each file
    /// in input order; returns all lines by custom_id.
    pub async fn exactly_once(&self, batch: &Value, ids: &[String]) -> BTreeMap<String, Value> {
        let place: BTreeMap<&str, usize> = ids
            .iter()
            .enumerate()
            .map(|(place, id)| (id.as_str(), place))
            .collect();
        let mut found = BTreeMap::new();
        for file in ["output_file_id", "error_file_id"] {
            let lines = self.lines(batch, file).await;
            let order: Vec<usize> = lines
                .iter()
                .map(|line| place[line["custom_id"].as_str().expect("has an id")])
                .collect();
            assert!(order.is_sorted(), "{file} is not in input order");
            for line in lines {
                let id = line["custom_id"].as_str().expect("has an id").to_owned();
                assert!(
                    found.insert(id.clone(), line).is_none(),
                    "{id} is there twice"
                );
            }
        }
        assert_eq!(found.len(), ids.len(), "lines are missing");
        found
    }
}

/// Starts a server as a process.
async fn serve(config: &str, database: &str, flags: &[&str], variables: &[(&str, &str)]) -> Binary {
    let args = [&["--config", config], flags].concat();
    let variables = [&[("DATABASE_URL", database)], variables].concat();
    Binary::serve(&args, &variables).await
}

async fn start(config: &Config, clock: Clock) -> (String, Running) {
    let deadline = Instant::now() + PATIENCE;
    let app = loop {
        match App::start(config, clock.clone()).await {
            // A process that another test just starts may still hold a copy of the lock.
            Err(error) if error.to_string().contains("another nightshift server") => {
                assert!(Instant::now() < deadline, "{error:#}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            started => break started.expect("starts"),
        }
    };
    let base = format!("http://{}", app.address());
    let stop = CancellationToken::new();
    let task = tokio::spawn(app.serve_until(stop.clone()));
    (base, Running::App { stop, task })
}

/// An upstream that answers so many calls, and more when they are granted.
pub fn granting(answers: usize) -> Options {
    Options {
        track: true,
        granted: Some(answers),
        ..Options::default()
    }
}

/// A client that sends this key, or none, and that waits for nobody's proxy.
pub fn client_with(key: Option<&str>) -> Client {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let value = HeaderValue::from_str(&format!("Bearer {key}")).expect("is a header");
        headers.insert(AUTHORIZATION, value);
    }
    Client::builder()
        .no_proxy()
        .default_headers(headers)
        .build()
        .expect("builds")
}

/// A request as one line of a batch file, with a body of its own.
pub fn request(custom_id: &str, body: Value) -> String {
    let line = json!({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body});
    format!("{line}\n")
}

/// A chat request to the usual model, steered by `simulate` unless that is null.
pub fn chat(custom_id: &str, simulate: Value) -> String {
    let mut body = json!({
        "model": "sim-small",
        "messages": [{"role": "user", "content": format!("This is {custom_id}.")}],
    });
    if !simulate.is_null() {
        body["simulate"] = simulate;
    }
    request(custom_id, body)
}

/// So many ids, in the order in which their lines stand.
pub fn ids(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line-{number}")).collect()
}

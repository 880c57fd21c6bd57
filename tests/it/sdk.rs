//! What the official SDKs find: their own tests, in `tests/sdk/`, against a running server.
//!
//! Each SDK is installed once, under cargo's target directory, and again when its pins change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::support::Server;
use crate::support::metrics::operator;
use crate::support::session::Session;

/// The limit that the SDKs' tests run into, models with and without a slash, an endpoint beside
/// OpenAI's, and an upstream that takes fewer lines at once than the batch that they cancel has.
const CONFIG: &str = r#"
[limits]
max_file_bytes = 20_000_000

[[upstreams]]
name = "simulated"
base_url = "{simulated}"
concurrency = 8

[[models]]
name = "sim-small"
routes = [{ upstream = "simulated" }]

[[models]]
name = "sim-large"
routes = [{ upstream = "simulated" }]

[[models]]
name = "org/model:tag"
routes = [{ upstream = "simulated" }]

[[endpoints]]
path = "/v1/rerank"
required = ["query", "documents"]
model_required = true
"#;

#[tokio::test]
async fn the_python_sdk_finds_all_it_knows() {
    let python = Python::installed("python").await;
    let server = Server::with(CONFIG).binary().await;
    used_for_a_month(&server).await;
    run(pointed_at(&server, &mut python.command()).args(PYTEST).env(
        "NIGHTSHIFT_TEST_OPERATOR_KEY",
        operator(&server.database).await,
    ))
    .await;
}

const DAY_MS: i64 = 86_400_000;

/// On each of the 31 days before today two tenants have each used a model of their own.
async fn used_for_a_month(server: &Server) {
    let today = server.clock.now_ms() / DAY_MS * DAY_MS;
    let mut session = Session::open(&server.database).await;
    for day in 1..=31 {
        for (tenant, tokens) in [("month-a", 100), ("month-b", 7)] {
            let start = today - day * DAY_MS + 3_600_000;
            session
                .execute(&format!(
                    "INSERT INTO usage_hours VALUES ({start}, '{tenant}', 'key_{tenant}',
                        'model-of-{tenant}', 'one', '', '/v1/chat/completions',
                        2, 1, 0, 0, 0, 0, {tokens}, 5, 1, 3, 2, 250000, 500000000, 10)"
                ))
                .await;
        }
    }
}

/// Each provider has a stand-in, which checks what it is sent by the types of the provider's own
/// SDK. OpenAI's SDK sends the batches, and reads what comes back.
#[tokio::test]
async fn the_providers_sdks_know_what_is_sent_and_openais_knows_what_comes_back() {
    let python = Python::installed("providers").await;
    let all = ["openai", "anthropic", "gemini", "mistral", "cohere"];
    let (_stand_in, origin) = python.stand_in(&all).await;
    // Anthropic's SDK has a line of versions for each version of the API.
    let newer = Python::installed("providers/anthropic-2026").await;
    let newer = newer.with_tests_of(&python);
    let (_newer_stand_in, origin_2026) = newer.stand_in(&["anthropic"]).await;
    let keys = tempfile::tempdir().expect("makes a directory");
    let key = |name: &str, key: &str| {
        let file = keys.path().join(name);
        fs::write(&file, key).expect("writes a key");
        file.to_str().expect("is text").to_owned()
    };
    let config = fs::read_to_string(python.tests.join("nightshift.toml")).expect("reads");
    let config = config
        .replace("{origin}", &origin)
        .replace("{origin_2026}", &origin_2026)
        .replace("{key}", &key("key", "key-of-the-provider-0123456789"))
        .replace(
            "{wrong_key}",
            &key("wrong", "a-key-that-nobody-knows-0123456789"),
        );
    let server = Server::with(&config).binary().await;
    run(pointed_at(&server, &mut python.command())
        .args(PYTEST)
        .env("NIGHTSHIFT_TEST_STAND_IN", &origin)
        .env("NIGHTSHIFT_TEST_STAND_IN_2026", &origin_2026)
        .env(
            "NIGHTSHIFT_TEST_OPERATOR_KEY",
            operator(&server.database).await,
        )
        .env("NIGHTSHIFT_TEST_BINARY", env!("CARGO_BIN_EXE_nightshift"))
        .env("NIGHTSHIFT_TEST_CONFIG", server.config_file()))
    .await;
}

#[tokio::test]
async fn the_node_sdk_finds_all_it_knows() {
    let tests = sources("node");
    let home = installed("node", &tests.join("package-lock.json"), async |home| {
        for pins in ["package.json", "package-lock.json", ".npmrc"] {
            fs::copy(tests.join(pins), home.join(pins)).expect("copies the pins");
        }
        run(Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund"])
            .current_dir(home))
        .await;
    })
    .await;
    // Node looks for modules beside the file that imports them.
    for file in fs::read_dir(&tests).expect("lists the tests") {
        let path = file.expect("lists the tests").path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            let name = path.file_name().expect("a file has a name");
            fs::copy(&path, home.join(name)).expect("copies a test");
        }
    }
    let server = Server::with(CONFIG).binary().await;
    run(pointed_at(&server, &mut Command::new("node"))
        .args(["--test", "--test-concurrency=1", "--test-reporter=spec"])
        .current_dir(&home))
    .await;
}

const PYTEST: [&str; 5] = ["-m", "pytest", "-q", "-p", "no:cacheprovider"];

/// Tests in Python, and what they need.
struct Python {
    venv: PathBuf,
    tests: PathBuf,
}

impl Python {
    async fn installed(sdk: &str) -> Self {
        let tests = sources(sdk);
        let pins = tests.join("requirements.txt");
        let venv = installed(sdk, &pins, async |home| {
            run(Command::new("python3").args(["-m", "venv"]).arg(home)).await;
            run(Command::new(home.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&pins))
            .await;
        })
        .await;
        Self { venv, tests }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.venv.join("bin/python"));
        command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(&self.tests);
        command
    }

    /// The same packages, for other tests.
    fn with_tests_of(self, other: &Self) -> Self {
        Self {
            tests: other.tests.clone(),
            ..self
        }
    }

    /// Starts the stand-ins for these providers; returns where they listen, too.
    async fn stand_in(&self, names: &[&str]) -> (Child, String) {
        let mut command = self.command();
        command.arg("stand_in.py").args(names).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let stdout = child.stdout.take().expect("is piped");
        let origin = BufReader::new(stdout).lines().next_line().await;
        let origin = origin
            .expect("reads")
            .expect("the stand-ins tell where they listen");
        (child, origin)
    }
}

fn sources(sdk: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/sdk")
        .join(sdk)
}

/// A directory in which `install` has run for these very pins.
async fn installed(sdk: &str, pins: &Path, install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let name = sdk.replace('/', "-");
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("sdk")
        .join(name);
    let stamp = home.join("installed-pins");
    let pins = fs::read(pins).expect("reads the pins");
    if fs::read(&stamp).is_ok_and(|installed| installed == pins) {
        return home;
    }
    if home.exists() {
        fs::remove_dir_all(&home).expect("clears what was installed before");
    }
    fs::create_dir_all(&home).expect("makes the directory");
    install(&home).await;
    fs::write(&stamp, pins).expect("writes the stamp");
    home
}

/// Tells the tests where the server is, and keeps the caller's own settings out of them.
fn pointed_at<'a>(server: &Server, command: &'a mut Command) -> &'a mut Command {
    for own in ["ADMIN_KEY", "CUSTOM_HEADERS", "ORG_ID", "PROJECT_ID"] {
        command.env_remove(format!("OPENAI_{own}"));
    }
    command
        .env("NIGHTSHIFT_TEST_URL", server.url("/v1"))
        .env("NIGHTSHIFT_TEST_KEY", server.key())
        .env("NIGHTSHIFT_TEST_OTHER_KEY", server.other().key())
        .env("NO_PROXY", "127.0.0.1")
}

/// Runs a command to its end, and fails with all that it printed unless it succeeds.
async fn run(command: &mut Command) {
    let ended = command.kill_on_drop(true).output().await;
    let output = ended.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

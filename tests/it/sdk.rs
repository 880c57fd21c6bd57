//! What the official SDKs find: their own tests, in `tests/sdk/`, against a running server.
//!
//! Each SDK is installed once, under cargo's target directory, and again when its pins change.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::support::Server;

/// The limit that the SDKs' tests run into, models with and without a slash, and an upstream
/// that takes fewer lines at once than the batch that they cancel has.
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
"#;

#[tokio::test]
async fn the_python_sdk_finds_all_it_knows() {
    let tests = sources("python");
    let venv = installed("python", &tests.join("requirements.txt"), async |home| {
        run(Command::new("python3").args(["-m", "venv"]).arg(home)).await;
        run(Command::new(home.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
            .arg(tests.join("requirements.txt")))
        .await;
    })
    .await;
    let server = Server::with(CONFIG).binary().await;
    run(
        pointed_at(&server, &mut Command::new(venv.join("bin/python")))
            .args(["-m", "pytest", "-q"])
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(&tests),
    )
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

fn sources(sdk: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/sdk")
        .join(sdk)
}

/// A directory in which `install` has run for these very pins.
async fn installed(sdk: &str, pins: &Path, install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sdk").join(sdk);
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

//! `nightshift demo`: the first minute.

use tokio::net::TcpListener;

use super::command_in;
use crate::support::binary::{Process, ended};
use crate::support::{client_with, eventually};

/// The demo in a directory whose configuration would break it, if it were read.
fn demo(directory: &std::path::Path, more: &[&str]) -> tokio::process::Command {
    std::fs::write(directory.join("nightshift.toml"), "nonsense").expect("writes");
    let mut command = command_in(directory, &[&["demo"], more].concat());
    command
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
        .env("NIGHTSHIFT_SERVER__LISTEN", "nowhere")
        .env("NIGHTSHIFT_UPSTREAM", "http://127.0.0.1:1");
    command
}

#[tokio::test]
async fn a_demo_shows_a_batch_and_exits_when_told_to() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let shown = ended(demo(directory.path(), &["--exit"])).await;
    assert_eq!(shown.code, Some(0), "{}", shown.errors);
    let last = shown.out.lines().last().expect("says something");
    assert!(last.starts_with("Server: http://127.0.0.1:"), "{last}");
    assert!(
        shown
            .out
            .contains("completed: 600 requests, 598 completed, 2 failed"),
        "{}",
        shown.out
    );
    let lines = shown
        .out
        .lines()
        .filter(|line| line.starts_with("  review-") && line.len() > "  review-1: ".len())
        .count();
    assert_eq!(
        lines, 5,
        "three lines of the output, and the two errors: {}",
        shown.out
    );
    let left = std::fs::read_dir(directory.path())
        .expect("can be read")
        .count();
    assert_eq!(
        left, 1,
        "it leaves nothing beside the configuration that it ignored"
    );
}

#[tokio::test]
async fn a_demo_leaves_a_server_to_try_until_it_is_interrupted() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let mut process = Process::start(demo(directory.path(), &[]), b"");
    let server = loop {
        let line = process.line().await.expect("comes to its end");
        if let Some(server) = line.strip_prefix("Server: ") {
            break server.to_owned();
        }
    };
    let client = client_with(None);
    let answer = client
        .get(format!("{server}/v1/batches"))
        .send()
        .await
        .expect("answers");
    let batches: serde_json::Value = answer.json().await.expect("is JSON");
    assert_eq!(batches["data"][0]["status"], "completed", "{batches}");
    process.signal("INT");
    let ended = process.ended().await;
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), ""),
        "{}",
        ended.errors
    );
}

#[tokio::test]
async fn a_demo_takes_the_next_port_where_its_first_one_is_taken() {
    let mut taken = None;
    eventually("its first port is taken", async || {
        // The demo of another test may have it meanwhile.
        taken = TcpListener::bind("127.0.0.1:8080").await.ok();
        taken.is_some()
    })
    .await;
    let directory = tempfile::tempdir().expect("makes a directory");
    let shown = ended(demo(directory.path(), &["--exit"])).await;
    assert_eq!(shown.code, Some(0), "{}", shown.errors);
    let last = shown.out.lines().last().expect("says something");
    let port = last.strip_prefix("Server: http://127.0.0.1:80");
    assert!(port.is_some_and(|port| port != "80"), "{last}");
}

#[tokio::test]
async fn a_demo_listens_where_it_is_told_to_and_ends_quietly_when_nobody_reads_on() {
    let directory = tempfile::tempdir().expect("makes a directory");
    let shown = ended(demo(
        directory.path(),
        &["--exit", "--listen", "127.0.0.1:0"],
    ))
    .await;
    assert_eq!(shown.code, Some(0), "{}", shown.errors);
    let last = shown.out.lines().last().expect("says something");
    assert!(last.starts_with("Server: http://127.0.0.1:"), "{last}");

    let mut piped = demo(directory.path(), &["--exit"]);
    // Closed, so that the first line finds nobody.
    let (reader, writer) = std::io::pipe().expect("makes a pipe");
    drop(reader);
    piped.stdout(writer).stderr(std::process::Stdio::piped());
    let ended = piped.output().await.expect("runs");
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(
        !errors.contains("error") && !errors.contains("panicked"),
        "{errors}"
    );
}

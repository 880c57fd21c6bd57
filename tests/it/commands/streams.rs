//! `nightshift run` into what only takes bytes: answers come as they are there.

use std::process::Stdio;
use std::time::Duration;

use nightshift::internals::simulate::Options;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use super::run::{Workshop, requests};
use crate::support::binary::{Process, ended};
use crate::support::{chat, eventually, ids};

fn custom_id(line: &str) -> String {
    let line: Value = serde_json::from_str(line).expect("is JSON");
    line["custom_id"].as_str().expect("has an id").to_owned()
}

#[tokio::test]
async fn a_pipe_gets_the_answers_in_order_as_they_come() {
    let hanging = chat("hanging", json!({"hang": true}));
    let input = requests(&ids(3)) + &hanging + &chat("last", Value::Null);
    let workshop = Workshop::new(&input, Options::default()).await;
    let more = ["--state", "kept"];
    let mut running = Process::start(workshop.command_to("-", &more), b"");
    for id in ids(3) {
        let line = running
            .line()
            .await
            .expect("is written while the run goes on");
        assert_eq!(custom_id(&line), id);
    }
    assert!(running.is_running());
    eventually("the last line is answered", async || {
        workshop.simulator.stats().total.answered == 4
    })
    .await;
    running.signal("KILL");
    let killed = running.ended().await;
    assert_eq!(killed.out, "", "the last line waits for the one before it");

    // A run that goes on begins with the first line again.
    let more = [
        "--state",
        "kept",
        "--timeout",
        "200ms",
        "--max-attempts",
        "1",
    ];
    let ran = ended(workshop.command_to("-", &more)).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let told: Vec<String> = ran.out.lines().map(custom_id).collect();
    assert_eq!(told, [ids(3), vec!["last".to_owned()]].concat());
}

#[tokio::test]
async fn a_pipe_that_is_stopped_ends_with_a_whole_line() {
    let options = Options {
        latency: Duration::from_millis(20),
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(1000)), options).await;
    let more = ["--state", "kept", "--concurrency", "8"];
    let mut running = Process::start(workshop.command_to("-", &more), b"");
    for id in ids(30) {
        let line = running
            .line()
            .await
            .expect("is written while the run goes on");
        assert_eq!(custom_id(&line), id);
    }
    running.signal("INT");
    let interrupted = running.ended().await;
    assert_eq!(interrupted.code, Some(130), "{}", interrupted.errors);
    let rest: Vec<String> = interrupted.out.lines().map(custom_id).collect();
    assert_eq!(rest, ids(1000)[30..30 + rest.len()]);
    let told = "writes all answers again from the first";
    assert!(interrupted.errors.contains(told), "{}", interrupted.errors);
}

/// As `head` does.
#[tokio::test]
async fn a_run_whose_reader_goes_away_stops_quietly_and_can_be_gone_on_with() {
    let workshop = Workshop::new(&requests(&ids(2000)), Options::default()).await;
    let more = ["--state", "kept", "--rate", "20/s", "--quiet", "--json"];
    let mut command = workshop.command_to("-", &more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.kill_on_drop(true).spawn().expect("starts");
    let mut out = BufReader::new(running.stdout.take().expect("is piped"));
    let mut line = String::new();
    out.read_line(&mut line).await.expect("can be read");
    assert_eq!(custom_id(&line), "line-0");
    drop(out);
    let status = running.wait().await.expect("ends");
    let mut errors = String::new();
    let mut stderr = running.stderr.take().expect("is piped");
    stderr
        .read_to_string(&mut errors)
        .await
        .expect("can be read");
    assert_eq!(status.code(), Some(141), "{errors}");
    let summary: Value = serde_json::from_str(&errors).expect("is the summary alone");
    assert_eq!(summary["status"], "stopped");
    assert_eq!(summary["reason"], "the reader of standard output has gone");
    assert!(workshop.calls() < 2000, "it sends no more");

    let ran = ended(workshop.command_to("-", &["--state", "kept"])).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let told: Vec<String> = ran.out.lines().map(custom_id).collect();
    assert_eq!(told, ids(2000));
    assert!(workshop.calls() <= 2000 + 20, "{}", workshop.calls());
}

#[tokio::test]
async fn an_errors_pipe_gets_its_lines_in_order_as_requests_fail() {
    let bad = |id: &str| chat(id, json!({"status": 400}));
    let hanging = chat("hanging", json!({"hang": true}));
    let input = [
        bad("a"),
        chat("b", Value::Null),
        bad("c"),
        hanging,
        bad("last"),
    ]
    .concat();
    let workshop = Workshop::new(&input, Options::default()).await;
    let path = workshop.path("errors");
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("runs").success());
    let read = || {
        let mut cat = tokio::process::Command::new("cat");
        cat.arg(&path);
        Process::start(cat, b"")
    };
    let mut reader = read();
    let mut running = Process::start(workshop.command(&["--errors", "errors"]), b"");
    for id in ["a", "c"] {
        let line = reader.line().await;
        let line = line.expect("is written while the run goes on");
        assert_eq!(custom_id(&line), id);
    }
    assert!(running.is_running());
    eventually("the last line is answered", async || {
        workshop.simulator.stats().total.calls == 5
    })
    .await;
    running.signal("KILL");
    running.ended().await;
    let rest = reader.ended().await;
    assert_eq!(rest.out, "", "the last line waits for the one before it");

    // A run that goes on begins with the first line again.
    let reader = read();
    let more = [
        "--errors",
        "errors",
        "--timeout",
        "200ms",
        "--max-attempts",
        "1",
    ];
    let ran = workshop.run(&more).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let told: Vec<String> = reader.ended().await.out.lines().map(custom_id).collect();
    assert_eq!(told, ["a", "c", "hanging", "last"]);

    // A batch that has ended is written again.
    let reader = read();
    let again = workshop.run(&["--errors", "errors"]).await;
    assert_eq!(again.code, Some(1), "{}", again.errors);
    let told: Vec<String> = reader.ended().await.out.lines().map(custom_id).collect();
    assert_eq!(told, ["a", "c", "hanging", "last"]);
}

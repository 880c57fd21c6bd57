//! `nightshift run`, interrupted and started again.

use std::time::Duration;

use nightshift::internals::simulate::Options;

use super::run::{Workshop, requests};
use crate::support::binary::{Process, command_after};
use crate::support::eventually;
use crate::support::ids;
use crate::support::session::Session;

const LINES: usize = 1000;
/// How many lines are on disk.
const DURABLE: &str = "SELECT CAST(COALESCE(SUM(completed), 0) AS BIGINT) FROM batch_counts";

/// Long enough that a run can be met in the middle.
async fn slow_workshop() -> Workshop {
    let options = Options {
        latency: Duration::from_millis(30),
        ..Options::default()
    };
    Workshop::new(&requests(&ids(LINES)), options).await
}

/// Starts a run, and waits until a part of it is done.
async fn half_done(workshop: &Workshop) -> Process {
    let running = Process::start(workshop.command(&["--concurrency", "8"]), b"");
    eventually("the run is in the middle", async || {
        workshop.simulator.stats().total.answered >= 100
    })
    .await;
    running
}

#[tokio::test]
async fn an_interrupted_run_goes_on_and_sends_nothing_twice() {
    let workshop = slow_workshop().await;
    let running = half_done(&workshop).await;
    running.signal("INT");
    let interrupted = running.ended().await;
    assert_eq!(interrupted.code, Some(130), "{}", interrupted.errors);
    let half = workshop.calls();
    assert!(half < LINES as u64, "it was not interrupted");
    assert_eq!(
        workshop.files(),
        ["in.jsonl", "out.jsonl.nightshift", "out.jsonl.partial"],
        "no output is half there"
    );
    let partial = workshop.custom_ids("out.jsonl.partial");
    assert!(
        !partial.is_empty() && partial.len() as u64 <= half,
        "{}",
        partial.len()
    );
    assert_eq!(
        partial,
        ids(LINES)[..partial.len()],
        "what is there is in the input's order"
    );
    assert!(
        interrupted.errors.contains("out.jsonl.partial"),
        "{}",
        interrupted.errors
    );

    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(LINES));
    assert_eq!(
        workshop.files(),
        ["in.jsonl", "out.jsonl", "out.jsonl.nightshift"]
    );
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (LINES as u64, 1));
}

/// A terminal that is closed sends SIGHUP.
#[tokio::test]
async fn each_signal_has_its_exit_code_and_the_run_goes_on_afterwards() {
    let workshop = slow_workshop().await;
    for (signal, code) in [("TERM", 143), ("HUP", 143), ("INT", 130)] {
        workshop.simulator.reset_stats();
        let running = half_done(&workshop).await;
        running.signal(signal);
        let stopped = running.ended().await;
        assert_eq!(stopped.code, Some(code), "{signal}: {}", stopped.errors);
        assert!(
            stopped.errors.contains("goes on where this one stopped"),
            "{}",
            stopped.errors
        );
    }
    // Under nohup the run outlives its terminal.
    workshop.simulator.reset_stats();
    let url = workshop.simulator.base_url();
    let run = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--upstream",
        &url,
    ];
    let mut command = command_after("trap '' HUP;", &run);
    command.current_dir(workshop.path(""));
    let running = Process::start(command, b"");
    eventually("a call is made", async || workshop.calls() > 0).await;
    running.signal("HUP");
    let ran = running.ended().await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(LINES));
}

/// Standard error goes with the terminal.
#[tokio::test]
async fn a_run_whose_terminal_is_closed_finishes_its_calls_and_keeps_their_answers() {
    let workshop = slow_workshop().await;
    let mut command = workshop.command(&["--concurrency", "8"]);
    command
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut running = command.spawn().expect("starts");
    drop(running.stderr.take());
    eventually("the run is in the middle", async || {
        workshop.simulator.stats().total.answered >= 100
    })
    .await;
    let id = running.id().expect("runs").to_string();
    let sent = std::process::Command::new("kill")
        .args(["-s", "HUP", &id])
        .status();
    assert!(sent.expect("runs").success());
    let stopped = running.wait().await.expect("ends");
    assert_eq!(stopped.code(), Some(143));

    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (LINES as u64, 1));
}

#[tokio::test]
async fn a_killed_run_goes_on_and_loses_nothing() {
    let workshop = slow_workshop().await;
    let state = workshop.path("out.jsonl.nightshift/state.db");
    let state = format!("sqlite://{}", state.display());
    let mut durable = 0;
    for _ in 0..2 {
        let running = half_done(&workshop).await;
        let mut session = Session::open(&state).await;
        eventually("more is durable", async || {
            session.number(DURABLE).await > durable
        })
        .await;
        running.signal("KILL");
        assert_eq!(running.ended().await.code, None);
        durable = session.number(DURABLE).await;
        assert!(
            !workshop.path("out.jsonl").exists(),
            "no output is half there"
        );
        eventually("its calls are cut", async || {
            workshop.simulator.stats().total.in_flight == 0
        })
        .await;
        workshop.simulator.reset_stats();
    }
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(LINES));
    let calls = workshop.calls();
    assert!(
        calls < LINES as u64,
        "what was done is not done again: {calls}"
    );
}

#[tokio::test]
async fn a_second_interrupt_stops_at_once() {
    let hanging = crate::support::chat("a", serde_json::json!({"hang": true}));
    let workshop = Workshop::new(&hanging, Options::default()).await;
    let mut running = Process::start(workshop.command(&[]), b"");
    eventually("the call is in flight", async || {
        workshop.simulator.stats().total.in_flight == 1
    })
    .await;
    running.signal("INT");
    // The first is polite: the call may finish. Each further one is final, however soon it comes.
    eventually("it ends", async || {
        let ended = !running.is_running();
        if !ended {
            running.signal("INT");
        }
        ended
    })
    .await;
    assert_eq!(running.ended().await.code, Some(130));
}

#[tokio::test]
async fn one_run_at_a_time_works_on_an_output() {
    let workshop = slow_workshop().await;
    let running = half_done(&workshop).await;
    // It does not end meanwhile.
    running.signal("STOP");
    let second = workshop.run(&[]).await;
    assert_eq!(second.code, Some(1));
    assert!(
        second.errors.contains("another `nightshift run`"),
        "{}",
        second.errors
    );
    let restarted = workshop.run(&["--restart"]).await;
    assert_eq!(restarted.code, Some(1), "not even to throw it away");
    running.signal("CONT");
    assert_eq!(running.ended().await.code, Some(0));
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(LINES));
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (LINES as u64, 1));
}

/// Whoever has the store of a run may be a server that was pointed at it.
#[tokio::test]
async fn a_run_is_not_begun_anew_while_a_server_has_its_store() {
    let workshop = Workshop::new(&requests(&ids(2)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let lock = workshop.path("out.jsonl.nightshift/state.db.lock");
    let lock = std::fs::File::options().write(true).open(lock);
    let lock = lock.expect("is there");
    lock.lock().expect("is free");
    let refused = workshop.run(&["--restart"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    assert!(
        refused.errors.contains("another nightshift server"),
        "{}",
        refused.errors
    );
    drop(lock);
    let ran = workshop.run(&[]).await;
    assert_eq!((ran.code, workshop.calls()), (Some(0), 2), "{}", ran.errors);
}

//! `nightshift run --restart` that comes to nothing: the earlier run is as it was.

use std::time::Duration;

use nightshift::internals::simulate::{ApiKey, Options, Simulator};
use serde_json::Value;

use super::command_in;
use super::run::{Workshop, requests};
use crate::support::binary::{Ended, Process, ended};
use crate::support::{chat, eventually, ids};

/// A model server that refuses every call for its key.
async fn refusing() -> Simulator {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-right-key")],
        ..Options::default()
    };
    Simulator::start("127.0.0.1:0", options)
        .await
        .expect("starts")
}

/// Runs with another upstream.
async fn run_at(workshop: &Workshop, upstream: &Simulator, more: &[&str]) -> Ended {
    let url = upstream.base_url();
    let run = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--upstream",
        &url,
    ];
    ended(command_in(&workshop.path(""), &[&run[..], more].concat())).await
}

/// The names of what a run keeps, but for locks, which say nothing.
fn state(workshop: &Workshop) -> Vec<String> {
    let entries = std::fs::read_dir(workshop.path("out.jsonl.nightshift")).expect("is there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("can be read").file_name().into_string())
        .map(|name| name.expect("is text"))
        .collect();
    names.retain(|name| {
        !std::path::Path::new(name)
            .extension()
            .is_some_and(|ext| ext.eq_ignore_ascii_case("lock"))
    });
    names.sort();
    names
}

#[tokio::test]
async fn a_restart_that_every_upstream_refuses_leaves_the_earlier_run_whole() {
    let workshop = Workshop::new(&requests(&ids(30)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let (output, before) = (workshop.read("out.jsonl"), state(&workshop));
    let refusing = refusing().await;
    for _ in 0..2 {
        let refused = run_at(&workshop, &refusing, &["--restart"]).await;
        assert_eq!(refused.code, Some(4), "{}", refused.errors);
        for told in [
            "Nothing was lost",
            "the earlier run is as it was",
            "out.jsonl has its answers",
        ] {
            assert!(refused.errors.contains(told), "{told}: {}", refused.errors);
        }
        assert_eq!(workshop.read("out.jsonl"), output);
        assert_eq!(state(&workshop), before);
    }
    std::fs::remove_file(workshop.path("out.jsonl")).expect("removes");
    let again = workshop.run(&[]).await;
    assert_eq!(again.code, Some(0), "{}", again.errors);
    assert_eq!(
        workshop.read("out.jsonl"),
        output,
        "it is made from what is kept"
    );
    assert_eq!(workshop.calls(), 30, "nothing is sent again");
}

#[tokio::test]
async fn a_restart_with_lines_that_are_not_valid_leaves_the_earlier_run_whole() {
    let input = requests(&ids(3));
    let workshop = Workshop::new(&input, Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let before = state(&workshop);
    // Its first line is as it should be, so that it gets into the store.
    workshop.write("in.jsonl", &(requests(&ids(1)) + "{}\n"));
    let refused = workshop.run(&["--restart"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    assert_eq!(state(&workshop), before);
    workshop.write("in.jsonl", &input);
    let again = workshop.run(&[]).await;
    assert_eq!(
        (again.code, workshop.calls()),
        (Some(0), 3),
        "{}",
        again.errors
    );
}

#[tokio::test]
async fn a_restart_keeps_the_output_until_it_has_a_new_one() {
    let options = Options {
        latency: Duration::from_millis(30),
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(300)), options).await;
    assert_eq!(workshop.run(&["--limit", "5"]).await.code, Some(0));
    let output = workshop.read("out.jsonl");
    workshop.simulator.reset_stats();

    let more = ["--restart", "--concurrency", "4"];
    let running = Process::start(workshop.command(&more), b"");
    eventually("the run is in the middle", async || {
        workshop.simulator.stats().total.answered >= 20
    })
    .await;
    assert_eq!(workshop.read("out.jsonl"), output);
    running.signal("INT");
    let interrupted = running.ended().await;
    assert_eq!(interrupted.code, Some(130), "{}", interrupted.errors);
    for told in [
        "The same command without --restart goes on",
        "out.jsonl has the answers of the earlier run",
    ] {
        assert!(interrupted.errors.contains(told), "{}", interrupted.errors);
    }
    assert!(!interrupted.errors.contains("Nothing was lost"));
    assert_eq!(workshop.read("out.jsonl"), output);
    let names = state(&workshop);
    assert!(
        !names.contains(&"state.db".to_owned()),
        "it is given up: {names:?}"
    );

    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(300));
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (300, 1));
}

#[tokio::test]
async fn a_restart_in_vain_leaves_the_answers_so_far_of_an_interrupted_run() {
    let hanging = requests(&ids(3)) + &chat("hanging", serde_json::json!({"hang": true}));
    let workshop = Workshop::new(&hanging, Options::default()).await;
    let running = Process::start(workshop.command(&[]), b"");
    let partial = workshop.path("out.jsonl.partial");
    eventually("answers are there", async || {
        std::fs::read_to_string(&partial).is_ok_and(|text| text.lines().count() == 3)
    })
    .await;
    running.signal("KILL");
    assert_eq!(running.ended().await.code, None);
    let refused = run_at(&workshop, &refusing().await, &["--restart"]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    assert_eq!(workshop.custom_ids("out.jsonl.partial"), ids(3));

    // Only the line without an answer is sent again.
    let stuck = workshop
        .run(&["--timeout", "200ms", "--max-attempts", "1"])
        .await;
    assert_eq!(stuck.code, Some(1), "{}", stuck.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!(bodies.distinct, 4);
    assert!(workshop.calls() <= 6, "{}", workshop.calls());
}

#[tokio::test]
async fn a_restart_that_was_killed_at_its_start_leaves_the_run_before_it() {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let input = chat("hanging", serde_json::json!({"hang": true}));
    workshop.write("in.jsonl", &input);
    workshop.simulator.reset_stats();
    let running = Process::start(workshop.command(&["--restart"]), b"");
    eventually("a call is on its way", async || workshop.calls() == 1).await;
    running.signal("KILL");
    running.ended().await;
    let journal: Value =
        serde_json::from_str(&workshop.read("out.jsonl.nightshift/run.json")).expect("is JSON");
    assert!(journal["earlier"].is_object(), "{journal}");

    let refused = run_at(&workshop, &refusing().await, &["--restart"]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    workshop.write("in.jsonl", &requests(&ids(3)));
    let again = workshop.run(&[]).await;
    assert_eq!(
        (again.code, workshop.calls()),
        (Some(0), 1),
        "{}",
        again.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
}

/// Three answers, and then a run that begins anew and is killed before it has one.
async fn killed_at_its_start() -> Workshop {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    std::fs::create_dir(workshop.path("tmp")).expect("makes a directory");
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let hanging = chat("hanging", serde_json::json!({"hang": true}));
    workshop.write("in.jsonl", &hanging);
    workshop.simulator.reset_stats();
    let running = Process::start(workshop.command(&["--restart"]), b"");
    eventually("a call is on its way", async || workshop.calls() == 1).await;
    running.signal("KILL");
    running.ended().await;
    workshop
}

#[tokio::test]
async fn what_follows_a_restart_that_was_killed_at_its_start_keeps_the_answers_before_it() {
    let workshop = killed_at_its_start().await;
    // Everything the earlier run had is still of use, and one request is new.
    workshop.write("in.jsonl", &requests(&ids(4)));
    let dry = workshop.run(&["--dry-run", "--retry-failed"]).await;
    let told = "3 answers would be kept, 1 requests would be sent";
    assert!(dry.out.contains(told), "{}{}", dry.out, dry.errors);
    let retried = workshop.run(&["--retry-failed"]).await;
    assert_eq!(
        (retried.code, workshop.calls()),
        (Some(0), 2),
        "{}",
        retried.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(4));

    // The same input as before: nothing is sent.
    let workshop = killed_at_its_start().await;
    workshop.write("in.jsonl", &requests(&ids(3)));
    let plain = workshop.run(&[]).await;
    assert_eq!(
        (plain.code, workshop.calls()),
        (Some(0), 1),
        "{}",
        plain.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
}

#[tokio::test]
async fn a_restart_whose_first_requests_fail_leaves_the_earlier_run_whole() {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let before = state(&workshop);
    let bad = chat("bad", serde_json::json!({"status": 400}));
    let hanging = chat("hanging", serde_json::json!({"hang": true}));
    workshop.write("in.jsonl", &(bad + &hanging));
    let stopped = workshop.run(&["--restart", "--max-failures", "1"]).await;
    assert_eq!(stopped.code, Some(1), "{}", stopped.errors);
    for told in ["Nothing was lost", "the earlier run is as it was"] {
        assert!(stopped.errors.contains(told), "{told}: {}", stopped.errors);
    }
    assert!(
        !stopped.errors.contains("--retry-failed"),
        "{}",
        stopped.errors
    );
    assert_eq!(state(&workshop), before);
    workshop.write("in.jsonl", &requests(&ids(3)));
    workshop.simulator.reset_stats();
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    assert_eq!(workshop.calls(), 0, "nothing is sent again");
}

#[tokio::test]
async fn a_file_that_a_restart_was_given_is_the_runs_until_somebody_changes_it() {
    let hanging = chat("hanging", serde_json::json!({"hang": true}));
    let workshop = Workshop::new(&(requests(&ids(3)) + &hanging), Options::default()).await;
    workshop.write("out.errors.jsonl", "somebody else's");
    let running = Process::start(workshop.command(&["--restart"]), b"");
    let partial = workshop.path("out.jsonl.partial");
    eventually("answers are there", async || {
        std::fs::read_to_string(&partial).is_ok_and(|text| text.lines().count() == 3)
    })
    .await;
    running.signal("INT");
    let interrupted = running.ended().await;
    let told = "The same command without --restart goes on where this one stopped";
    assert!(interrupted.errors.contains(told), "{}", interrupted.errors);

    // Somebody changes it meanwhile, and changes it back.
    workshop.write("out.errors.jsonl", "somebody else's, and changed");
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    let told = "out.errors.jsonl is there already, and no run of this output wrote it";
    assert!(refused.errors.contains(told), "{}", refused.errors);
    workshop.write("out.errors.jsonl", "somebody else's");
    let more = ["--timeout", "200ms", "--max-attempts", "1"];
    let gone_on = workshop.run(&more).await;
    assert_eq!(gone_on.code, Some(1), "{}", gone_on.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["hanging"]);
    let again = workshop.run(&more).await;
    let told = "This run had ended before: nothing is sent";
    assert!(again.errors.contains(told), "{}", again.errors);
}

#[tokio::test]
async fn a_restart_without_failures_leaves_an_errors_file_and_is_not_refused_for_it_later() {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    workshop.write("out.errors.jsonl", "somebody else's");
    assert_eq!(workshop.run(&["--restart"]).await.code, Some(0));
    for _ in 0..2 {
        let again = workshop.run(&[]).await;
        assert_eq!(
            (again.code, workshop.calls()),
            (Some(0), 3),
            "{}",
            again.errors
        );
        assert_eq!(workshop.read("out.errors.jsonl"), "somebody else's");
    }
}

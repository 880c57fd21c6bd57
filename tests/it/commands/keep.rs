//! `nightshift run`, started again with another input, for what failed, or with another upstream:
//! what was answered is not asked again.

use std::time::Duration;

use nightshift::internals::simulate::{Options, Simulator};
use serde_json::{Value, json};

use super::command_in;
use super::run::{Workshop, requests};
use crate::support::binary::{Process, ended};
use crate::support::{chat, eventually, ids};

/// Each line's answer, by its `custom_id`.
fn answers(workshop: &Workshop) -> Vec<(String, Value)> {
    let text = workshop.read("out.jsonl");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("is JSON"));
    lines
        .map(|line| {
            (
                line["custom_id"].as_str().expect("is text").to_owned(),
                line,
            )
        })
        .collect()
}

#[tokio::test]
async fn lines_that_stay_keep_their_answers_when_others_come_go_and_change() {
    let workshop = Workshop::new(&requests(&ids(1000)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let before: std::collections::BTreeMap<_, _> = answers(&workshop).into_iter().collect();

    // One line goes, one comes at the top, one changes its place, and one its body.
    let mut names = ids(1000);
    names.remove(500);
    let last = names.pop().expect("has a last one");
    names.insert(1, last);
    let mut lines = vec![chat("new", Value::Null)];
    lines.extend(names.iter().map(|id| match id.as_str() {
        "line-7" => chat(id, json!({"latency_ms": 0})),
        // White space is nothing that is asked.
        "line-8" => format!(
            "  {}\n\n",
            chat(id, Value::Null).trim().replace("\":", "\" : ")
        ),
        _ => chat(id, Value::Null),
    }));
    workshop.write("in.jsonl", &lines.concat());
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let told = "998 answers are kept, 2 requests are sent";
    assert!(ran.errors.contains(told), "{}", ran.errors);
    assert!(
        ran.errors.contains("1000 of 1000 requests succeeded"),
        "{}",
        ran.errors
    );
    assert_eq!(workshop.calls(), 1002);
    names.insert(0, "new".to_owned());
    assert_eq!(workshop.custom_ids("out.jsonl"), names);
    for (id, answer) in answers(&workshop) {
        if id != "new" && id != "line-7" {
            assert_eq!(before[&id], answer, "{id}");
        }
    }

    // What was answered once is not forgotten: the first input again costs one call at most.
    workshop.write("in.jsonl", &requests(&ids(1000)));
    let again = workshop.run(&[]).await;
    assert_eq!(again.code, Some(0), "{}", again.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(1000));
    assert!(workshop.calls() <= 1003, "{}", workshop.calls());
    let same = workshop.run(&[]).await;
    assert_eq!(same.code, Some(0), "{}", same.errors);
    assert!(workshop.calls() <= 1003, "{}", workshop.calls());
}

#[tokio::test]
async fn a_run_that_was_interrupted_keeps_its_answers_for_a_changed_input() {
    let options = Options {
        latency: Duration::from_millis(30),
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(600)), options).await;
    let running = Process::start(workshop.command(&["--concurrency", "8"]), b"");
    eventually("the run is in the middle", async || {
        workshop.simulator.stats().total.answered >= 50
    })
    .await;
    running.signal("INT");
    assert_eq!(running.ended().await.code, Some(130));
    workshop.write("in.jsonl", &requests(&ids(601)));
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(601));
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (601, 1));
}

#[tokio::test]
async fn a_custom_id_that_stands_twice_is_told_although_one_of_them_has_an_answer() {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let twice = requests(&ids(3)) + &chat("line-1", json!({"latency_ms": 0}));
    workshop.write("in.jsonl", &twice);
    for _ in 0..2 {
        let refused = workshop.run(&[]).await;
        assert_eq!(refused.code, Some(3), "{}", refused.errors);
        assert!(refused.errors.contains("line 4: "), "{}", refused.errors);
        assert!(
            refused.errors.contains("duplicate_custom_id"),
            "{}",
            refused.errors
        );
    }
    // Nothing is lost of what was answered.
    workshop.write("in.jsonl", &requests(&ids(4)));
    let ran = workshop.run(&[]).await;
    assert_eq!((ran.code, workshop.calls()), (Some(0), 4), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(4));
}

#[tokio::test]
async fn what_failed_is_sent_again_when_told_to_and_nothing_else() {
    let fails_once = json!({"status": 400, "times": 1});
    let input = requests(&ids(20)) + &chat("later", fails_once) + &requests(&["last".to_owned()]);
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["later"]);
    let calls = workshop.calls();

    let same = workshop.run(&[]).await;
    assert_eq!((same.code, workshop.calls()), (Some(1), calls));
    assert!(same.errors.contains("--retry-failed"), "{}", same.errors);

    let again = workshop.run(&["--retry-failed"]).await;
    assert_eq!(
        (again.code, workshop.calls()),
        (Some(0), calls + 1),
        "{}",
        again.errors
    );
    let names = [ids(20), vec!["later".to_owned(), "last".to_owned()]].concat();
    assert_eq!(
        workshop.custom_ids("out.jsonl"),
        names,
        "in the input's order"
    );
    assert!(!workshop.path("out.errors.jsonl").exists());
    // Nothing is left to be sent, whatever is asked for.
    let none = workshop.run(&["--retry-failed"]).await;
    assert_eq!(
        (none.code, workshop.calls()),
        (Some(0), calls + 1),
        "{}",
        none.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), names);
}

#[tokio::test]
async fn what_failed_is_sent_again_where_the_upstream_or_its_key_has_changed() {
    let refused = chat("refused", json!({"status": 400, "times": 1}));
    let workshop = Workshop::new(&(requests(&ids(5)) + &refused), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(1));
    let calls = workshop.calls();

    let elsewhere = Simulator::start("127.0.0.1:0", Options::default());
    let elsewhere = elsewhere.await.expect("starts");
    let url = elsewhere.base_url();
    let run = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--upstream",
        &url,
    ];
    let directory = workshop.path("");
    let ran = ended(command_in(&directory, &run)).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(ran.errors.contains("has changed"), "{}", ran.errors);
    let total = || elsewhere.stats().total.calls;
    assert_eq!(
        (workshop.calls(), total()),
        (calls, 1),
        "what was answered is not asked again"
    );

    let mut with_key = command_in(
        &directory,
        &[&run[..], &["--api-key-env", "A_KEY"]].concat(),
    );
    with_key.env("A_KEY", "sk-secret-and-long-enough");
    let ran = ended(with_key).await;
    assert_eq!((ran.code, total()), (Some(0), 2), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl").len(), 6);
    let journal = workshop.read("out.jsonl.nightshift/run.json");
    assert!(!journal.contains("sk-secret"), "{journal}");
}

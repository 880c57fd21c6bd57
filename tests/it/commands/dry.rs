//! `nightshift run --dry-run`: it says what a run would do, and changes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use nightshift::internals::simulate::{Options, Simulator};
use serde_json::{Value, json};

use super::ended_in;
use super::run::{Workshop, requests};
use crate::support::{binary::Process, eventually};
use crate::support::{chat, ids, request};

/// What is in a directory, byte for byte.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("can be read") {
        let path = entry.expect("can be read").path();
        let name = path.display().to_string();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(name, Vec::new());
        } else {
            found.insert(name, std::fs::read(&path).expect("can be read"));
        }
    }
    found
}

async fn workshop(input: &str, options: Options) -> Workshop {
    let workshop = Workshop::new(input, options).await;
    std::fs::create_dir(workshop.path("tmp")).expect("makes a directory");
    workshop
}

/// Runs both, and expects that the dry one says as the other does, and changes nothing.
async fn refused_alike(workshop: &Workshop, more: &[&str], code: i32, reason: &str) {
    let before = contents(&workshop.path(""));
    for flags in [&["--dry-run"][..], &[]] {
        let refused = workshop.run(&[more, flags].concat()).await;
        assert_eq!(
            refused.code,
            Some(code),
            "{more:?} {flags:?}: {}",
            refused.errors
        );
        let errors = &refused.errors;
        assert!(
            errors.contains(reason),
            "{more:?} {flags:?}: {reason}: {errors}"
        );
        if flags.is_empty() {
            continue;
        }
        assert_eq!(
            contents(&workshop.path("")),
            before,
            "{more:?}: nothing changes"
        );
    }
}

#[tokio::test]
async fn a_dry_run_counts_the_answers_that_would_be_kept() {
    let input = requests(&ids(5)) + &chat("bad", json!({"status": 400}));
    let workshop = workshop(&input, Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(1));
    let calls = workshop.calls();
    let dry = async |more: &[&str]| {
        let before = contents(&workshop.path(""));
        let dry = workshop.run(&[more, &["--dry-run"]].concat()).await;
        assert_eq!(dry.code, Some(0), "{more:?}: {}", dry.errors);
        assert_eq!(
            contents(&workshop.path("")),
            before,
            "{more:?}: nothing changes"
        );
        assert_eq!(workshop.calls(), calls);
        dry.out
    };
    let counts = |out: &str, kept: u64, sent: u64| {
        let told = format!("{kept} answers would be kept, ");
        assert!(out.contains(&told), "{told}: {out}");
        let told = format!("{sent} requests would be sent");
        assert!(out.contains(&told), "{told}: {out}");
        assert_eq!(out.contains("  sim-small\n"), sent > 0, "{out}");
    };
    let same = dry(&[]).await;
    counts(&same, 5, 0);
    assert!(same.contains("1 have failed before"), "{same}");
    let retried = dry(&["--retry-failed"]).await;
    counts(&retried, 5, 1);
    assert!(retried.contains("What failed is sent again"), "{retried}");
    assert!(
        dry(&["--restart"])
            .await
            .starts_with("6 requests would be sent")
    );
    workshop.write("in.jsonl", &requests(&ids(7)));
    let changed = dry(&[]).await;
    counts(&changed, 5, 2);
    assert!(changed.contains("The input has changed"), "{changed}");
    let summary: Value = serde_json::from_str(&dry(&["--json"]).await).expect("is JSON");
    let counts = ["total", "completed", "kept", "to_send"].map(|name| summary[name].as_u64());
    assert_eq!(counts, [Some(7), Some(5), Some(5), Some(2)]);
    assert_eq!(
        (&summary["status"], &summary["reason"]),
        (&json!("dry_run"), &Value::Null)
    );

    // It is what the run then does.
    let ran = workshop.run(&[]).await;
    assert!(
        ran.errors
            .contains("5 answers are kept, 2 requests are sent"),
        "{}",
        ran.errors
    );
    assert_eq!((ran.code, workshop.calls()), (Some(0), calls + 2));
}

#[tokio::test]
async fn a_dry_run_leaves_a_run_that_was_killed_as_it_is() {
    let options = Options {
        latency: Duration::from_millis(30),
        ..Options::default()
    };
    let workshop = workshop(&requests(&ids(500)), options).await;
    let running = Process::start(workshop.command(&["--concurrency", "8"]), b"");
    let partial = workshop.path("out.jsonl.partial");
    eventually("answers are there", async || {
        std::fs::read_to_string(&partial).is_ok_and(|text| text.lines().count() > 20)
    })
    .await;
    // Another run is at work: not even a dry one looks at its state.
    running.signal("STOP");
    let refused = workshop.run(&["--dry-run"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    assert!(
        refused.errors.contains("another `nightshift run`"),
        "{}",
        refused.errors
    );
    running.signal("KILL");
    running.ended().await;

    let before = contents(&workshop.path(""));
    let dry = workshop.run(&["--dry-run"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.errors);
    assert!(contents(&workshop.path("")) == before, "nothing changes");
    let number = |behind: &str| -> u64 {
        let (before, _) = dry.out.split_once(behind).expect("is told");
        let number = before.rsplit(' ').next().expect("has a number");
        number.parse().expect("is a number")
    };
    let (kept, sent) = (
        number(" answers would be kept"),
        number(" requests would be sent"),
    );
    assert!(kept > 20 && kept + sent == 500, "{}", dry.out);
    workshop.simulator.reset_stats();
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    assert_eq!(workshop.calls(), sent);
}

#[tokio::test]
async fn a_dry_run_refuses_what_a_run_would_refuse() {
    let workshop = workshop(&requests(&ids(3)), Options::default()).await;
    refused_alike(&workshop, &["--errors", "in.jsonl"], 3, "are the same file").await;
    workshop.write("out.jsonl", "somebody else's");
    refused_alike(&workshop, &[], 3, "is there already").await;
    std::fs::remove_file(workshop.path("out.jsonl")).expect("removes");
    std::fs::create_dir(workshop.path("theirs")).expect("makes a directory");
    workshop.write("theirs/state.db", "somebody else's");
    refused_alike(
        &workshop,
        &["--state", "theirs"],
        3,
        "is not the state of a run",
    )
    .await;
    refused_alike(&workshop, &["--state", "no/such"], 3, "cannot use no/such").await;

    workshop.write("in.jsonl", "");
    refused_alike(&workshop, &[], 3, "in.jsonl is empty").await;
    workshop.write("in.jsonl", "\n\n");
    refused_alike(&workshop, &[], 3, "(empty_file)").await;
    workshop.write("in.jsonl", "a,b\n1,2\n");
    refused_alike(&workshop, &[], 3, "looks like a table").await;
    let twice = requests(&ids(3)) + &requests(&ids(2));
    workshop.write("in.jsonl", &twice);
    refused_alike(&workshop, &[], 3, "line 5: The custom_id 'line-1'").await;
    workshop.write("in.jsonl", &"{}\n".repeat(500));
    refused_alike(
        &workshop,
        &[],
        3,
        "… and 497 more (missing_required_parameter)",
    )
    .await;

    workshop.write("in.jsonl", &requests(&ids(3)));
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    workshop.write("in.jsonl", &requests(&["other".to_owned()]));
    refused_alike(&workshop, &[], 3, "belongs to a run on another input").await;
}

#[tokio::test]
async fn a_dry_run_knows_the_models_of_the_configuration() {
    let workshop = workshop(&requests(&ids(3)), Options::default()).await;
    let toml = format!(
        "[[upstreams]]\nbase_url = \"{}\"\n[[models]]\nname = \"another\"\n\
         routes = [{{ upstream = \"default\" }}]\n[limits]\nmax_requests_per_batch = 2\n",
        workshop.simulator.base_url()
    );
    workshop.write("nightshift.toml", &toml);
    for more in [&["--dry-run"][..], &[]] {
        let run = ["run", "-i", "in.jsonl", "-o", "out.jsonl"];
        let refused = ended_in(&workshop.path(""), &[&run[..], more].concat()).await;
        assert_eq!(refused.code, Some(3), "{more:?}: {}", refused.errors);
        for code in ["(model_not_found)", "(too_many_requests)"] {
            assert!(
                refused.errors.contains(code),
                "{more:?}: {}",
                refused.errors
            );
        }
    }
    assert_eq!(workshop.calls(), 0);
}

/// Two upstreams, of which neither has the models that the other has.
fn upstreams(one: &str, other: &str) -> String {
    format!(
        "[[upstreams]]\nname = \"one\"\nbase_url = \"{one}\"\n\
         [[upstreams]]\nname = \"other\"\nbase_url = \"{other}\"\n"
    )
}

#[tokio::test]
async fn a_dry_run_asks_the_upstreams_for_the_models_that_no_configuration_names() {
    let lists = |model: &str| Options {
        models: vec![model.to_owned()],
        ..Options::default()
    };
    let workshop = workshop(&requests(&ids(3)), lists("sim-smaller")).await;
    let other = Simulator::start("127.0.0.1:0", lists("another")).await;
    let other = other.expect("starts");
    let dry = async || {
        let run = ["run", "-i", "in.jsonl", "-o", "out.jsonl", "--dry-run"];
        ended_in(&workshop.path(""), &run).await
    };
    // Some servers take models that they do not list.
    let warned = workshop.run(&["--dry-run"]).await;
    assert_eq!(warned.code, Some(0), "{}", warned.errors);
    let told = "no upstream lists the model sim-small; the nearest is sim-smaller";
    assert!(warned.errors.contains(told), "{}", warned.errors);

    // Where there is a choice, lists decide where a request goes.
    let url = workshop.simulator.base_url();
    workshop.write("nightshift.toml", &upstreams(&url, &other.base_url()));
    let refused = dry().await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    let told = "(model_not_found)";
    assert!(refused.errors.contains(told), "{}", refused.errors);

    // One that does not answer may have it.
    workshop.write("nightshift.toml", &upstreams(&url, "http://127.0.0.1:1/v1"));
    let unasked = dry().await;
    assert_eq!(unasked.code, Some(0), "{}", unasked.errors);
    let told = "The upstream other could not be asked for its models";
    assert!(unasked.errors.contains(told), "{}", unasked.errors);
    assert!(!unasked.errors.contains("no upstream lists"));

    let body = json!({"model": "another", "messages": []});
    workshop.write("in.jsonl", &request("a", body));
    workshop.write("nightshift.toml", &upstreams(&url, &other.base_url()));
    let fine = dry().await;
    assert_eq!(
        (fine.code, fine.errors.as_str()),
        (Some(0), ""),
        "{}",
        fine.out
    );
    assert_eq!((workshop.calls(), other.stats().total.calls), (0, 0));
}

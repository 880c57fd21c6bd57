//! `nightshift run` and files that their owner changed after a run wrote them.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use nightshift::internals::simulate::Options;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::command_in;
use super::run::{Workshop, requests};
use crate::support::{chat, eventually, ids};

/// A finished run of three requests, of which the last has failed.
async fn finished() -> Workshop {
    let input = requests(&ids(2)) + &chat("bad", json!({"status": 400}));
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    workshop
}

fn move_away(workshop: &Workshop, name: &str) {
    let away = workshop.path(&format!("{name}.mine"));
    std::fs::rename(workshop.path(name), away).expect("moves");
}

#[tokio::test]
async fn a_file_that_was_edited_is_not_overwritten() {
    let workshop = finished().await;
    for name in ["out.jsonl", "out.errors.jsonl"] {
        let written = workshop.read(name);
        let mine = format!("{written}{{\"note\": \"mine\"}}\n");
        workshop.write(name, &mine);
        for more in [&[][..], &["--retry-failed"], &["--dry-run"]] {
            let refused = workshop.run(more).await;
            assert_eq!(refused.code, Some(3), "{name} {more:?}: {}", refused.errors);
            let told = format!("{name} was changed after a run wrote it: move it away");
            assert!(refused.errors.contains(&told), "{}", refused.errors);
            assert!(refused.errors.contains("--restart"), "{}", refused.errors);
            assert_eq!(workshop.read(name), mine, "{more:?}");
        }
        move_away(&workshop, name);
        let ran = workshop.run(&[]).await;
        assert_eq!(ran.code, Some(1), "{}", ran.errors);
        assert_eq!(workshop.read(name), written);
        assert_eq!(workshop.read(&format!("{name}.mine")), mine);
    }
    assert_eq!(workshop.calls(), 3, "nothing is sent twice");

    workshop.write("out.jsonl", "mine\n");
    let ran = workshop.run(&["--restart"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(2));
}

#[tokio::test]
async fn a_file_that_was_only_touched_copied_or_emptied_is_still_the_runs() {
    let workshop = finished().await;
    let written = workshop.read("out.jsonl");
    for name in ["out.jsonl", "out.errors.jsonl"] {
        let file = std::fs::File::options()
            .write(true)
            .open(workshop.path(name));
        let later = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        file.expect("opens").set_modified(later).expect("may");
    }
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    // Another file with the same content.
    std::fs::copy(workshop.path("out.jsonl"), workshop.path("copy")).expect("copies");
    std::fs::rename(workshop.path("copy"), workshop.path("out.jsonl")).expect("moves");
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    workshop.write("out.jsonl", "");
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.read("out.jsonl"), written);
}

/// A file with several names is written in its place, and so has no moment of a rename.
#[tokio::test]
async fn a_file_with_another_name_is_guarded_too() {
    let workshop = finished().await;
    std::fs::hard_link(workshop.path("out.jsonl"), workshop.path("other")).expect("links");
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    workshop.write("other", "mine\n");
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    assert_eq!(workshop.read("out.jsonl"), "mine\n");
}

#[tokio::test]
async fn a_file_that_is_edited_while_a_run_goes_on_is_not_overwritten() {
    let workshop = finished().await;
    let url = workshop.simulator.base_url();
    let args = ["run", "-i", "-", "-o", "out.jsonl", "--upstream", &url];
    let mut command = command_in(&workshop.path(""), &args);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.kill_on_drop(true).spawn().expect("starts");
    let mut stdin = running.stdin.take().expect("is piped");
    // The run has looked at its files, and reads its input.
    let copy = workshop.path("out.jsonl.nightshift/input.tmp");
    eventually("the input is read", async || copy.exists()).await;
    workshop.write("out.jsonl", "mine\n");
    let input = requests(&ids(3)) + &chat("bad", json!({"status": 400}));
    stdin.write_all(input.as_bytes()).await.expect("is read");
    drop(stdin);
    let ended = running.wait_with_output().await.expect("ends");
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{errors}");
    assert!(errors.contains("out.jsonl was changed"), "{errors}");
    assert_eq!(workshop.read("out.jsonl"), "mine\n");

    move_away(&workshop, "out.jsonl");
    workshop.write("in.jsonl", &input);
    let calls = workshop.calls();
    let ran = workshop.run(&[]).await;
    assert_eq!(
        (ran.code, workshop.calls()),
        (Some(1), calls),
        "{}",
        ran.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
}

/// A journal of a version that noted no content.
#[tokio::test]
async fn what_an_earlier_version_wrote_is_still_the_runs() {
    let workshop = finished().await;
    let path = "out.jsonl.nightshift/run.json";
    let mut journal: Value = serde_json::from_str(&workshop.read(path)).expect("is JSON");
    let fields = journal.as_object_mut().expect("is an object");
    assert!(fields.remove("written").is_some());
    workshop.write(path, &journal.to_string());
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.calls(), 3);
}

#[tokio::test]
async fn a_file_that_appears_before_the_first_results_is_not_overwritten() {
    let input = requests(&ids(2)) + &chat("bad", json!({"status": 400}));
    for name in ["out.jsonl", "out.errors.jsonl"] {
        let workshop = Workshop::new(&input, Options::default()).await;
        let url = workshop.simulator.base_url();
        let args = ["run", "-i", "-", "-o", "out.jsonl", "--upstream", &url];
        let mut command = command_in(&workshop.path(""), &args);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.kill_on_drop(true).spawn().expect("starts");
        let mut stdin = running.stdin.take().expect("is piped");
        // The run has looked at its files, and reads its input.
        let store = workshop.path("out.jsonl.nightshift/state.db");
        eventually("the input is read", async || store.exists()).await;
        workshop.write(name, "mine\n");
        stdin.write_all(input.as_bytes()).await.expect("is read");
        drop(stdin);
        let ended = running.wait_with_output().await.expect("ends");
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{errors}");
        let told = format!("{name} has appeared, and no run wrote it: move it away");
        assert!(errors.contains(&told), "{errors}");
        let refused = workshop.run(&[]).await;
        assert_eq!(refused.code, Some(3), "{}", refused.errors);
        assert_eq!(workshop.read(name), "mine\n");

        move_away(&workshop, name);
        let ran = workshop.run(&[]).await;
        assert_eq!((ran.code, workshop.calls()), (Some(1), 3), "{}", ran.errors);
        assert_eq!(workshop.custom_ids("out.jsonl"), ids(2));
    }
}

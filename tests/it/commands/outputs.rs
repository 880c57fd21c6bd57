//! Where `nightshift run` writes: regular files by any name, and what only takes bytes.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use nightshift::internals::simulate::Options;
use serde_json::{Value, json};

use super::command_in;
use super::run::{Workshop, requests};
use crate::support::binary::{Process, command_after, ended};
use crate::support::{chat, eventually, ids};

/// A workshop with three requests, of which the last fails.
async fn workshop() -> Workshop {
    let input = requests(&ids(2)) + &chat("bad", json!({"status": 400}));
    let workshop = Workshop::new(&input, Options::default()).await;
    std::fs::create_dir(workshop.path("tmp")).expect("makes a directory");
    workshop
}

/// What a run leaves in the directory for temporary files.
fn temporary(workshop: &Workshop) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(workshop.path("tmp")).expect("can be read");
    entries
        .map(|entry| entry.expect("can be read").path())
        .collect()
}

fn mkfifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.expect("runs").success());
}

/// Makes a device that swallows what it is given. Root alone can, and not everywhere.
fn makes_null(path: &Path) -> bool {
    let mut mknod = std::process::Command::new("mknod");
    let made = mknod.arg(path).args(["c", "1", "3"]).output();
    let is_made = made.is_ok_and(|made| made.status.success());
    is_made && std::fs::File::options().write(true).open(path).is_ok()
}

fn custom_ids(text: &str) -> Vec<String> {
    let id = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("is JSON");
        line["custom_id"].as_str().expect("has an id").to_owned()
    };
    text.lines().map(id).collect()
}

#[tokio::test]
async fn a_symlink_is_followed_and_stays_whether_its_file_is_there_or_not() {
    let workshop = workshop().await;
    std::fs::create_dir(workshop.path("data")).expect("makes a directory");
    workshop.write("data/there.jsonl", "");
    symlink("data/there.jsonl", workshop.path("link")).expect("links");
    symlink("data/free.jsonl", workshop.path("errors")).expect("links");
    let ran = ended(workshop.command_to("link", &["--errors", "errors"])).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("data/there.jsonl"), ids(2));
    assert_eq!(workshop.custom_ids("data/free.jsonl"), ["bad"]);
    assert!(workshop.path("link").is_symlink() && workshop.path("errors").is_symlink());

    // By its own name the file belongs to the same run.
    let calls = workshop.calls();
    let more = ["--errors", "data/free.jsonl"];
    let again = ended(workshop.command_to("data/there.jsonl", &more)).await;
    assert_eq!(
        (again.code, workshop.calls()),
        (Some(1), calls),
        "{}",
        again.errors
    );

    // Where nothing fails any more, the link leads to an empty file.
    workshop.write("in.jsonl", &requests(&ids(2)));
    let more = ["--errors", "errors", "--restart"];
    let mended = ended(workshop.command_to("link", &more)).await;
    assert_eq!(mended.code, Some(0), "{}", mended.errors);
    assert!(workshop.path("errors").is_symlink());
    assert_eq!(workshop.read("data/free.jsonl"), "");
}

#[tokio::test]
async fn a_file_that_was_there_keeps_its_mode_its_owner_and_its_other_names() {
    let workshop = workshop().await;
    let files = ["out.jsonl", "out.errors.jsonl"];
    for name in files {
        workshop.write(name, "");
        let path = workshop.path(name);
        // Root alone can give files away.
        let _ = std::os::unix::fs::chown(&path, Some(12_345), Some(12_345));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).expect("may");
    }
    let found = |name: &str| {
        let found = workshop.path(name).metadata().expect("is there");
        (found.uid(), found.gid(), found.mode())
    };
    let before = files.map(found);
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(files.map(found), before);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(2));

    workshop.write("one.jsonl", "");
    std::fs::hard_link(workshop.path("one.jsonl"), workshop.path("two.jsonl")).expect("links");
    let ran = ended(workshop.command_to("one.jsonl", &[])).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(
        workshop.custom_ids("two.jsonl"),
        ids(2),
        "it is the same file"
    );
}

#[tokio::test]
async fn a_pipe_and_a_device_are_written_into_and_stay_what_they_are() {
    let workshop = workshop().await;
    mkfifo(&workshop.path("pipe"));
    mkfifo(&workshop.path("errors"));
    // A device of its own, so that a mistake does not cost this machine its /dev/null.
    let has_device = makes_null(&workshop.path("device"));
    symlink("device", workshop.path("null")).expect("links");

    let read = |name| {
        let mut cat = tokio::process::Command::new("cat");
        cat.arg(workshop.path(name));
        Process::start(cat, b"")
    };
    let (answers, errors) = (read("pipe"), read("errors"));
    let ran = ended(workshop.command_to("pipe", &["--errors", "errors"])).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(custom_ids(&answers.ended().await.out), ids(2));
    assert_eq!(custom_ids(&errors.ended().await.out), ["bad"]);

    if has_device {
        let ran = ended(workshop.command_to("null", &["--errors", "null"])).await;
        assert_eq!(ran.code, Some(1), "{}", ran.errors);
    }
    let kind = |name: &str| {
        workshop
            .path(name)
            .symlink_metadata()
            .expect("is there")
            .file_type()
    };
    assert!(kind("pipe").is_fifo() && kind("errors").is_fifo() && kind("null").is_symlink());
    let mut files = workshop.files();
    files.retain(|name| name != "device");
    assert_eq!(
        files,
        ["errors", "in.jsonl", "null", "pipe", "tmp"],
        "nothing is left beside them"
    );
}

#[tokio::test]
async fn the_output_can_be_standard_output_and_nothing_is_left_of_a_run_that_went_well() {
    let workshop = workshop().await;
    // With a failed request, what is needed to send it again is kept, and named.
    let ran = ended(workshop.command_to("-", &[])).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(custom_ids(&ran.out), ids(2));
    let [state] = &temporary(&workshop)[..] else {
        panic!("one state directory: {:?}", temporary(&workshop));
    };
    assert!(
        ran.errors.contains(&format!("--state {}", state.display())),
        "{}",
        ran.errors
    );
    let errors = std::fs::read_to_string(state.join("errors.jsonl")).expect("is there");
    assert_eq!(custom_ids(&errors), ["bad"]);

    let calls = workshop.calls();
    let state = state.to_str().expect("is text");
    let again = ended(workshop.command_to("-", &["--state", state])).await;
    assert_eq!(
        (again.code, workshop.calls()),
        (Some(1), calls),
        "{}",
        again.errors
    );
    assert_eq!(again.out, ran.out, "it is written again");
    std::fs::remove_dir_all(state).expect("removes");

    workshop.write("in.jsonl", &requests(&ids(2)));
    for output in ["-", "/dev/stdout"] {
        let ran = ended(workshop.command_to(output, &[])).await;
        assert_eq!(
            (ran.code, custom_ids(&ran.out)),
            (Some(0), ids(2)),
            "{}",
            ran.errors
        );
        assert!(
            temporary(&workshop).is_empty(),
            "{:?}",
            temporary(&workshop)
        );
    }
    let same = ended(workshop.command_to("-", &["--errors", "-"])).await;
    assert_ne!(same.code, Some(0));
    assert!(same.errors.contains("are the same file"), "{}", same.errors);
}

#[tokio::test]
async fn a_run_to_a_pipe_goes_on_where_it_was_interrupted() {
    let options = Options {
        latency: Duration::from_millis(30),
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(300)), options).await;
    let more = ["--state", "kept", "--concurrency", "4"];
    let running = Process::start(workshop.command_to("-", &more), b"");
    eventually("the run is in the middle", async || {
        workshop.simulator.stats().total.answered >= 20
    })
    .await;
    running.signal("INT");
    let interrupted = running.ended().await;
    assert_eq!(interrupted.code, Some(130), "{}", interrupted.errors);
    let so_far = custom_ids(&interrupted.out);
    assert_eq!(so_far, ids(300)[..so_far.len()], "in the input's order");
    let ran = ended(workshop.command_to("-", &more)).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(custom_ids(&ran.out), ids(300));
    let bodies = workshop.simulator.stats().bodies.expect("are tracked");
    assert_eq!((bodies.distinct, bodies.most_calls), (300, 1));
}

#[tokio::test]
async fn what_cannot_hold_a_result_is_refused_and_left_alone() {
    let workshop = workshop().await;
    std::fs::create_dir(workshop.path("directory")).expect("makes a directory");
    let socket = std::os::unix::net::UnixListener::bind(workshop.path("socket"));
    let _socket = socket.expect("listens");
    symlink("circle", workshop.path("circle")).expect("links");
    workshop.write("file.jsonl.partial", "somebody else's");
    for (output, reason) in [
        ("directory", "is a directory"),
        ("socket", "is a socket"),
        ("circle", "circle"),
        ("file.jsonl", "file.jsonl.partial"),
    ] {
        let refused = ended(workshop.command_to(output, &[])).await;
        assert_ne!(refused.code, Some(0), "{output}");
        assert!(
            refused.errors.contains(reason),
            "{output}: {}",
            refused.errors
        );
        let refused = ended(workshop.command_to("out.jsonl", &["--errors", output])).await;
        assert_ne!(refused.code, Some(0), "{output}");
        assert!(
            refused.errors.contains(reason),
            "{output}: {}",
            refused.errors
        );
    }
    assert_eq!(workshop.read("file.jsonl.partial"), "somebody else's");
    assert_eq!(workshop.calls(), 0);
}

/// A fragment and a query are parts of URLs, not of paths.
#[tokio::test]
async fn a_name_may_have_any_character_of_a_url() {
    let workshop = workshop().await;
    for output in [
        "out#1.jsonl",
        "what?.jsonl",
        "a?b=c&d#e%20.jsonl",
        "file:out.jsonl",
    ] {
        let ran = ended(workshop.command_to(output, &[])).await;
        assert_eq!(ran.code, Some(1), "{output}: {}", ran.errors);
        assert_eq!(workshop.custom_ids(output), ids(2), "{output}");
        let state = workshop.path(&format!("{output}.nightshift"));
        assert!(state.join("state.db").exists(), "{output}");
    }
}

/// Who fails to give a state directory at first is told to name it later, with any output.
#[tokio::test]
async fn a_state_directory_is_no_leave_to_overwrite_a_file_that_is_there() {
    let workshop = workshop().await;
    let state = ["--state", "kept"];
    let ran = ended(workshop.command_to("-", &state)).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);

    workshop.write("important.jsonl", "somebody else's");
    let refused = ended(workshop.command_to("important.jsonl", &state)).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    assert_eq!(workshop.read("important.jsonl"), "somebody else's");

    // One that a run with this state wrote may be written again.
    for _ in 0..2 {
        let ran = ended(workshop.command_to("free.jsonl", &state)).await;
        assert_eq!(ran.code, Some(1), "{}", ran.errors);
        assert_eq!(workshop.custom_ids("free.jsonl"), ids(2));
    }
}

#[tokio::test]
async fn to_begin_anew_is_no_leave_to_remove_a_file_beside_the_output() {
    let workshop = workshop().await;
    workshop.write("out.jsonl.partial", "somebody else's");
    let refused = workshop.run(&["--restart"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    assert_eq!(workshop.read("out.jsonl.partial"), "somebody else's");
}

/// The files may have the names of a run's own.
#[tokio::test]
async fn a_directory_of_somebody_else_is_no_state_directory() {
    let workshop = workshop().await;
    let names = ["state.db", "state.db-wal", "run.json", "lines"];
    std::fs::create_dir(workshop.path("theirs")).expect("makes a directory");
    for name in names {
        workshop.write(&format!("theirs/{name}"), "somebody else's");
    }
    for more in [
        &["--state", "theirs"][..],
        &["--state", "theirs", "--restart"],
    ] {
        let refused = workshop.run(more).await;
        assert_eq!(refused.code, Some(3), "{}", refused.errors);
        assert!(
            refused.errors.contains("is not the state of a run"),
            "{}",
            refused.errors
        );
        for name in names {
            assert_eq!(
                workshop.read(&format!("theirs/{name}")),
                "somebody else's",
                "{name}"
            );
        }
        let left = std::fs::read_dir(workshop.path("theirs")).expect("can be read");
        assert_eq!(left.count(), names.len(), "nothing is added");
    }
    // An empty one is as good as none, and stays empty where nothing is begun.
    std::fs::create_dir(workshop.path("empty")).expect("makes a directory");
    workshop.write("in.jsonl", "no JSON");
    for more in [&[][..], &["--errors", "empty/errors.jsonl"]] {
        let output = ["empty/lines.jsonl", "out.jsonl"][usize::from(!more.is_empty())];
        let more = [more, &["--state", "empty"]].concat();
        let refused = ended(workshop.command_to(output, &more)).await;
        assert_eq!(refused.code, Some(3), "{}", refused.errors);
        let told = "is in the state directory, empty: name a file outside it";
        assert!(refused.errors.contains(told), "{}", refused.errors);
    }
    let refused = workshop.run(&["--state", "empty"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    let left = std::fs::read_dir(workshop.path("empty")).expect("is there");
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_run_to_a_pipe_names_its_state_before_it_can_be_killed() {
    let hanging = requests(&ids(2)) + &chat("hanging", json!({"hang": true}));
    let workshop = Workshop::new(&hanging, Options::default()).await;
    std::fs::create_dir(workshop.path("tmp")).expect("makes a directory");
    let mut running = Process::start(workshop.command_to("-", &[]), b"");
    running.says("--state ").await;
    running.signal("KILL");
    let killed = running.ended().await;
    let [state] = &temporary(&workshop)[..] else {
        panic!("one state directory: {:?}", temporary(&workshop));
    };
    let named = format!("--state {}", state.display());
    assert!(killed.errors.contains(&named), "{}", killed.errors);
}

#[tokio::test]
async fn a_run_that_cannot_begin_leaves_nothing_in_the_directory_for_temporary_files() {
    let workshop = workshop().await;
    let directory = workshop.path("");
    let without_upstream = ["run", "-i", "in.jsonl", "-o", "-"];
    let mut without_upstream = command_in(&directory, &without_upstream);
    without_upstream.env("TMPDIR", workshop.path("tmp"));
    let mut of_invalid = command_in(&directory, &["run", "-i", "invalid.jsonl", "-o", "-"]);
    of_invalid.env("TMPDIR", workshop.path("tmp"));
    of_invalid.args(["--upstream", &workshop.simulator.base_url()]);
    workshop.write("invalid.jsonl", "{\"custom_id\": 3}\n");
    for command in [without_upstream, of_invalid] {
        let refused = ended(command).await;
        assert_eq!(refused.code, Some(3), "{}", refused.errors);
        assert!(!refused.errors.contains("is kept"), "{}", refused.errors);
        assert!(
            temporary(&workshop).is_empty(),
            "{:?}",
            temporary(&workshop)
        );
    }
}

#[tokio::test]
async fn a_run_that_waits_for_a_reader_can_be_stopped_and_gone_on_with() {
    let workshop = workshop().await;
    mkfifo(&workshop.path("pipe"));
    let more = ["--state", "kept"];
    let mut waiting = Process::start(workshop.command_to("pipe", &more), b"");
    waiting.says("Waiting until something reads").await;
    waiting.signal("TERM");
    let stopped = waiting.ended().await;
    assert_eq!(stopped.code, Some(143), "{}", stopped.errors);
    assert!(
        stopped.errors.contains("goes on where this one stopped"),
        "{}",
        stopped.errors
    );
    let calls = workshop.calls();
    let ran = ended(workshop.command_to("-", &more)).await;
    assert_eq!(custom_ids(&ran.out), ids(2), "{}", ran.errors);
    assert_eq!(workshop.calls(), calls);
}

#[tokio::test]
async fn a_named_pipe_is_read_once_and_a_run_that_waits_for_its_writer_can_be_stopped() {
    let workshop = workshop().await;
    mkfifo(&workshop.path("in.pipe"));
    let url = workshop.simulator.base_url();
    let args = ["run", "-i", "in.pipe", "-o", "out.jsonl"];
    let args = [&args[..], &["--upstream", &url]].concat();
    let start = || Process::start(command_in(&workshop.path(""), &args), b"");
    let state = workshop.path("out.jsonl.nightshift");
    // Stopped while its store is made, or later: nothing of it is in the way of the next one.
    for file in ["state.db.lock", "state.db"] {
        let waiting = start();
        eventually("the run has begun", async || state.join(file).exists()).await;
        waiting.signal("INT");
        let stopped = waiting.ended().await;
        assert_eq!(stopped.code, Some(130), "{}", stopped.errors);
        assert!(!state.exists(), "something is left behind");
    }

    let running = start();
    // A process, for a writer waits for its reader for good.
    let mut writer = tokio::process::Command::new("sh");
    writer.args(["-c", "cat in.jsonl > in.pipe"]);
    writer.current_dir(workshop.path("")).kill_on_drop(true);
    let _writer = writer.spawn().expect("starts");
    let ran = running.ended().await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(2));
}

#[tokio::test]
async fn what_cannot_be_written_in_the_end_is_told_before_anything_is_sent() {
    let workshop = workshop().await;
    let url = workshop.simulator.base_url();
    // Nobody can make a file there, and a process without a terminal has no /dev/tty.
    for output in ["/proc/answers.jsonl", "/dev/tty"] {
        for role in ["-o", "--errors"] {
            let mut run = vec![
                "run",
                "-i",
                "in.jsonl",
                "--upstream",
                &url,
                "--state",
                "kept",
            ];
            run.extend([role, output]);
            if role == "--errors" {
                run.extend(["-o", "out.jsonl"]);
            }
            let alone = "setsid --wait \"$0\" \"$@\"; exit $?;";
            let mut command = command_after(alone, &run);
            command.current_dir(workshop.path(""));
            let refused = ended(command).await;
            assert_eq!(refused.code, Some(3), "{output}: {}", refused.errors);
            let told = format!("cannot write {output}");
            assert!(refused.errors.contains(&told), "{}", refused.errors);
        }
    }
    assert_eq!(workshop.calls(), 0);
}

/// A mounted file in a directory that cannot be written, as containers have it.
#[tokio::test]
async fn a_file_in_a_directory_that_cannot_be_written_is_written_in_its_place() {
    let mut unshare = std::process::Command::new("unshare");
    let may = unshare.args(["-rm", "true"]).output();
    if !may.is_ok_and(|may| may.status.success()) {
        // This machine lets nobody mount.
        return;
    }
    let workshop = workshop().await;
    std::fs::create_dir(workshop.path("fixed")).expect("makes a directory");
    for name in ["data.jsonl", "fixed/out.jsonl"] {
        workshop.write(name, "");
    }
    let url = workshop.simulator.base_url();
    let mounts = "unshare -rm sh -ec 'mount --bind fixed fixed; \
                  mount --bind data.jsonl fixed/out.jsonl; mount -o remount,bind,ro fixed; \
                  exec \"$0\" \"$@\"' \"$0\" \"$@\"; exit $?;";
    let run = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "fixed/out.jsonl",
        "--errors",
        "e.jsonl",
    ];
    let mut command = command_after(mounts, &run);
    command.args(["--upstream", &url, "--state", "kept"]);
    command.current_dir(workshop.path(""));
    let ran = ended(command).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("data.jsonl"), ids(2));
}

#[tokio::test]
async fn what_a_descriptor_leads_to_is_added_to_and_not_replaced() {
    let workshop = workshop().await;
    let url = workshop.simulator.base_url();
    for (errors, file) in [("/dev/stderr", "log"), ("/dev/fd/3", "third")] {
        for name in ["log", "third"] {
            workshop.write(name, "before\n");
        }
        let run = [
            "run",
            "-i",
            "in.jsonl",
            "-o",
            "out.jsonl",
            "--errors",
            errors,
        ];
        let mut command = command_after("exec 2>>log 3>>third;", &run);
        command.args(["--upstream", &url]);
        command.current_dir(workshop.path(""));
        let ran = ended(command).await;
        assert_eq!(ran.code, Some(1), "{}", workshop.read("log"));
        let text = workshop.read(file);
        assert!(text.starts_with("before\n"), "{errors}: {text}");
        assert!(text.contains("\"custom_id\":\"bad\""), "{errors}: {text}");
        assert!(
            workshop.read("log").contains("2 of 3 requests succeeded"),
            "what is said is still there"
        );
    }
}

#[tokio::test]
async fn the_reader_of_an_errors_pipe_comes_to_an_end_where_nothing_failed() {
    let workshop = Workshop::new(&requests(&ids(2)), Options::default()).await;
    mkfifo(&workshop.path("errors"));
    let mut cat = tokio::process::Command::new("cat");
    cat.arg(workshop.path("errors"));
    let reader = Process::start(cat, b"");
    let ran = workshop.run(&["--errors", "errors"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let read = reader.ended().await;
    assert_eq!((read.code, read.out.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn the_answers_so_far_are_as_private_as_the_file_that_was_there() {
    let hanging = requests(&ids(2)) + &chat("hanging", json!({"hang": true}));
    let workshop = Workshop::new(&hanging, Options::default()).await;
    let output = workshop.path("out.jsonl");
    workshop.write("out.jsonl", "");
    std::fs::set_permissions(&output, std::fs::Permissions::from_mode(0o600)).expect("may");
    let running = Process::start(workshop.command(&[]), b"");
    let partial = workshop.path("out.jsonl.partial");
    eventually("answers are there", async || partial.exists()).await;
    let mode = partial.metadata().expect("is there").mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    drop(running);
}

#[tokio::test]
async fn a_result_that_cannot_be_written_leaves_no_part_of_it() {
    let workshop = workshop().await;
    assert_eq!(workshop.run(&[]).await.code, Some(1));
    let answers = workshop.read("out.jsonl");
    std::fs::remove_file(workshop.path("out.jsonl.nightshift/lines")).expect("removes");
    let failed = workshop.run(&[]).await;
    assert_eq!(failed.code, Some(1), "{}", failed.errors);
    assert!(
        failed.errors.contains("cannot write out.jsonl"),
        "{}",
        failed.errors
    );
    assert_eq!(workshop.read("out.jsonl"), answers);
    assert!(!workshop.path("out.jsonl.partial").exists());
}

/// An earlier version noted the errors file alone, by the name that the command had for it.
#[tokio::test]
async fn a_run_goes_on_where_its_files_were_moved_and_with_what_earlier_versions_noted() {
    let workshop = workshop().await;
    std::fs::create_dir(workshop.path("here")).expect("makes a directory");
    let ran = ended(workshop.command_to("here/out.jsonl", &[])).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    std::fs::rename(workshop.path("here"), workshop.path("there")).expect("moves");
    let moved = ended(workshop.command_to("there/out.jsonl", &[])).await;
    assert_eq!(moved.code, Some(1), "{}", moved.errors);

    let path = "there/out.jsonl.nightshift/run.json";
    let whole = workshop.path("there/out.errors.jsonl");
    for noted in ["there/out.errors.jsonl", whole.to_str().expect("is text")] {
        let mut journal: Value = serde_json::from_str(&workshop.read(path)).expect("is JSON");
        let fields = journal.as_object_mut().expect("is an object");
        fields.remove("outputs");
        fields.remove("errors");
        fields.insert("errors_files".to_owned(), json!([noted]));
        workshop.write(path, &journal.to_string());
        let again = ended(workshop.command_to("there/out.jsonl", &[])).await;
        assert_eq!(again.code, Some(1), "{noted}: {}", again.errors);
    }
    assert_eq!(workshop.calls(), 3);
}

/// The last line of what a run knows of its input is lost.
fn loses_a_line(workshop: &Workshop) {
    let lines = workshop.path("out.jsonl.nightshift/lines");
    let lines = std::fs::File::options().write(true).open(lines);
    let lines = lines.expect("is there");
    let length = lines.metadata().expect("can be read").len();
    lines.set_len(length / 3 * 2).expect("can be cut");
}

#[tokio::test]
async fn a_result_that_lacks_lines_takes_no_files_place_and_is_told() {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let answers = workshop.read("out.jsonl");
    loses_a_line(&workshop);
    let refused = async || {
        let refused = workshop.run(&[]).await;
        assert_eq!(refused.code, Some(1), "{}", refused.errors);
        let told = "cannot write out.jsonl: 2 lines are there, and the batch counts 3";
        assert!(refused.errors.contains(told), "{}", refused.errors);
        assert_eq!(workshop.read("out.jsonl"), answers);
        assert!(!workshop.path("out.jsonl.partial").exists());
    };
    refused().await;
    // Nor is it written in its place.
    std::fs::hard_link(workshop.path("out.jsonl"), workshop.path("other")).expect("links");
    refused().await;
    // What was written to a pipe cannot be taken back, and is told all the same.
    let more = ["--state", "out.jsonl.nightshift"];
    let poured = ended(workshop.command_to("-", &more)).await;
    assert_eq!(poured.code, Some(1), "{}", poured.errors);
    assert_eq!(custom_ids(&poured.out), ids(2));
    let told = "cannot write all of standard output: 2 lines are there";
    assert!(poured.errors.contains(told), "{}", poured.errors);
}

#[tokio::test]
async fn an_errors_file_that_lacks_lines_takes_no_files_place() {
    let workshop = workshop().await;
    assert_eq!(workshop.run(&[]).await.code, Some(1));
    let errors = workshop.read("out.errors.jsonl");
    loses_a_line(&workshop);
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.errors);
    let told = "cannot write out.errors.jsonl: 0 lines are there, and the batch counts 1";
    assert!(refused.errors.contains(told), "{}", refused.errors);
    assert_eq!(workshop.read("out.errors.jsonl"), errors);
}

/// By whatever name: the shell has opened the file for the run.
#[tokio::test]
async fn standard_input_and_standard_output_are_known_as_the_files_they_are() {
    let workshop = workshop().await;
    let input = workshop.read("in.jsonl");
    let url = workshop.simulator.base_url();
    for (shell, input_name, results) in [
        ("exec < in.jsonl;", "-", ["-o", "in.jsonl"]),
        ("exec < in.jsonl;", "-", ["--errors", "in.jsonl"]),
        ("exec < in.jsonl;", "/dev/stdin", ["-o", "in.jsonl"]),
        ("exec >> in.jsonl;", "in.jsonl", ["-o", "-"]),
        ("exec < in.jsonl >> in.jsonl;", "-", ["-o", "-"]),
        ("exec 3>> in.jsonl;", "in.jsonl", ["--errors", "/dev/fd/3"]),
    ] {
        let mut command = command_after(shell, &["run", "-i", input_name, "--upstream", &url]);
        command.args(results).args(["--state", "kept"]);
        if results[0] == "--errors" {
            command.args(["-o", "out.jsonl"]);
        }
        command.current_dir(workshop.path(""));
        let refused = ended(command).await;
        assert_eq!(refused.code, Some(3), "{results:?}: {}", refused.errors);
        let told = "are the same file";
        assert!(refused.errors.contains(told), "{}", refused.errors);
        assert_eq!(workshop.read("in.jsonl"), input);
    }
    assert_eq!(workshop.calls(), 0);
}

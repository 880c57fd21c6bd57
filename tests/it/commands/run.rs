//! `nightshift run`, when nothing interrupts it.

use std::path::{Path, PathBuf};

use async_compression::tokio::write::GzipEncoder;
use nightshift::internals::simulate::{ApiKey, Options, Simulator};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{command_in, ended_in};
use crate::support::binary::{Ended, Process, ended};
use crate::support::{chat, ids};

/// A directory with an input file, and an upstream to send it to.
pub struct Workshop {
    directory: TempDir,
    pub simulator: Simulator,
}

impl Workshop {
    pub async fn new(input: &str, options: Options) -> Self {
        let options = Options {
            track: true,
            ..options
        };
        let simulator = Simulator::start("127.0.0.1:0", options)
            .await
            .expect("starts");
        let directory = tempfile::tempdir().expect("makes a directory");
        let workshop = Workshop {
            directory,
            simulator,
        };
        workshop.write("in.jsonl", input);
        workshop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("writes");
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("is there")
    }

    /// `nightshift run -i in.jsonl -o out.jsonl`, and more.
    pub fn command(&self, more: &[&str]) -> Command {
        self.command_to("out.jsonl", more)
    }

    /// The same, with another output.
    pub fn command_to(&self, output: &str, more: &[&str]) -> Command {
        let url = self.simulator.base_url();
        let usual = ["run", "-i", "in.jsonl", "-o", output, "--upstream", &url];
        let mut command = command_in(self.directory.path(), &[&usual, more].concat());
        command.env("TMPDIR", self.directory.path().join("tmp"));
        command
    }

    pub async fn run(&self, more: &[&str]) -> Ended {
        ended(self.command(more)).await
    }

    /// The `custom_ids` of a file's lines, which are JSON and end with a line end.
    pub fn custom_ids(&self, name: &str) -> Vec<String> {
        let text = self.read(name);
        assert!(text.is_empty() || text.ends_with('\n'));
        let id = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("is JSON");
            line["custom_id"].as_str().expect("has an id").to_owned()
        };
        text.lines().map(id).collect()
    }

    /// Names of what is in the directory, in order.
    pub fn files(&self) -> Vec<String> {
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry
                .expect("can be read")
                .file_name()
                .into_string()
                .expect("is text")
        };
        let entries = std::fs::read_dir(self.directory.path()).expect("can be read");
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    pub fn calls(&self) -> u64 {
        self.simulator.stats().total.calls
    }
}

pub fn requests(ids: &[String]) -> String {
    ids.iter().map(|id| chat(id, Value::Null)).collect()
}

#[tokio::test]
async fn a_file_becomes_a_file_and_the_same_again_sends_nothing() {
    let ids = ids(600);
    let workshop = Workshop::new(&requests(&ids), Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(ran.out, "", "results are in the file");
    assert_eq!(workshop.custom_ids("out.jsonl"), ids);
    let first: Value = serde_json::from_str(
        workshop
            .read("out.jsonl")
            .lines()
            .next()
            .expect("has a line"),
    )
    .expect("is JSON");
    assert_eq!(first["response"]["status_code"], 200);
    assert_eq!(first["response"]["body"]["object"], "chat.completion");
    assert_eq!(first["error"], Value::Null);
    assert_eq!(
        workshop.files(),
        ["in.jsonl", "out.jsonl", "out.jsonl.nightshift"]
    );

    let (calls, output) = (workshop.calls(), workshop.read("out.jsonl"));
    assert_eq!(calls, 600);
    for _ in 0..2 {
        let again = workshop.run(&[]).await;
        assert_eq!(again.code, Some(0), "{}", again.errors);
        assert_eq!(workshop.calls(), calls);
        assert_eq!(workshop.read("out.jsonl"), output);
        // Where it was lost, it is made again from what is kept.
        std::fs::remove_file(workshop.path("out.jsonl")).expect("removes");
    }
}

#[tokio::test]
async fn an_input_of_other_lines_is_refused_unless_it_is_to_begin_anew() {
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let output = workshop.read("out.jsonl");

    let others = ["other-1", "other-2"].map(str::to_owned);
    workshop.write("in.jsonl", &requests(&others));
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    assert!(refused.errors.contains("--restart"), "{}", refused.errors);
    assert_eq!(workshop.read("out.jsonl"), output);
    assert_eq!(workshop.calls(), 3);

    let restarted = workshop.run(&["--restart"]).await;
    assert_eq!(restarted.code, Some(0), "{}", restarted.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), others);
    assert_eq!(workshop.calls(), 5);
    let again = workshop.run(&["--restart"]).await;
    assert_eq!(again.code, Some(0));
    assert_eq!(workshop.calls(), 7, "begun anew, all is sent again");
}

#[tokio::test]
async fn a_run_that_cannot_begin_anew_leaves_the_earlier_one_whole() {
    let input = requests(&ids(3));
    let workshop = Workshop::new(&input, Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    workshop.write("in.jsonl", "name;age\nAda;36\n");
    let refused = workshop.run(&["--restart"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    workshop.write("in.jsonl", &input);
    let again = workshop.run(&[]).await;
    assert_eq!(again.code, Some(0), "{}", again.errors);
    assert_eq!(workshop.calls(), 3, "nothing is sent again");
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
}

#[tokio::test]
async fn lines_that_fail_are_in_a_file_of_their_own() {
    let ids = ids(6);
    let bad = json!({"status": 400});
    let input: String = ids
        .iter()
        .enumerate()
        .map(|(n, id)| chat(id, if n % 2 == 1 { bad.clone() } else { Value::Null }))
        .collect();
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(
        ran.errors.contains("3 of 6 requests succeeded: out.jsonl"),
        "{}",
        ran.errors
    );
    assert!(
        ran.errors.contains("3 failed: out.errors.jsonl"),
        "{}",
        ran.errors
    );
    assert_eq!(
        workshop.custom_ids("out.jsonl"),
        ["line-0", "line-2", "line-4"]
    );
    assert_eq!(
        workshop.custom_ids("out.errors.jsonl"),
        ["line-1", "line-3", "line-5"]
    );
    assert!(
        workshop
            .read("out.errors.jsonl")
            .contains("\"status_code\":400")
    );

    let elsewhere = workshop.run(&["--errors", "bad.jsonl"]).await;
    assert_eq!(elsewhere.code, Some(1));
    assert_eq!(
        workshop.read("bad.jsonl"),
        workshop.read("out.errors.jsonl")
    );
    assert_eq!(workshop.calls(), 6, "the same input again sends nothing");

    // All is well now: there is no errors file, and the old one does not stay.
    workshop.write("in.jsonl", &requests(&ids));
    assert_eq!(workshop.run(&["--restart"]).await.code, Some(0));
    assert!(!workshop.path("out.errors.jsonl").exists());
}

#[tokio::test]
async fn an_output_without_answers_is_empty() {
    let workshop = Workshop::new(&chat("a", json!({"status": 400})), Options::default()).await;
    assert_eq!(workshop.run(&[]).await.code, Some(1));
    assert_eq!(workshop.read("out.jsonl"), "");
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["a"]);
}

#[tokio::test]
async fn standard_input_is_an_input_like_any_other() {
    let workshop = Workshop::new("", Options::default()).await;
    let url = workshop.simulator.base_url();
    let args = ["run", "-i", "-", "-o", "out.jsonl", "--upstream", &url];
    let run = async |ids: &[String]| {
        let command = command_in(workshop.directory.path(), &args);
        Process::start(command, requests(ids).as_bytes())
            .ended()
            .await
    };
    for _ in 0..2 {
        let ran = run(&ids(20)).await;
        assert_eq!(ran.code, Some(0), "{}", ran.errors);
        assert_eq!(workshop.custom_ids("out.jsonl"), ids(20));
        assert_eq!(workshop.calls(), 20);
    }
    let more = run(&ids(21)).await;
    assert_eq!(more.code, Some(0), "{}", more.errors);
    assert_eq!(
        (workshop.custom_ids("out.jsonl"), workshop.calls()),
        (ids(21), 21)
    );
}

#[tokio::test]
async fn an_input_that_is_not_valid_is_refused_with_its_lines() {
    let good = chat("a", Value::Null);
    let input = format!("{good}{{\"custom_id\": 3}}\n\nno JSON\n{good}");
    let workshop = Workshop::new(&input, Options::default()).await;
    for _ in 0..2 {
        let refused = workshop.run(&[]).await;
        assert_eq!(refused.code, Some(3), "{}", refused.errors);
        for line in ["line 2: ", "line 4: ", "line 5: ", "(duplicate_custom_id)"] {
            assert!(refused.errors.contains(line), "{line}: {}", refused.errors);
        }
    }
    assert_eq!(workshop.calls(), 0);
    assert!(!workshop.path("out.jsonl").exists());

    // Those that are not shown are counted.
    workshop.write("in.jsonl", &"{}\n".repeat(500));
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3));
    assert!(
        refused.errors.contains("… and 497 more"),
        "{}",
        refused.errors
    );

    for (input, reason) in [
        ("", "error: in.jsonl is empty"),
        ("words\n", "error: in.jsonl: The first line is no JSON"),
    ] {
        workshop.write("in.jsonl", input);
        let refused = workshop.run(&["--restart"]).await;
        assert_eq!(refused.code, Some(3));
        assert!(refused.errors.contains(reason), "{}", refused.errors);
    }
    // Mended, it runs.
    workshop.write("in.jsonl", &good);
    // Nothing was sent, so there is nothing to throw away.
    let mended = workshop.run(&[]).await;
    assert_eq!(mended.code, Some(0), "{}", mended.errors);
}

#[tokio::test]
async fn many_faults_of_one_kind_are_grouped_and_flags_that_help_are_named() {
    let twice = requests(&ids(1)).repeat(21);
    let workshop = Workshop::new(&twice, Options::default()).await;
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    let shown = refused.errors.matches("line ").count();
    assert_eq!(shown, 3, "{}", refused.errors);
    let told = "… and 17 more (duplicate_custom_id)\n";
    assert!(refused.errors.contains(told), "{}", refused.errors);
    assert!(!refused.errors.contains("--ids"), "{}", refused.errors);
    // Nothing is shown before it: no empty line, and no progress of what never began.
    assert!(
        refused
            .errors
            .starts_with("The input is not valid:\n  line 2: "),
        "{}",
        refused.errors
    );
    assert!(!refused.errors.contains("\n\n"), "{}", refused.errors);

    workshop.write("in.jsonl", "{\"messages\": []}\n");
    let refused = workshop.run(&[]).await;
    assert!(refused.errors.contains("--ids takes"), "{}", refused.errors);
    let refused = workshop.run(&["--ids"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    assert!(
        refused.errors.contains("--model NAME"),
        "{}",
        refused.errors
    );
    assert!(
        !refused.errors.contains("--ids takes"),
        "{}",
        refused.errors
    );
    let ran = workshop.run(&["--ids", "--model", "m"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
}

async fn with_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.expect("packs");
    encoder.shutdown().await.expect("packs");
    encoder.into_inner()
}

#[tokio::test]
async fn an_input_may_be_compressed() {
    let workshop = Workshop::new(&requests(&ids(20)), Options::default()).await;
    let plain = workshop.read("in.jsonl").into_bytes();
    assert_eq!(workshop.run(&[]).await.code, Some(0));
    let gzip = with_gzip(&plain).await;
    let zstd = zstd::encode_all(&plain[..], 3).expect("packs");
    let url = workshop.simulator.base_url();
    let ran = async |input: &str, stdin: &[u8], more: &[&str]| {
        let run = ["run", "-i", input, "-o", "out.jsonl", "--upstream", &url];
        let command = command_in(workshop.directory.path(), &[&run[..], more].concat());
        Process::start(command, stdin).ended().await
    };
    for (name, packed) in [("in.jsonl.gz", &gzip), ("in.jsonl.zst", &zstd)] {
        std::fs::write(workshop.path(name), packed).expect("writes");
        // The content is the input: it is the same run.
        for (input, stdin) in [(name, &[][..]), ("-", packed)] {
            let same = ran(input, stdin, &[]).await;
            assert_eq!(same.code, Some(0), "{name} {input}: {}", same.errors);
            assert_eq!(workshop.calls(), 20, "{name} {input}: {}", same.errors);
        }
        let cut = &packed[..packed.len() / 2];
        let refused = ran("-", cut, &["--restart"]).await;
        assert_eq!(refused.code, Some(3), "{name}: {}", refused.errors);
        assert!(
            refused.errors.contains("standard input ends within its"),
            "{}",
            refused.errors
        );
    }
    let anew = ran("in.jsonl.zst", b"", &["--restart"]).await;
    assert_eq!(
        (anew.code, workshop.calls()),
        (Some(0), 40),
        "{}",
        anew.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(20));
    let dry = ran("-", &gzip, &["--restart", "--dry-run"]).await;
    assert!(
        dry.out.contains("20 requests would be sent"),
        "{}{}",
        dry.out,
        dry.errors
    );

    // As much as an upload may hold.
    workshop.write("nightshift.toml", "[limits]\nmax_file_bytes = 1000\n");
    let large = ran("in.jsonl.gz", b"", &["--restart"]).await;
    assert_eq!(large.code, Some(3), "{}", large.errors);
    assert!(
        large
            .errors
            .contains("in.jsonl.gz holds more than 1000 bytes"),
        "{}",
        large.errors
    );
}

#[tokio::test]
async fn what_cannot_begin_says_why() {
    let workshop = Workshop::new(&requests(&ids(1)), Options::default()).await;
    let directory: &Path = workshop.directory.path();
    let url = workshop.simulator.base_url();
    for (args, reason) in [
        (&["run", "-i", "none.jsonl", "-o", "o"][..], "none.jsonl"),
        (
            &["run", "-i", "in.jsonl", "-o", "no/such/place"],
            "no/such/place",
        ),
    ] {
        let args = [args, &["--upstream", &url]].concat();
        let refused = ended_in(directory, &args).await;
        assert_eq!(refused.code, Some(3), "{args:?}");
        assert!(
            refused.errors.contains(reason),
            "{args:?}: {}",
            refused.errors
        );
    }
    let refused = ended_in(directory, &["run", "-i", "in.jsonl", "-o", "o"]).await;
    assert_eq!(refused.code, Some(3));
    assert!(refused.errors.contains("--upstream"), "{}", refused.errors);
    assert_eq!(workshop.calls(), 0);
}

/// Nothing is sent, and to try again changes nothing.
#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_a_mistake_of_the_configuration() {
    let workshop = Workshop::new(&requests(&ids(1)), Options::default()).await;
    workshop.write("empty.pem", "no certificate");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    workshop.write("broken.pem", broken);
    for file in ["none.pem", "empty.pem", "broken.pem"] {
        let upstream = "[[upstreams]]\nbase_url = \"https://localhost/v1\"";
        let toml = format!("{upstream}\nca_file = \"{file}\"\n");
        workshop.write("nightshift.toml", &toml);
        let run = ["run", "-i", "in.jsonl", "-o", "out.jsonl"];
        for more in [&[][..], &["--dry-run"]] {
            let refused = ended_in(&workshop.path(""), &[&run[..], more].concat()).await;
            assert_eq!(refused.code, Some(3), "{file} {more:?}: {}", refused.errors);
        }
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_the_key_ends_a_run_at_once_and_loses_nothing() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-right-key")],
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(500)), options).await;
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    assert!(refused.errors.contains("401"), "{}", refused.errors);
    assert!(
        refused.errors.contains("Nothing was lost"),
        "{}",
        refused.errors
    );
    assert!(!workshop.path("out.errors.jsonl").exists());
    let calls = workshop.simulator.stats().total.calls;
    assert!(calls < 200, "{calls}");

    // The same command, with the key.
    let mut command = workshop.command(&["--api-key-env", "RIGHT_KEY"]);
    command.env("RIGHT_KEY", "sk-right-key");
    let ran = ended(command).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(500));
}

#[tokio::test]
async fn a_run_whose_calls_all_fail_alike_stops_and_says_why() {
    let gone = Options {
        models: vec!["another".to_owned()],
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(500)), gone).await;
    let missing = workshop.run(&[]).await;
    assert_eq!(missing.code, Some(4), "{}", missing.errors);
    assert!(
        missing.errors.contains("the name of the model"),
        "{}",
        missing.errors
    );
    assert!(!workshop.path("out.errors.jsonl").exists());
    assert!(workshop.simulator.stats().total.calls < 200);

    // A file with fewer lines than it would take.
    let workshop = Workshop::new(&requests(&ids(3)), Options::default()).await;
    let wrong = format!("{}/v1", workshop.simulator.base_url());
    let args = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--upstream",
        &wrong,
    ];
    let lost = ended_in(&workshop.path(""), &args).await;
    assert_eq!(lost.code, Some(4), "{}", lost.errors);
    assert!(lost.errors.contains("--upstream"), "{}", lost.errors);
    assert!(!lost.errors.contains("base_url"), "{}", lost.errors);
    assert!(!workshop.path("out.errors.jsonl").exists());
}

#[tokio::test]
async fn one_line_that_is_refused_does_not_stop_a_run() {
    let refused = chat("refused", json!({"status": 403}));
    let input = refused + &requests(&ids(40));
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&["--concurrency", "1"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(40));
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["refused"]);
}

#[tokio::test]
async fn a_configuration_is_read_and_the_concurrency_kept() {
    let options = Options {
        latency: std::time::Duration::from_millis(5),
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(60)), options).await;
    let toml = format!(
        "[[upstreams]]\nbase_url = \"{}\"\n",
        workshop.simulator.base_url()
    );
    workshop.write("nightshift.toml", &toml);
    let args = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--concurrency",
        "3",
    ];
    let ran = ended_in(workshop.directory.path(), &args).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(60));
    let most = workshop.simulator.stats().total.most_in_flight;
    assert!((1..=3).contains(&most), "{most}");
}

/// This takes the half minute that it is about.
#[tokio::test]
async fn a_run_without_an_upstream_gives_up_and_can_be_gone_on_with() {
    let workshop = Workshop::new(&requests(&ids(5)), Options::default()).await;
    let silent = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--upstream",
        "http://127.0.0.1:1",
    ];
    let gave_up = ended_in(workshop.directory.path(), &silent).await;
    assert_eq!(gave_up.code, Some(4));
    assert!(
        gave_up.errors.contains("no upstream has answered"),
        "{}",
        gave_up.errors
    );
    let waits = |line: &&str| line.contains("0/5") && line.contains("waiting: upstream default: ");
    let waited = gave_up.errors.lines().find(waits);
    assert!(
        waited.is_some_and(|line| line.contains("Connection refused")),
        "{}",
        gave_up.errors
    );
    assert!(!workshop.path("out.jsonl").exists());

    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(5));
}

#[tokio::test]
async fn no_file_of_a_run_takes_anothers_place() {
    let input = requests(&ids(3));
    let workshop = Workshop::new(&input, Options::default()).await;
    let url = workshop.simulator.base_url();
    for files in [
        ["-i", "in.jsonl", "-o", "./in.jsonl", "--errors", "e.jsonl"],
        ["-i", "in.jsonl", "-o", "o.jsonl", "--errors", "o.jsonl"],
        [
            "-i",
            "in.jsonl",
            "-o",
            "o.jsonl",
            "--errors",
            "../in.jsonl/../in.jsonl",
        ],
    ] {
        let files = files.map(|file| match file {
            "../in.jsonl/../in.jsonl" => workshop.path("in.jsonl").display().to_string(),
            other => other.to_owned(),
        });
        let mut args = vec!["run", "--upstream", &url];
        args.extend(files.iter().map(String::as_str));
        let ran = ended_in(workshop.path("").as_path(), &args).await;
        assert_eq!(ran.code, Some(3), "{args:?}");
        assert!(ran.errors.contains("are the same file"), "{}", ran.errors);
    }
    // The name that failed requests go to, unless one is given.
    workshop.write("o.errors.jsonl", &input);
    let args = [
        "run",
        "--upstream",
        &url,
        "-i",
        "o.errors.jsonl",
        "-o",
        "o.jsonl",
    ];
    let ran = ended_in(workshop.path("").as_path(), &args).await;
    assert!(ran.errors.contains("are the same file"), "{}", ran.errors);
    assert_eq!(
        workshop.files(),
        ["in.jsonl", "o.errors.jsonl"],
        "nothing was made"
    );
    assert_eq!(workshop.read("in.jsonl"), input);
}

#[tokio::test]
async fn only_an_errors_file_of_its_own_is_removed() {
    let ids = ids(2);
    let workshop = Workshop::new(&requests(&ids), Options::default()).await;
    workshop.write("out.errors.jsonl", "somebody else's\n");
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3));
    assert!(
        refused.errors.contains("is there already"),
        "{}",
        refused.errors
    );
    assert_eq!(workshop.run(&["--restart"]).await.code, Some(0));
    assert_eq!(workshop.read("out.errors.jsonl"), "somebody else's\n");

    workshop.write("in.jsonl", &chat("a", json!({"status": 400})));
    assert_eq!(workshop.run(&["--restart"]).await.code, Some(1));
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["a"]);
    // Nor is one overwritten that a later run of the same output names.
    workshop.write("foreign.jsonl", "somebody else's\n");
    let refused = workshop.run(&["--errors", "foreign.jsonl"]).await;
    assert_eq!(refused.code, Some(3));
    assert_eq!(workshop.read("foreign.jsonl"), "somebody else's\n");
    workshop.write("in.jsonl", &requests(&ids));
    assert_eq!(workshop.run(&["--restart"]).await.code, Some(0));
    assert!(
        !workshop.path("out.errors.jsonl").exists(),
        "it was this output's"
    );
}

#[tokio::test]
async fn the_endpoint_is_that_of_the_first_request_however_far_down_it_is() {
    let body = json!({"model": "m", "input": "x"});
    let line = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body,
    });
    let input = format!("{}{line}\n", "\n".repeat(70_000));
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ["a"]);
}

//! `nightshift run`: what its flags change.

use nightshift::internals::simulate::{ApiKey, Options};
use serde_json::{Value, json};

use super::command_in;
use super::run::{Workshop, requests};
use crate::support::binary::{Process, ended};
use crate::support::{chat, eventually, ids};

fn line(custom_id: &str, url: &str, body: &Value) -> String {
    let line = json!({"custom_id": custom_id, "method": "POST", "url": url, "body": body});
    format!("{line}\n")
}

/// The answers' bodies, in their order.
fn bodies(workshop: &Workshop) -> Vec<Value> {
    let text = workshop.read("out.jsonl");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("is JSON"));
    lines.map(|line| line["response"]["body"].clone()).collect()
}

#[tokio::test]
async fn the_lines_of_a_file_may_go_to_different_endpoints() {
    let input = [
        line("a", "/v1/embeddings", &json!({"model": "m", "input": "x"})),
        chat("b", Value::Null),
        line(
            "c",
            "/v1/completions",
            &json!({"model": "m", "prompt": "x"}),
        ),
    ];
    let workshop = Workshop::new(&input.concat(), Options::default()).await;
    let ran = workshop.run(&[]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ["a", "b", "c"]);
    let kinds: Vec<Value> = bodies(&workshop)
        .iter()
        .map(|body| body["object"].clone())
        .collect();
    assert_eq!(kinds, ["list", "chat.completion", "text_completion"]);

    let unknown = line("d", "/v1/score", &json!({"model": "m"}));
    workshop.write("in.jsonl", &(chat("b", Value::Null) + &unknown));
    let refused = workshop.run(&["--restart"]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    for word in ["line 2: ", "/v1/responses", "/v1/embeddings", "invalid_url"] {
        assert!(refused.errors.contains(word), "{word}: {}", refused.errors);
    }
}

#[tokio::test]
async fn bare_bodies_get_an_id_and_a_model() {
    let input = "{\"input\": \"first\"}\n\n{\"messages\": []}\n{\"custom_id\": \"mine\", \"prompt\": \"x\"}\n";
    let workshop = Workshop::new(input, Options::default()).await;
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(3), "{}", refused.errors);
    let ran = workshop.run(&["--ids", "--model", "bge-m3"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(
        workshop.custom_ids("out.jsonl"),
        ["line-1", "line-3", "mine"]
    );
    assert!(
        bodies(&workshop)
            .iter()
            .all(|body| body["model"] == "bge-m3")
    );
}

#[tokio::test]
async fn a_part_is_tried_first_and_what_is_set_is_a_part_of_what_is_asked() {
    let workshop = Workshop::new(&requests(&ids(10)), Options::default()).await;
    let none = workshop.run(&["--limit", "0"]).await;
    assert_eq!(none.code, Some(2), "{}", none.errors);
    let tried = workshop.run(&["--limit", "3"]).await;
    assert_eq!(
        (tried.code, workshop.calls()),
        (Some(0), 3),
        "{}",
        tried.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(3));
    let all = workshop.run(&[]).await;
    assert_eq!(
        (all.code, workshop.calls()),
        (Some(0), 10),
        "{}",
        all.errors
    );
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(10));

    // Another temperature is another question. None of the answers is to it.
    let warmer = workshop.run(&["--set", "temperature=0.9"]).await;
    assert_eq!(
        (warmer.code, workshop.calls()),
        (Some(3), 10),
        "{}",
        warmer.errors
    );
    let warmer = workshop
        .run(&["--set", "temperature=0.9", "--restart"])
        .await;
    assert_eq!(
        (warmer.code, workshop.calls()),
        (Some(0), 20),
        "{}",
        warmer.errors
    );
}

/// A key goes where its owner sends it, and nowhere else.
#[tokio::test]
async fn the_environment_of_openais_clients_is_used_where_nothing_else_is_said() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-of-the-environment")],
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(5)), options).await;
    let url = workshop.simulator.base_url();
    let run = |more: &[&str]| {
        let usual = ["run", "-i", "in.jsonl", "-o", "out.jsonl"];
        let mut command = command_in(&workshop.path(""), &[&usual[..], more].concat());
        command.env("OPENAI_API_KEY", "sk-of-the-environment");
        command
    };
    let unasked = ended(run(&["--upstream", &url])).await;
    assert_eq!(unasked.code, Some(4), "{}", unasked.errors);
    assert!(unasked.errors.contains("401"), "{}", unasked.errors);

    let mut command = run(&[]);
    command.env("OPENAI_BASE_URL", &url);
    let ran = ended(command).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let told = format!("Sending to {url}, as OPENAI_BASE_URL says, with the key in OPENAI_API_KEY");
    assert!(ran.errors.contains(&told), "{}", ran.errors);
    assert!(!ran.errors.contains("sk-of"), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(5));
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let workshop = Workshop::new(&requests(&ids(5)), Options::default()).await;
    let dry = workshop.run(&["--dry-run", "--limit", "4"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.errors);
    for word in ["4 requests", "sim-small", &workshop.simulator.base_url()] {
        assert!(dry.out.contains(word), "{word}: {}", dry.out);
    }
    workshop.write("in.jsonl", &(chat("a", Value::Null) + "{}\n"));
    let wrong = workshop.run(&["--dry-run"]).await;
    assert_eq!(wrong.code, Some(3), "{}", wrong.out);
    assert!(wrong.errors.contains("line 2: "), "{}", wrong.errors);
    assert_eq!(
        (workshop.calls(), workshop.files()),
        (0, vec!["in.jsonl".to_owned()])
    );
}

#[tokio::test]
async fn a_program_gets_a_summary_and_nothing_else() {
    let bad = json!({"status": 400});
    let input = requests(&ids(3)) + &chat("bad-1", bad.clone()) + &chat("bad-2", bad);
    let workshop = Workshop::new(&input, Options::default()).await;
    let ran = workshop.run(&["--quiet", "--json"]).await;
    assert_eq!((ran.code, ran.errors.as_str()), (Some(1), ""));
    let summary: Value = serde_json::from_str(&ran.out).expect("is JSON");
    assert_eq!(summary["status"], "completed");
    let counts = ["total", "completed", "failed", "kept"].map(|name| summary[name].as_i64());
    assert_eq!(counts, [Some(5), Some(3), Some(2), Some(0)]);
    assert!(summary["tokens"]["total"].as_i64() > Some(0), "{summary}");
    assert!(summary["seconds"].is_number());
    assert_eq!(summary["errors"], "out.errors.jsonl");
    let failures = summary["failures"].as_array().expect("is a list");
    assert_eq!(failures.len(), 1, "of one cause: {summary}");
    assert_eq!(
        (&failures[0]["count"], &failures[0]["custom_id"]),
        (&json!(2), &json!("bad-1"))
    );

    let piped = ended(workshop.command_to("-", &["--quiet", "--json", "--state", "kept"])).await;
    assert_eq!(piped.out.lines().count(), 3, "answers alone");
    let summary: Value = serde_json::from_str(&piped.errors).expect("is JSON");
    assert_eq!(
        (&summary["completed"], &summary["output"]),
        (&json!(3), &Value::Null)
    );
}

/// However the run comes out, a program reads one summary, with the reason.
#[tokio::test]
async fn a_program_gets_a_summary_of_what_did_not_begin_too() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-right-key")],
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(30)), options).await;
    let told = async |more: &[&str], code: i32, status: &str, reason: &str| {
        let more = [more, &["--json", "--quiet"]].concat();
        let ran = workshop.run(&more).await;
        assert_eq!(ran.code, Some(code), "{more:?}: {}", ran.errors);
        assert_eq!(ran.out.lines().count(), 1, "{more:?}: {}", ran.out);
        let summary: Value = serde_json::from_str(&ran.out).expect("is JSON");
        assert_eq!(summary["status"], status, "{more:?}: {summary}");
        let told = summary["reason"].as_str().expect("is a text");
        assert!(told.contains(reason), "{more:?}: {reason}: {told}");
        summary
    };
    let refused = told(&[], 4, "stopped", "401").await;
    assert_eq!(refused["total"], 30, "{refused}");
    workshop.write("in.jsonl", &(chat("a", Value::Null) + "{}\n{}\n"));
    let line = "line 2: Missing required parameter: 'custom_id'. (missing_required_parameter); \
                and 1 more";
    told(&["--restart"], 3, "invalid", line).await;
    told(&["--restart", "--dry-run"], 3, "invalid", line).await;
    workshop.write("foreign.jsonl", "somebody else's");
    told(
        &["--errors", "foreign.jsonl"],
        3,
        "invalid",
        "is there already",
    )
    .await;
    workshop.write("in.jsonl", "");
    told(&["--restart"], 3, "invalid", "in.jsonl is empty").await;
    told(&["--header", "te: x"], 2, "invalid", "--header te").await;

    let run = ["run", "-i", "in.jsonl", "-o", "-", "--json"];
    let lost = ended(command_in(&workshop.path(""), &run)).await;
    assert_eq!(lost.code, Some(3), "{}", lost.errors);
    let summary = lost.errors.lines().find(|line| line.starts_with('{'));
    let summary: Value = serde_json::from_str(summary.expect("is there")).expect("is JSON");
    let reason = summary["reason"].as_str().expect("is a text");
    assert!(reason.contains("there is no upstream"), "{reason}");
}

/// The flags, and not the input, have changed.
#[tokio::test]
async fn a_flag_that_changes_the_requests_is_told_as_such() {
    let workshop = Workshop::new(&requests(&ids(4)), Options::default()).await;
    assert_eq!(workshop.run(&["--model", "a"]).await.code, Some(0));
    for (more, told) in [
        (&["--model", "b"][..], "error: --model has changed"),
        (&[], "error: --model has changed"),
        (
            &["--model", "b", "--set", "temperature=1", "--set", "top_p=1"],
            "error: --model, --set temperature and --set top_p have changed",
        ),
    ] {
        let refused = workshop.run(more).await;
        assert_eq!(refused.code, Some(3), "{more:?}: {}", refused.errors);
        assert!(
            refused.errors.contains(told),
            "{more:?}: {}",
            refused.errors
        );
        assert!(
            !refused.errors.contains("another input"),
            "{}",
            refused.errors
        );
    }
    let part = workshop.run(&["--model", "a", "--limit", "2"]).await;
    assert_eq!(part.code, Some(0), "{}", part.errors);
    let told = "--limit has changed: 2 answers are kept, 0 requests are sent";
    assert!(part.errors.contains(told), "{}", part.errors);
    workshop.write("in.jsonl", &requests(&ids(5)));
    let both = workshop.run(&["--model", "a"]).await;
    assert_eq!(both.code, Some(0), "{}", both.errors);
    assert!(
        both.errors
            .contains("The input and --limit have changed: 4 answers are kept"),
        "{}",
        both.errors
    );
    assert_eq!(workshop.calls(), 5);
}

/// Who gave no configuration is told of flags and variables.
#[tokio::test]
async fn what_is_wrong_with_an_upstream_is_told_in_the_users_words() {
    let options = Options {
        api_keys: vec![ApiKey::new("key", "sk-right-key")],
        ..Options::default()
    };
    let workshop = Workshop::new(&requests(&ids(3)), options).await;
    let refused = workshop.run(&[]).await;
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    assert!(
        refused
            .errors
            .contains("check --api-key-env: the key is missing or wrong"),
        "{}",
        refused.errors
    );
    let run = ["run", "-i", "in.jsonl", "-o", "out.jsonl"];
    let mut command = command_in(&workshop.path(""), &run);
    command.env("OPENAI_BASE_URL", "ftp://nowhere");
    let wrong = ended(command).await;
    assert_eq!(wrong.code, Some(3), "{}", wrong.errors);
    assert!(
        wrong.errors.contains("OPENAI_BASE_URL: expected a URL"),
        "{}",
        wrong.errors
    );
    assert!(!wrong.errors.contains("--upstream"), "{}", wrong.errors);
}

#[tokio::test]
async fn a_run_stops_when_too_much_fails_and_loses_nothing() {
    let bad = json!({"status": 400, "times": 1});
    let input: String = ids(50)
        .iter()
        .enumerate()
        .map(|(n, id)| chat(id, if n == 0 { Value::Null } else { bad.clone() }))
        .collect();
    let options = Options {
        latency: std::time::Duration::from_millis(50),
        ..Options::default()
    };
    let workshop = Workshop::new(&input, options).await;
    let stopped = workshop
        .run(&["--max-failures", "2", "--concurrency", "1"])
        .await;
    assert_eq!(stopped.code, Some(1), "{}", stopped.errors);
    assert!(
        stopped.errors.contains("--max-failures"),
        "{}",
        stopped.errors
    );
    assert!(!workshop.path("out.jsonl").exists());
    let mut code = None;
    for _ in 0..2 {
        code = workshop.run(&["--retry-failed"]).await.code;
    }
    assert_eq!(code, Some(0));
    assert_eq!(workshop.custom_ids("out.jsonl"), ids(50));
}

#[tokio::test]
async fn calls_begin_at_a_rate_and_a_run_that_waits_for_it_stops_at_once() {
    let workshop = Workshop::new(&requests(&ids(20)), Options::default()).await;
    let running = Process::start(workshop.command(&["--rate", "1/d"]), b"");
    eventually("the first call is answered", async || {
        workshop.simulator.stats().total.answered == 1
    })
    .await;
    running.signal("INT");
    assert_eq!(running.ended().await.code, Some(130));
    assert_eq!(workshop.calls(), 1);
    let ran = workshop.run(&["--rate", "1000/s"]).await;
    assert_eq!(
        (ran.code, workshop.calls()),
        (Some(0), 20),
        "{}",
        ran.errors
    );
}

#[tokio::test]
async fn attempts_time_and_headers_are_those_of_the_flags() {
    let input = chat("slow", json!({"hang": true}))
        + &chat("fails", json!({"status": 500}))
        + &requests(&ids(3));
    let workshop = Workshop::new(&input, Options::default()).await;
    let more = [
        "--timeout",
        "500ms",
        "--max-attempts",
        "1",
        "--header",
        "x-team: batch",
    ];
    let ran = workshop.run(&more).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(workshop.custom_ids("out.errors.jsonl"), ["slow", "fails"]);
    assert_eq!(workshop.calls(), 5, "each costs one call");

    for (header, word) in [
        ("no colon", "NAME: VALUE"),
        ("content-length: 3", "each call"),
    ] {
        let refused = workshop.run(&["--header", header]).await;
        assert!(matches!(refused.code, Some(2 | 3)), "{header}");
        assert!(
            refused.errors.contains(word),
            "{header}: {}",
            refused.errors
        );
    }
}

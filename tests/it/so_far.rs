//! The lines of a batch that are finished, read while the batch runs.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::engines::execute;
use crate::support::{Batch, CHAT, Server, chat, granting, ids, on_every_engine};

const LINES: usize = 30;

/// What one request gets.
struct Part {
    text: String,
    next: u64,
    is_complete: bool,
}

async fn part(server: &Server, batch: &Batch, which: &str, query: &str) -> Part {
    let path = format!("/v1/batches/{}/{which}?{query}", batch.id);
    let answer = server.client().get(server.url(&path)).send().await;
    let answer = answer.expect("answers");
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    let header = |name: &str| {
        let value = answer.headers().get(name).expect("is there");
        value.to_str().expect("is text").to_owned()
    };
    let (next, complete) = (header("x-nightshift-next"), header("x-nightshift-complete"));
    assert_eq!(header("content-type"), "application/jsonl");
    Part {
        next: next.parse().expect("is a number"),
        is_complete: complete == "true",
        text: answer.text().await.expect("reads"),
    }
}

/// The numbers in the input file of the lines of an answer. The input begins with a blank line.
fn numbers(text: &str, ids: &[String]) -> Vec<u64> {
    let lines = text.lines();
    lines
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("is JSON");
            let id = line["custom_id"].as_str().expect("has an id").to_owned();
            let place = ids.iter().position(|known| *known == id);
            place.expect("is of the input") as u64 + 2
        })
        .collect()
}

/// A batch behind a blank line, of which every fifth line fails and none is answered yet.
async fn begun(server: &Server) -> (Batch, Vec<String>) {
    let ids = ids(LINES);
    let lines = ids.iter().enumerate().map(|(n, id)| {
        let fails = n % 5 == 4;
        chat(
            id,
            if fails {
                json!({"status": 400})
            } else {
                Value::Null
            },
        )
    });
    let jsonl: String = std::iter::once("\n".to_owned()).chain(lines).collect();
    (server.create_batch(jsonl, CHAT).await, ids)
}

async fn finished_lines_are_read_in_input_order_while_the_batch_runs() {
    let server = Server::with("").upstream(granting(0)).await;
    let (batch, ids) = begun(&server).await;
    server
        .until(&batch, |batch| batch.status == "in_progress")
        .await;
    let none = part(&server, &batch, "output", "").await;
    assert_eq!(
        (none.text.as_str(), none.next, none.is_complete),
        ("", 0, false)
    );

    for done in [7, 20] {
        let before = server.batch(&batch).await.done();
        server.simulator.grant(done - before);
        server.until(&batch, |batch| batch.done() == done).await;
        let output = part(&server, &batch, "output", "").await;
        let errors = part(&server, &batch, "errors", "").await;
        let (good, bad) = (numbers(&output.text, &ids), numbers(&errors.text, &ids));
        assert_eq!(good.len() + bad.len(), done);
        assert!(good.is_sorted() && bad.is_sorted(), "{good:?} {bad:?}");
        assert!(bad.iter().all(|number| number % 5 == 1), "{bad:?}");
        assert_eq!(output.next, *good.last().expect("some are answered"));
        assert!(!output.is_complete && !errors.is_complete);

        // In parts, each behind the one before.
        let (mut together, mut after) = (String::new(), 0);
        loop {
            let next = part(&server, &batch, "output", &format!("after={after}&limit=3")).await;
            let lines = numbers(&next.text, &ids);
            assert!(lines.len() <= 3, "{lines:?}");
            assert!(!next.is_complete);
            if lines.is_empty() {
                assert_eq!(next.next, after);
                break;
            }
            assert_eq!(Some(next.next), lines.last().copied());
            together.push_str(&next.text);
            after = next.next;
        }
        assert_eq!(together, output.text);
    }
}

async fn what_has_ended_is_what_its_files_have() {
    let server = Server::start().await;
    let (batch, _) = begun(&server).await;
    let batch = server.ended(&batch).await;
    for (which, file) in [("output", "output_file_id"), ("errors", "error_file_id")] {
        let file = batch[file].as_str().expect("is there").to_owned();
        let content = server.content(&file).await;
        let whole = part(&server, &batch, which, "").await;
        assert!(whole.is_complete);
        assert_eq!(whole.text, content);
        let lines = content.lines().count();
        for (limit, is_complete) in [(lines - 1, false), (lines, true)] {
            let some = part(&server, &batch, which, &format!("limit={limit}")).await;
            assert_eq!(some.text.lines().count(), limit);
            assert_eq!(some.is_complete, is_complete, "{limit} of {lines}");
        }
        let behind = part(&server, &batch, which, &format!("after={}", whole.next)).await;
        assert_eq!((behind.text.as_str(), behind.next), ("", whole.next));
        assert!(behind.is_complete);
    }
}

async fn what_cannot_be_read_is_said() {
    let mut server = Server::start().await;
    server.leave_broken();
    let (batch, _) = begun(&server).await;
    let batch = server.ended(&batch).await;
    let path = format!("/v1/batches/{}/output", batch.id);
    let status = async |path: &str| {
        let answer = server.client().get(server.url(path)).send().await;
        let answer = answer.expect("answers");
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.expect("is JSON");
        let error = &body["error"];
        (status, error["code"].clone(), error["param"].clone())
    };
    for (query, code, param) in [
        ("after=-1", "integer_below_min_value", "after"),
        ("after=a", "invalid_type", "after"),
        ("limit=0", "integer_below_min_value", "limit"),
        ("limit=100001", "integer_above_max_value", "limit"),
        ("follow=true", "invalid_value", "follow"),
        ("merged=true", "invalid_value", "merged"),
    ] {
        let expected = (400, json!(code), json!(param));
        assert_eq!(
            status(&format!("{path}?{query}")).await,
            expected,
            "{query}"
        );
    }
    let theirs = server.other();
    let answer = theirs.client().get(theirs.url(&path)).send().await;
    assert_eq!(answer.expect("answers").status(), StatusCode::NOT_FOUND);

    // The numbers of lines are those of the input file.
    let input = batch["input_file_id"].as_str().expect("is there");
    let forget = format!("DELETE FROM chunks WHERE file_id = '{input}'");
    execute(&server.database, &forget).await;
    assert_eq!(status(&path).await, (409, json!("input_gone"), Value::Null));

    let output = batch["output_file_id"].as_str().expect("is there");
    let file = server.url(&format!("/v1/files/{output}"));
    let deleted = server.client().delete(file).send().await.expect("answers");
    assert_eq!(deleted.status(), StatusCode::OK);
    assert_eq!(
        status(&path).await,
        (410, json!("output_gone"), Value::Null)
    );
}

on_every_engine![
    finished_lines_are_read_in_input_order_while_the_batch_runs,
    what_has_ended_is_what_its_files_have,
    what_cannot_be_read_is_said,
];

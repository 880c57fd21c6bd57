//! How a run went, for programs, and what its failures have in common.

use std::time::Duration;

use futures::StreamExt as _;
use serde::Serialize;
use serde_json::Value;

use super::generation::TENANT;
use crate::store::{Batch, Store};
use crate::transfer;

/// Causes that are counted each by itself. Failures of any other cause are counted together.
const CAUSES_MAX: usize = 20;
/// How much of a message is shown.
const MESSAGE_CHARACTERS: usize = 200;
/// What a line of the errors file may have at most to be looked at.
const LINE_BYTES_MAX: usize = 1 << 20;
const OTHERS: &str = "other causes";

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    /// `completed`, `interrupted`, `stopped`, `invalid` or `dry_run`.
    pub(super) status: &'a str,
    /// Why it is not `completed`; `null`: it is, or it was a dry run.
    pub(super) reason: Option<String>,
    pub(super) total: i64,
    pub(super) completed: i64,
    pub(super) failed: i64,
    /// Answers of earlier runs, among the completed.
    pub(super) kept: u64,
    /// Of a dry run: requests that would be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to_send: Option<u64>,
    pub(super) tokens: Tokens,
    pub(super) seconds: f64,
    /// `null`: standard output.
    pub(super) output: Option<String>,
    /// `null`: nothing failed.
    pub(super) errors: Option<String>,
    pub(super) failures: Vec<Failures>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Tokens {
    pub(super) input: i64,
    pub(super) output: i64,
    pub(super) total: i64,
}

/// Failures that have one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Failures {
    pub(super) cause: String,
    pub(super) count: u64,
    /// The first line that failed so.
    pub(super) custom_id: String,
}

impl<'a> Summary<'a> {
    pub(super) fn new(
        status: &'a str,
        batch: Option<&Batch>,
        kept: u64,
        elapsed: Duration,
    ) -> Summary<'a> {
        let counts = batch.map(|batch| batch.counts).unwrap_or_default();
        let usage = batch.map(|batch| batch.usage).unwrap_or_default();
        let earlier = i64::try_from(kept).unwrap_or(i64::MAX);
        Summary {
            status,
            reason: None,
            total: counts.total + earlier,
            completed: counts.completed + earlier,
            failed: counts.failed,
            kept,
            to_send: None,
            tokens: Tokens {
                input: usage.input_tokens,
                output: usage.output_tokens,
                total: usage.total_tokens,
            },
            seconds: (elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
            output: None,
            errors: None,
            failures: Vec::new(),
        }
    }

    /// The same, with the reason why the run is not completed.
    pub(super) fn because(self, reason: String) -> Summary<'a> {
        Summary {
            reason: Some(reason),
            ..self
        }
    }
}

/// The failures of an errors file by what they have in common, the first cause first.
pub(super) async fn failures(store: &Store, file_id: &str) -> anyhow::Result<Vec<Failures>> {
    let mut found = Vec::new();
    let Some(file) = store.file(TENANT, file_id).await? else {
        return Ok(found);
    };
    let length = u64::try_from(file.bytes).unwrap_or(0);
    let mut blocks = std::pin::pin!(transfer::content(store, &file, 0..length));
    let mut line = Vec::new();
    while let Some(block) = blocks.next().await {
        for part in block?.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(line.len());
            line.extend_from_slice(&part[..room.min(part.len())]);
            if part.ends_with(b"\n") {
                count(&mut found, &line);
                line.clear();
            }
        }
    }
    Ok(found)
}

fn count(found: &mut Vec<Failures>, line: &[u8]) {
    let (custom_id, cause) = match serde_json::from_slice::<Value>(line) {
        Ok(line) => (text(&line["custom_id"]), cause(&line)),
        Err(_) => (
            String::new(),
            "an error that is too long to be shown".to_owned(),
        ),
    };
    let alike =
        |failures: &&mut Failures| without_digits(&failures.cause) == without_digits(&cause);
    if let Some(failures) = found.iter_mut().find(alike) {
        failures.count += 1;
        return;
    }
    let others = found.len() >= CAUSES_MAX;
    if others && let Some(last) = found.last_mut().filter(|last| last.cause == OTHERS) {
        last.count += 1;
        return;
    }
    found.push(Failures {
        cause: if others { OTHERS.to_owned() } else { cause },
        count: 1,
        custom_id,
    });
}

/// Why a line of an errors file failed, in short.
fn cause(line: &Value) -> String {
    let (code, message) = match &line["error"] {
        Value::Null => {
            let response = &line["response"];
            let message = &response["body"]["error"]["message"];
            (response["status_code"].to_string(), message)
        }
        error => (text(&error["code"]), &error["message"]),
    };
    let message: String = text(message).chars().take(MESSAGE_CHARACTERS).collect();
    format!("{code} {message}").trim_end().to_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Messages that differ in a number, such as a length or an id, are of one cause.
fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn failures_are_counted_by_their_cause() {
        let mut found = Vec::new();
        let answered = |id: &str, status: u16, message: &str| {
            let body = json!({"error": {"message": message}});
            json!({"custom_id": id, "response": {"status_code": status, "body": body}, "error": null})
        };
        for line in [
            answered("a", 400, "17 tokens are too many"),
            answered("b", 404, "no such model"),
            answered("c", 400, "99 tokens are too many"),
            json!({"custom_id": "d", "response": null, "error": {"code": "timeout", "message": "x"}}),
        ] {
            count(&mut found, line.to_string().as_bytes());
        }
        let told: Vec<_> = found
            .iter()
            .map(|f| (f.cause.as_str(), f.count, f.custom_id.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("400 17 tokens are too many", 2, "a"),
                ("404 no such model", 1, "b"),
                ("timeout x", 1, "d"),
            ]
        );
        for other in 0..100_u8 {
            let message = format!("cause {}", "x".repeat(usize::from(other)));
            count(
                &mut found,
                answered("e", 500, &message).to_string().as_bytes(),
            );
        }
        assert_eq!(found.len(), CAUSES_MAX + 1);
        assert_eq!(found.iter().map(|f| f.count).sum::<u64>(), 104);
    }
}

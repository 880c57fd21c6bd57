//! One tiny request to a route, to see whether the route works.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::call::{explain, read};
use super::client::{Client, Post, Reply};
use super::result::CallResult;
use super::timer::Timer;
use crate::domain::clock::Clock;
use crate::domain::usage::Usage;
use crate::upstream::limits::memory::Budget;
use crate::upstream::provider::edit::Edit;
use crate::upstream::provider::{Encoded, Line};

/// An answer is not longer than this, in bytes.
const ANSWER_MAX: usize = 1 << 20;
const CHAT: &str = "/v1/chat/completions";

/// What came of a tiny request to a route.
#[derive(Debug)]
pub struct Trial {
    /// What the configuration calls the model.
    pub model: String,
    /// The upstream's name.
    pub upstream: String,
    /// By which of the upstream's keys, where it has several.
    pub key: Option<String>,
    /// What the upstream calls the model.
    pub sent_as: String,
    /// How the call went, or why there was no answer, in words.
    pub outcome: Result<TrialAnswer, String>,
}

/// An answer to a tiny request.
#[derive(Debug)]
pub struct TrialAnswer {
    pub status: u16,
    pub took: Duration,
    pub usage: Option<Usage>,
    /// Why it is no success, in words.
    pub problem: Option<String>,
}

/// Where a tiny request goes.
#[derive(Debug)]
pub(in crate::upstream) struct Way<'a> {
    pub(in crate::upstream) client: &'a Client,
    pub(in crate::upstream) key: usize,
    /// What a line calls the model, and what the upstream calls it.
    pub(in crate::upstream) model: &'a str,
    pub(in crate::upstream) sent_as: &'a str,
    pub(in crate::upstream) edit: Option<&'a Edit>,
}

/// All calls of a trial together take no longer.
const LONGEST: Duration = Duration::from_mins(1);

/// Calls with the smallest request of each kind until one is taken. Where none is, the first one
/// says why.
pub(in crate::upstream) async fn make(way: &Way<'_>, clock: &Clock) -> Result<TrialAnswer, String> {
    let mut first = None;
    let end = Instant::now() + LONGEST;
    for (path, body) in requests(way.model) {
        let Ok((result, outcome)) = timeout_at(end, call(way, clock, path, &body)).await else {
            break;
        };
        if !may_be_of_the_kind(result) {
            return outcome;
        }
        first.get_or_insert(outcome);
    }
    let in_time = || {
        Err(format!(
            "there was no answer within {} s",
            LONGEST.as_secs()
        ))
    };
    first.unwrap_or_else(in_time)
}

/// Whether a request of another kind may be taken. Servers that have a model for one kind alone say
/// in many ways that they do not know it for another.
fn may_be_of_the_kind(result: CallResult) -> bool {
    matches!(
        result,
        CallResult::Rejected
            | CallResult::Unsupported
            | CallResult::ModelMissing
            | CallResult::Misdirected
            | CallResult::Refused
    )
}

/// Some models take no `max_tokens`, and some no chat.
fn requests(model: &str) -> [(&'static str, Value); 3] {
    let messages = json!([{"role": "user", "content": "Say ok."}]);
    [
        (
            CHAT,
            json!({"model": model, "messages": messages, "max_tokens": 16}),
        ),
        (
            CHAT,
            json!({"model": model, "messages": messages, "max_completion_tokens": 16}),
        ),
        ("/v1/embeddings", json!({"model": model, "input": "ok"})),
    ]
}

async fn call(
    way: &Way<'_>,
    clock: &Clock,
    path: &'static str,
    body: &Value,
) -> (CallResult, Result<TrialAnswer, String>) {
    let body = Bytes::from(body.to_string());
    let line = Line {
        path,
        model: way.sent_as,
        body: &body,
        edit: way.edit,
        clock,
    };
    let (sent, asked) = match way.client.provider.encode(&line) {
        Ok(Encoded::Unchanged) => (body.clone(), None),
        Ok(Encoded::Spliced(splice, asked)) => (splice.copy(), asked),
        Ok(Encoded::Translated { body, asked }) => (body, Some(asked)),
        Err(unsupported) => {
            let cause = explain(way.client, unsupported);
            return (CallResult::Unsupported, Err(cause));
        }
    };
    let mut reservation = Budget::new(ANSWER_MAX).reserve();
    let mut timer = Timer::default();
    let begun = Instant::now();
    let post = Post {
        key: way.key,
        path,
        model: way.sent_as,
        body: sent,
        traceparent: None,
        assembly: way.client.provider.assembly(path, asked.as_ref()),
    };
    match way.client.post(post, &mut timer, &mut reservation).await {
        Err(failure) => (failure.result, Err(failure.cause)),
        Ok(Reply { head, body, .. }) => {
            let took = begun.elapsed();
            let (ended, answer) = read(way.client, clock, &head, (body, asked), reservation);
            let is_good = ended.result == CallResult::Succeeded;
            let answer = TrialAnswer {
                status: answer.status,
                took,
                usage: answer.usage,
                problem: (!is_good).then_some(ended.cause),
            };
            (ended.result, Ok(answer))
        }
    }
}

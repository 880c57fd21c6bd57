//! One call: sent, read, and judged.

use bytes::Bytes;

use crate::domain::outcome::{Form, Reading};
use crate::upstream::attempt::client::{Failure, FailureKind, Received};
use crate::upstream::attempt::history::Next;
use crate::upstream::limits::memory::Charge;
use crate::upstream::pool::{Permit, Pool, Report};
use crate::upstream::provider::Folded;
use crate::upstream::provider::classify::{self, CallResult, Cost};
use crate::upstream::{Again, Answer, Call, Cause, CauseKind, History, Timer, Verdict};

/// How much of a body that is not JSON a line's error repeats.
const EXCERPT_CHARS: usize = 100;

impl Pool {
    /// One call: sends, reads the whole answer, frees the place, and judges. Dropped midway, it
    /// breaks off the call and frees the place. The timer may have been another call's before.
    pub async fn call(
        &self,
        permit: Permit,
        call: Call,
        history: &mut History,
        timer: &mut Timer,
    ) -> Verdict {
        let Call {
            path,
            body,
            mut charge,
            traceparent,
        } = call;
        let target = permit.target();
        let mut copy = None;
        if let Some(splice) = target.edit.as_ref().and_then(|edit| edit.splice(&body)) {
            // Of the answer's charge, not of one beside it: the two must not wait for each other.
            charge.grow(splice.len()).await;
            copy = Some(splice.copy());
        }
        let copied = copy.as_ref().map_or(0, Bytes::len);
        let body = copy.unwrap_or(body);
        let upstream = &self.upstreams[target.backend.upstream];
        match upstream
            .post(path, body, traceparent.as_deref(), timer, &mut charge)
            .await
        {
            Ok(received) => {
                charge.shrink_to(charge.bytes() - copied);
                self.answered(permit, received, charge, history)
            }
            Err(failure) => self.failed(permit, failure, history),
        }
    }

    fn answered(
        &self,
        permit: Permit,
        received: Received,
        charge: Charge,
        history: &mut History,
    ) -> Verdict {
        let Received {
            status,
            headers,
            mut body,
        } = received;
        let upstream = permit.upstream();
        let provider = self.upstreams[upstream].provider;
        let is_streamed = (200..300).contains(&status) && classify::is_streamed(&headers);
        let folded = is_streamed.then(|| provider.fold(&body));
        let is_incomplete = folded == Some(Folded::Incomplete);
        if let Some(Folded::Answer(whole) | Folded::Error(whole)) = folded {
            body = whole;
        }
        let mut reading = Reading::of(&body);
        if is_incomplete && reading.form == Form::NotJson {
            reading.form = Form::Streamed;
        }
        let result = match CallResult::of(status, &headers, &body) {
            CallResult::Succeeded => CallResult::of_success(&headers, &body, &reading),
            result => result,
        };
        let mut answer = Answer {
            status,
            request_id: provider.request_id(&headers).map(str::to_owned),
            body,
            reading,
            is_model_missing: result == CallResult::ModelMissing,
            charge,
        };
        self.record(&permit, result, Some(status));
        let report = match result {
            CallResult::Succeeded => Report {
                result,
                status: Some(status),
                wait: None,
                cause: String::new(),
            },
            _ => Report {
                result,
                status: Some(status),
                wait: classify::told(&headers, classify::wall_clock(self.options.clock.now_ms())),
                cause: cause(result, &answer, classify::location(&headers)),
            },
        };
        match self.report(permit, history, &report) {
            Next::End if result == CallResult::Garbled => Verdict::GivenUp(Cause {
                kind: CauseKind::Unavailable,
                message: report.cause,
            }),
            Next::End => Verdict::Answer(answer),
            Next::Again { after, is_hastened } => {
                self.metrics[upstream].retried(result.outcome());
                answer.charge.yield_overdraft();
                let is_refusal = result.cost() == Some(Cost::Refusal);
                Verdict::Again(Again {
                    after,
                    is_hastened,
                    cause: Cause {
                        kind: CauseKind::Unavailable,
                        message: report.cause,
                    },
                    refusal: is_refusal.then_some(answer),
                    upstream,
                })
            }
        }
    }

    fn failed(&self, permit: Permit, failure: Failure, history: &mut History) -> Verdict {
        let Failure { kind, cause } = failure;
        let upstream = permit.upstream();
        let result = match kind {
            FailureKind::NoDescriptor => CallResult::NoDescriptor,
            FailureKind::Unreachable => CallResult::Unreachable,
            FailureKind::Broken => CallResult::Broken,
            FailureKind::TimedOut => CallResult::TimedOut,
            FailureKind::Undecodable => CallResult::Undecodable,
            FailureKind::TooLarge => CallResult::TooLarge,
        };
        self.record(&permit, result, None);
        self.upstreams[upstream].say_of(result);
        let report = Report {
            result,
            status: None,
            wait: None,
            cause,
        };
        let next = self.report(permit, history, &report);
        let cause = Cause {
            kind: match result {
                CallResult::TimedOut => CauseKind::Timeout,
                CallResult::Undecodable => CauseKind::Invalid,
                CallResult::TooLarge => CauseKind::TooLarge,
                _ => CauseKind::Unavailable,
            },
            message: report.cause,
        };
        match next {
            Next::End => Verdict::GivenUp(cause),
            Next::Again { after, is_hastened } => {
                self.metrics[upstream].retried(result.outcome());
                Verdict::Again(Again {
                    after,
                    is_hastened,
                    cause,
                    refusal: None,
                    upstream,
                })
            }
        }
    }

    /// Adds a call to the metrics, and to its span if that is exported.
    fn record(&self, permit: &Permit, result: CallResult, status: Option<u16>) {
        let outcome = result.outcome();
        self.count(permit, outcome);
        let span = tracing::Span::current();
        if !span.is_disabled() {
            span.record("upstream.name", &self.upstreams[permit.upstream()].name);
            span.record("outcome", outcome.as_str());
            span.record("http.response.status_code", status);
        }
    }
}

/// How an answer came to be none, in words.
fn cause(result: CallResult, answer: &Answer, location: Option<String>) -> String {
    let status = answer.status;
    let mut text = format!("the model server answered {status}");
    match (result, location) {
        (CallResult::Garbled, _) if answer.reading.is_bare_error => {
            text.push_str(" with an error and no answer: ");
            let message = classify::message(&answer.body);
            let said = Some(message.as_bytes()).filter(|said| !said.is_empty());
            text.push_str(&excerpt(said.unwrap_or(&answer.body)));
        }
        (CallResult::Garbled, _) => {
            text.push_str(" with a body that is not JSON: ");
            text.push_str(&excerpt(&answer.body));
        }
        (CallResult::Misdirected, Some(location)) => {
            text.push_str(" and points to ");
            text.push_str(&location);
        }
        (CallResult::Unpaid, _) if status == 429 => text.push_str(": its quota is spent"),
        _ => {}
    }
    text
}

/// The beginning of a body that nobody understands, for people.
fn excerpt(body: &[u8]) -> String {
    if body.is_empty() {
        return "it is empty".to_owned();
    }
    // A character has at most four bytes.
    let begin = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_CHARS * 4)]);
    match begin.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}…", &begin[..end]),
        None => begin.into_owned(),
    }
}

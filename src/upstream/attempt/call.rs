//! One call: encoded, sent, read, and classified.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::bill::Billed;
use super::client::{Client, Post, Reply};
use super::history::{History, Next};
use super::result::CallResult;
use super::timer::Timer;
use crate::domain::clock::Clock;
use crate::domain::outcome::{Form, Warning};
use crate::domain::usage::Usage;
use crate::upstream::limits::memory::Reservation;
use crate::upstream::limits::rate::Tokens;
use crate::upstream::provider::http::Head;
use crate::upstream::provider::{Asked, Encoded, Line, Unsupported};
use crate::upstream::target::backend::Backend;
use crate::upstream::target::{Ended, Permit};

/// So many times a line's bytes are reserved while the line is brought into a provider's own form:
/// the form itself, and what it is made of.
const TRANSLATION: usize = 3;

/// What is sent to have a line answered.
#[derive(Debug)]
pub struct Call {
    /// The line's `url`, such as `/v1/chat/completions`.
    pub path: &'static str,
    /// The line's `body`. Sent as it is, unless its route or its provider changes it.
    pub body: Bytes,
    /// Grows with the answer.
    pub reservation: Reservation,
    /// The header by which the call is a part of a trace, if it is.
    pub traceparent: Option<String>,
}

/// A call that has ended: how it went, where it was made, and what its line is to do.
#[derive(Debug)]
pub struct Attempt {
    pub result: CallResult,
    pub next: Next,
    /// The line's answer, good or bad, where the line ends with one. Where the line is sent again,
    /// what the server said if it refused us or had no room for the line: the line's answer if
    /// nothing better comes before the window ends.
    pub answer: Option<Answer>,
    /// Why the call was no success, in words for the line's user: no addresses, no secrets.
    pub cause: String,
    /// The upstream and the model there.
    pub target: Arc<Backend>,
    /// How many calls the line has had, this one included.
    pub calls: u32,
    /// From when its place was taken to the last byte of its answer.
    pub took: Duration,
}

/// A model server's answer, as its line gets it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The model server's own id for the request.
    pub request_id: Option<String>,
    pub body: Bytes,
    pub form: Form,
    /// What the answer reports.
    pub usage: Option<Usage>,
    /// What the line's user is to know beside the answer.
    pub warnings: Vec<Warning>,
    /// Nobody has the line's model: other lines of the model will be answered the same.
    pub is_model_missing: bool,
    /// Holds the body's bytes (beside what the call's reservation held before).
    pub reservation: Reservation,
}

/// Makes a call: sends, reads the whole answer, frees the place, and classifies. Dropped midway,
/// the call is broken off and its place is freed. The timer may have been another call's before.
pub(in crate::upstream) async fn make(
    clock: &Clock,
    mut permit: Permit,
    call: Call,
    history: &mut History,
    timer: &mut Timer,
) -> Attempt {
    let Call {
        path,
        body,
        mut reservation,
        traceparent,
    } = call;
    let client = Arc::clone(&permit.target().client);
    let client = &*client;
    let translations = client.provider.translations(path);
    if translations > 0 {
        let bytes = translations * TRANSLATION;
        reservation.grow(bytes.saturating_mul(body.len())).await;
    }
    let backend = permit.backend();
    if history.cannot_be_taken_at(backend) {
        let ended = Ended {
            cause: "No upstream that could take the line had a place for it.".to_owned(),
            ..Ended::without_an_answer(CallResult::Unsupported)
        };
        return conclude(client, permit, history, ended, None);
    }
    let line = Line {
        path,
        model: backend.model(),
        body: &body,
        edit: permit.target().edit.as_deref(),
        clock,
    };
    let less = match client.abilities.less(&line) {
        Ok(less) => less,
        Err(unsupported) => {
            return conclude(
                client,
                permit,
                history,
                not_taken(client, unsupported),
                None,
            );
        }
    };
    let less_bytes = less.as_ref().map_or(0, |less| less.body.len());
    reservation.grow(less_bytes).await;
    let line = Line {
        body: less.as_ref().map_or(&body, |less| &less.body),
        ..line
    };
    let encoded = match client.provider.encode(&line) {
        Ok(Encoded::Unchanged) => Ok((None, None)),
        Ok(Encoded::Spliced(splice, asked)) => {
            // Of the answer's reservation, not of one beside it: the two must not wait for each
            // other.
            reservation.grow(splice.len()).await;
            Ok((Some(splice.copy()), asked))
        }
        Ok(Encoded::Translated { body, asked }) => Ok((Some(body), Some(asked))),
        Err(unsupported) => Err(unsupported),
    };
    let (copy, asked) = match encoded {
        Ok(encoded) => encoded,
        Err(unsupported) => {
            return conclude(
                client,
                permit,
                history,
                not_taken(client, unsupported),
                None,
            );
        }
    };
    let (less, left_out) = less.map(|less| (less.body, less.warnings)).unzip();
    let copy = match (copy, less) {
        (Some(copy), Some(_)) => {
            reservation.shrink_to(reservation.bytes() - less_bytes);
            Some(copy)
        }
        (copy, less) => copy.or(less),
    };
    let copied = copy.as_ref().map_or(0, Bytes::len);
    if let Some(asked) = &asked {
        let kept = copied + asked.bytes();
        reservation.shrink_to(kept);
        reservation
            .grow(kept.saturating_sub(reservation.bytes()))
            .await;
    }
    let body = copy.unwrap_or(body);
    permit.send();
    history.bill().sent(&permit.target().tariff, path);
    let post = Post {
        key: permit.key(),
        path,
        model: permit.backend().model(),
        body,
        traceparent: traceparent.as_deref(),
        assembly: client.provider.assembly(path, asked.as_ref()),
    };
    let reply = client.post(post, timer, &mut reservation).await;
    match reply {
        Ok(Reply {
            head,
            body,
            first_token,
        }) => {
            if let Some(first_token) = first_token {
                permit.target().first_token.observe(first_token);
            }
            reservation.shrink_to(reservation.bytes() - copied);
            let (mut ended, mut answer) = read(client, clock, &head, (body, asked), reservation);
            answer.warnings.splice(0..0, left_out.into_iter().flatten());
            if permit.is_rate_limited() {
                ended.remaining = client.provider.remaining(&head.headers, now(clock));
            }
            conclude(client, permit, history, ended, Some(answer))
        }
        Err(failure) => {
            client.warn_of(failure.result);
            let ended = Ended {
                cause: failure.cause,
                ..Ended::without_an_answer(failure.result)
            };
            conclude(client, permit, history, ended, None)
        }
    }
}

/// The end of a call that is not sent.
fn not_taken(client: &Client, unsupported: Unsupported) -> Ended {
    Ended {
        cause: explain(client, unsupported),
        ..Ended::without_an_answer(CallResult::Unsupported)
    }
}

/// Why a line cannot be sent to an upstream, in words for its user.
pub(super) fn explain(client: &Client, unsupported: Unsupported) -> String {
    let Unsupported { param, reason } = unsupported;
    format!(
        "The upstream {} cannot take `{param}`: {reason}.",
        client.name
    )
}

/// What an answer is, and how its call went.
pub(super) fn read(
    client: &Client,
    clock: &Clock,
    head: &Head,
    (body, asked): (Bytes, Option<Asked>),
    reservation: Reservation,
) -> (Ended, Answer) {
    let provider = &client.provider;
    let decoded = provider.decode(head, body, asked);
    let result = provider.classify(head, &decoded);
    let mut ended = Ended {
        result,
        status: Some(head.status),
        retry_after: None,
        used: decoded.usage.map(Tokens::from),
        remaining: Vec::new(),
        cause: String::new(),
    };
    if result != CallResult::Succeeded {
        ended.retry_after = provider.retry_after(head, &decoded, now(clock));
        ended.cause = provider.explain(result, head, &decoded);
        if result == CallResult::Unpaid {
            // Some say so by a 400 or a 429.
            ended
                .cause
                .push_str(": it asks to be paid, or the quota is spent");
        }
    }
    let answer = Answer {
        status: head.status,
        request_id: decoded.request_id,
        body: decoded.body,
        form: decoded.form,
        usage: decoded.usage,
        warnings: decoded.warnings,
        is_model_missing: result == CallResult::ModelMissing,
        reservation,
    };
    (ended, answer)
}

fn now(clock: &Clock) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(clock.now_ms().try_into().unwrap_or(0))
}

/// Whether a call that was sent is paid for: an answer is, and whatever reports its usage.
fn billed(ended: &Ended, usage: Option<Usage>) -> Billed {
    match ended.status {
        Some(200..300) if ended.result != CallResult::Garbled => Billed::Used(usage),
        Some(_) if usage.is_some() => Billed::Used(usage),
        None if ended.result.may_be_billed() => Billed::Lost,
        _ => Billed::Nothing,
    }
}

/// Books the end of a call: on the line's bill, in metrics, in the call's span, and with its target.
fn conclude(
    client: &Client,
    permit: Permit,
    history: &mut History,
    ended: Ended,
    mut answer: Option<Answer>,
) -> Attempt {
    let result = ended.result;
    let took = permit.begun().elapsed();
    permit.target().seconds.observe(took);
    client.metrics.called(result as usize);
    let span = tracing::Span::current();
    if !span.is_disabled() {
        span.record("upstream.name", &*client.name);
        span.record("outcome", result.label());
        span.record("http.response.status_code", ended.status);
    }
    if permit.is_sent() {
        let usage = answer.as_ref().and_then(|answer| answer.usage);
        history.bill().ended(took, billed(&ended, usage));
    }
    let calls = history.calls() + 1;
    let target = Arc::clone(permit.backend());
    let next = permit.finish(history, &ended);
    let is_kept = match next {
        Next::End => !matches!(result, CallResult::Garbled | CallResult::Unusable),
        Next::Again { .. } => {
            client.metrics.retried(result as usize);
            result.says_what_to_mend()
        }
    };
    answer = answer.filter(|_| is_kept);
    if let (Next::Again { .. }, Some(answer)) = (next, &mut answer) {
        answer.reservation.yield_overdraft();
    }
    Attempt {
        result,
        next,
        answer,
        cause: ended.cause,
        target,
        calls,
        took,
    }
}

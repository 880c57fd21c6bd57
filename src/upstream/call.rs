//! One attempt, and what its outcome does to the upstream that it was made at.

use bytes::Bytes;
use tokio::time::Instant;

use super::budget::Charge;
use super::client::{Failure, FailureKind, Received};
use super::health::{Event, UpstreamState};
use super::pool::{Permit, Pool, State};
use super::retry::{self, Class};
use super::{Answer, Call, Cause, CauseKind, Retry, Timer, Verdict};
use crate::domain::outcome::Reading;
use crate::observe::CallOutcome;

/// How much of a body that is not JSON a line's error repeats.
const EXCERPT_CHARS: usize = 100;

/// What has come of taking in an event.
struct Settled {
    refusal_is_final: bool,
    /// A state that has not been told of yet.
    entered: Option<UpstreamState>,
    was_or_is_closed: bool,
}

impl Pool {
    /// One attempt: sends, reads the whole answer, frees the place, and judges. Dropped midway, it
    /// breaks off the call and frees the place. The timer may have been another call's before.
    pub async fn call(&self, permit: Permit, call: Call, timer: &mut Timer) -> Verdict {
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
        let upstream = &self.upstreams[target.upstream];
        match upstream
            .post(path, body, traceparent.as_deref(), timer, &mut charge)
            .await
        {
            Ok(received) => {
                charge.shrink_to(charge.bytes() - copied);
                self.answered(permit, received, charge)
            }
            Err(failure) => self.failed(permit, failure),
        }
    }

    fn answered(&self, permit: Permit, received: Received, charge: Charge) -> Verdict {
        let Received {
            status,
            headers,
            body,
        } = received;
        let judged = retry::judge(status, &headers);
        let reading = Reading::of(&body);
        // A page of a proxy, say, or of another server. No model answers so.
        let is_success = judged == Class::Final && (200..300).contains(&status);
        let is_garbled = is_success && !reading.is_json;
        let class = if is_garbled { Class::Transient } else { judged };
        let told = (class != Class::Final)
            .then(|| retry::told(&headers, retry::wall_clock(self.settings.clock.now_ms())))
            .flatten();
        let event = match (class, status) {
            (Class::Unavailable, _) => Event::Unavailable(told),
            (Class::Limited, _) => Event::Limited(told),
            // A server that names a time means every line of the model, whatever the status.
            (Class::Transient, _) if told.is_some_and(|told| !told.is_zero()) => {
                Event::Limited(told)
            }
            (Class::Refused, _) => Event::Refused,
            (_, 200..=299) => Event::Succeeded,
            (_, 400..=499) => Event::KeyWorks,
            _ => Event::Unclear,
        };
        let upstream = permit.target().upstream;
        let provider = self.upstreams[upstream].provider;
        let mut answer = Answer {
            status,
            request_id: provider.request_id(&headers).map(str::to_owned),
            body,
            reading,
            charge,
        };
        let outcome = outcome_of(class);
        self.count(&permit, outcome, Some(status));
        let refusal_is_final = self.settle(permit, event, Some(status), None);
        if class == Class::Final || refusal_is_final {
            return Verdict::Answer(answer);
        }
        answer.charge.yield_overdraft();
        let costs_attempt = class == Class::Transient;
        let message = if is_garbled {
            let body = excerpt(&answer.body);
            format!("the model server answered {status} with a body that is not JSON: {body}")
        } else {
            format!("the model server answered {status}")
        };
        Verdict::Retry(Retry {
            costs_attempt,
            cause: Cause {
                kind: CauseKind::Unavailable,
                message,
            },
            answer: (!is_garbled).then_some(answer),
            outcome,
            upstream,
        })
    }

    fn failed(&self, permit: Permit, failure: Failure) -> Verdict {
        let Failure { kind, cause } = failure;
        let upstream = permit.target().upstream;
        let (event, costs_attempt) = match kind {
            FailureKind::Unreachable => (Event::Unavailable(None), false),
            FailureKind::Broken | FailureKind::TimedOut | FailureKind::TooLarge => {
                (Event::Unclear, true)
            }
        };
        let outcome = match kind {
            FailureKind::Unreachable => CallOutcome::Unreachable,
            FailureKind::Broken => CallOutcome::Broken,
            FailureKind::TimedOut => CallOutcome::TimedOut,
            FailureKind::TooLarge => CallOutcome::TooLarge,
        };
        self.count(&permit, outcome, None);
        self.settle(permit, event, None, Some(&cause));
        let kind = match kind {
            FailureKind::TimedOut => CauseKind::Timeout,
            _ => CauseKind::Unavailable,
        };
        Verdict::Retry(Retry {
            costs_attempt,
            cause: Cause {
                kind,
                message: cause,
            },
            outcome,
            answer: None,
            upstream,
        })
    }

    /// Adds a call to the figures, and to its span if that is exported.
    fn count(&self, permit: &Permit, outcome: CallOutcome, status: Option<u16>) {
        let target = permit.target();
        target.seconds.observe(permit.begun.elapsed());
        self.figures[target.upstream].called(outcome);
        let span = tracing::Span::current();
        if !span.is_disabled() {
            span.record("upstream.name", &self.upstreams[target.upstream].name);
            span.record("outcome", outcome.as_str());
            span.record("http.response.status_code", status);
        }
    }

    /// Frees the place and takes in what the call showed. True if a refused key is to be the
    /// line's answer.
    fn settle(
        &self,
        mut permit: Permit,
        event: Event,
        status: Option<u16>,
        cause: Option<&str>,
    ) -> bool {
        permit.held = false;
        let upstream = permit.upstream();
        let (settled, wanted) = {
            let mut state = self.lock();
            let settled = self.take_in(&mut state, &permit, event, status);
            let place = &mut state.places[upstream];
            if let Some(UpstreamState::Down | UpstreamState::Aside) = settled.entered {
                let answered = || format!("it answered {}", status.unwrap_or_default());
                place.cause = Some(cause.map_or_else(answered, str::to_owned));
            } else if settled.entered.is_some() || event == Event::Succeeded {
                place.cause = None;
            }
            place.in_flight -= 1;
            (settled, std::mem::take(&mut place.starved))
        };
        self.limits.landed();
        if matches!(event, Event::Limited(_)) {
            self.gate_closed.notify_one();
            if self.lock().gates.have_news(Instant::now()) {
                self.limits.poke();
            }
        }
        if settled.was_or_is_closed {
            self.attention[upstream].notify_one();
        }
        if wanted || settled.entered == Some(UpstreamState::Up) {
            self.changed.notify_one();
        }
        if let Some(state) = settled.entered {
            self.tell(upstream, state, status, cause);
        }
        settled.refusal_is_final
    }

    fn take_in(
        &self,
        state: &mut State,
        permit: &Permit,
        event: Event,
        status: Option<u16>,
    ) -> Settled {
        let (target, now) = (permit.target(), Instant::now());
        let random = match event {
            Event::Succeeded => 0.0, // the usual case throws no dice
            _ => rand::random(),
        };
        match event {
            Event::Succeeded => state.gates.forgive(&target.gate, permit.begun),
            Event::Limited(told) => {
                let times = (permit.begun, now);
                state
                    .gates
                    .close(&target.gate, times, told, &self.retry, random);
            }
            _ => {}
        }
        let place = &mut state.places[target.upstream];
        place.answered |= status.is_some();
        let refusal_is_final =
            event == Event::Refused && self.settings.final_auth_errors && !place.health.is_proven();
        let before = place.health.state();
        let entered = if refusal_is_final {
            let told = std::mem::replace(&mut place.told_of_refusal, true);
            (!told).then_some(UpstreamState::Aside)
        } else {
            let pace = &self.settings.pace;
            place.health.record(event, permit.era, now, pace, random)
        };
        let is_up = |state| state == UpstreamState::Up;
        Settled {
            refusal_is_final,
            entered,
            was_or_is_closed: !is_up(before) || !is_up(place.health.state()),
        }
    }

    /// Logs that an upstream has come into another state.
    pub(super) fn tell(
        &self,
        upstream: usize,
        state: UpstreamState,
        status: Option<u16>,
        cause: Option<&str>,
    ) {
        let name = &self.upstreams[upstream].name;
        match state {
            UpstreamState::Up => tracing::info!(upstream.name = name, "the upstream is up again"),
            UpstreamState::Down => tracing::warn!(
                upstream.name = name,
                cause,
                "the upstream is down; its lines wait or go to others until it answers again"
            ),
            UpstreamState::Aside => {
                let check = match status {
                    Some(401) => "its api_key_env or api_key_file: the key is missing or wrong",
                    Some(402) => "its account: it asks to be paid",
                    _ => "what its key is allowed to do",
                };
                tracing::error!(
                    upstream.name = name,
                    http.status = status,
                    check,
                    "the upstream refuses our key or account; nothing succeeds there until that \
                     is mended"
                );
            }
        }
    }
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

fn outcome_of(class: Class) -> CallOutcome {
    match class {
        Class::Final => CallOutcome::Answered,
        Class::Transient => CallOutcome::ServerError,
        Class::Unavailable => CallOutcome::Unavailable,
        Class::Limited => CallOutcome::RateLimited,
        Class::Refused => CallOutcome::Refused,
    }
}

//! After a call: its place is freed, its target's health follows from the result, and its line gets
//! its next step.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backend::Backend;
use super::kept::PAUSE_MAX;
use super::permit::Permit;
use super::targets::{State, Targets};
use super::upstream::{Changes, End};
use crate::upstream::attempt::history::{Assessment, Failed, History, Next};
use crate::upstream::attempt::result::{CallResult, Cost};
use crate::upstream::health::breaker::{Breaker, Change, Failure};
use crate::upstream::health::cooldown;
use crate::upstream::health::reason::Reason;
use crate::upstream::limits::rate::{Remaining, Tokens};
use crate::upstream::route::Target;

/// After a failure, one successful call in so many looks whether all breakers are well again.
const TROUBLE_CHECK_INTERVAL: usize = 64;

/// How a call ended, and what the server said of it.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Ended {
    pub(in crate::upstream) result: CallResult,
    /// `None`: there was no answer.
    pub(in crate::upstream) status: Option<u16>,
    /// How long the server asks for no more calls (`Retry-After`).
    pub(in crate::upstream) retry_after: Option<Duration>,
    /// The tokens that the answer reports.
    pub(in crate::upstream) used: Option<Tokens>,
    /// What the server says is left of its rate limits.
    pub(in crate::upstream) remaining: Vec<Remaining>,
    /// Why the call failed, in words, without addresses and secrets. Empty for a success.
    pub(in crate::upstream) cause: String,
}

impl Ended {
    /// A call that was not answered.
    pub(in crate::upstream) fn without_an_answer(result: CallResult) -> Self {
        Self {
            result,
            status: None,
            retry_after: None,
            used: None,
            remaining: Vec::new(),
            cause: String::new(),
        }
    }
}

/// What a failure says of the target, and what of the line.
struct Judgement {
    assessment: Assessment,
    failure: Failure,
    is_signal: bool,
    /// The target does not have the line's model, and as far as is known never had it.
    is_missing: bool,
    /// All calls of the process so far may have failed alike.
    is_alike: bool,
    /// The server said when to come back.
    names_a_time: bool,
}

impl Permit {
    /// The call has ended: frees its place, and says what its line does next.
    pub(in crate::upstream) fn finish(mut self, history: &mut History, ended: &Ended) -> Next {
        self.is_held = false;
        self.targets.finish(&self, history, ended)
    }

    /// Notes how fast the target was. A rate limit says nothing of that.
    fn time(&self, end: &End<'_>, used: Option<Tokens>, now: Instant) {
        let mut speed = self.backend().speed();
        if end.result == CallResult::Succeeded {
            let took = now.saturating_duration_since(self.begun());
            speed.succeeded(took, used.map_or(0, Tokens::timed), now);
        } else if end.is_signal && end.failure.is_some_and(|it| it.reason != Reason::Limited) {
            speed.failed(now);
        }
    }
}

impl Targets {
    /// Frees the place of a call, tells the breakers how it went, and says what its line does next.
    fn finish(&self, permit: &Permit, history: &mut History, ended: &Ended) -> Next {
        self.settle(permit, Some(ended));
        let now = Instant::now();
        let random = match ended.result {
            CallResult::Succeeded => 0.0, // the usual case throws no dice
            _ => rand::random(),
        };
        let backend = permit.backend();
        let upstream = backend.upstream();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.free(permit.target());
        let is_measured = permit.stamp.is_some() && state.end_in_window(permit, ended, now);
        let mut breaker = backend.breaker();
        let reason = ended.result.reason();
        let judgement =
            reason.map(|reason| state.judge(permit, history, &breaker, (ended, reason, now)));
        let end = End {
            result: ended.result,
            has_answered: ended.status.is_some(),
            failure: judgement.as_ref().map(|judgement| judgement.failure),
            is_signal: judgement
                .as_ref()
                .is_some_and(|judgement| judgement.is_signal),
            cause: &ended.cause,
        };
        if permit.routes.is_timed {
            permit.time(&end, ended.used, now);
        }
        let moment = state.moment(upstream, &self.pace, (now, random));
        let target = &mut state.upstreams[upstream];
        let changes = target.on_finish(
            permit.key(),
            &mut breaker,
            permit.flight,
            Some((&end, moment)),
        );
        if ended.result.is_answer() {
            state.giving_up.on_answer();
        }
        let hastens =
            ended.result == CallResult::Succeeded && breaker.take_awaited(permit.flight.begun);
        state.is_hastened |= hastens;
        let mut next = match &judgement {
            None if ended.result.cost().is_none() => Next::End,
            None if ended.result.may_pass_elsewhere() => {
                let all = permit.routes.targets.iter().flat_map(Target::backends);
                let keys = permit.target().backends();
                history.unsupported(keys, all, &state.retry, random)
            }
            None => history.held_up(&state.retry, random),
            Some(judgement) => state.next(permit, history, judgement, (ended, random), &breaker),
        };
        if next.is_hastened() {
            breaker.await_success(now);
        }
        drop(breaker);
        if let Next::Again { after: pause, .. } = &mut next
            && !pause.is_zero()
            && history.misses_its_model()
            && state.keep_a_place(&permit.routes, history, now)
        {
            // What the upstream is at fault for waits as long as ever.
            if ended.result.may_pass_elsewhere() {
                *pause = (*pause).min(PAUSE_MAX);
            }
        }
        let all = [&changes.of_upstream, &changes.of_key, &changes.of_backend];
        for change in all.into_iter().flatten() {
            // Where another key works, or will by itself, nothing is lost yet.
            if state.needs_a_person(permit.target()) {
                state.giving_up.on_change(change);
            }
        }
        state.give_up_if_hopeless(now);
        let checks = state.begun.is_multiple_of(TROUBLE_CHECK_INTERVAL);
        if reason.is_some() {
            self.note_trouble();
        }
        drop(guard);
        if reason.is_none() && checks && self.is_troubled() {
            self.look_for_trouble();
        }
        self.sharing.on_finish();
        if is_measured {
            self.sharing.notify_changed();
            self.windows.due().notify_one();
        }
        self.on_changes(backend, &changes, ended.status, hastens);
        next
    }

    /// Logs what has changed, and wakes those who wait for such a change.
    fn on_changes(&self, backend: &Backend, changes: &Changes, status: Option<u16>, hastens: bool) {
        let (key, model) = (backend.key_name(), Some(backend.model()));
        let of_upstream = changes.of_upstream.iter().map(|one| ((None, None), one));
        let of_key = changes.of_key.iter().map(|one| ((key, None), one));
        let of_backend = changes.of_backend.iter().map(|one| ((key, model), one));
        let mut opens = changes.frees_a_place || hastens;
        for (subject, change) in of_upstream.chain(of_key).chain(of_backend) {
            self.announce(backend.upstream(), subject, change, status);
            if matches!(change, Change::Opened(_)) {
                opens = true;
            } else {
                self.closed.notify_one();
                if cooldown::any_to_share(&self.backends) {
                    self.sharing.notify_changed();
                }
            }
            self.attention(backend.upstream()).notify_one();
        }
        if opens {
            self.changed.notify_one();
        }
        if changes.is_drained {
            self.drained.notify_one();
        }
    }
}

impl State {
    /// What a failure says of the target, and what of the line.
    fn judge(
        &mut self,
        permit: &Permit,
        history: &mut History,
        breaker: &Breaker,
        (ended, reason, now): (&Ended, Reason, Instant),
    ) -> Judgement {
        let backend = permit.backend();
        let assessment = history.failed(backend, breaker.evidence(), now);
        // Where calls of this model have succeeded here, its absence is no fault of the line's.
        let is_missing =
            ended.result == CallResult::ModelMissing && !breaker.evidence().has_succeeded();
        let cause = || format!("{}: {}", backend.upstream_name(), ended.cause);
        let way = (backend.upstream(), permit.key());
        let is_alike = self.giving_up.on_failure(way, reason, cause);
        if is_alike {
            self.refused_last = Some((Arc::clone(&permit.routes), permit.place()));
        }
        // A server that asks for a longer wait than the configuration allows gets the longest one.
        let longest = self.retry.longest_wait;
        let wait = ended.retry_after.map(|wait| wait.min(longest));
        // A time that a server names goes for every line of the model, whatever the status was.
        let names_a_time = wait.is_some_and(|wait| !wait.is_zero());
        let failure = Failure {
            reason: match reason {
                Reason::Failing if names_a_time => Reason::Limited,
                reason => reason,
            },
            wait,
            is_capped: ended.retry_after.is_some_and(|wait| wait > longest),
            is_fresh: assessment.is_fresh,
            batch: permit.flight.batch,
        };
        Judgement {
            is_signal: assessment.is_signal() && !is_alike && !is_missing,
            assessment,
            failure,
            is_missing,
            is_alike,
            names_a_time,
        }
    }

    /// What the line does next after a failure.
    fn next(
        &self,
        permit: &Permit,
        history: &mut History,
        judgement: &Judgement,
        (ended, random): (&Ended, f64),
        breaker: &Breaker,
    ) -> Next {
        let Judgement {
            assessment,
            failure,
            ..
        } = judgement;
        if judgement.is_missing && !judgement.is_alike {
            let all = permit.routes.targets.iter().flat_map(Target::backends);
            return if history.is_missing_at(permit.backend(), all) {
                Next::End
            } else {
                history.turned_away(assessment, None, &self.retry, random)
            };
        }
        // A key's refusal is no fault of the line's while another key may take the line.
        let by_keys = permit.target().backends();
        if ended.result.cost() == Some(Cost::Refusal) && !history.has_failed_at(by_keys) {
            return history.turned_away(assessment, None, &self.retry, random);
        }
        let is_refused_again = failure.reason == Reason::Refused && !assessment.is_fresh;
        // Several lines in a row have failed here, so the cause is the server and not this line.
        let is_of_the_server = judgement.is_signal
            && failure.reason == Reason::Failing
            && breaker
                .closure()
                .is_some_and(|closure| closure.reason != Reason::Limited);
        let failed = Failed {
            result: ended.result,
            wait: failure.wait,
            ends_refusal: self.giving_up.ends_refusals() && is_refused_again,
            is_for_nothing: is_of_the_server || judgement.names_a_time,
        };
        history.next(assessment, &failed, &self.retry, random)
    }
}

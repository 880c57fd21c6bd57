//! Lines that share a call: those of a unit that were chosen with another one, and what becomes of
//! each when the call is over.
//!
//! A call of several lines that fails for what one of them asks is made again in halves, until the
//! line that is the cause fails alone. Only a call that a line has for itself counts against it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;

use super::executor::{Companion, Executor, Job, Outcome, Plan, Sent, cut, reused};
use super::ledger::Ledger;
use super::ledger::run_queues::Counted;
use super::ledger::unit::{Due, Ready};
use super::result;
use super::reuse::{Asking, Begun};
use crate::domain::endpoint;
use crate::domain::pack::{self, Embedding, Part};
use crate::domain::reuse::Key;
use crate::domain::usage;
use crate::upstream::{Answer, CallResult, Next, Permit, Regroup, Reservation, Tariff, Timer};
use crate::worker::work::line::{OpenLine, Pending, Request};
use crate::worker::work::unit::LoadedUnit;

/// After so many failures in a row a call of several lines is made in halves, even where the
/// failures are no fault of theirs: it may be too large for what the server takes at once.
const FAILURES_AS_A_WHOLE: u32 = 3;

/// A line whose answer is on its way to an equal one, while others of its call have none, comes back
/// for it after so long.
const FOR_ANOTHERS_ANSWER: Duration = Duration::from_millis(20);

/// Takes the lines that share the call of a line which was chosen, as far as the route, and the
/// rate limits, let them. Empty where lines share no calls.
pub(super) fn join(
    ledger: &mut Ledger,
    (unit, pending, ready): (&LoadedUnit, &Pending, Ready),
    permit: &mut Permit,
    counted: &mut Counted,
) -> Vec<Companion> {
    let (Some(packing), Some(limits)) = (unit.packing(), permit.pack_limits()) else {
        return Vec::new();
    };
    let Some(first) = packing.get(&pending.line) else {
        return Vec::new();
    };
    let (mut lines, mut most) = (1, usize::from(pending.line.together_max));
    let (mut inputs, mut bytes) = (first.inputs, pending.line.range.len());
    let takes = |line: &OpenLine| {
        let Some(next) = packing.get(line).filter(|next| next.goes_with(first)) else {
            return false;
        };
        lines += 1;
        most = most.min(usize::from(line.together_max));
        inputs = inputs.saturating_add(next.inputs);
        bytes += line.range.len();
        lines <= most
            && inputs <= limits.inputs
            && bytes <= limits.bytes
            && permit.extend(line.range.len() as u64)
    };
    let joined = ledger.join(unit.id, ready, counted, takes).into_iter();
    let companion = |pending| Companion {
        pending,
        outcome: None,
    };
    joined.map(companion).collect()
}

/// A line that needs the call.
struct Caller {
    /// Its place among the job's lines.
    place: usize,
    request: Request,
    /// Others wait for its answer.
    asking: Option<Asking>,
}

impl Executor {
    /// Takes lines that were chosen together to their outcomes, or to their next attempts. Those
    /// that need a call share one. Returns what becomes of the first.
    pub(super) async fn execute_together(&self, job: &mut Job, timer: &mut Timer) -> Outcome {
        let unit = Arc::clone(&job.unit);
        let mut known = job.request.take();
        let permit = job.permit.take();
        let (mut outcomes, mut callers) =
            (Vec::new(), Vec::with_capacity(1 + job.companions.len()));
        let mut may_be_known = Vec::new();
        for place in 0..=job.companions.len() {
            let line = &job.line(place).line;
            match self.plan(&unit, line, permit.as_ref(), known.take()) {
                Plan::Finished(finished) => outcomes.push((place, Outcome::Finished(finished))),
                Plan::Call { request, .. } => callers.push(Caller {
                    place,
                    request,
                    asking: None,
                }),
                Plan::Reuse { key, request, .. } => may_be_known.push((place, key, request)),
            }
        }
        let Some(permit) = permit else {
            return cut();
        };
        // One for all lines: each holds its answer until the last one is done, so that two would wait
        // for each other where there is no more room.
        let mut reservation = self.pool.budget().reserve();
        if !may_be_known.is_empty() {
            let tariff = Arc::clone(permit.tariff());
            let held = (&mut callers, &mut reservation);
            let reused = self.reuse_together(job, &tariff, may_be_known, held);
            let Some(reused) = unit.cut.run_until_cancelled(reused).await else {
                return cut();
            };
            outcomes.extend(reused);
        }
        if callers.len() == 1
            && let Some(caller) = callers.pop()
        {
            let Caller {
                place,
                request,
                asking,
            } = caller;
            let (pending, call) = (job.line(place), (endpoint::EMBEDDINGS, request));
            let held = (asking, reservation);
            let call = self.call(&unit, pending, Some(permit), call, held, timer);
            outcomes.push((place, call.await));
        } else if !callers.is_empty() {
            let call = self.call_together(job, permit, (callers, reservation), timer);
            outcomes.extend(call.await);
        }
        let mut first = None;
        for (place, outcome) in outcomes {
            job.conclude(place, outcome, &mut first);
        }
        first.unwrap_or_else(cut)
    }

    /// Gives lines the answers to equal ones. Those for which none is known join the `callers`;
    /// those whose answer is on its way elsewhere come back for it. The answers' bytes are taken out
    /// of `reservation`, which grows by them.
    async fn reuse_together(
        &self,
        job: &mut Job,
        tariff: &Arc<Tariff>,
        lines: Vec<(usize, Key, Request)>,
        (callers, reservation): (&mut Vec<Caller>, &mut Reservation),
    ) -> Vec<(usize, Outcome)> {
        let unit = Arc::clone(&job.unit);
        let begun = lines.iter().map(|(place, key, _)| {
            let alone = job.line(*place).asks_alone;
            self.reuse.begin(*key, &unit.batch, alone, Vec::new)
        });
        // All at once, so that a few looks into the store are enough.
        let begun: Vec<_> = begun.collect();
        let begun = join_all(begun).await;
        let answered = begun.iter().map(|begun| match begun {
            Begun::Answered(answer) => answer.body.len(),
            _ => 0,
        });
        let answered: usize = answered.sum();
        if answered > 0 {
            reservation.grow(answered).await;
        }
        let mut outcomes = Vec::new();
        for ((place, _, request), begun) in lines.into_iter().zip(begun) {
            let asking = match begun {
                Begun::Alone => None,
                Begun::Asks(asking) => Some(asking),
                Begun::Answered(answer) => {
                    let asked = (endpoint::EMBEDDINGS, request);
                    let known = (&*answer, tariff);
                    let room = reservation.split(answer.body.len());
                    let reused = reused(&unit, job.line(place), asked, known, room);
                    outcomes.push((place, reused));
                    continue;
                }
                Begun::Waits(_) => {
                    let due = Due {
                        at: Instant::now() + FOR_ANOTHERS_ANSWER,
                        soonest: None,
                    };
                    outcomes.push((place, Outcome::Again(due)));
                    continue;
                }
            };
            callers.push(Caller {
                place,
                request,
                asking,
            });
        }
        outcomes
    }

    /// Sends lines once, in one call.
    async fn call_together(
        &self,
        job: &mut Job,
        permit: Permit,
        (callers, mut reservation): (Vec<Caller>, Reservation),
        timer: &mut Timer,
    ) -> Vec<(usize, Outcome)> {
        let unit = Arc::clone(&job.unit);
        let bodies = callers.iter().map(|caller| {
            let body = std::str::from_utf8(&caller.request.body).ok()?;
            Embedding::read(body)
        });
        // They were read so when it was found out that they may share a call.
        let Some(requests) = bodies.collect::<Option<Vec<Embedding<'_>>>>() else {
            return regroup(job, &callers, Duration::ZERO, |_| 1);
        };
        let parts: Vec<Part> = requests.iter().map(Embedding::part).collect();
        let size: usize = callers.iter().map(|one| one.request.body.len()).sum();
        if unit
            .cut
            .run_until_cancelled(reservation.grow(size))
            .await
            .is_none()
        {
            return Vec::new();
        }
        let body = Bytes::from(pack::together(&requests));
        let (place, path) = (callers[0].place, endpoint::EMBEDDINGS);
        permit.count_lines(callers.len());
        let pending = job.line(place);
        // The call has a bill of its own, which is divided among the lines once they are answered.
        let own_bill = pending.history.take_bill();
        let before = pending.history.clone();
        let sent = Sent {
            path,
            body,
            reservation,
        };
        let attempt = self.send(&unit, pending, permit, sent, timer).await;
        let bill = pending.history.take_bill();
        pending.history.add_bill(own_bill.clone());
        let Some(attempt) = attempt else {
            pending.history.add_bill(bill);
            return Vec::new();
        };
        let failures = pending.history.calls();
        let regroups = attempt.result.regroups();
        if attempt.result != CallResult::Succeeded && regroups == Regroup::Stay {
            let (after, ends) = match attempt.next {
                Next::Again { after, .. } => (after, false),
                Next::End => (self.rules.get().initial_backoff, true),
            };
            let half = half_of(callers.len());
            let most = move |most| {
                if failures >= FAILURES_AS_A_WHOLE {
                    half
                } else {
                    most
                }
            };
            pending.history.add_bill(bill);
            let mut outcomes = regroup(job, &callers, after, most);
            if ends {
                let (pending, code) = (job.line(place), attempt.result.error_code());
                let bill = pending.history.take_bill();
                let ended = result::given_up(&unit, &pending.line, code, &attempt.cause, bill);
                outcomes[0] = (place, Outcome::Finished(ended));
            }
            return outcomes;
        }
        // The failure was not the line's own, or not that alone.
        pending.history = before;
        pending.history.add_bill(own_bill);
        if let (CallResult::Succeeded, Some(answer)) = (attempt.result, attempt.answer) {
            self.missing_models.on_answer(&unit, &answer);
            match taken_apart(answer, &parts) {
                Ok(answers) => {
                    let weights: Vec<u64> = parts.iter().map(Part::weight).collect();
                    let answers = answers.into_iter().zip(bill.divided(&weights));
                    let answered = callers.into_iter().zip(answers);
                    let answered = answered.map(|(caller, (answer, bill))| {
                        if let Some(asking) = caller.asking {
                            asking.answered(&answer, &unit.batch, path);
                        }
                        let Pending { line, history, .. } = job.line(caller.place);
                        history.add_bill(bill);
                        let (id, bill) = (&caller.request.custom_id, history.take_bill());
                        let finished = result::answered(&unit, line, id, answer, bill);
                        (caller.place, Outcome::Finished(finished))
                    });
                    return answered.collect();
                }
                Err(cause) => tracing::warn!(
                    cause,
                    "an answer to several lines could not be taken apart; they are sent in halves"
                ),
            }
        }
        job.line(place).history.add_bill(bill);
        let after = match regroups {
            Regroup::Halves { waits: true } => self.rules.get().initial_backoff,
            _ => Duration::ZERO,
        };
        let most = match regroups {
            Regroup::Alone => 1,
            _ => half_of(callers.len()),
        };
        regroup(job, &callers, after, |_| most)
    }
}

/// Lines that have shared a call are sent again. `most`: how many may share the next one, given
/// how many might before.
fn regroup(
    job: &mut Job,
    callers: &[Caller],
    after: Duration,
    most: impl Fn(u16) -> u16,
) -> Vec<(usize, Outcome)> {
    let due = Due {
        at: Instant::now() + after,
        soonest: None,
    };
    let again = callers.iter().map(|caller| {
        let line = &mut job.line(caller.place).line;
        line.together_max = most(line.together_max);
        (caller.place, Outcome::Again(due))
    });
    again.collect()
}

impl Job {
    /// The line at a place: that which was chosen stands first.
    fn line(&mut self, place: usize) -> &mut Pending {
        match place.checked_sub(1) {
            None => &mut self.pending,
            Some(place) => &mut self.companions[place].pending,
        }
    }

    /// Notes what becomes of a line. `first`: of the one that was chosen.
    fn conclude(&mut self, place: usize, outcome: Outcome, first: &mut Option<Outcome>) {
        match place.checked_sub(1) {
            None => *first = Some(outcome),
            Some(place) => self.companions[place].outcome = Some(outcome),
        }
    }
}

fn half_of(lines: usize) -> u16 {
    u16::try_from(lines.div_ceil(2)).unwrap_or(u16::MAX)
}

/// The answer of each line, of an answer to all of them.
fn taken_apart(answer: Answer, parts: &[Part]) -> Result<Vec<Answer>, &'static str> {
    let Answer {
        status,
        request_id,
        body,
        form,
        warnings,
        mut reservation,
        ..
    } = answer;
    let text = std::str::from_utf8(&body).map_err(|_| "the answer is no text")?;
    let bodies = pack::apart(text, parts)?;
    let answers = bodies.into_iter().map(|body| Answer {
        status,
        request_id: request_id.clone(),
        usage: usage::read(body.as_bytes()),
        reservation: reservation.split(body.len()),
        body: Bytes::from(body),
        form,
        warnings: warnings.clone(),
        is_model_missing: false,
    });
    Ok(answers.collect())
}

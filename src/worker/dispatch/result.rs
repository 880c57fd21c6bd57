//! The outcome of a line, written in its final form.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use crate::codec::segment::Line;
use crate::domain::batch::EndReason;
use crate::domain::file::Kind;
use crate::domain::id;
use crate::domain::outcome::{self, Details, ErrorCode, Extension, Failure, Outcome, Warning};
use crate::store::CountsDelta;
use crate::upstream::{Answer, Bill, Reservation};
use crate::worker::work::finished::FinishedLine;
use crate::worker::work::line::{OpenLine, Pending};
use crate::worker::work::unit::LoadedUnit;

use super::reuse::SharedAnswer;

/// A line that an upstream answered.
pub(crate) fn answered(
    unit: &Arc<LoadedUnit>,
    line: &OpenLine,
    custom_id: &str,
    answer: Answer,
    bill: Bill,
) -> FinishedLine {
    let own_id;
    let request_id = if let Some(id) = &answer.request_id {
        id.as_str()
    } else {
        own_id = id::request();
        &own_id
    };
    let body: &[u8] = &answer.body;
    let outcome = Outcome::Answer {
        status: answer.status,
        request_id,
        body,
        form: answer.form,
    };
    let told = (&answer.warnings[..], &bill);
    let line = write((unit, line), custom_id, body.len(), outcome, told);
    let failure = match (line.kind, answer.status) {
        (Kind::Output, _) => None,
        // Only an answer that cannot be read is a failure in spite of its status.
        (Kind::Error, 200..300) => Some(Failure::Code(ErrorCode::InvalidResponse)),
        (Kind::Error, status) => Some(Failure::Status(status)),
    };
    let completed = i64::from(failure.is_none());
    let usage = answer.usage.unwrap_or_default();
    let counts = CountsDelta {
        completed,
        failed: 1 - completed,
        usage,
        ..CountsDelta::default()
    };
    // From here on the line is held, which is about as long as the answer's body.
    let mut reservation = answer.reservation;
    reservation.shrink_to(line.bytes.len());
    FinishedLine {
        unit: unit.clone(),
        line,
        counts,
        bill,
        failure,
        reservation: Some(reservation),
    }
}

/// A line that gets the answer to an equal one. Nothing is billed for it.
pub(crate) fn reused(
    unit: &Arc<LoadedUnit>,
    line: &OpenLine,
    custom_id: &str,
    answer: &SharedAnswer,
    (mut reservation, bill): (Reservation, Bill),
) -> FinishedLine {
    let own_id;
    let request_id = if let Some(id) = &answer.request_id {
        id.as_str()
    } else {
        own_id = id::request();
        &own_id
    };
    let outcome = Outcome::Answer {
        status: answer.status,
        request_id,
        body: &answer.body,
        form: answer.form,
    };
    let told = (&answer.warnings[..], &bill);
    let line = write((unit, line), custom_id, answer.body.len(), outcome, told);
    reservation.shrink_to(line.bytes.len());
    FinishedLine {
        unit: unit.clone(),
        line,
        counts: CountsDelta {
            completed: 1,
            ..CountsDelta::default()
        },
        bill,
        failure: None,
        reservation: Some(reservation),
    }
}

/// A line that has no answer, and no attempt left.
pub(crate) fn given_up(
    unit: &Arc<LoadedUnit>,
    line: &OpenLine,
    code: ErrorCode,
    cause: &str,
    bill: Bill,
) -> FinishedLine {
    failed(unit, line, code, cause, bill)
}

/// A line whose stored text is no request. It was a request when it was uploaded.
pub(crate) fn unreadable(unit: &Arc<LoadedUnit>, line: &OpenLine) -> FinishedLine {
    tracing::error!(unit.key = %unit.lease.key, unit.line = line.index, "a stored line is damaged");
    failed(
        unit,
        line,
        ErrorCode::UpstreamUnavailable,
        "The stored request is damaged.",
        Bill::default(),
    )
}

/// A line at which the code failed, or at whose answer it failed. Another attempt would be paid for
/// again, and fail again.
pub(crate) fn mishandled(unit: &Arc<LoadedUnit>, line: &OpenLine, bill: Bill) -> FinishedLine {
    let cause =
        "The server failed at this request or at its answer. This is a fault of the server.";
    given_up(unit, line, ErrorCode::UpstreamUnavailable, cause, bill)
}

/// A line that is not sent again, because processes have died of it.
pub(crate) fn crashed(unit: &Arc<LoadedUnit>, line: &OpenLine) -> FinishedLine {
    let bill = Bill::default();
    failed(
        unit,
        line,
        ErrorCode::RequestCrashed,
        outcome::CRASHED,
        bill,
    )
}

/// A line that is not sent any more, because its batch ends. If all attempts so far were refused,
/// and the window ends, the line ends with the last refusal. `None` if the code panics at the
/// line: then its unit is to be revoked, and the line ends when the unit is leased again.
pub(crate) fn concluded(
    unit: &Arc<LoadedUnit>,
    mut pending: Pending,
    end_reason: EndReason,
) -> Option<FinishedLine> {
    let bill = pending.history.take_bill();
    let write = || match pending.refusal {
        Some(answer) if end_reason == EndReason::Expired => answered(
            unit,
            &pending.line,
            &custom_id(unit, &pending.line),
            *answer,
            bill,
        ),
        _ => ended(unit, &pending.line, end_reason, bill),
    };
    std::panic::catch_unwind(AssertUnwindSafe(write))
        .inspect_err(|_| {
            let key = &unit.lease.key;
            tracing::error!(
                unit.key = %key,
                "the code panicked at a line; its unit is revoked, and its lines run again"
            );
        })
        .ok()
}

/// A line that is not sent any more, because its batch ends.
pub(crate) fn ended(
    unit: &Arc<LoadedUnit>,
    line: &OpenLine,
    end_reason: EndReason,
    bill: Bill,
) -> FinishedLine {
    let (code, message) = match end_reason {
        EndReason::Expired => (ErrorCode::BatchExpired, outcome::EXPIRED),
        EndReason::Cancelled => (ErrorCode::BatchCancelled, outcome::CANCELLED),
    };
    let mut finished = failed(unit, line, code, message, bill);
    match end_reason {
        EndReason::Cancelled => {
            finished.failure = None;
            finished.counts = CountsDelta {
                cancelled: 1,
                ..CountsDelta::default()
            };
        }
        EndReason::Expired => finished.counts.expired = 1,
    }
    finished
}

fn failed(
    unit: &Arc<LoadedUnit>,
    line: &OpenLine,
    code: ErrorCode,
    message: &str,
    bill: Bill,
) -> FinishedLine {
    let custom_id = custom_id(unit, line);
    let outcome = Outcome::Error { code, message };
    let told = (&[][..], &bill);
    let line = write((unit, line), &custom_id, message.len(), outcome, told);
    let counts = CountsDelta {
        failed: 1,
        ..CountsDelta::default()
    };
    FinishedLine {
        unit: unit.clone(),
        line,
        counts,
        bill,
        failure: Some(Failure::Code(code)),
        reservation: None,
    }
}

/// What the user calls a line. Empty where the line's text holds no request.
pub(super) fn custom_id(unit: &LoadedUnit, line: &OpenLine) -> Box<str> {
    let request = line.read(&unit.text);
    request.map(|request| request.custom_id).unwrap_or_default()
}

/// Writes a line. `told`: its warnings, and what its calls were billed.
fn write(
    (unit, line): (&LoadedUnit, &OpenLine),
    custom_id: &str,
    size: usize,
    outcome: Outcome<'_>,
    (warnings, bill): (&[Warning], &Bill),
) -> Line {
    let last = bill.items().last();
    let says_all = unit.batch.details;
    let cost = says_all.then(|| bill.cost()).flatten();
    let cost = cost.map(|cost| cost.to_string());
    let details = says_all.then(|| Details {
        upstream: last.map(|item| &*item.tariff.upstream),
        model: last.map(|item| &*item.tariff.model),
        attempts: bill.calls(),
        latency_ms: last.map(|item| item.took.as_millis().try_into().unwrap_or(u64::MAX)),
        cost: cost.as_deref(),
    });
    let extension = Extension {
        warnings,
        is_cached: last.is_some_and(|item| item.calls == 0),
        details,
    };
    let mut bytes = Vec::with_capacity(size + custom_id.len() + 192);
    let ids = (&*id::batch_request(), custom_id);
    let kind = outcome::write(&mut bytes, ids, outcome, &extension);
    Line {
        line: line.index,
        kind,
        bytes,
    }
}

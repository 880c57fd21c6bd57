//! One line: sent, and its outcome written in its final form.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use tracing::Instrument as _;
use tracing::field::Empty;

use crate::codec::segment::Line;
use crate::domain::batch::EndReason;
use crate::domain::endpoint;
use crate::domain::file::Kind;
use crate::domain::id;
use crate::domain::outcome::{self, ErrorCode, Outcome};
use crate::domain::usage::Usage;
use crate::metrics::trace;
use crate::store::CountsDelta;
use crate::upstream::{
    Again, Answer, Call, Cause, CauseKind, History, Permit, Pool, Timer, Verdict,
};
use crate::worker::work::completions::Finished;
use crate::worker::work::unit::{HeldUnit, OpenLine};

/// A line that is to be sent, with what is known from attempts before.
pub(crate) struct Pending {
    pub line: OpenLine,
    pub history: History,
    /// The upstream of the last attempt, which others are preferred to.
    pub avoid: Option<usize>,
    /// The last answer, if it refused us: it is the line's if there is no better one.
    /// Boxed: few lines have one, and a pending line is moved about.
    pub refusal: Option<Box<Answer>>,
}

impl Pending {
    /// A line that has not been sent yet.
    pub(crate) fn new(line: OpenLine) -> Self {
        Self {
            line,
            history: History::default(),
            avoid: None,
            refusal: None,
        }
    }
}

/// A line on its way, with its permits.
pub(crate) struct Job {
    pub unit: Arc<HeldUnit>,
    pub pending: Pending,
    pub permit: Option<Permit>,
    pub begun: Instant,
}

/// What came of one attempt.
pub(crate) enum Attempt {
    /// The upstream's answer is the line's.
    Answered(Answer),
    /// There is none, and no attempt is left.
    GivenUp(Cause),
    /// Not yet.
    Again(Again),
    /// The call was cut off.
    Cut,
    /// The stored line is not a request. It was one when it was uploaded.
    Unreadable,
}

/// Sends a job's line once.
pub(crate) async fn attempt(pool: &Pool, job: &mut Job, timer: &mut Timer) -> Attempt {
    let unit = job.unit.clone();
    let Some(request) = job.pending.line.read(&unit.text) else {
        return Attempt::Unreadable;
    };
    let path = if *unit.batch.endpoint == endpoint::ANY {
        request.path
    } else {
        Some(unit.batch.endpoint.path)
    };
    let Some(path) = path else {
        return Attempt::Unreadable;
    };
    let Some(permit) = job.permit.take() else {
        return Attempt::Cut;
    };
    if !pool.turn().await {
        return Attempt::Cut;
    }
    let span = tracing::trace_span!(
        target: trace::TARGET,
        parent: None,
        "upstream call",
        otel.kind = "client",
        batch.id = &*unit.batch.id,
        url.path = path,
        attempt = job.pending.history.attempts() + 1,
        upstream.name = Empty,
        outcome = Empty,
        http.response.status_code = Empty,
    );
    let call = Call {
        path,
        body: request.body.clone(),
        charge: pool.budget().open(),
        traceparent: trace::traceparent(&span),
    };
    // Pinned: it is large, and would be moved by each layer around it.
    let call = pin!(pool.call(permit, call, &mut job.pending.history, timer));
    let call = call.instrument(span);
    match unit.cut.run_until_cancelled(call).await {
        None => Attempt::Cut,
        Some(Verdict::Answer(answer)) => Attempt::Answered(answer),
        Some(Verdict::GivenUp(cause)) => Attempt::GivenUp(cause),
        Some(Verdict::Again(again)) => Attempt::Again(again),
    }
}

/// A line that an upstream answered.
pub(crate) fn answered(unit: &Arc<HeldUnit>, line: &OpenLine, answer: Answer) -> Finished {
    let own_id;
    let request_id = match &answer.request_id {
        Some(id) => id.as_str(),
        None => {
            own_id = id::request();
            &own_id
        }
    };
    let body: &[u8] = &answer.body;
    let outcome = Outcome::Answer {
        status: answer.status,
        request_id,
        body,
        reading: answer.reading,
    };
    let (line, usage) = write(unit, line, body.len(), outcome);
    let completed = i64::from(line.kind == Kind::Output);
    let usage = usage.unwrap_or_default();
    let counts = CountsDelta {
        completed,
        failed: 1 - completed,
        usage,
        ..CountsDelta::default()
    };
    // What is held from here on is the line, which is about as long as the answer's body.
    let mut charge = answer.charge;
    charge.shrink_to(line.bytes.len());
    Finished {
        unit: unit.clone(),
        line,
        counts,
        charge: Some(charge),
    }
}

/// A line that was given up without an answer.
pub(crate) fn given_up(unit: &Arc<HeldUnit>, line: &OpenLine, cause: &Cause) -> Finished {
    let code = match cause.kind {
        CauseKind::Timeout => ErrorCode::RequestTimeout,
        CauseKind::Invalid => ErrorCode::InvalidResponse,
        CauseKind::TooLarge => ErrorCode::ResponseTooLarge,
        CauseKind::Unavailable => ErrorCode::UpstreamUnavailable,
    };
    failed(unit, line, code, &cause.message)
}

/// A line whose stored text is no request.
pub(crate) fn unreadable(unit: &Arc<HeldUnit>, line: &OpenLine) -> Finished {
    tracing::error!(unit.key = %unit.lease.key, unit.line = line.index, "a stored line is damaged");
    failed(
        unit,
        line,
        ErrorCode::UpstreamUnavailable,
        "The stored request is damaged.",
    )
}

/// A line that the code could not handle, or its answer: to be sent again, and paid for again,
/// would not help it.
pub(crate) fn mishandled(unit: &Arc<HeldUnit>, line: &OpenLine) -> Finished {
    failed(
        unit,
        line,
        ErrorCode::UpstreamUnavailable,
        "The server failed at this request or at its answer. This is a fault of the server.",
    )
}

/// A line that is not sent again, because processes died of it.
pub(crate) fn crashed(unit: &Arc<HeldUnit>, line: &OpenLine) -> Finished {
    failed(unit, line, ErrorCode::RequestCrashed, outcome::CRASHED)
}

/// A line that will not run any more, because its batch is ended.
pub(crate) fn ended(unit: &Arc<HeldUnit>, line: &OpenLine, ending: EndReason) -> Finished {
    let (code, message) = match ending {
        EndReason::Expired => (ErrorCode::BatchExpired, outcome::EXPIRED),
        EndReason::Cancelled => (ErrorCode::BatchCancelled, outcome::CANCELLED),
    };
    let mut finished = failed(unit, line, code, message);
    match ending {
        EndReason::Cancelled => {
            finished.counts = CountsDelta {
                cancelled: 1,
                ..CountsDelta::default()
            };
        }
        EndReason::Expired => finished.counts.expired = 1,
    }
    finished
}

fn failed(unit: &Arc<HeldUnit>, line: &OpenLine, code: ErrorCode, message: &str) -> Finished {
    let (line, _) = write(unit, line, message.len(), Outcome::Error { code, message });
    let counts = CountsDelta {
        failed: 1,
        ..CountsDelta::default()
    };
    Finished {
        unit: unit.clone(),
        line,
        counts,
        charge: None,
    }
}

fn write(
    unit: &HeldUnit,
    line: &OpenLine,
    size: usize,
    outcome: Outcome<'_>,
) -> (Line, Option<Usage>) {
    let request = line.read(&unit.text);
    let custom_id = request.map_or("", |request| &request.custom_id);
    let mut bytes = Vec::with_capacity(size + custom_id.len() + 192);
    let (kind, usage) = outcome::write(&mut bytes, &id::batch_request(), custom_id, outcome);
    (
        Line {
            line: line.index,
            kind,
            bytes,
        },
        usage,
    )
}

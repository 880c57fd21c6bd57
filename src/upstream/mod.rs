//! Calling model servers: who serves a model, who of them has a place, one attempt at a time, and
//! what its outcome means.
//!
//! This room knows nothing of batches, files or the store. It does not wait on behalf of lines
//! either: [`Pool::try_acquire`] says at once whether a line can be sent, [`Pool::changed`] says
//! when to look again, and what to do with a [`Verdict`] is the caller's affair.

mod balance;
mod budget;
mod call;
mod client;
mod discovery;
mod gate;
mod health;
mod limits;
mod pool;
mod provider;
mod retry;
mod rewrite;
mod routes;
#[cfg(test)]
mod tests;
mod transport;

use std::pin::Pin;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::domain::outcome::Reading;
use crate::observe::CallOutcome;

pub use budget::{Budget, Charge};
pub use gate::ClosedGate;
pub use health::{Pace, UpstreamState};
pub use limits::Limits;
pub use pool::{Acquired, Permit, Pool, PoolSettings, UpstreamStatus};
pub use retry::backoff;
pub use routes::{LaneId, Routes};

/// One attempt to have a line answered.
#[derive(Debug)]
pub struct Call {
    /// The line's `url`, such as `/v1/chat/completions`.
    pub path: &'static str,
    /// The line's `body`. Sent as it is, unless the route renames the model or fills in defaults.
    pub body: Bytes,
    /// Grows with the answer.
    pub charge: Charge,
    /// The header by which the call is a part of a trace, if it is.
    pub traceparent: Option<String>,
}

/// A timer for calls that are made one after the other: to move it on costs less than another.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Sets it anew.
    fn set(&mut self, deadline: Instant) -> Pin<&mut Sleep> {
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        sleep.as_mut().reset(deadline);
        sleep.as_mut()
    }
}

/// What became of an attempt.
#[derive(Debug)]
pub enum Verdict {
    /// The line's answer, good or bad.
    Answer(Answer),
    /// Not yet: the line is to be sent again.
    Retry(Retry),
}

/// An HTTP answer of a model server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The model server's own id for the request.
    pub request_id: Option<String>,
    pub body: Bytes,
    pub reading: Reading,
    /// Holds the body's bytes (beside what the call's charge held before).
    pub charge: Charge,
}

/// Why a line is to be sent again, and when.
#[derive(Debug)]
pub struct Retry {
    /// Whether this was one of the line's attempts. What is not the line's fault costs none; then
    /// the pool itself holds back (a closed gate, an upstream down), and the line can be offered
    /// to [`Pool::try_acquire`] again at once.
    pub costs_attempt: bool,
    pub cause: Cause,
    /// The same for the figures.
    pub outcome: CallOutcome,
    /// What the server said, for when no attempts or no time are left. It holds its charge.
    pub answer: Option<Answer>,
    /// Which upstream failed: to be avoided by the next attempt.
    pub upstream: usize,
}

/// Why an attempt came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub kind: CauseKind,
    /// In words for the user; no addresses, no secrets.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseKind {
    /// The call took longer than its upstream's `timeout`.
    Timeout,
    /// Anything else.
    Unavailable,
}

/// A model, as `GET /v1/models` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub id: String,
    /// Unix seconds; 0 where the upstream does not say.
    pub created: i64,
    pub owned_by: String,
}

/// An upstream whose configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream `{upstream}`: {problem}")]
pub struct BuildError {
    /// Its name.
    pub upstream: String,
    pub problem: String,
}

//! Calling model servers: who serves a model, who of them has a place, one attempt at a time, and
//! what its outcome means.
//!
//! This room knows nothing of batches, files or the store. It does not wait on behalf of lines
//! either: [`Pool::try_acquire`] says at once whether a line can be sent, [`Pool::changed`] says
//! when to look again, and what to do with a [`Verdict`] is the caller's affair.

mod attempt;
mod balance;
mod health;
mod limits;
mod pool;
mod provider;
mod route;
mod settings;
mod snapshot;
mod target;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transport;

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::domain::outcome::Reading;

pub use attempt::history::History;
pub use health::breaker::Reason;
pub use health::cooldown::ClosedGate;
pub use limits::memory::Charge;
pub use pool::{Acquired, Permit, Pool};
pub use route::{LaneId, Routes};
pub use settings::{
    CallRate, FailFast, ModelSettings, Options, RetrySettings, RouteSettings, Settings,
    UpstreamSettings,
};
pub use snapshot::{UpstreamState, UpstreamStatus};

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

/// What is to become of a line after a call.
#[derive(Debug)]
pub enum Verdict {
    /// It has its answer, good or bad.
    Answer(Answer),
    /// It is given up: no attempt is left, and nothing was answered.
    GivenUp(Cause),
    /// It is to be sent again.
    Again(Again),
}

/// An HTTP answer of a model server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The model server's own id for the request.
    pub request_id: Option<String>,
    pub body: Bytes,
    pub reading: Reading,
    /// Nobody has the line's model: other lines of the model will be answered the same.
    pub is_model_missing: bool,
    /// Holds the body's bytes (beside what the call's charge held before).
    pub charge: Charge,
}

/// When a line is to be sent again.
#[derive(Debug)]
pub struct Again {
    pub after: Duration,
    /// Sooner than that once a call succeeds where this one failed: see [`History::is_hastened`].
    pub is_hastened: bool,
    pub cause: Cause,
    /// What the server said, if it refused us: the line's answer if nobody mends it before the
    /// window ends.
    pub refusal: Option<Answer>,
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
    /// There was an answer that cannot be read.
    Invalid,
    /// The answer was larger than its upstream's `max_response_bytes`.
    TooLarge,
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
    /// The date on which the upstream stops serving the model, as the upstream writes it.
    pub shutdown_date: Option<String>,
}

/// Whether a list of models has one that is named so: as lines of that model are routed.
#[must_use]
pub fn is_listed(models: &[ModelInfo], name: &str) -> bool {
    route::listed_as(models.iter(), name).is_some()
}

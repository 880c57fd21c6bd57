//! How upstreams and models are, as operators read it.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::health::breaker::Reason;
use crate::upstream::pool::Pool;

/// What was closed, and has been open for a trial for so long that nobody has made, is not told.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    Up,
    /// It does not answer, or fails one line after the other.
    Down,
    /// It refuses our key or account, or is not where its address says.
    Aside,
}

impl UpstreamState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::Up => "up",
            UpstreamState::Down => "down",
            UpstreamState::Aside => "aside",
        }
    }

    fn of(reason: Reason) -> Self {
        match reason {
            Reason::Limited => UpstreamState::Up,
            reason if reason.needs_a_person() => UpstreamState::Aside,
            _ => UpstreamState::Down,
        }
    }
}

/// How an upstream is now.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    pub name: String,
    pub state: UpstreamState,
    /// Why it is not up, in words.
    pub cause: Option<String>,
    /// It has answered something over HTTP since the process started.
    pub answered: bool,
    pub in_flight: usize,
    /// Its `concurrency`.
    pub limit: usize,
    /// Its models that take no lines now, or that are being tried.
    pub models: Vec<ClosedModel>,
}

/// A model at an upstream that takes no lines now, or that is being tried.
#[derive(Clone, Debug)]
pub struct ClosedModel {
    /// What the upstream calls the model.
    pub model: String,
    pub reason: Reason,
    /// In words.
    pub cause: String,
    /// How long until a line is tried; zero where one may be.
    pub left: Duration,
}

impl Pool {
    /// How all upstreams are.
    #[must_use]
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let now = Instant::now();
        let mut models: Vec<(Vec<ClosedModel>, usize)> =
            vec![(Vec::new(), 0); self.upstreams.len()];
        for backend in self.backends.all(None) {
            let breaker = backend.breaker();
            let (closed, seen) = &mut models[backend.upstream];
            *seen += usize::from(breaker.closure().is_some() || breaker.evidence().has_succeeded());
            let closure = breaker.closure();
            // One that nobody has tried for long is nobody's any more.
            let closure = closure.filter(|closure| closure.until + FORGOTTEN_AFTER > now);
            closed.extend(closure.map(|closure| ClosedModel {
                model: backend.model.to_string(),
                reason: closure.reason,
                cause: closure.cause.clone(),
                left: closure.until.saturating_duration_since(now),
            }));
            if breaker.closure().is_none()
                && let Some((reason, cause)) = breaker.doubt()
            {
                closed.push(ClosedModel {
                    model: backend.model.to_string(),
                    reason: *reason,
                    cause: cause.clone(),
                    left: Duration::ZERO,
                });
            }
        }
        let state = self.lock();
        let all = self.upstreams.iter().zip(&state.places).zip(models);
        let status = all.map(|((upstream, place), (mut models, seen))| {
            models.sort_by(|a, b| a.model.cmp(&b.model));
            let whole = place.breaker.closure();
            let whole = whole.map(|closure| (closure.reason, closure.cause.clone()));
            let whole = whole.or_else(|| place.breaker.doubt().cloned());
            // Where all its models are closed, so is the upstream, whatever closed them.
            let together = models.first().filter(|_| models.len() == seen);
            let together = together.map(|model| (model.reason, model.cause.clone()));
            let (state, cause) = match whole.or(together) {
                Some((reason, cause)) => (UpstreamState::of(reason), Some(cause)),
                None => (UpstreamState::Up, None),
            };
            UpstreamStatus {
                name: upstream.name.clone(),
                state,
                cause,
                answered: place.answered,
                in_flight: place.in_flight,
                limit: upstream.concurrency,
                models,
            }
        });
        status.collect()
    }
}

//! How upstreams and models are, as operators read it.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::client::Client;
use super::health::reason::Reason;
use super::target::Targets;

/// A model that is due for a trial is not listed any more when nobody has tried it for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// How an upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// Nothing is known of it: no call has ended.
    Unknown,
    Up,
    /// It does not answer, or fails one line after the other.
    Down,
    /// It refuses our key or account, or is not where its address says.
    Ejected,
}

impl UpstreamState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::Unknown => "unknown",
            UpstreamState::Up => "up",
            UpstreamState::Down => "down",
            UpstreamState::Ejected => "ejected",
        }
    }

    fn of(reason: Reason) -> Self {
        match reason {
            Reason::Limited => UpstreamState::Up,
            reason if reason.needs_a_person() => UpstreamState::Ejected,
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
    /// How long until it is tried, where all of it is closed; zero where it may be.
    pub left: Duration,
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

/// How all upstreams are now.
pub(super) fn take(clients: &[Client], targets: &Targets) -> Vec<UpstreamStatus> {
    let now = Instant::now();
    let mut models: Vec<(Vec<ClosedModel>, usize)> = vec![(Vec::new(), 0); clients.len()];
    for backend in targets.backends.all(None) {
        let breaker = backend.breaker();
        let (closed, seen) = &mut models[backend.upstream()];
        *seen += usize::from(breaker.closure().is_some() || breaker.evidence().has_succeeded());
        let closure = breaker.closure();
        // What nobody has tried for long, nobody cares for any more.
        let closure = closure.filter(|closure| closure.until + FORGOTTEN_AFTER > now);
        closed.extend(closure.map(|closure| ClosedModel {
            model: backend.model().to_owned(),
            reason: closure.reason,
            cause: closure.cause.clone(),
            left: closure.until.saturating_duration_since(now),
        }));
        if breaker.closure().is_none()
            && let Some((reason, cause)) = breaker.last_refusal()
        {
            closed.push(ClosedModel {
                model: backend.model().to_owned(),
                reason: *reason,
                cause: cause.clone(),
                left: Duration::ZERO,
            });
        }
    }
    targets.read(|states| {
        let all = clients.iter().zip(states).zip(models);
        let status = all.map(|((client, upstream), (mut models, seen))| {
            models.sort_by(|a, b| a.model.cmp(&b.model));
            let whole = upstream.breaker().closure();
            let whole = whole.map(|closure| {
                let left = closure.until.saturating_duration_since(now);
                (closure.reason, closure.cause.clone(), left)
            });
            let refusal = upstream.breaker().last_refusal().cloned();
            let refusal = refusal.map(|(reason, cause)| (reason, cause, Duration::ZERO));
            let whole = whole.or(refusal);
            // Where all its models are closed, so is the upstream, whatever closed them.
            let together = models.first().filter(|_| models.len() == seen);
            let first = models.iter().map(|model| model.left).min();
            let first = first.unwrap_or_default();
            let together = together.map(|model| (model.reason, model.cause.clone(), first));
            let (state, cause, left) = match whole.or(together) {
                Some((reason, cause, left)) => (UpstreamState::of(reason), Some(cause), left),
                None if upstream.is_unknown() => (UpstreamState::Unknown, None, Duration::ZERO),
                None => (UpstreamState::Up, None, Duration::ZERO),
            };
            UpstreamStatus {
                name: client.name.as_ref().to_owned(),
                state,
                cause,
                left,
                answered: upstream.has_answered(),
                in_flight: upstream.in_flight(),
                limit: client.concurrency,
                models,
            }
        });
        status.collect()
    })
}

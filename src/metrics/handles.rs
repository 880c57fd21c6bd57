//! What is counted for one upstream, one model, or both: resolved once, and then only added to.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::rate_meter::RateMeter;

/// How a call to an upstream went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// It brought the line's answer, good or bad.
    Answered,
    /// It brought a success that cannot be read.
    Malformed,
    /// 429.
    RateLimited,
    /// 503.
    Unavailable,
    /// 401, 402 or 403: the key or the account.
    Refused,
    /// A redirect, or a 404 that says that there is nothing at the path.
    Misdirected,
    /// Any other status that may pass, such as 500.
    ServerError,
    TimedOut,
    /// This process had no file descriptor left for it.
    NotSent,
    /// No connection.
    Unreachable,
    /// The connection was lost, or no HTTP came from it.
    Broken,
    TooLarge,
}

impl CallOutcome {
    pub(super) const ALL: [CallOutcome; 12] = [
        CallOutcome::Answered,
        CallOutcome::Malformed,
        CallOutcome::RateLimited,
        CallOutcome::Unavailable,
        CallOutcome::Refused,
        CallOutcome::Misdirected,
        CallOutcome::ServerError,
        CallOutcome::TimedOut,
        CallOutcome::NotSent,
        CallOutcome::Unreachable,
        CallOutcome::Broken,
        CallOutcome::TooLarge,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CallOutcome::Answered => "answered",
            CallOutcome::Malformed => "malformed",
            CallOutcome::RateLimited => "rate_limited",
            CallOutcome::Unavailable => "unavailable",
            CallOutcome::Refused => "refused",
            CallOutcome::Misdirected => "misdirected",
            CallOutcome::ServerError => "server_error",
            CallOutcome::TimedOut => "timed_out",
            CallOutcome::NotSent => "not_sent",
            CallOutcome::Unreachable => "unreachable",
            CallOutcome::Broken => "broken",
            CallOutcome::TooLarge => "too_large",
        }
    }
}

/// What is counted for an upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub(super) calls: [Counter; CallOutcome::ALL.len()],
    pub(super) retries: [Counter; CallOutcome::ALL.len()],
}

impl UpstreamMetrics {
    /// A call has ended.
    pub fn called(&self, outcome: CallOutcome) {
        self.calls[outcome as usize].inc();
    }

    /// A line is to be sent again because of how its call went.
    pub fn retried(&self, cause: CallOutcome) {
        self.retries[cause as usize].inc();
    }
}

/// How long the calls for a model at an upstream take.
#[derive(Clone, Debug)]
pub struct CallSeconds(pub(super) Histogram);

impl CallSeconds {
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// What is counted for a model.
#[derive(Debug)]
pub struct ModelMetrics {
    pub(super) completed: Counter,
    pub(super) failed: Counter,
    pub(super) cancelled: Counter,
    pub(super) expired: Counter,
    pub(super) input_tokens: Counter,
    pub(super) cached_tokens: Counter,
    pub(super) output_tokens: Counter,
    pub(super) reasoning_tokens: Counter,
    pub(super) lately: RateMeter,
}

/// Lines whose outcome is on disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineCounts {
    pub completed: i64,
    /// Without those that expired.
    pub failed: i64,
    pub cancelled: i64,
    pub expired: i64,
}

impl ModelMetrics {
    /// Lines have their outcome on disk.
    pub fn wrote(&self, lines: LineCounts) {
        add(&self.completed, lines.completed);
        add(&self.failed, lines.failed);
        add(&self.cancelled, lines.cancelled);
        add(&self.expired, lines.expired);
        let all = lines.completed + lines.failed + lines.cancelled + lines.expired;
        self.lately.add(u64::try_from(all).unwrap_or(0));
    }

    /// Tokens that the answers among them reported.
    pub fn used(&self, input: i64, cached: i64, output: i64, reasoning: i64) {
        add(&self.input_tokens, input);
        add(&self.cached_tokens, cached);
        add(&self.output_tokens, output);
        add(&self.reasoning_tokens, reasoning);
    }
}

fn add(counter: &Counter, count: i64) {
    counter.inc_by(u64::try_from(count).unwrap_or(0));
}

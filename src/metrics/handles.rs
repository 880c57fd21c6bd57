//! What is counted for one upstream, one model, or both: resolved once, and then only added to.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::rate_meter::RateMeter;

/// What is counted for an upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub(super) calls: Box<[Counter]>,
    pub(super) retries: Box<[Counter]>,
}

impl UpstreamMetrics {
    /// A call has ended. `outcome`: the place of its label in the list that was given when these
    /// metrics were made.
    pub fn called(&self, outcome: usize) {
        self.calls[outcome].inc();
    }

    /// A line is to be sent again because of how its call went.
    pub fn retried(&self, outcome: usize) {
        self.retries[outcome].inc();
    }
}

/// What is counted of lines that may be answered by the answers to equal ones.
#[derive(Clone, Debug)]
pub struct ReuseMetrics {
    pub(super) stored: Counter,
    pub(super) shared: Counter,
    pub(super) sent: Counter,
    pub(super) unkept: Counter,
}

impl ReuseMetrics {
    /// A line got an answer that the store had kept.
    pub fn stored(&self) {
        self.stored.inc();
    }

    /// A line got the answer of another one that was sent by this process.
    pub fn shared(&self) {
        self.shared.inc();
    }

    /// No answer was found for a line.
    pub fn sent(&self) {
        self.sent.inc();
    }

    /// Answers were not kept, because they could not be written in time.
    pub fn unkept(&self, answers: usize) {
        self.unkept.inc_by(answers as u64);
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

/// Calls for a model at an upstream that lines may share.
#[derive(Clone, Debug)]
pub struct PackMetrics {
    pub(super) calls: Counter,
    pub(super) lines: Counter,
}

impl PackMetrics {
    /// A call of so many lines is sent.
    pub fn sent(&self, lines: usize) {
        self.calls.inc();
        self.lines.inc_by(lines as u64);
    }
}

/// What is counted for a model.
#[derive(Debug)]
pub struct ModelMetrics {
    pub(super) completed: Counter,
    pub(super) failed: Counter,
    pub(super) cancelled: Counter,
    pub(super) expired: Counter,
    pub(super) spilled: Counter,
    pub(super) input_tokens: Counter,
    pub(super) cached_tokens: Counter,
    pub(super) output_tokens: Counter,
    pub(super) reasoning_tokens: Counter,
    pub(super) cost: Counter<f64, AtomicU64>,
    pub(super) unpriced: Counter,
    pub(super) lost: Counter,
    /// Over the last half minute.
    pub(super) lately: RateMeter<30>,
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

    /// A line is sent to a higher tier, because it would be late otherwise.
    pub fn spilled(&self) {
        self.spilled.inc();
    }

    /// Tokens that the answers among them reported.
    pub fn used(&self, input: i64, cached: i64, output: i64, reasoning: i64) {
        add(&self.input_tokens, input);
        add(&self.cached_tokens, cached);
        add(&self.output_tokens, output);
        add(&self.reasoning_tokens, reasoning);
    }

    /// What calls cost, and how many of them there were whose cost is not known.
    pub fn cost(&self, cost: f64, unpriced: i64, lost: i64) {
        if cost > 0.0 {
            self.cost.inc_by(cost);
        }
        add(&self.unpriced, unpriced);
        add(&self.lost, lost);
    }
}

fn add(counter: &Counter, count: i64) {
    counter.inc_by(u64::try_from(count).unwrap_or(0));
}

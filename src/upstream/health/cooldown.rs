//! What processes tell each other of closed models.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::attempt::client::Upstream;
use crate::upstream::health::breaker::Reason;
use crate::upstream::pool::Pool;
use crate::upstream::target::backend::Backend;

/// A closing is told to the other processes if it is longer than this, or longer by this than
/// they know.
const WORTH_TELLING: Duration = Duration::from_secs(1);
const TOLD_BY_ANOTHER: &str = "another process was told to wait";

/// A model at an upstream that is to be left alone, as processes tell each other.
#[derive(Clone, Debug)]
pub struct ClosedGate {
    /// The upstream's name.
    pub upstream: String,
    /// What that upstream calls the model.
    pub model: String,
    pub opens: Instant,
}

impl Pool {
    /// The models that stay closed for a while, which other processes do not know yet.
    #[must_use]
    pub fn gates_to_tell(&self) -> Vec<ClosedGate> {
        let now = Instant::now();
        let told = self.backends.all(None).into_iter().filter_map(|backend| {
            let opens = worth_telling(&backend, now)?;
            Some(ClosedGate {
                upstream: self.upstreams[backend.upstream].name.clone(),
                model: backend.model.to_string(),
                opens,
            })
        });
        told.collect()
    }

    pub(in crate::upstream) fn has_gates_to_tell(&self) -> bool {
        let now = Instant::now();
        let all = self.backends.all(None);
        all.iter()
            .any(|backend| worth_telling(backend, now).is_some())
    }

    /// Takes in what processes have told each other of a model. An upstream that is not known here
    /// is passed over.
    pub fn know_gate(&self, gate: &ClosedGate) {
        let named = |upstream: &Upstream| upstream.name == gate.upstream;
        if let Some(upstream) = self.upstreams.iter().position(named) {
            let backend = self.backends.get(upstream, &gate.model.as_str().into());
            let now = Instant::now();
            backend
                .breaker()
                .close_as_told(gate.opens, now, TOLD_BY_ANOTHER);
            self.troubled.store(true, Ordering::Relaxed);
            self.closed.notify_one();
        }
    }
}

/// When a backend opens, if the other processes should know.
fn worth_telling(backend: &Backend, now: Instant) -> Option<Instant> {
    let breaker = backend.breaker();
    let closure = breaker.closure()?;
    let known = closure.told.map_or(now, |told| told.max(now));
    let is_news = closure.reason == Reason::Limited && closure.until > known + WORTH_TELLING;
    is_news.then_some(closure.until)
}

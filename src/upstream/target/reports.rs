//! What is heard of upstreams outside of calls: from probes, from other processes, and from people.

use tokio::time::Instant;

use super::targets::Targets;
use super::upstream::Upstream;
use crate::upstream::health::cooldown::{self, Cooldown};

impl Targets {
    /// A probe has ended. `answer`: whether the upstream itself answered, or a proxy in front of it
    /// that cannot reach it (`false`). `None`: nothing answered.
    pub(in crate::upstream) fn on_probe(
        &self,
        upstream: usize,
        answer: Option<bool>,
        cause: String,
    ) {
        let moment = self.moment(upstream, Instant::now(), rand::random());
        let change = self.lock().upstreams[upstream].on_probe(answer, cause, moment);
        if let Some(change) = change {
            self.announce(upstream, None, &change, None);
            self.changed.notify_one();
        }
    }

    /// An upstream was asked for its models. `unreachable`: why it cannot be reached, if it cannot.
    pub(in crate::upstream) fn on_discovery(&self, upstream: usize, unreachable: Option<&str>) {
        let moment = self.moment(upstream, Instant::now(), rand::random());
        let mut state = self.lock();
        let target = &mut state.upstreams[upstream];
        let Some(cause) = unreachable else {
            target.on_discovery();
            return;
        };
        let change = target.on_unreachable(cause, moment);
        drop(state);
        self.note_trouble();
        if let Some(change) = change {
            self.announce(upstream, None, &change, None);
        }
    }

    /// Opens all that is closed at an upstream, because an operator says that it is mended. False
    /// if there is no such upstream.
    pub fn reset(&self, name: &str) -> bool {
        let Some(upstream) = self.backends.upstream_named(name) else {
            return false;
        };
        let now = Instant::now();
        let of_upstream = self.lock().upstreams[upstream].reset(now);
        if let Some(change) = of_upstream {
            self.announce(upstream, None, &change, None);
        }
        for backend in self.backends.all(Some(upstream)) {
            let change = backend.breaker().reset(now);
            if let Some(change) = change {
                self.announce(upstream, Some(backend.model()), &change, None);
            }
        }
        // Only now, when all is open: waiting lines that look earlier would find a breaker closed.
        self.lock().is_hastened = true;
        self.attention[upstream].notify_one();
        self.changed.notify_one();
        true
    }

    /// Another process has closed a model: it is closed here for the same time. An upstream that
    /// this process does not have is passed over.
    pub fn follow_cooldown(&self, cooldown: &Cooldown) {
        if cooldown::follow(&self.backends, cooldown) {
            self.note_trouble();
            self.closed.notify_one();
        }
    }

    /// The cooldowns that other processes do not know yet.
    #[must_use]
    pub fn cooldowns_to_share(&self) -> Vec<Cooldown> {
        cooldown::to_share(&self.backends)
    }

    /// There are no more lines than this. When so many calls have failed alike, none can succeed.
    pub fn has_lines(&self, lines: usize) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let in_flight = state.upstreams.iter().map(Upstream::in_flight);
        state.giving_up.has_lines(lines, in_flight);
    }

    /// Why no line can succeed, where all calls so far have failed alike. See
    /// [`FailFast`](crate::upstream::FailFast).
    #[must_use]
    pub fn hopeless(&self) -> Option<String> {
        self.lock().giving_up.hopeless().map(str::to_owned)
    }

    /// Whether waiting lines may be due earlier than planned: since the last question, a call has
    /// succeeded for whose success lines wait, or an operator has opened an upstream. See
    /// [`History::is_hastened`](crate::upstream::History::is_hastened) and
    /// [`History::is_reset`](crate::upstream::History::is_reset).
    pub fn take_hastening(&self) -> bool {
        std::mem::take(&mut self.lock().is_hastened)
    }
}

//! What is heard of upstreams outside of calls: from probes, from other processes, and from people.

use tokio::time::Instant;

use super::switch::Switch;
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
        let mut state = self.lock();
        let moment = state.moment(upstream, &self.pace, (Instant::now(), rand::random()));
        let change = state.upstreams[upstream].on_probe(answer, cause, moment);
        drop(state);
        if let Some(change) = change {
            self.announce(upstream, (None, None), &change, None);
            self.changed.notify_one();
        }
    }

    /// An upstream was asked for its models. `unreachable`: why it cannot be reached, if it cannot.
    pub(in crate::upstream) fn on_discovery(&self, upstream: usize, unreachable: Option<&str>) {
        let mut state = self.lock();
        let moment = state.moment(upstream, &self.pace, (Instant::now(), rand::random()));
        let target = &mut state.upstreams[upstream];
        let Some(cause) = unreachable else {
            target.on_discovery();
            return;
        };
        // It may be disabled because it is not there.
        if target.switched().is_disabled() {
            return;
        }
        let change = target.on_unreachable(cause, moment);
        self.note_trouble();
        drop(state);
        if let Some(change) = change {
            self.announce(upstream, (None, None), &change, None);
        }
    }

    /// Opens all that is closed at an upstream, because an operator says that it is mended. False
    /// if there is no such upstream.
    pub fn reset(&self, name: &str) -> bool {
        let Some(upstream) = self.backends.upstream_named(name) else {
            return false;
        };
        let now = Instant::now();
        let changes = self.lock().upstreams[upstream].reset(now);
        let keys = self.backends.key_names(upstream);
        for (key, change) in changes {
            let key = key.map(|key| &*keys[key]);
            self.announce(upstream, (key, None), &change, None);
        }
        for backend in self.backends.all(Some(upstream)) {
            let change = backend.breaker().reset(now);
            if let Some(change) = change {
                let subject = (backend.key_name(), Some(backend.model()));
                self.announce(upstream, subject, &change, None);
            }
        }
        // Only now, when all is open: waiting lines that look earlier would find a breaker closed.
        self.lock().is_hastened = true;
        self.attention(upstream).notify_one();
        self.changed.notify_one();
        true
    }

    /// Takes in what operators have set: all of it, of whatever upstreams. An upstream that is not
    /// among them is as the configuration has it. Calls in flight go on.
    pub fn follow_switches(&self, switches: &[Switch]) {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        for one in &mut state.upstreams {
            let set = switches.iter().find(|set| *set.upstream == *one.name);
            if one.follow_switch(set, now) {
                self.on_switch(one);
            }
        }
        state.switches = switches.to_vec();
    }

    /// Lines may be sent to an upstream, and could not be before, or the reverse.
    pub(super) fn on_switch(&self, upstream: &Upstream) {
        let name = &*upstream.name;
        if let Some(cause) = upstream.switched().cause() {
            self.note_trouble();
            tracing::warn!(
                upstream.name = name,
                cause,
                calls = upstream.in_flight(),
                "the upstream is disabled: its lines wait or go to others, and calls in flight go \
                 on"
            );
        } else {
            let by = upstream.switched().set().map(|set| set.by.as_str());
            tracing::warn!(upstream.name = name, by, "the upstream is enabled");
        }
        upstream.attention.notify_one();
        self.changed.notify_one();
    }

    /// Of what operators have disabled: the names of the upstreams to which this process sends
    /// nothing more, each with when it was disabled, and how many calls are in flight there. An
    /// upstream that this process does not have is one of them. One that is enabled here all the
    /// same, as the configuration says something else, is not.
    #[must_use]
    pub fn in_flight_at_disabled(&self, switches: &[Switch]) -> Vec<(String, i64, usize)> {
        let state = self.lock();
        let calls = |name: &str| {
            let mut named = state.upstreams.iter().filter(|one| *one.name == *name);
            named.try_fold(0, |calls, one| {
                let is_closed = one.is_gone || one.switched().is_disabled();
                is_closed.then(|| calls + one.in_flight())
            })
        };
        let disabled = switches.iter().filter(|switch| !switch.enabled);
        let told = disabled.filter_map(|switch| {
            let calls = calls(&switch.upstream)?;
            Some((switch.upstream.clone(), switch.at_ms, calls))
        });
        told.collect()
    }

    /// Waits until the last call has ended at an upstream that is disabled. For one listener.
    pub async fn last_call_ended(&self) {
        self.drained.notified().await;
    }

    /// Another process has closed a model: it is closed here for the same time. An upstream that
    /// this process does not have is passed over.
    pub fn follow_cooldown(&self, cooldown: &Cooldown) {
        let state = self.lock();
        let is_closed = cooldown::follow(&self.backends, cooldown);
        if is_closed {
            self.note_trouble();
        }
        drop(state);
        if is_closed {
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
        state.giving_up.has_lines(lines);
        state.give_up_if_hopeless(Instant::now());
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

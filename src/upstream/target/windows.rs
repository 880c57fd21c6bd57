//! What windows that are found out have to do with calls: what the end of a call shows, and a
//! process's turn.

use tokio::time::Instant;

use super::finish::Ended;
use super::permit::Permit;
use super::targets::{State, Targets};
use super::upstream::Upstream;
use crate::upstream::attempt::result::CallResult;
use crate::upstream::limits::auto::{Ending, EngineLoad, Meter};
use crate::upstream::{StoredWindow, WindowChange, WindowStatus};

impl State {
    /// Tells its window how a call has ended. True if a measurement may be complete now.
    pub(super) fn end_in_window(&mut self, permit: &Permit, ended: &Ended, now: Instant) -> bool {
        let Some((window, stamp)) = permit.target().window.zip(permit.stamp) else {
            return false;
        };
        let ending = match (ended.result, ended.status) {
            (CallResult::Succeeded, _) => Ending::Answered {
                took: now.saturating_duration_since(permit.begun()),
                tokens: ended.used.map_or(0, |used| used.output),
            },
            (CallResult::Limited | CallResult::Unavailable, Some(429 | 503 | 529)) => {
                let wait = ended.retry_after;
                let names_a_time = wait.is_some_and(|wait| !wait.is_zero());
                Ending::TurnedAway { names_a_time }
            }
            _ => Ending::Other,
        };
        self.meters[window].end(stamp, ending)
    }
}

impl Targets {
    /// The names of all windows that are found out, under which they are stored.
    #[must_use]
    pub fn window_names(&self) -> Vec<String> {
        self.windows.names()
    }

    /// Calls in flight in each window, by the windows' numbers.
    #[must_use]
    pub fn in_flight_by_window(&self) -> Vec<usize> {
        let state = self.lock();
        state.meters.iter().map(Meter::in_flight).collect()
    }

    /// Whether this process has something to tell of its windows, or knows nothing of them yet.
    #[must_use]
    pub fn has_window_news(&self) -> bool {
        self.windows.has_news(&self.lock().meters)
    }

    /// Waits until a measurement may be complete. For one listener.
    pub async fn window_due(&self) {
        self.windows.due().notified().await;
    }

    /// This process's turn at the windows of these names: they bound its calls from now on.
    /// `now_ms`: by the clock that all processes have in common. What is to be stored, and what has
    /// changed.
    pub fn take_window_turn(
        &self,
        token: &str,
        now_ms: i64,
        names: &[String],
        stored: &[StoredWindow],
    ) -> (Vec<StoredWindow>, Vec<WindowChange>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let count = |calls: usize| u32::try_from(calls).unwrap_or(u32::MAX);
        let numbers = 0..state.upstreams.len();
        let calls = numbers.map(|number| count(Upstream::calls_at(&state.upstreams, number)));
        let at_upstream: Vec<u32> = calls.collect();
        let counts = (&mut *state.meters, &*at_upstream);
        let of = (names, stored);
        let turn = self
            .windows
            .take_turn((token, now_ms), of, counts, &state.limits);
        drop(guard);
        if !turn.1.is_empty() {
            self.changed.notify_one();
        }
        turn
    }

    /// How all windows stand.
    #[must_use]
    pub fn window_status(&self) -> Vec<WindowStatus> {
        let state = self.lock();
        self.windows.status(&state.meters, &state.limits)
    }

    /// An engine has said something of itself. `before`: our calls there when it was asked.
    pub(in crate::upstream) fn hear_engine(
        &self,
        upstream: usize,
        load: EngineLoad,
        before: usize,
    ) {
        let now = self.in_flight_at(upstream);
        self.windows.hear(upstream, load, before.max(now));
    }
}

//! An engine that writes the tokens of all its calls at one pace: at full pace up to so many calls
//! at once, and beyond that in proportion slower. It says of itself what vLLM does.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How much of the cache the calls fill that the engine works on at full pace: the rest is what
/// engines keep free.
const CACHE_FILLED: f64 = 0.9;

pub(super) struct Engine {
    shared: Arc<Shared>,
    /// What ends calls when they have all their tokens.
    _driver: AbortOnDropHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// The call that ends next may be another one now.
    changed: Notify,
}

struct State {
    /// As many calls at once are worked on at full pace.
    knee: usize,
    /// Tokens a second of each of these.
    rate: f64,
    /// Tokens that each call present has had since the start, at the time `at`.
    served: f64,
    at: Instant,
    /// Calls, by how many tokens each call has had when they end. Some may be gone.
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    /// Those that are not gone, by number.
    writing: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
    /// Calls that are here, before they are written, too.
    present: usize,
    preemptions: usize,
}

/// A call that is at the engine. Dropped, it has left.
pub(super) struct Presence<'a> {
    engine: &'a Engine,
    number: Option<u64>,
}

impl Engine {
    /// `rate`: tokens a second of a call, with no more than `knee` calls at once.
    pub(super) fn start(knee: usize, rate: f64) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                knee,
                rate,
                served: 0.0,
                at: Instant::now(),
                ends: BinaryHeap::new(),
                writing: HashMap::new(),
                next: 0,
                present: 0,
                preemptions: 0,
            }),
            changed: Notify::new(),
        });
        let driver = AbortOnDropHandle::new(tokio::spawn(drive(Arc::clone(&shared))));
        Self {
            shared,
            _driver: driver,
        }
    }

    /// A call has come.
    pub(super) fn enter(&self) -> Presence<'_> {
        self.shared.lock().present += 1;
        Presence {
            engine: self,
            number: None,
        }
    }

    /// As many calls at once are worked on at full pace from now on. Those beyond them that were
    /// worked on are put off.
    pub(super) fn bend_at(&self, knee: usize) {
        let mut state = self.shared.lock();
        state.pass(Instant::now());
        let put_off = state.running().saturating_sub(knee);
        state.preemptions += put_off;
        state.knee = knee;
        drop(state);
        self.shared.changed.notify_one();
    }

    /// In the words of vLLM, in the Prometheus text format.
    pub(super) fn metrics(&self, model: &str) -> String {
        let state = self.shared.lock();
        let (running, waiting) = (state.running(), state.present - state.running());
        let cache = CACHE_FILLED * count(running) / count(state.knee.max(1));
        let mut text = String::new();
        for (name, kind, help, value) in [
            (
                "num_requests_running",
                "gauge",
                "Number of requests in model execution batches.",
                count(running),
            ),
            (
                "num_requests_waiting",
                "gauge",
                "Number of requests waiting to be processed.",
                count(waiting),
            ),
            (
                "kv_cache_usage_perc",
                "gauge",
                "KV-cache usage. 1 means 100 percent usage.",
                cache.min(1.0),
            ),
            (
                "num_preemptions_total",
                "counter",
                "Cumulative number of preemption from the engine.",
                count(state.preemptions),
            ),
        ] {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n\
                 vllm:{name}{{engine=\"0\",model_name=\"{model}\"}} {value:?}"
            );
        }
        text
    }
}

impl Presence<'_> {
    /// Waits until so many tokens are written.
    pub(super) async fn write(&mut self, tokens: usize) {
        let written = {
            let mut state = self.engine.shared.lock();
            state.pass(Instant::now());
            let number = state.next;
            state.next += 1;
            let (done, written) = oneshot::channel();
            // Not negative: so the order of the bits is that of the numbers.
            let end = state.served + count(tokens);
            state.ends.push(Reverse((end.to_bits(), number)));
            state.writing.insert(number, done);
            self.number = Some(number);
            written
        };
        self.engine.shared.changed.notify_one();
        // It is not sent where the engine has stopped: then the call has ended, too.
        let _ = written.await;
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let mut state = self.engine.shared.lock();
        state.pass(Instant::now());
        state.present -= 1;
        if let Some(number) = self.number {
            state.writing.remove(&number);
        }
        drop(state);
        self.engine.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Calls that are worked on; the others wait. Which ones these are changes with each token.
    fn running(&self) -> usize {
        self.present.min(self.knee)
    }

    /// Tokens a second of each call.
    fn pace(&self) -> f64 {
        let slowed = count(self.knee.max(1)) / count(self.present.max(1));
        self.rate * slowed.min(1.0)
    }

    /// Time has passed.
    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.served += passed.as_secs_f64() * self.pace();
        self.at = now;
    }

    /// Ends the calls that have all their tokens. When the next one ends, if there is one.
    fn end_due(&mut self) -> Option<Instant> {
        loop {
            let Reverse((end, number)) = *self.ends.peek()?;
            let missing = f64::from_bits(end) - self.served;
            if !self.writing.contains_key(&number) {
                self.ends.pop();
            } else if missing <= 1e-6 {
                self.ends.pop();
                if let Some(done) = self.writing.remove(&number) {
                    // Whoever waited may have left.
                    let _ = done.send(());
                }
            } else {
                let wait = Duration::try_from_secs_f64(missing / self.pace());
                return Some(self.at + wait.unwrap_or(Duration::from_hours(1)));
            }
        }
    }
}

async fn drive(shared: Arc<Shared>) {
    loop {
        let next = {
            let mut state = shared.lock();
            state.pass(Instant::now());
            state.end_due()
        };
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = shared.changed.notified() => {}
        }
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    /// How long so many calls at once take, of a hundred tokens each.
    async fn time_of(engine: &Engine, calls: usize) -> f64 {
        let began = Instant::now();
        let calls = (0..calls).map(async |_| {
            let mut presence = engine.enter();
            presence.write(100).await;
        });
        join_all(calls).await;
        began.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_slow_down_in_proportion_beyond_the_knee_and_not_below_it() {
        let engine = Engine::start(8, 50.0);
        for (calls, seconds) in [(1, 2.0), (8, 2.0), (16, 4.0), (80, 20.0)] {
            let took = time_of(&engine, calls).await;
            assert!((took - seconds).abs() < 0.01, "{calls}: {took}");
        }
        engine.bend_at(4);
        let took = time_of(&engine, 8).await;
        assert!((took - 4.0).abs() < 0.01, "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_leaves_makes_room_for_the_others() {
        let engine = Engine::start(1, 100.0);
        let began = Instant::now();
        let stays = async {
            let mut presence = engine.enter();
            presence.write(100).await;
        };
        let leaves = async {
            let mut presence = engine.enter();
            let _ = tokio::time::timeout(Duration::from_secs(1), presence.write(100)).await;
        };
        futures::future::join(stays, leaves).await;
        // A second at half the pace, and half a second at full pace.
        let took = began.elapsed().as_secs_f64();
        assert!((took - 1.5).abs() < 0.01, "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_engine_says_how_many_calls_run_and_wait() {
        let engine = Engine::start(2, 1.0);
        let present: Vec<Presence<'_>> = (0..5).map(|_| engine.enter()).collect();
        let text = engine.metrics("m");
        for line in [
            "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2.0",
            "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 3.0",
            "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.9",
            "vllm:num_preemptions_total{engine=\"0\",model_name=\"m\"} 0.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        engine.bend_at(1);
        let text = engine.metrics("m");
        assert!(text.contains("num_preemptions_total{engine=\"0\",model_name=\"m\"} 1.0"));
        drop(present);
        let text = engine.metrics("m");
        assert!(text.contains("num_requests_running{engine=\"0\",model_name=\"m\"} 0.0"));
    }
}

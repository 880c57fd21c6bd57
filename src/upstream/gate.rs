//! Gates: a model at an upstream that answered 429 is left alone for a while, by every line.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pool::Pool;
use super::retry::doubled;
use crate::config;

/// An upstream's index, and what that upstream calls the model.
pub(super) type GateKey = (usize, Arc<str>);

/// More gates than this are not remembered once they have long been open.
const GATES_MAX: usize = 1024;
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
/// A gate that is closed for longer, or for so much longer than they know, is told to the other
/// processes.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// A gate as processes tell each other of it.
#[derive(Clone, Debug)]
pub struct ClosedGate {
    /// The upstream's name.
    pub upstream: String,
    /// What that upstream calls the model.
    pub model: String,
    pub opens: Instant,
}

/// The gates that a 429 has closed and no success has taken away since.
#[derive(Debug, Default)]
pub(super) struct Gates(HashMap<GateKey, Gate>);

#[derive(Debug)]
struct Gate {
    opens: Instant,
    /// 429s in a row, those that came together counted once.
    strikes: u32,
    /// Until when the other processes believe it to be closed.
    told: Option<Instant>,
}

impl Gates {
    /// When the gate opens, if it is closed.
    pub(super) fn closed_until(&self, key: &GateKey, now: Instant) -> Option<Instant> {
        if self.0.is_empty() {
            return None; // nearly always, and cheaper than hashing a name
        }
        let opens = self.0.get(key)?.opens;
        (opens > now).then_some(opens)
    }

    /// A call that began at `begun` was answered with 429: closes the gate for as long as the
    /// server asked, else for longer each time in a row (half of it by chance: `random` in 0..1).
    pub(super) fn close(
        &mut self,
        key: &GateKey,
        (begun, now): (Instant, Instant),
        told: Option<Duration>,
        config: &config::Retry,
        random: f64,
    ) {
        self.forget_long_open(now);
        let gate = self.0.entry(key.clone()).or_insert(Gate {
            opens: begun,
            strikes: 0,
            told: None,
        });
        // Calls that were under way when the gate closed say nothing new, unless the server does.
        let is_news = begun >= gate.opens;
        gate.strikes = gate.strikes.saturating_add(u32::from(is_news));
        let own = doubled(config.initial_backoff, gate.strikes.saturating_sub(1))
            .min(config.max_backoff)
            .mul_f64(0.5 + random / 2.0);
        // "Retry after 0 s" would be a tight loop.
        let told = told.filter(|told| !told.is_zero());
        if let Some(wait) = told.or(is_news.then_some(own)) {
            gate.opens = gate.opens.max(now + wait);
        }
    }

    /// A call that began at `begun` succeeded: 429s are counted anew, unless the gate closed since.
    pub(super) fn forgive(&mut self, key: &GateKey, begun: Instant) {
        if !self.0.is_empty() && self.0.get(key).is_some_and(|gate| gate.opens <= begun) {
            self.0.remove(key);
        }
    }

    /// The gates that the other processes should know of.
    fn to_tell(&self, now: Instant) -> impl Iterator<Item = (&GateKey, Instant)> {
        let gates = self.0.iter().filter(move |(_, gate)| {
            let known = gate.told.map_or(now, |told| told.max(now));
            gate.opens > known + WORTH_TELLING
        });
        gates.map(|(key, gate)| (key, gate.opens))
    }

    pub(super) fn have_news(&self, now: Instant) -> bool {
        self.to_tell(now).next().is_some()
    }

    fn forget_long_open(&mut self, now: Instant) {
        if self.0.len() >= GATES_MAX {
            self.0.retain(|_, gate| gate.opens + FORGOTTEN_AFTER > now);
        }
    }

    /// The others believe that the gate is closed until then; so it is, at least.
    fn known(&mut self, key: &GateKey, opens: Instant) {
        self.forget_long_open(Instant::now());
        let gate = self.0.entry(key.clone()).or_insert(Gate {
            opens,
            strikes: 0,
            told: None,
        });
        gate.opens = gate.opens.max(opens);
        gate.told = gate.told.max(Some(opens));
    }

    /// When the next of the closed gates opens.
    pub(super) fn next_opening(&self, now: Instant) -> Option<Instant> {
        let closed = self.0.values().filter(|gate| gate.opens > now);
        closed.map(|gate| gate.opens).min()
    }
}

impl Pool {
    /// Gates that stay closed for a while, which other processes do not know yet.
    #[must_use]
    pub fn gates_to_tell(&self) -> Vec<ClosedGate> {
        let state = self.lock();
        let gates = state.gates.to_tell(Instant::now());
        let told = gates.map(|((upstream, model), opens)| ClosedGate {
            upstream: self.upstreams[*upstream].name.clone(),
            model: model.to_string(),
            opens,
        });
        told.collect()
    }

    /// Takes in what processes have told each other of a gate. An upstream that is not known here
    /// is passed over.
    pub fn know_gate(&self, gate: &ClosedGate) {
        let named = |upstream: &super::client::Upstream| upstream.name == gate.upstream;
        if let Some(upstream) = self.upstreams.iter().position(named) {
            let key = (upstream, gate.model.as_str().into());
            self.lock().gates.known(&key, gate.opens);
            self.gate_closed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: config::Retry = config::Retry {
        max_attempts: 5,
        initial_backoff: Duration::from_millis(500),
        max_backoff: Duration::from_secs(4),
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_gate_stays_closed_for_as_long_as_the_server_asked() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        let key = (0, "a".into());
        assert_eq!(gates.closed_until(&key, now), None);
        gates.close(&key, (now, now), Some(ms(9000)), &CONFIG, 0.0);
        assert_eq!(gates.closed_until(&key, now), Some(now + ms(9000)));
        assert_eq!(gates.next_opening(now), Some(now + ms(9000)));
        assert_eq!(gates.closed_until(&key, now + ms(9000)), None);
        for other in [(1, "a".into()), (0, "b".into())] {
            assert_eq!(gates.closed_until(&other, now), None);
        }
        gates.close(&key, (now, now + ms(10)), Some(ms(1)), &CONFIG, 0.0);
        assert_eq!(
            gates.closed_until(&key, now),
            Some(now + ms(9000)),
            "never shortened"
        );
    }

    #[test]
    fn untold_it_waits_longer_with_each_round_of_429s_until_one_succeeds() {
        let mut gates = Gates::default();
        let mut now = Instant::now();
        let key = (0, "a".into());
        for wait in [500, 1000, 2000, 4000, 4000] {
            for late in [0, 1, 2] {
                gates.close(&key, (now, now + ms(late)), Some(ms(0)), &CONFIG, 1.0);
            }
            assert_eq!(gates.closed_until(&key, now), Some(now + ms(wait)));
            gates.forgive(&key, now);
            assert!(
                gates.closed_until(&key, now).is_some(),
                "begun before it closed"
            );
            now += ms(wait);
        }
        gates.forgive(&key, now);
        gates.close(&key, (now, now), None, &CONFIG, 0.0);
        assert_eq!(gates.closed_until(&key, now), Some(now + ms(250)));
    }

    #[test]
    fn gates_long_open_are_forgotten_when_there_are_many() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        for model in 0..GATES_MAX {
            gates.close(
                &(0, model.to_string().into()),
                (now, now),
                None,
                &CONFIG,
                0.0,
            );
        }
        let later = now + FORGOTTEN_AFTER + ms(10_000);
        gates.close(&(0, "one more".into()), (later, later), None, &CONFIG, 0.0);
        assert_eq!(gates.0.len(), 1);
    }
}

//! What the simulator saw, so that a test can hold a client to its promises.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::keys::KeyStats;
use super::prefix::PrefixStats;
use super::rate::{LimitStats, Need};

/// Models beyond this many are counted in the total only: a client may invent names for ever.
const MAX_MODELS: usize = 1000;

/// What `GET /stats` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Over all models, and calls whose model could not be read.
    #[serde(flatten)]
    pub total: Counts,
    /// By the name that the request gave.
    pub models: BTreeMap<String, Counts>,
    /// Kept with `Options::track` only.
    pub bodies: Option<Bodies>,
    /// With `Options::api_keys` only, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<KeyStats>>,
    /// With `Options::rate_limits` only, in their order, those of each key after each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Vec<LimitStats>>,
    /// With `Options::prefix_cache` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<PrefixStats>,
}

/// How calls went. `calls` is always the sum of `answered`, `errors`, `cut`, `abandoned` and
/// `in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub calls: u64,
    /// With a status from 200 to 299, in full.
    pub answered: u64,
    /// How many got each other status.
    pub errors: BTreeMap<u16, u64>,
    /// Calls whose connection the simulator cut, because the request said so.
    pub cut: u64,
    /// Calls whose client left before the answer.
    pub abandoned: u64,
    pub in_flight: u64,
    pub most_in_flight: u64,
    /// What the answers say that they used, whoever has them.
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// Whether anything came twice. Bodies are told apart by a 64-bit hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bodies {
    /// How many different bodies came.
    pub distinct: u64,
    /// How often the one that came most often did.
    pub most_calls: u64,
    /// How often the one that was answered most often was.
    pub most_answered: u64,
    /// What one answer to each of them says that it used: what a client used that has kept one
    /// answer to each.
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Status(u16),
    Cut,
    Abandoned,
}

/// Keeps the counts. One lock for all of it: it is held for nanoseconds.
pub(super) struct Ledger {
    track: bool,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    total: Counts,
    models: HashMap<String, Counts>,
    bodies: HashMap<u64, Seen>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    calls: u32,
    answered: u32,
    /// By the last answer.
    used: Need,
}

impl Ledger {
    pub(super) fn new(track: bool) -> Self {
        Self {
            track,
            pages: Mutex::default(),
        }
    }

    /// Notes that a call has come. Dropped before it is closed, it was abandoned.
    pub(super) fn open(self: &Arc<Self>) -> OpenCall {
        self.pages().total.open();
        OpenCall {
            ledger: Arc::clone(self),
            model: None,
            body: None,
            used: Need::default(),
            is_open: true,
            slot: None,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let pages = self.pages();
        let bodies = self.track.then(|| {
            let seen = || pages.bodies.values();
            Bodies {
                distinct: u64::try_from(pages.bodies.len()).unwrap_or(u64::MAX),
                most_calls: seen().map(|s| s.calls).max().unwrap_or(0).into(),
                most_answered: seen().map(|s| s.answered).max().unwrap_or(0).into(),
                input_tokens: seen().map(|s| s.used.input).sum(),
                output_tokens: seen().map(|s| s.used.output).sum(),
            }
        });
        Stats {
            total: pages.total.clone(),
            models: pages
                .models
                .iter()
                .map(|(name, counts)| (name.clone(), counts.clone()))
                .collect(),
            bodies,
            keys: None,
            limits: None,
            prefixes: None,
        }
    }

    /// Forgets everything but the calls in flight, the bodies seen included.
    pub(super) fn reset(&self) {
        let mut pages = self.pages();
        pages.total.reset();
        pages.models.retain(|_, counts| counts.in_flight > 0);
        pages.models.values_mut().for_each(Counts::reset);
        pages.bodies.clear();
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn open(&mut self) {
        self.calls += 1;
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
    }

    fn close(&mut self, end: End, used: Need) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match end {
            End::Status(200..=299) => {
                self.answered += 1;
                self.input_tokens += used.input;
                self.output_tokens += used.output;
            }
            End::Status(status) => *self.errors.entry(status).or_default() += 1,
            End::Cut => self.cut += 1,
            End::Abandoned => self.abandoned += 1,
        }
    }

    fn reset(&mut self) {
        *self = Self {
            calls: self.in_flight,
            in_flight: self.in_flight,
            most_in_flight: self.in_flight,
            ..Self::default()
        };
    }
}

/// A call that has come and is not yet answered.
pub(super) struct OpenCall {
    ledger: Arc<Ledger>,
    model: Option<String>,
    body: Option<u64>,
    /// What its answer says that it used.
    used: Need,
    is_open: bool,
    /// The place that it takes until it is closed.
    slot: Option<OwnedSemaphorePermit>,
}

impl OpenCall {
    /// Counts the call to its model.
    pub(super) fn of_model(&mut self, name: &str) {
        let mut pages = self.ledger.pages();
        if let Some(counts) = pages.models.get_mut(name) {
            counts.open();
        } else if pages.models.len() < MAX_MODELS {
            pages.models.entry(name.to_owned()).or_default().open();
        } else {
            return;
        }
        drop(pages);
        self.model = Some(name.to_owned());
    }

    /// Counts the call to its body, and says how many there were with it before.
    pub(super) fn of_body(&mut self, fingerprint: u64) -> u32 {
        self.body = Some(fingerprint);
        let mut pages = self.ledger.pages();
        let seen = pages.bodies.entry(fingerprint).or_default();
        seen.calls = seen.calls.saturating_add(1);
        seen.calls - 1
    }

    /// Takes a place until the call is closed.
    pub(super) fn hold(&mut self, slot: OwnedSemaphorePermit) {
        self.slot = Some(slot);
    }

    /// What the answer says that it used. Counts if the answer is sent in full.
    pub(super) fn billing(mut self, used: Need) -> Self {
        self.used = used;
        self
    }

    pub(super) fn close(mut self, end: End) {
        self.end(end);
    }

    /// Counts how the call ended.
    fn end(&mut self, end: End) {
        self.is_open = false;
        drop(self.slot.take());
        let mut pages = self.ledger.pages();
        let used = self.used;
        pages.total.close(end, used);
        if let Some(counts) = self.model.as_ref().and_then(|m| pages.models.get_mut(m)) {
            counts.close(end, used);
        }
        if let End::Status(200..=299) = end
            && let Some(seen) = self.body.and_then(|body| pages.bodies.get_mut(&body))
        {
            seen.answered = seen.answered.saturating_add(1);
            seen.used = used;
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.is_open {
            self.end(End::Abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_counted_once_whatever_becomes_of_it() {
        let ledger = Arc::new(Ledger::new(true));
        let ends = [End::Status(200), End::Status(429), End::Cut];
        for end in ends {
            let mut call = ledger.open();
            call.of_model("m");
            call.close(end);
        }
        drop(ledger.open());
        let waiting = ledger.open();

        let total = ledger.stats().total;
        assert_eq!((total.calls, total.answered, total.cut), (5, 1, 1));
        assert_eq!(
            (total.abandoned, total.in_flight, total.most_in_flight),
            (1, 1, 1)
        );
        assert_eq!(total.errors, BTreeMap::from([(429, 1)]));
        assert_eq!(ledger.stats().models["m"].calls, 3);
        drop(waiting);
    }

    #[test]
    fn a_body_that_comes_twice_is_noticed() {
        let ledger = Arc::new(Ledger::new(true));
        let used = Need {
            input: 3,
            output: 5,
        };
        let ends = [(1, 500, 0), (1, 200, 1), (2, 200, 0), (2, 200, 1)];
        for (fingerprint, status, before) in ends {
            let mut call = ledger.open();
            assert_eq!(call.of_body(fingerprint), before);
            call.billing(used).close(End::Status(status));
        }
        let bodies = ledger.stats().bodies.unwrap();
        assert_eq!(
            (bodies.distinct, bodies.most_calls, bodies.most_answered),
            (2, 2, 2)
        );
        // Two bodies, one of which was answered twice.
        assert_eq!((bodies.input_tokens, bodies.output_tokens), (6, 10));
        let total = ledger.stats().total;
        assert_eq!((total.input_tokens, total.output_tokens), (9, 15));
    }

    #[test]
    fn a_reset_keeps_the_calls_in_flight() {
        let ledger = Arc::new(Ledger::new(true));
        ledger.open().close(End::Status(200));
        let waiting = ledger.open();
        ledger.reset();
        let total = ledger.stats().total;
        assert_eq!((total.calls, total.answered, total.in_flight), (1, 0, 1));
        waiting.close(End::Status(200));
        let total = ledger.stats().total;
        assert_eq!((total.calls, total.answered, total.in_flight), (1, 1, 0));
    }

    #[test]
    fn names_of_models_do_not_fill_the_memory() {
        let ledger = Arc::new(Ledger::new(false));
        for n in 0..2 * MAX_MODELS {
            let mut call = ledger.open();
            call.of_model(&n.to_string());
            call.close(End::Status(200));
        }
        assert_eq!(ledger.stats().models.len(), MAX_MODELS);
        assert_eq!(ledger.stats().total.calls, 2000);
    }
}

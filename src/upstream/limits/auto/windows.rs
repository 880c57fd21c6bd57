//! All windows of this process: which there are, how they stood after its last turn, and what
//! engines have said since.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::engine::EngineLoad;
use super::meter::Meter;
use super::search::Reason;
use super::spec::WindowSpec;
use super::window::{START, Turn, Window};
use crate::upstream::limits::concurrency::Limits;

/// A process takes a turn once a second, or sooner where a measurement may be complete.
const TURN_MS: i64 = 900;

/// A window as it is stored: what is in it, this room alone knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWindow {
    pub name: String,
    pub state: String,
}

/// How a window has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowChange {
    pub name: String,
    /// Calls at once.
    pub before: u32,
    pub after: u32,
    pub reason: &'static str,
}

/// How a window stands, as operators read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowStatus {
    /// The upstream's name.
    pub upstream: String,
    /// What the upstream calls the model, or the pattern that its models have in common.
    pub model: String,
    /// Calls at once that all processes may make now.
    pub window: u32,
    /// Never more.
    pub most: u32,
    /// Grows with each change.
    pub generation: u64,
    /// Of the last change.
    pub reason: &'static str,
    /// Calls that this process has in flight.
    pub in_flight: usize,
    /// How many it may have.
    pub share: usize,
}

/// How a window stood after this process's last turn.
#[derive(Clone, Copy, Debug)]
struct Known {
    allowed: u32,
    generation: u64,
    reason: Reason,
    turn_ms: Option<i64>,
}

/// What an engine has said since the last turn, and how many of our calls were there meanwhile.
#[derive(Clone, Copy, Debug)]
struct Heard {
    load: EngineLoad,
    ours: u32,
}

/// All windows of this process.
#[derive(Debug)]
pub(in crate::upstream) struct Windows {
    specs: Box<[WindowSpec]>,
    names: Box<[String]>,
    known: Mutex<Vec<Known>>,
    /// By upstream.
    heard: Mutex<Vec<Option<Heard>>>,
    /// A measurement may be complete.
    due: Notify,
}

impl Windows {
    pub(in crate::upstream) fn new(specs: Vec<WindowSpec>, upstreams: usize) -> Self {
        let known = specs.iter().map(|spec| Known {
            allowed: START.min(spec.most()),
            generation: 0,
            reason: Reason::Start,
            turn_ms: None,
        });
        Self {
            known: Mutex::new(known.collect()),
            names: specs.iter().map(|spec| spec.name.clone()).collect(),
            heard: Mutex::new(vec![None; upstreams]),
            due: Notify::new(),
            specs: specs.into(),
        }
    }

    /// The names under which they are stored; empty where there are none.
    pub(in crate::upstream) fn names(&self) -> &[String] {
        &self.names
    }

    /// What a process counts, for each window.
    pub(in crate::upstream) fn meters(&self) -> Vec<Meter> {
        self.specs.iter().map(|_| Meter::default()).collect()
    }

    /// An engine has said something. `ours`: the most of our calls that were there meanwhile.
    pub(in crate::upstream) fn hear(&self, upstream: usize, load: EngineLoad, ours: usize) {
        let ours = u32::try_from(ours).unwrap_or(u32::MAX);
        lock(&self.heard)[upstream] = Some(Heard { load, ours });
    }

    pub(in crate::upstream) fn due(&self) -> &Notify {
        &self.due
    }

    /// Whether a turn would tell anything, or learn what the process does not know yet.
    pub(in crate::upstream) fn has_news(&self, meters: &[Meter]) -> bool {
        let known = lock(&self.known);
        let all = self.specs.iter().zip(&*known).zip(meters);
        let mut all = all
            .map(|((spec, known), meter)| known.turn_ms.is_none() || has_news(spec, *known, meter));
        all.any(|has_news| has_news)
    }

    /// A process's turn at all windows: reads how they stand, takes its turn at those of which it
    /// has something to tell, and lets them bound its calls from now on. What is to be stored, and
    /// what has changed.
    pub(in crate::upstream) fn take_turn(
        &self,
        (token, now_ms): (&str, i64),
        stored: &[StoredWindow],
        (meters, at_upstream): (&mut [Meter], &[u32]),
        limits: &Limits,
    ) -> (Vec<StoredWindow>, Vec<WindowChange>) {
        let (mut entries, mut changes) = (Vec::new(), Vec::new());
        let heard = {
            let mut heard = lock(&self.heard);
            heard.iter_mut().map(Option::take).collect::<Vec<_>>()
        };
        let mut known = lock(&self.known);
        let all = self.specs.iter().zip(known.iter_mut()).zip(meters);
        for (number, ((spec, known), meter)) in all.enumerate() {
            let found = stored.iter().find(|stored| stored.name == spec.name);
            let window = found.and_then(|stored| Window::read(&stored.state));
            let mut window = window.unwrap_or_else(|| Window::new(now_ms, spec.most()));
            let before = window.allowed(now_ms);
            let heard = heard[spec.upstream];
            let is_due = known.turn_ms.is_none_or(|last| now_ms - last >= TURN_MS);
            let speaks = heard.is_some() || is_due || meter.has_enough();
            if speaks && (has_news(spec, *known, meter) || before > spec.most()) {
                let turn = Turn {
                    token,
                    now_ms,
                    most: spec.most(),
                    yields: spec.yields,
                    load: heard.map(|heard| heard.load),
                    at_upstream: heard.map_or(at_upstream[spec.upstream], |heard| heard.ours),
                };
                window.turn(turn, &meter.report());
                known.turn_ms = Some(now_ms);
                entries.push(StoredWindow {
                    name: spec.name.clone(),
                    state: window.stored(),
                });
            }
            known.turn_ms.get_or_insert(now_ms);
            let allowed = window.allowed(now_ms);
            let reason = window.reason(now_ms);
            if allowed != before {
                changes.push(WindowChange {
                    name: spec.name.clone(),
                    before,
                    after: allowed,
                    reason: reason.as_str(),
                });
            }
            known.allowed = allowed;
            known.generation = window.generation();
            known.reason = reason;
            limits.resize_window(number, allowed as usize);
            // Of what is missing, this process brings its part.
            let part = limits.of_window(number) as f64 / f64::from(allowed.max(1));
            let wanted = f64::from(window.wanted()) * part.min(1.0);
            meter.follow(window.generation(), window.overhead(), wanted.ceil() as u32);
        }
        (entries, changes)
    }

    /// How all windows stand.
    pub(in crate::upstream) fn status(
        &self,
        meters: &[Meter],
        limits: &Limits,
    ) -> Vec<WindowStatus> {
        let known = lock(&self.known);
        let all = self.specs.iter().zip(&*known).zip(meters).enumerate();
        let status = all.map(|(number, ((spec, known), meter))| WindowStatus {
            upstream: spec.upstream_name.clone(),
            model: spec.model.clone(),
            window: known.allowed,
            most: spec.most(),
            generation: known.generation,
            reason: known.reason.as_str(),
            in_flight: meter.in_flight(),
            share: limits.of_window(number),
        });
        status.collect()
    }
}

/// Whether a process has something to tell of a window. Where others have the right of way, it has:
/// else nobody would notice that they are gone.
fn has_news(spec: &WindowSpec, known: Known, meter: &Meter) -> bool {
    meter.has_news() || (spec.yields && known.reason == Reason::Yield)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

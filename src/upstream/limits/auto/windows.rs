//! All windows of this process: which there are, how they stood after its last turn, and what
//! engines have said since.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::engine::EngineLoad;
use super::meter::Meter;
use super::search::Reason;
use super::spec::WindowSpec;
use super::window::{START, Turn, Window};
use crate::upstream::limits::concurrency::Limits;
use crate::upstream::numbers::Number;

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

/// A window, and how it stood after this process's last turn.
#[derive(Debug)]
struct One {
    spec: WindowSpec,
    known: Known,
    /// It is not found out any more.
    is_gone: bool,
}

impl One {
    fn new(spec: WindowSpec) -> Self {
        Self {
            known: Known {
                allowed: START.min(spec.most()),
                generation: 0,
                reason: Reason::Start,
                turn_ms: None,
            },
            spec,
            is_gone: false,
        }
    }
}

/// All windows of this process.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Windows {
    /// By their numbers.
    all: Mutex<Vec<One>>,
    /// By the number of the upstream.
    heard: Mutex<HashMap<usize, Heard>>,
    /// A measurement may be complete.
    due: Notify,
}

impl Windows {
    /// These are the windows from now on, with their numbers. What keeps its number keeps what is
    /// known of it. `meters`: what the process counts, by the same numbers.
    pub(in crate::upstream) fn configure(
        &self,
        specs: Vec<(Number, WindowSpec)>,
        meters: &mut Vec<Meter>,
    ) {
        let mut all = lock(&self.all);
        all.iter_mut().for_each(|one| one.is_gone = true);
        for (number, spec) in specs {
            match all.get_mut(number.at) {
                Some(one) if !number.is_new => (one.spec, one.is_gone) = (spec, false),
                Some(one) => {
                    *one = One::new(spec);
                    meters[number.at] = Meter::default();
                }
                // Numbers are given from the lowest on.
                None => {
                    all.push(One::new(spec));
                    meters.push(Meter::default());
                }
            }
        }
        lock(&self.heard).clear();
    }

    /// The names under which they are stored; empty where there are none.
    pub(in crate::upstream) fn names(&self) -> Vec<String> {
        let all = lock(&self.all);
        let all = all.iter().filter(|one| !one.is_gone);
        all.map(|one| one.spec.name.clone()).collect()
    }

    /// An engine has said something. `ours`: the most of our calls that were there meanwhile.
    pub(in crate::upstream) fn hear(&self, upstream: usize, load: EngineLoad, ours: usize) {
        let ours = u32::try_from(ours).unwrap_or(u32::MAX);
        lock(&self.heard).insert(upstream, Heard { load, ours });
    }

    pub(in crate::upstream) fn due(&self) -> &Notify {
        &self.due
    }

    /// Whether a turn would tell anything, or learn what the process does not know yet.
    pub(in crate::upstream) fn has_news(&self, meters: &[Meter]) -> bool {
        let all = lock(&self.all);
        let mut all = all.iter().zip(meters).filter(|(one, _)| !one.is_gone);
        all.any(|(one, meter)| one.known.turn_ms.is_none() || has_news(&one.spec, one.known, meter))
    }

    /// A process's turn at the windows of these names: reads how they stand, takes its turn at
    /// those of which it has something to tell, and lets them bound its calls from now on. What is
    /// to be stored, and what has changed.
    pub(in crate::upstream) fn take_turn(
        &self,
        (token, now_ms): (&str, i64),
        (names, stored): (&[String], &[StoredWindow]),
        (meters, at_upstream): (&mut [Meter], &[u32]),
        limits: &Limits,
    ) -> (Vec<StoredWindow>, Vec<WindowChange>) {
        let (mut entries, mut changes) = (Vec::new(), Vec::new());
        let heard = std::mem::take(&mut *lock(&self.heard));
        let mut all = lock(&self.all);
        for (number, (one, meter)) in all.iter_mut().zip(meters).enumerate() {
            // Of a window that has come since, nothing was read.
            if one.is_gone || !names.contains(&one.spec.name) {
                continue;
            }
            let One { spec, known, .. } = one;
            let found = stored.iter().find(|stored| stored.name == spec.name);
            let window = found.and_then(|stored| Window::read(&stored.state));
            let mut window = window.unwrap_or_else(|| Window::new(now_ms, spec.most()));
            let before = window.allowed(now_ms);
            let heard = heard.get(&spec.upstream);
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
        let all = lock(&self.all);
        let all = all.iter().zip(meters).enumerate();
        let all = all.filter(|(_, (one, _))| !one.is_gone);
        let status = all.map(|(number, (One { spec, known, .. }, meter))| WindowStatus {
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

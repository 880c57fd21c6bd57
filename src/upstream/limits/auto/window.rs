//! One window of the whole fleet: how many calls at once a model at an upstream may have. It is
//! stored, so that any process can take a turn, and so that a restart goes on with what was found.
//! Processes take turns, never two at once. Pure: the time is an argument.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::engine::{Engine, EngineLoad, Signal, Traffic};
use super::pace::{Paces, Trend};
use super::search::{Measured, Phase, Point, Reason};

/// The first window.
pub(super) const START: u32 = 16;
/// A measurement has so many answers at least, and is made of what came within this time.
const ANSWERS_MIN: f64 = 16.0;
const MEASURED_WITHIN_MS: i64 = 600_000;
/// After that time, so few are better than none.
const ANSWERS_AFTER_ALL: f64 = 8.0;
/// More answers are waited for until the median is known to this part of itself, but at most so
/// many times as many.
const PRECISION: f64 = 0.025;
const PATIENCE: f64 = 3.0;
/// The window is in use where calls find it filled to this part.
const IN_USE: f64 = 0.8;
/// So many times as many calls at once as there really were may be tried.
const BEYOND_USE: u32 = 2;

/// Calls that were turned away are a loss from so many on, and, where the server said when to come
/// again, from this part of all calls on: a rate limit of the server turns some away whatever the
/// window is.
const LOSSES_MIN: u32 = 2;
const LOSSES_ALL_MIN: f64 = 8.0;
const LOSS_WITH_A_TIME_MIN: f64 = 0.05;
/// What a signal of the engine's own leaves of the window.
const CUT: f64 = 0.9;

/// What a process that was silent for so long had in flight counts no more.
const MEMBER_MS: i64 = 5_000;

/// The overhead of a call is learned anew where it differs by so much of a call's work, from so
/// many calls.
const OVERHEAD_DIFFERS: f64 = 0.15;
const OVERHEAD_CALLS: f64 = 200.0;
const OVERHEAD_FADES: f64 = 0.7;
/// A pace that differs by no more than this, as a power of e, is the same.
const SAME_PACE: f64 = 0.1;

/// What calls have shown that began in the present generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Evidence {
    pub(super) answers: u32,
    /// Turned away for lack of room.
    pub(super) refused: u32,
    /// Turned away with a word on when to come again.
    pub(super) delayed: u32,
    /// Over the answered calls, when each began: how many were in flight, and could have been.
    pub(super) in_flight: u64,
    pub(super) room: u64,
    pub(super) paces: Paces,
    pub(super) trend: Trend,
}

impl Evidence {
    fn add(&mut self, other: &Self) {
        self.answers = self.answers.saturating_add(other.answers);
        self.refused = self.refused.saturating_add(other.refused);
        self.delayed = self.delayed.saturating_add(other.delayed);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.room = self.room.saturating_add(other.room);
        self.paces.add(&other.paces);
        self.trend.add(&other.trend);
    }

    fn is_in_use(&self) -> bool {
        self.in_flight as f64 >= IN_USE * self.room as f64
    }
}

/// What a process says in its turn.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// The generation in which the calls began.
    pub(super) generation: u64,
    pub(super) seen: Evidence,
    /// Calls in flight now, and the most since the last report.
    pub(super) in_flight: u32,
    pub(super) peak: u32,
}

/// A process's turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    pub(super) token: &'a str,
    pub(super) now_ms: i64,
    /// The window is never larger.
    pub(super) most: u32,
    /// Whether others have the right of way at the engine.
    pub(super) yields: bool,
    /// What the engine said of itself, where the process has just asked.
    pub(super) load: Option<EngineLoad>,
    /// Calls that the process has in flight at the upstream, of whatever model.
    pub(super) at_upstream: u32,
}

/// What a process has in flight, as it last said.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Member {
    in_flight: u32,
    peak: u32,
    at_upstream: u32,
    at_ms: i64,
}

/// A window, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Window {
    size: u32,
    /// Grows with each change; calls are stamped with it.
    generation: u64,
    /// Of the last change.
    reason: Reason,
    phase: Phase,
    seen: Evidence,
    /// Since when that is collected.
    since_ms: i64,
    members: BTreeMap<String, Member>,
    /// Of a call, in tokens. `None`: not known yet.
    overhead: Option<f64>,
    /// Of calls while the window was held.
    trend: Trend,
    engine: Engine,
}

impl Window {
    pub(super) fn new(now_ms: i64, most: u32) -> Self {
        Self {
            size: START.min(most),
            generation: 1,
            reason: Reason::Start,
            phase: Phase::first(),
            seen: Evidence::default(),
            since_ms: now_ms,
            members: BTreeMap::new(),
            overhead: None,
            trend: Trend::default(),
            engine: Engine::default(),
        }
    }

    /// The window that is stored. What cannot be read, because another version wrote it, is as good
    /// as none.
    pub(super) fn read(stored: &str) -> Option<Self> {
        serde_json::from_str(stored).ok()
    }

    pub(super) fn stored(&self) -> String {
        // It cannot fail: there are only numbers, and maps with keys that are text.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Calls at once that may be made now, over all processes: at least one, unless others have the
    /// right of way.
    pub(super) fn allowed(&self, now_ms: i64) -> u32 {
        let cap = self.engine.cap(now_ms).unwrap_or(u32::MAX);
        self.size.min(cap)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn reason(&self, now_ms: i64) -> Reason {
        if self.allowed(now_ms) < self.size {
            Reason::Yield
        } else {
            self.reason
        }
    }

    pub(super) fn overhead(&self) -> f64 {
        self.overhead.unwrap_or(0.0)
    }

    /// How many more answers a measurement needs.
    pub(super) fn wanted(&self) -> u32 {
        let missing = self.needed() - f64::from(self.seen.answers);
        missing.max(1.0).ceil() as u32
    }

    /// A process's turn: takes in what it reports, and what follows from that.
    pub(super) fn turn(&mut self, turn: Turn<'_>, report: &Report) {
        let now_ms = turn.now_ms;
        self.members
            .retain(|_, member| now_ms - member.at_ms < MEMBER_MS);
        let member = Member {
            in_flight: report.in_flight,
            peak: report.peak,
            at_upstream: turn.at_upstream,
            at_ms: now_ms,
        };
        self.members.insert(turn.token.to_owned(), member);
        if report.generation == self.generation {
            self.seen.add(&report.seen);
        }
        if self.size > turn.most {
            self.change(now_ms, turn.most.max(1), Reason::Ceiling);
            return;
        }
        if self.listen(turn) {
            return;
        }
        if self.allowed(now_ms) < self.size {
            // What calls show now, they show of the others' load.
            self.renew(now_ms);
            return;
        }
        if !self.book_losses(now_ms) {
            self.measure(turn);
        }
    }

    fn sum(&self, of: impl Fn(&Member) -> u32) -> u32 {
        let members = self.members.values();
        members.map(of).fold(0, u32::saturating_add)
    }

    /// Takes in what the engine says of itself. True if the window has changed.
    fn listen(&mut self, turn: Turn<'_>) -> bool {
        let Some(load) = turn.load else {
            return false;
        };
        let traffic = Traffic {
            now_ms: turn.now_ms,
            mine: self.sum(|member| member.in_flight),
            ours: self.sum(|member| member.at_upstream),
            window: self.size,
            is_held: matches!(self.phase, Phase::Hold { .. }),
            yields: turn.yields,
        };
        let reason = match self.engine.hear(load, traffic) {
            Signal::Fine => return false,
            Signal::Cache => Reason::Cache,
            Signal::Preemption => Reason::Preemption,
            Signal::Queue => Reason::Queue,
        };
        let cut = (f64::from(self.size) * CUT) as u32;
        self.phase = Phase::hold(None, turn.now_ms);
        self.change(turn.now_ms, cut.max(1), reason)
    }

    /// Calls that were turned away. True if the window has changed.
    fn book_losses(&mut self, now_ms: i64) -> bool {
        let seen = &self.seen;
        let lost = seen.refused.saturating_add(seen.delayed);
        let all = f64::from(seen.answers) + f64::from(lost);
        if lost < LOSSES_MIN || all < (f64::from(self.size) / 2.0).max(LOSSES_ALL_MIN) {
            return false;
        }
        let part = f64::from(lost) / all;
        if seen.delayed >= LOSSES_MIN && part >= LOSS_WITH_A_TIME_MIN {
            let upto = (self.size / 2).max(1);
            self.phase = Phase::SlowStart { upto };
            return self.change(now_ms, upto.min(START), Reason::Cooldown);
        }
        if seen.refused < LOSSES_MIN {
            return false;
        }
        let size = f64::from(self.size) * (1.0 - part / 2.0).max(0.5);
        let size = (size as u32).min(self.size.saturating_sub(1)).max(1);
        self.phase = Phase::Creep { anchor: None };
        self.change(now_ms, size, Reason::Refused)
    }

    /// How many answers a measurement needs.
    fn needed(&self) -> f64 {
        let flights = self.phase.flights_needed();
        let least = (flights * f64::from(self.size)).max(ANSWERS_MIN);
        if f64::from(self.seen.answers) < least {
            return least;
        }
        let precise = self.seen.paces.needed_for(PRECISION);
        precise.clamp(least, PATIENCE * least)
    }

    /// Takes the next step where a measurement is complete.
    fn measure(&mut self, turn: Turn<'_>) {
        let now_ms = turn.now_ms;
        let answers = f64::from(self.seen.answers);
        let is_old = now_ms - self.since_ms >= MEASURED_WITHIN_MS;
        let is_complete = answers >= self.needed() || (is_old && answers >= ANSWERS_AFTER_ALL);
        let Some(pace) = self.seen.paces.median().filter(|_| is_complete) else {
            if is_old {
                self.renew(now_ms);
            }
            return;
        };
        if !self.seen.is_in_use() {
            self.renew(now_ms);
            return;
        }
        if self.learns_overhead(pace) {
            // Paces by another measure cannot be compared with this one.
            self.generation += 1;
            self.renew(now_ms);
            return;
        }
        let used = self.sum(|member| member.peak).max(self.size);
        let measured = Measured {
            point: Point {
                window: self.size,
                pace,
            },
            now_ms,
            flights: answers / f64::from(self.size),
            most: turn.most.min(used.saturating_mul(BEYOND_USE)),
            is_queued: self.engine.is_queued(now_ms),
        };
        let (size, reason) = self.phase.next(measured);
        self.change(now_ms, size.max(1), reason);
    }

    /// Learns how much time calls take beside their tokens. True if that is another than before.
    fn learns_overhead(&mut self, pace: f64) -> bool {
        let Some(known) = self.overhead else {
            self.overhead = self.seen.trend.overhead();
            return self.overhead.is_some_and(|overhead| overhead >= 1.0);
        };
        let Phase::Hold {
            at: Some(at),
            is_doubtful: false,
            ..
        } = self.phase
        else {
            return false;
        };
        if (pace / at.pace).ln().abs() > SAME_PACE {
            return false;
        }
        self.trend.fade(OVERHEAD_FADES);
        self.trend.add(&self.seen.trend);
        let differs = |overhead: &f64| {
            let work = self.trend.mean() + known;
            (overhead - known).abs() > OVERHEAD_DIFFERS * work
        };
        let overhead = self.trend.overhead().filter(differs);
        let Some(overhead) = overhead.filter(|_| self.trend.calls() >= OVERHEAD_CALLS) else {
            return false;
        };
        self.overhead = Some(overhead);
        if let Phase::Hold { at, .. } = &mut self.phase {
            *at = None;
        }
        true
    }

    /// What was collected says nothing of the present any more.
    fn renew(&mut self, now_ms: i64) {
        self.seen = Evidence::default();
        self.since_ms = now_ms;
    }

    /// True if the window is another than before.
    fn change(&mut self, now_ms: i64, size: u32, reason: Reason) -> bool {
        self.renew(now_ms);
        if size == self.size {
            return false;
        }
        self.size = size;
        self.generation += 1;
        self.reason = reason;
        true
    }
}

//! The search for the knee: the smallest window in which the engine writes all but as many tokens a
//! second as in any. Pure.
//!
//! What is compared is goodput by Little's law: the calls in flight over the time that a token
//! takes. To add up the tokens of answers would measure the same with ten times the noise: a few
//! long answers have a large part of all tokens, and they come late.

use serde::{Deserialize, Serialize};

/// A window with this part of the best goodput is enough.
const ENOUGH: f64 = 0.98;
/// To grow by a factor pays where goodput grows by this power of the factor: by 3 % for 10 %, by
/// 23 % for the double.
const PAYS: f64 = 0.3;
/// A window that is so near to the knee is not narrowed further.
const NEAR: f64 = 1.06;
/// The knee that the measurements foretell is tried so far above.
const ABOVE: f64 = 1.03;
/// So many windows are tried before the smallest that was enough is kept.
const TRIES_MAX: u32 = 8;

/// The first step of a probe.
const STEP: f64 = 0.1;
const STEP_DOWN_MAX: f64 = 0.5;
const STEP_UP_MAX: f64 = 1.0;
/// A flight after calls were turned away.
const STEP_AFTER_LOSS: f64 = 0.02;

/// The next probe is due after so many flights, or after so long, but then not without some.
const HELD_FLIGHTS: f64 = 20.0;
const HELD_MS: i64 = 60_000;
const HELD_FLIGHTS_MIN: f64 = 6.0;
/// A token takes so many times as long as it did: the engine, or the load on it, is another.
const SLOWER: f64 = 1.25;
const FASTER: f64 = 0.85;
/// How much a measurement counts beside those before it.
const NEW_PART: f64 = 0.3;

/// What was measured with a window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Point {
    /// Calls at once.
    pub(super) window: u32,
    /// Seconds for a token.
    pub(super) pace: f64,
}

impl Point {
    /// Tokens a second.
    fn goodput(self) -> f64 {
        f64::from(self.window) / self.pace.max(f64::MIN_POSITIVE)
    }

    fn pays_after(self, before: Self) -> bool {
        let growth = f64::from(self.window) / f64::from(before.window.max(1));
        self.goodput() >= before.goodput() * growth.powf(PAYS)
    }
}

/// A measurement that is complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) point: Point,
    pub(super) now_ms: i64,
    /// How many windows full of answers it was made of.
    pub(super) flights: f64,
    /// No window is larger.
    pub(super) most: u32,
    /// The engine has calls waiting: the window does not grow.
    pub(super) is_queued: bool,
}

/// Why a window is as large as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    /// Nothing was measured yet.
    Start,
    /// To grow has paid so far.
    Growth,
    /// A larger window brought nothing.
    NoGain,
    /// The smallest window that is enough was found.
    Knee,
    /// Another size is tried.
    Probe,
    /// Calls were turned away.
    Refused,
    /// The server asked to be left alone for a while.
    Cooldown,
    /// It grows again after that.
    SlowStart,
    /// No more calls at once are configured.
    Ceiling,
    /// The engine has calls waiting.
    Queue,
    /// The engine's cache is all but full.
    Cache,
    /// The engine has begun to put calls off.
    Preemption,
    /// Others use the engine.
    Yield,
}

impl Reason {
    /// As metrics and `/admin/status` have it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Reason::Start => "start",
            Reason::Growth => "growth",
            Reason::NoGain => "no_gain",
            Reason::Knee => "knee",
            Reason::Probe => "probe",
            Reason::Refused => "refused",
            Reason::Cooldown => "cooldown",
            Reason::SlowStart => "slow_start",
            Reason::Ceiling => "ceiling",
            Reason::Queue => "queue",
            Reason::Cache => "cache",
            Reason::Preemption => "preemption",
            Reason::Yield => "yield",
        }
    }
}

/// Where the search stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Grows while that pays.
    Climb {
        before: Option<Point>,
        last: Option<Point>,
        step: f64,
    },
    /// The knee is above `below`, and at most `good`.
    Narrow {
        below: Option<Point>,
        good: Point,
        best: f64,
        tries: u32,
    },
    /// Keeps what was found.
    Hold {
        at: Option<Point>,
        since_ms: i64,
        flights: f64,
        /// The last measurement was another: the next one decides.
        is_doubtful: bool,
    },
    /// Is a smaller window enough, too?
    Down { base: Point, good: Point, step: f64 },
    /// Does a larger window pay?
    Up { base: Point },
    /// Doubles with each flight, up to this.
    SlowStart { upto: u32 },
    /// Grows a little with each flight. `anchor`: what was measured a step below.
    Creep { anchor: Option<Point> },
}

impl Phase {
    /// Nothing is known: doubles with each measurement.
    pub(super) fn first() -> Self {
        Self::Climb {
            before: None,
            last: None,
            step: STEP_UP_MAX,
        }
    }

    pub(super) fn hold(at: Option<Point>, now_ms: i64) -> Self {
        Self::Hold {
            at,
            since_ms: now_ms,
            flights: 0.0,
            is_doubtful: false,
        }
    }

    /// How many windows full of answers a measurement needs.
    pub(super) fn flights_needed(&self) -> f64 {
        match self {
            Self::SlowStart { .. } | Self::Creep { .. } => 1.0,
            _ => 2.0,
        }
    }

    /// What follows from a measurement: the next window, which may be the same, and why.
    pub(super) fn next(&mut self, it: Measured) -> (u32, Reason) {
        let point = it.point;
        match *self {
            Self::Climb { before, last, step } => self.climb(it, before, last, step),
            Self::Narrow {
                below,
                good,
                best,
                tries,
            } => {
                if point.goodput() >= ENOUGH * best {
                    self.narrow(it, (below, point), best.max(point.goodput()), tries + 1)
                } else {
                    self.narrow(it, (Some(point), good), best, tries + 1)
                }
            }
            Self::Hold { at: None, .. } => {
                *self = Self::hold(Some(point), it.now_ms);
                (point.window, Reason::Knee)
            }
            Self::Hold { at: Some(at), .. } => self.held(it, at),
            Self::Down { base, good, step } => {
                if point.goodput() >= ENOUGH * base.goodput() {
                    self.down(it, base, point, (2.0 * step).min(STEP_DOWN_MAX))
                } else if good.window < base.window {
                    self.narrow(it, (Some(point), good), base.goodput(), 0)
                } else {
                    self.up(it, base)
                }
            }
            Self::Up { base } => {
                if !it.is_queued && point.pays_after(base) {
                    return self.climb(it, None, Some(base), STEP);
                }
                *self = Self::hold(Some(base), it.now_ms);
                (base.window.min(it.most), Reason::NoGain)
            }
            Self::SlowStart { upto } => {
                let window = grown(point.window, STEP_UP_MAX).min(upto).min(it.most);
                if window >= upto.min(it.most) {
                    *self = Self::Creep { anchor: None };
                }
                (window, Reason::SlowStart)
            }
            Self::Creep { anchor } => self.creep(it, anchor),
        }
    }

    fn climb(
        &mut self,
        it: Measured,
        before: Option<Point>,
        last: Option<Point>,
        step: f64,
    ) -> (u32, Reason) {
        let point = it.point;
        if let Some(last) = last
            && (it.is_queued || !point.pays_after(last))
        {
            let best = last.goodput().max(point.goodput());
            return if last.goodput() >= ENOUGH * best {
                self.narrow(it, (before, last), best, 0)
            } else {
                self.narrow(it, (Some(last), point), best, 0)
            };
        }
        let step = match last {
            Some(_) => (2.0 * step).min(STEP_UP_MAX),
            None => step,
        };
        let window = grown(point.window, step).min(it.most);
        if window <= point.window || it.is_queued {
            *self = Self::hold(Some(point), it.now_ms);
            let reason = if it.is_queued {
                Reason::Queue
            } else {
                Reason::Ceiling
            };
            return (point.window, reason);
        }
        *self = Self::Climb {
            before: last,
            last: Some(point),
            step,
        };
        (window, Reason::Growth)
    }

    /// Tries a window between one that is not enough and one that is.
    fn narrow(
        &mut self,
        it: Measured,
        (below, good): (Option<Point>, Point),
        best: f64,
        tries: u32,
    ) -> (u32, Reason) {
        let low = below.map_or(0, |below| below.window);
        // In a larger window a token takes no less time than in a smaller one: so the knee is not
        // below this.
        let foretold = below.map_or(0.0, |below| ENOUGH * best * below.pace);
        let least = foretold.max(f64::from(low));
        let is_near = f64::from(good.window) <= NEAR * least;
        if is_near || tries >= TRIES_MAX || good.window.saturating_sub(low) <= 1 {
            *self = Self::hold(Some(good), it.now_ms);
            return (good.window.min(it.most), Reason::Knee);
        }
        let next = match below {
            None => f64::from(good.window) / 2.0,
            Some(_) if tries.is_multiple_of(2) => ABOVE * least,
            Some(_) => (least * f64::from(good.window)).sqrt(),
        };
        *self = Self::Narrow {
            below,
            good,
            best,
            tries,
        };
        let next = whole(next).clamp(low + 1, good.window - 1);
        (next.min(it.most), Reason::NoGain)
    }

    /// Another measurement with the window that is held.
    fn held(&mut self, it: Measured, at: Point) -> (u32, Reason) {
        let Self::Hold {
            since_ms,
            flights,
            is_doubtful,
            ..
        } = *self
        else {
            return (it.point.window, Reason::Knee);
        };
        let flights = flights + it.flights;
        let ratio = it.point.pace / at.pace.max(f64::MIN_POSITIVE);
        let is_other = !(FASTER..=SLOWER).contains(&ratio);
        if is_other && is_doubtful {
            return if ratio > SLOWER {
                self.down(it, it.point, it.point, STEP)
            } else {
                self.up(it, it.point)
            };
        }
        let at = if is_other {
            at
        } else {
            Point {
                window: it.point.window,
                pace: at.pace + NEW_PART * (it.point.pace - at.pace),
            }
        };
        let is_long = it.now_ms - since_ms >= HELD_MS && flights >= HELD_FLIGHTS_MIN;
        if !is_other && (flights >= HELD_FLIGHTS || is_long) {
            return self.down(it, at, at, STEP);
        }
        *self = Self::Hold {
            at: Some(at),
            since_ms,
            flights,
            is_doubtful: is_other,
        };
        (it.point.window, Reason::Knee)
    }

    fn down(&mut self, it: Measured, base: Point, good: Point, step: f64) -> (u32, Reason) {
        let window = whole(f64::from(good.window) * (1.0 - step));
        let window = window.min(good.window.saturating_sub(1));
        if window > 0 {
            *self = Self::Down { base, good, step };
            return (window, Reason::Probe);
        }
        if good.window == base.window {
            return self.up(it, base);
        }
        *self = Self::hold(Some(good), it.now_ms);
        (good.window, Reason::Knee)
    }

    fn up(&mut self, it: Measured, base: Point) -> (u32, Reason) {
        let window = grown(base.window, STEP).min(it.most);
        if it.is_queued || window <= base.window {
            *self = Self::hold(Some(base), it.now_ms);
            return (base.window.min(it.most), Reason::Knee);
        }
        *self = Self::Up { base };
        (window, Reason::Probe)
    }

    fn creep(&mut self, it: Measured, anchor: Option<Point>) -> (u32, Reason) {
        let point = it.point;
        let known = anchor.filter(|anchor| anchor.window < point.window);
        let mut anchor = known.unwrap_or(point);
        if f64::from(point.window) >= (1.0 + STEP) * f64::from(anchor.window) {
            if !point.pays_after(anchor) {
                *self = Self::hold(Some(anchor), it.now_ms);
                return (anchor.window.min(it.most), Reason::NoGain);
            }
            anchor = point;
        }
        *self = Self::Creep {
            anchor: Some(anchor),
        };
        if it.is_queued {
            return (point.window, Reason::Queue);
        }
        let window = grown(point.window, STEP_AFTER_LOSS).min(it.most);
        (window.max(point.window), Reason::Growth)
    }
}

/// A larger window, by one at least.
fn grown(window: u32, step: f64) -> u32 {
    whole(f64::from(window) * (1.0 + step)).max(window.saturating_add(1))
}

/// The nearest whole number.
fn whole(number: f64) -> u32 {
    number.round() as u32
}

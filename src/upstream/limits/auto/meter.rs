//! What a process counts of a window, call by call, between two turns. Pure.

use std::time::Duration;

use super::pace::PaceCounts;
use super::window::{Evidence, Report};

/// What a call knows of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Stamp {
    generation: u64,
    /// When the call began: how many were in flight with it, and how many could have been.
    in_flight: u32,
    room: u32,
}

/// How a call ended, for its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Ending {
    /// Answered, with so many tokens written; 0 where the answer has none.
    Answered { took: Duration, tokens: u64 },
    /// Turned away for lack of room. `names_a_time`: with a word on when to come again.
    TurnedAway { names_a_time: bool },
    /// In a way that says nothing of how many calls at once there may be.
    Other,
}

/// What one process counts of one window.
#[derive(Debug)]
pub(in crate::upstream) struct Meter {
    generation: u64,
    /// Tokens that could be written in the time that a call takes beside its tokens.
    overhead: f64,
    in_flight: u32,
    /// The most in flight since the last turn.
    peak: u32,
    seen: Evidence,
    paces: PaceCounts,
    /// After so many answers a measurement may be complete.
    wanted: u32,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            generation: 0,
            overhead: 0.0,
            in_flight: 0,
            peak: 0,
            seen: Evidence::default(),
            paces: PaceCounts::default(),
            wanted: u32::MAX,
        }
    }
}

impl Meter {
    #[must_use]
    pub(in crate::upstream) fn in_flight(&self) -> usize {
        self.in_flight as usize
    }

    /// A call begins. `room`: how many calls at once this process may make now.
    pub(in crate::upstream) fn start(&mut self, room: usize) -> Stamp {
        self.in_flight += 1;
        self.peak = self.peak.max(self.in_flight);
        Stamp {
            generation: self.generation,
            in_flight: self.in_flight,
            room: u32::try_from(room).unwrap_or(u32::MAX),
        }
    }

    /// A call has ended. True if a measurement may be complete now.
    pub(in crate::upstream) fn end(&mut self, stamp: Stamp, ending: Ending) -> bool {
        self.in_flight = self.in_flight.saturating_sub(1);
        // A call that began in another window says nothing of this one.
        if stamp.generation != self.generation {
            return false;
        }
        let seen = &mut self.seen;
        match ending {
            Ending::Answered { took, tokens } => {
                seen.answers += 1;
                seen.in_flight += u64::from(stamp.in_flight);
                seen.room += u64::from(stamp.room);
                seen.trend.count(took, tokens);
                self.paces.count(took, tokens as f64 + self.overhead);
            }
            Ending::TurnedAway { names_a_time: true } => seen.delayed += 1,
            Ending::TurnedAway { .. } => seen.refused += 1,
            Ending::Other => {}
        }
        seen.answers + seen.refused + seen.delayed == self.wanted
    }

    /// Whether there is anything to report.
    #[must_use]
    pub(super) fn has_news(&self) -> bool {
        self.peak > 0 || self.seen != Evidence::default()
    }

    /// Whether a measurement may be complete with what was counted here.
    #[must_use]
    pub(super) fn has_enough(&self) -> bool {
        self.seen.answers + self.seen.refused + self.seen.delayed >= self.wanted
    }

    /// What was counted since the last report. Counting begins anew.
    pub(super) fn report(&mut self) -> Report {
        let mut seen = std::mem::take(&mut self.seen);
        seen.paces = self.paces.take();
        Report {
            generation: self.generation,
            seen,
            in_flight: self.in_flight,
            peak: std::mem::replace(&mut self.peak, self.in_flight),
        }
    }

    /// How the window stands after a turn.
    pub(super) fn follow(&mut self, generation: u64, overhead: f64, wanted: u32) {
        if generation != self.generation {
            self.seen = Evidence::default();
            self.paces.take();
        }
        self.generation = generation;
        self.overhead = overhead;
        self.wanted = wanted.max(1);
    }
}

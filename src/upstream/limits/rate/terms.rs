//! What a rate limit allows, and how its calls are paced. Pure: the time is an argument.

use serde::{Deserialize, Serialize};

/// A window is counted in so many parts. The part that is partly over counts whole, so each part
/// costs a caller who could use the whole limit about this share of it.
const PARTS: i64 = 240;
/// Each part counts for so much longer, in milliseconds: a call arrives later than it was sent,
/// and not every call by as much.
pub(super) const LATE_MS: i64 = 1_000;
/// The calls of a longer window are paced as those of a window of a minute.
const PACED_MS: i64 = 60_000;
/// How much faster than evenly calls may go: a caller that was held up catches up.
const PACE: f64 = 1.1;
/// In a sixtieth of a paced window there is at most so many times its even share.
const SIXTIETHS_AT_ONCE: f64 = 3.0;
const SIXTIETHS: f64 = 60.0;
/// Between two turns of a process there is at least so much time, in milliseconds: as much as a
/// part is long, within these bounds. What a part frees is one grant then, not many.
const PAUSE_MS: (i64, i64) = (50, 250);

/// The numbers of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// At least 1.
    pub limit: u64,
    /// The window, in milliseconds: at least a second.
    pub period_ms: i64,
}

impl Terms {
    /// The number of the part that a moment is in.
    pub(super) fn part(self, now_ms: i64) -> i64 {
        now_ms
            .saturating_mul(PARTS)
            .div_euclid(self.period_ms.max(1))
    }

    /// The first part that still counts.
    pub(super) fn first_counted(self, now_ms: i64) -> i64 {
        self.part(now_ms - LATE_MS) - PARTS
    }

    /// When a part does not count any more.
    pub(super) fn ends_counting(self, part: i64) -> i64 {
        let end = i128::from(part + PARTS + 1) * i128::from(self.period_ms);
        let whole = end.div_euclid(i128::from(PARTS));
        let end = whole + i128::from(end.rem_euclid(i128::from(PARTS)) > 0);
        i64::try_from(end)
            .unwrap_or(i64::MAX)
            .saturating_add(LATE_MS)
    }

    fn span_ms(self) -> f64 {
        self.period_ms.min(PACED_MS) as f64
    }

    fn per_ms(self) -> f64 {
        self.limit as f64 * PACE / self.span_ms()
    }

    fn burst_ms(self) -> f64 {
        (SIXTIETHS_AT_ONCE / PACE - 1.0) * self.span_ms() / SIXTIETHS
    }

    /// How long a process waits between its turns at least, in milliseconds.
    pub(super) fn pause_ms(self) -> i64 {
        (self.period_ms / PARTS).clamp(PAUSE_MS.0, PAUSE_MS.1)
    }

    /// What the pace brings in so many milliseconds: at least 1, at most the limit.
    pub(super) fn brings(self, ms: i64) -> u64 {
        ((self.per_ms() * ms as f64).ceil() as u64).clamp(1, self.limit.max(1))
    }
}

/// Spaces what is spent: by when the pace will have brought what was spent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    until_ms: f64,
}

impl Pace {
    /// When so much may be spent at once. A large amount may be spent when all before it is
    /// brought.
    pub(super) fn opens_ms(self, terms: Terms, amount: u64) -> i64 {
        self.opens(terms, amount).ceil() as i64
    }

    /// Whether so much may be spent at once now.
    pub(super) fn is_open(self, terms: Terms, now_ms: i64, amount: u64) -> bool {
        self.is_idle(now_ms) || self.opens(terms, amount) <= now_ms as f64
    }

    fn opens(self, terms: Terms, amount: u64) -> f64 {
        let takes = amount as f64 / terms.per_ms();
        self.until_ms + (takes - terms.burst_ms()).min(0.0)
    }

    /// What may be granted now for use within `ahead_ms`.
    pub(super) fn room(self, terms: Terms, now_ms: i64, ahead_ms: i64) -> u64 {
        let now = now_ms as f64;
        let ahead = now + ahead_ms as f64 - self.until_ms.max(now);
        let room = (terms.per_ms() * ahead).max(0.0) as u64;
        room.max(u64::from(self.is_idle(now_ms)))
    }

    /// When so much may be granted for use within `ahead_ms`.
    pub(super) fn grants_ms(self, terms: Terms, amount: u64, ahead_ms: i64) -> i64 {
        let takes = amount as f64 / terms.per_ms();
        (self.until_ms + (takes - ahead_ms as f64).min(0.0)).ceil() as i64
    }

    /// Whether all that was spent is brought.
    pub(super) fn is_idle(self, now_ms: i64) -> bool {
        self.until_ms <= now_ms as f64
    }

    pub(super) fn take(&mut self, terms: Terms, now_ms: i64, amount: u64) {
        self.until_ms = self.until_ms.max(now_ms as f64) + amount as f64 / terms.per_ms();
    }

    /// So much was not spent after all. What is not in use now is lost.
    pub(super) fn give_back(&mut self, terms: Terms, now_ms: i64, amount: u64) {
        let before = self.until_ms;
        let earlier = before - amount as f64 / terms.per_ms();
        self.until_ms = earlier.max(before.min(now_ms as f64));
    }
}

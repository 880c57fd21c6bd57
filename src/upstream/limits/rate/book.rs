//! What is booked against one limit, over all processes: what was sent in each part of the window,
//! and what is owed. Pure: the time is an argument.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::terms::{Pace, Terms};

/// Amounts are granted for so long ahead, in milliseconds: at least one exchange of all processes.
pub(super) const AHEAD_MS: i64 = 2_000;

/// What is booked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    /// By part, those that count.
    parts: BTreeMap<i64, u64>,
    /// Calls used so much more than was reserved, and no window has paid for it yet.
    owed: u64,
    pace: Pace,
}

/// What a process has done with its grant since it told last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// By the part in which it was sent.
    pub(super) spent: BTreeMap<i64, u64>,
    /// Calls used so much less than was charged, by the part that was charged. It is a part of the
    /// grant again.
    pub(super) refunded: BTreeMap<i64, u64>,
    pub(super) owed: u64,
    /// Of its grant, what it gives back.
    pub(super) unspent: u64,
}

/// What a process asks for beyond what it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    pub(super) wants: u64,
    /// For the oldest line that does not fit.
    pub(super) least: u64,
}

impl Report {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Report::default()
    }
}

impl Book {
    /// What counts now, without what is granted and not spent.
    #[must_use]
    pub fn used(&self, terms: Terms, now_ms: i64) -> u64 {
        let counted = self.parts.range(terms.first_counted(now_ms)..);
        counted.fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// What calls used beyond their reservations, and no window has paid for yet.
    #[cfg(test)]
    pub(super) fn owed(&self) -> u64 {
        self.owed
    }

    /// Takes in what a process has done with its grant. `granted`: what of it is not told yet;
    /// `None`: it counts as spent already. Returns what is left of the grant.
    pub fn settle(
        &mut self,
        terms: Terms,
        now_ms: i64,
        granted: Option<u64>,
        told: &Report,
    ) -> u64 {
        self.owed = self.owed.saturating_add(told.owed);
        let Some(granted) = granted else {
            return 0;
        };
        for (part, amount) in &told.spent {
            self.charge(*part, *amount);
        }
        for (part, amount) in &told.refunded {
            self.refund(*part, *amount);
        }
        self.pace.give_back(terms, now_ms, told.unspent);
        let sum = |amounts: &BTreeMap<i64, u64>| amounts.values().sum::<u64>();
        granted
            .saturating_add(sum(&told.refunded))
            .saturating_sub(sum(&told.spent))
            .saturating_sub(told.unspent)
    }

    /// The grant of a process that is gone counts as spent when it could be spent last.
    pub fn write_off(&mut self, terms: Terms, valid_until_ms: i64, granted: u64) {
        self.charge(terms.part(valid_until_ms), granted);
    }

    /// Grants what may be spent within the next two seconds. `granted`: what all processes have
    /// that is not spent. `sharers`: how many of them ask.
    pub fn grant(
        &mut self,
        terms: Terms,
        now_ms: i64,
        granted: u64,
        ask: Ask,
        sharers: u64,
    ) -> u64 {
        let mut free = self.free(terms, now_ms, granted);
        let paid = self.owed.min(free);
        if paid > 0 {
            self.charge(terms.part(now_ms), paid);
            self.owed -= paid;
            free -= paid;
        }
        let first = terms.first_counted(now_ms);
        self.parts
            .retain(|part, amount| *part >= first && *amount > 0);
        let room = self.pace.room(terms, now_ms, AHEAD_MS).min(free);
        let mut take = ask.wants.min(room.div_ceil(sharers.max(1)));
        if self.pace.is_idle(now_ms) {
            take = take.max(ask.least);
        }
        let take = take.min(free);
        if take > 0 {
            self.pace.take(terms, now_ms, take);
        }
        take
    }

    /// When so much can be granted, as far as is known: `None` where others have it.
    #[must_use]
    pub fn opens_ms(&self, terms: Terms, now_ms: i64, granted: u64, amount: u64) -> Option<i64> {
        let paced = self.pace.grants_ms(terms, amount, AHEAD_MS);
        let mut taken = self
            .used(terms, now_ms)
            .saturating_add(granted)
            .saturating_add(self.owed);
        let fits = |taken: u64| taken.saturating_add(amount) <= terms.limit;
        let mut at = now_ms;
        let mut parts = self.parts.range(terms.first_counted(now_ms)..);
        while !fits(taken) {
            let (part, amount) = parts.next()?;
            taken = taken.saturating_sub(*amount);
            at = terms.ends_counting(*part);
        }
        Some(at.max(paced))
    }

    /// The text under which the book is stored.
    #[must_use]
    pub fn stored(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads a stored book; `None` if the text is none.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn free(&self, terms: Terms, now_ms: i64, granted: u64) -> u64 {
        let taken = self.used(terms, now_ms).saturating_add(granted);
        terms.limit.saturating_sub(taken)
    }

    fn charge(&mut self, part: i64, amount: u64) {
        let charged = self.parts.entry(part).or_default();
        *charged = charged.saturating_add(amount);
    }

    /// Only to the part that was charged.
    fn refund(&mut self, part: i64, amount: u64) {
        if let Some(charged) = self.parts.get_mut(&part) {
            *charged = charged.saturating_sub(amount);
        }
    }
}

//! What is booked against one limit, over all processes: what was sent in each part of the window,
//! and what is owed. Pure: the time is an argument.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::terms::{Pace, Terms};

/// Amounts are granted for so long ahead, in milliseconds: about as long as it is between two turns
/// of a process. What is granted and not spent is of no use to others, and where its process
/// vanishes it counts as spent for a whole window.
pub(super) const AHEAD_MS: i64 = 1_000;
/// A process whose turn it is keeps its turn until so long after its line might be sent, in
/// milliseconds. What might be sent later than the other time counts as if it might be sent then:
/// whoever has vanished is not waited for.
const FIRST_MS: i64 = 1_000;
const FIRST_MS_MAX: i64 = 4_000;

/// What is booked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Book {
    /// By part, those that count.
    #[serde(with = "in_a_row")]
    parts: BTreeMap<i64, u64>,
    /// Calls used so much more than was reserved, and no window has paid for it yet.
    owed: u64,
    pace: Pace,
    /// Whose turn it is, where a line waits for what is free.
    first: Option<First>,
}

/// A process whose line waits for what is free: until it has had its line and a part of what else
/// it wants, all is its.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct First {
    token: String,
    wants: u64,
    until_ms: i64,
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
    /// Of its grant, what it does without if that does not suffice for the line either.
    pub(super) offered: u64,
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
        self.give_back(terms, now_ms, told.unspent);
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

    /// Grants to a process what may be spent within the next second: at least what the line needs
    /// that waits, or nothing. `granted`: what all processes have that is not spent. `sharers`: how
    /// many of them ask.
    ///
    /// Where a line waits, what is free accrues to one process at a time. Granted bit by bit to
    /// several whose lines do not fit, none of them could use it.
    pub fn grant(
        &mut self,
        terms: Terms,
        now_ms: i64,
        granted: u64,
        (token, ask): (&str, Ask),
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
        self.first.take_if(|first| first.until_ms <= now_ms);
        if self
            .first
            .as_ref()
            .is_some_and(|first| first.token != token)
        {
            return 0;
        }
        let room = self.pace.room(terms, now_ms, AHEAD_MS).min(free);
        let mut take = ask.wants.min(room.div_ceil(sharers.max(1)));
        if self.pace.is_idle(now_ms) {
            take = take.max(ask.least);
        }
        let take = take.min(free);
        let is_enough = take >= ask.least;
        let take = if is_enough { take } else { 0 };
        // After its line, whoever has waited has a part of what else it wants: its lines may be
        // short, and those of others long.
        let waited = self.first.take();
        let wanted = match waited {
            Some(first) => first.wants.min(ask.wants),
            None if is_enough => 0,
            None => ask.wants,
        };
        let wants = if is_enough {
            wanted.saturating_sub(take) / 2
        } else {
            wanted
        };
        self.first = (wants > 0).then(|| {
            let opens = self.opens_ms(terms, now_ms, granted + take, ask.least.max(1));
            let opens = opens.unwrap_or(now_ms).clamp(now_ms, now_ms + FIRST_MS_MAX);
            First {
                token: token.to_owned(),
                wants,
                until_ms: opens + FIRST_MS,
            }
        });
        if take > 0 {
            self.pace.take(terms, now_ms, take);
        }
        take
    }

    /// So much of a grant is free again.
    pub fn give_back(&mut self, terms: Terms, now_ms: i64, amount: u64) {
        self.pace.give_back(terms, now_ms, amount);
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

/// Amounts by part, stored as the first part and the amounts from there on.
mod in_a_row {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Row {
        first: i64,
        amounts: Vec<u64>,
    }

    pub fn serialize<S: Serializer>(
        parts: &BTreeMap<i64, u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let first = parts.keys().next().copied().unwrap_or(0);
        let last = parts.keys().next_back().map_or(first - 1, |last| *last);
        let amounts = (first..=last).map(|part| parts.get(&part).copied().unwrap_or(0));
        let amounts = amounts.collect();
        Row { first, amounts }.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<i64, u64>, D::Error> {
        let Row { first, amounts } = Row::deserialize(deserializer)?;
        let parts = (first..).zip(amounts);
        Ok(parts.filter(|(_, amount)| *amount > 0).collect())
    }
}

//! A process's side of one limit: what it was granted, and what it spends of that. Pure: the time
//! is an argument, in milliseconds of the clock by which parts are numbered.

use std::collections::BTreeMap;

use super::book::{AHEAD_MS, Ask, Book, Report};
use super::terms::{Pace, Terms};

/// Whose line waits for capacity is forgotten when it has not asked for so long.
const CLAIM_MS: i64 = 3_000;

/// What a process has of one limit.
#[derive(Debug)]
pub struct Meter {
    terms: Terms,
    /// Granted, and not spent.
    left: u64,
    /// What of that does not suffice for the line that waits. It is not spent during a turn, which
    /// completes it or takes it.
    offered: u64,
    /// Until when the grant may be spent.
    valid_until_ms: i64,
    pace: Pace,
    /// What was not told yet.
    untold: Report,
    /// What is being told.
    telling: Option<Report>,
    /// What was refused since it was asked for last.
    refused: u64,
    /// What was refused before, and is asked for with what is being told.
    asked_for: u64,
    /// The oldest line that did not fit.
    claim: Option<Claim>,
    /// Reservations of calls that have not ended.
    reserved: u64,
    heard: Option<Heard>,
    /// Counts grants that were written off. What was charged before is not refunded.
    generation: u32,
    /// The book and the others' grants, as they were at the last exchange.
    seen: Book,
    elsewhere: u64,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    queue: usize,
    amount: u64,
    asked_ms: i64,
}

/// What a provider says is left.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Heard {
    remaining: u64,
    spent_since: u64,
    at_ms: i64,
    /// When all of the limit is there again.
    reset_ms: i64,
}

/// What was charged for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    pub(super) part: i64,
    pub(super) amount: u64,
    generation: u32,
}

/// Whether a call can be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    /// The call needs more than the whole limit.
    Never,
    /// The pace, or what the provider says, lets it be sent at this time.
    Later(i64),
    /// Too little is granted, or the oldest line that does not fit goes first.
    Ungranted,
}

/// What a call turned out to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It was never sent.
    Nothing,
    /// The answer does not say: it needed what was reserved.
    Unknown,
    Amount(u64),
}

impl Meter {
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            left: 0,
            offered: 0,
            valid_until_ms: i64::MIN,
            pace: Pace::default(),
            untold: Report::default(),
            telling: None,
            refused: 0,
            asked_for: 0,
            claim: None,
            reserved: 0,
            heard: None,
            generation: 0,
            seen: Book::default(),
            elsewhere: 0,
        }
    }

    /// The limit is another one from now on, of a period as long as before.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// Reservations of calls that have not ended.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Used in the trailing window over the limit, as far as this process knows.
    #[must_use]
    pub fn saturation(&self, now_ms: i64) -> f64 {
        let sum = |report: &Report| report.spent.values().sum::<u64>();
        let untold = sum(&self.untold) + self.telling.as_ref().map_or(0, sum);
        let used = self.seen.used(self.terms, now_ms).saturating_add(untold);
        used as f64 / self.terms.limit as f64
    }

    /// Whether a line of this queue can be sent now. Changes nothing.
    #[must_use]
    pub fn verdict(&self, now_ms: i64, queue: usize, amount: u64) -> Verdict {
        if amount == 0 {
            return Verdict::Fits;
        }
        if amount > self.terms.limit {
            return Verdict::Never;
        }
        // Capacity accrues to the oldest line that does not fit.
        if self
            .claim_at(now_ms)
            .is_some_and(|claim| claim.queue != queue)
        {
            return Verdict::Ungranted;
        }
        if amount > self.left || now_ms >= self.valid_until_ms {
            return Verdict::Ungranted;
        }
        let heard = self.heard;
        let heard = heard.map(|heard| heard.opens_ms(self.terms, now_ms, amount));
        if heard.is_none_or(|opens| opens <= now_ms)
            && self.pace.is_open(self.terms, now_ms, amount)
        {
            return Verdict::Fits;
        }
        let opens = self.pace.opens_ms(self.terms, amount);
        Verdict::Later(heard.map_or(opens, |heard| heard.max(opens)))
    }

    /// A line of this queue could be sent nowhere, for one because of this limit.
    pub fn refuse(&mut self, now_ms: i64, queue: usize, amount: u64) {
        if amount > self.terms.limit || self.claim_at(now_ms).is_some_and(|one| one.queue != queue)
        {
            return;
        }
        self.claim = Some(Claim {
            queue,
            amount,
            asked_ms: now_ms,
        });
        if amount > self.left || now_ms >= self.valid_until_ms {
            self.refused = self.refused.saturating_add(amount);
        }
    }

    /// Charges a call that is sent now.
    pub fn take(&mut self, now_ms: i64, queue: usize, amount: u64) -> Charge {
        self.claim.take_if(|claim| claim.queue == queue);
        self.left = self.left.saturating_sub(amount);
        self.reserved += amount;
        self.pace.take(self.terms, now_ms, amount);
        if let Some(heard) = &mut self.heard {
            heard.spent_since += amount;
        }
        let part = self.terms.part(now_ms);
        *self.untold.spent.entry(part).or_default() += amount;
        Charge {
            part,
            amount,
            generation: self.generation,
        }
    }

    /// Charges a call for more, right after it was charged, if that fits. False: nothing is charged,
    /// and more is asked for where too little is granted.
    pub fn add(&mut self, now_ms: i64, queue: usize, charge: &mut Charge, amount: u64) -> bool {
        if amount == 0 {
            return true;
        }
        let now = (self.terms.part(now_ms), self.generation);
        if now != (charge.part, charge.generation) {
            return false;
        }
        match self.verdict(now_ms, queue, amount) {
            Verdict::Fits => {
                charge.amount += self.take(now_ms, queue, amount).amount;
                true
            }
            Verdict::Ungranted => {
                self.refused = self.refused.saturating_add(amount);
                false
            }
            Verdict::Never | Verdict::Later(_) => false,
        }
    }

    /// Takes back what [`add`](Self::add) has just charged.
    pub fn subtract(&mut self, now_ms: i64, charge: &mut Charge, amount: u64) {
        let added = Charge { amount, ..*charge };
        charge.amount -= amount;
        self.settle(now_ms, added, Used::Nothing);
    }

    /// A call has ended. Charged by its [`take`](Self::take), once.
    pub fn settle(&mut self, now_ms: i64, charge: Charge, used: Used) {
        self.reserved -= charge.amount;
        let used = match used {
            Used::Nothing => 0,
            Used::Unknown => charge.amount,
            Used::Amount(used) => used,
        };
        self.untold.owed += used.saturating_sub(charge.amount);
        let excess = charge.amount.saturating_sub(used);
        // What does not count any more is lost.
        let counts = charge.part >= self.terms.first_counted(now_ms);
        if excess > 0 && counts && charge.generation == self.generation {
            *self.untold.refunded.entry(charge.part).or_default() += excess;
            self.left += excess;
            self.pace.give_back(self.terms, now_ms, excess);
        }
    }

    /// A provider says what is left of its own limit, and when all of it is there again.
    pub fn hear(&mut self, now_ms: i64, remaining: u64, reset_ms: i64) {
        self.heard = (reset_ms > now_ms).then_some(Heard {
            remaining,
            spent_since: 0,
            at_ms: now_ms,
            reset_ms,
        });
    }

    /// Whether there is anything to tell or to ask.
    #[must_use]
    pub fn needs_exchange(&self) -> bool {
        self.left + self.offered > 0
            || self.telling.is_some()
            || !self.untold.is_empty()
            || self.refused > 0
    }

    /// How long to wait between two turns at least, in milliseconds.
    #[must_use]
    pub fn pause_ms(&self) -> i64 {
        self.terms.pause_ms()
    }

    /// Whether more should be asked for, as soon as more may be granted.
    #[must_use]
    pub fn runs_short(&self) -> bool {
        self.refused > 0 || self.untold.spent.values().sum::<u64>() > self.left
    }

    /// Whether calls were sent, or have ended, that were not told of.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        self.telling.is_some() || !self.untold.is_empty()
    }

    /// Whether anything can be sent now, if no line that waits goes first.
    #[must_use]
    pub fn verdict_of_any(&self, now_ms: i64) -> Verdict {
        let claim = self.claim_at(now_ms);
        let (queue, amount) = claim.map_or((0, 1), |claim| (claim.queue, claim.amount));
        self.verdict(now_ms, queue, amount)
    }

    /// When an exchange may bring what was refused, or anything. `None`: nobody knows.
    #[must_use]
    pub fn ungranted_opens_ms(&self, now_ms: i64) -> Option<i64> {
        let claim = self.claim_at(now_ms).map_or(1, |claim| claim.amount);
        self.grant_opens_ms(now_ms, claim)
    }

    /// When an exchange may bring something, where something is wanted.
    #[must_use]
    pub fn grant_opens_ms(&self, now_ms: i64, amount: u64) -> Option<i64> {
        let granted = self
            .elsewhere
            .saturating_add(self.left)
            .saturating_add(self.offered);
        let lacks = amount.saturating_sub(self.left).max(1);
        let untold: u64 = self.untold.spent.values().sum();
        let taken = granted.saturating_add(untold);
        self.seen.opens_ms(self.terms, now_ms, taken, lacks)
    }

    /// What is to be told, until [`told`](Self::told): the same again after a failure. `is_last`:
    /// nothing is spent any more.
    pub fn tell(&mut self, now_ms: i64, is_last: bool) -> &Report {
        let refused = std::mem::take(&mut self.refused);
        self.asked_for = self.asked_for.saturating_add(refused);
        if self.telling.is_none() {
            if is_last {
                self.left += std::mem::take(&mut self.offered);
            }
            let mut report = std::mem::take(&mut self.untold);
            let spent: u64 = report.spent.values().sum();
            let claim = self.claim.map_or(0, |claim| claim.amount);
            let keep = if is_last { 0 } else { self.needs(spent, claim) };
            report.unspent = self.left.saturating_sub(keep);
            self.left -= report.unspent;
            self.telling = Some(report);
        }
        let claim = self.claim_at(now_ms);
        if !is_last && claim.is_some_and(|claim| self.left < claim.amount) {
            self.offered += std::mem::take(&mut self.left);
        }
        self.telling.get_or_insert_default()
    }

    /// What is asked for with what is told.
    #[must_use]
    pub fn ask(&self, now_ms: i64) -> Ask {
        let Some(telling) = &self.telling else {
            return Ask::default();
        };
        let spent = telling.spent.values().sum::<u64>();
        let claim = self.claim_at(now_ms).map_or(0, |claim| claim.amount);
        let has = self.left + self.offered;
        Ask {
            wants: self.needs(spent, claim).saturating_sub(has),
            least: claim.saturating_sub(has),
            offered: self.offered,
        }
    }

    /// What was told is booked. `granted`: all that this process has not spent, as it was told;
    /// `elsewhere`: what others have not spent. `was_written_off`: the last grant counted as spent
    /// before.
    pub fn told(
        &mut self,
        book: Book,
        granted: u64,
        elsewhere: u64,
        valid_until_ms: i64,
        was_written_off: bool,
    ) {
        self.telling = None;
        self.offered = 0;
        self.asked_for = 0;
        if was_written_off {
            self.generation = self.generation.wrapping_add(1);
            self.untold.spent.clear();
            self.untold.refunded.clear();
        }
        let sum = |amounts: &BTreeMap<i64, u64>| amounts.values().sum::<u64>();
        let back = granted.saturating_add(sum(&self.untold.refunded));
        self.left = back.saturating_sub(sum(&self.untold.spent));
        self.valid_until_ms = valid_until_ms;
        self.seen = book;
        self.elsewhere = elsewhere;
    }

    /// What this process can use until its turn after the next. Where calls use less than was
    /// reserved, an amount is charged and comes back several times between two turns, so what was
    /// charged since the last turn may be more than the pace brings.
    fn needs(&self, spent: u64, claim: u64) -> u64 {
        let twice = spent.saturating_mul(2);
        let most = self.terms.brings(AHEAD_MS).max(twice);
        twice.saturating_add(self.asked_for).min(most).max(claim)
    }

    fn claim_at(&self, now_ms: i64) -> Option<Claim> {
        self.claim
            .filter(|claim| now_ms - claim.asked_ms < CLAIM_MS)
    }
}

impl Heard {
    /// When so much is there, by what the provider says: all of it is back at the reset, and until
    /// then it comes back evenly.
    fn opens_ms(self, terms: Terms, now_ms: i64, amount: u64) -> i64 {
        if now_ms >= self.reset_ms || self.remaining >= terms.limit {
            return i64::MIN;
        }
        let needs = self.spent_since.saturating_add(amount);
        let lacks = needs.saturating_sub(self.remaining);
        let comes = (terms.limit - self.remaining) as f64;
        let takes = (self.reset_ms - self.at_ms) as f64 * lacks as f64 / comes;
        (self.at_ms + takes.ceil() as i64).min(self.reset_ms)
    }
}

//! Limits over several processes: who gets how much of one.
//!
//! Processes take turns, never two at once. In its turn one reads what all hold, and takes the
//! [`part`] that is due to it, as far as the others have let go. So what all hold together never
//! exceeds the limit: a share shrinks before another grows.

use std::collections::BTreeMap;

/// What a process holds of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The whole limit, as its configuration says it.
    pub allowed: u64,
    /// Calls at once that it could make now, if it had the whole limit: at most `allowed`.
    pub wants: u64,
    /// What nobody else may have: its share, or its calls in flight where they are more.
    pub held: u64,
}

/// A process that takes part, with what it said in its last turn.
#[derive(Clone, Debug)]
pub struct Holder {
    pub token: String,
    /// The database's time; says who comes first.
    pub joined_at: i64,
    /// Milliseconds for which it may use its shares; negative where it has been silent for longer.
    pub left_ms: i64,
    /// By the limit's name.
    pub shares: BTreeMap<String, Share>,
}

impl Holder {
    fn is_living(&self) -> bool {
        self.left_ms >= 0
    }
}

/// What a process finds in its turn.
#[derive(Debug)]
pub struct Part {
    /// What is due to it when the others have let go of what is theirs no more.
    pub target: u64,
    /// What it may take now: no more than the target.
    pub share: u64,
    /// Whether another living process waits for what it lets go.
    pub is_awaited: bool,
    /// The shares of these silent processes are given out again, and must be forgotten.
    pub forgotten: Vec<String>,
}

impl Part {
    /// Whether the end of each of these calls in flight is awaited: they are more than the share,
    /// and another process waits for what is let go. A limit that has shrunk below what is in
    /// flight, and that nobody waits for, needs no haste.
    #[must_use]
    pub fn is_overcommitted(&self, in_flight: u64) -> bool {
        self.is_awaited && in_flight > self.share
    }
}

/// A process's part of one limit. `mine.held` is what it holds so far; `joined_at` and `token`
/// are its own, for a process may be new.
///
/// What a silent process held is given out again after `reclaim_ms`, or at once where no living
/// one holds any of the limit: else nobody could work. Not by who has only begun to listen
/// (`None`): after an outage of the database all others seem to be silent.
#[must_use]
pub fn part(
    limit: &str,
    (joined_at, token): (i64, &str),
    mine: Share,
    holders: &[Holder],
    reclaim_ms: Option<i64>,
) -> Part {
    let others = || {
        let others = holders.iter().filter(|holder| holder.token != token);
        others.filter_map(|holder| Some((holder, *holder.shares.get(limit)?)))
    };
    let living = || others().filter(|(holder, _)| holder.is_living());
    let held_by_living = living().fold(mine.held, |sum, (_, share)| sum.saturating_add(share.held));
    let is_given_out = |holder: &Holder| {
        let is_due = |ms: i64| held_by_living == 0 || holder.left_ms < ms.saturating_neg();
        reclaim_ms.is_some_and(is_due)
    };

    let smallest = living().map(|(_, share)| share.allowed);
    let allowed = smallest.fold(mine.allowed, u64::min);
    let mut in_order: Vec<(i64, &str, Share)> = living()
        .map(|(holder, share)| (holder.joined_at, holder.token.as_str(), share))
        .collect();
    in_order.push((joined_at, token, mine));
    in_order.sort_by_key(|(joined_at, token, _)| (*joined_at, *token));
    let wants: Vec<u64> = in_order.iter().map(|(_, _, share)| share.wants).collect();
    let targets = divide(allowed, &wants);
    let mut target = 0;
    let mut is_awaited = false;
    for ((_, name, share), due) in in_order.iter().zip(targets) {
        if *name == token {
            target = due;
        } else {
            is_awaited |= share.held < due.min(share.wants);
        }
    }

    let (mut elsewhere, mut forgotten) = (0_u64, Vec::new());
    for (holder, share) in others() {
        if !holder.is_living() && is_given_out(holder) {
            forgotten.push(holder.token.clone());
        } else {
            elsewhere = elsewhere.saturating_add(share.held);
        }
    }
    Part {
        target,
        share: target.min(allowed.saturating_sub(elsewhere)),
        is_awaited,
        forgotten,
    }
}

/// Divides a limit among those who want so much each. Who wants less than an equal part gets that
/// much, and the others divide the rest; where all have enough, everybody keeps an equal part at
/// least, so that who finds work can begin at once. Remainders go to the first.
fn divide(limit: u64, wants: &[u64]) -> Vec<u64> {
    let sum = |parts: &mut dyn Iterator<Item = u64>| parts.fold(0, u64::saturating_add);
    let is_short = sum(&mut wants.iter().copied()) > limit;
    // One level for all: nobody gets more where it is short, nobody less where it is not.
    let at = |level: u64, wants: u64| {
        if is_short {
            wants.min(level)
        } else {
            wants.max(level)
        }
    };
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = high - (high - low) / 2;
        if sum(&mut wants.iter().map(|&wants| at(middle, wants))) <= limit {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let mut rest = limit - sum(&mut wants.iter().map(|&wants| at(low, wants)));
    let parts = wants.iter().map(|&wants| {
        let extra = (at(low.saturating_add(1), wants) - at(low, wants)).min(rest);
        rest -= extra;
        at(low, wants) + extra
    });
    parts.collect()
}

#[cfg(test)]
mod tests;

//! One turn of a process at the book of a limit. Processes take turns, never two at once. Pure.

use super::book::{Ask, Book, Report};
use super::terms::Terms;

/// A grant that is no process's any more is forgotten so long after it was valid last, in
/// milliseconds. Until then its process may still tell what its calls needed.
const FORGOTTEN_MS: i64 = 86_400_000;

/// What a process was granted, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub token: String,
    /// Not spent, as far as is told.
    pub amount: u64,
    /// What the process asked for beyond it.
    pub wants: u64,
    pub valid_until_ms: i64,
    /// The number of what it told last.
    pub seq: i64,
}

/// What a process says in its turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    pub token: &'a str,
    pub now_ms: i64,
    pub valid_until_ms: i64,
    pub told: &'a Report,
    pub ask: Ask,
    /// The number of what is told: the same again where it is not known whether it was booked.
    pub seq: i64,
    /// It had a grant before.
    pub had_grant: bool,
}

/// What comes of a turn.
#[derive(Debug)]
pub struct Exchanged {
    pub mine: Grant,
    /// What others have that is not spent.
    pub elsewhere: u64,
    /// The process's last grant counted as spent already.
    pub was_written_off: bool,
    /// The grants of these processes are to be forgotten.
    pub forgotten: Vec<String>,
}

/// Books what is told, and grants what is asked for and free.
pub fn exchange(book: &mut Book, terms: Terms, grants: &[Grant], turn: Turn<'_>) -> Exchanged {
    let (mut mine, mut elsewhere, mut sharers) = (None, 0_u64, 1);
    let mut forgotten = Vec::new();
    for grant in grants {
        let is_over = grant.valid_until_ms < turn.now_ms;
        if grant.token == turn.token && !(is_over && grant.amount > 0) {
            mine = Some(grant);
        } else if is_over && grant.amount > 0 {
            book.write_off(terms, grant.valid_until_ms, grant.amount);
            // The process's own is written anew.
            if grant.token != turn.token {
                forgotten.push(grant.token.clone());
            }
        } else if grant.valid_until_ms < turn.now_ms - FORGOTTEN_MS {
            forgotten.push(grant.token.clone());
        } else {
            elsewhere = elsewhere.saturating_add(grant.amount);
            sharers += u64::from(!is_over && grant.wants > 0);
        }
    }
    let was_written_off = mine.is_none() && turn.had_grant;
    // What was told before is told again: the process may have spent of the grant since.
    let is_again = mine.is_some_and(|grant| grant.seq == turn.seq);
    let mut left = match mine {
        Some(grant) if is_again => grant.amount,
        Some(grant) => book.settle(terms, turn.now_ms, Some(grant.amount), turn.told),
        None => {
            let granted = (!was_written_off).then_some(0);
            book.settle(terms, turn.now_ms, granted, turn.told)
        }
    };
    let all = elsewhere.saturating_add(left);
    let more = book.grant(terms, turn.now_ms, all, (turn.token, turn.ask), sharers);
    // What does not suffice for its line is of use to others. No more than it offers: what it has
    // sent since the report that it tells is still of its grant.
    if more < turn.ask.least && !is_again {
        let back = left.min(turn.ask.offered);
        book.give_back(terms, turn.now_ms, back);
        left -= back;
    }
    Exchanged {
        mine: Grant {
            token: turn.token.to_owned(),
            amount: left + more,
            wants: turn.ask.wants.saturating_sub(more),
            valid_until_ms: turn.valid_until_ms,
            seq: turn.seq,
        },
        elsewhere,
        was_written_off,
        forgotten,
    }
}

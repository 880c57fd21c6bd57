//! This process's turns at the books of the limits on requests and tokens: it tells what it has
//! spent of its grants, and takes what is free and what it needs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::{self, RateEntry, RateGrant, RateRow, Store};
use crate::upstream::{Grant, Pool, RateBook, RateLimits, RateTurn};
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::lease::Lease;
use crate::worker::lease::clock::millis;

/// After a failure, a turn is taken again after so long.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A grant may be used for so long at least: several turns. Without its lease a process sends
/// nothing, whatever it was granted.
const VALID_MIN: Duration = Duration::from_secs(5);
/// Before a process leaves, it has so many turns to tell what it has spent: the first may be told
/// again what was told before.
const LAST_TURNS: usize = 2;

pub(crate) struct Rates {
    store: Store,
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    token: Arc<str>,
    /// How long a grant may be used.
    valid: Duration,
    attempt_timeout: Duration,
}

impl Rates {
    pub(crate) fn new(
        store: &Store,
        pool: &Arc<Pool>,
        ledger: &Arc<SharedLedger>,
        lease: &Lease,
    ) -> Self {
        Self {
            store: store.clone(),
            pool: pool.clone(),
            ledger: ledger.clone(),
            token: lease.token(),
            valid: lease.safe_ttl().max(VALID_MIN),
            attempt_timeout: lease.attempt_timeout(),
        }
    }

    /// Takes a turn when something is asked for, and by itself while there is something to tell,
    /// until stopped. Then gives back what is not spent.
    pub(crate) async fn run(self, stop: CancellationToken) -> &'static str {
        let name = "rate limits";
        let pool = self.pool.clone();
        let limits = pool.rate_limits();
        while !stop.is_cancelled() {
            let due = limits.exchange_in().map(|wait| Instant::now() + wait);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = limits.asked() => continue,
                () = wait => {}
            }
            if let Err(error) = self.turn(limits, false).await {
                tracing::warn!(%error, "rate limits could not be booked; it is tried again");
                let pause = tokio::time::sleep(AFTER_FAILURE);
                stop.run_until_cancelled(pause).await;
            }
        }
        for _ in 0..LAST_TURNS {
            if let Err(error) = self.turn(limits, true).await {
                tracing::warn!(%error, "what is left of rate limits counts as spent");
                break;
            }
        }
        name
    }

    /// One turn at all books.
    async fn turn(&self, limits: &RateLimits, is_last: bool) -> store::Result<()> {
        let resources = limits.resources();
        if resources.is_empty() {
            return Ok(());
        }
        let decide = |now_ms: i64, rows: &[RateRow]| {
            let books: Vec<RateBook> = books_of(&resources, rows);
            let turns = limits.take_turn(&self.token, now_ms, self.valid, &books, is_last);
            (turns.iter().map(entry_of).collect(), (turns, now_ms))
        };
        let patience = millis(self.attempt_timeout / 2);
        let exchange = self.store.exchange_rates(patience, &resources, decide);
        let exchanged = tokio::time::timeout(self.attempt_timeout, exchange).await;
        let (turns, now_ms) = match exchanged {
            Ok(exchanged) => exchanged?,
            Err(_) => return Err(store::Error::TimedOut("the turn at rate limits")),
        };
        if limits.end_turn(turns, now_ms, self.valid) {
            self.ledger.notify_scheduler();
        }
        Ok(())
    }
}

/// What is stored of each of these limits, which may be nothing yet.
fn books_of(resources: &[String], rows: &[RateRow]) -> Vec<RateBook> {
    let rows: HashMap<&str, &RateRow> = rows.iter().map(|row| (&*row.resource, row)).collect();
    let books = resources.iter().map(|resource| {
        let none = || RateBook {
            resource: resource.clone(),
            ..RateBook::default()
        };
        rows.get(resource.as_str())
            .map_or_else(none, |row| book_of(row))
    });
    books.collect()
}

fn book_of(row: &RateRow) -> RateBook {
    let grant = |grant: &RateGrant| Grant {
        token: grant.token.clone(),
        amount: u64::try_from(grant.amount).unwrap_or(0),
        wants: u64::try_from(grant.wants).unwrap_or(0),
        valid_until_ms: grant.valid_until,
        seq: grant.seq,
    };
    RateBook {
        resource: row.resource.clone(),
        book: row.book.clone(),
        grants: row.grants.iter().map(grant).collect(),
    }
}

fn entry_of(turn: &RateTurn) -> RateEntry {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let grant = turn.grant.as_ref().map(|grant| RateGrant {
        token: grant.token.clone(),
        amount: count(grant.amount),
        wants: count(grant.wants),
        valid_until: grant.valid_until_ms,
        seq: grant.seq,
    });
    RateEntry {
        resource: turn.resource.clone(),
        book: turn.book.clone(),
        grant,
        forgotten: turn.forgotten.clone(),
    }
}

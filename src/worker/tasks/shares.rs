//! This process's part of the limits that hold over all processes, and of the gates that are
//! closed for all. In its turn it reads what the others hold, takes what is due to it, and says
//! what it could use.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::share::{self, Share};
use crate::store::{self, GateRow, ShareBook, ShareEntry, Store};
use crate::upstream::{ClosedGate, Pool};
use crate::worker::Settings;
use crate::worker::dispatch::Dispatch;
use crate::worker::lease::Lease;
use crate::worker::lease::clock::Uptime;

/// The longest that a process goes without a turn, and the shortest between two of its turns.
const TICK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
/// Turns that a process takes in the term of its shares, at least.
const TURNS_A_TERM: u32 = 3;

pub(crate) struct Shares {
    store: Store,
    pool: Arc<Pool>,
    dispatch: Arc<Dispatch>,
    token: Arc<str>,
    /// How long a share may be used after a turn.
    term: Duration,
    /// How long one try of a turn may take.
    step: Duration,
    /// Who has had its turns for so long has heard of everybody who lives.
    hearing: Duration,
    /// How long what a vanished process held is held back, while others can work.
    reclaim_after: Duration,
    /// What the last turn asked for: a want that is gone for a moment is no reason to move.
    wanted: Vec<usize>,
    /// Since when it has had its turns in time.
    unbroken: Uptime,
    /// Which resets of upstreams it has followed; `None` before its first turn.
    resets: Option<HashMap<String, i64>>,
}

/// What came of a turn.
struct Outcome {
    shares: Vec<usize>,
    /// More is in flight than the share allows: others wait for it.
    overhang: bool,
    /// Others may have to let go of something, or may take what was let go of.
    concerns_others: bool,
    told: Vec<ClosedGate>,
    closed: Vec<ClosedGate>,
    resets: Vec<(String, i64)>,
}

impl Shares {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        dispatch: Arc<Dispatch>,
        lease: &Lease,
        settings: &Settings,
    ) -> Self {
        pool.limits().share_out();
        let wanted = vec![0; pool.limits().all().count()];
        Self {
            store,
            pool,
            dispatch,
            token: lease.token(),
            term: lease.trust(),
            step: lease.step(),
            hearing: lease.term(),
            reclaim_after: settings.worker.reclaim_after,
            wanted,
            unbroken: Uptime::now(),
            resets: None,
        }
    }

    /// One turn.
    async fn turn(&mut self) -> store::Result<()> {
        let held_before = self.dispatch.shares_hold();
        if !held_before {
            self.unbroken = Uptime::now();
        }
        let demand = self.dispatch.demand();
        if self.dispatch.is_closed() {
            self.wanted.fill(0);
        }
        let wants: Vec<usize> = demand
            .iter()
            .zip(&self.wanted)
            .map(|(&now, &before)| now.max(before))
            .collect();
        self.wanted = demand;
        let sent = Uptime::now();
        let exchange = self
            .store
            .exchange_shares(&self.token, millis(self.term), |book| {
                self.decide(book, &wants)
            });
        // A connection that was cut without a word is not waited for until the shares are over.
        let outcome = match tokio::time::timeout(self.step, exchange).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(store::Error::TimedOut("the exchange of shares")),
        };
        for gate in outcome.closed.iter().chain(&outcome.told) {
            self.pool.know_gate(gate);
        }
        self.follow(&outcome.resets);
        let limits = self.pool.limits();
        let has_grown = limits.grant(&outcome.shares, outcome.overhang);
        self.dispatch.limits_changed();
        self.dispatch.shares_granted(sent + self.term);
        if has_grown || !held_before {
            tracing::debug!(shares = ?outcome.shares, "has a larger share of a limit");
            self.dispatch.limits_grew();
        }
        if outcome.concerns_others {
            self.store.wake_others(store::Who::Sharers);
        }
        Ok(())
    }

    /// What this process takes, and what it writes. Shares that shrink do so here, before what is
    /// in flight is counted and others can take them; shares that grow wait for the commit.
    fn decide(&self, book: &ShareBook, wants: &[usize]) -> (ShareEntry, Outcome) {
        let limits = self.pool.limits();
        let me = book.holders.iter().find(|h| *h.token == *self.token);
        let place = (me.map_or(i64::MAX, |me| me.joined_at), &*self.token);
        let leaves = self.dispatch.is_closed();
        let listens = Uptime::now().since(self.unbroken) >= self.hearing;
        let reclaim = listens.then(|| millis(self.reclaim_after));
        let mut entry = ShareEntry::default();
        let mut parts = Vec::with_capacity(wants.len());
        let mine = limits.all().zip(wants).zip(self.held());
        for (number, (((name, allowed), &wants), held)) in mine.enumerate() {
            let mine = Share {
                allowed: allowed as u64,
                wants: wants as u64,
                held: held as u64,
            };
            let mut part = share::part(name, place, mine, &book.holders, reclaim);
            if leaves {
                (part.target, part.share) = (0, 0);
            }
            limits.lower(number, size(part.share));
            let forgotten = part.forgotten.drain(..);
            let forgotten = forgotten.map(|token| (name.to_owned(), token));
            entry.forgotten.extend(forgotten);
            entry.shares.insert(name.to_owned(), mine);
            parts.push(part);
        }
        self.dispatch.limits_changed();
        let in_flight = self.dispatch.in_flight();
        let mut outcome = Outcome {
            shares: parts.iter().map(|part| size(part.share)).collect(),
            overhang: false,
            concerns_others: false,
            told: self.pool.gates_to_tell(),
            closed: book.gates.iter().map(from_row).collect(),
            resets: book.resets.clone(),
        };
        for (number, (name, _)) in limits.all().enumerate() {
            let (part, in_flight) = (&parts[number], in_flight[number] as u64);
            let Some(mine) = entry.shares.get_mut(name) else {
                continue;
            };
            mine.held = part.share.max(in_flight);
            outcome.overhang |= in_flight > part.share;
            let before = me.and_then(|me| me.shares.get(name));
            let before = before.copied().unwrap_or_default();
            outcome.concerns_others |= part.is_awaited && mine.held < before.held;
            outcome.concerns_others |= part.share < part.target && mine.wants > before.wants;
        }
        outcome.concerns_others |= !outcome.told.is_empty();
        entry.gates = outcome.told.iter().map(into_row).collect();
        (entry, outcome)
    }

    /// What this process holds before its turn: nothing new where it has been silent for too
    /// long, but its calls in flight in any case.
    fn held(&self) -> Vec<usize> {
        let limits = self.pool.limits();
        let holds = self.dispatch.shares_hold();
        let in_flight = self.dispatch.in_flight().into_iter();
        let held = in_flight.enumerate().map(|(number, in_flight)| {
            let share = if holds { limits.share(number) } else { 0 };
            share.max(in_flight)
        });
        held.collect()
    }

    /// Opens what an operator has said is mended since the last turn.
    fn follow(&mut self, resets: &[(String, i64)]) {
        let is_first = self.resets.is_none();
        let known = self.resets.get_or_insert_default();
        for (upstream, at) in resets {
            let before = known.insert(upstream.clone(), *at);
            if before != Some(*at) && !is_first {
                self.pool.reset(upstream);
            }
        }
    }

    fn pause(&self) -> Duration {
        TICK.min(self.term / TURNS_A_TERM)
    }
}

fn into_row(gate: &ClosedGate) -> GateRow {
    GateRow {
        upstream: gate.upstream.clone(),
        model: gate.model.clone(),
        closed_ms: millis(
            gate.opens
                .saturating_duration_since(tokio::time::Instant::now()),
        ),
    }
}

fn from_row(row: &GateRow) -> ClosedGate {
    let closed = Duration::from_millis(u64::try_from(row.closed_ms).unwrap_or(0));
    ClosedGate {
        upstream: row.upstream.clone(),
        model: row.model.clone(),
        opens: tokio::time::Instant::now() + closed,
    }
}

fn size(share: u64) -> usize {
    usize::try_from(share).unwrap_or(usize::MAX)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Takes a turn when there is news, here or from others, and by itself from time to time.
pub(crate) async fn run(mut shares: Shares, stop: CancellationToken) -> &'static str {
    let pool = shares.pool.clone();
    let mut wakeups = shares.store.wakeups(store::Who::Sharers);
    loop {
        wakeups.mark_unchanged();
        let outcome = shares.turn().await;
        let next = async {
            if let Err(error) = outcome {
                tracing::warn!(%error, "limits could not be shared out; it is tried again");
                tokio::time::sleep(shares.pause()).await;
                return;
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                Ok(()) = wakeups.changed() => {}
                () = pool.limits().news() => {}
                () = tokio::time::sleep(shares.pause()) => {}
            }
        };
        if stop.run_until_cancelled(next).await.is_none() {
            return "shares";
        }
    }
}

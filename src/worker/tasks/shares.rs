//! This process's part of the limits that hold over all processes, and of the cooldowns that hold
//! for all. In each exchange the process reads what the others hold, takes the share that is due
//! to it, and writes what it could use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::windows;
use crate::domain::share::{self, Holder, Share};
use crate::store::{self, CooldownRow, ShareBook, ShareEntry, Store};
use crate::upstream::{Cooldown, Limits, Pool, WindowChange};
use crate::worker::dispatch::demand::Demand;
use crate::worker::dispatch::ledger::run_queues::LaneLimit;
use crate::worker::dispatch::shared::SharedLedger;
use crate::worker::dispatch::tenants::Tenants;
use crate::worker::lease::Lease;
use crate::worker::lease::authority::Authority;
use crate::worker::lease::clock::{Uptime, millis};
use crate::worker::work::settings::Settings;

/// A process goes without an exchange for no longer than this, and waits at least so long between
/// two exchanges.
const TICK: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// A process makes at least so many exchanges within the lifetime of its shares.
const EXCHANGES_PER_TTL: u32 = 3;
/// So many exchanges one after the other may hang before the lease on the shares has run out.
const HANGING_TRIES: u32 = 2;

pub(crate) struct Shares {
    store: Store,
    pool: Arc<Pool>,
    ledger: Arc<SharedLedger>,
    demand: Arc<Demand>,
    tenants: Arc<Tenants>,
    authority: Arc<Authority>,
    token: Arc<str>,
    /// How long a share may be used after an exchange.
    safe_ttl: Duration,
    /// How long one try of an exchange may take.
    attempt_timeout: Duration,
    /// After exchanging this long without a gap, this process has seen every live process.
    stable_after: Duration,
    /// How long the share of a vanished process is held back, while others can work.
    reclaim_after: Duration,
    /// What the last exchange asked for, and of which limits. A want that is gone for a moment is
    /// no reason to move shares.
    wanted: (Arc<Limits>, Vec<usize>),
    wanted_for_tenants: BTreeMap<Arc<str>, usize>,
    /// Since when no exchange was missing.
    unbroken: Uptime,
    /// Which resets of upstreams this process has followed. `None` before its first exchange.
    resets: Option<HashMap<String, i64>>,
}

/// What came of an exchange.
struct Outcome {
    /// By the places of the limits.
    shares: Vec<(usize, usize)>,
    of_tenants: BTreeMap<Arc<str>, usize>,
    /// The lease on the shares began anew.
    is_renewed: bool,
    /// More is in flight than the share allows, and others wait for it.
    is_overcommitted: bool,
    /// Others may have to give something back, or may take what was given back.
    concerns_others: bool,
    /// Cooldowns that this process writes for the others, and that the others have written.
    written: Vec<Cooldown>,
    read: Vec<Cooldown>,
    resets: Vec<(String, i64)>,
    /// Windows that have changed.
    windows: Vec<WindowChange>,
}

impl Shares {
    pub(crate) fn new(
        store: Store,
        pool: Arc<Pool>,
        ledger: Arc<SharedLedger>,
        (demand, tenants): (Arc<Demand>, Arc<Tenants>),
        (lease, authority): (&Lease, Arc<Authority>),
        settings: &Settings,
    ) -> Self {
        pool.limits().share_out();
        Self {
            store,
            ledger,
            demand,
            tenants,
            authority,
            token: lease.token(),
            safe_ttl: lease.safe_ttl(),
            attempt_timeout: lease.attempt_timeout(),
            stable_after: lease.ttl(),
            reclaim_after: settings.reclaim_after,
            wanted: (pool.limits(), Vec::new()),
            wanted_for_tenants: BTreeMap::new(),
            pool,
            unbroken: Uptime::now(),
            resets: None,
        }
    }

    /// Makes an exchange when something has changed, here or elsewhere, and by itself from time to
    /// time, until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> &'static str {
        let pool = self.pool.clone();
        let mut wakeups = self.store.wakeups(store::Who::Sharers);
        loop {
            wakeups.mark_unchanged();
            let outcome = self.exchange().await;
            let next = async {
                if let Err(error) = outcome {
                    tracing::warn!(%error, "limits could not be shared out; it is tried again");
                    tokio::time::sleep(self.pause()).await;
                    return;
                }
                tokio::time::sleep(PAUSE_MIN).await;
                tokio::select! {
                    Ok(()) = wakeups.changed() => {}
                    () = pool.sharing().changed() => {}
                    () = tokio::time::sleep(self.pause()) => {}
                }
            };
            if stop.run_until_cancelled(next).await.is_none() {
                return "shares";
            }
        }
    }

    /// One exchange.
    async fn exchange(&mut self) -> store::Result<()> {
        let held_before = self.authority.holds_shares();
        if !held_before {
            self.unbroken = Uptime::now();
        }
        let limits = self.pool.limits();
        let demand = self.demand.of_each_limit(&limits);
        let is_leaving = self.is_leaving();
        let (of, before) = &mut self.wanted;
        if is_leaving || !Arc::ptr_eq(of, &limits) {
            before.clear();
        }
        before.resize(demand.len(), 0);
        let wants = demand.iter().zip(before);
        let wants: Vec<usize> = wants.map(|(&now, before)| now.max(*before)).collect();
        self.wanted = (Arc::clone(&limits), demand);
        let for_tenants = self.wants_for_tenants();
        let sent = Uptime::now();
        let names = self.pool.targets().window_names();
        let exchange =
            self.store
                .exchange_shares(&self.token, millis(self.safe_ttl), &names, |book| {
                    self.decide(&limits, book, &wants, (&for_tenants, &names))
                });
        // A connection that was cut without a word must not be waited for until the shares have
        // lapsed.
        let outcome = match tokio::time::timeout(self.attempt_timeout, exchange).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(store::Error::TimedOut("the exchange of shares")),
        };
        for cooldown in outcome.read.iter().chain(&outcome.written) {
            self.pool.targets().follow_cooldown(cooldown);
        }
        self.follow(&outcome.resets);
        let mut has_grown = limits.grant(&outcome.shares, outcome.is_overcommitted);
        has_grown |= self.tenants.grant(outcome.of_tenants);
        self.apply_limits();
        if outcome.is_renewed {
            self.authority.grant_shares(sent + self.safe_ttl);
        }
        if has_grown || !held_before {
            tracing::debug!(shares = ?outcome.shares, "has a larger share of a limit");
            self.ledger.notify_scheduler();
            self.ledger.notify_supply();
        }
        windows::announce(&outcome.windows);
        if outcome.concerns_others {
            self.store.wake_others(store::Who::Sharers);
        }
        Ok(())
    }

    /// Calls at once that this process could make for tenants whose calls are limited.
    fn wants_for_tenants(&mut self) -> BTreeMap<Arc<str>, usize> {
        let demand = self.demand.of_tenants();
        let mut wants = demand.clone();
        if !self.is_leaving() {
            for (tenant, before) in &self.wanted_for_tenants {
                let wants = wants.entry(Arc::clone(tenant)).or_default();
                *wants = (*wants).max(*before);
            }
        }
        self.wanted_for_tenants = demand;
        wants
    }

    /// What this process takes, and what it writes. A share that shrinks shrinks here, before the
    /// calls in flight are counted and before others can take what is freed. A share that grows
    /// waits for the commit.
    fn decide(
        &self,
        limits: &Limits,
        book: &ShareBook,
        wants: &[usize],
        (for_tenants, window_names): (&BTreeMap<Arc<str>, usize>, &[String]),
    ) -> (ShareEntry, Outcome) {
        // First of all: a window that changes is a limit that changes.
        let (window_rows, window_changes) =
            windows::take_turn(&self.pool, &self.token, window_names, &book.windows);
        let me = book.holders.iter().find(|h| *h.token == *self.token);
        let place = (me.map_or(i64::MAX, |me| me.joined_at), &*self.token);
        let is_leaving = self.is_leaving();
        let has_seen_all = Uptime::now().since(self.unbroken) >= self.stable_after;
        let reclaim = has_seen_all.then(|| millis(self.reclaim_after));
        let mut entry = ShareEntry {
            lease_lasts: me.is_some_and(|me| self.lease_lasts(me)),
            ..ShareEntry::default()
        };
        let mut parts = Vec::with_capacity(wants.len());
        let held = self.held(limits);
        for (number, name, allowed) in limits.all() {
            let (is_gone, held) = (limits.is_gone(number), held[number]);
            if is_gone && held == 0 {
                // If the limit comes back, so does the share, which is others' by then.
                limits.lower(number, 0);
                continue;
            }
            let mine = Share {
                // Others are not bound by what is not configured here any more.
                allowed: if is_gone { u64::MAX } else { allowed as u64 },
                wants: wants[number].min(allowed) as u64,
                held: held as u64,
            };
            let mut part = share::part(name, place, mine, &book.holders, reclaim);
            if is_leaving || is_gone {
                (part.target, part.share) = (0, 0);
            }
            limits.lower(number, size(part.share));
            let forgotten = part.forgotten.drain(..);
            let forgotten = forgotten.map(|token| (name.to_owned(), token));
            entry.forgotten.extend(forgotten);
            entry.shares.insert(name.to_owned(), mine);
            parts.push((number, name, part));
        }
        let of_tenants = self.parts_of_tenants(book, for_tenants, reclaim);
        let lowered = of_tenants.iter();
        let lowered = lowered.map(|(tenant, (_, part))| (Arc::clone(tenant), size(part.share)));
        self.tenants.lower(&lowered.collect());
        self.apply_limits();
        let in_flight = self.demand.in_flight(limits);
        let shares = parts.iter();
        let shares = shares.map(|(number, _, part)| (*number, size(part.share)));
        let mut outcome = Outcome {
            of_tenants: BTreeMap::new(),
            shares: shares.collect(),
            is_renewed: !entry.lease_lasts,
            is_overcommitted: false,
            concerns_others: false,
            written: self.pool.targets().cooldowns_to_share(),
            read: book.cooldowns.iter().map(from_row).collect(),
            resets: book.resets.clone(),
            windows: window_changes,
        };
        entry.windows = window_rows;
        for (number, name, part) in &parts {
            let in_flight = in_flight[*number] as u64;
            let Some(mine) = entry.shares.get_mut(*name) else {
                continue;
            };
            mine.held = part.share.max(in_flight);
            outcome.is_overcommitted |= part.is_overcommitted(in_flight);
            let before = me.and_then(|me| me.shares.get(*name));
            let before = before.copied().unwrap_or_default();
            outcome.concerns_others |= part.is_awaited && mine.held < before.held;
            outcome.concerns_others |= part.share < part.target && mine.wants > before.wants;
        }
        let in_flight = self.demand.in_flight_of_tenants();
        for (tenant, (mut mine, mut part)) in of_tenants {
            let name = resource_of(&tenant);
            let in_flight = in_flight.get(&tenant).map_or(0, |calls| *calls as u64);
            let forgotten = part.forgotten.drain(..);
            entry
                .forgotten
                .extend(forgotten.map(|token| (name.clone(), token)));
            mine.held = part.share.max(in_flight);
            outcome.is_overcommitted |= part.is_overcommitted(in_flight);
            let before = me.and_then(|me| me.shares.get(&name));
            let before = before.copied().unwrap_or_default();
            outcome.concerns_others |= part.is_awaited && mine.held < before.held;
            outcome.concerns_others |= part.share < part.target && mine.wants > before.wants;
            if mine.held > 0 || mine.wants > 0 {
                entry.shares.insert(name, mine);
                outcome.of_tenants.insert(tenant, size(part.share));
            } else if me.is_some_and(|me| me.shares.contains_key(&name)) {
                // A tenant who sends nothing here needs no row.
                entry.forgotten.push((name, self.token.to_string()));
            }
        }
        outcome.concerns_others |= !outcome.written.is_empty() || !outcome.windows.is_empty();
        entry.cooldowns = outcome.written.iter().map(into_row).collect();
        (entry, outcome)
    }

    /// This process's part of each tenant's limit that it wants a part of, or has: what it says of
    /// the limit, and what is due to it.
    fn parts_of_tenants(
        &self,
        book: &ShareBook,
        wants: &BTreeMap<Arc<str>, usize>,
        reclaim: Option<i64>,
    ) -> BTreeMap<Arc<str>, (Share, share::Part)> {
        let me = book.holders.iter().find(|h| *h.token == *self.token);
        let place = (me.map_or(i64::MAX, |me| me.joined_at), &*self.token);
        let (is_leaving, holds) = (self.is_leaving(), self.authority.holds_shares());
        let shares = self.tenants.all_shares();
        let in_flight = self.demand.in_flight_of_tenants();
        let sending = in_flight.keys();
        let sending = sending.filter(|tenant| self.tenants.allowed(tenant).is_some());
        let all: BTreeSet<&Arc<str>> = wants.keys().chain(shares.keys()).chain(sending).collect();
        let parts = all.into_iter().map(|tenant| {
            let of =
                |calls: &BTreeMap<Arc<str>, usize>| calls.get(tenant).map_or(0, |one| *one as u64);
            // Where the limit is gone, the share goes, too.
            let allowed = self.tenants.allowed(tenant).unwrap_or(0) as u64;
            let mine = Share {
                allowed,
                wants: of(wants).min(allowed),
                held: (if holds { of(&shares) } else { 0 }).max(of(&in_flight)),
            };
            let mut part = share::part(&resource_of(tenant), place, mine, &book.holders, reclaim);
            if is_leaving || mine.wants == 0 {
                (part.target, part.share) = (0, 0);
            }
            (Arc::clone(tenant), (mine, part))
        });
        parts.collect()
    }

    /// What this process holds before an exchange: its shares, unless it has been silent for too
    /// long, and its calls in flight in any case.
    fn held(&self, limits: &Limits) -> Vec<usize> {
        let holds = self.authority.holds_shares();
        let in_flight = self.demand.in_flight(limits).into_iter();
        let held = in_flight.enumerate().map(|(number, in_flight)| {
            let share = if holds { limits.share(number) } else { 0 };
            share.max(in_flight)
        });
        held.collect()
    }

    /// Makes the ledger choose by the shares as they are now. When this returns, no line is chosen
    /// by the shares before.
    fn apply_limits(&self) {
        let mut ledger = self.ledger.lock();
        ledger.set_limits(|lane| LaneLimit::of(&self.pool, lane));
        ledger.set_tenant_limits(|tenant| self.tenants.limit_of(tenant));
    }

    /// Whether this process sends nothing new any more.
    fn is_leaving(&self) -> bool {
        self.ledger.lock().is_closed()
    }

    /// Opens the upstreams that an operator has said are mended since the last exchange.
    fn follow(&mut self, resets: &[(String, i64)]) {
        let is_first = self.resets.is_none();
        let known = self.resets.get_or_insert_default();
        for (upstream, at) in resets {
            let before = known.insert(upstream.clone(), *at);
            if before != Some(*at) && !is_first {
                self.pool.targets().reset(upstream);
            }
        }
    }

    /// Whether the lease on the shares lasts, here and in the store, until after the next pause two
    /// tries to renew it have hung. A lease that seems to last for longer than it can is from
    /// before the database's clock was set back.
    fn lease_lasts(&self, me: &Holder) -> bool {
        let enough = self.pause() + HANGING_TRIES * self.attempt_timeout;
        self.authority.holds_shares_for(enough)
            && (millis(enough)..=millis(self.safe_ttl)).contains(&me.left_ms)
    }

    fn pause(&self) -> Duration {
        TICK.min(self.safe_ttl / EXCHANGES_PER_TTL)
    }
}

/// What the store calls a tenant's limit.
fn resource_of(tenant: &str) -> String {
    format!("tenant:{tenant}")
}

fn into_row(cooldown: &Cooldown) -> CooldownRow {
    CooldownRow {
        upstream: cooldown.upstream.clone(),
        key: cooldown.key.clone().unwrap_or_default(),
        model: cooldown.model.clone(),
        closed_ms: millis(
            cooldown
                .until
                .saturating_duration_since(tokio::time::Instant::now()),
        ),
    }
}

fn from_row(row: &CooldownRow) -> Cooldown {
    let closed = Duration::from_millis(u64::try_from(row.closed_ms).unwrap_or(0));
    Cooldown {
        upstream: row.upstream.clone(),
        key: Some(row.key.clone()).filter(|key| !key.is_empty()),
        model: row.model.clone(),
        until: tokio::time::Instant::now() + closed,
    }
}

fn size(share: u64) -> usize {
    usize::try_from(share).unwrap_or(usize::MAX)
}

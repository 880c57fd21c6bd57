//! All rate limits of a process: which of them a call counts against, and what it was charged.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::book::{Ask, Book};
use super::estimate::{LineSize, Tokens};
use super::exchange::{Exchanged, Grant, Turn, exchange};
use super::meter::{Charge, Meter, Used, Verdict};
use super::terms::Terms;
use crate::domain::tenant::ANY_OTHER;
use crate::upstream::numbers::Number;
use crate::upstream::settings::{RateKind, RateLimit, Settings, TenantRates};

/// What was spent is told at least so often.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Where nothing can be granted for long, it is asked for again after so long: another process may
/// have given something back.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What a limit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Upstream(usize),
    /// An upstream, and a key of several that it has.
    Key(usize, usize),
    Model(usize),
    /// A model's place, and a route's place in it.
    Route(usize, usize),
    Tenant,
}

/// A limit, and what it is of.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Spec {
    owner: Owner,
    /// Of the upstream, the model, the tenant, `UPSTREAM by KEY`, or `MODEL at UPSTREAM` of a
    /// route.
    name: String,
    limit: RateLimit,
}

/// All rate limits of a process.
#[derive(Debug, Default)]
pub struct RateLimits {
    state: Mutex<State>,
    /// An exchange may bring what a line waits for.
    asked: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those of tenants come and go, and so do the others with the configuration.
    limits: Slab<Limit>,
    /// The places of those of upstreams, models and routes, by their numbers.
    by_number: Vec<usize>,
    /// What is said of tenants, by their names.
    tenant_rates: HashMap<String, Vec<RateLimit>>,
    /// The tenants whose limits are among them.
    tenants: HashMap<String, Arc<TenantMeters>>,
    /// Those of tenants of which something else is said by now.
    replaced: Vec<Arc<TenantMeters>>,
    /// The time by which parts are numbered, as it was at a moment of this process. `None` before
    /// the first exchange.
    clock: Option<(Instant, i64)>,
    /// The number of what is told next.
    seq: i64,
    exchanged: Option<Instant>,
    /// When a line that was refused may be sent.
    due: Option<Instant>,
    /// A line was refused since a call was last settled: what calls give back may let it be sent.
    is_refused: bool,
}

/// A limit, and what this process has of it.
#[derive(Debug)]
struct Limit {
    spec: Spec,
    meter: Meter,
    /// Whether the store has a grant of this process.
    had_grant: bool,
    /// More is asked for, and whoever takes turns knows so or was woken.
    is_asked: bool,
    /// It is not configured any more: what is left of its grant is given back.
    is_gone: bool,
}

/// The places of a tenant's rate limits among all. While somebody has this, the limits stay.
#[derive(Debug)]
pub struct TenantMeters(Box<[usize]>);

/// What rate limits are asked of a line.
#[derive(Clone, Copy, Debug)]
pub struct RateRequest<'a> {
    pub size: LineSize,
    /// Those of the line's tenant, where it has any.
    pub tenant: Option<&'a TenantMeters>,
}

impl From<LineSize> for RateRequest<'_> {
    fn from(size: LineSize) -> Self {
        Self { size, tenant: None }
    }
}

/// What the limits say at a moment.
pub(in crate::upstream) struct Gate<'a> {
    limits: &'a RateLimits,
    state: MutexGuard<'a, State>,
    now: Instant,
    now_ms: i64,
    /// Whose lines ask: lines of one queue do not pass each other.
    queue: usize,
    pub(in crate::upstream) size: LineSize,
    /// Those of the line's tenant.
    tenant: &'a [usize],
}

/// How a line stands with the limits of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Standing {
    Fits,
    /// It needs more than this whole limit.
    Never(usize),
    /// When it may be sent, if that is known.
    Limited(Option<Instant>),
}

/// What a call was charged. Settled once.
#[derive(Debug)]
pub(in crate::upstream) struct Charges {
    charges: Vec<(usize, Charge)>,
    pub(in crate::upstream) size: LineSize,
}

/// What is stored of one limit.
#[derive(Clone, Debug, Default)]
pub struct RateBook {
    /// The limit's name.
    pub resource: String,
    /// `None`: nothing was booked yet.
    pub book: Option<String>,
    /// Of all processes.
    pub grants: Vec<Grant>,
}

/// What a process writes of one limit in its turn.
#[derive(Debug)]
pub struct RateTurn {
    pub resource: String,
    /// As it is to be stored. `None`: it has not changed.
    pub book: Option<String>,
    /// This process's grant. `None`: it has not changed.
    pub grant: Option<Grant>,
    /// The grants of these processes are removed.
    pub forgotten: Vec<String>,
    limit: usize,
    read: Book,
    exchanged: Exchanged,
}

/// How a limit stands.
#[derive(Clone, Debug)]
pub struct RateStatus {
    /// `upstream`, `key`, `model`, `route` or `tenant`.
    pub scope: &'static str,
    /// Of the upstream, the model, the tenant, `UPSTREAM by KEY`, or `MODEL at UPSTREAM` of a
    /// route.
    pub name: String,
    pub kind: RateKind,
    pub limit: u64,
    pub period: Duration,
    /// Used in the trailing window over the limit, as far as this process knows.
    pub saturation: f64,
    /// Reservations of this process's calls in flight.
    pub reserved: u64,
    /// How long until something of it is free again, where it is spent.
    pub opens: Option<Duration>,
}

impl Spec {
    /// All limits of the settings but those of tenants.
    pub(in crate::upstream) fn all(settings: &Settings) -> Vec<Self> {
        let mut specs = Vec::new();
        let mut add = |owner: Owner, name: &str, limits: &[RateLimit]| {
            specs.extend(limits.iter().map(|limit| Spec {
                owner,
                name: name.to_owned(),
                limit: *limit,
            }));
        };
        for (index, upstream) in settings.upstreams.iter().enumerate() {
            let (name, limits) = (&upstream.name, &upstream.rate_limits);
            if upstream.told_keys().is_empty() {
                add(Owner::Upstream(index), name, limits);
            }
            for (place, key) in upstream.told_keys().iter().enumerate() {
                let name = format!("{name} by {}", key.name);
                add(Owner::Key(index, place), &name, limits);
            }
        }
        for (index, model) in settings.models.iter().enumerate() {
            add(Owner::Model(index), &model.name, &model.rate_limits);
            for (place, route) in model.routes.iter().enumerate() {
                let name = match &route.model {
                    Some(renamed) => format!("{} at {} as {renamed}", model.name, route.upstream),
                    None => format!("{} at {}", model.name, route.upstream),
                };
                add(Owner::Route(index, place), &name, &route.rate_limits);
            }
        }
        specs
    }

    /// The places of the limits that a call counts against which goes by a route (of a model, where
    /// there are any) to an upstream, by one of its keys.
    pub(in crate::upstream) fn that_bound(
        specs: &[Self],
        route: Option<(usize, usize)>,
        (upstream, key): (usize, usize),
    ) -> Box<[usize]> {
        let bounds = |owner: Owner| match owner {
            Owner::Upstream(index) => index == upstream,
            Owner::Key(index, place) => (index, place) == (upstream, key),
            Owner::Model(index) => route.is_some_and(|(model, _)| model == index),
            Owner::Route(model, place) => route == Some((model, place)),
            Owner::Tenant => false,
        };
        let specs = specs.iter().enumerate();
        let specs = specs.filter(|(_, spec)| bounds(spec.owner));
        specs.map(|(index, _)| index).collect()
    }

    fn scope(&self) -> &'static str {
        match self.owner {
            Owner::Upstream(_) => "upstream",
            Owner::Key(..) => "key",
            Owner::Model(_) => "model",
            Owner::Route(..) => "route",
            Owner::Tenant => "tenant",
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            limit: self.limit.limit,
            period_ms: i64::try_from(self.limit.period.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// Under which it is stored. Without the limit's size: a change of that keeps what was used.
    pub(in crate::upstream) fn resource(&self) -> String {
        let (scope, name, kind) = (self.scope(), &self.name, self.limit.kind.as_str());
        format!("{scope}:{name}:{kind}:{}", self.limit.period.as_millis())
    }

    /// Whether it is stored under the same name.
    fn has_book_of(&self, other: &Self) -> bool {
        let of = |spec: &Self| (spec.scope(), spec.limit.kind, spec.limit.period);
        of(self) == of(other) && self.name == other.name
    }

    /// What a call needs of the limit.
    fn amount(&self, tokens: Tokens) -> u64 {
        match self.limit.kind {
            RateKind::Requests => 1,
            RateKind::Tokens => tokens.input.saturating_add(tokens.output),
            RateKind::InputTokens => tokens.input,
            RateKind::OutputTokens => tokens.output,
        }
    }

    /// Of the limit and of what it is, in words.
    fn shown(&self) -> String {
        let (scope, name) = (self.scope(), &self.name);
        let RateLimit {
            kind,
            limit,
            period,
        } = &self.limit;
        let kind = kind.as_str().replace('_', " ");
        format!("the limit of {limit} {kind} in {period:?} of the {scope} {name}")
    }
}

impl RateLimits {
    /// These are the limits from now on, each with its number; and those of tenants. What was used
    /// of those that are kept stays used. Returns their places, in the same order.
    pub(in crate::upstream) fn configure(
        &self,
        specs: Vec<(Number, Spec)>,
        tenants: &[TenantRates],
    ) -> Vec<usize> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let own = state.by_number.iter();
        own.for_each(|place| state.limits[*place].is_gone = true);
        let places = specs.into_iter().map(|(number, spec)| {
            if let Some(place) = state.by_number.get(number.at) {
                let limit = &mut state.limits[*place];
                if number.is_new {
                    *limit = Limit::new(spec);
                } else {
                    limit.take(spec);
                }
                return *place;
            }
            // Numbers are given from the lowest on.
            let place = state.limits.insert(Limit::new(spec));
            state.by_number.push(place);
            place
        });
        let places = places.collect();
        let tenants = tenants.iter();
        let tenants = tenants.map(|tenant| (tenant.name.clone(), tenant.rate_limits.clone()));
        state.tenant_rates = tenants.collect();
        state.configure_tenants();
        drop(guard);
        // Whoever takes turns finds out what there is to tell, and to ask.
        self.asked.notify_one();
        places
    }

    /// Whether a tenant has limits.
    #[must_use]
    pub fn bound_tenant(&self, tenant: &str) -> bool {
        !self.lock().rates_of_tenant(tenant).is_empty()
    }

    /// The limits of a tenant. `None`: it has none.
    #[must_use]
    pub fn of_tenant(&self, tenant: &str) -> Option<Arc<TenantMeters>> {
        self.lock().of_tenant(tenant, None)
    }

    /// For how long no line of a tenant can be sent under its limits. `None`: one can be sent, or
    /// it is not known when.
    #[must_use]
    pub fn tenant_spent_for(&self, tenant: &str) -> Option<Duration> {
        let (state, now) = (self.lock(), Instant::now());
        let places = state.tenants.get(tenant)?.0.iter();
        places.filter_map(|place| state.opens(*place, now)).max()
    }

    /// What the limits say now to a line of this queue.
    pub(in crate::upstream) fn gate<'a>(
        &'a self,
        now: Instant,
        queue: usize,
        request: RateRequest<'a>,
    ) -> Gate<'a> {
        let state = self.lock();
        Gate {
            limits: self,
            now_ms: state.ms(now).unwrap_or(0),
            state,
            now,
            queue,
            size: request.size,
            tenant: request.tenant.map_or(&[], |tenant| &tenant.0),
        }
    }

    /// Charges a call for so many more tokens of its input, if all its limits have them now. False:
    /// nothing is charged. `queue`: whose lines ask.
    pub(in crate::upstream) fn extend(
        &self,
        now: Instant,
        queue: usize,
        charges: &mut Charges,
        (bytes, tokens): (u64, Tokens),
    ) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        let now_ms = state.ms(now).unwrap_or(0);
        let amount = |spec: &Spec| match spec.limit.kind {
            // It is the same request.
            RateKind::Requests => 0,
            _ => spec.amount(tokens),
        };
        let (mut fits, mut asks, mut added) = (true, false, 0);
        for (index, charge) in &mut charges.charges {
            let limit = &mut state.limits[*index];
            let more = amount(&limit.spec);
            fits = limit.meter.add(now_ms, queue, charge, more);
            asks |= limit.asks();
            if !fits {
                break;
            }
            added += 1;
        }
        if fits {
            charges.size.bytes += bytes;
        } else {
            for (index, charge) in &mut charges.charges[..added] {
                let Limit { spec, meter, .. } = &mut state.limits[*index];
                meter.subtract(now_ms, charge, amount(spec));
            }
        }
        drop(guard);
        if asks {
            self.asked.notify_one();
        }
        fits
    }

    /// A call has ended that was charged. True if lines that were refused should be looked at: what
    /// was reserved and not used may let one be sent.
    pub(in crate::upstream) fn settle(
        &self,
        now: Instant,
        charges: &Charges,
        used: impl Fn(&Spec) -> Used,
    ) -> bool {
        let mut state = self.lock();
        let now_ms = state.ms(now).unwrap_or(0);
        for (index, charge) in &charges.charges {
            let limit = &mut state.limits[*index];
            let used = used(&limit.spec);
            limit.meter.settle(now_ms, *charge, used);
        }
        std::mem::take(&mut state.is_refused)
    }

    /// A provider says what is left of its own limits.
    pub(in crate::upstream) fn hear(&self, now: Instant, limits: &[usize], heard: &[Remaining]) {
        let mut state = self.lock();
        let now_ms = state.ms(now).unwrap_or(0);
        for index in limits {
            let Limit { spec, meter, .. } = &mut state.limits[*index];
            // What a provider counts is one model's or the key's: a limit of a model over several
            // upstreams is not what it speaks of.
            let is_its = !matches!(spec.owner, Owner::Model(_));
            let said = heard.iter().find(|said| said.kind == spec.limit.kind);
            if let Some(said) = said.filter(|_| is_its) {
                let reset = i64::try_from(said.reset.as_millis()).unwrap_or(i64::MAX);
                let reset_ms = now_ms.saturating_add(reset);
                meter.hear(now_ms, said.remaining, reset_ms);
            }
        }
    }

    /// When a line that was refused may be sent, where that is known.
    pub(in crate::upstream) fn due(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        state.due = state.due.filter(|due| *due > now);
        state.due
    }

    /// For how long no call can be sent under these limits. `None`: one can be sent, or it is not
    /// known when.
    pub(in crate::upstream) fn spent_for(
        &self,
        now: Instant,
        limits: &[usize],
    ) -> Option<Duration> {
        let state = self.lock();
        let limits = limits.iter();
        limits.filter_map(|index| state.opens(*index, now)).max()
    }

    /// How all limits stand.
    #[must_use]
    pub fn status(&self) -> Vec<RateStatus> {
        let (state, now) = (self.lock(), Instant::now());
        let now_ms = state.ms(now).unwrap_or(0);
        let limits = state.limits.iter().filter(|(_, limit)| !limit.is_gone);
        let status = limits.map(|(index, Limit { spec, meter, .. })| RateStatus {
            scope: spec.scope(),
            name: spec.name.clone(),
            kind: spec.limit.kind,
            limit: spec.limit.limit,
            period: spec.limit.period,
            saturation: meter.saturation(now_ms),
            reserved: meter.reserved(),
            opens: state.opens(index, now),
        });
        status.collect()
    }

    /// How long until the next exchange, if nothing is asked for before. `None`: there is nothing
    /// to exchange.
    #[must_use]
    pub fn exchange_in(&self) -> Option<Duration> {
        let (mut state, now) = (self.lock(), Instant::now());
        if !state.limits.iter().any(|(_, limit)| limit.is_told()) {
            return None;
        }
        let Some(last) = state.exchanged else {
            return Some(Duration::ZERO);
        };
        let now_ms = state.ms(now).unwrap_or(0);
        let due = |limit: &mut Limit| {
            let meter = &limit.meter;
            let tells = meter.needs_exchange().then_some(TELL_EVERY);
            let asks = meter.runs_short().then(|| {
                let opens = meter.ungranted_opens_ms(now_ms);
                let opens = opens.map_or(ASK_AGAIN, |at| millis(at - now_ms));
                (now.duration_since(last) + opens).clamp(millis(meter.pause_ms()), ASK_AGAIN)
            });
            // What runs short is reckoned with until its turn.
            limit.is_asked = asks.is_some();
            let has_more = meter.has_untold();
            match (asks, tells) {
                (Some(asks), Some(tells)) if has_more => Some(asks.min(tells)),
                (asks, tells) => asks.or(tells),
            }
        };
        let limits = state.limits.iter_mut().map(|(_, limit)| limit);
        let after = limits.filter_map(due).min()?;
        Some((last + after).saturating_duration_since(now))
    }

    /// Waits until a line asks for more than is granted. For one listener.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// The names of the limits that a turn is about, as they are stored: those that are not
    /// configured any more, and those of tenants of whom nothing is in hand, only until their last
    /// calls are told.
    #[must_use]
    pub fn resources(&self) -> Vec<String> {
        let mut state = self.lock();
        state.forget_tenants();
        let limits = state.limits.iter().map(|(_, limit)| limit);
        let told = limits.filter(|limit| limit.is_told());
        told.map(|limit| limit.spec.resource()).collect()
    }

    /// This process's turn at all books: tells what was spent, and asks for more. Nothing holds
    /// until [`end_turn`](Self::end_turn). `books`: of all [`resources`](Self::resources), as they
    /// are stored. A limit whose book is not among them has no part in the turn. `now_ms`: their
    /// time. `valid`: how long a grant may be used. `is_last`: all is given back.
    pub fn take_turn(
        &self,
        token: &str,
        now_ms: i64,
        valid: Duration,
        books: &[RateBook],
        is_last: bool,
    ) -> Vec<RateTurn> {
        let mut state = self.lock();
        let now = Instant::now();
        state.clock = Some((now, now_ms));
        state.exchanged = Some(now);
        let valid_until_ms =
            now_ms.saturating_add(i64::try_from(valid.as_millis()).unwrap_or(i64::MAX));
        let seq = state.seq;
        let books = books.iter().map(|book| (book.resource.as_str(), book));
        let books: HashMap<&str, &RateBook> = books.collect();
        let turn = |(place, limit): (usize, &mut Limit)| {
            let Limit {
                spec,
                meter,
                had_grant,
                is_asked,
                is_gone,
            } = limit;
            let is_last = is_last || *is_gone;
            let resource = spec.resource();
            let stored = books.get(resource.as_str())?;
            *is_asked = false;
            let told = meter.tell(now_ms, is_last).clone();
            let ask = if is_last {
                Ask::default()
            } else {
                meter.ask(now_ms)
            };
            let text = stored.book.as_deref();
            // A book that cannot be read is begun anew: what it held is not known.
            let before = text.and_then(Book::read);
            let mut book = before.clone().unwrap_or_default();
            let turn = Turn {
                token,
                now_ms,
                valid_until_ms,
                told: &told,
                ask,
                seq,
                had_grant: *had_grant,
            };
            let exchanged = exchange(&mut book, spec.terms(), &stored.grants, turn);
            let is_idle =
                told.is_empty() && exchanged.mine.amount == 0 && exchanged.mine.wants == 0;
            Some(RateTurn {
                resource,
                book: (before.as_ref() != Some(&book) && !(is_idle && before.is_none()))
                    .then(|| book.stored()),
                grant: (!is_idle).then(|| exchanged.mine.clone()),
                forgotten: exchanged.forgotten.clone(),
                limit: place,
                read: book,
                exchanged,
            })
        };
        state.limits.iter_mut().filter_map(turn).collect()
    }

    /// What was decided in a turn is stored. True if lines that wait should be looked at: something
    /// is granted, or they are to ask again.
    pub fn end_turn(&self, turns: Vec<RateTurn>, now_ms: i64, valid: Duration) -> bool {
        let mut state = self.lock();
        state.seq += 1;
        let valid_until_ms =
            now_ms.saturating_add(i64::try_from(valid.as_millis()).unwrap_or(i64::MAX));
        let mut is_worth_a_look = false;
        for turn in turns {
            let Exchanged {
                mine,
                elsewhere,
                was_written_off,
                ..
            } = turn.exchanged;
            is_worth_a_look |= mine.amount > 0 || mine.wants > 0;
            let limit = state.limits.get_mut(turn.limit);
            // Another limit may have the place by now. What this one was granted lapses.
            let limit = limit.filter(|limit| limit.spec.resource() == turn.resource);
            let Some(limit) = limit else {
                continue;
            };
            limit.had_grant |= turn.grant.is_some();
            limit.meter.told(
                turn.read,
                mine.amount,
                elsewhere,
                valid_until_ms,
                was_written_off,
            );
        }
        is_worth_a_look
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a provider says is left of one of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Remaining {
    pub(in crate::upstream) kind: RateKind,
    pub(in crate::upstream) remaining: u64,
    /// In how long all of the limit is there again.
    pub(in crate::upstream) reset: Duration,
}

impl Limit {
    fn new(spec: Spec) -> Self {
        Self {
            meter: Meter::new(spec.terms()),
            spec,
            had_grant: false,
            is_asked: false,
            is_gone: false,
        }
    }

    /// The same limit is of another size.
    fn take(&mut self, spec: Spec) {
        self.meter.set_terms(spec.terms());
        (self.spec, self.is_gone) = (spec, false);
    }

    /// Whether more is to be asked for aloud. Once, until that is reckoned with.
    fn asks(&mut self) -> bool {
        let asks = !self.is_asked && self.meter.runs_short();
        self.is_asked |= asks;
        asks
    }

    /// Whether nobody has anything of it that is to be told.
    fn is_idle(&self) -> bool {
        self.meter.reserved() == 0 && !self.meter.needs_exchange()
    }

    /// Whether the limit takes part in exchanges.
    fn is_told(&self) -> bool {
        !self.is_gone || !self.is_idle()
    }
}

impl State {
    /// What the configuration says of a tenant.
    fn rates_of_tenant(&self, tenant: &str) -> &[RateLimit] {
        let rates = self.tenant_rates.get(tenant);
        let rates = rates.or_else(|| self.tenant_rates.get(ANY_OTHER));
        rates.map_or(&[], Vec::as_slice)
    }

    /// The limits of a tenant. `None`: it has none. `before`: those that it had.
    fn of_tenant(
        &mut self,
        tenant: &str,
        before: Option<&TenantMeters>,
    ) -> Option<Arc<TenantMeters>> {
        if let Some(meters) = self.tenants.get(tenant) {
            return Some(Arc::clone(meters));
        }
        let rates = self.rates_of_tenant(tenant).to_vec();
        if rates.is_empty() {
            return None;
        }
        let places = rates.into_iter().map(|limit| {
            let spec = Spec {
                owner: Owner::Tenant,
                name: tenant.to_owned(),
                limit,
            };
            // There is never more than one with one book.
            let same = |place: &usize| self.limits[*place].spec.has_book_of(&spec);
            let known = match before {
                Some(before) => before.0.iter().copied().find(same),
                None => self
                    .replaced
                    .iter()
                    .flat_map(|one| one.0.iter().copied())
                    .find(same),
            };
            let Some(place) = known else {
                return self.limits.insert(Limit::new(spec));
            };
            self.limits[place].take(spec);
            place
        });
        let meters = Arc::new(TenantMeters(places.collect()));
        self.tenants.insert(tenant.to_owned(), Arc::clone(&meters));
        Some(meters)
    }

    /// Something else may be said of tenants. What is the same keeps what was used of it.
    fn configure_tenants(&mut self) {
        for (tenant, meters) in std::mem::take(&mut self.tenants) {
            for place in &meters.0 {
                self.limits[*place].is_gone = true;
            }
            self.of_tenant(&tenant, Some(&meters));
            self.replaced.push(meters);
        }
    }

    /// Forgets the limits of tenants that nobody asks for, and of which nothing is to be told.
    fn forget_tenants(&mut self) {
        let State {
            limits,
            tenants,
            replaced,
            ..
        } = self;
        let is_kept = |limits: &Slab<Limit>, meters: &Arc<TenantMeters>| {
            let mut places = meters.0.iter();
            Arc::strong_count(meters) > 1 || places.any(|place| !limits[*place].is_idle())
        };
        tenants.retain(|_, meters| is_kept(limits, meters));
        replaced.retain(|meters| is_kept(limits, meters));
        let kept = tenants.values().chain(&*replaced);
        let kept: HashSet<usize> = kept.flat_map(|meters| meters.0.iter().copied()).collect();
        limits.retain(|place, limit| limit.spec.owner != Owner::Tenant || kept.contains(&place));
    }

    fn ms(&self, now: Instant) -> Option<i64> {
        let (at, ms) = self.clock?;
        let since = now.saturating_duration_since(at).as_millis();
        Some(ms.saturating_add(i64::try_from(since).unwrap_or(i64::MAX)))
    }

    /// How long until something of a limit is free, where it is spent.
    fn opens(&self, limit: usize, now: Instant) -> Option<Duration> {
        let now_ms = self.ms(now)?;
        let meter = &self.limits[limit].meter;
        let opens_ms = match meter.verdict_of_any(now_ms) {
            Verdict::Fits | Verdict::Never => return None,
            Verdict::Later(at) => at,
            Verdict::Ungranted => meter.ungranted_opens_ms(now_ms)?,
        };
        (opens_ms > now_ms).then(|| millis(opens_ms - now_ms))
    }
}

impl Gate<'_> {
    /// The moment that the gate speaks of.
    pub(in crate::upstream) fn now(&self) -> Instant {
        self.now
    }

    /// Whether these limits and those of its tenant let the line be sent now, if it needs so many
    /// tokens.
    pub(in crate::upstream) fn fits(&self, limits: &[usize], tokens: Tokens) -> bool {
        let fits = |index: &usize| {
            let Limit { spec, meter, .. } = &self.state.limits[*index];
            let amount = spec.amount(tokens);
            meter.verdict(self.now_ms, self.queue, amount) == Verdict::Fits
        };
        self.tenant.iter().all(fits) && limits.iter().all(fits)
    }

    /// How the line stands with these limits and those of its tenant, if it needs so many tokens.
    pub(in crate::upstream) fn standing(&self, limits: &[usize], tokens: Tokens) -> Standing {
        self.standing_with(self.tenant.iter().chain(limits), tokens)
    }

    /// How the line stands with the limits of its tenant alone.
    pub(in crate::upstream) fn standing_of_tenant(&self, tokens: Tokens) -> Standing {
        self.standing_with(self.tenant.iter(), tokens)
    }

    fn standing_with<'l>(
        &self,
        limits: impl Iterator<Item = &'l usize>,
        tokens: Tokens,
    ) -> Standing {
        let mut standing = Standing::Fits;
        for index in limits {
            let limit = &self.state.limits[*index];
            let amount = limit.spec.amount(tokens);
            let verdict = limit.meter.verdict(self.now_ms, self.queue, amount);
            match verdict {
                Verdict::Fits => {}
                Verdict::Never => return Standing::Never(*index),
                Verdict::Later(at) => {
                    let at = self.now + millis(at - self.now_ms);
                    standing = match standing {
                        Standing::Limited(other) => Standing::Limited(other.map(|one| one.max(at))),
                        _ => Standing::Limited(Some(at)),
                    };
                }
                // The exchange says when.
                Verdict::Ungranted => standing = Standing::Limited(None),
            }
        }
        standing
    }

    /// The line is sent: charges it.
    pub(in crate::upstream) fn take(mut self, limits: &[usize], tokens: Tokens) -> Charges {
        let mut charges = Vec::with_capacity(self.tenant.len() + limits.len());
        let mut asks = false;
        for index in self.tenant.iter().chain(limits) {
            let limit = &mut self.state.limits[*index];
            let amount = limit.spec.amount(tokens);
            let charge = limit.meter.take(self.now_ms, self.queue, amount);
            charges.push((*index, charge));
            asks |= limit.asks();
        }
        if asks {
            self.limits.asked.notify_one();
        }
        let size = self.size;
        Charges { charges, size }
    }

    /// The line could be sent nowhere, for one because of its tenant's limits.
    pub(in crate::upstream) fn refuse_tenant(&mut self, tokens: Tokens) {
        self.refuse(self.tenant, tokens);
    }

    /// The line could be sent nowhere, for one because of these limits.
    pub(in crate::upstream) fn refuse(&mut self, limits: &[usize], tokens: Tokens) {
        self.state.is_refused = true;
        for index in limits {
            let limit = &mut self.state.limits[*index];
            let amount = limit.spec.amount(tokens);
            let fits = limit.meter.verdict(self.now_ms, self.queue, amount) == Verdict::Fits;
            if !fits {
                limit.meter.refuse(self.now_ms, self.queue, amount);
            }
            if limit.asks() {
                self.limits.asked.notify_one();
            }
        }
    }

    /// A line waits until this moment. True if that is sooner than was known.
    pub(in crate::upstream) fn wait_until(&mut self, at: Instant) -> bool {
        let is_sooner = self.state.due.is_none_or(|due| at < due || due <= self.now);
        if is_sooner {
            self.state.due = Some(at);
        }
        is_sooner
    }

    /// Why a line can never be sent, in words for its user.
    pub(in crate::upstream) fn too_large(&self, limit: usize, tokens: Tokens) -> String {
        let spec = &self.state.limits[limit].spec;
        format!(
            "The request may need {} {}, which is more than {} allows.",
            spec.amount(tokens),
            spec.limit.kind.as_str().replace('_', " "),
            spec.shown(),
        )
    }
}

impl Spec {
    /// What a call has used of the limit.
    pub(in crate::upstream) fn used(&self, tokens: Option<Tokens>) -> Used {
        match (self.limit.kind, tokens) {
            (RateKind::Requests, _) | (_, None) => Used::Unknown,
            (_, Some(tokens)) => Used::Amount(self.amount(tokens)),
        }
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

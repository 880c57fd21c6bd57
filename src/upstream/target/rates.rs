//! What rate limits have to do with calls: whether they keep a line, and what a call that has ended
//! gives back to them.

use std::time::Duration;

use tokio::time::Instant;

use super::acquire::{Acquired, has_place};
use super::finish::Ended;
use super::kept::Kept;
use super::permit::Permit;
use super::targets::{State, Targets};
use crate::upstream::attempt::result::CallResult;
use crate::upstream::health::breaker::Room;
use crate::upstream::limits::rate::{Gate, Standing, Used};
use crate::upstream::route::Routes;

/// Units are leased for lines that rate limits let be sent within this time.
const LEASED_AHEAD: Duration = Duration::from_secs(2);

impl Targets {
    /// Whether only rate limits keep a line that no target takes. If so, capacity accrues to the
    /// line from now on. `reach`: how many of the targets the line may go to at present.
    pub(super) fn limited(
        &self,
        state: &State,
        routes: &Routes,
        reach: usize,
        gate: &mut Gate<'_>,
    ) -> Option<Acquired> {
        let now = gate.now();
        let mut never = None;
        let (mut is_limited, mut until) = (false, None::<Instant>);
        let mut is_tenants = false;
        let mut others = routes.targets.len();
        for (place, target) in routes.targets.iter().enumerate() {
            let tokens = target.tokens(gate.size);
            let upstream = &state.upstreams[target.upstream];
            let has_place = || has_place(target, state.counts(), &state.limits, Kept::default());
            let may_go = place < reach && has_place() && !state.is_hopeless();
            for (key, by_key) in target.by_key.iter().enumerate() {
                let standing = gate.standing(&by_key.rate_limits, tokens);
                if let Standing::Never(limit) = standing {
                    // The limits of all keys are alike.
                    never.get_or_insert_with(|| gate.too_large(limit, tokens));
                    others -= 1;
                    break;
                }
                let takes = || {
                    let room = upstream.room(key, &by_key.backend.breaker(), now);
                    matches!(room, Room::Open { .. })
                };
                if let Standing::Limited(at) = standing
                    && may_go
                    && takes()
                {
                    is_limited = true;
                    until = until.into_iter().chain(at).min();
                    if gate.standing_of_tenant(tokens) == Standing::Fits {
                        gate.refuse(&by_key.rate_limits, tokens);
                    } else {
                        // What others may have meanwhile does not accrue to the line.
                        is_tenants = true;
                        gate.refuse_tenant(tokens);
                    }
                }
            }
        }
        if others == 0 {
            return never.map(Acquired::TooLarge);
        }
        if let Some(at) = until
            && gate.wait_until(at)
        {
            self.changed.notify_one();
        }
        match (is_limited, is_tenants) {
            (false, _) => None,
            (true, false) => Some(Acquired::Limited { until }),
            (true, true) => Some(Acquired::TenantLimited { until }),
        }
    }

    /// Settles what rate limits were charged for a call that has ended. `ended`: `None` where the
    /// call was broken off.
    pub(super) fn settle(&self, permit: &Permit, ended: Option<&Ended>) {
        let Some(charges) = &permit.charges else {
            return;
        };
        let now = Instant::now();
        let by_key = permit.by_key();
        let was_sent = |ended: &Ended| {
            let result = ended.result;
            !matches!(
                result,
                CallResult::Unreachable
                    | CallResult::NoDescriptor
                    | CallResult::NoPort
                    | CallResult::Unsupported
            )
        };
        let is_sent = permit.is_sent && ended.is_none_or(was_sent);
        let used = ended.and_then(|ended| ended.used);
        if let Some(used) = used {
            by_key.backend.learn(charges.size, used);
        }
        let frees = self.rates.settle(now, charges, |spec| {
            if is_sent {
                spec.used(used)
            } else {
                Used::Nothing
            }
        });
        if let Some(ended) = ended.filter(|ended| !ended.remaining.is_empty()) {
            self.rates.hear(now, &by_key.rate_limits, &ended.remaining);
        }
        // Where no line waits for the limits, nobody need look again for each call that has ended.
        if frees {
            self.changed.notify_one();
        }
    }

    /// Whether a rate limit keeps lines from every target that they may go to, and for longer than
    /// units are leased ahead.
    pub(super) fn are_spent(&self, routes: &Routes) -> bool {
        if !routes.are_rate_limited() {
            return false;
        }
        let now = Instant::now();
        let in_reach = self.in_reach(routes);
        let state = self.lock();
        let ways = in_reach.iter().flat_map(|target| {
            let by_key = target.by_key.iter().enumerate();
            by_key.map(|(key, by_key)| (&state.upstreams[target.upstream], key, by_key))
        });
        // A key that is closed sends nothing, whatever is left of its limits.
        let (closed, open): (Vec<_>, Vec<_>) = ways.partition(|(upstream, key, by_key)| {
            let room = upstream.room(*key, &by_key.backend.breaker(), now);
            matches!(room, Room::Closed { .. })
        });
        let ways = if open.is_empty() { closed } else { open };
        ways.into_iter().all(|(_, _, by_key)| {
            let left = self.rates.spent_for(now, &by_key.rate_limits);
            left.is_some_and(|left| left > LEASED_AHEAD)
        })
    }

    /// Whether a tenant's rate limits keep its lines for longer than units are leased ahead.
    #[must_use]
    pub fn is_tenant_spent(&self, tenant: &str) -> bool {
        let left = self.rates.tenant_spent_for(tenant);
        left.is_some_and(|left| left > LEASED_AHEAD)
    }

    /// When a line that a rate limit keeps may be sent, where that is known.
    #[must_use]
    pub fn rate_limits_due(&self) -> Option<Instant> {
        self.rates.due(Instant::now())
    }
}

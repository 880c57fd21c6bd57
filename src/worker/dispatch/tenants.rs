//! What this process may send for each tenant.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ledger::run_queues::TenantLimit;
use crate::domain::tenant::CurrentTenants;
use crate::upstream::Pool;

pub(crate) struct Tenants {
    allowed: CurrentTenants,
    pool: Arc<Pool>,
    /// This process's shares of tenants' limits on calls at once, where processes share them.
    shares: Mutex<BTreeMap<Arc<str>, usize>>,
}

impl Tenants {
    pub(crate) fn new(allowed: CurrentTenants, pool: Arc<Pool>) -> Self {
        Self {
            allowed,
            pool,
            shares: Mutex::default(),
        }
    }

    /// What this process may send for a tenant.
    pub(crate) fn limit_of(&self, tenant: &str) -> TenantLimit {
        TenantLimit {
            calls: self.calls(tenant).unwrap_or(usize::MAX),
            weight: self.weight(tenant),
            rates: self.pool.rate_limits().of_tenant(tenant),
        }
    }

    /// A tenant's part of the fair share, beside those of others.
    pub(crate) fn weight(&self, tenant: &str) -> u32 {
        self.allowed.of(tenant).weight
    }

    /// Whether a tenant has limits on requests or tokens in a time.
    pub(crate) fn has_rate_limits(&self, tenant: &str) -> bool {
        self.pool.rate_limits().bound_tenant(tenant)
    }

    /// For how long a tenant's rate limits keep its lines. `None`: they do not, or it is not known.
    pub(crate) fn spent_for(&self, tenant: &str) -> Option<Duration> {
        self.pool.rate_limits().tenant_spent_for(tenant)
    }

    /// Whether a tenant's rate limits keep its lines for a while.
    pub(crate) fn is_spent(&self, tenant: &str) -> bool {
        self.pool.targets().is_tenant_spent(tenant)
    }

    /// Calls at once for a tenant, over all processes. `None`: there is no limit.
    pub(crate) fn allowed(&self, tenant: &str) -> Option<usize> {
        self.allowed.of(tenant).concurrency
    }

    /// Calls at once that this process may make for a tenant. `None`: there is no limit.
    pub(crate) fn calls(&self, tenant: &str) -> Option<usize> {
        let allowed = self.allowed(tenant)?;
        if !self.pool.limits().are_shared() {
            return Some(allowed);
        }
        let share = self.shares().get(tenant).copied();
        Some(share.unwrap_or(0).min(allowed))
    }

    /// Whether this process may send anything for a tenant, as far as calls at once go.
    pub(crate) fn has_share(&self, tenant: &str) -> bool {
        self.calls(tenant) != Some(0)
    }

    /// Whether no other process has any of a tenant's limit.
    pub(crate) fn has_whole_limit(&self, tenant: &str) -> bool {
        self.calls(tenant) == self.allowed(tenant)
    }

    /// The tenants of whose limits this process has shares, with these.
    pub(crate) fn all_shares(&self) -> BTreeMap<Arc<str>, usize> {
        self.shares().clone()
    }

    /// Lowers shares, at once. A tenant that is not named keeps its share.
    pub(crate) fn lower(&self, shares: &BTreeMap<Arc<str>, usize>) {
        let mut mine = self.shares();
        for (tenant, share) in shares {
            if let Some(before) = mine.get_mut(tenant) {
                *before = (*before).min(*share);
            }
        }
    }

    /// Sets all shares. True if any has grown.
    pub(crate) fn grant(&self, shares: BTreeMap<Arc<str>, usize>) -> bool {
        let mut mine = self.shares();
        let grows =
            |(tenant, share): (&Arc<str>, &usize)| *share > mine.get(tenant).copied().unwrap_or(0);
        let has_grown = shares.iter().any(grows);
        *mine = shares;
        has_grown
    }

    fn shares(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, usize>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

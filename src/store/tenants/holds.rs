//! What tenants have that their limits count.

use std::collections::BTreeMap;

use crate::domain::tenant::Enqueued;
use crate::store::engine::{bind_each, list, on_pool, sql};
use crate::store::{Result, Store};

/// What the batches of tenants have that run. By the index of live batches: as many steps as the
/// tenants that are named have such batches.
pub(in crate::store) const ENQUEUED: &str =
    "SELECT tenant, CAST(SUM(total) AS BIGINT), CAST(SUM(estimated_tokens) AS BIGINT)
     FROM batches
     WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        AND status IN ('in_progress', 'finalizing', 'cancelling')";

/// What a tenant has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantHolds {
    /// In batches that run.
    pub enqueued: Enqueued,
    /// In files.
    pub stored_bytes: u64,
}

impl Store {
    /// What each of these tenants has, by name. It costs as many steps as they have batches that
    /// run.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn held_by_tenants(&self, tenants: &[&str]) -> Result<BTreeMap<String, TenantHolds>> {
        let mut held: BTreeMap<String, TenantHolds> = BTreeMap::new();
        if tenants.is_empty() {
            return Ok(held);
        }
        let enqueued = sql!(
            "-- enqueued_of_tenants
             {enqueued} AND tenant IN {tenants} GROUP BY tenant",
            enqueued = ENQUEUED,
            tenants = list(1, tenants.len())
        );
        let stored = sql!(
            "-- stored_of_tenants
             SELECT tenant, CAST(SUM(bytes) AS BIGINT) FROM tenant_storage
             WHERE tenant IN {tenants} GROUP BY tenant",
            tenants = list(1, tenants.len())
        );
        let enqueued: Vec<(String, i64, i64)> = on_pool!(self.reader(), |c| {
            let sum = sqlx::query_as(enqueued.clone()).persistent(false);
            bind_each!(sum, tenants.iter().copied())
                .fetch_all(c)
                .await?
        });
        let stored: Vec<(String, i64)> = on_pool!(self.reader(), |c| {
            let sum = sqlx::query_as(stored.clone()).persistent(false);
            bind_each!(sum, tenants.iter().copied())
                .fetch_all(c)
                .await?
        });
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        for (tenant, requests, tokens) in enqueued {
            held.entry(tenant).or_default().enqueued = Enqueued {
                requests: count(requests),
                tokens: count(tokens),
            };
        }
        for (tenant, bytes) in stored {
            held.entry(tenant).or_default().stored_bytes = count(bytes);
        }
        Ok(held)
    }
}

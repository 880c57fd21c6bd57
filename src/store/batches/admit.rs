//! Whether batches that could run may: how much the batches of a tenant that have not ended may
//! have together.
//!
//! The transaction that lets a batch run holds the lock of the batch's tenant. So batches that are
//! let run at the same moment, by several processes, never have more together than they may.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::state;
use super::validate::Unvalidated;
use crate::domain::batch::BatchState;
use crate::domain::findings::Finding;
use crate::domain::tenant::Enqueued;
use crate::store::engine::{Tx, bind_each, in_tx, list, sql};
use crate::store::tenants::{ENQUEUED, lock_tenant};
use crate::store::{Error, Result};

/// Which batches may not run.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Batches that would exceed what their tenants may have: a JSON list of findings.
    pub refused: HashMap<String, String>,
    /// Batches that another process is at, or that are not validating any more.
    pub elsewhere: BTreeSet<String>,
}

/// Finds out which of these batches, which could run, may. Batches of tenants without such limits
/// cost nothing here.
pub(super) async fn admit(tx: &mut Tx, batches: &[&Unvalidated]) -> Result<Admission> {
    let limited = batches.iter().filter(|batch| batch.allowance.is_some());
    let limited: Vec<&&Unvalidated> = limited.collect();
    let mut admission = Admission::default();
    if limited.is_empty() {
        return Ok(admission);
    }
    let tenants: BTreeSet<&str> = limited.iter().map(|batch| &*batch.tenant).collect();
    // In the order of their names, as everywhere.
    for tenant in &tenants {
        lock_tenant(tx, tenant).await?;
    }
    // Whoever had the lock before may have let some of the batches run.
    let ids: Vec<&str> = limited.iter().map(|batch| &*batch.batch_id).collect();
    let found = state::lock_all(tx, &ids).await?;
    let found = found
        .into_iter()
        .filter(|one| one.batch.state == BatchState::CREATED);
    let ours: BTreeSet<String> = found.map(|one| one.batch.id).collect();
    let mut enqueued = enqueued_of(tx, &tenants).await?;
    for batch in limited {
        if !ours.contains(&batch.batch_id) {
            admission.elsewhere.insert(batch.batch_id.clone());
            continue;
        }
        let before = enqueued.entry(batch.tenant.clone()).or_default();
        let refusal = batch
            .allowance
            .as_ref()
            .and_then(|allowance| allowance.refusal(&batch.tenant, *before, batch.enqueued()));
        match refusal {
            None => *before = before.with(batch.enqueued()),
            Some(message) => {
                let finding = Finding::of_file("token_limit_exceeded", &message, None);
                let errors = serde_json::to_string(&[finding]);
                let errors = errors.map_err(|error| Error::corrupt("finding", error))?;
                admission.refused.insert(batch.batch_id.clone(), errors);
            }
        }
    }
    Ok(admission)
}

/// What the batches of each of these tenants have that run.
async fn enqueued_of(tx: &mut Tx, tenants: &BTreeSet<&str>) -> Result<BTreeMap<String, Enqueued>> {
    let sql = sql!(
        "-- enqueued
         {enqueued} AND tenant IN {tenants} GROUP BY tenant",
        enqueued = ENQUEUED,
        tenants = list(1, tenants.len())
    );
    let is_usual = tenants.len() == 1;
    let rows: Vec<(String, i64, i64)> = in_tx!(tx, |c| {
        let sum = sqlx::query_as(sql).persistent(is_usual);
        bind_each!(sum, tenants.iter().copied())
            .fetch_all(c)
            .await?
    });
    let sums = rows.into_iter().map(|(tenant, requests, tokens)| {
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let enqueued = Enqueued {
            requests: count(requests),
            tokens: count(tokens),
        };
        (tenant, enqueued)
    });
    Ok(sums.collect())
}

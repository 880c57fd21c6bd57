//! The lock of a tenant: held by a transaction that compares what the tenant has with what it may
//! have, and adds to it.

use crate::store::Result;
use crate::store::engine::{Tx, in_tx};

/// Locks a tenant until the transaction ends. A transaction that locks several does so in the order
/// of their names. On SQLite there is one writer anyway.
pub(in crate::store) async fn lock_tenant(tx: &mut Tx, tenant: &str) -> Result<()> {
    if let Some(sql) = tx.engine().acquire_tenant_lock() {
        in_tx!(tx, |c| {
            sqlx::query(sql).bind(tenant).execute(c).await?;
        });
    }
    Ok(())
}

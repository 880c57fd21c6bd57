//! How many bytes the files of a tenant have. The database keeps the sum by itself (the triggers on
//! `files`), so that no statement that shows a file or hides it can forget it.

use crate::store::engine::{Tx, in_tx, on_pool};
use crate::store::tenants::lock_tenant;
use crate::store::{Error, Result, Store};

/// `$1`: the tenant.
const STORED: &str = "-- stored_bytes
    SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM tenant_storage WHERE tenant = $1";

impl Store {
    /// How many bytes the files of a tenant have.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stored_bytes(&self, tenant: &str) -> Result<u64> {
        let (bytes,): (i64,) = on_pool!(self.reader(), |c| {
            sqlx::query_as(STORED).bind(tenant).fetch_one(c).await?
        });
        Ok(u64::try_from(bytes).unwrap_or(0))
    }
}

/// Makes sure that a tenant may store so many bytes more. Until the transaction ends, nobody else
/// finds out the same for this tenant.
///
/// # Errors
/// [`Error::StorageFull`] when they are too many.
pub(super) async fn admit_bytes(tx: &mut Tx, tenant: &str, bytes: u64, max: u64) -> Result<()> {
    lock_tenant(tx, tenant).await?;
    let (stored,): (i64,) = in_tx!(tx, |c| {
        sqlx::query_as(STORED).bind(tenant).fetch_one(c).await?
    });
    let stored = u64::try_from(stored).unwrap_or(0);
    if stored.saturating_add(bytes) > max {
        return Err(Error::StorageFull { max, stored });
    }
    Ok(())
}

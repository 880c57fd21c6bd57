//! What belongs to a tenant beside files and batches: keys, answers that are remembered,
//! and what it may have.

mod holds;
mod idempotency;
mod keys;
mod lock;

pub(in crate::store) use holds::ENQUEUED;
pub use holds::TenantHolds;
pub(in crate::store) use idempotency::remember;
pub use idempotency::{Claim, Claimed, Remembered};
pub use keys::{ApiKey, KnownKey};
pub(in crate::store) use lock::lock_tenant;

//! What belongs to a tenant beside files and batches: keys, and answers that are remembered.

mod idempotency;
mod keys;

pub(in crate::store) use idempotency::remember;
pub use idempotency::{Claim, Claimed, Remembered};
pub use keys::{ApiKey, KnownKey};

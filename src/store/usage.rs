//! What was used, and what it cost: for good, by tenant, key, model, upstream, task and endpoint,
//! and by batch.

mod add;
mod age;
mod read;

pub(in crate::store) use add::add_usage;
pub use add::{UsageKey, Used};
pub use read::{UsageBy, UsageQuery, UsageRow};

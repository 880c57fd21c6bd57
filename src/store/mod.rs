//! The only room that speaks SQL: one [`Store`], one text a query, two engines.
//!
//! Its methods are spread over one file a noun. It knows nothing of HTTP or of model servers.

mod answers;
mod audit;
mod batches;
mod each;
mod engine;
mod error;
mod files;
mod fleet;
mod tenants;
mod text;
mod usage;
mod work;

pub use answers::{AnswerCount, KeptAnswer, KeptOfTenant, NewAnswer};
pub use audit::{AuditFinding, AuditSettings, Audited};
pub use batches::{
    Batch, Begun, Cancel, DirectLease, Drained, Finalized, Input, ListedBatch, NewBatch, Queue,
    ReplicaLease, Steered, Steering, Told, Unvalidated, UsedPart, Verdict,
};
pub use engine::{Engine, Settings, Store, Who};
pub use error::{Error, Result};
pub use files::{
    NewUpload, Order, Page, PublishedUpload, Purged, Rest, Segment, StoredChunk, StoredFile,
};
pub use fleet::{
    Configuration, CooldownRow, Incumbent, RateEntry, RateGrant, RateRow, Replica, ShareBook,
    ShareEntry, SwitchRow, Undrained, WindowBook, WindowRow,
};
pub use tenants::{ApiKey, Claim, Claimed, KnownKey, Remembered, TenantHolds};
pub use text::storable;
pub use usage::{UsageBy, UsageKey, UsageQuery, UsageRow, Used};
pub use work::{Backlog, CountsDelta, Deaths, FlushReply, LeasedUnit, UnitFlush};

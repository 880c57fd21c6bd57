//! The only room that speaks SQL: one [`Store`], one text a query, two engines.
//!
//! Its methods are spread over one file a noun. It knows nothing of HTTP or of model servers.

mod audit;
mod backlog;
mod batches;
mod chunks;
mod clock;
mod engine;
mod error;
mod files;
mod flush;
mod idempotency;
mod isolation;
mod keys;
mod lifecycle;
mod listen;
mod migrate;
mod overview;
mod purge;
mod replicas;
mod segments;
mod shares;
mod tasks;
mod units;
mod uploads;
mod validating;

pub use audit::{AuditSettings, Audited, Tell, Told};
pub use backlog::Backlog;
pub use batches::{Batch, BatchRow, Cancel, NewBatch};
pub use chunks::{Piece, StoredChunk};
pub use engine::{Engine, OpenOptions, Store};
pub use error::{Error, Result};
pub use files::{Order, Page, StoredFile};
pub use flush::{FlushReply, Tally, UnitFlush};
pub use idempotency::{Claim, Claimed, Remembered};
pub use isolation::Deaths;
pub use keys::{ApiKey, KnownKey};
pub use lifecycle::Finished;
pub use listen::Who;
pub use overview::{LiveBatch, Queue, ReplicaLease};
pub use purge::Purged;
pub use replicas::{Incumbent, Replica};
pub use segments::Segment;
pub use shares::{GateRow, ShareBook, ShareEntry};
pub use units::LeasedUnit;
pub use uploads::{NewUpload, PublishedUpload};
pub use validating::{Begun, Input, Settled, Unvalidated, Verdict};

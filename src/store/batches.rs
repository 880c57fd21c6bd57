//! Batches: created, validated, read, brought to their end.

mod finalize;
mod overview;
mod read;
mod validate;

pub use finalize::Finished;
pub use overview::{LiveBatch, Queue, ReplicaLease};
pub use read::{Batch, BatchRow, Cancel, NewBatch};
pub(in crate::store) use read::{CountsRow, stage, summed};
pub use validate::{Begun, Input, Settled, Unvalidated, Verdict};

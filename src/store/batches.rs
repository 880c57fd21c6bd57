//! Batches: created, validated, read, brought to their end.

mod accept;
mod admit;
mod batch;
mod counts;
mod create;
mod end;
mod finalize;
mod overview;
mod progress;
mod read;
mod state;
mod steer;
mod validate;

pub use accept::{Begun, DirectLease, Verdict};
pub use batch::{Batch, NewBatch, Steering};
pub(in crate::store) use batch::{CountsSum, summed};
pub use end::Cancel;
pub use finalize::{Drained, Finalized};
pub(in crate::store) use finalize::{WholeBatch, remove_backlog};
pub use overview::{ListedBatch, Queue, ReplicaLease};
pub use progress::{Told, UsedPart};
pub(in crate::store) use read::states_in;
pub(in crate::store) use state::{Changed, from_columns};
pub use steer::Steered;
pub use validate::{Input, Unvalidated};

//! Bytes into the store and out of it: what the API and the command line have in common.
//!
//! This room knows nothing of HTTP. It holds a bounded part of a file in memory, however large
//! the file or its lines' answers are, and leaves what costs time to the blocking pool.

mod budget;
mod chunk;
mod content;
mod damaged;
mod duplicates;
mod finished;
mod ingest;
mod pace;
mod packed;
mod so_far;
#[cfg(test)]
mod testing;

pub use budget::UploadBudget;
pub use content::content;
pub use finished::FinishedChunk;
pub use ingest::{Answer, Error, Finish, Ingest};
pub use packed::{NoContent, Packing, Unpacked, Unreadable};
pub use so_far::{SoFar, Wanted};

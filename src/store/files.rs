//! Files and their bytes: uploaded, found, read, hidden, removed.

mod chunks;
mod file;
mod retention;
mod segments;
mod uploads;

pub use chunks::{Piece, StoredChunk};
pub use file::{Order, Page, StoredFile};
pub use retention::Purged;
pub(in crate::store) use retention::each;
pub use segments::Segment;
pub(in crate::store) use segments::{decode_sizes, encode_sizes};
pub use uploads::{NewUpload, PublishedUpload};

//! Files and their bytes: uploaded, found, read, hidden, removed.

mod bytes;
mod chunks;
mod file;
mod removal;
mod retention;
mod segments;
mod storage;
mod uploads;

pub(in crate::store) use bytes::{
    NewSegment, SegmentKey, SegmentTable, has_segment, read_data_in, read_pieces_in,
    read_tables_in, write_segments,
};
pub use chunks::StoredChunk;
pub use file::{Order, Page, StoredFile};
pub use retention::Purged;
pub use segments::Segment;
pub(in crate::store) use segments::{decode_sizes, encode_sizes};
pub(in crate::store) use uploads::models_from;
pub use uploads::{NewUpload, PublishedUpload, Rest};

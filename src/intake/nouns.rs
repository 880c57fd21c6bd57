//! What goes in and what comes out.

use crate::domain::endpoint::Endpoints;
use crate::domain::findings::Findings;
use crate::domain::jsonl::NotJsonl;

/// How large the raw bytes of a piece are at most. A chunk is as large at most, but for a chunk of
/// one long line.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// What an upload must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a line may be, its `\n` not counted.
    pub max_line_bytes: usize,
    /// How many models its lines may name.
    pub max_models: usize,
    /// What its lines may be for.
    pub endpoints: Endpoints,
}

/// Asked whether so many bytes of hashes may be held in memory. Those that may not go to disk.
pub type MayHold = Box<dyn FnMut(usize) -> bool + Send + Sync>;

/// A part of a file, as it is stored: a chunk, or a part of a chunk larger than [`PIECE_BYTES`]. A
/// chunk ends behind a line end, where the file has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Counts the file's chunks, from 0.
    pub chunk_no: i64,
    /// Counts the chunk's pieces, from 0.
    pub piece_no: i64,
    /// Where its first byte stands in the file.
    pub offset: u64,
    /// The number of the first line that begins in the chunk, from 1.
    pub first_line: u64,
    /// How many lines begin in the chunk, blank ones included; 0 in later pieces, and in a file
    /// that is not checked.
    pub lines: u32,
    /// The length of its raw bytes.
    pub bytes: u32,
    /// Its bytes, compressed with zstd.
    pub data: Vec<u8>,
    /// How many requests the chunk has of which model, by the model's place in
    /// [`Report::models`]; empty in later pieces.
    pub requests: Vec<(u16, u32)>,
    /// The length of the raw bytes of the whole chunk; 0 in later pieces.
    pub chunk_bytes: u64,
}

/// What is known of a file when all of it was seen. Of one that is not checked, only `bytes`.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub bytes: u64,
    /// Lines, blank ones included.
    pub lines: u64,
    /// Lines that are not blank.
    pub requests: u64,
    pub models: Vec<ModelReport>,
    /// What is wrong with it, but for duplicates, which are to be confirmed first.
    pub findings: Findings,
    /// Lines that probably repeat a `custom_id`: the first 128, by line.
    pub suspects: Vec<Suspect>,
    /// What the file is, where its first line that is not blank shows that it is no JSON Lines.
    /// A line that is too long to be looked at shows nothing.
    pub not_jsonl: Option<NotJsonl>,
    /// Whether there are more than [`Limits::max_models`]; those beyond are not counted anywhere.
    pub too_many_models: bool,
}

/// What a file may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// The requests of a batch: each line is checked.
    Requests,
    /// Bytes that nobody looks into.
    Opaque,
}

/// What a file's lines say of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelReport {
    /// As the lines give it; empty for those that give none.
    pub name: String,
    /// How many lines ask for it.
    pub requests: u64,
    /// The first 101 of them.
    pub first_lines: Vec<u64>,
}

/// A line whose `custom_id` has the hash of earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub line: u64,
    /// The first 128 earlier lines with that hash, ascending.
    pub earlier: Vec<u64>,
}

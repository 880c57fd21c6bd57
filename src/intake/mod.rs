//! What an upload becomes.
pub struct Chunk {
    pub no: i64,
    pub piece: i64,
    pub offset: u64,
    pub first_line: u64,
    pub lines: u32,
    pub bytes: u32,
    pub data: Vec<u8>,
    pub requests: Vec<(u16, u32)>,
    pub chunk_bytes: u64,
}
#[derive(Clone, Debug)]
pub struct ModelReport {
    pub name: String,
    pub requests: u64,
    pub first_lines: Vec<u64>,
}

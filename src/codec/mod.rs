//! How bytes stand in the store: zstd, and the layout of segments. Pure, no I/O.

mod kept;
pub mod segment;

use std::io;

use zstd::bulk::{Compressor, Decompressor};

use kept::Kept;

static COMPRESSORS: Kept<Compressor<'static>> = Kept::new();
static DECOMPRESSORS: Kept<Decompressor<'static>> = Kept::new();

/// What decompression may at the most yield for one stored value: more is corruption.
const DECOMPRESSED_BYTES_MAX: usize = 1 << 31;

/// Compresses one value of its own.
///
/// # Errors
/// When zstd fails, which it does for want of memory only.
pub fn compress(bytes: &[u8], level: i32) -> io::Result<Vec<u8>> {
    COMPRESSORS.with(
        || Compressor::new(level),
        |compressor| {
            compressor.set_compression_level(level)?;
            compressor.compress(bytes)
        },
    )
}

/// The bytes of one compressed value, which are known to be `size`.
///
/// # Errors
/// When the stored bytes are not what was written.
pub fn decompress(data: &[u8], size: usize) -> io::Result<Vec<u8>> {
    if size > DECOMPRESSED_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a stored size is out of bounds",
        ));
    }
    let bytes = DECOMPRESSORS.with(Decompressor::new, |decompressor| {
        decompressor.decompress(data, size)
    })?;
    if bytes.len() == size {
        Ok(bytes)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a stored value has another size",
        ))
    }
}

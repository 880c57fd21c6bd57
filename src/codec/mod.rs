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

/// What values of one kind have in common. A value that is compressed with a dictionary needs the
/// same one again.
struct Dictionary {
    bytes: &'static [u8],
    level: i32,
    compressors: Kept<Compressor<'static>>,
    decompressors: Kept<Decompressor<'static>>,
}

impl Dictionary {
    const fn new(bytes: &'static [u8], level: i32) -> Self {
        Self {
            bytes,
            level,
            compressors: Kept::new(),
            decompressors: Kept::new(),
        }
    }

    fn compress(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.compressors.with(
            || Compressor::with_dictionary(self.level, self.bytes),
            |compressor| compressor.compress(bytes),
        )
    }

    fn decompress(&self, data: &[u8], size: usize) -> io::Result<Vec<u8>> {
        let make = || Decompressor::with_dictionary(self.bytes);
        decompress_by(&self.decompressors, make, data, size)
    }
}

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
    decompress_by(&DECOMPRESSORS, Decompressor::new, data, size)
}

fn decompress_by(
    kept: &Kept<Decompressor<'static>>,
    make: impl FnOnce() -> io::Result<Decompressor<'static>>,
    data: &[u8],
    size: usize,
) -> io::Result<Vec<u8>> {
    if size > DECOMPRESSED_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a stored size is out of bounds",
        ));
    }
    let bytes = kept.with(make, |decompressor| decompressor.decompress(data, size))?;
    if bytes.len() == size {
        Ok(bytes)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a stored value has another size",
        ))
    }
}

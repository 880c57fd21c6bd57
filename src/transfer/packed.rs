//! Compressed uploads: known by their first bytes, and read as what they hold.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::StreamReader;

/// Content comes in blocks of at most this size. A block takes a fraction of a millisecond, which
/// is little enough for a thread that serves others, too.
const BLOCK_BYTES: usize = 64 << 10;
/// A block is at least this large, unless no more content is there. A client that sends a byte at
/// a time must not make the server allocate a block for each.
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// The logarithm of zstd's largest window: 8 MiB, which RFC 8878 asks every decoder to support. The
/// decoder holds the whole window in memory.
const WINDOW_LOG_MAX: u32 = 23;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    /// How many of a file's first bytes show its packing.
    pub const SIGNATURE_BYTES: usize = 4;

    /// The packing of a file that begins with these bytes; `None` for one that is not compressed.
    #[must_use]
    pub fn of(beginning: &[u8]) -> Option<Self> {
        match beginning {
            [0x1F, 0x8B, ..] => Some(Self::Gzip),
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => Some(Self::Zstd),
            // A frame that decoders skip, as parallel compressors write before their content.
            _ => None,
        }
    }

    /// Whether a decoder may wait for a client's bytes. One of zstd holds up to 8 MiB for as long
    /// as it is open, so it is opened only once all bytes are there.
    #[must_use]
    pub fn is_light(self) -> bool {
        self == Self::Gzip
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Why the content of a compressed file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("The file ends within its {0} data: it was cut off. Compress and upload it again.")]
    CutOff(Packing),
    #[error("The file's zstd window is larger than 8 MiB: compress it without --long and --ultra.")]
    LargeWindow,
    #[error(
        "The file begins as {packing} data does, but cannot be decompressed ({cause}): compress \
         and upload it again."
    )]
    Damaged { packing: Packing, cause: String },
}

/// Why no more content comes.
#[derive(Debug)]
pub enum NoContent<E> {
    /// The compressed bytes do not come.
    Source(E),
    Unreadable(Unreadable),
}

/// The content of a compressed file, block by block. In memory it holds a block and the decoder's
/// window, however large the content is.
pub struct Unpacked<'a, E> {
    packing: Packing,
    decoder: Pin<Box<dyn AsyncRead + Send + 'a>>,
    block: BytesMut,
    _source: PhantomData<E>,
}

impl<'a, E: fmt::Debug + Send + Sync + 'static> Unpacked<'a, E> {
    /// Reads what these compressed bytes hold. Several members or frames in a row are one content.
    pub fn new(packing: Packing, packed: impl Stream<Item = Result<Bytes, E>> + Send + 'a) -> Self {
        let source = StreamReader::new(Box::pin(packed.map_err(carried)));
        let decoder: Pin<Box<dyn AsyncRead + Send + 'a>> = match packing {
            Packing::Gzip => {
                let mut decoder = GzipDecoder::new(source);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Packing::Zstd => {
                let window = DParameter::window_log_max(WINDOW_LOG_MAX);
                let mut decoder = ZstdDecoder::with_params(source, &[window]);
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
        };
        Self {
            packing,
            decoder,
            block: BytesMut::new(),
            _source: PhantomData,
        }
    }

    /// The next bytes of the content; `None` at its end.
    ///
    /// # Errors
    /// When the compressed bytes do not come, or are damaged.
    pub async fn next(&mut self) -> Result<Option<Bytes>, NoContent<E>> {
        if self.block.capacity() < BLOCK_BYTES_MIN {
            self.block.reserve(BLOCK_BYTES);
        }
        match self.decoder.read_buf(&mut self.block).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(self.block.split().freeze())),
            Err(error) => Err(self.cause(error)),
        }
    }

    /// What a decoder's error means: the source failed, or the content cannot be decompressed.
    fn cause(&self, error: io::Error) -> NoContent<E> {
        let packing = self.packing;
        let error = match error.downcast::<Carried<E>>() {
            Ok(Carried(source)) => return NoContent::Source(source),
            Err(error) => error,
        };
        let cause = error.to_string();
        NoContent::Unreadable(if error.kind() == io::ErrorKind::UnexpectedEof {
            Unreadable::CutOff(packing)
        } else if cause.contains("requires too much memory") {
            Unreadable::LargeWindow
        } else {
            Unreadable::Damaged { packing, cause }
        })
    }
}

/// An error of the source on its way through the decoder.
#[derive(Debug)]
struct Carried<E>(E);

fn carried<E: fmt::Debug + Send + Sync + 'static>(error: E) -> io::Error {
    io::Error::other(Carried(error))
}

impl<E> fmt::Display for Carried<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the compressed bytes do not come")
    }
}

impl<E: fmt::Debug> std::error::Error for Carried<E> {}

#[cfg(test)]
mod tests;

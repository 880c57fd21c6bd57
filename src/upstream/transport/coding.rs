//! Content codings: the body of an answer as it was before its server packed it.
//!
//! Codings are asked for where a call goes over TLS, so most likely over the internet, where bytes
//! cost more than packing them. Within one's own network they only keep a model server's CPU busy.
//! An answer that comes packed unasked is unpacked all the same.

use std::fmt;
use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{
    BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder,
};
use async_compression::zstd::DParameter;
use bytes::{Bytes, BytesMut};
use futures::stream;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _};
use tokio_util::either::Either;
use tokio_util::io::StreamReader;

use super::Unread;
use super::error::Error;

/// What is asked for, where it is.
pub(in crate::upstream) const ACCEPTED: &str = "gzip, br, zstd";

/// The codings that can be undone. What else a server names (a charset, say) is most likely a
/// mistake, and the bytes are JSON all the same.
const KNOWN: [&str; 5] = ["gzip", "x-gzip", "deflate", "br", "zstd"];
/// No server packs an answer so often. Each coding costs memory, and one call within another.
const CODINGS_MAX: usize = 5;

/// So much is unpacked at once: its memory is reserved before more is unpacked.
const PIECE: usize = 64 << 10;
/// The largest window that a server may use for zstd (RFC 9659): 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// The body of an answer, unpacked as it comes.
pub(in crate::upstream) enum Body {
    Plain(Unread),
    Packed {
        reader: Reader,
        /// As the server names them.
        codings: String,
    },
}

impl Body {
    /// `headers`: of the answer.
    pub(in crate::upstream) fn of(unread: Unread, headers: &HeaderMap) -> Result<Self, Error> {
        if !headers.contains_key(CONTENT_ENCODING) {
            return Ok(Self::Plain(unread));
        }
        let values = headers.get_all(CONTENT_ENCODING).iter();
        let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let codings = texts.collect::<Vec<_>>().join(",").to_ascii_lowercase();
        let known: Vec<&str> = codings
            .split(',')
            .map(str::trim)
            .filter(|coding| KNOWN.contains(coding))
            .collect();
        if known.is_empty() || unread.content_length() == Some(0) {
            return Ok(Self::Plain(unread));
        }
        if known.len() > CODINGS_MAX {
            return Err(Error::Undecodable(format!(
                "the answer names {} content codings, and at most {CODINGS_MAX} are undone",
                known.len()
            )));
        }
        let mut reader: Reader = Box::pin(StreamReader::new(Box::pin(frames(unread))));
        // The coding that was applied last is undone first.
        for coding in known.iter().rev() {
            reader = unpacked(coding, reader);
        }
        let codings = known.join(", ");
        Ok(Self::Packed { reader, codings })
    }

    /// The next bytes of the body; `None` at its end.
    pub(in crate::upstream) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let (reader, codings) = match self {
            Self::Plain(unread) => return unread.chunk().await,
            Self::Packed { reader, codings } => (reader, codings),
        };
        let mut piece = BytesMut::with_capacity(PIECE);
        match reader.read_buf(&mut piece).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(piece.freeze())),
            Err(error) => Err(match error.downcast::<Error>() {
                Ok(lost) => lost,
                Err(error) => Error::Undecodable(format!(
                    "the answer's content coding ({codings}) cannot be undone: {error}"
                )),
            }),
        }
    }
}

/// The bytes as they come over the connection.
fn frames(unread: Unread) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(unread, async |mut unread| {
        let frame = unread.chunk().await.map_err(io::Error::other)?;
        Ok(frame.map(|frame| (frame, unread)))
    })
}

/// The first byte tells what is packed, and how.
fn unpacked(coding: &str, packed: Reader) -> Reader {
    match coding {
        "gzip" | "x-gzip" => members(Packing {
            open: |packed, _| GzipDecoder::new(packed),
            close: GzipDecoder::into_inner,
            begins: |byte| byte == 0x1F,
            packed,
        }),
        // What it is called is zlib's format; some servers send what is in that, without it.
        "deflate" => members(Packing {
            open: |packed, first| match first & 0x0F {
                8 => Either::Left(ZlibDecoder::new(packed)),
                _ => Either::Right(DeflateDecoder::new(packed)),
            },
            close: |decoder| match decoder {
                Either::Left(decoder) => decoder.into_inner(),
                Either::Right(decoder) => decoder.into_inner(),
            },
            begins: |_| false,
            packed,
        }),
        "br" => members(Packing {
            open: |packed, _| BrotliDecoder::new(packed),
            close: BrotliDecoder::into_inner,
            begins: |_| false,
            packed,
        }),
        _ => members(Packing {
            open: |packed, _| {
                let window = DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX);
                ZstdDecoder::with_params(packed, &[window])
            },
            close: ZstdDecoder::into_inner,
            // A frame, or one to skip.
            begins: |byte| byte == 0x28 || byte & 0xF0 == 0x50,
            packed,
        }),
    }
}

/// What is packed, and how it is unpacked.
struct Packing<D> {
    /// Takes the first byte, too.
    open: fn(Reader, u8) -> D,
    close: fn(D) -> Reader,
    /// Whether a byte behind what was packed begins more of that.
    begins: fn(u8) -> bool,
    packed: Reader,
}

/// How far a packed body is read.
enum At<D> {
    Start(Reader),
    Within(D),
}

/// Unpacks one thing behind another, and passes over what is behind the last: some servers pad
/// their answers. The packed bytes are read to their end: only then can the connection serve
/// another call. Nothing at all is nothing unpacked.
fn members<D: AsyncRead + Send + Unpin + 'static>(packing: Packing<D>) -> Reader {
    let Packing {
        open,
        close,
        begins,
        packed,
    } = packing;
    let pieces = stream::try_unfold(At::Start(packed), move |mut at: At<D>| async move {
        loop {
            let (mut rest, is_first) = match at {
                At::Start(packed) => (packed, true),
                At::Within(mut decoder) => {
                    let mut piece = BytesMut::with_capacity(PIECE);
                    if decoder.read_buf(&mut piece).await? > 0 {
                        let next = (piece.freeze(), At::Within(decoder));
                        return Ok::<_, io::Error>(Some(next));
                    }
                    (close(decoder), false)
                }
            };
            let Some(&byte) = rest.fill_buf().await?.first() else {
                return Ok(None);
            };
            if !is_first && !begins(byte) {
                tokio::io::copy_buf(&mut rest, &mut tokio::io::sink()).await?;
                return Ok(None);
            }
            at = At::Within(open(rest, byte));
        }
    });
    Box::pin(StreamReader::new(Box::pin(pieces)))
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

//! Content codings: the body of an answer as it was before its server packed it.
//!
//! Codings are asked for where a call goes over TLS, so most likely over the internet, where bytes
//! cost more than packing them. Within one's own network they only keep a model server's CPU busy.
//! An answer that comes packed unasked is unpacked all the same.

use std::fmt;
use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::{Bytes, BytesMut};
use futures::stream;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use tokio::io::{AsyncBufRead, AsyncReadExt as _, BufReader};
use tokio_util::io::StreamReader;

use super::transport::{Error, Response};

/// What is asked for, where it is.
pub(super) const ACCEPTED: &str = "gzip, br, zstd";

/// So much is unpacked at once: it is charged before more is.
const PIECE: usize = 64 << 10;
/// The largest window that a server may use for zstd (RFC 9659): 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// The body of an answer, unpacked as it comes.
pub(super) enum Body {
    Plain(Response),
    Packed {
        reader: Reader,
        /// As the server names them.
        codings: String,
    },
}

impl Body {
    /// `headers`: of the answer.
    pub(super) fn of(response: Response, headers: &HeaderMap) -> Result<Self, Error> {
        let values = headers.get_all(CONTENT_ENCODING).iter();
        let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let codings = texts.collect::<Vec<_>>().join(",").to_ascii_lowercase();
        let named: Vec<&str> = codings
            .split(',')
            .map(str::trim)
            .filter(|coding| !matches!(*coding, "" | "identity"))
            .collect();
        if named.is_empty() || response.content_length() == Some(0) {
            return Ok(Self::Plain(response));
        }
        let mut reader: Reader = Box::pin(StreamReader::new(Box::pin(frames(response))));
        // The coding that was applied last is undone first.
        for coding in named.iter().rev() {
            reader = unpacked(coding, reader)?;
        }
        let codings = named.join(", ");
        Ok(Self::Packed { reader, codings })
    }

    /// The next bytes of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let (reader, codings) = match self {
            Self::Plain(response) => return response.chunk().await,
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
fn frames(response: Response) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(response, async |mut response| {
        let frame = response.chunk().await.map_err(io::Error::other)?;
        Ok(frame.map(|frame| (frame, response)))
    })
}

/// Each reads to the end of what it is given: only then can the connection serve another call.
fn unpacked(coding: &str, packed: Reader) -> Result<Reader, Error> {
    Ok(match coding {
        "gzip" | "x-gzip" => {
            let mut decoder = GzipDecoder::new(packed);
            decoder.multiple_members(true);
            Box::pin(BufReader::new(decoder))
        }
        "deflate" => {
            let mut decoder = ZlibDecoder::new(packed);
            decoder.multiple_members(true);
            Box::pin(BufReader::new(decoder))
        }
        "br" => {
            let mut decoder = BrotliDecoder::new(packed);
            decoder.multiple_members(true);
            Box::pin(BufReader::new(decoder))
        }
        "zstd" => {
            let window = DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX);
            let mut decoder = ZstdDecoder::with_params(packed, &[window]);
            decoder.multiple_members(true);
            Box::pin(BufReader::new(decoder))
        }
        other => {
            return Err(Error::Undecodable(format!(
                "the answer's content coding ({other}) is not known here: {ACCEPTED} and deflate \
                 are"
            )));
        }
    })
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

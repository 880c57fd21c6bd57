//! A connection's bytes: writes with a limit on every wait, and answers to heads that nobody
//! could read.
//!
//! A head that is no HTTP, or too large, never becomes a request: hyper answers it by itself, with
//! a bare status. Here that answer is replaced by one like all others. It is told from the
//! responses of ours by its time, not by its looks, which a file may have as well: hyper speaks for
//! itself only when the last response is out of its hands. So that no rest of a response stays
//! there while the next head is read, such a rest is taken from hyper at once, and kept here if
//! the client does not take it.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, BytesMut};
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_io_timeout::TimeoutWriter;

use super::HEAD_BYTES_MAX;
use crate::api::{error, request_log};
use crate::domain::clock::Clock;

/// For how long the rest of a request that was not read is taken in and dropped, at its end. A
/// connection that is closed with bytes unread is reset, and a reset may overtake the answer.
const LINGER: Duration = Duration::from_secs(5);

/// Whose turn it is to be written, as the service knows it and the stream must.
#[derive(Clone, Debug)]
pub(super) struct Turn(Arc<State>);

#[derive(Debug)]
struct State {
    now: AtomicU8,
    connected: Instant,
    /// When the last response was out of our hands, in milliseconds from the connection's
    /// beginning on.
    silent_since_ms: AtomicU64,
}

/// No request has come so far. Nothing of ours is in hyper's hands: what it writes is its own.
const UNUSED: u8 = 0;
/// A request is being worked on or answered.
const RESPONSE: u8 = 1;
/// A response has ended; the rest of it may still be in hyper's hands.
const REST: u8 = 2;
/// All responses are out, and another request may come. What hyper writes is its own.
const NOBODY: u8 = 3;

impl Default for Turn {
    fn default() -> Self {
        Self(Arc::new(State {
            now: AtomicU8::new(UNUSED),
            connected: Instant::now(),
            silent_since_ms: AtomicU64::new(0),
        }))
    }
}

impl Turn {
    /// A request is taken up.
    pub(super) fn begin(&self) {
        self.0.now.store(RESPONSE, Ordering::Release);
    }

    /// A response has ended.
    pub(super) fn end(&self) {
        self.0.now.store(REST, Ordering::Release);
    }

    /// Whether no request has come so far.
    pub(super) fn is_unused(&self) -> bool {
        self.now() == UNUSED
    }

    /// For how long no request has been worked on; `None` while one is.
    pub(super) fn silent_for(&self) -> Option<Duration> {
        if !matches!(self.now(), UNUSED | NOBODY) {
            return None;
        }
        let since = Duration::from_millis(self.0.silent_since_ms.load(Ordering::Acquire));
        Some(self.0.connected.elapsed().saturating_sub(since))
    }

    /// The body of its response, whose end is the end of the turn.
    pub(super) fn until_the_end_of(&self, body: Body) -> Answer {
        Answer {
            body,
            _ends: EndOnDrop(self.clone()),
        }
    }

    /// Hyper has handed on all that it had.
    pub(super) fn flushed(&self) {
        // In a turn it is not the end: more of the response is to come.
        if self.now() != REST {
            return;
        }
        let now_ms = u64::try_from(self.0.connected.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.silent_since_ms.store(now_ms, Ordering::Release);
        let _ = self
            .0
            .now
            .compare_exchange(REST, NOBODY, Ordering::AcqRel, Ordering::Acquire);
    }

    fn now(&self) -> u8 {
        self.0.now.load(Ordering::Acquire)
    }
}

/// A response's body.
pub(super) struct Answer {
    body: Body,
    _ends: EndOnDrop,
}

struct EndOnDrop(Turn);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        pin!(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream of one connection.
pub(super) struct Stream {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
    turn: Turn,
    /// Taken from hyper, and not yet by the client.
    held: BytesMut,
    /// What is left to do for a head that was refused, once the answer is out.
    linger: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// A client may go without taking a byte for so long as `idle`.
    pub(super) fn new(stream: TcpStream, idle: Duration, turn: Turn) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(idle));
        Stream {
            stream: Box::pin(stream),
            turn,
            held: BytesMut::new(),
            linger: None,
        }
    }

    /// Takes what hyper says by itself, and says it in our way.
    fn speak(&mut self, of_hyper: &[u8]) {
        let status = of_hyper.strip_prefix(b"HTTP/1.1 ");
        let status = status.and_then(|rest| StatusCode::from_bytes(rest.get(..3)?).ok());
        match status {
            Some(status) if status.is_client_error() => {
                let error = error::unreadable_head(status, HEAD_BYTES_MAX);
                let response = request_log::unread(error.into_response());
                self.held.extend_from_slice(&written(response));
                self.linger = Some(Box::pin(tokio::time::sleep(LINGER)));
            }
            // No such thing is known.
            _ => self.held.extend_from_slice(of_hyper),
        }
    }

    /// Hands on what is held.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let length = ready!(self.stream.as_mut().poll_write(cx, &self.held))?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(length);
            if self.held.is_empty() {
                self.held = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes in what still comes, until the client closes or the time is over.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(linger) = &mut self.linger else {
            return Poll::Ready(());
        };
        let mut space = [0; 4096];
        while linger.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(self.stream.as_mut().poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => break,
            }
        }
        self.linger = None;
        Poll::Ready(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = slices.iter().map(|slice| slice.len()).sum();
        match self.turn.now() {
            RESPONSE => {
                ready!(self.poll_held(cx))?;
                self.stream.as_mut().poll_write_vectored(cx, slices)
            }
            REST => {
                if self.poll_held(cx)?.is_ready()
                    && let Poll::Ready(length) =
                        self.stream.as_mut().poll_write_vectored(cx, slices)?
                {
                    return Poll::Ready(Ok(length));
                }
                for slice in slices {
                    self.held.extend_from_slice(slice);
                }
                Poll::Ready(Ok(all))
            }
            _ => {
                let of_hyper: Vec<u8> = slices
                    .iter()
                    .flat_map(|slice| slice.iter())
                    .copied()
                    .collect();
                self.speak(&of_hyper);
                Poll::Ready(Ok(all))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Hyper flushes only what it has written to the last byte.
        self.turn.flushed();
        ready!(self.poll_held(cx))?;
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        ready!(self.stream.as_mut().poll_shutdown(cx))?;
        self.poll_linger(cx).map(Ok)
    }
}

/// A response as it is sent, to be the last one of its connection.
fn written(response: Response) -> Vec<u8> {
    let (head, body) = response.into_parts();
    // It is in memory, so that it is there at once.
    let body = body.collect().now_or_never().and_then(Result::ok);
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let now = Duration::from_millis(Clock::default().now_ms().unsigned_abs());
    let date = httpdate::fmt_http_date(UNIX_EPOCH + now);
    let mut bytes = format!(
        "HTTP/1.1 {}\r\ndate: {date}\r\nconnection: close\r\ncontent-length: {}\r\n",
        head.status,
        body.len()
    )
    .into_bytes();
    for (name, value) in &head.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    bytes
}

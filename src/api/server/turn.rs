//! What a connection is doing: whether a request is under way on it, and for how long none has
//! been.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutWriter;

/// What a connection is doing. The service and the stream each report what they see of it.
#[derive(Clone, Debug)]
pub(super) struct Turn(Arc<State>);

#[derive(Debug)]
struct State {
    now: AtomicU8,
    connected: Instant,
    /// When the last response was sent, in milliseconds since the connection began.
    silent_since_ms: AtomicU64,
}

/// No request has come so far.
const UNUSED: u8 = 0;
/// A request is being worked on or answered.
const RESPONDING: u8 = 1;
/// The response's body has ended. Its last bytes may still be in hyper's buffer.
const FLUSHING: u8 = 2;
/// All responses are sent, and another request may come.
const IDLE: u8 = 3;

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
    /// A request has begun.
    pub(super) fn begin(&self) {
        self.0.now.store(RESPONDING, Ordering::Release);
    }

    /// A response has ended.
    pub(super) fn end(&self) {
        self.0.now.store(FLUSHING, Ordering::Release);
    }

    /// Whether no request has come so far.
    pub(super) fn is_unused(&self) -> bool {
        self.now() == UNUSED
    }

    /// For how long no request has been under way at `now`. `None` while one is.
    pub(super) fn silent_for(&self, now: Instant) -> Option<Duration> {
        if !matches!(self.now(), UNUSED | IDLE) {
            return None;
        }
        let since = Duration::from_millis(self.0.silent_since_ms.load(Ordering::Acquire));
        let connected_for = now.saturating_duration_since(self.0.connected);
        Some(connected_for.saturating_sub(since))
    }

    /// Wraps the body of the response, so that its end is noticed.
    pub(super) fn until_the_end_of(&self, body: Body) -> Answer {
        Answer {
            body,
            _ends: EndOnDrop(self.clone()),
        }
    }

    /// Hyper has handed all that it had to the socket.
    pub(super) fn flushed(&self) {
        // Before the body has ended, this was a part of the response only.
        if self.now() != FLUSHING {
            return;
        }
        let now_ms = u64::try_from(self.0.connected.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.silent_since_ms.store(now_ms, Ordering::Release);
        let _ = self
            .0
            .now
            .compare_exchange(FLUSHING, IDLE, Ordering::AcqRel, Ordering::Acquire);
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

/// The stream of one connection: its writes have a time limit, and its flushes end turns.
pub(super) struct Stream {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
    turn: Turn,
}

impl Stream {
    /// A client may go without taking a byte for so long as `idle`.
    pub(super) fn new(stream: TcpStream, idle: Duration, turn: Turn) -> Self {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(idle));
        Stream {
            stream: Box::pin(stream),
            turn,
        }
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Hyper flushes only after it has written all that it holds.
        self.turn.flushed();
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

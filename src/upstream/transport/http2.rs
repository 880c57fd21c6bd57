//! HTTP/2 to the server itself: a few connections with many calls on each.
//!
//! A server says how many streams it takes on one connection (`SETTINGS_MAX_CONCURRENT_STREAMS`,
//! 100 to 250 as a rule). A connection carries no more than that, and no more than
//! [`STREAMS_MAX`]. Where all connections are full another one is opened. The connection that was
//! used last is filled first, so that those that are not needed grow old and are closed.
//!
//! A connection has a task of its own, which moves the bytes of all its calls.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, Uri, Version};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dial::Stream;
use super::error::{Error, innermost};
use super::keep::{KEEPALIVE, UNANSWERED_MAX};

/// Calls on one connection, although a server may take more: a connection that is lost is lost for
/// all of them.
const STREAMS_MAX: usize = 100;
/// So many bytes of an answer may come before they are read. Each call on a connection has so much
/// of the connection's window: one that waits for memory holds up no other.
const STREAM_WINDOW: u32 = 64 << 10;
/// Connections without a call are closed after so long. A server says that it closes one, so that
/// nothing is lost on it.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The connections to one server.
pub(super) struct Links {
    state: Mutex<State>,
}

struct State {
    /// What the server speaks; `None`: not known yet.
    is_http2: Option<bool>,
    /// By their numbers, which are never used twice.
    links: BTreeMap<u64, Link>,
    latest: u64,
    /// Those that can take a call. The last one takes the next.
    with_room: Vec<u64>,
    /// Calls that wait for a connection.
    waiting: VecDeque<oneshot::Sender<Word>>,
    /// Connections that are being opened.
    opening: usize,
    /// How many calls the latest connection takes.
    streams: usize,
    /// A task closes those that have grown old.
    is_aging: bool,
}

/// A connection.
struct Link {
    sender: SendRequest<Bytes>,
    in_use: usize,
    limit: usize,
    /// It takes no more calls.
    is_closed: bool,
    has_room: bool,
    /// Since when it has no call, if it has none.
    idle_since: Instant,
}

/// What a call that waits is told.
enum Word {
    Slot(Slot),
    /// The connection that it waited for is not there.
    Failed(Error),
    /// It is to ask again.
    Again,
}

/// What a call is to do to be sent.
pub(super) enum Ask {
    /// The server speaks HTTP/1.1.
    Http1,
    Slot(Slot),
    /// A connection is being opened that the call may use.
    Wait(Waiter),
    /// The call opens a connection.
    Open(Opening),
}

pub(super) struct Waiter(oneshot::Receiver<Word>);

/// A connection that is being opened. Dropped, it is not opened.
pub(super) struct Opening {
    links: Arc<Links>,
    is_done: bool,
}

/// A place for one call on a connection, given back when dropped.
pub(super) struct Slot {
    links: Arc<Links>,
    link: u64,
    sender: Option<SendRequest<Bytes>>,
    /// Its place is not given back yet.
    is_held: bool,
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    /// The server has surely not worked on the request.
    Unprocessed {
        cause: String,
        /// The connection takes no more calls.
        is_of_connection: bool,
    },
    Lost(Error),
}

/// The body of an answer. Dropped before its end, the call is cut.
pub(in crate::upstream) struct Body {
    stream: RecvStream,
    length: Option<u64>,
    _slot: Slot,
}

impl Links {
    /// `is_http2`: whether the server is known to speak HTTP/2.
    pub(super) fn new(is_http2: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                is_http2: is_http2.then_some(true),
                links: BTreeMap::new(),
                latest: 0,
                with_room: Vec::new(),
                waiting: VecDeque::new(),
                opening: 0,
                streams: STREAMS_MAX,
                is_aging: false,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a call is to be sent. Never blocks. Of the calls that come while nobody knows what the
    /// server speaks, one opens a connection, and the others wait for what comes of it.
    pub(super) fn ask(self: &Arc<Self>) -> Ask {
        let mut state = self.lock();
        if state.is_http2 == Some(false) {
            return Ask::Http1;
        }
        if let Some(slot) = self.take(&mut state) {
            return Ask::Slot(slot);
        }
        let each = match state.is_http2 {
            Some(_) => state.streams.saturating_sub(1),
            None => usize::MAX,
        };
        if state.opening > 0 && state.waiting.len() < state.opening.saturating_mul(each) {
            let (tell, told) = oneshot::channel();
            state.waiting.push_back(tell);
            return Ask::Wait(Waiter(told));
        }
        state.opening += 1;
        Ask::Open(Opening {
            links: Arc::clone(self),
            is_done: false,
        })
    }

    /// Begins HTTP/2 over a connection that was opened, and takes a place on it. `deadline`: of the
    /// server's first word.
    pub(super) async fn begin(
        self: &Arc<Self>,
        stream: Stream,
        deadline: Duration,
    ) -> Result<Slot, Error> {
        let begun = tokio::time::timeout(deadline, handshake(stream)).await;
        let (sender, connection) = begun.unwrap_or(Err(Error::ConnectTimeout))?;
        let limit = limit_of(&connection);
        let mut state = self.lock();
        state.is_http2 = Some(true);
        state.streams = limit;
        state.latest += 1;
        let link = state.latest;
        let of = Link {
            sender,
            in_use: 0,
            limit,
            is_closed: false,
            has_room: false,
            idle_since: Instant::now(),
        };
        state.links.insert(link, of);
        state.open_room(link);
        tokio::spawn(drive(Arc::downgrade(self), link, connection));
        let slot = self.take(&mut state);
        self.serve(&mut state);
        drop(state);
        slot.ok_or_else(|| Error::Connect("the server takes no call".to_owned()))
    }

    /// The server speaks HTTP/1.1 alone.
    pub(super) fn is_http1(&self) {
        let mut state = self.lock();
        state.is_http2 = Some(false);
        for waiting in state.waiting.drain(..) {
            // Who does not wait any more need not be told.
            let _ = waiting.send(Word::Again);
        }
    }

    /// A place on a connection that has room.
    fn take(self: &Arc<Self>, state: &mut State) -> Option<Slot> {
        let link = *state.with_room.last()?;
        let of = state.links.get_mut(&link)?;
        of.in_use += 1;
        let sender = Some(of.sender.clone());
        if of.in_use >= of.limit {
            state.close_room(link);
        }
        Some(Slot {
            links: Arc::clone(self),
            link,
            sender,
            is_held: true,
        })
    }

    /// Gives what room there is to those who wait.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while !state.with_room.is_empty()
            && let Some(waiting) = state.waiting.pop_front()
        {
            if waiting.is_closed() {
                continue;
            }
            let Some(slot) = self.take(state) else {
                return;
            };
            if let Err(Word::Slot(refused)) = waiting.send(Word::Slot(slot)) {
                state.free(refused.link);
                refused.forget();
            }
        }
    }

    /// A connection takes no more calls. Those who wait are to open others in its place.
    pub(super) fn close(&self, link: u64) {
        let mut state = self.lock();
        let Some(of) = state.links.get_mut(&link) else {
            return;
        };
        of.is_closed = true;
        let is_unused = of.in_use == 0;
        state.close_room(link);
        if is_unused {
            state.links.remove(&link);
        }
        state.call_for_more();
    }

    /// The server takes so many calls at once on a connection from now on.
    fn set_limit(self: &Arc<Self>, link: u64, limit: usize) {
        let mut state = self.lock();
        let Some(of) = state.links.get_mut(&link) else {
            return;
        };
        of.limit = limit;
        if of.in_use < limit {
            state.open_room(link);
            self.serve(&mut state);
        } else {
            state.close_room(link);
        }
    }

    /// Closes connections that have had no call for long; ends when there is none.
    async fn age(self: Arc<Self>) {
        while let Some(next) = self.close_old() {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Tells when the next will be old.
    fn close_old(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        let idle = state.links.iter().filter(|(_, link)| link.in_use == 0);
        let (old, young): (Vec<_>, Vec<_>) = idle
            .map(|(number, link)| (*number, link.idle_since + IDLE_MAX))
            .partition(|(_, old_at)| *old_at <= now);
        for (link, _) in old {
            state.close_room(link);
            state.links.remove(&link);
        }
        let next = young.into_iter().map(|(_, old_at)| old_at).min();
        state.is_aging = next.is_some();
        next
    }
}

impl State {
    /// A call has ended.
    fn free(&mut self, link: u64) {
        let Some(of) = self.links.get_mut(&link) else {
            return;
        };
        of.in_use -= 1;
        if of.in_use == 0 {
            of.idle_since = Instant::now();
        }
        if of.in_use == 0 && of.is_closed {
            self.links.remove(&link);
        } else {
            self.open_room(link);
        }
    }

    fn open_room(&mut self, link: u64) {
        if let Some(of) = self.links.get_mut(&link)
            && !of.is_closed
            && !of.has_room
            && of.in_use < of.limit
        {
            of.has_room = true;
            self.with_room.push(link);
        }
    }

    fn close_room(&mut self, link: u64) {
        let of = self.links.get_mut(&link);
        if of.is_some_and(|of| std::mem::take(&mut of.has_room)) {
            self.with_room.retain(|with_room| *with_room != link);
        }
    }

    /// Has as many of those who wait ask again as connections are needed for all of them.
    fn call_for_more(&mut self) {
        let needed = self.waiting.len().div_ceil(self.streams.max(1));
        let mut missing = needed.saturating_sub(self.opening);
        while missing > 0
            && let Some(waiting) = self.waiting.pop_front()
        {
            missing -= usize::from(waiting.send(Word::Again).is_ok());
        }
    }
}

impl Waiter {
    /// The place that the call waited for; `None`: it is to ask again.
    pub(super) async fn slot(self) -> Result<Option<Slot>, Error> {
        match self.0.await {
            Ok(Word::Slot(slot)) => Ok(Some(slot)),
            Ok(Word::Failed(error)) => Err(error),
            Ok(Word::Again) | Err(_) => Ok(None),
        }
    }
}

impl Opening {
    /// The connection is there, or is known not to be HTTP/2.
    pub(super) fn done(mut self) {
        self.is_done = true;
        let mut state = self.links.lock();
        state.opening -= 1;
        state.call_for_more();
    }

    /// There is no connection. Those who wait fail alike, unless another one is being opened.
    pub(super) fn failed(mut self, error: &Error) {
        self.is_done = true;
        let mut state = self.links.lock();
        state.opening -= 1;
        if state.opening == 0 {
            for waiting in state.waiting.drain(..) {
                // Who does not wait any more need not be told.
                let _ = waiting.send(Word::Failed(error.clone()));
            }
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_done {
            let mut state = self.links.lock();
            state.opening -= 1;
            state.call_for_more();
        }
    }
}

impl Slot {
    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        mut self,
        method: Method,
        uri: Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(u16, HeaderMap, Body), NoAnswer> {
        let unsent = |error: &h2::Error| NoAnswer::Unprocessed {
            cause: innermost(error),
            is_of_connection: true,
        };
        // Taken: a clone knows of a request that waits for room, and this one has sent none.
        let Some(sender) = self.sender.take() else {
            return Err(NoAnswer::Lost(Error::Lost("it was not sent".to_owned())));
        };
        let mut sender = sender.ready().await.map_err(|error| unsent(&error))?;
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers.clone();
        // The URI names the host.
        request.headers_mut().remove(HOST);
        if !body.is_empty() {
            let length = body.len().into();
            request.headers_mut().insert(CONTENT_LENGTH, length);
        }
        let (response, mut stream) = sender
            .send_request(request, body.is_empty())
            .map_err(|error| unsent(&error))?;
        if !body.is_empty() {
            // Where the stream has ended already, the answer says why.
            let _ = stream.send_data(body, true);
        }
        let response: Response<RecvStream> = response.await.map_err(|error| no_answer(&error))?;
        let (head, stream) = response.into_parts();
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let body = Body {
            length: if stream.is_end_stream() {
                Some(0)
            } else {
                length
            },
            stream,
            _slot: self,
        };
        Ok((head.status.as_u16(), head.headers, body))
    }

    /// The number of the connection.
    pub(super) fn link(&self) -> u64 {
        self.link
    }

    /// The place was given back by another way.
    fn forget(mut self) {
        self.is_held = false;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.is_held {
            return;
        }
        let mut state = self.links.lock();
        state.free(self.link);
        self.links.serve(&mut state);
        let of = state.links.get(&self.link);
        let is_idle = of.is_some_and(|of| of.in_use == 0);
        // Where the runtime ends, so do all connections.
        if is_idle
            && let Ok(runtime) = Handle::try_current()
            && !std::mem::replace(&mut state.is_aging, true)
        {
            runtime.spawn(Arc::clone(&self.links).age());
        }
    }
}

impl Body {
    pub(super) fn content_length(&self) -> Option<u64> {
        self.length
    }

    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(data) = self.stream.data().await else {
            return Ok(None);
        };
        let data = data.map_err(|error| Error::Lost(innermost(&error)))?;
        // What is read makes room for more. A connection that is gone needs none.
        let _ = self.stream.flow_control().release_capacity(data.len());
        Ok(Some(data))
    }
}

/// A server that ends a connection says up to which request it has worked (GOAWAY), and one that
/// refuses a request says that it has not begun to (`REFUSED_STREAM`).
fn no_answer(error: &h2::Error) -> NoAnswer {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if error.is_remote() && (is_refused || error.is_go_away()) {
        return NoAnswer::Unprocessed {
            cause: innermost(error),
            is_of_connection: !is_refused,
        };
    }
    NoAnswer::Lost(Error::Lost(innermost(error)))
}

/// Where a request goes, as HTTP/2 names it.
pub(super) fn uri(server: &Uri, path: Option<&PathAndQuery>) -> Uri {
    let mut parts = server.clone().into_parts();
    if let Some(path) = path {
        parts.path_and_query = Some(path.clone());
    }
    // Of parts that were together before, and of a path.
    Uri::from_parts(parts).unwrap_or_else(|_| server.clone())
}

type Connection = client::Connection<Stream, Bytes>;

/// Begins HTTP/2, and waits until the server has said how many streams it takes.
async fn handshake(stream: Stream) -> Result<(SendRequest<Bytes>, Connection), Error> {
    let failed =
        |error: h2::Error| Error::Connect(format!("HTTP/2 cannot begin: {}", innermost(&error)));
    let (sender, mut connection) = client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * STREAMS_MAX as u32)
        .handshake(stream)
        .await
        .map_err(failed)?;
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(Error::Connect(
            "HTTP/2 cannot begin: the server closes the connection".to_owned(),
        ))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
        Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await?;
    Ok((sender, connection))
}

fn limit_of(connection: &Connection) -> usize {
    connection
        .max_concurrent_send_streams()
        .clamp(1, STREAMS_MAX)
}

/// Moves the bytes of a connection until it ends.
async fn drive(links: Weak<Links>, link: u64, mut connection: Connection) {
    let pings = connection.ping_pong();
    let mut limit = limit_of(&connection);
    let moved = poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        let now = limit_of(&connection);
        if now != std::mem::replace(&mut limit, now)
            && let Some(links) = links.upgrade()
        {
            links.set_limit(link, now);
        }
        // How it ended is told to each call on it.
        polled.map(|_| ())
    });
    tokio::select! {
        () = moved => {}
        () = unanswered(pings) => {}
    }
    if let Some(links) = links.upgrade() {
        links.close(link);
    }
}

/// Waits until the server does not answer any more.
async fn unanswered(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(KEEPALIVE).await;
        let answered = tokio::time::timeout(UNANSWERED_MAX, pings.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

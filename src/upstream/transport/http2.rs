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
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::{Method, Request, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::io::InspectReader;

use super::dial::Stream;
use super::error::{Error, innermost};
use super::keep::{KEEPALIVE, SILENT_MAX};

/// Calls on one connection, although a server may take more: a connection that is lost is lost for
/// all of them.
const STREAMS_MAX: usize = 100;
/// So many bytes of an answer may come before they are read: no more comes in one round trip. A
/// larger window makes large answers from afar faster. But so much of each call may be held beyond
/// the budget of memory, while the call waits for that budget: about as much as over HTTP/1.1.
const STREAM_WINDOW: u32 = 256 << 10;
/// Each call on a connection has its whole window, so that a call that waits for memory holds up no
/// other. The one that may overdraw the budget must get its bytes, or nobody's answer would end.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;
/// A frame of data that nobody has read yet takes memory of its own. A connection ends where small
/// frames lack so many bytes to 256 each, in sum. It is as much as all windows full of frames of 64
/// bytes lack: calls that wait for memory do not end their connection.
const FRAMES_LACK_MAX: usize = 3 * CONNECTION_WINDOW as usize;
/// Of all headers of an answer together.
const HEADERS_MAX: u32 = 64 << 10;
/// Connections without a call are closed after so long. A server says that it closes one, so that
/// nothing is lost on it.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Of one connection over HTTP/1.1: HTTP/2 has no such headers.
const OF_A_CONNECTION: [HeaderName; 6] = [
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The connections to one server.
pub(super) struct Links {
    state: Mutex<State>,
}

struct State {
    /// What the server speaks; `None`: not known yet.
    is_http2: Option<bool>,
    /// The server has asked for HTTP/1.1, although it offers HTTP/2.
    wants_http1: bool,
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

/// A call that waits for a connection.
pub(super) struct Waiter {
    links: Arc<Links>,
    told: oneshot::Receiver<Word>,
}

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
    /// Nothing of the request was written: the connection takes no more calls.
    Unwritten(String),
    /// The server has ended the connection, and has not worked on the request.
    LeftOut(String),
    /// The server has not worked on the request, because it wants HTTP/1.1.
    WantsHttp1,
    /// The request will not do better over another connection.
    Failed(Error),
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
                wants_http1: false,
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
    /// server speaks, one opens a connection, and the others wait for what comes of it; one that
    /// is not to wait opens a connection of its own.
    pub(super) fn ask(self: &Arc<Self>, may_wait: bool) -> Ask {
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
        let is_enough = state.waiting.len() < state.opening.saturating_mul(each);
        if may_wait && state.opening > 0 && is_enough {
            let (tell, told) = oneshot::channel();
            state.waiting.push_back(tell);
            let links = Arc::clone(self);
            return Ask::Wait(Waiter { links, told });
        }
        state.opening += 1;
        Ask::Open(Opening {
            links: Arc::clone(self),
            is_done: false,
        })
    }

    /// A place on a connection that is there, if one has room.
    pub(super) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.lock();
        if state.is_http2 == Some(false) {
            return None;
        }
        self.take(&mut state)
    }

    /// Begins HTTP/2 over a connection that was opened, and takes a place on it. `deadline`: of the
    /// server's first word.
    pub(super) async fn begin(
        self: &Arc<Self>,
        stream: Stream,
        deadline: Instant,
    ) -> Result<Slot, Error> {
        let has_said = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&has_said);
        let stream = InspectReader::new(stream, move |_: &[u8]| {
            heard.store(true, Ordering::Relaxed);
        });
        let (sender, connection) = timeout_at(deadline, handshake(stream))
            .await
            .unwrap_or_else(|_| Err(no_beginning("the server sends no settings in time")))?;
        let limit = limit_of(&connection);
        let mut state = self.lock();
        state.is_http2 = Some(!state.wants_http1);
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
        tokio::spawn(drive(Arc::downgrade(self), link, connection, has_said));
        let slot = self.take(&mut state);
        self.serve(&mut state);
        drop(state);
        slot.ok_or_else(|| Error::Connect("the server takes no call".to_owned()))
    }

    /// The server wants HTTP/1.1, whatever it offers.
    pub(super) fn want_http1(&self) {
        self.lock().wants_http1 = true;
        self.is_http1();
    }

    /// Whether new connections are to be over HTTP/1.1.
    pub(super) fn wants_http1(&self) -> bool {
        self.lock().wants_http1
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
                self.age_if_idle(state, refused.link);
                refused.forget();
            }
        }
    }

    /// A connection takes no more calls. Those who wait are to open others in its place.
    fn close(&self, link: u64) {
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

    /// Has a connection closed later, if it has no call.
    fn age_if_idle(self: &Arc<Self>, state: &mut State, link: u64) {
        let of = state.links.get(&link);
        // Where the runtime ends, so do all connections.
        if of.is_some_and(|of| of.in_use == 0)
            && let Ok(runtime) = Handle::try_current()
            && !std::mem::replace(&mut state.is_aging, true)
        {
            runtime.spawn(Arc::clone(self).age());
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
    pub(super) async fn slot(mut self) -> Result<Option<Slot>, Error> {
        match (&mut self.told).await {
            Ok(Word::Slot(slot)) => Ok(Some(slot)),
            Ok(Word::Failed(error)) => Err(error),
            Ok(Word::Again) | Err(_) => Ok(None),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.told.close();
        // Who was to open a connection does not: somebody else is to.
        if let Ok(Word::Again) = self.told.try_recv() {
            self.links.lock().call_for_more();
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
        // Taken: a clone knows of a request that waits for room, and this one has sent none.
        let Some(sender) = self.sender.take() else {
            return Err(NoAnswer::Failed(Error::Lost("it was not sent".to_owned())));
        };
        // Nobody else is to be given the place, so it is closed before it is given back.
        let ready = sender.ready().await;
        let mut sender = ready.map_err(|error| self.unwritten(&error))?;
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = headers.clone();
        // The URI names the host.
        request.headers_mut().remove(HOST);
        for name in &OF_A_CONNECTION {
            request.headers_mut().remove(name);
        }
        if !body.is_empty() {
            let length = body.len().into();
            request.headers_mut().insert(CONTENT_LENGTH, length);
        }
        let sent = sender.send_request(request, body.is_empty());
        let (response, mut stream) = sent.map_err(|error| {
            if error.is_go_away() || error.is_io() {
                self.unwritten(&error)
            } else {
                NoAnswer::Failed(Error::Refused(cause(&error)))
            }
        })?;
        if !body.is_empty() {
            // Where the stream has ended already, the answer says why.
            let _ = stream.send_data(body, true);
        }
        let response = response.await.map_err(|error| self.no_answer(&error))?;
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

    fn unwritten(&self, error: &h2::Error) -> NoAnswer {
        self.links.close(self.link);
        match error.reason() {
            Some(Reason::HTTP_1_1_REQUIRED) if error.is_remote() => NoAnswer::WantsHttp1,
            _ => NoAnswer::Unwritten(cause(error)),
        }
    }

    /// A server that ends a connection says up to which request it has worked (GOAWAY), and one
    /// that refuses a request says that it has not begun to (`REFUSED_STREAM`).
    fn no_answer(&self, error: &h2::Error) -> NoAnswer {
        let is_told = error.is_remote();
        if is_told && error.is_go_away() {
            self.links.close(self.link);
        }
        match error.reason() {
            Some(Reason::HTTP_1_1_REQUIRED) if is_told => NoAnswer::WantsHttp1,
            _ if is_told && error.is_go_away() => NoAnswer::LeftOut(cause(error)),
            Some(Reason::REFUSED_STREAM) if is_told => {
                NoAnswer::Failed(Error::Refused(cause(error)))
            }
            _ => NoAnswer::Failed(Error::Lost(cause(error))),
        }
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
        self.links.age_if_idle(&mut state, self.link);
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
        let data = data.map_err(|error| Error::Lost(cause(&error)))?;
        // What is read makes room for more. A connection that is gone needs none.
        let _ = self.stream.flow_control().release_capacity(data.len());
        Ok(Some(data))
    }
}

/// What went wrong, in words. A server may say anything when it ends a connection: that is left
/// out.
fn cause(error: &h2::Error) -> String {
    match error.reason() {
        Some(reason) if error.is_go_away() => format!("connection error: {reason}"),
        _ => innermost(error),
    }
}

fn no_beginning(why: &str) -> Error {
    Error::Connect(format!("HTTP/2 cannot begin: {why}"))
}

/// Where a request goes, as HTTP/2 names it. `host`: what the header of that name says, where it
/// names another host than the server's.
pub(super) fn uri(server: &Uri, path: Option<&PathAndQuery>, host: Option<&HeaderValue>) -> Uri {
    let mut parts = server.clone().into_parts();
    if let Some(path) = path {
        parts.path_and_query = Some(path.clone());
    }
    let of_server = server
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    if let Some(host) = host.map(HeaderValue::as_bytes)
        && of_server != Some(host)
        && let Ok(host) = Authority::try_from(host)
    {
        parts.authority = Some(host);
    }
    // Of parts that were together before, of a path, and of a host.
    Uri::from_parts(parts).unwrap_or_else(|_| server.clone())
}

type Connection<T> = client::Connection<T, Bytes>;

/// Begins HTTP/2, and waits until the server has said how many streams it takes.
async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
) -> Result<(SendRequest<Bytes>, Connection<T>), Error> {
    let failed = |error: h2::Error| no_beginning(&cause(&error));
    let (sender, mut connection) = client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(FRAMES_LACK_MAX)
        .max_header_list_size(HEADERS_MAX)
        .handshake(stream)
        .await
        .map_err(failed)?;
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(no_beginning("the server closes the connection"))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
        Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await?;
    Ok((sender, connection))
}

/// None at all, for a while, where a server says so.
fn limit_of<T: AsyncRead + AsyncWrite + Unpin>(connection: &Connection<T>) -> usize {
    connection.max_concurrent_send_streams().min(STREAMS_MAX)
}

/// Moves the bytes of a connection until it ends. `has_said`: set where the server says something.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    links: Weak<Links>,
    link: u64,
    mut connection: Connection<T>,
    has_said: Arc<AtomicBool>,
) {
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
        () = silence(pings, &has_said) => {}
    }
    if let Some(links) = links.upgrade() {
        links.close(link);
    }
}

/// Waits until the server says nothing any more, not even an answer to a question.
async fn silence(pings: Option<PingPong>, has_said: &AtomicBool) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(KEEPALIVE).await;
        let mut answer = pin!(pings.ping(Ping::opaque()));
        loop {
            has_said.store(false, Ordering::Relaxed);
            match timeout(SILENT_MAX, answer.as_mut()).await {
                Ok(Ok(_)) => break,
                Err(_) if has_said.load(Ordering::Relaxed) => {}
                Ok(Err(_)) | Err(_) => return,
            }
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

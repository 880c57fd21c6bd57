//! HTTP to the server itself, with TLS or without.
//!
//! HTTP/1.1 goes over hyper's bare connections. Such a connection has no task of its own: whoever
//! makes a call drives it, and while it is idle nobody does. So a call is one task from its first
//! byte to its last, and wakes no other. HTTP/2 is in [`http2`](super::http2).

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{Fuse, FusedFuture as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::time::{Instant, timeout_at};

use super::dial::{Dialer, Stream};
use super::error::{Error, innermost};
use super::http2::{self, Ask, Links, NoAnswer, Slot, Waiter};
use super::keep::IDLE_MAX;
use crate::upstream::settings::{Http2, UpstreamSettings};

/// A connection that came back so lately was looked at then, and is not looked at again.
const LOOKED_AT: Duration = Duration::from_millis(1);
/// So often a request is sent that was not worked on because its connection ended.
const SENT_MAX: u32 = 3;
/// How long a call waits that cannot be sent for want of a descriptor or a port, so that calls do
/// not try again and again what cannot be.
const LACK_PAUSE: Duration = Duration::from_millis(500);

type Driver = Fuse<http1::Connection<TokioIo<Stream>, Full<Bytes>>>;

pub(in crate::upstream) struct Direct {
    dialer: Dialer,
    /// Of the name's resolution, of TLS, and of the server's first word over HTTP/2, together.
    connect_timeout: Duration,
    /// How long a call may wait for a connection: less than the whole call, in any case. So when a
    /// call's time runs out, the call had been sent.
    patience: Duration,
    idle: Arc<Idle>,
    /// `None`: HTTP/1.1 alone is spoken.
    links: Option<Arc<Links>>,
}

/// A connection, and the future that reads and writes its bytes. It is large, so it stands in a
/// box.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// Over what a request is sent.
enum Way {
    Http1 {
        connection: Box<Connection>,
        is_new: bool,
    },
    Http2 {
        slot: Slot,
        is_new: bool,
    },
}

/// Connections that wait for another call. The one that was used last is used next, so that surplus
/// connections grow old and are closed.
struct Idle {
    pool: Mutex<IdlePool>,
    max: usize,
}

#[derive(Default)]
struct IdlePool {
    connections: VecDeque<(Instant, Box<Connection>)>,
    /// A task runs that drops old connections.
    is_aging: bool,
}

/// The head of an answer, and its body to come.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// The body of an answer.
#[derive(Debug)]
pub(in crate::upstream) enum Body {
    Http1(Http1Body),
    Http2(http2::Body),
}

/// The body of an answer over HTTP/1.1, on its connection.
pub(in crate::upstream) struct Http1Body {
    body: Incoming,
    /// `None` once the connection was given back, or is broken.
    connection: Option<Box<Connection>>,
    idle: Arc<Idle>,
}

impl Direct {
    pub(super) fn new(config: &UpstreamSettings, base: &Url) -> Result<Self, String> {
        let dialer = Dialer::new(config, base)?;
        let is_known = config.http2 == Http2::Always;
        Ok(Self {
            links: dialer.may_be_http2().then(|| Links::new(is_known)),
            dialer,
            connect_timeout: config.time_to_connect(),
            patience: config.patience(),
            idle: Arc::new(Idle {
                pool: Mutex::default(),
                max: config.concurrency,
            }),
        })
    }

    /// The head names path and query, and in its headers the host. An urgent request does not wait
    /// for its turn to connect.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` would hold what it is given twice"
    )]
    pub(super) fn send(
        &self,
        mut head: Request<()>,
        body: Bytes,
        is_urgent: bool,
    ) -> impl Future<Output = Result<Answer, Error>> + Send + '_ {
        async move {
            let mut patience = (!is_urgent).then(|| Instant::now() + self.patience);
            let mut sent = 0;
            loop {
                match self.way(patience).await? {
                    Way::Http2 { slot, is_new } => {
                        // In a box: what HTTP/2 needs is more than what HTTP/1.1 does.
                        let answer = Box::pin(self.send_http2(slot, &head, &body)).await;
                        let cause = match answer {
                            Ok(answer) => return Ok(answer),
                            Err(NoAnswer::Failed(error)) => return Err(error),
                            Err(NoAnswer::WantsHttp1) => {
                                self.fall_back()?;
                                continue;
                            }
                            // Each of these closes an old connection, so they come to an end.
                            Err(NoAnswer::Unwritten(_)) if !is_new => continue,
                            Err(NoAnswer::Unwritten(cause) | NoAnswer::LeftOut(cause)) => cause,
                        };
                        sent += 1;
                        if sent == SENT_MAX {
                            return Err(Error::Refused(cause));
                        }
                        // It was sent, perhaps long ago: from here on its time may run out.
                        patience = patience.map(|_| Instant::now() + self.patience);
                    }
                    Way::Http1 {
                        mut connection,
                        is_new,
                    } => {
                        let request = head.map(|()| Full::new(body.clone()));
                        let sending = pin!(connection.sender.try_send_request(request));
                        match drive(&mut connection.driver, sending).await {
                            Ok(response) => return Ok(self.answer(response, connection)),
                            Err(mut error) => match error.take_message() {
                                // The server had closed an idle connection: nothing of the
                                // request was sent.
                                Some(unsent) if !is_new => head = unsent.map(|_| ()),
                                _ => return Err(Error::Lost(innermost(error.error()))),
                            },
                        }
                    }
                }
            }
        }
    }

    fn answer(&self, response: Response<Incoming>, connection: Box<Connection>) -> Answer {
        let (head, body) = response.into_parts();
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: Body::Http1(Http1Body {
                body,
                connection: Some(connection),
                idle: Arc::clone(&self.idle),
            }),
        }
    }

    async fn send_http2(
        &self,
        slot: Slot,
        head: &Request<()>,
        body: &Bytes,
    ) -> Result<Answer, NoAnswer> {
        let (path, host) = (head.uri().path_and_query(), head.headers().get(HOST));
        let uri = http2::uri(self.dialer.server(), path, host);
        let method = head.method().clone();
        let sent = slot.send(method, uri, head.headers(), body.clone());
        let (status, headers, body) = sent.await?;
        Ok(Answer {
            status,
            headers,
            body: Body::Http2(body),
        })
    }

    /// From now on HTTP/1.1 is spoken, where it may be.
    fn fall_back(&self) -> Result<(), Error> {
        match &self.links {
            Some(links) if self.dialer.may_be_http1() => {
                links.want_http1();
                Ok(())
            }
            _ => Err(Error::Connect(
                "the server wants HTTP/1.1, which `http2 = true` rules out".to_owned(),
            )),
        }
    }

    /// Over what the next request is sent. `patience`: how long it may wait for others; `None`: it
    /// is urgent.
    async fn way(&self, patience: Option<Instant>) -> Result<Way, Error> {
        let Some(links) = &self.links else {
            return self.http1_way(patience).await;
        };
        loop {
            match links.ask(patience.is_some()) {
                Ask::Http1 => return self.http1_way(patience).await,
                Ask::Slot(slot) => {
                    return Ok(Way::Http2 {
                        slot,
                        is_new: false,
                    });
                }
                Ask::Wait(waiter) => {
                    if let Some(slot) = wait(waiter, patience).await? {
                        return Ok(Way::Http2 {
                            slot,
                            is_new: false,
                        });
                    }
                }
                Ask::Open(opening) => {
                    let opened = Box::pin(self.open(patience)).await;
                    match &opened {
                        Ok(_) => opening.done(),
                        Err(error) => opening.failed(error),
                    }
                    return opened;
                }
            }
        }
    }

    async fn http1_way(&self, patience: Option<Instant>) -> Result<Way, Error> {
        match self.idle.take().await {
            Some(connection) => Ok(Way::Http1 {
                connection,
                is_new: false,
            }),
            // In a box: rare, and large for the state of a call.
            None => Box::pin(self.open(patience)).await,
        }
    }

    /// A new connection, or one that another call has given back in the meantime.
    async fn open(&self, patience: Option<Instant>) -> Result<Way, Error> {
        let turn = match patience {
            Some(patience) => Some(self.dialer.turn(patience).await?),
            None => None,
        };
        let opened = self.open_now(patience).await;
        drop(turn);
        if let Err(Error::NoDescriptor | Error::NoPort) = opened {
            tokio::time::sleep(LACK_PAUSE).await;
        }
        opened
    }

    async fn open_now(&self, patience: Option<Instant>) -> Result<Way, Error> {
        if let Some(connection) = self.idle.take().await {
            return Ok(Way::Http1 {
                connection,
                is_new: false,
            });
        }
        if let Some(slot) = self.links.as_ref().and_then(Links::slot) {
            return Ok(Way::Http2 {
                slot,
                is_new: false,
            });
        }
        let deadline = Instant::now() + self.connect_timeout;
        let deadline = patience.map_or(deadline, |patience| patience.min(deadline));
        let wants_http1 = self.links.as_ref().is_some_and(|links| links.wants_http1());
        let (stream, is_http2) = self.dialer.dial(deadline, wants_http1).await?;
        if let Some(links) = &self.links {
            if is_http2 {
                let slot = links.begin(stream, deadline).await?;
                return Ok(Way::Http2 { slot, is_new: true });
            }
            links.is_http1();
        }
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::Connect(innermost(&error)))?;
        let driver = driver.fuse();
        Ok(Way::Http1 {
            connection: Box::new(Connection { sender, driver }),
            is_new: true,
        })
    }
}

/// Waits for a place on a connection that another call opens.
async fn wait(waiter: Waiter, patience: Option<Instant>) -> Result<Option<Slot>, Error> {
    match patience {
        Some(patience) => timeout_at(patience, waiter.slot())
            .await
            .unwrap_or(Err(Error::ConnectTimeout)),
        None => waiter.slot().await,
    }
}

impl Connection {
    /// Reads and writes what can be. Whether another request may be sent over the connection.
    async fn is_usable(&mut self) -> bool {
        poll_fn(|cx| {
            advance(&mut self.driver, cx);
            Poll::Ready(())
        })
        .await;
        self.is_ready()
    }

    /// Whether another request may be sent, as of when the connection was looked at last.
    fn is_ready(&self) -> bool {
        !self.driver.is_terminated() && self.sender.is_ready()
    }
}

/// Waits for something that comes over a connection, and polls the connection meanwhile.
async fn drive<F: Future>(driver: &mut Driver, mut awaited: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| {
        // First what is awaited, because that may ask the connection for something. Then the
        // connection, and then again what is awaited, for what the connection has brought.
        if let Poll::Ready(output) = awaited.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        advance(driver, cx);
        awaited.as_mut().poll(cx)
    })
    .await
}

/// Reads and writes what can be. An error that breaks the connection reaches the future that waits
/// for the answer.
fn advance(driver: &mut Driver, cx: &mut Context<'_>) {
    let _ = Pin::new(driver).poll(cx);
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, IdlePool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that its server has not closed, as far as we can know. Where a server closes one at this
    /// moment, hyper gives the request back unsent.
    async fn take(&self) -> Option<Box<Connection>> {
        loop {
            let (since, mut connection) = self.lock().connections.pop_back()?;
            let age = since.elapsed();
            if age < LOOKED_AT || (age < IDLE_MAX && connection.is_usable().await) {
                return Some(connection);
            }
        }
    }

    fn put(self: &Arc<Self>, connection: Box<Connection>) {
        let mut pool = self.lock();
        if pool.connections.len() >= self.max {
            return;
        }
        pool.connections.push_back((Instant::now(), connection));
        if !std::mem::replace(&mut pool.is_aging, true) {
            tokio::spawn(Arc::clone(self).age());
        }
    }

    /// Drops connections that were idle for [`IDLE_MAX`], until none is left.
    async fn age(self: Arc<Self>) {
        while let Some(next) = self.drop_old() {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Drops old connections. Returns when the next one will be old.
    fn drop_old(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut pool = self.lock();
        let is_old = |(since, _): &(Instant, Box<Connection>)| *since + IDLE_MAX <= now;
        let old = pool.connections.partition_point(is_old);
        pool.connections.drain(..old);
        let next = pool.connections.front().map(|(since, _)| *since + IDLE_MAX);
        pool.is_aging = next.is_some();
        next
    }
}

impl Body {
    /// How many bytes it will have, if the server said so.
    pub(super) fn content_length(&self) -> Option<u64> {
        match self {
            Self::Http1(body) => body.body.size_hint().exact(),
            Self::Http2(body) => body.content_length(),
        }
    }

    /// The next bytes; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Http1(body) => body.chunk().await,
            Self::Http2(body) => body.chunk().await,
        }
    }
}

impl Http1Body {
    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(connection) = &mut self.connection else {
                return Ok(None);
            };
            let frame = drive(&mut connection.driver, pin!(self.body.frame())).await;
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    self.connection = None;
                    return Err(Error::Lost(innermost(&error)));
                }
                None => {
                    self.give_back().await;
                    return Ok(None);
                }
            }
        }
    }

    /// The body was read to its end, so the connection may serve another call.
    async fn give_back(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        // Most connections were ready as soon as they had brought the last byte.
        if connection.is_ready() || connection.is_usable().await {
            self.idle.put(connection);
        }
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

impl fmt::Debug for Http1Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Body").finish_non_exhaustive()
    }
}

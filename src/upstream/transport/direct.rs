//! Plain HTTP/1.1 to the server itself, over hyper's bare connections.
//!
//! A connection has no task of its own: whoever makes a call drives it, and while it is idle
//! nobody does. So a call is one task from its first byte to its last, and wakes no other.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
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
use hyper::header::HeaderMap;
use hyper::http::response::Parts;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower::util::MapErr;
use tower::{Service as _, ServiceExt as _};

use super::error::{Error, causes, innermost, lack, none_is_left};
use super::keep::{IDLE_MAX, KEEPALIVE, KEEPALIVE_RETRIES};
use crate::upstream::settings::UpstreamSettings;

/// So many connections are opened at once. Servers keep a few hundred waiting until they accept
/// them, and one that is turned away is tried again by the kernel only a second later.
const CONNECTING_MAX: usize = 256;
/// How long a call waits that cannot be sent for want of a descriptor or a port.
const LACK_PAUSE: Duration = Duration::from_millis(500);

/// A connection that came back so lately was looked at then, and is not looked at again.
const LOOKED_AT: Duration = Duration::from_millis(1);

type Driver = Fuse<http1::Connection<TokioIo<TcpStream>, Full<Bytes>>>;
type Resolver = MapErr<GaiResolver, fn(io::Error) -> Unresolved>;

pub(in crate::upstream) struct Direct {
    connector: HttpConnector<Resolver>,
    /// Of the name's resolution, too.
    connect_timeout: Duration,
    server: Uri,
    idle: Arc<Idle>,
    /// Who may connect now.
    connecting: Semaphore,
}

/// A connection, and what moves its bytes when it is polled. Large: kept in a box, which is what
/// goes from hand to hand.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// Connections that wait for another call. The one used last is used next, so that those that
/// are not needed grow old.
struct Idle {
    pool: Mutex<IdlePool>,
    max: usize,
}

#[derive(Default)]
struct IdlePool {
    connections: VecDeque<(Instant, Box<Connection>)>,
    /// A task drops those that have grown old.
    is_aging: bool,
}

/// An answer whose body is not read yet, on its connection.
pub(in crate::upstream) struct Response {
    head: Parts,
    body: Incoming,
    /// `None` once it was given back, or is of no more use.
    connection: Option<Box<Connection>>,
    idle: Arc<Idle>,
}

/// A server's name has no address.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unresolved(io::Error);

impl Direct {
    pub(super) fn new(config: &UpstreamSettings, base: &Url) -> Result<Self, String> {
        let resolver = GaiResolver::new().map_err(Unresolved as fn(io::Error) -> Unresolved);
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE));
        connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(any(target_os = "linux", target_os = "android"))]
        connector.set_tcp_user_timeout(Some(super::keep::UNACKNOWLEDGED_MAX));
        let server = Uri::builder()
            .scheme("http")
            .authority(base.authority())
            .path_and_query("/");
        let no_host = |_| "its base_url names no host that HTTP can write".to_owned();
        Ok(Self {
            connector,
            connect_timeout: config.time_to_connect(),
            server: server.build().map_err(no_host)?,
            connecting: Semaphore::new(CONNECTING_MAX),
            idle: Arc::new(Idle {
                pool: Mutex::default(),
                max: config.concurrency,
            }),
        })
    }

    /// The headers name the host.
    pub(super) async fn send(
        &self,
        method: Method,
        path: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path;
        *request.headers_mut() = headers;
        loop {
            let (mut connection, is_new) = match self.idle.take().await {
                Some(connection) => (connection, false),
                // In a box as well: rare, and large for the state of a call.
                None => Box::pin(self.connect()).await?,
            };
            let sending = connection.sender.try_send_request(request);
            match drive(&mut connection.driver, sending).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    return Ok(Response {
                        head,
                        body,
                        connection: Some(connection),
                        idle: Arc::clone(&self.idle),
                    });
                }
                Err(mut error) => match error.take_message() {
                    // The server had closed an idle connection: nothing of the request was sent.
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(Error::Lost(innermost(error.error()))),
                },
            }
        }
    }

    /// A new connection, or one that another call has given back in the meantime; and whether it is
    /// new. Where this side lacks something for a connection, the failure is told a little later,
    /// so that calls do not try again and again what cannot be.
    async fn connect(&self) -> Result<(Box<Connection>, bool), Error> {
        // The semaphore is never closed.
        let _turn = self.connecting.acquire().await.ok();
        if let Some(connection) = self.idle.take().await {
            return Ok((connection, false));
        }
        let opened = self.open().await;
        if let Err(Error::NoDescriptor | Error::NoPort) = opened {
            tokio::time::sleep(LACK_PAUSE).await;
        }
        Ok((opened?, true))
    }

    async fn open(&self) -> Result<Box<Connection>, Error> {
        let mut connector = self.connector.clone();
        let connecting = connector.call(self.server.clone());
        let stream = tokio::time::timeout(self.connect_timeout, connecting)
            .await
            .map_err(|_| Error::ConnectTimeout)?
            .map_err(|error| unconnected(&error))?;
        let (sender, driver) = http1::handshake(stream)
            .await
            .map_err(|error| Error::Connect(innermost(&error)))?;
        let driver = driver.fuse();
        Ok(Box::new(Connection { sender, driver }))
    }
}

/// Why there is no connection.
fn unconnected(error: &(dyn std::error::Error + 'static)) -> Error {
    if let Some(lack) = lack(error) {
        return lack;
    }
    for error in causes(error) {
        if error.is::<Unresolved>() {
            return if none_is_left() {
                Error::NoDescriptor
            } else {
                Error::Resolve(error.to_string())
            };
        }
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut) {
            return Error::ConnectTimeout;
        }
    }
    Error::Connect(innermost(error))
}

impl Connection {
    /// Reads and writes what can be, and tells whether another request may be sent.
    async fn is_usable(&mut self) -> bool {
        poll_fn(|cx| {
            advance(&mut self.driver, cx);
            Poll::Ready(())
        })
        .await;
        !self.driver.is_terminated() && self.sender.is_ready()
    }
}

/// Waits for something that comes over a connection, and moves the connection on meanwhile.
async fn drive<F: Future>(driver: &mut Driver, awaited: F) -> F::Output {
    let mut awaited = pin!(awaited);
    poll_fn(|cx| {
        // First, for it may tell the connection that it waits; and again for what that brought.
        if let Poll::Ready(output) = awaited.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        advance(driver, cx);
        awaited.as_mut().poll(cx)
    })
    .await
}

/// Reads and writes what can be. What breaks the connection is told to whoever waits for an
/// answer over it.
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

    /// Drops connections that nobody has used for long; ends when there is none.
    async fn age(self: Arc<Self>) {
        while let Some(next) = self.drop_old() {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Tells when the next will be old.
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

impl Response {
    pub(super) fn head(&self) -> &Parts {
        &self.head
    }

    pub(super) fn head_mut(&mut self) -> &mut Parts {
        &mut self.head
    }

    pub(super) fn content_length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(connection) = &mut self.connection else {
                return Ok(None);
            };
            let frame = drive(&mut connection.driver, self.body.frame()).await;
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

    /// The body is read: the connection may serve another call.
    async fn give_back(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        if connection.is_usable().await {
            self.idle.put(connection);
        }
    }
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct").finish_non_exhaustive()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").finish_non_exhaustive()
    }
}

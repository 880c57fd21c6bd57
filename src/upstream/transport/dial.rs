//! How a connection to a server itself is opened: its name resolved, connected, and with TLS where
//! the URL asks for it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tower::util::MapErr;
use tower::{Service as _, ServiceExt as _};

use super::certificates::{self, Named};
use super::error::{Error, causes, innermost, lack, none_is_left};
use super::keep::{KEEPALIVE, KEEPALIVE_RETRIES};
use crate::upstream::settings::{Http2, UpstreamSettings};

/// So many connections are opened at once. Servers keep a few hundred waiting until they accept
/// them, and one that is turned away is tried again by the kernel only a second later.
const CONNECTING_MAX: usize = 256;
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The bytes of a connection, in the clear or within TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

type Resolver = MapErr<GaiResolver, fn(io::Error) -> Unresolved>;

pub(super) struct Dialer {
    connector: HttpConnector<Resolver>,
    connect_timeout: Duration,
    server: Uri,
    tls: Option<Tls>,
    http2: Http2,
    /// Who may connect now.
    connecting: Semaphore,
    /// How many connections have been opened.
    opened: AtomicU64,
}

struct Tls {
    connector: TlsConnector,
    /// Offers HTTP/1.1 alone.
    http1: TlsConnector,
    name: ServerName<'static>,
}

/// A server's name has no address.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unresolved(io::Error);

impl Dialer {
    /// Errors in words for people.
    pub(super) fn new(config: &UpstreamSettings, base: &Url) -> Result<Self, String> {
        let resolver = GaiResolver::new().map_err(Unresolved as fn(io::Error) -> Unresolved);
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // Divided by the number of addresses: each is tried within the time that there is for all.
        connector.set_connect_timeout(Some(config.time_to_connect()));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE));
        connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(any(target_os = "linux", target_os = "android"))]
        connector.set_tcp_user_timeout(Some(super::keep::UNACKNOWLEDGED_MAX));
        let server = Uri::builder()
            .scheme(base.scheme())
            .authority(base.authority())
            .path_and_query("/");
        let no_host = |_| "its base_url names no host that HTTP can write".to_owned();
        Ok(Self {
            connector,
            connect_timeout: config.time_to_connect(),
            server: server.build().map_err(no_host)?,
            tls: tls(config, base)?,
            http2: config.http2,
            connecting: Semaphore::new(CONNECTING_MAX),
            opened: AtomicU64::new(0),
        })
    }

    /// Scheme and host, as HTTP/2 names them with each request.
    pub(super) fn server(&self) -> &Uri {
        &self.server
    }

    /// Whether the server may be spoken to over HTTP/2.
    pub(super) fn may_be_http2(&self) -> bool {
        match self.http2 {
            Http2::Always => true,
            Http2::Auto => self.tls.is_some(),
            Http2::Never => false,
        }
    }

    /// Whether the server may be spoken to over HTTP/1.1.
    pub(super) fn may_be_http1(&self) -> bool {
        self.http2 != Http2::Always
    }

    /// Waits until one more connection may be opened: for as long as what is returned is held.
    /// Where no connection is opened for as long as connecting may take, nobody waits any longer.
    pub(super) async fn turn(&self, patience: Instant) -> Result<SemaphorePermit<'_>, Error> {
        let mut turn = pin!(self.connecting.acquire());
        loop {
            let opened = self.opened.load(Ordering::Relaxed);
            let until = patience.min(Instant::now() + self.connect_timeout);
            match timeout_at(until, turn.as_mut()).await {
                // The semaphore is never closed.
                Ok(turn) => return turn.map_err(|_| Error::ConnectTimeout),
                Err(_) if until < patience && opened != self.opened.load(Ordering::Relaxed) => {}
                Err(_) => return Err(Error::ConnectTimeout),
            }
        }
    }

    /// Opens a connection; whether HTTP/2 is spoken over it. `wants_http1`: HTTP/2 is not offered.
    pub(super) async fn dial(
        &self,
        deadline: Instant,
        wants_http1: bool,
    ) -> Result<(Stream, bool), Error> {
        let opened = timeout_at(deadline, self.open(wants_http1))
            .await
            .unwrap_or(Err(Error::ConnectTimeout))?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(opened)
    }

    async fn open(&self, wants_http1: bool) -> Result<(Stream, bool), Error> {
        let mut connector = self.connector.clone();
        let stream = connector.call(self.server.clone()).await;
        let stream = stream.map_err(|error| unconnected(&error))?.into_inner();
        let Some(tls) = &self.tls else {
            return Ok((Either::Left(stream), self.http2 == Http2::Always));
        };
        let connector = if wants_http1 {
            &tls.http1
        } else {
            &tls.connector
        };
        let stream = connector.connect(tls.name.clone(), stream).await;
        let stream = stream.map_err(|error| {
            Error::Connect(certificates::advice(&error).unwrap_or_else(|| innermost(&error)))
        })?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        if self.http2 == Http2::Always && !is_http2 {
            let problem = "the server does not speak HTTP/2, which `http2 = true` asks for";
            return Err(Error::Connect(problem.to_owned()));
        }
        Ok((Either::Right(Box::new(stream)), is_http2))
    }
}

fn tls(config: &UpstreamSettings, base: &Url) -> Result<Option<Tls>, String> {
    // Without TLS, too: a file that cannot be read is told of in any case.
    let named = Named::read(config)?;
    if base.scheme() != "https" {
        return Ok(None);
    }
    let host = base.host_str().unwrap_or_default();
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host)
        .map_err(|_| "its base_url names no host that a certificate can name".to_owned())?;
    let mut client = named.into_client()?;
    let mut connector = |protocols: &[&[u8]]| {
        client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(client.clone()))
    };
    let http1 = connector(&[HTTP1]);
    let connector = match config.http2 {
        Http2::Auto => connector(&[HTTP2, HTTP1]),
        Http2::Always => connector(&[HTTP2]),
        Http2::Never => http1.clone(),
    };
    Ok(Some(Tls {
        connector,
        http1,
        name,
    }))
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

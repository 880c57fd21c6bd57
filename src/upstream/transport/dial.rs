//! How a connection to a server itself is opened: its name resolved, connected, and with TLS where
//! the URL asks for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
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
/// How long a call waits that cannot be sent for want of a descriptor or a port.
const LACK_PAUSE: Duration = Duration::from_millis(500);

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The bytes of a connection, in the clear or within TLS.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

type Resolver = MapErr<GaiResolver, fn(io::Error) -> Unresolved>;

pub(super) struct Dialer {
    connector: HttpConnector<Resolver>,
    /// Of the name's resolution and of TLS, too.
    connect_timeout: Duration,
    server: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    http2: Http2,
    /// Who may connect now.
    connecting: Semaphore,
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

    /// Waits until one more connection may be opened: for as long as what is returned is held.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.connecting.acquire().await.ok()
    }

    /// Opens a connection; whether HTTP/2 is spoken over it. Where this side lacks something for a
    /// connection, the failure is told a little later, so that calls do not try again and again
    /// what cannot be.
    pub(super) async fn dial(&self) -> Result<(Stream, bool), Error> {
        let opened = tokio::time::timeout(self.connect_timeout, self.open())
            .await
            .unwrap_or(Err(Error::ConnectTimeout));
        if let Err(Error::NoDescriptor | Error::NoPort) = opened {
            tokio::time::sleep(LACK_PAUSE).await;
        }
        opened
    }

    async fn open(&self) -> Result<(Stream, bool), Error> {
        let mut connector = self.connector.clone();
        let stream = connector.call(self.server.clone()).await;
        let stream = stream.map_err(|error| unconnected(&error))?.into_inner();
        let Some((connector, name)) = &self.tls else {
            return Ok((Either::Left(stream), self.http2 == Http2::Always));
        };
        let stream = connector.connect(name.clone(), stream).await;
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

fn tls(
    config: &UpstreamSettings,
    base: &Url,
) -> Result<Option<(TlsConnector, ServerName<'static>)>, String> {
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
    let mut client = Named::read(config)?.into_client()?;
    client.alpn_protocols = match config.http2 {
        Http2::Auto => vec![HTTP2.to_vec(), HTTP1.to_vec()],
        Http2::Always => vec![HTTP2.to_vec()],
        Http2::Never => vec![HTTP1.to_vec()],
    };
    Ok(Some((TlsConnector::from(Arc::new(client)), name)))
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

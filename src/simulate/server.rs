//! The listening side: connections in, [`Service`] behind them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream, ToSocketAddrs, lookup_host};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::options::Options;
use super::service::Service;
use super::stats::Stats;

/// How many connections may wait to be accepted. A load test opens a thousand at once, and one
/// that finds no room is tried again by its client's kernel after a second.
const BACKLOG: u32 = 4096;

/// A running stand-in upstream. Dropped, it stops.
pub struct Simulator {
    address: SocketAddr,
    service: Arc<Service>,
    stopping: DropGuard,
    listening: AbortOnDropHandle<()>,
}

impl Simulator {
    /// Listens and answers from now on. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on.
    pub async fn start(listen: impl ToSocketAddrs, options: Options) -> io::Result<Self> {
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let service = Arc::new(Service::new(options));
        let stop = CancellationToken::new();
        let listening = tokio::spawn(accept(
            listener,
            address,
            Arc::clone(&service),
            stop.clone(),
        ));
        Ok(Self {
            address,
            service,
            stopping: stop.drop_guard(),
            listening: AbortOnDropHandle::new(listening),
        })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS/v1`, as a client's base URL.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.service.stats()
    }

    /// Counts from zero again, and forgets which bodies came.
    pub fn reset_stats(&self) {
        self.service.reset();
    }

    /// Lets so many more calls be answered, where [`Options::granted`] holds them back.
    pub fn grant(&self, answers: usize) {
        if let Some(grants) = &self.service.grants {
            grants.add_permits(answers);
        }
    }

    /// With more calls at once than this, tokens come in proportion slower from now on, where there
    /// is an engine ([`Options::slow_beyond`]).
    pub fn slow_beyond(&self, calls: usize) {
        if let Some(engine) = &self.service.engine {
            engine.bend_at(calls);
        }
    }

    /// Answers calls with the key of this name ([`Options::api_keys`]) with this status from now
    /// on; 200: as usual again.
    pub fn turn_key(&self, name: &str, status: u16) {
        self.service.keys.set(name, status);
    }

    /// Answers every call with this status from now on; `None`: as usual again.
    pub fn fail_all(&self, status: Option<u16>) {
        self.service
            .outage
            .store(status.unwrap_or(0), std::sync::atomic::Ordering::Relaxed);
    }

    /// Stops as a killed server does: calls in flight are cut. The port is free afterwards.
    pub async fn stop(self) {
        drop(self.stopping);
        // It ends by itself, having ended its connections; it cannot fail.
        let _ = self.listening.await;
    }
}

/// Listens on the first of the addresses that can be bound.
async fn bind(listen: impl ToSocketAddrs) -> io::Result<TcpListener> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in lookup_host(listen).await? {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Accepts connections until it is told to stop, and then cuts those that are open. While the
/// simulator is to refuse connections, nobody listens.
async fn accept(
    mut listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let refusal = service.next_refusal();
        let begins = async {
            match refusal {
                Some((from, _)) => tokio::time::sleep_until(from.into()).await,
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
            () = begins => {
                let Some((_, to)) = refusal else { continue };
                drop(listener);
                connections.shutdown().await;
                let back = stop.run_until_cancelled(listen_again(address, to)).await;
                let Some(again) = back else { return };
                listener = again;
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(talk(stream, Arc::clone(&service)));
            }
            // Out of file descriptors, most likely: some may be free soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

/// Listens on an address once more, from a moment on.
async fn listen_again(address: SocketAddr, from: Instant) -> TcpListener {
    tokio::time::sleep_until(from.into()).await;
    loop {
        match bind(address).await {
            Ok(listener) => return listener,
            // Somebody else has the port: perhaps not for long.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Answers the requests of one connection.
async fn talk(stream: TcpStream, service: Arc<Service>) {
    // Without it, small answers wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { service.respond(request).await }
    });
    // A connection that ends in an error was cut, by the client or because a request said so.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

//! The accept loop: HTTP/1.1 connections, with a limit on every wait.

use std::io;
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;

use stream::{Stream, Turn};
pub use threads::Threads;

mod stream;
#[cfg(test)]
mod tests;
mod threads;

/// How long a client may take over a request's head, keep a connection open between requests,
/// or go without sending or taking a byte of a body. A request that is being worked on, and a
/// transfer that moves, may take as long as they need.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest head of a request, in bytes, and as much of a body as is read at once.
const HEAD_BYTES_MAX: usize = 48 << 10;
/// How many connections are served at once, at most half as many as the process may have file
/// descriptors: the database and the calls to model servers need theirs. Further clients wait in
/// the listener's queue until a connection ends.
const CONNECTIONS_MAX: usize = 1024;
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// What keeps clients waiting is logged so often, however many they are.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What connections must keep to.
#[derive(Clone, Copy)]
struct Bounds {
    idle: Duration,
    connections: usize,
}

/// Serves until `stop`, then lets requests that are being worked on end within `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    grace: Duration,
) {
    let descriptors = descriptors().unwrap_or(usize::MAX);
    let bounds = Bounds {
        idle: IDLE_TIMEOUT,
        connections: CONNECTIONS_MAX.min(descriptors / 2).max(1),
    };
    serve_within(listener, router, stop, grace, bounds).await;
}

async fn serve_within(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    grace: Duration,
    bounds: Bounds,
) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let (mut full, mut failing) = (Seldom::default(), Seldom::default());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept(), if connections.len() < bounds.connections => {
                match accepted {
                    Ok((stream, _)) => {
                        let router = router.clone();
                        connections.spawn(connection(stream, router, &graceful, bounds.idle));
                        if connections.len() == bounds.connections && full.is_due() {
                            tracing::warn!(
                                connections = connections.len(),
                                "no more connections are taken until one ends"
                            );
                        }
                    }
                    Err(error) => pause_after(&error, &mut failing).await,
                }
            }
            // Connections that have ended are forgotten as they end.
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests were cut off: they took longer than the grace period"
        );
    }
    connections.shutdown().await;
}

/// One connection, to its end.
fn connection(
    stream: TcpStream,
    router: Router,
    graceful: &GracefulShutdown,
    idle: Duration,
) -> impl Future<Output = ()> + Send + 'static {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let turn = Turn::default();
    let stream = Stream::new(stream, idle, turn.clone());
    // Reads are timed by what is read, head and body: while a request is worked on there is a
    // read as well, for the end of the connection, and that one may take its time.
    let response_turn = turn.clone();
    let service = router
        .map_request(move |request: hyper::Request<hyper::body::Incoming>| {
            turn.begin();
            request.map(|body| TimeoutBody::new(idle, body))
        })
        .map_response(move |response: Response| {
            response.map(|body| response_turn.until_the_end_of(body))
        });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let connection = graceful.watch(connection);
    async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

async fn pause_after(error: &io::Error, failing: &mut Seldom) {
    match error.kind() {
        // The client went away before it was accepted: nothing to wait for.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset => {}
        _ => {
            if failing.is_due() {
                tracing::error!(%error, "connections cannot be accepted");
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// When something that may happen again and again was logged last.
#[derive(Default)]
struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it is to be logged again, which is then taken to be done.
    fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= LOGGED_EVERY);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// How many file descriptors the process may have, where the system tells.
fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let soft_and_hard = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    soft_and_hard.split_whitespace().next()?.parse().ok()
}

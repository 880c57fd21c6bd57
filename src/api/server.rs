//! The accept loop: HTTP/1.1 connections, with a limit on every wait.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any_service;
use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;

use super::{drain, error, metrics, request_log};
use places::{Counts, Place, Places};
pub use threads::Threads;
use turn::{Stream, Turn};

mod places;
#[cfg(test)]
mod tests;
mod threads;
mod turn;

/// How long a client may keep a connection open between requests, or go without sending or taking
/// a byte of a body. A request that is being worked on, and a transfer that moves, may take as
/// long as they need.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a client may take over the head of its first request: who connects has something to
/// ask.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same in a reserved place, of which there are few.
const RESERVED_HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may have a reserved place in all: longer than the slowest answer about
/// the process's health takes.
const RESERVED_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long the body of a request is taken in and dropped that is refused for want of a place.
const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest head of a request, in bytes, and as much of a body as is read at once.
const HEAD_BYTES_MAX: usize = 48 << 10;
/// How many connections are served at once, at most half as many as the process may have file
/// descriptors: the database and the calls to model servers need theirs.
const CONNECTIONS_MAX: usize = 1024;
/// A connection must have been silent for so long before it makes way for another one. A head
/// that was sent at once has come by then, from anywhere.
const SPARED: Duration = Duration::from_secs(1);
/// What a reserved place is for.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// What keeps clients waiting is logged so often, however many they are.
const LOGGED_EVERY: Duration = Duration::from_mins(1);

/// What connections must keep to.
#[derive(Clone, Copy)]
struct Bounds {
    idle: Duration,
    first_head: Duration,
    reserved_head: Duration,
    counts: Counts,
}

/// Serves until `stop`, then lets requests that are being worked on end within `grace`.
///
/// Where places run short, an address may hold a part of them only, unless it is one of
/// `trusted_proxies`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    trusted_proxies: Vec<IpNet>,
    stop: CancellationToken,
    grace: Duration,
) {
    let descriptors = descriptors().unwrap_or(usize::MAX);
    let connections = CONNECTIONS_MAX.min(descriptors / 2).max(1);
    let bounds = Bounds {
        idle: IDLE_TIMEOUT,
        first_head: FIRST_HEAD_TIMEOUT,
        reserved_head: RESERVED_HEAD_TIMEOUT,
        counts: Counts::of(connections, SPARED),
    };
    serve_within(listener, router, trusted_proxies, stop, grace, bounds).await;
}

async fn serve_within(
    listener: TcpListener,
    router: Router,
    trusted_proxies: Vec<IpNet>,
    stop: CancellationToken,
    grace: Duration,
    bounds: Bounds,
) {
    let graceful = GracefulShutdown::new();
    let places = Places::new(bounds.counts, trusted_proxies);
    let health_alone = health_alone(&router);
    let mut connections = JoinSet::new();
    let (mut full, mut refusing) = (Seldom::default(), Seldom::default());
    let mut failing = Seldom::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => {
                let (stream, from) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        pause_after(&error, &mut failing).await;
                        continue;
                    }
                };
                let turn = Turn::default();
                let Some(place) = places.take(from.ip(), &turn) else {
                    if refusing.is_due() {
                        tracing::warn!(
                            client.address = %from.ip(),
                            "a connection was closed at once: its address holds its part of the \
                             places, or all places are taken"
                        );
                    }
                    continue;
                };
                if place.reserved && full.is_due() {
                    tracing::warn!(
                        connections = bounds.counts.ordinary(),
                        "all connections are in use: until one ends, only questions after the \
                         server's health are answered"
                    );
                }
                let router = if place.reserved { &health_alone } else { &router };
                let peer = (stream, from);
                let connection = connection(peer, router.clone(), &graceful, turn, bounds, place);
                connections.spawn(connection);
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

/// What is answered in a reserved place: whether the process is well, and to all else that there
/// is no place.
fn health_alone(router: &Router) -> Router {
    let refusing = Router::new()
        .fallback(no_place)
        .layer(middleware::from_fn(request_log::observe))
        .layer(middleware::from_fn(metrics::observe));
    let with_health = |to: Router, path: &&str| to.route(path, any_service(router.clone()));
    let health = HEALTH.iter().fold(Router::new(), with_health);
    health.fallback_service(refusing)
}

async fn no_place(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if !drain::expects_continue(&parts.headers) {
        // What takes longer is cut off.
        let _ = tokio::time::timeout(REFUSED_BODY_TIMEOUT, drain::drain(body)).await;
    }
    error::no_place().into_response()
}

/// One connection, to its end.
fn connection(
    (stream, from): (TcpStream, SocketAddr),
    router: Router,
    graceful: &GracefulShutdown,
    turn: Turn,
    bounds: Bounds,
    place: Place,
) -> impl Future<Output = ()> + Send + 'static {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let idle = bounds.idle;
    let stream = Stream::new(stream, idle, turn.clone());
    // Reads are timed by what is read, head and body: while a request is worked on there is a
    // read as well, for the end of the connection, and that one may take its time.
    let (request_turn, response_turn) = (turn.clone(), turn.clone());
    let service = router
        .map_request(move |request: hyper::Request<hyper::body::Incoming>| {
            request_turn.begin();
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
        .keep_alive(!place.reserved)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let connection = graceful.watch(connection);
    async move {
        tokio::select! {
            biased;
            () = place.is_needed() => {
                tracing::debug!("a silent connection made way for another one");
            }
            () = overdue(&turn, &bounds, place.reserved) => {
                tracing::debug!("a connection was closed: its request took too long to come");
            }
            ended = connection => match ended {
                Ok(()) => {}
                // Such a head never becomes a request, so the request log has no line for it.
                // Hyper answers it with a bare status.
                Err(error) if error.is_parse() => {
                    tracing::info!(
                        client.address = %from.ip(),
                        %error,
                        "a request was refused: its head could not be read"
                    );
                }
                Err(error) => tracing::debug!(%error, "a connection broke"),
            }
        }
    }
}

/// Waits until a connection has had its time: for its first head, and in a reserved place for all.
async fn overdue(turn: &Turn, bounds: &Bounds, reserved: bool) {
    let first_head = if reserved {
        bounds.reserved_head
    } else {
        bounds.first_head
    };
    tokio::time::sleep(first_head).await;
    if turn.is_unused() {
        return;
    }
    if reserved {
        tokio::time::sleep(RESERVED_TIMEOUT.saturating_sub(first_head)).await;
    } else {
        std::future::pending::<()>().await;
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

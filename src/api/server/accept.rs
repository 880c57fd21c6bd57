//! The accept loop.

use std::io;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any_service;
use axum::{Router, middleware};
use hyper_util::server::graceful::GracefulShutdown;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{
    Bounds, FIRST_HEAD_TIMEOUT, IDLE_TIMEOUT, RESERVED_HEAD_TIMEOUT, connection,
};
use super::places::{Counts, Places};
use super::turn::Turn;
use crate::api::{drain, error, metrics, request_log};

/// For how long the body of a request is read and dropped that gets no place.
const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// How many connections are served at once, at most half as many as the process may have file
/// descriptors: the database and the calls to model servers need theirs.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// A connection must have been silent for so long before it makes way for another one. A head
/// that was sent at once has come by then, from anywhere.
pub(super) const SPARED: Duration = Duration::from_secs(1);
/// The only paths that are answered in a reserved place.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// What keeps clients waiting is logged at most this often, however many clients wait.
const LOGGED_EVERY: Duration = Duration::from_mins(1);

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

pub(super) async fn serve_within(
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
pub(super) struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether it is to be logged again, which is then taken to be done.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= LOGGED_EVERY);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// How many file descriptors the process may have. `None` where the system does not say.
pub(super) fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let mut lines = limits.lines();
    let soft_and_hard = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    soft_and_hard.split_whitespace().next()?.parse().ok()
}

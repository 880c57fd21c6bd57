//! One HTTP/1.1 connection, with a limit on every wait.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;

use super::places::{Counts, Place};
use super::turn::{Stream, Turn};

/// How long a client may keep a connection open between requests, or go without sending or taking
/// a byte of a body. A request that is being worked on, and a transfer that moves, may take as
/// long as they need.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a client may take over the head of its first request. A client that connects has one
/// to send.
pub(super) const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same in a reserved place. There are few of these.
pub(super) const RESERVED_HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may have a reserved place in all. The slowest answer about the process's
/// health takes less.
const RESERVED_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes, and as much of a body as is read at once.
pub(super) const HEAD_BYTES_MAX: usize = 48 << 10;

/// What connections must keep to.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) idle: Duration,
    pub(super) first_head: Duration,
    pub(super) reserved_head: Duration,
    pub(super) counts: Counts,
}

/// One connection, to its end.
pub(super) fn connection(
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

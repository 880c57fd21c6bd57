//! The accept loop: HTTP/1.1 connections, with a limit on every wait.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::timeout::TimeoutBody;

/// How long a client may take over a request's head, keep a connection open between requests,
/// or go without sending or taking a byte of a body. A request that is being worked on, and a
/// transfer that moves, may take as long as they need.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest head of a request, in bytes, and as much of a body as is read at once.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Serves until `stop`, then lets requests that are being worked on end within `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    grace: Duration,
) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), &graceful));
                }
                Err(error) => pause_after(&error).await,
            },
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
) -> impl Future<Output = ()> + Send + 'static {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(IDLE_TIMEOUT));
    // Reads are timed by what is read, head and body: while a request is worked on there is a
    // read as well, for the end of the connection, and that one may take its time.
    let service = router.map_request(|request: hyper::Request<hyper::body::Incoming>| {
        request.map(|body| TimeoutBody::new(IDLE_TIMEOUT, body))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(service),
        );
    let connection = graceful.watch(connection);
    async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

async fn pause_after(error: &io::Error) {
    match error.kind() {
        // The client went away before it was accepted: nothing to wait for.
        io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset => {}
        _ => {
            tracing::error!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

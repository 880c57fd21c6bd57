//! The accept loop: HTTP/1.1 connections, with a limit on every wait.

use std::io;
use std::time::{Duration, Instant};

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
/// The largest head of a request, in bytes, and as much of a body as is read at once. It is looked
/// at between reads, so that a head of up to twice this length may pass: less than 100,000 bytes.
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
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(idle));
    // Reads are timed by what is read, head and body: while a request is worked on there is a
    // read as well, for the end of the connection, and that one may take its time.
    let service = router.map_request(move |request: hyper::Request<hyper::body::Incoming>| {
        request.map(|body| TimeoutBody::new(idle, body))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Body;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::api::json::Object;

    /// Short, so that tests are; what must not be cut takes several times as long.
    const IDLE: Duration = Duration::from_millis(400);
    const LONG: Duration = Duration::from_millis(1500);

    struct Server {
        address: SocketAddr,
        stop: CancellationToken,
        running: JoinHandle<()>,
    }

    impl Server {
        async fn start(grace: Duration, idle: Duration) -> Self {
            Self::start_within(grace, idle, CONNECTIONS_MAX).await
        }

        async fn start_within(grace: Duration, idle: Duration, connections: usize) -> Self {
            let router = Router::new()
                .route("/quick", get(|| async { "quick" }))
                .route(
                    "/slow",
                    get(|| async {
                        tokio::time::sleep(LONG).await;
                        "slow"
                    }),
                )
                .route("/json", post(|_: Object| async { "read" }))
                .route(
                    "/endless",
                    get(|| async {
                        let chunk = bytes::Bytes::from(vec![0_u8; 1 << 16]);
                        let chunks =
                            futures::stream::repeat_with(move || Ok::<_, io::Error>(chunk.clone()));
                        Body::from_stream(chunks)
                    }),
                );
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stop = CancellationToken::new();
            let bounds = Bounds { idle, connections };
            let running = tokio::spawn(serve_within(listener, router, stop.clone(), grace, bounds));
            Self {
                address,
                stop,
                running,
            }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn send(&self, text: &str) -> TcpStream {
            let mut stream = self.connect().await;
            stream.write_all(text.as_bytes()).await.unwrap();
            stream
        }
    }

    /// All that comes until the server closes the connection, which it must.
    async fn rest(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let closed = tokio::time::timeout(LONG * 10, stream.read_to_end(&mut text));
        // A reset is a way to close as well.
        let _ = closed.await.expect("the server keeps the connection open");
        String::from_utf8_lossy(&text).into_owned()
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_is_left() {
        let server = Server::start(LONG, IDLE).await;
        for begun in [
            "",
            "GET /quick HT",
            "GET /quick HTTP/1.1\r\nhost: x\r\n\r\n",
        ] {
            let mut stream = server.send(begun).await;
            rest(&mut stream).await;
        }
    }

    #[tokio::test]
    async fn a_body_that_stops_coming_is_timed_out_and_one_that_moves_is_not() {
        let server = Server::start(LONG, IDLE).await;
        let head = "POST /json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
        let mut silent = server
            .send(&format!("{head}content-length: 10\r\n\r\n{{"))
            .await;
        let answer = rest(&mut silent).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");

        let mut slow = server
            .send(&format!("{head}content-length: 10\r\n\r\n"))
            .await;
        for byte in "{        }".bytes() {
            tokio::time::sleep(IDLE / 2).await;
            slow.write_all(&[byte]).await.unwrap();
        }
        let answer = rest(&mut slow).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn a_request_that_is_worked_on_may_take_its_time() {
        let server = Server::start(LONG, IDLE).await;
        let mut stream = server
            .send("GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await;
        let answer = rest(&mut stream).await;
        assert!(answer.ends_with("slow"), "{answer}");
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left() {
        let server = Server::start(LONG, IDLE).await;
        let mut stream = server
            .send("GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            .await;
        tokio::time::sleep(LONG).await;
        // What was in the buffers comes, and then the end.
        rest(&mut stream).await;
    }

    #[tokio::test]
    async fn more_connections_than_there_may_be_wait_for_one_to_end() {
        let server = Server::start_within(LONG, LONG * 20, 2).await;
        let asked = "GET /quick HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let first = server.connect().await;
        let _second = server.connect().await;
        let mut third = server.send(asked).await;
        let mut byte = [0; 1];
        let early = tokio::time::timeout(IDLE, third.read(&mut byte)).await;
        assert!(early.is_err(), "it was answered");
        drop(first);
        let answer = rest(&mut third).await;
        assert!(answer.ends_with("quick"), "{answer}");
    }

    #[test]
    fn what_may_happen_often_is_logged_seldom() {
        let mut seldom = Seldom::default();
        assert!(seldom.is_due());
        assert!(!seldom.is_due());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_how_many_file_descriptors_there_may_be() {
        assert!(descriptors().is_some_and(|most| most > 2));
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let server = Server::start(LONG, IDLE).await;
        let head = format!(
            "GET /quick HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n",
            "a".repeat(HEAD_BYTES_MAX * 4)
        );
        let mut stream = server.connect().await;
        // The server may close before it has taken all.
        let _ = stream.write_all(head.as_bytes()).await;
        let answer = rest(&mut stream).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_stop_waits_for_requests_but_not_for_idle_connections() {
        let server = Server::start(LONG * 20, LONG * 20).await;
        let _never_used = server.connect().await;
        let mut idle = server.send("GET /quick HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut begun = [0; 15];
        idle.read_exact(&mut begun).await.unwrap();
        let mut busy = server.send("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        tokio::time::sleep(IDLE / 2).await;

        server.stop.cancel();
        let answer = rest(&mut busy).await;
        assert!(answer.ends_with("slow"), "{answer}");
        let stopped = tokio::time::timeout(LONG * 10, server.running).await;
        stopped.expect("the server stops").unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }

    #[tokio::test]
    async fn a_stop_cuts_off_what_outlasts_the_grace_period() {
        let server = Server::start(Duration::from_millis(50), IDLE).await;
        let mut busy = server.send("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        tokio::time::sleep(IDLE / 2).await;
        let begun = Instant::now();
        server.stop.cancel();
        server.running.await.unwrap();
        assert!(begun.elapsed() < LONG, "the server waited");
        assert_eq!(rest(&mut busy).await, "");
    }
}

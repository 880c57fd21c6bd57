use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::api::json::Object;

/// Short, so that tests are; what must not be cut takes several times as long.
const IDLE: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_millis(1500);

struct Server {
    address: SocketAddr,
    /// A slow request is being worked on.
    begun: Arc<Notify>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Server {
    async fn start(grace: Duration, idle: Duration) -> Self {
        Self::start_within(grace, idle, CONNECTIONS_MAX).await
    }

    async fn start_within(grace: Duration, idle: Duration, connections: usize) -> Self {
        let begun = Arc::new(Notify::new());
        let (slow, never) = (Arc::clone(&begun), Arc::clone(&begun));
        let router = heads::routes()
            .route("/quick", get(|| async { "quick" }))
            .route(
                "/slow",
                get(async move || {
                    slow.notify_one();
                    tokio::time::sleep(LONG).await;
                    "slow"
                }),
            )
            .route(
                "/never",
                get(async move || {
                    never.notify_one();
                    std::future::pending::<&str>().await
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
            begun,
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
    let closed = tokio::time::timeout(LONG * 20, stream.read_to_end(&mut text));
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
    let idle = LONG * 2;
    let server = Server::start(LONG, idle).await;
    let head = "POST /json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let stops = async {
        let text = format!("{head}content-length: 10\r\n\r\n{{");
        let answer = rest(&mut server.send(&text).await).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    };
    let moves = async {
        let text = format!("{head}content-length: 20\r\n\r\n");
        let mut slow = server.send(&text).await;
        // All told longer than `idle`.
        for byte in "{                  }".bytes() {
            tokio::time::sleep(idle / 15).await;
            slow.write_all(&[byte]).await.unwrap();
        }
        let answer = rest(&mut slow).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    tokio::join!(stops, moves);
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
async fn a_stop_waits_for_requests_but_not_for_idle_connections() {
    let server = Server::start(LONG * 20, LONG * 20).await;
    let _never_used = server.connect().await;
    let mut idle = server.send("GET /quick HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut begun = [0; 15];
    idle.read_exact(&mut begun).await.unwrap();
    let mut busy = server.send("GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.begun.notified().await;

    server.stop.cancel();
    let answer = rest(&mut busy).await;
    assert!(answer.ends_with("slow"), "{answer}");
    let stopped = tokio::time::timeout(LONG * 20, server.running).await;
    stopped.expect("the server stops").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_stop_cuts_off_what_outlasts_the_grace_period() {
    let server = Server::start(Duration::from_millis(50), IDLE).await;
    let mut busy = server.send("GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.begun.notified().await;
    server.stop.cancel();
    let stopped = tokio::time::timeout(LONG * 20, server.running).await;
    stopped.expect("the server stops").unwrap();
    assert_eq!(rest(&mut busy).await, "");
}

mod heads;

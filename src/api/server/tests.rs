use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::accept::{CONNECTIONS_MAX, SPARED, Seldom, descriptors, serve_within};
use super::connection::{Bounds, HEAD_BYTES_MAX};
use super::places::Counts;
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
        let bounds = Bounds {
            idle,
            first_head: idle,
            reserved_head: IDLE,
            counts: Counts::of(CONNECTIONS_MAX, SPARED),
        };
        Self::start_within(grace, bounds, &["127.0.0.0/8"]).await
    }

    async fn start_within(grace: Duration, bounds: Bounds, trusted: &[&str]) -> Self {
        let begun = Arc::new(Notify::new());
        let (slow, never) = (Arc::clone(&begun), Arc::clone(&begun));
        let router = Router::new()
            .route("/quick", get(|| async { "quick" }))
            .route("/healthz", get(|| async { "well" }))
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
        let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let serving = serve_within(listener, router, trusted, stop.clone(), grace, bounds);
        let running = tokio::spawn(serving);
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
        Self::send_on(self.connect().await, text).await
    }

    /// Connects from another address of this machine.
    async fn connect_from(&self, address: [u8; 4]) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((address, 0))).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    async fn send_on(mut stream: TcpStream, text: &str) -> TcpStream {
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

/// Few places, all waits but that for a first head long, and nothing that makes way.
fn few(connections: usize) -> Bounds {
    Bounds {
        idle: LONG * 20,
        first_head: LONG * 20,
        reserved_head: LONG * 20,
        counts: Counts::of(connections, LONG * 20),
    }
}

/// Asks once, and returns the answer.
async fn ask(stream: TcpStream, path: &str) -> String {
    let asked = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    rest(&mut Server::send_on(stream, &asked).await).await
}

#[tokio::test]
async fn who_has_sent_a_request_may_be_idle_for_longer_than_who_has_not() {
    let bounds = Bounds {
        first_head: IDLE,
        ..few(64)
    };
    let server = Server::start_within(LONG, bounds, &[]).await;
    let mut idle = server.send("GET /quick HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut begun = server.send("GET /quick HT").await;
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(rest(&mut begun).await, "");
    let again = "GET /quick HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    idle.write_all(again.as_bytes()).await.unwrap();
    let answers = rest(&mut idle).await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 2, "{answers}");
}

#[tokio::test]
async fn when_all_places_are_taken_health_is_answered_and_all_else_is_refused() {
    let server = Server::start_within(LONG, few(8), &["127.0.0.0/8"]).await;
    let mut silent = Vec::new();
    // Many more than there are places, reserved ones included.
    for _ in 0..50 {
        silent.push(server.connect().await);
    }
    let health = ask(server.connect().await, "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
    assert!(health.ends_with("well"), "{health}");
    let refused = ask(server.connect().await, "/quick").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    for header in [
        "retry-after: 2\r\n",
        "x-request-id: req_",
        "connection: close\r\n",
    ] {
        assert!(refused.contains(header), "{refused}");
    }
    drop(silent.drain(..8));
    while !ask(server.connect().await, "/quick")
        .await
        .ends_with("quick")
    {}
}

#[tokio::test]
async fn a_reserved_place_is_not_for_who_is_silent_or_asks_again_and_again() {
    let bounds = Bounds {
        reserved_head: IDLE,
        ..few(1)
    };
    let server = Server::start_within(LONG, bounds, &["127.0.0.0/8"]).await;
    let _holder = server.connect().await;
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    let twice = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2);
    let answers = rest(&mut server.send(&twice).await).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
}

#[tokio::test]
async fn silent_connections_make_way_for_requests() {
    let bounds = Bounds {
        counts: Counts::of(8, Duration::ZERO),
        ..few(8)
    };
    let server = Server::start_within(LONG, bounds, &["127.0.0.0/8"]).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(server.connect().await);
    }
    let answer = ask(server.connect().await, "/quick").await;
    assert!(answer.ends_with("quick"), "{answer}");
    assert_eq!(rest(&mut silent[0]).await, "", "the first has made way");
}

#[tokio::test]
async fn one_address_leaves_places_for_others() {
    let server = Server::start_within(LONG, few(32), &["127.0.0.3/32"]).await;
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(server.connect_from([127, 0, 0, 2]).await);
    }
    let same = ask(server.connect_from([127, 0, 0, 2]).await, "/quick").await;
    assert_eq!(same, "", "its part is taken");
    for other in [[127, 0, 0, 1], [127, 0, 0, 3]] {
        let answer = ask(server.connect_from(other).await, "/quick").await;
        assert!(answer.ends_with("quick"), "{answer}");
    }
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

#[tokio::test]
async fn a_head_that_cannot_be_read_is_answered_with_a_bare_status_and_closes() {
    let server = Server::start(LONG, LONG * 10).await;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    for (sent, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}", 400),
        (&many, 431),
    ] {
        let answer = rest(&mut server.send(sent).await).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_head_may_have_48_kib_and_no_more() {
    let server = Server::start(LONG, LONG * 10).await;
    let head_of = |length: usize| {
        let begin = "GET /quick HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-large: ";
        let rest = length - begin.len() - 4;
        format!("{begin}{}\r\n\r\n", "a".repeat(rest))
    };
    let fits = rest(&mut server.send(&head_of(HEAD_BYTES_MAX)).await).await;
    assert!(fits.ends_with("quick"), "{fits}");
    let larger = rest(&mut server.send(&head_of(HEAD_BYTES_MAX + 1)).await).await;
    assert!(!larger.contains("quick"), "{larger}");
}

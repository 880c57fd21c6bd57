//! HTTP/2, against servers that count connections and the calls on each.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;

use futures::future::join_all;
use h2::Reason;
use h2::server::SendResponse;
use hyper::{Request as Asked, Response as Answered};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::*;

/// What a server does with a call, by the number of its connection, from 1.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    /// Answers once it is told to.
    Hold,
    Reset(Reason),
    /// The connection ends without a word.
    Vanish,
    /// The first connection ends with a GOAWAY that says that no call on it was begun.
    GoAwayFirst,
}

/// What a server has seen.
#[derive(Default)]
struct Seen {
    connections: usize,
    /// The most calls at once, by connection.
    most: BTreeMap<usize, usize>,
    open: BTreeMap<usize, usize>,
    calls: usize,
    /// Host, path and body of each call.
    requests: Vec<(String, String)>,
}

struct Http2Server {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Seen>>,
    release: watch::Sender<bool>,
}

impl Http2Server {
    /// `streams`: how many it takes on a connection, if it says so.
    async fn start(act: Act, streams: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (release, released) = watch::channel(false);
        let of_server = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&of_server);
                let connection = {
                    let mut seen = seen.lock().expect("is whole");
                    seen.connections += 1;
                    seen.connections
                };
                let released = released.clone();
                if matches!(act, Act::GoAwayFirst) && connection == 1 {
                    tokio::spawn(go_away(stream));
                    continue;
                }
                tokio::spawn(speak(stream, act, streams, (connection, seen), released));
            }
        });
        Self {
            address,
            seen,
            release,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    fn transport(&self) -> Transport {
        transport(&self.url(), Http2::Always, None)
    }

    /// Waits until so many calls are there.
    async fn has(&self, calls: usize) {
        let has_all = async {
            while self.seen.lock().expect("is whole").calls < calls {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, has_all)
            .await
            .expect("all calls come");
    }
}

fn transport(base_url: &str, http2: Http2, ca_file: Option<std::path::PathBuf>) -> Transport {
    let config = UpstreamSettings {
        http2,
        ca_file,
        concurrency: 1_000,
        ..settings(base_url)
    };
    let base = Url::parse(base_url).expect("a URL");
    Transport::new(&config, &base).expect("is possible")
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    act: Act,
    streams: Option<u32>,
    (connection, seen): (usize, Arc<Mutex<Seen>>),
    released: watch::Receiver<bool>,
) {
    let mut builder = h2::server::Builder::new();
    if let Some(streams) = streams {
        builder.max_concurrent_streams(streams);
    }
    let mut spoken = builder.handshake(stream).await.expect("HTTP/2 begins");
    while let Some(Ok((request, respond))) = spoken.accept().await {
        if matches!(act, Act::Vanish) {
            return;
        }
        {
            let mut seen = seen.lock().expect("is whole");
            seen.calls += 1;
            let open = seen.open.entry(connection).or_default();
            *open += 1;
            let open = *open;
            let most = seen.most.entry(connection).or_default();
            *most = open.max(*most);
        }
        let seen = Arc::clone(&seen);
        tokio::spawn(answer(
            request,
            respond,
            act,
            released.clone(),
            (connection, seen),
        ));
    }
}

async fn answer(
    request: Asked<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    act: Act,
    mut released: watch::Receiver<bool>,
    (connection, seen): (usize, Arc<Mutex<Seen>>),
) {
    let url = request.uri().to_string();
    let mut body = request.into_body();
    let mut text = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        text.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).ok();
    }
    let text = String::from_utf8(text).expect("UTF-8");
    seen.lock().expect("is whole").requests.push((url, text));
    if let Act::Reset(reason) = act {
        respond.send_reset(reason);
        return;
    }
    if matches!(act, Act::Hold) {
        released.wait_for(|released| *released).await.ok();
    }
    // Before the answer is there, for another call may follow it at once.
    *seen
        .lock()
        .expect("is whole")
        .open
        .entry(connection)
        .or_default() -= 1;
    let mut stream = respond
        .send_response(Answered::new(()), false)
        .expect("is sent");
    stream.send_data(Bytes::from_static(b"[]"), true).ok();
}

/// Speaks HTTP/2 by hand: settings, then a GOAWAY whose last stream is 0.
async fn go_away(mut stream: TcpStream) {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.write_all(&settings).await.expect("is sent");
    let mut read = Vec::new();
    // The request's body is the last that a client sends.
    while !read.ends_with(b"{}") {
        stream.read_buf(&mut read).await.expect("is read");
    }
    stream.write_all(&go_away).await.expect("is sent");
    while stream
        .read_buf(&mut read)
        .await
        .is_ok_and(|bytes| bytes > 0)
    {}
}

async fn many(transport: &Transport, url: &str, calls: usize) -> Vec<Result<String, Error>> {
    join_all((0..calls).map(|_| whole(transport, url))).await
}

#[tokio::test]
async fn many_calls_share_as_few_connections_as_their_server_allows() {
    for (streams, calls, connections) in [(Some(10), 95, 10), (None, 250, 3), (Some(250), 99, 1)] {
        let server = Http2Server::start(Act::Hold, streams).await;
        let (transport, url) = (server.transport(), server.url());
        let all = async {
            server.has(calls).await;
            server.release.send_replace(true);
        };
        let (answers, ()) = tokio::join!(many(&transport, &url, calls), all);
        for answer in answers {
            assert_eq!(answer.expect("is answered"), "[]");
        }
        // What comes later goes over the same connections.
        for answer in many(&transport, &url, calls).await {
            assert_eq!(answer.expect("is answered"), "[]");
        }
        let seen = server.seen.lock().expect("is whole");
        assert_eq!(seen.connections, connections, "{streams:?}");
        let limit = streams.unwrap_or(100).min(100) as usize;
        assert!(seen.most.values().all(|most| *most <= limit), "{streams:?}");
    }
}

#[tokio::test]
async fn a_request_is_sent_whole_with_its_host_and_path() {
    let server = Http2Server::start(Act::Answer, None).await;
    let url = format!("{}/chat?api-version=1", server.url());
    let body = whole(&server.transport(), &url).await;
    assert_eq!(body.expect("is answered"), "[]");
    let seen = server.seen.lock().expect("is whole");
    assert_eq!(seen.requests, [(url, "{}".to_owned())]);
}

#[tokio::test]
async fn a_stream_that_its_server_refuses_was_not_worked_on() {
    let server = Http2Server::start(Act::Reset(Reason::REFUSED_STREAM), None).await;
    let refused = whole(&server.transport(), &server.url()).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

#[tokio::test]
async fn a_stream_that_is_reset_and_a_connection_that_vanishes_lose_the_call() {
    for act in [Act::Reset(Reason::INTERNAL_ERROR), Act::Vanish] {
        let server = Http2Server::start(act, None).await;
        let lost = whole(&server.transport(), &server.url()).await;
        assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
    }
}

#[tokio::test]
async fn a_request_that_a_goaway_leaves_out_is_sent_over_another_connection() {
    let server = Http2Server::start(Act::GoAwayFirst, None).await;
    let body = whole(&server.transport(), &server.url()).await;
    assert_eq!(body.expect("is answered"), "[]");
    assert_eq!(server.seen.lock().expect("is whole").connections, 2);
}

#[tokio::test]
async fn where_there_is_no_connection_all_who_wait_for_it_are_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let nobody = format!("http://{}/v1", listener.local_addr().expect("an address"));
    drop(listener);
    let transport = transport(&nobody, Http2::Always, None);
    for answer in many(&transport, &nobody, 250).await {
        assert!(matches!(answer, Err(Error::Connect(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_gives_its_place_back() {
    let server = Http2Server::start(Act::Hold, Some(1)).await;
    let (transport, url) = (server.transport(), server.url());
    let dropped = tokio::time::timeout(Duration::from_millis(200), whole(&transport, &url));
    assert!(dropped.await.is_err(), "is held");
    server.has(1).await;
    server.release.send_replace(true);
    let body = whole(&transport, &url).await;
    assert_eq!(body.expect("is answered"), "[]");
    assert_eq!(server.seen.lock().expect("is whole").connections, 1);
}

/// A server with TLS that offers these protocols; counts the connections over HTTP/2.
async fn tls_server(offered: &[&str]) -> (String, tempfile::NamedTempFile, Arc<Mutex<Seen>>) {
    let key = KeyPair::generate().expect("makes a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("is a name");
    let certificate = params.self_signed(&key).expect("makes a certificate");
    let mut ca_file = tempfile::NamedTempFile::new().expect("a file");
    ca_file
        .write_all(certificate.pem().as_bytes())
        .expect("is written");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("is a key");
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("are known")
    .with_no_client_auth()
    .with_single_cert(vec![certificate.der().clone()], key)
    .expect("belong together");
    config.alpn_protocols = offered
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let of_server = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&of_server));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    let connection = {
                        let mut seen = seen.lock().expect("is whole");
                        seen.connections += 1;
                        seen.connections
                    };
                    let (_, released) = watch::channel(true);
                    speak(stream, Act::Answer, None, (connection, seen), released).await;
                    return;
                }
                let mut read = vec![0; 4096];
                while stream.read(&mut read).await.is_ok_and(|bytes| bytes > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
                    stream.write_all(answer).await.ok();
                }
            });
        }
    });
    (format!("https://localhost:{port}/v1"), ca_file, seen)
}

#[tokio::test]
async fn with_tls_the_server_says_whether_it_speaks_http2() {
    for (offered, http2, connections) in [
        (&["h2", "http/1.1"][..], Http2::Auto, Some(1)),
        (&["http/1.1"], Http2::Auto, Some(0)),
        (&[], Http2::Auto, Some(0)),
        (&["h2", "http/1.1"], Http2::Never, Some(0)),
        (&["h2", "http/1.1"], Http2::Always, Some(1)),
        (&[], Http2::Always, None),
    ] {
        let (url, ca_file, seen) = tls_server(offered).await;
        let transport = transport(&url, http2, Some(ca_file.path().to_owned()));
        for answer in many(&transport, &url, 4).await {
            match connections {
                Some(_) => assert_eq!(answer.expect("is answered"), "[]", "{offered:?}"),
                None => assert!(matches!(answer, Err(Error::Connect(_))), "{answer:?}"),
            }
        }
        let seen = seen.lock().expect("is whole").connections;
        assert_eq!(seen, connections.unwrap_or(0), "{offered:?} {http2:?}");
    }
}

//! HTTP/2, against servers that count connections and the calls on each.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;

use futures::FutureExt as _;
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
use crate::upstream::transport::http2::{Ask, Links};

/// What a server does with a call, by the number of its connection, from 1.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    /// Answers once it is told to.
    Hold,
    Reset(Reason),
    /// The connection ends without a word.
    Vanish,
    /// So many connections end with a GOAWAY that says that no call on them was begun.
    GoAway(usize),
    /// Holds the first call of each connection, until it is told to answer.
    HoldFirst,
    /// Answers in so many frames of so many bytes each.
    Frames(usize, usize),
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
    /// Ends the connections that there are: takes no more calls on them.
    retire: watch::Sender<()>,
}

impl Http2Server {
    /// `streams`: how many it takes on a connection, if it says so.
    async fn start(act: Act, streams: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (release, released) = watch::channel(false);
        let (retire, retired) = watch::channel(());
        let of_server = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&of_server);
                let mut retired = retired.clone();
                retired.mark_unchanged();
                let connection = {
                    let mut seen = seen.lock().expect("is whole");
                    seen.connections += 1;
                    seen.connections
                };
                let told = (released.clone(), retired);
                if matches!(act, Act::GoAway(connections) if connection <= connections) {
                    tokio::spawn(go_away(stream));
                    continue;
                }
                tokio::spawn(speak(stream, act, streams, (connection, seen), told));
            }
        });
        Self {
            address,
            seen,
            release,
            retire,
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
        is_auto: false,
        metrics_url: None,
        yields: false,
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
    (released, mut retired): (watch::Receiver<bool>, watch::Receiver<()>),
) {
    let mut builder = h2::server::Builder::new();
    if let Some(streams) = streams {
        builder.max_concurrent_streams(streams);
    }
    let mut spoken = builder.handshake(stream).await.expect("HTTP/2 begins");
    let mut is_first = true;
    loop {
        let accepted = tokio::select! {
            accepted = spoken.accept() => accepted,
            Ok(()) = retired.changed() => {
                spoken.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        let act = match act {
            Act::HoldFirst if std::mem::take(&mut is_first) => Act::Hold,
            Act::HoldFirst => Act::Answer,
            act => act,
        };
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
    if let Act::Frames(frames, bytes) = act {
        for _ in 0..frames {
            stream.send_data(vec![b' '; bytes].into(), false).ok();
        }
    }
    stream.send_data(Bytes::from_static(b"[]"), true).ok();
}

/// By hand, for what a library does not do.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Speaks HTTP/2 by hand: settings, then a GOAWAY whose last stream is 0.
async fn go_away(mut stream: TcpStream) {
    let go_away = [0, 0, 14, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    read_a_request(&mut stream).await;
    stream.write_all(&go_away).await.expect("is sent");
    stream.write_all(b"secret").await.expect("is sent");
    read_to_the_end(stream).await;
}

/// Sends settings, and reads a request.
async fn read_a_request(stream: &mut TcpStream) {
    stream.write_all(&SETTINGS).await.expect("is sent");
    let mut read = Vec::new();
    // The request's body is the last that a client sends.
    while !read.ends_with(b"{}") {
        stream.read_buf(&mut read).await.expect("is read");
    }
}

async fn read_to_the_end(mut stream: TcpStream) {
    let mut read = Vec::new();
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
    let server = Http2Server::start(Act::GoAway(1), None).await;
    let body = whole(&server.transport(), &server.url()).await;
    assert_eq!(body.expect("is answered"), "[]");
    assert_eq!(server.seen.lock().expect("is whole").connections, 2);
}

#[tokio::test]
async fn a_request_that_each_connection_leaves_out_is_refused_without_the_servers_words() {
    let server = Http2Server::start(Act::GoAway(9), None).await;
    let refused = whole(&server.transport(), &server.url()).await;
    let Err(Error::Refused(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(!why.is_empty() && !why.contains("secret"), "{why}");
    assert_eq!(server.seen.lock().expect("is whole").connections, 3);
}

#[tokio::test]
async fn connections_that_have_ended_cost_a_request_nothing_however_many_they_are() {
    let server = Http2Server::start(Act::HoldFirst, Some(2)).await;
    let (transport, url) = (server.transport(), server.url());
    let held = many(&transport, &url, 10);
    let later = async {
        // Five connections with room, and with a call that keeps them open.
        server.has(10).await;
        server.retire.send_replace(());
        tokio::time::sleep(Duration::from_millis(200)).await;
        let body = send(&transport, &url, &[], false);
        let mut body = std::pin::pin!(body);
        // The new connection holds its first call, too.
        tokio::select! {
            answer = &mut body => panic!("{answer:?}"),
            () = server.has(11) => {}
        }
        server.release.send_replace(true);
        read(body.await.expect("is answered")).await
    };
    let (held, later) = tokio::join!(held, later);
    assert_eq!(later.expect("is answered"), "[]");
    for answer in held {
        assert_eq!(answer.expect("is answered"), "[]");
    }
    assert_eq!(server.seen.lock().expect("is whole").connections, 6);
}

#[tokio::test]
async fn a_connection_that_takes_no_more_calls_for_now_is_given_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_a_request(&mut stream).await;
                // No streams at once any more; then the answer: 200, without a body.
                let none = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0];
                let answer = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
                let both = [&none[..], &answer[..]].concat();
                stream.write_all(&both).await.expect("is sent");
                read_to_the_end(stream).await;
            });
        }
    });
    let transport = transport(&url, Http2::Always, None);
    for _ in 0..3 {
        assert_eq!(whole(&transport, &url).await.expect("is answered"), "");
    }
}

#[tokio::test]
async fn a_configured_host_is_named_and_headers_of_one_connection_are_left_out() {
    let server = Http2Server::start(Act::Answer, None).await;
    let own = [
        ("host", "models.internal:1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip"),
    ];
    let response = send(&server.transport(), &server.url(), &own, false).await;
    assert_eq!(response.expect("is answered").status, 200);
    let seen = server.seen.lock().expect("is whole");
    let url = "http://models.internal:1/v1".to_owned();
    assert_eq!(seen.requests, [(url, "{}".to_owned())]);
}

#[tokio::test]
async fn answers_that_are_not_read_hold_up_no_other_on_their_connection() {
    // Large ones, and ones in many small frames.
    for (calls, act) in [
        (100, Act::Frames(64, 16 << 10)),
        (80, Act::Frames(1_000, 16)),
    ] {
        let server = Http2Server::start(act, None).await;
        let (transport, url) = (server.transport(), server.url());
        let heads = join_all((1..calls).map(|_| head(&transport, &url))).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let last = tokio::time::timeout(PATIENCE, whole(&transport, &url)).await;
        last.expect("is not held up").expect("is answered");
        for head in heads {
            read(head.expect("is answered")).await.expect("is whole");
        }
        assert_eq!(server.seen.lock().expect("is whole").connections, 1);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_of_http2_is_said_to() {
    let (address, _) = mute_server().await;
    let url = format!("http://{address}/v1");
    let config = UpstreamSettings {
        http2: Http2::Always,
        connect_timeout: Duration::from_millis(100),
        ..settings(&url)
    };
    let base = Url::parse(&url).expect("a URL");
    let transport = Transport::new(&config, &base).expect("is possible");
    let mute = whole(&transport, &url).await;
    assert!(
        matches!(&mute, Err(Error::Connect(why)) if why.contains("HTTP/2")),
        "{mute:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_something_now_and_then_keeps_its_calls() {
    for minutes_between in [1, 10] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("is called");
            read_a_request(&mut stream).await;
            for _ in 0..9 {
                tokio::time::sleep(Duration::from_mins(minutes_between)).await;
                // Settings again: it answers no question.
                stream.write_all(&SETTINGS).await.ok();
            }
            let answer = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
            stream.write_all(&answer).await.ok();
            read_to_the_end(stream).await;
        });
        let transport = transport(&url, Http2::Always, None);
        let answer = send(&transport, &url, &[], false).await;
        if minutes_between == 1 {
            assert_eq!(answer.expect("is answered").status, 200);
        } else {
            assert!(matches!(answer, Err(Error::Lost(_))), "{answer:?}");
        }
    }
}

#[test]
fn who_is_to_open_a_connection_and_is_dropped_has_another_one_open_it() {
    let links = Links::new(true);
    let Ask::Open(opening) = links.ask(true) else {
        panic!("there is no connection");
    };
    let (Ask::Wait(first), Ask::Wait(second)) = (links.ask(true), links.ask(true)) else {
        panic!("one is being opened");
    };
    // The first one is to ask again, and does not.
    drop(opening);
    drop(first);
    let told = second.slot().now_or_never();
    assert!(matches!(told, Some(Ok(None))), "is to ask again");
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
async fn tls_server(
    offered: &[&str],
    act: Act,
) -> (String, tempfile::NamedTempFile, Arc<Mutex<Seen>>) {
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
                    let (_keep, retired) = watch::channel(());
                    let told = (released, retired);
                    speak(stream, act, None, (connection, seen), told).await;
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
        let (url, ca_file, seen) = tls_server(offered, Act::Answer).await;
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

#[tokio::test]
async fn a_server_that_wants_http1_is_spoken_to_so_wherever_that_is_allowed() {
    let wants_http1 = Act::Reset(Reason::HTTP_1_1_REQUIRED);
    for (http2, is_allowed) in [(Http2::Auto, true), (Http2::Always, false)] {
        let (url, ca_file, seen) = tls_server(&["h2", "http/1.1"], wants_http1).await;
        let transport = transport(&url, http2, Some(ca_file.path().to_owned()));
        for _ in 0..3 {
            for answer in many(&transport, &url, 4).await {
                if is_allowed {
                    assert_eq!(answer.expect("is answered"), "[]");
                } else {
                    assert!(matches!(answer, Err(Error::Connect(_))), "{answer:?}");
                }
            }
        }
        assert_eq!(seen.lock().expect("is whole").connections, 1, "{http2:?}");
    }
}

#[tokio::test]
async fn without_tls_a_file_of_certificates_changes_nothing() {
    let server = Http2Server::start(Act::Answer, None).await;
    let ca_file = any_ca_file();
    let ca_file = Some(ca_file.path().to_owned());
    let transport = transport(&server.url(), Http2::Always, ca_file);
    let body = whole(&transport, &server.url()).await;
    assert_eq!(body.expect("is answered"), "[]");
}

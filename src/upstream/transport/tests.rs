//! Both ways, against servers that are written out byte for byte.

mod http2;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{HOST, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::upstream::provider::kind::ProviderKind;
use crate::upstream::settings::{Http2, UnsupportedParams};

const PATIENCE: Duration = Duration::from_secs(30);

fn settings(base_url: &str) -> UpstreamSettings {
    UpstreamSettings {
        enabled: true,
        rate_limits: Vec::new(),
        name: "gpu".to_owned(),
        provider: ProviderKind::OpenAi,
        base_url: base_url.to_owned(),
        api_version: None,
        unsupported_params: UnsupportedParams::Reject,
        only_max_tokens: false,
        reasoning_key: None,
        price: None,
        capabilities: Vec::new(),
        translates_responses: false,
        keys: Vec::new(),
        auth_header: None,
        concurrency: 4,
        is_auto: false,
        metrics_url: None,
        yields: false,
        timeout: PATIENCE,
        connect_timeout: PATIENCE,
        stream: false,
        idle_timeout: Duration::from_mins(1),
        stream_timeout: Duration::from_mins(1),
        max_response_bytes: 1 << 20,
        headers: BTreeMap::new(),
        proxy: None,
        ca_file: None,
        http2: Http2::Auto,
    }
}

fn both(base_url: &str) -> [Transport; 2] {
    let config = settings(base_url);
    let base = Url::parse(base_url).expect("a URL");
    [
        Transport::Direct(Box::new(Direct::new(&config, &base).expect("is possible"))),
        Transport::General(General::new(&config, &base).expect("is possible")),
    ]
}

/// What a server writes after each request, and whether it closes the connection then.
#[derive(Clone, Copy)]
struct Script {
    answer: &'static str,
    closes: bool,
}

struct Server {
    base_url: String,
    connections: Arc<AtomicUsize>,
    /// The head of each request.
    heads: mpsc::UnboundedReceiver<String>,
    /// Told of each connection that its client has closed.
    closed: mpsc::UnboundedReceiver<()>,
}

impl Server {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base_url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let connections = Arc::new(AtomicUsize::new(0));
        let (told, heads) = mpsc::unbounded_channel();
        let (gone, closed) = mpsc::unbounded_channel();
        let count = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, script, told.clone(), gone.clone()));
            }
        });
        Self {
            base_url,
            connections,
            heads,
            closed,
        }
    }

    fn connections(&self) -> usize {
        self.connections.swap(0, Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: TcpStream,
    script: Script,
    told: mpsc::UnboundedSender<String>,
    gone: mpsc::UnboundedSender<()>,
) {
    let mut read = Vec::new();
    loop {
        let end = read.windows(4).position(|four| four == b"\r\n\r\n");
        // The body of each request here is the two bytes `{}`.
        let Some(end) = end.filter(|end| read.len() >= end + 6) else {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                gone.send(()).ok();
                return;
            }
            continue;
        };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        read.drain(..end + 6);
        told.send(head).ok();
        stream.write_all(script.answer.as_bytes()).await.ok();
        if script.closes {
            return;
        }
    }
}

async fn head(transport: &Transport, url: &str) -> Result<Response, Error> {
    tokio::time::timeout(PATIENCE, send(transport, url, &[], false))
        .await
        .expect("in good time")
}

async fn send(
    transport: &Transport,
    url: &str,
    own: &[(&'static str, &'static str)],
    is_urgent: bool,
) -> Result<Response, Error> {
    let url = Url::parse(url).expect("a URL");
    let host = HeaderValue::from_str(url.authority()).expect("a header");
    let address = Address::new(url).expect("can be written");
    let mut headers = HeaderMap::from_iter([(HOST, host)]);
    for (name, value) in own {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    let body = Bytes::from_static(b"{}");
    let sent = transport.send(Method::POST, &address, headers, body, is_urgent);
    sent.await
}

async fn whole(transport: &Transport, url: &str) -> Result<String, Error> {
    read(head(transport, url).await?).await
}

async fn read(mut response: Response) -> Result<String, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.body.chunk().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(body).expect("UTF-8"))
}

#[tokio::test]
async fn calls_one_after_the_other_share_a_connection() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\nx: y\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
    ] {
        let closes = false;
        let server = Server::start(Script { answer, closes }).await;
        for transport in both(&server.base_url) {
            for _ in 0..5 {
                let body = whole(&transport, &server.base_url).await;
                assert_eq!(body.expect("is answered"), "[]");
            }
            assert_eq!(server.connections(), 1, "{transport:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_its_server_closes_is_not_used_again() {
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n[]",
        // Unannounced: right after the answer, or as its end.
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]",
        "HTTP/1.0 200 OK\r\n\r\n[]",
    ] {
        let closes = true;
        let server = Server::start(Script { answer, closes }).await;
        for transport in both(&server.base_url) {
            for _ in 0..5 {
                let body = whole(&transport, &server.base_url).await;
                assert_eq!(body.expect("is answered"), "[]");
                // Whoever sends at the moment of the close may lose the call: not here.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(server.connections(), 5, "{transport:?}");
        }
    }
}

#[tokio::test]
async fn connections_are_closed_when_nobody_uses_them_or_waits_any_more() {
    let whole_answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";
    let half_an_answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[";
    for answer in [whole_answer, half_an_answer] {
        let closes = false;
        let mut server = Server::start(Script { answer, closes }).await;
        for transport in both(&server.base_url) {
            if answer == whole_answer {
                let body = whole(&transport, &server.base_url).await;
                assert_eq!(body.expect("is answered"), "[]");
            } else {
                drop(head(&transport, &server.base_url).await.expect("a head"));
            }
            tokio::time::timeout(PATIENCE, server.closed.recv())
                .await
                .unwrap_or_else(|_| panic!("{transport:?} keeps its connection"));
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_lost() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\nconte",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n[\r\n",
        "HTTP/2 is not spoken here\r\n\r\n",
    ] {
        let closes = true;
        let server = Server::start(Script { answer, closes }).await;
        for transport in both(&server.base_url) {
            let lost = whole(&transport, &server.base_url).await;
            assert!(matches!(lost, Err(Error::Lost(_))), "{answer:?}: {lost:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_was_sent_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let nobody = format!("http://{}/v1", listener.local_addr().expect("an address"));
    drop(listener);
    for transport in both(&nobody) {
        let refused = whole(&transport, &nobody).await;
        assert!(
            matches!(&refused, Err(Error::Connect(why)) if why.contains("refused")),
            "{refused:?}"
        );
    }
    // Longer than a part of a name can be: nobody need be asked.
    let nowhere = format!("http://{}.invalid/v1", "a".repeat(64));
    for transport in both(&nowhere) {
        let unknown = whole(&transport, &nowhere).await;
        assert!(matches!(unknown, Err(Error::Resolve(_))), "{unknown:?}");
    }
}

#[tokio::test]
async fn path_query_and_host_are_sent_as_the_url_has_them() {
    let answer = "HTTP/1.1 204 No Content\r\n\r\n";
    let closes = false;
    let mut server = Server::start(Script { answer, closes }).await;
    let url = format!("{}/caf%C3%A9?api-version=1&x=a%20b#top", server.base_url);
    for transport in both(&server.base_url) {
        let body = whole(&transport, &url).await;
        assert_eq!(body.expect("is answered"), "");
        let head = server.heads.recv().await.expect("was sent");
        let line = "POST /v1/caf%C3%A9?api-version=1&x=a%20b HTTP/1.1\r\n";
        assert!(head.starts_with(line), "{head}");
        let host = server
            .base_url
            .replace("http://", "host: ")
            .replace("/v1", "");
        assert!(head.to_lowercase().contains(&host), "{head}");
        assert!(head.contains("content-length: 2"), "{head}");
    }
}

/// A server that takes connections and says nothing; counts them.
async fn mute_server() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut read = Vec::new();
                while stream
                    .read_buf(&mut read)
                    .await
                    .is_ok_and(|bytes| bytes > 0)
                {}
            });
        }
    });
    (address, connections)
}

/// With any certificate, for where it does not come to TLS.
fn any_ca_file() -> tempfile::NamedTempFile {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let mut ca_file = tempfile::NamedTempFile::new().expect("a file");
    let pem = certified.expect("a certificate").cert.pem();
    std::io::Write::write_all(&mut ca_file, pem.as_bytes()).expect("is written");
    ca_file
}

fn to_a_mute_server(base_url: &str, connect_timeout: Duration) -> Transport {
    let ca_file = any_ca_file();
    let config = UpstreamSettings {
        connect_timeout,
        ca_file: Some(ca_file.path().to_owned()),
        http2: Http2::Never,
        ..settings(base_url)
    };
    Transport::new(&config, &Url::parse(base_url).expect("a URL")).expect("is possible")
}

#[tokio::test]
async fn where_no_connection_comes_about_no_call_waits_for_its_turn() {
    let (address, connections) = mute_server().await;
    let url = format!("https://{address}/v1");
    let transport = to_a_mute_server(&url, Duration::from_millis(500));
    let calls = 2_000;
    let all = (0..calls).map(|_| whole(&transport, &url));
    for answer in futures::future::join_all(all).await {
        assert!(matches!(answer, Err(Error::ConnectTimeout)), "{answer:?}");
    }
    // Those that had their turn, and those who got it when the first had failed.
    let connections = connections.load(Ordering::SeqCst);
    assert!((256..=1_024).contains(&connections), "{connections}");
}

#[tokio::test]
async fn an_urgent_request_does_not_wait_for_its_turn_to_connect() {
    let (address, connections) = mute_server().await;
    let url = format!("https://{address}/v1");
    let transport = to_a_mute_server(&url, PATIENCE);
    let others = futures::future::join_all((0..300).map(|_| send(&transport, &url, &[], false)));
    let urgent = async {
        let until = async |count: usize| {
            while connections.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // As many as are opened at once.
        until(256).await;
        tokio::select! {
            answer = send(&transport, &url, &[], true) => panic!("{answer:?}"),
            () = until(257) => {}
        }
    };
    tokio::select! {
        answers = others => panic!("{answers:?}"),
        urgent = tokio::time::timeout(PATIENCE / 2, urgent) => urgent.expect("is sent at once"),
    }
}

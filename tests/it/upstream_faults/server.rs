//! Model servers that go wrong, each in its own way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_util::task::AbortOnDropHandle;

/// What becomes of a POST. A GET is answered well: the server looks healthy.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// The connection is reset before a byte of the answer.
    ResetBefore,
    /// It is reset behind the answer's head.
    ResetAfter,
    /// Nothing comes.
    Hang,
    /// Nothing comes behind the head and a bit of the body.
    HangWithin,
    /// These bytes come, and then the end of the connection.
    Say(Vec<u8>),
    /// The body never ends.
    Endless,
}

impl Trouble {
    /// An answer with this status, more headers (each with its line end) and body. It says that the
    /// connection ends with it: else a client could send into a connection that is being closed,
    /// and lose an attempt that the server never sees.
    pub fn answer(status: &str, headers: &str, body: &[u8]) -> Trouble {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        Trouble::Say([head.as_bytes(), body].concat())
    }
}

/// A server in trouble. It goes away when dropped.
pub struct Troubled {
    pub address: SocketAddr,
    posts: Arc<AtomicUsize>,
    serves: AbortOnDropHandle<()>,
}

impl Troubled {
    pub async fn start(trouble: Trouble) -> Troubled {
        Troubled::on("127.0.0.1:0", None, trouble).await
    }

    /// A server at an address, with a certificate if it is to speak TLS.
    pub async fn on(
        address: &str,
        certificate: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>,
        trouble: Trouble,
    ) -> Troubled {
        let listener = TcpListener::bind(address).await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let posts = Arc::new(AtomicUsize::new(0));
        let counted = posts.clone();
        let tls = certificate.map(acceptor);
        let serves: JoinHandle<()> = tokio::spawn(async move {
            // Dropped with the task, they end with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, posts, trouble) = (tls.clone(), counted.clone(), trouble.clone());
                connections.spawn(async move {
                    if matches!(trouble, Trouble::ResetBefore | Trouble::ResetAfter) {
                        stream.set_zero_linger().expect("can be reset");
                    }
                    match tls {
                        None => serve(stream, &posts, trouble).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &posts, trouble).await;
                            }
                        }
                    }
                });
            }
        });
        Troubled {
            address,
            posts,
            serves: AbortOnDropHandle::new(serves),
        }
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Ends it; its address is free then.
    pub async fn stop(self) {
        self.serves.abort();
        // It says that it was aborted.
        let _ = self.serves.await;
    }

    /// How many POSTs have come.
    pub fn posts(&self) -> usize {
        self.posts.load(Ordering::SeqCst)
    }
}

/// A certificate for this host, signed by itself.
pub fn certificate(host: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed([host.to_owned()]).expect("makes a certificate")
}

/// A certificate for this host as `openssl req -x509` makes it: one of a CA, signed by itself.
pub fn certificate_of_a_ca(host: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    let mut params = rcgen::CertificateParams::new([host.to_owned()]).expect("is a name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let signing_key = rcgen::KeyPair::generate().expect("makes a key");
    let cert = params
        .self_signed(&signing_key)
        .expect("makes a certificate");
    rcgen::CertifiedKey { cert, signing_key }
}

fn acceptor(certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).expect("is a key");
    let chain = vec![certificate.cert.der().clone()];
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain, key).expect("goes together");
    TlsAcceptor::from(Arc::new(config))
}

/// One request, for each has a connection of its own.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    posts: &AtomicUsize,
    trouble: Trouble,
) {
    let Some(head) = receive(&mut stream).await else {
        return;
    };
    // What fails here is that the client has gone, as it may.
    if head.starts_with("GET ") {
        let models = r#"{"object":"list","data":[]}"#;
        let Trouble::Say(answer) = Trouble::answer("200 OK", "", models.as_bytes()) else {
            return;
        };
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        return;
    }
    posts.fetch_add(1, Ordering::SeqCst);
    match trouble {
        Trouble::ResetBefore => {}
        Trouble::ResetAfter => {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
                .await;
            tokio::task::yield_now().await;
        }
        Trouble::Hang => std::future::pending().await,
        Trouble::HangWithin => {
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\"";
            let _ = stream.write_all(begun).await;
            std::future::pending::<()>().await;
        }
        Trouble::Say(answer) => {
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
        Trouble::Endless => {
            let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let mut alive = stream.write_all(head).await.is_ok();
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            while alive {
                alive = stream.write_all(chunk.as_bytes()).await.is_ok();
            }
        }
    }
}

/// Reads a whole request; returns its head.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let mut lines = head.lines();
            let length = lines.find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse().expect("a number"));
            if body.len() >= length {
                return Some(text);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// A base URL at which nobody listens.
pub async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    format!(
        "http://{}/v1",
        listener.local_addr().expect("has an address")
    )
}

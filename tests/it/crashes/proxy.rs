//! A way to Postgres that can be cut.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// Stands between a server and its Postgres.
pub struct Proxy {
    /// The database's URL through this proxy.
    pub url: String,
    open: Arc<watch::Sender<bool>>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Proxy {
    pub async fn to(database: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("has an address");
        let (front, query) = database.split_once('?').unwrap_or((database, ""));
        let (before, name) = front.rsplit_once('/').expect("names a database");
        let (scheme, server) = before.split_once("://").expect("is a URL");
        let (user, host) = server.rsplit_once('@').unwrap_or(("postgres", server));
        let socket = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("host="))
            .map(|directory| format!("{directory}/.s.PGSQL.5432"));
        let host = host.to_owned();
        let (open, opened) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (socket, host, opened) = (socket.clone(), host.clone(), opened.clone());
                tokio::spawn(pass(client, socket, host, opened));
            }
        });
        Proxy {
            url: format!("{scheme}://{user}@{address}/{name}?sslmode=disable"),
            open: Arc::new(open),
        }
    }

    /// Cuts all connections; new ones are cut as they come.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn restore(&self) {
        self.open.send_replace(true);
    }
}

async fn pass(
    mut client: TcpStream,
    socket: Option<String>,
    host: String,
    mut open: watch::Receiver<bool>,
) {
    if !*open.borrow() {
        return;
    }
    let mut server: Box<dyn Stream> = match socket {
        Some(path) => Box::new(UnixStream::connect(path).await.expect("connects")),
        None => Box::new(TcpStream::connect(host).await.expect("connects")),
    };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = open.wait_for(|open| !open) => {}
    }
}

//! A network to Postgres that can fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Connections are reset, and new ones as well.
    Refused,
    /// Nothing comes through any more, and nobody is told.
    Silent,
}

/// A port that leads to a Postgres.
pub struct Proxy {
    url: String,
    /// The number rises with each change: a connection belongs to one state of the network.
    way: watch::Sender<(u64, Way)>,
    refused: Arc<AtomicUsize>,
    _running: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Leads to the server that a URL names.
    pub async fn to(url: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("has an address").port();
        let mut through = reqwest::Url::parse(url).expect("is a URL");
        through.set_host(Some("127.0.0.1")).expect("has a host");
        through.set_port(Some(port)).expect("has a port");
        through.set_query(None);

        let options: PgConnectOptions = url.parse().expect("is a URL of Postgres");
        let way = watch::Sender::new((0, Way::Open));
        let refused = Arc::new(AtomicUsize::new(0));
        let running = run(listener, options, way.clone(), refused.clone());
        Proxy {
            url: through.into(),
            way,
            refused,
            _running: AbortOnDropHandle::new(tokio::spawn(running)),
        }
    }

    /// The same URL, by way of this port.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Resets all connections; new ones come through.
    pub fn cut(&self) {
        self.change(Way::Open);
    }

    /// Resets all connections, old and new.
    pub fn refuse(&self) {
        self.change(Way::Refused);
    }

    /// Lets nothing through, and tells nobody.
    pub fn fall_silent(&self) {
        self.change(Way::Silent);
    }

    /// Lets new connections through. Those that were lost stay lost: those that fell silent stay
    /// silent.
    pub fn restore(&self) {
        self.change(Way::Open);
    }

    /// How many connections were refused so far.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn change(&self, way: Way) {
        self.way.send_modify(|(number, before)| {
            *number += 1;
            *before = way;
        });
    }
}

async fn run(
    listener: TcpListener,
    server: PgConnectOptions,
    way: watch::Sender<(u64, Way)>,
    refused: Arc<AtomicUsize>,
) {
    // Ends all connections with this one.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("accepts");
        let way = way.subscribe();
        if way.borrow().1 == Way::Refused {
            refused.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            continue;
        }
        connections.spawn(pass(client, server.clone(), way));
    }
}

async fn pass(client: TcpStream, server: PgConnectOptions, way: watch::Receiver<(u64, Way)>) {
    if let Some(directory) = server.get_socket() {
        let socket = directory.join(format!(".s.PGSQL.{}", server.get_port()));
        if let Ok(server) = UnixStream::connect(socket).await {
            pass_between(client, server, way).await;
        }
    } else {
        let address = (server.get_host(), server.get_port());
        if let Ok(server) = TcpStream::connect(address).await {
            pass_between(client, server, way).await;
        }
    }
}

async fn pass_between(
    mut client: TcpStream,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
    mut way: watch::Receiver<(u64, Way)>,
) {
    let (number, now) = *way.borrow_and_update();
    if now == Way::Open {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = way.wait_for(|(changed, _)| *changed != number) => {}
        }
    }
    if way.borrow().1 == Way::Silent {
        // Both sides believe that the other is there.
        std::future::pending::<()>().await;
    }
    reset(&client);
}

/// Has a connection end with a reset instead of a farewell.
fn reset(client: &TcpStream) {
    client.set_zero_linger().expect("can be set");
}

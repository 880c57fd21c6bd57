//! Threads for HTTP alone.

use std::io;
use std::time::Duration;

use axum::Router;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A request must not queue behind a thousand calls that are ready to go on, and no call behind
/// the chunks of an upload: so HTTP has threads of its own. They end when this is dropped.
pub struct Threads(Option<Runtime>);

impl Threads {
    /// # Errors
    /// When the system has no more threads or file descriptors.
    pub fn start() -> io::Result<Self> {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.thread_name("http").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// As [`serve`](super::serve), in the background.
    ///
    /// # Errors
    /// When the listener cannot be moved.
    pub fn serve(
        &self,
        listener: TcpListener,
        router: Router,
        trusted_proxies: Vec<IpNet>,
        stop: CancellationToken,
        grace: Duration,
    ) -> io::Result<JoinHandle<()>> {
        // Whoever waits for connections is to poll for them, too.
        let listener = listener.into_std()?;
        let runtime = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        Ok(runtime.spawn(super::serve(listener, router, trusted_proxies, stop, grace)))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Without waiting, which an async caller may not. What matters has ended by then.
            runtime.shutdown_background();
        }
    }
}

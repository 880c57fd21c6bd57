//! Threads for HTTP alone.

use std::io;
use std::time::Duration;

use axum::Router;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::accept::serve;

/// HTTP has threads of its own: a request must not queue behind a thousand calls that are ready to
/// go on, and no call behind the chunks of an upload. The threads end when this is dropped.
pub struct Threads(Option<Runtime>);

impl Threads {
    /// # Errors
    /// When the system has no more threads or file descriptors.
    pub fn start() -> io::Result<Self> {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.thread_name("http").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// As [`serve`], in the background.
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
        // The listener must be polled by the runtime that accepts its connections.
        let listener = listener.into_std()?;
        let runtime = self.0.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        Ok(runtime.spawn(serve(listener, router, trusted_proxies, stop, grace)))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Without a wait, because async code may not wait here. All requests have ended by
            // then.
            runtime.shutdown_background();
        }
    }
}

//! A receiver of OTLP, as small as can be.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;

/// Takes what is sent to `/v1/traces`.
#[derive(Clone, Default)]
pub struct Receiver(Arc<Mutex<Vec<u8>>>);

impl Receiver {
    /// Starts one; where it listens.
    pub async fn start() -> (Self, String) {
        let receiver = Receiver::default();
        let received = receiver.0.clone();
        let take = move |body: Bytes| async move {
            received.lock().expect("is sound").extend_from_slice(&body);
        };
        let router = Router::new().route("/v1/traces", post(take));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("binds");
        let base = format!("http://{}", listener.local_addr().expect("has an address"));
        tokio::spawn(serve(listener, router));
        (receiver, base)
    }

    /// All that came, whose texts stand in it as they are.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("is sound").clone()
    }

    /// Waits until it holds some bytes.
    pub async fn gets(&self, bytes: &[u8]) {
        super::eventually("they come", async || self.holds(bytes)).await;
    }

    pub fn holds(&self, bytes: &[u8]) -> bool {
        let all = self.bytes();
        all.windows(bytes.len()).any(|window| window == bytes)
    }
}

async fn serve(listener: tokio::net::TcpListener, router: Router) {
    let stop = tokio_util::sync::CancellationToken::new();
    let grace = Duration::ZERO;
    nightshift::internals::api::serve(listener, router, Vec::new(), stop, grace).await;
}

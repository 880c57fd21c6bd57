//! Refused bodies are still read, within bounds. A client that is cut off while it sends sees a
//! broken connection in place of the answer, and tries again.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

/// How much of a refused body is read, in bytes.
const DRAINED_BYTES_MAX: usize = 64 << 20;
/// For how long it is read.
const DRAINED_FOR: Duration = Duration::from_secs(30);

/// Reads the rest of a body and drops it, within bounds.
pub async fn drain(body: Body) {
    // A body that takes longer is cut off.
    let _ = tokio::time::timeout(DRAINED_FOR, read(body)).await;
}

async fn read(mut body: Body) {
    let mut left = DRAINED_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Whether the client waits for permission to send its body (`Expect: 100-continue`). Such a client
/// reads the answer without sending the body, so the body is not drained.
#[must_use]
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers.contains_key(header::EXPECT)
}

//! What every response carries, and the one line that every request leaves in the log.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::auth::Caller;
use crate::domain::id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
/// The version of OpenAI's API that this one follows.
const OPENAI_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");

/// Paths that are asked for every few seconds by machines.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The outermost middleware.
pub async fn observe(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let request_id = id::request();
    let method = request.method().clone();
    // The pattern, not the path: ids are many, and a wrong path may hold anything.
    let path = request.extensions().get::<MatchedPath>().cloned();

    let span = tracing::info_span!("request", request.id = %request_id);
    let mut response = next.run(request).instrument(span).await;

    let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(PROCESSING_MS, HeaderValue::from(duration_ms));
    headers.insert(VERSION, OPENAI_VERSION);

    let path = path.as_ref().map_or("(none)", MatchedPath::as_str);
    let tenant = response.extensions().get::<Caller>();
    let tenant = tenant.map(|caller| caller.tenant.as_str());
    let status = response.status().as_u16();
    if PROBES.contains(&path) {
        tracing::debug!(%method, path, status, duration_ms, request.id = request_id, tenant, "answered");
    } else {
        tracing::info!(%method, path, status, duration_ms, request.id = request_id, tenant, "answered");
    }
    response
}

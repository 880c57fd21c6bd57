//! `/metrics`, for Prometheus.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument as _;
use tracing::field::Empty;

use super::Api;
use super::auth::Scraper;
use super::error::{self, Result};
use crate::metrics::{exposition, metrics, trace};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Shows this process's metrics in the OpenMetrics text format, which Prometheus reads.
///
/// Where keys are needed, it needs one of the scope `metrics` or `admin`.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "Operators",
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = "text/plain"),
        (status = 403, description = "The key has neither scope.", body = error::Envelope),
    ),
)]
pub async fn expose(State(api): State<Api>, _: Scraper) -> Result<Response> {
    let now_ms = api.clock.now_ms();
    let snapshot = api.snapshots.snapshot(&api.store, now_ms).await;
    let text = exposition(&snapshot).map_err(|_| error::internal())?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// The middleware that counts requests, and makes a span of each where spans are exported.
pub async fn observe(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let span = tracing::trace_span!(
        target: trace::TARGET,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = %method,
        http.route = route,
        http.response.status_code = Empty,
    );
    if !span.is_disabled()
        && let Some(Ok(parent)) = request.headers().get("traceparent").map(|v| v.to_str())
    {
        trace::continue_from(&span, parent);
    }
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", status);
    metrics().http_answered(method.as_str(), route, status, begun.elapsed());
    response
}

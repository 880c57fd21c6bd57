//! Web pages that may use the API from a browser: those that the operator names, and no others.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// For how long a browser may remember the answer to a preflight request.
const MAX_AGE: Duration = Duration::from_hours(1);

/// Answers preflight requests, and lets pages of these origins read all answers. The key is in a
/// header that the page sends itself, so no credentials of the browser are allowed.
pub fn layer(origins: &[String]) -> CorsLayer {
    let origins = origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        // SDKs send headers of their own, and each version more of them.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            header::ACCEPT_RANGES,
            header::CONTENT_DISPOSITION,
            header::CONTENT_LENGTH,
            header::CONTENT_RANGE,
            header::ETAG,
            header::RETRY_AFTER,
            HeaderName::from_static("idempotent-replayed"),
            HeaderName::from_static("openai-processing-ms"),
            HeaderName::from_static("openai-version"),
            HeaderName::from_static("x-nightshift-complete"),
            HeaderName::from_static("x-nightshift-next"),
            HeaderName::from_static("x-request-id"),
            HeaderName::from_static("x-should-retry"),
        ])
        .max_age(MAX_AGE)
}

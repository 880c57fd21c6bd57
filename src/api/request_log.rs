//! The headers of every response, and the one line that every request leaves in the log. The line
//! is written when the last byte of the answer is handed on, or when the client goes away.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use super::auth::{Caller, KEY_BEGINNING};
use super::azure;
use super::error::shown;
use super::headers::content_length;
use crate::domain::id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
const VERSION: HeaderName = HeaderName::from_static("openai-version");
/// The version of OpenAI's API that this one follows.
const OPENAI_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");

/// Paths that machines ask for every few seconds.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// The logged status of a request whose client went away before there was an answer.
const NOT_ANSWERED: u16 = 499;

/// The outermost middleware.
pub async fn observe(request: Request, next: Next) -> Response {
    let mut entry = Entry::new(&request);
    let span = tracing::info_span!("request", request.id = %entry.request_id);
    let mut response = next.run(request).instrument(span).await;
    entry.answer(&mut response);
    let announced = content_length(response.headers());
    response.map(|body| {
        Body::new(Watched {
            body,
            entry,
            announced,
        })
    })
}

/// A request's line in the log, written when it is dropped.
struct Entry {
    begun: Instant,
    request_id: String,
    method: Method,
    path: String,
    /// The pattern that the path matched, without ids.
    route: Option<MatchedPath>,
    tenant: Option<String>,
    key_id: Option<String>,
    status: u16,
    /// Bytes of the response's body.
    sent: u64,
    /// Whether the connection ended before the answer did, or the answer broke.
    cut_off: bool,
}

impl Entry {
    fn new(request: &Request) -> Self {
        Entry {
            begun: Instant::now(),
            request_id: id::request(),
            method: request.method().clone(),
            path: without_keys(azure::asked_path(request)),
            route: request.extensions().get::<MatchedPath>().cloned(),
            tenant: None,
            key_id: None,
            status: NOT_ANSWERED,
            sent: 0,
            cut_off: true,
        }
    }

    fn duration_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes the response's status for the log, and adds its headers.
    fn answer(&mut self, response: &mut Response) {
        self.status = response.status().as_u16();
        if let Some(caller) = response.extensions().get::<Caller>() {
            let has_tenant = caller.scopes.open_the_api();
            self.tenant = has_tenant.then(|| caller.tenant.clone());
            self.key_id.clone_from(&caller.key_id);
        }
        let duration_ms = self.duration_ms();
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&self.request_id) {
            headers.insert(REQUEST_ID, value);
        }
        headers.insert(PROCESSING_MS, HeaderValue::from(duration_ms));
        headers.insert(VERSION, OPENAI_VERSION);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let method = self.method.as_str();
        let route = self.route.as_ref().map(MatchedPath::as_str);
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    method,
                    http.path = self.path,
                    route,
                    status = self.status,
                    duration_ms = self.duration_ms(),
                    bytes = self.sent,
                    cut_off = self.cut_off.then_some(true),
                    request.id = self.request_id,
                    tenant = self.tenant,
                    key.id = self.key_id,
                    "answered"
                )
            };
        }
        if route.is_some_and(|route| PROBES.contains(&route)) {
            log!(debug);
        } else {
            log!(info);
        }
    }
}

/// A response's body. When it ends, the request ends.
struct Watched {
    body: Body,
    entry: Entry,
    /// The response's content length. The body ends there, although it is not polled to its end.
    announced: Option<u64>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(pin!(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                self.entry.sent += length as u64;
            }
            Some(Err(_)) => {}
            None => self.entry.cut_off = false,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let has_no_body = self.entry.method == Method::HEAD;
        if has_no_body || self.body.is_end_stream() || self.announced == Some(self.entry.sent) {
            self.entry.cut_off = false;
        }
    }
}

/// A path as it is logged: of bounded length, and without keys that were put there by mistake.
fn without_keys(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        if segment.starts_with(KEY_BEGINNING) {
            "***"
        } else {
            segment
        }
    });
    shown(&segments.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests;

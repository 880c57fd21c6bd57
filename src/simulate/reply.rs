//! What goes back over the wire, errors in OpenAI's envelope among it.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::ending::{Cut, FrameOrCut};
use super::events::Events;
use super::rate::Need;
use super::stats::{End, OpenCall};

pub(super) type ReplyBody = Either<Full<Bytes>, StreamBody<BoxStream<'static, FrameOrCut>>>;

/// One answer, before it is known how it will be sent.
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    pub sending: Sending,
    /// The answer as a stream, in place of the body.
    pub events: Option<Events>,
    /// What the answer says that it used.
    pub used: Need,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Whole,
    /// The first half, then the connection is cut.
    Half,
    /// The connection is cut at once.
    Nothing,
}

impl Reply {
    /// A JSON answer of 200.
    pub(super) fn json(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: Vec::new(),
            body: body.into(),
            sending: Sending::Whole,
            events: None,
            used: Need::default(),
        }
    }

    fn error(status: StatusCode, kind: &str, code: Option<&str>, message: &str) -> Self {
        let error = json!({
            "error": {"message": message, "type": kind, "param": null, "code": code}
        });
        Self {
            status,
            ..Self::json(error.to_string())
        }
    }

    pub(super) fn invalid(message: &str) -> Self {
        Self::error(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            None,
            message,
        )
    }

    pub(super) fn too_large() -> Self {
        let message = "The request is too large.";
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        Self::error(status, "invalid_request_error", None, message)
    }

    pub(super) fn wrong_key() -> Self {
        let message = "Incorrect API key provided.";
        let code = Some("invalid_api_key");
        Self::error(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            code,
            message,
        )
    }

    /// What a known key gets that is refused with this status.
    pub(super) fn refused_key(status: u16) -> Self {
        let (kind, code, message) = match status {
            402 => ("billing_error", None, "Payment is required."),
            403 => ("permission_error", None, "This key may not use this model."),
            429 => (
                "insufficient_quota",
                Some("insufficient_quota"),
                "You exceeded your current quota.",
            ),
            _ => return Self::wrong_key(),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::UNAUTHORIZED);
        Self::error(status, kind, code, message)
    }

    pub(super) fn unknown_model(model: &str) -> Self {
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        let code = Some("model_not_found");
        Self::error(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            code,
            &message,
        )
    }

    pub(super) fn unknown_url(status: StatusCode, method: &str, path: &str) -> Self {
        let message = format!("Invalid URL ({method} {path})");
        Self::error(status, "invalid_request_error", None, &message)
    }

    pub(super) fn rate_limited() -> Self {
        let message = "Rate limit reached for requests. Please try again later.";
        let code = Some("rate_limit_exceeded");
        Self::error(StatusCode::TOO_MANY_REQUESTS, "requests", code, message)
    }

    pub(super) fn server_error() -> Self {
        let message = "The server had an error while processing your request.";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::error(status, "server_error", None, message)
    }

    /// The error that a request asked for by its status.
    pub(super) fn steered_error(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Self::rate_limited(),
            _ if status.is_server_error() => Self {
                status,
                ..Self::server_error()
            },
            _ => {
                let message = format!("The request asked for status {}.", status.as_u16());
                Self::error(status, "invalid_request_error", None, &message)
            }
        }
    }

    /// An error as Anthropic's Messages API has it.
    pub(super) fn for_messages(mut self, request_id: &str) -> Self {
        let kind = match self.status.as_u16() {
            200..=399 => return self,
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            503 | 529 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        let body: Option<Value> = serde_json::from_slice(&self.body).ok();
        if let Some(message) = body.as_ref().and_then(|it| it.pointer("/error/message")) {
            let error = json!({"type": kind, "message": message});
            let body = json!({"type": "error", "error": error, "request_id": request_id});
            self.body = body.to_string().into();
        }
        self
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Says when to come again, in milliseconds, and from a second on in whole seconds too:
    /// a client that knows only those would take a shorter wait for none, or for a second.
    pub(super) fn with_retry_after(self, wait: Duration) -> Self {
        let milliseconds = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let name = HeaderName::from_static("retry-after-ms");
        let reply = self.with_header(name, milliseconds.into());
        if milliseconds < 1000 {
            return reply;
        }
        reply.with_header(RETRY_AFTER, milliseconds.div_ceil(1000).into())
    }

    /// How the call's entry in the ledger ends.
    fn end(&self) -> End {
        match self.sending {
            Sending::Whole => End::Status(self.status.as_u16()),
            Sending::Half | Sending::Nothing => End::Cut,
        }
    }

    /// The answer as hyper sends it, and the call's entry in the ledger closed with its last byte.
    /// An error makes hyper close the connection.
    pub(super) fn into_response(
        self,
        request_id: &str,
        open: Option<OpenCall>,
    ) -> Result<Response<ReplyBody>, Cut> {
        let mut response = Response::new(Either::Left(Full::default()));
        *response.status_mut() = self.status;
        let end = self.end();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type(&self.body));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-request-id", id);
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        let open = open.map(|open| open.billing(self.used));
        let open = match (self.events, open) {
            (Some(events), Some(open)) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                let frames = StreamBody::new(events.into_frames(open));
                *response.body_mut() = Either::Right(frames);
                return Ok(response);
            }
            (_, open) => open,
        };
        if let Some(open) = open {
            open.close(end);
        }
        match self.sending {
            Sending::Nothing => return Err(Cut),
            Sending::Whole => *response.body_mut() = Either::Left(Full::new(self.body)),
            Sending::Half => {
                headers.insert(CONTENT_LENGTH, self.body.len().into());
                *response.body_mut() = Either::Right(half(&self.body));
            }
        }
        Ok(response)
    }
}

fn content_type(body: &[u8]) -> HeaderValue {
    HeaderValue::from_static(match body.first() {
        Some(b'{' | b'[') => "application/json",
        _ => "text/plain",
    })
}

/// The body's first half, and then an error; the pause lets what was written leave first.
fn half(body: &Bytes) -> StreamBody<BoxStream<'static, FrameOrCut>> {
    let first = Frame::data(body.slice(..body.len() / 2));
    let cut = stream::once(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Err(Cut)
    });
    StreamBody::new(stream::once(async { Ok(first) }).chain(cut).boxed())
}

//! The one place where an error becomes a response: OpenAI's envelope, with all four keys.

use std::fmt;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tower_http::timeout::TimeoutError;
use utoipa::ToSchema;

use crate::domain::tenant::grouped;
use crate::store;

/// The header that says to OpenAI's clients whether to try again, whatever the status is.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// How many characters of a client's input a message repeats.
const SHOWN_CHARS_MAX: usize = 200;

const INVALID_REQUEST: &str = "invalid_request_error";
const SERVER_ERROR: &str = "server_error";

/// The error that answers a request. Each case is made by a function below that is named for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    /// The envelope's `type`.
    pub kind: &'static str,
    pub code: Option<&'static str>,
    /// What in the request is at fault.
    pub param: Option<String>,
    pub message: String,
    /// `x-should-retry`; without it OpenAI's clients retry 408, 409, 429 and 5xx.
    pub should_retry: Option<bool>,
    /// `retry-after`, in seconds.
    pub retry_after: Option<u64>,
}

/// What every error is answered with.
#[derive(Debug, Serialize, ToSchema)]
pub struct Envelope {
    error: Body,
}

/// What is wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
struct Body {
    /// In words, for people.
    message: String,
    /// Whose fault it is.
    #[schema(example = "invalid_request_error")]
    r#type: &'static str,
    /// What in the request is at fault.
    #[schema(required)]
    param: Option<String>,
    /// Which rule was broken.
    #[schema(required)]
    code: Option<&'static str>,
}

/// What a handler returns.
pub type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            should_retry: None,
            retry_after: None,
        }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Adds which parameter is at fault. Its name may be one that the client wrote.
    #[must_use]
    pub fn param(mut self, param: &str) -> Self {
        self.param = Some(shown(param));
        self
    }

    fn retry(mut self, should_retry: bool) -> Self {
        self.should_retry = Some(should_retry);
        self
    }
}

/// A wrong request for which no function below is named.
pub fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message)
}

/// The configuration was read again, and has mistakes.
pub fn invalid_configuration(faults: &[String]) -> ApiError {
    let faults = faults.join("\n");
    let message = format!("The configuration has mistakes, and nothing was changed:\n{faults}");
    bad_request(message).code("invalid_configuration")
}

/// A `limit` of the list of files that is out of bounds or no number: OpenAI has other words there.
pub fn files_limit(bounds: &std::ops::RangeInclusive<i64>) -> ApiError {
    let (least, most) = (bounds.start(), bounds.end());
    bad_request(format!("limit must be between {least} and {most}."))
}

pub fn missing_parameter(name: &str) -> ApiError {
    bad_request(format!("Missing required parameter: '{}'.", shown(name)))
        .code("missing_required_parameter")
        .param(name)
}

/// A value that is none of those that are supported.
pub fn invalid_value(param: &str, given: &str, supported: &[&str]) -> ApiError {
    let quoted: Vec<String> = supported.iter().map(|value| format!("'{value}'")).collect();
    invalid_value_because(
        param,
        format!(
            "Invalid value: '{}'. Supported values are: {}.",
            shown(given),
            listed(&quoted)
        ),
    )
}

/// A value that breaks a rule, which the message names.
pub fn invalid_value_because(param: &str, message: impl Into<String>) -> ApiError {
    bad_request(message).code("invalid_value").param(param)
}

/// A value of the wrong type: `expected` and `got` with their article ("a string").
pub fn invalid_type(param: &str, expected: &str, got: &str) -> ApiError {
    bad_request(format!(
        "Invalid type for '{}': expected {expected}, but got {got} instead.",
        shown(param)
    ))
    .code("invalid_type")
    .param(param)
}

/// A number over its maximum. `given` is text: it may not fit any type.
pub fn integer_above(param: &str, max: i64, given: impl fmt::Display) -> ApiError {
    bad_request(format!(
        "Invalid '{}': integer above maximum value. Expected a value <= {max}, but got {} \
         instead.",
        shown(param),
        shown(&given.to_string())
    ))
    .code("integer_above_max_value")
    .param(param)
}

/// A number under its minimum.
pub fn integer_below(param: &str, min: i64, given: impl fmt::Display) -> ApiError {
    bad_request(format!(
        "Invalid '{}': integer below minimum value. Expected a value >= {min}, but got {} \
         instead.",
        shown(param),
        shown(&given.to_string())
    ))
    .code("integer_below_min_value")
    .param(param)
}

/// A text of too many characters.
pub fn string_above(param: &str, max: usize, given: usize) -> ApiError {
    bad_request(format!(
        "Invalid '{}': string too long. Expected a string with maximum length {max}, but \
         got a string with length {given} instead.",
        shown(param)
    ))
    .code("string_above_max_length")
    .param(param)
}

/// An object of too many pairs.
pub fn too_many_properties(param: &str, max: usize, given: usize) -> ApiError {
    bad_request(format!(
        "Invalid '{}': too many properties. Expected an object with at most {max} \
         properties, but got an object with {given} properties instead.",
        shown(param)
    ))
    .code("object_above_max_properties")
    .param(param)
}

/// A key of too many characters in an object.
pub fn property_name_above(param: &str, max: usize, given: usize) -> ApiError {
    bad_request(format!(
        "Invalid property name in '{}': too long. Expected a name with maximum length \
         {max}, but got a name with length {given} instead.",
        shown(param)
    ))
    .code("property_name_above_max_length")
    .param(param)
}

pub fn unknown_parameter(name: &str) -> ApiError {
    bad_request(format!("Unknown parameter: '{}'.", shown(name)))
        .code("unknown_parameter")
        .param(name)
}

pub fn file_not_found(id: &str) -> ApiError {
    not_found(format!("No such File object: {}", shown(id))).param("id")
}

pub fn batch_not_found(id: &str) -> ApiError {
    not_found(format!("No batch found with id '{}'.", shown(id)))
}

pub fn model_not_found(name: &str) -> ApiError {
    not_found(format!(
        "The model `{}` does not exist or you do not have access to it.",
        shown(name)
    ))
    .code("model_not_found")
    .param("model")
}

/// An object that is not there, or is another tenant's.
pub fn not_found(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message)
}

/// A list's `after` that is no object of the caller.
pub fn cursor_not_found(id: &str) -> ApiError {
    not_found(format!("No such object: {}", shown(id))).param("after")
}

pub fn not_found_route(method: &Method, path: &str) -> ApiError {
    not_found(format!("Invalid URL ({method} {})", shown(path)))
}

/// A request for the API, at a process of `--role worker`.
pub fn not_of_a_worker(method: &Method, path: &str) -> ApiError {
    not_found(format!(
        "Invalid URL ({method} {}). This process is a worker (--role worker), which has no API: \
         ask one with the role api or all.",
        shown(path)
    ))
}

pub fn method_not_allowed(method: &Method, path: &str) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        INVALID_REQUEST,
        format!("Not allowed to {method} on {}.", shown(path)),
    )
    .code("method_not_supported")
}

/// A body of more bytes than are allowed. It is no use to send it again.
pub fn too_large(max_bytes: u64) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        INVALID_REQUEST,
        format!("Maximum content size limit ({max_bytes}) exceeded."),
    )
    .retry(false)
}

/// A file that its tenant has no room for. It is no use to send it again.
pub fn storage_full(tenant: &str, max: u64, stored: u64) -> ApiError {
    let message = format!(
        "The files of organization {tenant} may have {} bytes together. {} are left, and this file \
         has more. Please delete files that are not needed any more.",
        grouped(max),
        grouped(max.saturating_sub(stored)),
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message)
        .code("storage_limit_exceeded")
        .param("file")
        .retry(false)
}

/// A body that does not come to its end: nothing came for too long, or the connection broke.
pub fn broken_body(cause: &(dyn std::error::Error + 'static)) -> ApiError {
    let mut causes = std::iter::successors(Some(cause), |cause| cause.source());
    if causes.any(<dyn std::error::Error>::is::<TimeoutError>) {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            INVALID_REQUEST,
            "The body of the request stopped coming.",
        )
    } else {
        bad_request("The body of the request broke off.")
    }
}

/// A long line that comes too slowly, while others wait for the memory that it holds.
pub fn too_slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        INVALID_REQUEST,
        "The body of the request came too slowly: while other uploads wait, one that is within a \
         line of more than 1 MiB must send 64 KiB a second.",
    )
}

/// A file of a purpose that is not given back.
pub fn not_downloadable(purpose: &str) -> ApiError {
    bad_request(format!(
        "Not allowed to download files of purpose: {purpose}"
    ))
}

/// A part that begins behind the end of a file.
pub fn range_not_satisfiable(size: u64) -> ApiError {
    ApiError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        INVALID_REQUEST,
        format!("The file has {size} bytes, none of which is in the range."),
    )
}

pub fn missing_key() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        INVALID_REQUEST,
        "You didn't provide an API key. You need to provide your API key in an Authorization \
         header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). Whoever runs this \
         server makes keys with `nightshift keys create`.",
    )
}

/// A key that is not known, or revoked. `masked` must not give the key away.
pub fn bad_key(masked: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        INVALID_REQUEST,
        format!(
            "Incorrect API key provided: {masked}. Whoever runs this server makes keys with \
             `nightshift keys create`."
        ),
    )
    .code("invalid_api_key")
}

/// A key that was good until it expired. `masked` must not give the key away.
pub fn expired_key(masked: &str) -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        INVALID_REQUEST,
        format!(
            "The API key {masked} has expired. Whoever runs this server makes keys with \
             `nightshift keys create`."
        ),
    )
    .code("invalid_api_key")
}

/// A valid key without the scope that the request needs.
pub fn missing_scope(scope: &str) -> ApiError {
    forbidden(format!(
        "You have insufficient permissions for this operation. Missing scopes: {scope}. Whoever \
         runs this server makes a key with `nightshift keys create --scope {scope}`."
    ))
}

pub fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, INVALID_REQUEST, message)
}

/// A request that its object's state forbids. That state is final.
pub fn conflict(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, INVALID_REQUEST, message).retry(false)
}

/// The file of an ended batch is deleted or has expired.
pub fn output_gone(file_id: &str) -> ApiError {
    let message = format!("The file '{file_id}' of this batch is deleted or has expired.");
    ApiError::new(StatusCode::GONE, INVALID_REQUEST, message)
        .code("output_gone")
        .retry(false)
}

/// The input of a batch is deleted or has expired, and with it the numbers of its lines.
pub fn input_gone(file_id: &str) -> ApiError {
    conflict(format!(
        "The input file '{file_id}' of this batch is deleted or has expired, and with it the \
         numbers of its lines. The batch's output file has its lines as long as that file is there."
    ))
    .code("input_gone")
}

/// The `Idempotency-Key` was used for another request.
pub fn idempotency_key_reused() -> ApiError {
    bad_request(
        "This Idempotency-Key was used before, for a request with another body. Use a new key \
         for each request that is not a retry.",
    )
    .code("idempotency_key_reused")
}

/// The first request with the `Idempotency-Key` is still under way.
pub fn idempotency_running() -> ApiError {
    let mut error = ApiError::new(
        StatusCode::CONFLICT,
        INVALID_REQUEST,
        "Another request with this Idempotency-Key is still being worked on.",
    )
    .code("idempotency_key_in_use")
    .retry(true);
    error.retry_after = Some(1);
    error
}

/// A fault of ours. The log says which, and the answer does not.
pub fn internal() -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        SERVER_ERROR,
        "The server had an error while processing your request. Its log says which, under the \
         id in the x-request-id header.",
    )
}

/// The database cannot be used just now.
pub fn unavailable() -> ApiError {
    let mut error = ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        SERVER_ERROR,
        "The server cannot reach its database at the moment. Please try again.",
    )
    .retry(true);
    error.retry_after = Some(1);
    error
}

/// The server stops before what was waited for has come. `left`: what has not come, as a sentence.
pub fn stopping(left: &str) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        SERVER_ERROR,
        format!("The server stops, and does not wait any longer. {left}"),
    )
}

/// All connections are in use. This one has a place that is reserved for questions after the
/// server's health.
pub fn no_place() -> ApiError {
    let mut error = ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        SERVER_ERROR,
        "The server has as many connections as it can serve at the moment. Please try again.",
    )
    .retry(true);
    error.retry_after = Some(2);
    error
}

/// There is no room where the data is kept.
pub fn insufficient_storage() -> ApiError {
    let mut error = ApiError::new(
        StatusCode::INSUFFICIENT_STORAGE,
        SERVER_ERROR,
        "The server has no room left to store this. Please try again when whoever runs it has \
         made some.",
    );
    error.retry_after = Some(30);
    error
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        tracing::error!(%error, "the store failed");
        if error.is_full() {
            insufficient_storage()
        } else if error.is_outage() {
            unavailable()
        } else {
            internal()
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Envelope {
            error: Body {
                message: self.message,
                r#type: self.kind,
                param: self.param,
                code: self.code,
            },
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(should_retry) = self.should_retry {
            let value = if should_retry { "true" } else { "false" };
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(value));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A client's input, cut to what a message repeats.
pub(super) fn shown(input: &str) -> String {
    match input.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &input[..end]),
        None => input.to_owned(),
    }
}

/// `a`, `a and b`, `a, b, and c`: as OpenAI's messages list values.
fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [init @ .., last] => format!("{}, and {last}", init.join(", ")),
    }
}

#[cfg(test)]
mod tests;

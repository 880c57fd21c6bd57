//! The parts of a form, one after the other. `multer` finds where the parts begin and end. This
//! module bounds how much of a form may be no part at all, and makes the errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::stream;
use http_body_util::BodyExt;
use memchr::memchr;
use percent_encoding::percent_decode_str;

use super::drain::drain;
use super::error::{self, ApiError, Result};

/// How many bytes in a row may belong to no part's content: headers, and what stands before the
/// first part.
const OVERHEAD_BYTES_MAX: usize = 64 << 10;
const PARTS_MAX: usize = 64;
/// How long a part that is read as text may be.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// The boundary that a form's content type names.
///
/// # Errors
/// When the body is no form.
pub fn boundary(headers: &HeaderMap) -> Result<String> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("multipart/form-data") {
        return Err(error::bad_request(
            "The body must be a form: its Content-Type must be multipart/form-data.",
        ));
    }
    // `multer` cannot find it: it refuses a boundary that has a `=` without quotes, as Java's
    // clients send.
    let boundary = parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty());
    boundary.ok_or_else(|| {
        error::bad_request("The Content-Type multipart/form-data must name its boundary.")
    })
}

/// A request's body, while it is received.
pub struct Incoming {
    body: Body,
    seen: Arc<Seen>,
    /// The last byte that was received of the first line. `None` once that line has ended.
    first_line: Option<u8>,
    /// Some of the body was read.
    begun: bool,
    /// The body broke off.
    broken: bool,
}

/// What the bytes that were received show.
#[derive(Debug, Default)]
struct Seen {
    /// How many bytes were received since the last part's content.
    overhead: AtomicUsize,
    /// Whether the first line, which is a boundary, ends in LF without CR.
    has_bare_lf: AtomicBool,
}

/// Why no more bytes are handed to `multer`.
#[derive(Clone, Debug, thiserror::Error)]
enum Broken {
    /// The body did not come to its end.
    #[error("the body does not come to its end")]
    Off(ApiError),
    /// More than [`OVERHEAD_BYTES_MAX`] bytes belong to no part's content.
    #[error("no part begins")]
    Overhead,
}

impl Incoming {
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self {
            body,
            seen: Arc::default(),
            first_line: Some(0),
            begun: false,
            broken: false,
        }
    }

    /// Whether any of the body was read.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Reads the rest of the body and drops it, within bounds.
    pub async fn drain(self) {
        if !self.broken {
            drain(self.body).await;
        }
    }

    async fn next(&mut self) -> Option<std::result::Result<Bytes, Broken>> {
        if self.begun {
            // Otherwise `multer` would read for as long as frames are there, and hold them all.
            tokio::task::yield_now().await;
        }
        self.begun = true;
        let next = self.receive().await;
        self.broken = matches!(next, Some(Err(Broken::Off(_))));
        next
    }

    async fn receive(&mut self) -> Option<std::result::Result<Bytes, Broken>> {
        if self.seen.overhead.load(Ordering::Relaxed) > OVERHEAD_BYTES_MAX {
            return Some(Err(Broken::Overhead));
        }
        loop {
            match self.body.frame().await?.map(hyper::body::Frame::into_data) {
                Ok(Ok(bytes)) => {
                    self.seen.overhead.fetch_add(bytes.len(), Ordering::Relaxed);
                    self.look_at_the_first_line(&bytes);
                    return Some(Ok(bytes));
                }
                // Trailers: they are ignored.
                Ok(Err(_)) => {}
                Err(cause) => return Some(Err(Broken::Off(error::broken_body(&cause)))),
            }
        }
    }
}

impl Incoming {
    fn look_at_the_first_line(&mut self, bytes: &[u8]) {
        let Some(last) = self.first_line else {
            return;
        };
        match memchr(b'\n', bytes) {
            None => self.first_line = bytes.last().copied().or(Some(last)),
            Some(end) => {
                let before = end.checked_sub(1).map_or(last, |before| bytes[before]);
                self.seen
                    .has_bare_lf
                    .store(before != b'\r', Ordering::Relaxed);
                self.first_line = None;
            }
        }
    }
}

/// A form, part by part.
pub struct Form<'a> {
    form: multer::Multipart<'a>,
    seen: Arc<Seen>,
    parts: usize,
}

impl<'a> Form<'a> {
    #[must_use]
    pub fn new(body: &'a mut Incoming, boundary: String) -> Self {
        let seen = Arc::clone(&body.seen);
        let frames = stream::unfold(body, |body| async {
            body.next().await.map(|frame| (frame, body))
        });
        Self {
            form: multer::Multipart::new(frames, boundary),
            seen,
            parts: 0,
        }
    }

    /// The next part, once the part before it was read to its end.
    ///
    /// # Errors
    /// When the body is no form with this boundary, or breaks off.
    pub async fn next(&mut self) -> Result<Option<Part<'a>>> {
        let next = self.form.next_field().await;
        let Some(field) = next.map_err(|cause| broken(cause, &self.seen))? else {
            return Ok(None);
        };
        self.seen.overhead.store(0, Ordering::Relaxed);
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(error::bad_request(format!(
                "The form has more than {PARTS_MAX} parts."
            )));
        }
        let disposition = field
            .headers()
            .get(header::CONTENT_DISPOSITION)
            .map_or(&[][..], |value| value.as_bytes());
        let disposition = String::from_utf8_lossy(disposition);
        Ok(Some(Part {
            name: unescaped(&disposition, "name").unwrap_or_default(),
            filename: filename(&disposition),
            seen: Arc::clone(&self.seen),
            field,
        }))
    }
}

/// One part of a form.
pub struct Part<'a> {
    pub name: String,
    /// What the client calls the file that it sends.
    pub filename: Option<String>,
    seen: Arc<Seen>,
    field: multer::Field<'a>,
}

impl Part<'_> {
    /// The next bytes of its content; `None` at the end.
    ///
    /// # Errors
    /// When the content breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.field.chunk().await;
        let chunk = chunk.map_err(|cause| broken(cause, &self.seen))?;
        self.seen.overhead.store(0, Ordering::Relaxed);
        Ok(chunk)
    }

    /// All of its content, as text.
    ///
    /// # Errors
    /// When it is no text, too long, or breaks off.
    pub async fn text(mut self) -> Result<String> {
        let mut text = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            text.extend_from_slice(&bytes);
            if text.len() > TEXT_BYTES_MAX {
                return Err(error::bad_request(format!(
                    "The form's part '{}' is longer than {TEXT_BYTES_MAX} bytes.",
                    error::shown(&self.name)
                )));
            }
        }
        String::from_utf8(text).map_err(|_| {
            error::bad_request(format!(
                "The form's part '{}' is not valid UTF-8.",
                error::shown(&self.name)
            ))
        })
    }
}

fn broken(cause: multer::Error, seen: &Seen) -> ApiError {
    if let multer::Error::StreamReadFailed(cause) = &cause
        && let Some(Broken::Off(error)) = cause.downcast_ref::<Broken>()
    {
        return error.clone();
    }
    if seen.has_bare_lf.load(Ordering::Relaxed) {
        return error::bad_request(
            "The lines of the form end in a bare LF (\\n): boundaries and headers must end in CRLF \
             (\\r\\n).",
        );
    }
    let message = match &cause {
        multer::Error::StreamReadFailed(cause) => match cause.downcast_ref::<Broken>() {
            Some(Broken::Overhead) => {
                "The form has no part where one should begin, or one with too long headers."
            }
            _ => "The body of the request broke off.",
        },
        multer::Error::IncompleteFieldData { .. }
        | multer::Error::IncompleteHeaders
        | multer::Error::IncompleteStream => {
            "The form ends too early: its closing boundary is missing, or is not the one that the \
             Content-Type names."
        }
        _ => "The form could not be read: the headers of a part are malformed.",
    };
    error::bad_request(message)
}

/// The name that a `Content-Disposition` header gives a file: `filename*` where it can be decoded,
/// and else `filename` (RFC 6266). Clients send both, the second for servers that know no other.
fn filename(disposition: &str) -> Option<String> {
    let extended = parameter(disposition, "filename*");
    if let Some(name) = extended.and_then(|value| decoded_extended(&value)) {
        return Some(name);
    }
    let name = unescaped(disposition, "filename")?;
    Some(decoded_words(&name).unwrap_or(name))
}

/// Decodes a value in the form of RFC 8187: `charset'language'text`, with a percent-encoded text.
fn decoded_extended(value: &str) -> Option<String> {
    let mut parts = value.splitn(3, '\'');
    let (charset, _language, text) = (parts.next()?, parts.next()?, parts.next()?);
    in_charset(charset, percent_decode_str(text).collect())
}

/// Decodes a value of encoded words as in mail (RFC 2047). .NET sends names outside of ASCII so.
/// `None` where the value is anything else.
fn decoded_words(value: &str) -> Option<String> {
    let mut words = value.split_ascii_whitespace().peekable();
    words.peek()?;
    words.map(decoded_word).collect()
}

/// Decodes one encoded word: `=?charset?encoding?text?=`.
fn decoded_word(word: &str) -> Option<String> {
    let word = word.strip_prefix("=?")?.strip_suffix("?=")?;
    let mut parts = word.splitn(3, '?');
    let (charset, encoding, text) = (parts.next()?, parts.next()?, parts.next()?);
    let bytes = match encoding {
        "B" | "b" => BASE64_STANDARD.decode(text).ok()?,
        // As percent-encoding, with `=` in place of the percent sign and `_` in place of a space.
        "Q" | "q" => {
            let text = text.replace('_', " ").replace('%', "%25").replace('=', "%");
            percent_decode_str(&text).collect()
        }
        _ => return None,
    };
    in_charset(charset, bytes)
}

fn in_charset(charset: &str, bytes: Vec<u8>) -> Option<String> {
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" | "us-ascii" => String::from_utf8(bytes).ok(),
        "iso-8859-1" => Some(bytes.into_iter().map(char::from).collect()),
        _ => None,
    }
}

/// A parameter of a `Content-Disposition` header. Browsers and SDKs escape quotes in it as `%22`.
fn unescaped(disposition: &str, name: &str) -> Option<String> {
    parameter(disposition, name).map(|value| value.replace("%22", "\""))
}

/// A parameter of a header. Clients escape quotes as `\"`, and some do not escape a backslash.
fn parameter(header: &str, name: &str) -> Option<String> {
    let (_, mut rest) = header.split_once(';')?;
    loop {
        let (key, value) = rest.split_once('=')?;
        let (value, behind) = value_of(value.trim_start());
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = behind.split_once(';')?.1;
    }
}

/// The value at the beginning of a text, and what stands behind it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, behind) = text.split_at(text.find(';').unwrap_or(text.len()));
        return (value.trim_end().to_owned(), behind);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((place, char)) = chars.next() {
        let escaped = chars.next_if(|&(_, next)| char == '\\' && matches!(next, '"' | '\\'));
        match (char, escaped) {
            (_, Some((_, escaped))) => value.push(escaped),
            ('"', None) => return (value, &quoted[place + 1..]),
            (other, None) => value.push(other),
        }
    }
    // No quote closes the value: the last one seemed escaped, behind a backslash that was meant as
    // one.
    (quoted.strip_suffix('"').unwrap_or(quoted).to_owned(), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_read_however_it_is_escaped() {
        for (header, name, value) in [
            ("form-data; name=\"file\"", "name", Some("file")),
            ("form-data; name=\"file\"", "filename", None),
            ("form-data", "name", None),
            (
                "form-data; name=file ; filename=a.jsonl",
                "name",
                Some("file"),
            ),
            (
                "form-data; name=file; filename=a.jsonl",
                "filename",
                Some("a.jsonl"),
            ),
            (
                "form-data; name=\"file\"; filename=\"\"",
                "filename",
                Some(""),
            ),
            (
                "form-data; filename=\"x; name=y\"; name=\"file\"",
                "name",
                Some("file"),
            ),
            (
                "form-data; name=\"file\"; filename=\"in put é.jsonl\"",
                "filename",
                Some("in put é.jsonl"),
            ),
            (
                "form-data; name=\"f\"; filename=\"a%22b\"",
                "filename",
                Some("a\"b"),
            ),
            (
                "form-data; name=\"f\"; filename=\"a\\\"b\"",
                "filename",
                Some("a\"b"),
            ),
            (
                "form-data; name=\"f\"; filename=\"a\\\\b\"",
                "filename",
                Some("a\\b"),
            ),
            (
                "form-data; name=\"f\"; filename=\"C:\\dir\\x\"",
                "filename",
                Some("C:\\dir\\x"),
            ),
            (
                "form-data; name=\"f\"; filename=\"C:\\dir\\\"",
                "filename",
                Some("C:\\dir\\"),
            ),
            (
                "form-data; NAME=\"f\"; filename*=utf-8''x",
                "name",
                Some("f"),
            ),
        ] {
            let found = unescaped(header, name);
            assert_eq!(found.as_deref(), value, "{name} in {header}");
        }
    }

    #[test]
    fn a_file_is_called_what_the_client_calls_it_however_that_is_encoded() {
        for (parameters, name) in [
            ("filename=a.jsonl", Some("a.jsonl")),
            ("filename*=utf-8''x", Some("x")),
            ("filename=\"a%22b\"", Some("a\"b")),
            // RFC 6266, in either order.
            (
                "filename=\"EURO.jsonl\"; filename*=UTF-8'en'%e2%82%ac.jsonl",
                Some("€.jsonl"),
            ),
            (
                "filename*=utf-8''%E2%82%AC%22.jsonl; filename=\"x\"",
                Some("€\".jsonl"),
            ),
            (
                "filename*=iso-8859-1''caf%e9.jsonl; filename=x",
                Some("café.jsonl"),
            ),
            // What cannot be decoded is not there.
            ("filename*=utf-8''%ff; filename=x", Some("x")),
            ("filename*=koi8-r''x; filename=y", Some("y")),
            ("filename*=x; filename=y", Some("y")),
            ("filename*=x", None),
            // .NET.
            (
                "filename=\"=?utf-8?B?ZMOpYnV0Lmpzb25s?=\"",
                Some("début.jsonl"),
            ),
            (
                "filename=\"=?utf-8?B?ZMOpYnV0Lmpzb25s?=\"; filename*=utf-8''d%C3%A9but.jsonl",
                Some("début.jsonl"),
            ),
            (
                "filename=\"=?UTF-8?Q?d=C3=A9_100%.jsonl?= =?utf-8?q?_b?=\"",
                Some("dé 100%.jsonl b"),
            ),
            (
                "filename=\"=?utf-8?B?not base64?=\"",
                Some("=?utf-8?B?not base64?="),
            ),
            ("filename=\"=?x?=\"", Some("=?x?=")),
            ("filename=\"\"", Some("")),
        ] {
            let found = filename(&format!("form-data; name=\"file\"; {parameters}"));
            assert_eq!(found.as_deref(), name, "{parameters}");
        }
    }

    #[test]
    fn a_boundary_is_taken_with_and_without_quotes() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=XX", Some("XX")),
            (
                "multipart/form-data; boundary=----=_Part_0_1",
                Some("----=_Part_0_1"),
            ),
            (
                "Multipart/Form-Data; charset=utf-8; boundary=\"a b;c\"",
                Some("a b;c"),
            ),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/mixed; boundary=XX", None),
            ("text/plain", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            let found = boundary(&headers).ok();
            assert_eq!(found.as_deref(), expected, "{content_type}");
        }
    }
}

//! The parts of a form, as they come: `multer` finds them, and this bounds what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures::stream;
use http_body_util::BodyExt;

use super::drain::drain;
use super::error::{self, ApiError, Result};

/// How much may come without being part of any part: headers, and what stands before the first.
const OVERHEAD_BYTES_MAX: usize = 64 << 10;
const PARTS_MAX: usize = 64;
/// How long the text of a part may be.
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
    multer::parse_boundary(content_type).map_err(|cause| {
        error::bad_request(match cause {
            multer::Error::NoBoundary => {
                "The Content-Type multipart/form-data must name its boundary.".to_owned()
            }
            _ => {
                "The body must be a form: its Content-Type must be multipart/form-data.".to_owned()
            }
        })
    })
}

/// A body as it is received.
pub struct Incoming {
    body: Body,
    /// Bytes that were received and are not part of any part so far.
    overhead: Arc<AtomicUsize>,
    begun: bool,
    broken: bool,
}

/// Why no more bytes come.
#[derive(Clone, Debug, thiserror::Error)]
enum Broken {
    #[error("the body does not come to its end")]
    Off(ApiError),
    #[error("no part begins")]
    Overhead,
}

impl Incoming {
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self {
            body,
            overhead: Arc::default(),
            begun: false,
            broken: false,
        }
    }

    /// Whether any of it was asked for.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Reads the rest and drops it, within bounds.
    pub async fn drain(self) {
        if !self.broken {
            drain(self.body).await;
        }
    }

    async fn next(&mut self) -> Option<std::result::Result<Bytes, Broken>> {
        if self.begun {
            // `multer` reads on while there is something to read: let it stop after each frame.
            tokio::task::yield_now().await;
        }
        self.begun = true;
        let next = self.receive().await;
        self.broken = matches!(next, Some(Err(Broken::Off(_))));
        next
    }

    async fn receive(&mut self) -> Option<std::result::Result<Bytes, Broken>> {
        if self.overhead.load(Ordering::Relaxed) > OVERHEAD_BYTES_MAX {
            return Some(Err(Broken::Overhead));
        }
        loop {
            match self.body.frame().await?.map(|frame| frame.into_data()) {
                Ok(Ok(bytes)) => {
                    self.overhead.fetch_add(bytes.len(), Ordering::Relaxed);
                    return Some(Ok(bytes));
                }
                // Trailers, which say nothing here.
                Ok(Err(_)) => {}
                Err(cause) => return Some(Err(Broken::Off(error::broken_body(&cause)))),
            }
        }
    }
}

/// A form, part by part.
pub struct Form<'a> {
    form: multer::Multipart<'a>,
    overhead: Arc<AtomicUsize>,
    parts: usize,
}

impl<'a> Form<'a> {
    #[must_use]
    pub fn new(body: &'a mut Incoming, boundary: String) -> Self {
        let overhead = Arc::clone(&body.overhead);
        let frames = stream::unfold(body, |body| async {
            body.next().await.map(|frame| (frame, body))
        });
        Self {
            form: multer::Multipart::new(frames, boundary),
            overhead,
            parts: 0,
        }
    }

    /// The next part. The one before must have been read to its end.
    ///
    /// # Errors
    /// When the body is no such form, or does not come.
    pub async fn next(&mut self) -> Result<Option<Part<'a>>> {
        let Some(field) = self.form.next_field().await.map_err(broken)? else {
            return Ok(None);
        };
        self.overhead.store(0, Ordering::Relaxed);
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
        Ok(Some(Part {
            name: parameter(disposition, "name").unwrap_or_default(),
            filename: parameter(disposition, "filename"),
            overhead: Arc::clone(&self.overhead),
            field,
        }))
    }
}

/// One part of a form.
pub struct Part<'a> {
    pub name: String,
    /// What the client calls the file that it sends.
    pub filename: Option<String>,
    overhead: Arc<AtomicUsize>,
    field: multer::Field<'a>,
}

impl Part<'_> {
    /// The next bytes of its content; `None` at the end.
    ///
    /// # Errors
    /// When the content does not come, or breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let chunk = self.field.chunk().await.map_err(broken)?;
        self.overhead.store(0, Ordering::Relaxed);
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

fn broken(cause: multer::Error) -> ApiError {
    let message = match &cause {
        multer::Error::StreamReadFailed(cause) => match cause.downcast_ref::<Broken>() {
            Some(Broken::Off(error)) => return error.clone(),
            Some(Broken::Overhead) => {
                "The form has no part where one should begin, or one with too long headers."
            }
            None => "The body of the request broke off.",
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

/// A parameter of a `Content-Disposition` header. Clients escape quotes as `\"` or as `%22`, and
/// some do not escape a backslash.
fn parameter(header: &[u8], name: &str) -> Option<String> {
    let header = String::from_utf8_lossy(header);
    let (_, mut rest) = header.split_once(';')?;
    loop {
        let (key, value) = rest.split_once('=')?;
        let (value, behind) = value_of(value.trim_start());
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value.replace("%22", "\""));
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
    // Nothing closes it: the last quote was no escaped one.
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
            (
                "form-data; name=\"f\"; filename*=utf-8''x",
                "filename",
                None,
            ),
        ] {
            let found = parameter(header.as_bytes(), name);
            assert_eq!(found.as_deref(), value, "{name} in {header}");
        }
    }
}

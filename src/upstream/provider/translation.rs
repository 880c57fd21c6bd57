//! The way of a line to a provider with a form of its own, and of the answer back: what all such
//! providers do alike around what each does by itself.

use bytes::Bytes;

use super::chat::refused;
use super::http::{self, Head};
use super::interface::{Asked, Decoded, Encoded, Line, Request, Unsupported};
use super::stream::{Assembly, Fold};
use super::tree::Tree;
use crate::domain::clock;

/// Why a body that was a request when it was uploaded cannot be translated.
pub(super) const UNREADABLE: &str = "it cannot be read: it is nested deeper than 128 levels, or a key has half \
                          a surrogate pair";

/// What is sent for a line. `translate` makes the request of the line's body, and says what the
/// answer's translation needs to know.
pub(super) fn encode<'a>(
    line: &Line<'a>,
    translate: impl FnOnce(&Tree<'_>) -> Result<(String, Request), Unsupported>,
) -> Result<Encoded<'a>, Unsupported> {
    let body = line.edited();
    let text = std::str::from_utf8(&body).ok();
    let body = text.and_then(Tree::read);
    let body = body.ok_or_else(|| refused("body", UNREADABLE))?;
    let (out, mut request) = translate(&body)?;
    request.path = line.path;
    line.model.clone_into(&mut request.model);
    request.created = clock::seconds(line.clock.now_ms());
    Ok(Encoded::Translated {
        body: Bytes::from(out),
        asked: Asked(Box::new(request)),
    })
}

/// A request, with the wish for a stream where there is one.
pub(super) fn streamed(
    (request, mut asked): (String, Request),
    is_wanted: bool,
) -> (String, Request) {
    asked.streams |= is_wanted;
    if !asked.streams {
        return (request, asked);
    }
    let members = request.strip_prefix('{').unwrap_or_default();
    (format!("{{\"stream\":true,{members}"), asked)
}

/// Puts an answer together, if it was asked for as a stream.
pub(super) fn assembly<F: Fold + Default + 'static>(asked: Option<&Asked>) -> Option<Assembly> {
    let streams = asked.is_some_and(|asked| asked.0.streams);
    streams.then(|| Assembly::new(Box::<F>::default()))
}

/// Reads an answer: by `success` or by `failure`, as its status says.
pub(super) fn decode(
    head: &Head,
    body: Bytes,
    asked: Option<Asked>,
    success: fn(Bytes, Request) -> Decoded,
    failure: fn(&Head, Bytes) -> Decoded,
) -> Decoded {
    let request = asked.map_or_else(Request::default, |asked| *asked.0);
    let mut decoded = if head.is_success() {
        success(body, request)
    } else {
        failure(head, body)
    };
    decoded.request_id = http::request_id(&head.headers).map(str::to_owned);
    decoded
}

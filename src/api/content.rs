//! `/v1/files/{id}/content`: a file's bytes, whole or in part, streamed as fast as the client
//! reads them.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};

use super::Api;
use super::auth::Caller;
use super::error::{self, Envelope, Result};
use super::path::Id;
use super::range::{Wanted, has_it, wanted};
use crate::domain::file::Purpose;
use crate::store::StoredFile;
use crate::transfer;

/// Downloads a file's content.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    operation_id = "downloadFile",
    tag = "Files",
    params(
        ("file_id" = String, Path, description = "The file's id."),
        ("Range" = Option<String>, Header, description = "The part that is wanted, if not all."),
    ),
    responses(
        (status = 200, description = "The content.",
            content_type = "application/octet-stream", body = String),
        (status = 206, description = "The part that was asked for.",
            content_type = "application/octet-stream", body = String),
        (status = 304, description = "The client has it already (`If-None-Match`)."),
        (status = 400, description = "Files of its purpose are not given back.", body = Envelope),
        (status = 404, description = "The caller has no such file.", body = Envelope),
        (status = 416, description = "The file does not reach that part.", body = Envelope),
    ),
)]
pub async fn download(
    State(api): State<Api>,
    caller: Caller,
    Id(id): Id,
    method: Method,
    asked: HeaderMap,
) -> Result<Response> {
    let file = api.store.file_to_read(&caller.tenant, &id).await?;
    let file = file.ok_or_else(|| error::file_not_found(&id))?;
    if !file.purpose().is_some_and(Purpose::downloadable) {
        return Err(error::not_downloadable(&file.purpose));
    }
    let size = u64::try_from(file.bytes).unwrap_or(0);
    // The content of a file never changes.
    let etag = format!("\"{}\"", file.id);
    let mut headers = HeaderMap::from_iter([
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        (header::ETAG, value(&etag)),
    ]);
    if has_it(&asked, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let is_get = method == Method::GET;
    // Ranges are defined for GET alone.
    let wanted = if is_get {
        wanted(&asked, &etag, size)
    } else {
        Wanted::Whole
    };
    let (status, range) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(part) => {
            let (first, last) = (part.start, part.end - 1);
            let content_range = format!("bytes {first}-{last}/{size}");
            headers.insert(header::CONTENT_RANGE, value(&content_range));
            (StatusCode::PARTIAL_CONTENT, part)
        }
        Wanted::Unsatisfiable => {
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes */{size}")));
            return Ok((headers, error::range_not_satisfiable(size)).into_response());
        }
    };
    headers.insert(
        header::CONTENT_LENGTH,
        HeaderValue::from(range.end - range.start),
    );
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(
        header::CONTENT_DISPOSITION,
        value(&disposition(&file.filename)),
    );
    let body = if is_get {
        body(&api, &file, range).await?
    } else {
        Body::empty()
    };
    Ok((status, headers, body).into_response())
}

/// The bytes as a body. The first bytes are read before the answer begins, so that an error there
/// can be the answer. A later error breaks the connection off.
async fn body(api: &Api, file: &StoredFile, range: Range<u64>) -> Result<Body> {
    let mut blocks = Box::pin(transfer::content(&api.store, file, range));
    let Some(first) = blocks.next().await else {
        return Ok(Body::empty());
    };
    let id = file.id.clone();
    let blocks = stream::iter([Ok(first?)])
        .chain(blocks)
        .inspect(move |block| {
            if let Err(error) = block {
                tracing::error!(%error, file.id = id, "a download was broken off");
            }
        });
    Ok(Body::from_stream(blocks))
}

/// A header's value, from a text of visible ASCII and spaces alone.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The header that names the file for the client (RFC 6266): in ASCII, and in UTF-8 as well where
/// the name is not ASCII.
fn disposition(filename: &str) -> String {
    let plain: String = filename
        .chars()
        .map(|char| match char {
            '"' | '\\' => '_',
            ' '..='~' => char,
            _ => '_',
        })
        .collect();
    let mut text = format!("attachment; filename=\"{plain}\"");
    // Some clients read `%` within the quotes as the beginning of an escape.
    if plain != filename || plain.contains('%') {
        text.push_str("; filename*=UTF-8''");
        for byte in filename.bytes() {
            match byte {
                b'A'..=b'Z'
                | b'a'..=b'z'
                | b'0'..=b'9'
                | b'!'
                | b'#'
                | b'$'
                | b'&'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~' => text.push(char::from(byte)),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_in_ascii_and_if_need_be_in_utf_8() {
        for (name, expected) in [
            ("in put.jsonl", "attachment; filename=\"in put.jsonl\""),
            (
                "é\"\\.jsonl",
                "attachment; filename=\"___.jsonl\"; filename*=UTF-8''%C3%A9%22%5C.jsonl",
            ),
            (
                "a\r\nb",
                "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab",
            ),
            (
                "50%",
                "attachment; filename=\"50%\"; filename*=UTF-8''50%25",
            ),
        ] {
            assert_eq!(disposition(name), expected);
        }
    }
}

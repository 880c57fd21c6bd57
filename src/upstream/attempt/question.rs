//! What a call would ask, as a key: by which the answer to an equal line is found, whose call would
//! ask the same of the same upstream.

use std::borrow::Cow;

use crate::domain::clock::Clock;
use crate::domain::reuse::{self, Key, Mode, Place};
use crate::upstream::provider::{Encoded, Line};
use crate::upstream::target::Permit;

/// The key of a line whose `url` is `path`, for a tenant, at the target that was chosen. `None`: the
/// line is not to be answered by another's answer, in this mode, or has no key.
pub(in crate::upstream) fn key(
    clock: &Clock,
    permit: &Permit,
    tenant: &str,
    (path, body): (&'static str, &[u8]),
    mode: Mode,
) -> Option<Key> {
    let target = permit.target();
    let client = &*target.client;
    let line = Line {
        path,
        model: permit.backend().model(),
        body,
        edit: target.edit.as_deref(),
        clock,
    };
    let edited = line.edited();
    let edited = std::str::from_utf8(&edited).ok()?;
    let less = client.abilities.less(&line).ok()?;
    let body = less.as_ref().map_or(body, |less| &less.body);
    let taken = less.is_some().then(|| Line { body, ..line }.edited());
    let taken = taken.as_deref().map(std::str::from_utf8).transpose().ok()?;
    if !mode.takes(path, taken.unwrap_or(edited)) {
        return None;
    }
    let url = client.url(path, line.model);
    let place = Place {
        tenant,
        path,
        upstream: &client.name,
        url: url.as_str(),
        api_version: &client.api_version,
    };
    // What is left out for its model counts, because the line's warnings depend on it. So does
    // what is sent: what a model is said not to take may change.
    if client.provider.translations(path) == 0 {
        return place.key(edited, taken);
    }
    // What is sent depends on the provider's settings as well, and must be possible.
    let encode = |body| match client.provider.encode(&Line { body, ..line }) {
        Ok(Encoded::Translated { body, .. }) => Some(Some(body)),
        Ok(_) => Some(None),
        Err(_) => None,
    };
    let whole = encode(body)?;
    let sent = match reuse::without_left_out(path, std::str::from_utf8(body).ok()?) {
        Cow::Borrowed(_) => whole,
        Cow::Owned(bare) => encode(bare.as_bytes())?,
    };
    let sent = sent.as_deref().map(std::str::from_utf8).transpose().ok()?;
    place.key(edited, sent)
}

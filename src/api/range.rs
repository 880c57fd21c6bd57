//! Parts of a file, and files that the client has already: `Range`, `If-Range`, `If-None-Match`.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, header};

/// What a client wants of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    /// Never empty, and within the file.
    Part(Range<u64>),
    /// A part that the file does not reach.
    Unsatisfiable,
}

/// What the headers of a GET ask for. Several ranges, or a range that cannot be read, count as
/// none: HTTP allows the whole file as the answer.
#[must_use]
pub fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    let Some(range) = text(headers, header::RANGE) else {
        return Wanted::Whole;
    };
    // A date never matches, because files have no Last-Modified.
    if headers.contains_key(header::IF_RANGE) && text(headers, header::IF_RANGE) != Some(etag) {
        return Wanted::Whole;
    }
    parse(range, size).unwrap_or(Wanted::Whole)
}

/// Whether the client has the file already.
#[must_use]
pub fn has_it(headers: &HeaderMap, etag: &str) -> bool {
    let mut listed = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    listed.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// The text of a header that the request has exactly once.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then(|| value.trim())
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n`; `None` for anything else.
fn parse(range: &str, size: u64) -> Option<Wanted> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let part = if first.is_empty() {
        size.saturating_sub(number(last)?)..size
    } else {
        let first = number(first)?;
        let end = match last {
            "" => size,
            last => number(last)
                .filter(|&last| last >= first)?
                .saturating_add(1),
        };
        first..end.min(size)
    };
    Some(if part.is_empty() {
        Wanted::Unsatisfiable
    } else {
        Wanted::Part(part)
    })
}

/// A number of digits only. One that is too large counts as the largest.
fn number(digits: &str) -> Option<u64> {
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"file-1\"";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), value.parse().expect("a header's value")))
            .collect()
    }

    #[test]
    fn a_range_is_what_it_leaves_of_the_file() {
        for (range, expected) in [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-", Wanted::Part(0..10)),
            ("bytes=3-5", Wanted::Part(3..6)),
            ("bytes=3-99", Wanted::Part(3..10)),
            ("bytes=9-9", Wanted::Part(9..10)),
            ("bytes=-1", Wanted::Part(9..10)),
            ("bytes=-10", Wanted::Part(0..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("Bytes = 3-5", Wanted::Part(3..6)),
            ("bytes=0-99999999999999999999", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=10-12", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=5-3", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            let asked = headers(&[(header::RANGE, range)]);
            assert_eq!(wanted(&asked, ETAG, 10), expected, "{range:?}");
        }
        let asked = headers(&[(header::RANGE, "bytes=0-")]);
        assert_eq!(wanted(&asked, ETAG, 0), Wanted::Unsatisfiable);
        assert_eq!(wanted(&HeaderMap::new(), ETAG, 10), Wanted::Whole);
    }

    #[test]
    fn a_range_counts_only_for_the_file_it_is_of() {
        for (if_range, expected) in [
            (ETAG, Wanted::Part(1..2)),
            ("\"file-2\"", Wanted::Whole),
            ("W/\"file-1\"", Wanted::Whole),
            ("Wed, 21 Oct 2026 07:28:00 GMT", Wanted::Whole),
        ] {
            let asked = headers(&[(header::RANGE, "bytes=1-1"), (header::IF_RANGE, if_range)]);
            assert_eq!(wanted(&asked, ETAG, 10), expected, "{if_range}");
        }
    }

    #[test]
    fn a_file_that_the_client_has_is_known_by_its_tag() {
        for (tags, has) in [
            (ETAG, true),
            ("*", true),
            ("W/\"file-1\"", true),
            ("\"a\", \"file-1\"", true),
            ("\"a\"", false),
            ("file-1", false),
        ] {
            assert_eq!(
                has_it(&headers(&[(header::IF_NONE_MATCH, tags)]), ETAG),
                has,
                "{tags}"
            );
        }
        assert!(!has_it(&HeaderMap::new(), ETAG));
    }
}

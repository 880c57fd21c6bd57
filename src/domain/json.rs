//! JSON as text: looked into and rewritten without ever being built.
//!
//! What is JSON here is the grammar of RFC 8259, which is a little wider than what
//! `serde_json::Value` can hold: a number may be of any size, and an escape may be half of a
//! surrogate pair. Such text is passed on as it came.

mod canonical;
mod scan;

use std::borrow::Cow;

use memchr::memchr2_iter;
use serde::de::IgnoredAny;

pub use self::canonical::{canonical, is_zero};
use self::scan::{Scanner, plain};
pub use self::scan::{Shape, is_space};

/// Whether a text is one JSON value.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    shape(text).is_some()
}

/// How a text is written that is one JSON value. `None` if it is none.
#[must_use]
pub fn shape(text: &str) -> Option<Shape> {
    Scanner::new(text).single()
}

/// Why a text is not one JSON value; `None` where it is.
#[must_use]
pub fn error(text: &str) -> Option<serde_json::Error> {
    serde_json::from_str::<IgnoredAny>(text).err()
}

/// Where a text of one line stops being JSON, and why, as messages to users say it.
#[must_use]
pub fn reason(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let cause = text.strip_suffix(&place).unwrap_or(&text);
    format!("column {}: {cause}", error.column())
}

/// Why bytes are not one JSON value, and where they stop being one, in words. `None` if they are.
#[must_use]
pub fn fault(bytes: &[u8]) -> Option<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let read = serde_json::from_str::<IgnoredAny>(text);
            read.err().map(|error| error.to_string())
        }
        Err(error) => {
            let at = error.valid_up_to();
            Some(format!(
                "byte 0x{:02X} at offset {at} is not UTF-8",
                bytes[at]
            ))
        }
    }
}

/// Shows each member of a JSON object: its key, decoded, and its value as it is written, with no
/// white space around it. A key that stands twice is shown twice. Returns how the text is
/// written. `None` if the text as a whole is not one JSON object; some members may have been shown
/// by then.
pub fn members<'a>(text: &'a str, each: impl FnMut(&str, &'a str)) -> Option<Shape> {
    Scanner::new(text).object(each)
}

/// Shows the same, and each member of the object that is the member `within`, in one reading.
/// Whether the text as a whole is one JSON object; some members may have been shown if it is none.
#[must_use]
pub fn members_and_within<'a>(
    text: &'a str,
    within: &str,
    each: impl FnMut(&str, &'a str),
    inner: impl FnMut(&str, &'a str),
) -> bool {
    Scanner::new(text).object_and_within(within, each, inner)
}

/// Shows each item of a JSON array as it is written, with no white space around it. Returns how the
/// text is written. `None` if the text as a whole is not one JSON array; some items may have been
/// shown by then.
pub fn items<'a>(text: &'a str, each: impl FnMut(&'a str)) -> Option<Shape> {
    Scanner::new(text).array(each)
}

/// The text of a value that is a JSON string. `None` if it is another value, or has no text
/// because of half a surrogate pair.
#[must_use]
pub fn text(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if plain(inner.as_bytes()) == inner.len() {
        Some(Cow::Borrowed(inner))
    } else {
        serde_json::from_str(value).ok().map(Cow::Owned)
    }
}

/// What a value is, as messages to users say it.
#[must_use]
pub fn type_name(value: &str) -> &'static str {
    match value.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ if value.contains(['.', 'e', 'E']) => "a decimal",
        _ => "an integer",
    }
}

/// Whether a JSON text has an integer of more than `limit` digits.
#[must_use]
pub fn has_longer_integer(json: &str, limit: usize) -> bool {
    let bytes = json.as_bytes();
    // Every so many bytes one is looked at: a number that is too long has a digit there, and is
    // then looked at as a whole. Few texts have any.
    let mut at = limit;
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii_digit() && is_within_long_digits(bytes, at, limit) {
            return has_integer(bytes, limit);
        }
        at += limit;
    }
    false
}

/// Whether the digits around this one are more than `limit`.
fn is_within_long_digits(bytes: &[u8], at: usize, limit: usize) -> bool {
    let before = bytes[..at].iter().rev();
    let before = before.take_while(|byte| byte.is_ascii_digit()).count();
    let after = bytes[at..].iter();
    before + after.take_while(|byte| byte.is_ascii_digit()).count() > limit
}

/// The same, of a text that has so many digits in a row, be it in a string or behind a point.
fn has_integer(bytes: &[u8], limit: usize) -> bool {
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let rest = &bytes[at - 1..];
                let is_part = |byte: &u8| {
                    byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E')
                };
                let length = rest.iter().position(|byte| !is_part(byte));
                let number = &rest[..length.unwrap_or(rest.len())];
                let digits = number.strip_prefix(b"-").unwrap_or(number);
                if digits.len() > limit && digits.iter().all(u8::is_ascii_digit) {
                    return true;
                }
                at += number.len() - 1;
            }
            _ => {}
        }
    }
    false
}

/// Writes JSON without the white space between tokens, and on one line for every reader: the
/// characters that some clients take for the end of a line (U+0085, U+2028, U+2029) become escapes.
/// Numbers, the order of keys, and keys that stand twice stay as they are.
pub fn compact(json: &[u8], out: &mut Vec<u8>) {
    let (mut from, mut at) = (0, 0);
    while let Some(&byte) = json.get(at) {
        if is_space(byte) {
            push_escaped(&json[from..at], out);
            from = at + 1;
        }
        at += 1;
        if byte == b'"' {
            at = end_of_string(json, at);
        }
    }
    push_escaped(&json[from..], out);
}

/// Writes a text as a JSON string, on one line for every reader: see [`compact`].
pub fn string(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut rest = bytes;
    loop {
        let (characters, from) = rest.split_at(plain(rest));
        push_escaped(characters, out);
        let Some((&byte, behind)) = from.split_first() else {
            break;
        };
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            _ => out.extend(format!("\\u{byte:04x}").as_bytes()),
        }
        rest = behind;
    }
    out.push(b'"');
}

/// Where a string ends that began before `from`: behind its closing quote.
fn end_of_string(bytes: &[u8], mut from: usize) -> usize {
    while let Some(rest) = bytes.get(from..) {
        let at = from + plain(rest);
        match bytes.get(at) {
            Some(b'"') => return at + 1,
            Some(b'\\') => from = at + 2,
            Some(_) => from = at + 1,
            None => break,
        }
    }
    bytes.len()
}

/// Copies UTF-8 with U+0085, U+2028 and U+2029 as escapes. In JSON they stand only in strings, so
/// this is [`compact`] for JSON that is tight.
pub fn push_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.is_ascii() {
        out.extend_from_slice(bytes);
        return;
    }
    let mut from = 0;
    for at in memchr2_iter(0xC2, 0xE2, bytes) {
        let escape: &[u8; 6] = match &bytes[at..] {
            [0xC2, 0x85, ..] => b"\\u0085",
            [0xE2, 0x80, 0xA8, ..] => b"\\u2028",
            [0xE2, 0x80, 0xA9, ..] => b"\\u2029",
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..at]);
        out.extend_from_slice(escape);
        from = at + if bytes[at] == 0xC2 { 2 } else { 3 };
    }
    out.extend_from_slice(&bytes[from..]);
}

#[cfg(test)]
pub(crate) mod tests;

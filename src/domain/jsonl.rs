//! Files that are no JSON Lines: what a file is, as far as its first line shows, and what its owner
//! can do about it.

use std::fmt;

use super::json;

/// OpenAI's sentence about a file that is no JSON Lines.
const FORMAT: &str = "Invalid file format for Batch API. Must be .jsonl";
/// OpenAI's sentence about a file in another encoding.
const ENCODING: &str = "Invalid file for Batch API. Must be utf-8 encoded";

/// Some editors begin a file in UTF-8 with this mark.
pub(super) const BYTE_ORDER_MARK: &str = "\u{feff}";

/// What kinds of binary files begin with.
const SIGNATURES: [(&[u8], Kind); 11] = [
    (b"PK\x03\x04", Kind::Zip),
    (b"\xd0\xcf\x11\xe0", Kind::Office),
    (b"\x1f\x8b", Kind::Compressed("gzip")),
    (b"\x28\xb5\x2f\xfd", Kind::Compressed("zstd")),
    (b"BZh", Kind::Compressed("bzip2")),
    (b"\xfd7zXZ\0", Kind::Compressed("xz")),
    (b"7z\xbc\xaf\x27\x1c", Kind::Compressed("7-Zip")),
    (b"\x04\x22\x4d\x18", Kind::Compressed("lz4")),
    (b"PAR1", Kind::Other("a Parquet file")),
    (b"%PDF", Kind::Other("a PDF file")),
    (b"SQLite format 3", Kind::Other("an SQLite database")),
];

/// A file that cannot be the input of a batch. Its text is for who uploads it: OpenAI's sentence,
/// then what the file is and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotJsonl(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Empty,
    Utf16,
    /// A byte that is not UTF-8, and its place in the first line, from 1.
    NotUtf8 {
        byte: u8,
        place: usize,
    },
    Zip,
    Office,
    Compressed(&'static str),
    Other(&'static str),
    /// A JSON array that goes on after the first line.
    Array,
    /// A JSON object that goes on after the first line.
    Object,
    Markup,
    Table,
    NotJson(String),
}

impl NotJsonl {
    /// A file without any byte.
    pub const EMPTY: Self = Self(Kind::Empty);

    /// What is wrong with a file, as its first line shows that is not blank. `None` where that line
    /// is JSON. The batch reports a byte order mark, and everything behind the first line.
    #[must_use]
    pub fn of_first_line(line: &[u8]) -> Option<Self> {
        let signature = |(bytes, _): &&(&[u8], Kind)| line.starts_with(bytes);
        if let Some((_, kind)) = SIGNATURES.iter().find(signature) {
            return Some(Self(kind.clone()));
        }
        if is_utf16(line) {
            return Some(Self(Kind::Utf16));
        }
        let text = match std::str::from_utf8(line) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let byte = line.get(at).copied().unwrap_or_default();
                let place = at + 1;
                return Some(Self(Kind::NotUtf8 { byte, place }));
            }
        };
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim();
        let error = json::error(text)?;
        Some(Self(match text.chars().next() {
            Some('[') if error.is_eof() => Kind::Array,
            Some('{') if error.is_eof() => Kind::Object,
            Some('<') => Kind::Markup,
            Some('[' | '{') => Kind::NotJson(json::reason(&error)),
            _ if text.contains([',', ';', '\t']) => Kind::Table,
            _ => Kind::NotJson(json::reason(&error)),
        }))
    }

    /// What the file is, and what to do about it, be it uploaded or read from a disk.
    #[must_use]
    pub fn hint(&self) -> String {
        match &self.0 {
            Kind::Empty => "The file is empty: write one request on each line.".to_owned(),
            Kind::Utf16 => "The file is UTF-16: save it as UTF-8.".to_owned(),
            Kind::NotUtf8 { byte, place } => format!(
                "Byte {place} of the first line is 0x{byte:02X}, as in Windows-1252 or Latin-1: \
                 save the file as UTF-8."
            ),
            Kind::Zip => "The file is a zip archive, as .xlsx files are: export its requests as \
                JSON, one on each line."
                .to_owned(),
            Kind::Office => "The file is an Office document: export its requests as JSON, one on \
                each line."
                .to_owned(),
            Kind::Compressed(with) => {
                format!("The content is compressed with {with}: decompress it first.")
            }
            Kind::Other(what) => format!("The file is {what}: write one request on each line."),
            Kind::Array => "The file is a JSON array over several lines: write each element on a \
                line of its own, without commas between them (`jq -c '.[]' FILE`)."
                .to_owned(),
            Kind::Object => "The first line ends within a JSON object, as in pretty-printed JSON: \
                write each request on one line (`jq -c . FILE`)."
                .to_owned(),
            Kind::Markup => "The first line begins with `<`, as HTML and XML do: write one \
                request, a JSON object, on each line."
                .to_owned(),
            Kind::Table => "The first line is no JSON; it looks like a table (CSV): write one \
                request, a JSON object, on each line."
                .to_owned(),
            Kind::NotJson(error) => format!(
                "The first line is no JSON ({error}): write one request, a JSON object, on each \
                 line."
            ),
        }
    }
}

impl fmt::Display for NotJsonl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self.0 {
            Kind::Utf16 | Kind::NotUtf8 { .. } => ENCODING,
            _ => FORMAT,
        };
        write!(f, "{sentence}. {}", self.hint())?;
        if let Kind::Compressed(_) = self.0 {
            f.write_str(" Uploads may be compressed with gzip or zstd, once.")?;
        }
        Ok(())
    }
}

/// Whether a text is UTF-16: by its byte order mark, or by a NUL beside its first character, which
/// is `{` or another of ASCII in every file that is meant to be JSON.
fn is_utf16(line: &[u8]) -> bool {
    match line {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => true,
        [0, other, ..] | [other, 0, ..] => *other != 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(unit).collect()
    }

    #[test]
    fn a_file_that_is_no_json_lines_is_told_what_it_is() {
        let line = "{\"custom_id\":\"a\"}";
        let marked = format!("{BYTE_ORDER_MARK}{line}");
        for (first_line, sentence, hint) in [
            (utf16(&marked, u16::to_le_bytes), ENCODING, "is UTF-16"),
            (utf16(&marked, u16::to_be_bytes), ENCODING, "is UTF-16"),
            (utf16(line, u16::to_le_bytes), ENCODING, "is UTF-16"),
            (utf16(line, u16::to_be_bytes), ENCODING, "is UTF-16"),
            (b"{\"a\":\"caf\xe9\"}".to_vec(), ENCODING, "Byte 10"),
            (b"[".to_vec(), FORMAT, "JSON array over several lines"),
            (b"[{\"a\":1},".to_vec(), FORMAT, "JSON array over"),
            (b"{\r".to_vec(), FORMAT, "pretty-printed"),
            (b"{\"custom_id\": \"a\",".to_vec(), FORMAT, "pretty-printed"),
            (b"custom_id,body".to_vec(), FORMAT, "CSV"),
            (b"custom_id\tbody".to_vec(), FORMAT, "CSV"),
            (b"<html>".to_vec(), FORMAT, "HTML"),
            (b"PK\x03\x04\x14\0\x06".to_vec(), FORMAT, ".xlsx"),
            (b"\x1f\x8b\x08\0".to_vec(), FORMAT, "with gzip"),
            (b"PAR1\x15".to_vec(), FORMAT, "Parquet"),
            (b"{'a': 1}".to_vec(), FORMAT, "column 2"),
            (b"words".to_vec(), FORMAT, "no JSON"),
        ] {
            let found = NotJsonl::of_first_line(&first_line);
            let text = found.expect("it is refused").to_string();
            assert!(text.starts_with(&format!("{sentence}. ")), "{text}");
            assert!(text.contains(hint), "{hint}: {text}");
        }
    }

    #[test]
    fn only_an_upload_is_told_that_it_may_be_compressed() {
        let found = NotJsonl::of_first_line(b"\x1f\x8b\x08\0").expect("it is refused");
        assert!(found.to_string().contains("Uploads may be compressed"));
        assert!(found.hint().contains("compressed with gzip: decompress"));
        assert!(!found.hint().contains("Uploads"), "{}", found.hint());
    }

    #[test]
    fn a_first_line_of_json_is_for_the_batch_to_judge() {
        for line in ["{}", " {\"a\":1}\r", "[1]", "7", "\u{feff}{}"] {
            assert_eq!(NotJsonl::of_first_line(line.as_bytes()), None, "{line}");
        }
    }
}

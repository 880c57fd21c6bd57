//! Reads through JSON text once, and says where its values stand.
//!
//! What is JSON here is what `serde_json` takes for it when it ignores a value. Every line of a
//! batch is read so three times, as an upload, as a call and as an answer, and this reader takes a
//! third of the instructions.

use std::borrow::Cow;

use memchr::memchr2;

/// So many words of a string are looked at one by one: most strings end within them.
const NEAR_WORDS: usize = 4;
/// So many of the bytes beyond are looked at in one piece.
const PIECE_BYTES: usize = 256;

/// Whether a byte is white space between tokens.
#[must_use]
#[inline]
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// How a JSON text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How deep arrays and objects stand in each other: 0 where there are none.
    pub depth: usize,
    /// There is no white space between tokens.
    pub is_tight: bool,
}

pub(super) struct Scanner<'a> {
    text: &'a str,
    /// What is not passed yet.
    rest: &'a [u8],
    /// The closing brackets that are still to come, of the value that is passed.
    open: Vec<u8>,
    /// What was passed so far.
    shape: Shape,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            rest: text.as_bytes(),
            open: Vec::new(),
            shape: Shape {
                depth: 0,
                is_tight: true,
            },
        }
    }

    /// Reads an object, and shows each of its members: its key, decoded, and its value. `None`
    /// if the text as a whole is no object.
    pub(super) fn object(mut self, mut each: impl FnMut(&str, &'a str)) -> Option<Shape> {
        self.members(|scanner, key| {
            let from = scanner.at();
            scanner.value()?;
            each(key, &scanner.text[from..scanner.at()]);
            Some(())
        })?;
        self.end()?;
        Some(Shape {
            depth: self.shape.depth + 1,
            ..self.shape
        })
    }

    /// The same, and shows each member of the object that is the member `within`. Returns whether
    /// the text is an object.
    pub(super) fn object_and_within(
        mut self,
        within: &str,
        mut each: impl FnMut(&str, &'a str),
        mut inner: impl FnMut(&str, &'a str),
    ) -> bool {
        let read = self.members(|scanner, key| {
            let from = scanner.at();
            if key == within && scanner.rest.first() == Some(&b'{') {
                scanner.members(|scanner, key| {
                    let from = scanner.at();
                    scanner.value()?;
                    inner(key, &scanner.text[from..scanner.at()]);
                    Some(())
                })?;
            } else {
                scanner.value()?;
            }
            each(key, &scanner.text[from..scanner.at()]);
            Some(())
        });
        read.and_then(|()| self.end()).is_some()
    }

    /// Passes an object. `value` passes each value that begins here, of this key.
    fn members(&mut self, mut value: impl FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        self.expect(b'{')?;
        if self.passes(b'}') {
            return Some(());
        }
        loop {
            let key = self.key()?;
            self.pass_space();
            value(self, &key)?;
            match self.token()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// Reads an array, and shows each of its items. `None` if the text as a whole is no array.
    pub(super) fn array(mut self, mut each: impl FnMut(&'a str)) -> Option<Shape> {
        self.expect(b'[')?;
        if !self.passes(b']') {
            loop {
                self.pass_space();
                let from = self.at();
                self.value()?;
                each(&self.text[from..self.at()]);
                match self.token()? {
                    b',' => {}
                    b']' => break,
                    _ => return None,
                }
            }
        }
        self.end()?;
        Some(Shape {
            depth: self.shape.depth + 1,
            ..self.shape
        })
    }

    /// Reads one value. `None` if the text as a whole is none.
    pub(super) fn single(mut self) -> Option<Shape> {
        self.pass_space();
        self.value()?;
        self.end()?;
        Some(self.shape)
    }

    /// Passes a value that begins here.
    fn value(&mut self) -> Option<()> {
        loop {
            match self.take()? {
                b'"' => {
                    self.string()?;
                }
                first @ (b'{' | b'[') => {
                    // In ASCII a closing bracket stands two behind its opening one.
                    let close = first + 2;
                    self.open.push(close);
                    self.shape.depth = self.shape.depth.max(self.open.len());
                    if !self.passes(close) {
                        self.begin_item()?;
                        continue;
                    }
                    self.open.pop();
                }
                b't' => self.word(b"rue")?,
                b'f' => self.word(b"alse")?,
                b'n' => self.word(b"ull")?,
                first => self.number(first)?,
            }
            // Behind a value: the end of what it stands in, or another one.
            loop {
                let Some(&close) = self.open.last() else {
                    return Some(());
                };
                match self.token()? {
                    b',' => break,
                    byte if byte == close => {
                        self.open.pop();
                    }
                    _ => return None,
                }
            }
            self.begin_item()?;
        }
    }

    /// Passes what stands before a value within an object or an array.
    fn begin_item(&mut self) -> Option<()> {
        if self.open.last() == Some(&b'}') {
            self.expect(b'"')?;
            self.string()?;
            self.expect(b':')?;
        }
        self.pass_space();
        Some(())
    }

    /// Reads a key, and passes its colon. A key with half of a surrogate pair has no text, and is
    /// shown as an empty one: nobody looks for it.
    fn key(&mut self) -> Option<Cow<'a, str>> {
        self.expect(b'"')?;
        let from = self.at();
        let is_plain = self.string()?;
        let end = self.at();
        let key = if is_plain {
            Cow::Borrowed(&self.text[from..end - 1])
        } else {
            serde_json::from_str(&self.text[from - 1..end]).unwrap_or_default()
        };
        self.expect(b':')?;
        Some(key)
    }

    /// Passes the rest of a string, behind its opening quote. Whether each of its characters stands
    /// for itself.
    pub(super) fn string(&mut self) -> Option<bool> {
        let mut is_plain = true;
        loop {
            let (_, from) = self.rest.split_at(plain(self.rest));
            self.rest = from;
            match self.take()? {
                b'"' => return Some(is_plain),
                b'\\' => {
                    is_plain = false;
                    match self.take()? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                        b'u' => {
                            let (digits, behind) = self.rest.split_first_chunk::<4>()?;
                            if !digits.iter().all(u8::is_ascii_hexdigit) {
                                return None;
                            }
                            self.rest = behind;
                        }
                        _ => return None,
                    }
                }
                // A control character.
                _ => return None,
            }
        }
    }

    /// Passes the rest of a number.
    pub(super) fn number(&mut self, first: u8) -> Option<()> {
        let first = match first {
            b'-' => self.take()?,
            first => first,
        };
        match first {
            b'0' => {}
            b'1'..=b'9' => self.pass_digits(),
            _ => return None,
        }
        if let [b'.', behind @ ..] = self.rest {
            self.rest = behind;
            self.digits()?;
        }
        if let [b'e' | b'E', behind @ ..] = self.rest {
            self.rest = behind;
            if let [b'+' | b'-', behind @ ..] = self.rest {
                self.rest = behind;
            }
            self.digits()?;
        }
        Some(())
    }

    /// Passes one digit at least.
    fn digits(&mut self) -> Option<()> {
        let is_digit = self.take()?.is_ascii_digit();
        self.pass_digits();
        is_digit.then_some(())
    }

    fn pass_digits(&mut self) {
        while let [b'0'..=b'9', behind @ ..] = self.rest {
            self.rest = behind;
        }
    }

    /// Passes the rest of `true`, `false` or `null`.
    pub(super) fn word(&mut self, rest: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(rest)?;
        Some(())
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Option<()> {
        self.pass_space();
        self.rest.is_empty().then_some(())
    }

    /// The next byte that is no white space has to be this one.
    pub(super) fn expect(&mut self, byte: u8) -> Option<()> {
        (self.token()? == byte).then_some(())
    }

    /// Passes a byte, where the next one that is no white space is this one.
    pub(super) fn passes(&mut self, byte: u8) -> bool {
        self.pass_space();
        match self.rest {
            [first, behind @ ..] if *first == byte => {
                self.rest = behind;
                true
            }
            _ => false,
        }
    }

    /// The next byte that is no white space.
    pub(super) fn token(&mut self) -> Option<u8> {
        let byte = self.take()?;
        if byte > b' ' {
            return Some(byte);
        }
        self.token_behind_space(byte)
    }

    fn token_behind_space(&mut self, mut byte: u8) -> Option<u8> {
        while is_space(byte) {
            self.shape.is_tight = false;
            byte = self.take()?;
        }
        Some(byte)
    }

    pub(super) fn pass_space(&mut self) {
        while let [first, behind @ ..] = self.rest
            && is_space(*first)
        {
            self.rest = behind;
            self.shape.is_tight = false;
        }
    }

    pub(super) fn take(&mut self) -> Option<u8> {
        let (first, behind) = self.rest.split_first()?;
        self.rest = behind;
        Some(*first)
    }

    /// Where the next byte stands.
    pub(super) fn at(&self) -> usize {
        self.text.len() - self.rest.len()
    }
}

/// How many bytes from the first on stand for themselves in a JSON string: all but quotes,
/// backslashes and control characters.
#[inline]
pub(super) fn plain(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks();
    let near = &words[..words.len().min(NEAR_WORDS)];
    for (index, word) in near.iter().enumerate() {
        let special = specials(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let passed = near.len() * 8;
    passed + plain_far(&bytes[passed..])
}

/// The same of what may be many bytes.
fn plain_far(bytes: &[u8]) -> usize {
    let mut passed = 0;
    for piece in bytes.chunks(PIECE_BYTES) {
        let end = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
        let least = piece[..end]
            .iter()
            .fold(u8::MAX, |least, &byte| least.min(byte));
        if least < b' ' {
            let control = piece.iter().position(|&byte| byte < b' ');
            return passed + control.unwrap_or(end);
        }
        passed += end;
        if end < piece.len() {
            break;
        }
    }
    passed
}

/// The first of the eight bytes that is special has its highest bit set here; if none is, no bit is
/// set. The bits of the bytes behind the first one mean nothing.
#[inline]
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHEST_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    // A byte that is less than `limit` borrows from its highest bit, which none of these has.
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit));
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, b' ') | equal(b'"') | equal(b'\\')) & !word & HIGHEST_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_bytes_end_at_the_first_that_is_not_wherever_it_stands() {
        for length in [0, 1, 7, 8, 31, 32, 33, 40, 287, 288, 289, 700] {
            for special in [b'"', b'\\', b'\n', 0, 0x1F] {
                for other in [b'a', b' ', b'!', b'#', b'[', b']', 0x7F, 0x80, 0xA2, 0xFF] {
                    let mut bytes = vec![other; length];
                    assert_eq!(plain(&bytes), length);
                    bytes.push(special);
                    bytes.extend([b'"', b'\n', other]);
                    assert_eq!(
                        plain(&bytes),
                        length,
                        "{special} behind {length} of {other}"
                    );
                }
            }
        }
    }
}

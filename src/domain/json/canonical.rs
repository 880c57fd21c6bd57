//! One text for all texts that say the same: by which answers to equal requests are found again.

use std::borrow::Cow;
use std::ops::Range;

use super::scan::Scanner;

/// So deep values may stand in each other. What is nested deeper has no canonical form.
const DEPTH_MAX: usize = 128;

/// The canonical form of a JSON object: two objects have one form where they say the same. Neither
/// white space nor the order of keys, the spelling of a number or the escapes of a string make a
/// difference. All else does: numbers are compared by their exact values, however long they are,
/// and lists keep their order. Keys of the object itself that are in `left_out` make none either.
///
/// `None` where there is no such form: the text is no JSON object, an object in it has a key twice,
/// a string or a key is half of a surrogate pair, an exponent does not fit 64 bits, or values stand
/// in each other more than 128 deep.
#[must_use]
pub fn canonical(text: &str, left_out: &[&str]) -> Option<Vec<u8>> {
    let mut writer = Writer {
        text,
        scanner: Scanner::new(text),
        out: Vec::with_capacity(text.len()),
    };
    writer.scanner.expect(b'{')?;
    writer.object(1, left_out)?;
    writer.scanner.end()?;
    Some(writer.out)
}

/// Whether a JSON value is the number zero, however that is spelled.
#[must_use]
pub fn is_zero(value: &str) -> bool {
    let mut digits = value
        .bytes()
        .take_while(|byte| !matches!(byte, b'e' | b'E'));
    let starts = value.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    starts && digits.all(|byte| matches!(byte, b'0' | b'.' | b'-'))
}

struct Writer<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
    out: Vec<u8>,
}

/// Where a member stands in what was written: its key, and all of it.
struct Member {
    key: Range<usize>,
    whole: Range<usize>,
}

impl Writer<'_> {
    /// Writes the value that begins here. `depth`: how many arrays and objects it stands in.
    fn value(&mut self, depth: usize) -> Option<()> {
        self.scanner.pass_space();
        let from = self.scanner.at();
        match self.scanner.take()? {
            b'"' => self.string(),
            b'{' => self.object(depth + 1, &[]),
            b'[' => self.list(depth + 1),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            first => {
                self.scanner.number(first)?;
                number(&self.text[from..self.scanner.at()], &mut self.out)
            }
        }
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.scanner.word(&word[1..])?;
        self.out.extend(word);
        Some(())
    }

    /// Writes a string, of which the opening quote is passed.
    fn string(&mut self) -> Option<()> {
        let from = self.scanner.at();
        let is_plain = self.scanner.string()?;
        let end = self.scanner.at();
        let text: Cow<'_, str> = if is_plain {
            Cow::Borrowed(&self.text[from..end - 1])
        } else {
            Cow::Owned(serde_json::from_str(&self.text[from - 1..end]).ok()?)
        };
        // With as few escapes as there can be.
        serde_json::to_writer(&mut self.out, &text).ok()
    }

    /// Writes a list, of which the opening bracket is passed.
    fn list(&mut self, depth: usize) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.out.push(b'[');
        if !self.scanner.passes(b']') {
            loop {
                self.value(depth)?;
                match self.scanner.token()? {
                    b',' => self.out.push(b','),
                    b']' => break,
                    _ => return None,
                }
            }
        }
        self.out.push(b']');
        Some(())
    }

    /// Writes an object, of which the opening bracket is passed, by its keys in order.
    fn object(&mut self, depth: usize, left_out: &[&str]) -> Option<()> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.out.push(b'{');
        let begin = self.out.len();
        let mut members: Vec<Member> = Vec::new();
        if !self.scanner.passes(b'}') {
            loop {
                self.scanner.expect(b'"')?;
                let from = self.out.len();
                self.string()?;
                let key = from..self.out.len();
                self.scanner.expect(b':')?;
                self.out.push(b':');
                self.value(depth)?;
                self.out.push(b',');
                // Canonical keys without escapes are what they say between their quotes.
                let name = &self.out[key.start + 1..key.end - 1];
                if left_out.iter().any(|left_out| left_out.as_bytes() == name) {
                    self.out.truncate(from);
                } else {
                    let whole = from..self.out.len();
                    members.push(Member { key, whole });
                }
                match self.scanner.token()? {
                    b',' => {}
                    b'}' => break,
                    _ => return None,
                }
            }
        }
        self.sort(begin, members)?;
        self.out.push(b'}');
        Some(())
    }

    /// Puts the members of an object, written from `begin` on, in the order of their keys.
    fn sort(&mut self, begin: usize, mut members: Vec<Member>) -> Option<()> {
        let key = |member: &Member| &self.out[member.key.clone()];
        if members.is_sorted_by(|one, next| key(one) < key(next)) {
            return Some(());
        }
        members.sort_unstable_by(|one, other| key(one).cmp(key(other)));
        let is_twice = |pair: &[Member]| key(&pair[0]) == key(&pair[1]);
        if members.windows(2).any(is_twice) {
            return None;
        }
        let mut sorted = Vec::with_capacity(self.out.len() - begin);
        for member in members {
            sorted.extend_from_slice(&self.out[member.whole]);
        }
        self.out.truncate(begin);
        self.out.append(&mut sorted);
        Some(())
    }
}

/// Writes a number as its digits, without zeros at either end, and the power of ten behind them.
fn number(written: &str, out: &mut Vec<u8>) -> Option<()> {
    let (digits, exponent) = match written.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i64>().ok()?),
        None => (written, 0),
    };
    let (is_negative, digits) = match digits.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, digits),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let from = out.len();
    if is_negative {
        out.push(b'-');
    }
    let all = whole.bytes().chain(fraction.bytes());
    out.extend(all.skip_while(|&digit| digit == b'0'));
    let first = from + usize::from(is_negative);
    if out.len() == first {
        out.truncate(from);
        out.push(b'0');
        return Some(());
    }
    let zeros = out[first..]
        .iter()
        .rev()
        .take_while(|&&digit| digit == b'0');
    let zeros = zeros.count();
    out.truncate(out.len() - zeros);
    let behind = i64::try_from(fraction.len()).ok()?;
    let exponent = exponent
        .checked_sub(behind)?
        .checked_add(i64::try_from(zeros).ok()?)?;
    out.extend(format!("e{exponent}").as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        canonical(text, &[]).map(|form| String::from_utf8(form).expect("UTF-8"))
    }

    /// Whether two values say the same, as a member and within a list.
    fn is_same(one: &str, other: &str) -> bool {
        let [one, other] = [one, other].map(|value| {
            of(&format!("{{\"a\":{value},\"b\":[{value}]}}")).expect("has a canonical form")
        });
        one == other
    }

    #[test]
    fn the_spelling_of_a_number_makes_no_difference() {
        for (one, other) in [
            ("1", "1.0"),
            ("1", "1e0"),
            ("100", "1E+2"),
            ("0.5", "5e-1"),
            ("0.50", "0.5"),
            ("0", "-0"),
            ("0", "0.000e99"),
            ("-1.20", "-12e-1"),
            ("9007199254740993", "9007199254740993.0"),
            ("1e400", "10e399"),
        ] {
            assert!(is_same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn every_other_value_makes_a_difference() {
        for (one, other) in [
            ("1", "-1"),
            ("1", "10"),
            ("1", "\"1\""),
            ("9007199254740992", "9007199254740993"),
            ("0.1", "0.10000000000000001"),
            ("1e400", "1e401"),
            ("null", "false"),
            ("\"\"", "null"),
            ("\"\"", "[]"),
            ("[]", "{}"),
            ("[1,2]", "[2,1]"),
            ("[\"\"]", "[]"),
            ("[\"\",\"\"]", "[\"\"]"),
            ("\"a\"", "\"A\""),
            ("\"\\u00e9\"", "\"e\\u0301\""),
            ("[[1],2]", "[1,[2]]"),
            ("[12]", "[1,2]"),
            ("{\"a\":null}", "{}"),
        ] {
            assert!(!is_same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn neither_white_space_nor_escapes_nor_the_order_of_keys_make_a_difference() {
        let tight = r#"{"a":{"x":"é\u2028","y":[true]},"b\"":1}"#;
        let loose = "\t{ \"b\\u0022\" : 1.0 ,\n\"a\":{\"y\":[ true ],\"x\":\"\\u00e9\u{2028}\"} } ";
        assert_eq!(of(tight), of(loose));
        assert!(of(tight).is_some());
    }

    #[test]
    fn keys_are_left_out_at_the_top_alone() {
        let form = |text| canonical(text, &["user", "store"]);
        let bare = form(r#"{"a":{"user":1}}"#);
        assert_eq!(form(r#"{"store":true,"a":{"user":1},"user":"x"}"#), bare);
        assert_ne!(form(r#"{"a":{"user":2}}"#), bare);
        assert_ne!(form(r#"{"a":{}}"#), bare);
    }

    #[test]
    fn what_has_two_readings_has_no_form() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"b":1,"a":{"x":1,"y":2,"x":1}}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"\ud800":1}"#,
            r#"{"a":1e99999999999999999999}"#,
            r#"{"a":1"#,
            r#"{"a":1} 2"#,
            r#"{"a":01}"#,
            "[]",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(of(&nested(127)).is_some());
        assert_eq!(of(&nested(128)), None);
    }

    #[test]
    fn zero_is_known_however_it_is_spelled() {
        for zero in ["0", "0.0", "-0", "0e7", "0.00E-3"] {
            assert!(is_zero(zero), "{zero}");
        }
        for other in ["1", "0.1", "1e-400", "\"0\"", "null", "[0]", "10"] {
            assert!(!is_zero(other), "{other}");
        }
    }
}

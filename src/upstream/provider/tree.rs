//! JSON as a tree that keeps what nobody changes: numbers and strings as they are written, and
//! members in their order, which models see in the schemas of tools and answers.

use std::borrow::Cow;

use memchr::memchr2;

use crate::domain::json;

/// How deep lists and objects may stand in each other.
const DEPTH_MAX: usize = 128;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree<'a> {
    /// A string, a number, `true`, `false` or `null`, as it is written. Also any other value that
    /// is passed on unread.
    Plain(Cow<'a, str>),
    List(Vec<Tree<'a>>),
    Object(Vec<Member<'a>>),
}

/// A member of an object: its key, decoded, and its value.
pub(super) type Member<'a> = (Cow<'a, str>, Tree<'a>);

impl<'a> Tree<'a> {
    /// Reads a text. `None` if it is not JSON, is nested deeper than 128 levels, or has a key with
    /// half a surrogate pair.
    pub(super) fn read(text: &'a str) -> Option<Self> {
        if !json::is_valid(text) {
            return None;
        }
        Reader { text, at: 0 }.value(0)
    }

    /// The same, without the text that it was read from.
    pub(super) fn into_owned(self) -> Tree<'static> {
        match self {
            Self::Plain(text) => Tree::Plain(Cow::Owned(text.into_owned())),
            Self::List(items) => Tree::List(items.into_iter().map(Tree::into_owned).collect()),
            Self::Object(members) => {
                let members = members.into_iter();
                let members =
                    members.map(|(key, value)| (Cow::Owned(key.into_owned()), value.into_owned()));
                Tree::Object(members.collect())
            }
        }
    }

    /// About how many bytes it takes where it owns what it says.
    pub(super) fn weight(&self) -> usize {
        let within = match self {
            Self::Plain(text) => text.len(),
            Self::List(items) => items.iter().map(Tree::weight).sum(),
            Self::Object(members) => {
                let members = members.iter();
                members
                    .map(|(key, value)| size_of_val(key) + key.len() + value.weight())
                    .sum()
            }
        };
        size_of::<Self>() + within
    }

    pub(super) fn null() -> Self {
        Self::Plain(Cow::Borrowed("null"))
    }

    pub(super) fn string(text: &str) -> Self {
        let mut written = Vec::with_capacity(text.len() + 2);
        json::string(text, &mut written);
        // What is written of a text is a text.
        Self::Plain(Cow::Owned(String::from_utf8(written).unwrap_or_default()))
    }

    pub(super) fn number(number: impl ToString) -> Self {
        Self::Plain(Cow::Owned(number.to_string()))
    }

    pub(super) fn boolean(value: bool) -> Self {
        Self::Plain(Cow::Borrowed(if value { "true" } else { "false" }))
    }

    pub(super) fn object<const N: usize>(members: [(&'a str, Tree<'a>); N]) -> Self {
        let members = members.into_iter();
        Self::Object(
            members
                .map(|(key, value)| (Cow::Borrowed(key), value))
                .collect(),
        )
    }

    /// The value of a member; `None` if there is none, it is null, or this is no object. Of a key
    /// that stands twice the last counts, as with most readers.
    pub(super) fn get(&self, key: &str) -> Option<&Tree<'a>> {
        let mut members = self.members()?.iter().rev();
        let (_, value) = members.find(|(known, _)| known == key)?;
        (!value.is_null()).then_some(value)
    }

    /// Sets a member.
    pub(super) fn set(&mut self, key: &'a str, value: Tree<'a>) {
        if let Self::Object(members) = self {
            members.retain(|(known, _)| known != key);
            members.push((Cow::Borrowed(key), value));
        }
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Self::Object(members) = self {
            members.retain(|(known, _)| known != key);
        }
    }

    pub(super) fn members(&self) -> Option<&[Member<'a>]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Tree<'a>]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.is_plain("null")
    }

    /// Whether it is this scalar, as it is written.
    pub(super) fn is_plain(&self, written: &str) -> bool {
        matches!(self, Self::Plain(text) if text == written)
    }

    /// The text of a string. `None` if it is no string, or has half a surrogate pair.
    pub(super) fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Plain(written) => json::text(written),
            _ => None,
        }
    }

    /// Whether it is a string of this text.
    pub(super) fn is_text(&self, text: &str) -> bool {
        self.text().is_some_and(|own| own == text)
    }

    pub(super) fn is_string(&self) -> bool {
        matches!(self, Self::Plain(written) if written.starts_with('"'))
    }

    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Self::Plain(written) => written.parse().ok(),
            _ => None,
        }
    }

    /// A whole number, be it written `7`, `7.0` or `7e0`.
    pub(super) fn whole(&self) -> Option<u64> {
        let Self::Plain(written) = self else {
            return None;
        };
        let exact = written.parse().ok();
        exact.or_else(|| {
            let number: f64 = written.parse().ok()?;
            (number >= 0.0 && number.fract() == 0.0 && number < 1e15).then_some(number as u64)
        })
    }

    /// As text.
    pub(super) fn written(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Plain(written) => out.push_str(written),
            Self::List(items) => {
                out.push('[');
                for (place, item) in items.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (place, (key, value)) in members.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    Tree::string(key).write(out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

/// Reads a text that is known to be JSON.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Option<Tree<'a>> {
        if depth > DEPTH_MAX {
            return None;
        }
        match self.next()? {
            b'{' => {
                let mut members = Vec::new();
                self.at += 1;
                while self.next()? != b'}' {
                    let key = json::text(self.plain()?)?;
                    self.next()?;
                    self.at += 1; // the colon
                    members.push((key, self.value(depth + 1)?));
                    self.skip_comma()?;
                }
                self.at += 1;
                Some(Tree::Object(members))
            }
            b'[' => {
                let mut items = Vec::new();
                self.at += 1;
                while self.next()? != b']' {
                    items.push(self.value(depth + 1)?);
                    self.skip_comma()?;
                }
                self.at += 1;
                Some(Tree::List(items))
            }
            _ => self.plain().map(|text| Tree::Plain(Cow::Borrowed(text))),
        }
    }

    /// The next byte that is no white space.
    fn next(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            if !json::is_space(byte) {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    fn skip_comma(&mut self) -> Option<()> {
        if self.next()? == b',' {
            self.at += 1;
        }
        Some(())
    }

    /// A scalar, as it is written.
    fn plain(&mut self) -> Option<&'a str> {
        let (begin, bytes) = (self.at, self.text.as_bytes());
        if *bytes.get(begin)? == b'"' {
            let mut at = begin + 1;
            loop {
                at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
                if bytes[at] == b'"' {
                    break;
                }
                at += 2; // the backslash, and what it escapes
            }
            self.at = at + 1;
        } else {
            let is_end = |byte: &u8| json::is_space(*byte) || matches!(byte, b',' | b']' | b'}');
            let rest = bytes.get(begin..)?;
            self.at += rest.iter().position(is_end).unwrap_or(rest.len());
        }
        self.text.get(begin..self.at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn scalars_and_order_stay_as_they_are_written() {
        let text = "\t{ \"b\" : 1.50e+2, \"a\\u0062\":\"\\ud800 \\\" \\\\\" ,\"c\":[ ] , \"d\":{}, \
                    \"e\":[1 ,-0.0, null,true] } ";
        let tree = Tree::read(text).expect("JSON");
        assert_eq!(
            tree.written(),
            r#"{"b":1.50e+2,"ab":"\ud800 \" \\","c":[],"d":{},"e":[1,-0.0,null,true]}"#
        );
    }

    #[test]
    fn what_is_nested_too_deep_or_is_no_json_is_not_read() {
        let nested = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
        let read = |depth| Tree::read(std::str::from_utf8(&nested(depth)).expect("text")).is_some();
        assert!(read(DEPTH_MAX));
        assert!(!read(DEPTH_MAX + 2));
        for text in ["", "{", "[1,]", "nul", "{\"\\ud800\":1}", "1 2"] {
            assert_eq!(Tree::read(text), None, "{text}");
        }
    }

    #[test]
    fn of_a_key_that_stands_twice_the_last_counts_and_null_is_not_there() {
        let tree = Tree::read(r#"{"a":1,"a":2,"b":3,"b":null}"#).expect("JSON");
        assert_eq!(tree.get("a").and_then(Tree::whole), Some(2));
        assert_eq!(tree.get("b"), None);
    }

    proptest! {
        #[test]
        fn a_tree_says_what_its_text_says(text in json::tests::texts()) {
            let Some(tree) = Tree::read(&text) else {
                return Ok(());
            };
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let again: Value = serde_json::from_str(&tree.written()).expect("JSON");
                prop_assert_eq!(again, value);
            }
            prop_assert!(json::is_valid(&tree.written()));
        }
    }
}

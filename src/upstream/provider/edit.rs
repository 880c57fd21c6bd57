//! Changes the body of a request: renames its model, adds keys that it leaves out, and writes over
//! others. The new bytes are spliced in.
//!
//! Only the values of top-level keys that are written over are replaced. All other bytes stay as
//! the user wrote them: the order of keys, numbers and white space. Most requests need no change,
//! and are sent without a copy.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::domain::json;
use crate::upstream::limits::rate::MAX_OUTPUT;

const MODEL: &str = "model";
/// The two keys for one thing: servers that know one only know the older.
const MAX_TOKENS: &str = "max_tokens";
const MAX_COMPLETION_TOKENS: &str = "max_completion_tokens";
const QUOTED_MAX_TOKENS: &str = "\"max_tokens\"";

/// Under which key the limit of an answer's length is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Under the one that was written.
    Written,
    /// Under `max_tokens`, for a server that knows no `max_completion_tokens`. A body that has both
    /// stays as it is.
    MaxTokens,
    /// What the edit says goes under the endpoint's own key: lines of several endpoints may go by
    /// one route. What the body says stays as it is.
    OfEndpoint(&'static str),
}

impl Spelling {
    pub(super) fn of(path: &str, only_max_tokens: bool) -> Self {
        match path {
            "/v1/responses" => Spelling::OfEndpoint("max_output_tokens"),
            "/v1/messages" => Spelling::OfEndpoint(MAX_TOKENS),
            _ if only_max_tokens => Spelling::MaxTokens,
            _ => Spelling::Written,
        }
    }

    fn of_body(self, key: &str) -> &str {
        match key {
            MAX_COMPLETION_TOKENS if self == Spelling::MaxTokens => MAX_TOKENS,
            _ => key,
        }
    }

    fn of_edit(self, member: &Member) -> &str {
        match self {
            Spelling::OfEndpoint(key) if MAX_OUTPUT.contains(&member.key.as_str()) => key,
            _ => self.of_body(&member.key),
        }
    }
}

/// What a route changes in the body of a request.
#[derive(Debug)]
pub(in crate::upstream) struct Edit {
    /// Members to add where the key is missing.
    defaults: Vec<Member>,
    /// Members that replace what the request says, and are added where the key is missing. The new
    /// name of the model is one.
    overrides: Vec<Member>,
    /// How long an answer may be that either asks for: a line's own limit stands between the two.
    filled_in: Option<u64>,
    written_over: Option<u64>,
}

/// Changes nothing by itself.
pub(in crate::upstream) static NOTHING: Edit = Edit {
    defaults: Vec::new(),
    overrides: Vec::new(),
    filled_in: None,
    written_over: None,
};

/// A top-level member of a body.
#[derive(Debug)]
struct Member {
    key: String,
    /// As it is written: `"key":value`.
    text: String,
    /// Where the value begins in the text.
    value: usize,
}

impl Member {
    fn new(key: &str, value: &Value) -> Self {
        let mut text = quoted(key);
        text.push(':');
        let begin = text.len();
        text.push_str(&value.to_string());
        Self {
            key: key.to_owned(),
            text,
            value: begin,
        }
    }

    fn value(&self) -> &str {
        &self.text[self.value..]
    }
}

impl Edit {
    /// `model`: what the upstream calls the model. Defaults and overrides in their order: what
    /// comes later wins. `None` if there is nothing to change.
    pub(in crate::upstream) fn new(
        model: Option<&str>,
        defaults: &[&Map<String, Value>],
        overrides: &[&Map<String, Value>],
    ) -> Option<Self> {
        let mut overrides = merged(overrides);
        if let Some(model) = model {
            overrides.insert(MODEL, Value::from(model));
        }
        let mut defaults = merged(defaults);
        defaults.retain(|key, _| !overrides.contains_key(key));
        if defaults.is_empty() && overrides.is_empty() {
            return None;
        }
        let members = |all: BTreeMap<&str, Value>| -> Vec<Member> {
            let all = all.iter();
            all.map(|(key, value)| Member::new(key, value)).collect()
        };
        let (defaults, overrides) = (members(defaults), members(overrides));
        Some(Self {
            filled_in: most_output(&defaults),
            written_over: most_output(&overrides),
            defaults,
            overrides,
        })
    }

    /// Whether what the request says under this key is written over.
    pub(in crate::upstream) fn writes_over(&self, key: &str) -> bool {
        self.overrides.iter().any(|member| member.key == key)
    }

    /// How long an answer may be that is asked for, where the request itself states so much.
    pub(in crate::upstream) fn max_output(&self, stated: Option<u64>) -> Option<u64> {
        self.written_over.or(stated).or(self.filled_in)
    }

    /// The member of this key, if there is one.
    fn member(&self, key: &str) -> Option<&Member> {
        let mut members = self.overrides.iter().chain(&self.defaults);
        members.find(|member| member.key == key)
    }

    /// How the body is to be changed. `None` if no change is needed, or if the body is no JSON
    /// object, which the check at the upload excludes.
    pub(super) fn splice<'a>(&'a self, body: &'a [u8], spelling: Spelling) -> Option<Splice<'a>> {
        splice(&NOTHING, self, body, spelling)
    }
}

/// The most of what members say of how long an answer may be.
fn most_output(members: &[Member]) -> Option<u64> {
    let members = members.iter();
    let members = members.filter(|member| MAX_OUTPUT.contains(&member.key.as_str()));
    let limits = members.filter_map(|member| member.value().parse().ok());
    limits.max()
}

/// How the body is to be changed by two edits, of which the first wins.
pub(super) fn splice<'a>(
    above: &'a Edit,
    below: &'a Edit,
    body: &'a [u8],
    spelling: Spelling,
) -> Option<Splice<'a>> {
    let text = std::str::from_utf8(body).ok()?;
    let count = |edit: &Edit| edit.overrides.len() + edit.defaults.len();
    let count = count(above) + count(below);
    let (mut replaced, mut is_first) = (Vec::with_capacity(count), true);
    let (mut renamed, mut has_both) = (Vec::new(), false);
    let is_not_above = |member: &&Member| above.member(&member.key).is_none();
    let overrides = || {
        let of_below = below.overrides.iter().filter(is_not_above);
        above.overrides.iter().chain(of_below)
    };
    let of_below = below.defaults.iter().filter(is_not_above);
    let mut added = Vec::with_capacity(count);
    added.extend(overrides().chain(&above.defaults).chain(of_below));
    json::members(text, |key, value| {
        is_first = false;
        // A value is a piece of the body, so its address shows where it stands there.
        let start = value.as_ptr().addr() - text.as_ptr().addr();
        let sent = spelling.of_body(key);
        if sent != key {
            renamed.extend(key_before(text, start));
        }
        has_both |= key == MAX_TOKENS;
        added.retain(|member| spelling.of_edit(member) != sent);
        let mut overrides = overrides();
        if let Some(member) = overrides.find(|member| spelling.of_edit(member) == sent) {
            replaced.push((start..start + value.len(), member.value()));
        }
    })?;
    if !has_both && !renamed.is_empty() {
        let renamed = renamed.into_iter();
        replaced.extend(renamed.map(|place| (place, QUOTED_MAX_TOKENS)));
        replaced.sort_by_key(|(place, _)| place.start);
    }
    if spelling != Spelling::Written {
        // Two keys for one thing: what wins stands first.
        let mut keys = Vec::with_capacity(added.len());
        added.retain(|member| {
            let key = spelling.of_edit(member);
            let is_new = !keys.contains(&key);
            keys.push(key);
            is_new
        });
    }
    if added.is_empty() && replaced.is_empty() {
        return None;
    }
    Some(Splice {
        body,
        replaced,
        added,
        spelling,
        end: text.rfind('}')?,
        is_first,
    })
}

/// Where the key of a value stands, with its quotes. The key has no quote in it.
fn key_before(text: &str, value: usize) -> Option<Range<usize>> {
    let end = text[..value].trim_end().strip_suffix(':')?.trim_end().len();
    let start = text[..end.checked_sub(1)?].rfind('"')?;
    Some(start..end)
}

/// All members, the later ones in place of the earlier.
fn merged<'m>(maps: &[&'m Map<String, Value>]) -> BTreeMap<&'m str, Value> {
    let members = maps.iter().flat_map(|map| map.iter());
    members
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect()
}

/// What a changed copy of a body is made of.
#[derive(Debug)]
pub(in crate::upstream) struct Splice<'a> {
    body: &'a [u8],
    /// Where values and keys are replaced, in order, and by what. A key may stand twice.
    replaced: Vec<(Range<usize>, &'a str)>,
    /// The members to add, and how their keys are spelt.
    added: Vec<&'a Member>,
    spelling: Spelling,
    /// Where they are added: the place of the closing brace.
    end: usize,
    /// Whether the object has no members yet.
    is_first: bool,
}

impl Splice<'_> {
    /// How many bytes the copy takes.
    pub(in crate::upstream) fn len(&self) -> usize {
        let removed: usize = self.replaced.iter().map(|(place, _)| place.len()).sum();
        let written: usize = self.replaced.iter().map(|(_, value)| value.len()).sum();
        let added: usize = self.added().map(|text| text.len() + 1).sum();
        let commas = usize::from(self.is_first && !self.added.is_empty());
        self.body.len() - removed + written + added - commas
    }

    /// The members to add, as they are written.
    fn added(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let added = self.added.iter();
        added.map(|member| match self.spelling.of_edit(member) {
            key if key == member.key => Cow::Borrowed(member.text.as_str()),
            key => Cow::Owned(format!("{}:{}", quoted(key), member.value())),
        })
    }

    /// Makes the copy.
    pub(in crate::upstream) fn copy(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.len());
        let mut copied = 0;
        for (place, value) in &self.replaced {
            out.extend_from_slice(&self.body[copied..place.start]);
            out.extend_from_slice(value.as_bytes());
            copied = place.end;
        }
        out.extend_from_slice(&self.body[copied..self.end]);
        for (index, text) in self.added().enumerate() {
            if index > 0 || !self.is_first {
                out.push(b',');
            }
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(&self.body[self.end..]);
        out.into()
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("no object: {other}"),
        }
    }

    fn edit(model: Option<&str>, defaults: Value) -> Edit {
        Edit::new(model, &[&object(defaults)], &[]).expect("there is something to change")
    }

    fn check(model: Option<&str>, defaults: Value, body: &str, expected: &str) {
        let out = apply(&edit(model, defaults), body.as_bytes()).expect("a copy");
        assert_eq!(std::str::from_utf8(&out).expect("UTF-8"), expected);
    }

    /// The changed copy, if one is needed.
    fn apply(edit: &Edit, body: &[u8]) -> Option<Bytes> {
        let splice = edit.splice(body, Spelling::Written)?;
        let copy = splice.copy();
        assert_eq!(copy.len(), splice.len(), "known before it is made");
        Some(copy)
    }

    #[test]
    fn nothing_to_change_is_no_edit() {
        let nothing = Map::new();
        assert!(Edit::new(None, &[&nothing], &[&nothing]).is_none());
    }

    #[test]
    fn the_model_is_renamed_and_every_other_byte_kept() {
        check(
            Some("meta/L\"3"),
            json!({}),
            "\t{ \"x\" : 1.50e+2,\"model\" :  \"a\" , \"b\":{\"model\":\"a\"} }\n",
            "\t{ \"x\" : 1.50e+2,\"model\" :  \"meta/L\\\"3\" , \"b\":{\"model\":\"a\"} }\n",
        );
    }

    #[test]
    fn a_model_key_that_is_escaped_or_twice_there_is_found() {
        let body = r#"{"m\u006fdel":"a","model":null}"#;
        check(
            Some("b"),
            json!({}),
            body,
            r#"{"m\u006fdel":"b","model":"b"}"#,
        );
    }

    #[test]
    fn a_missing_model_is_added() {
        check(
            Some("b"),
            json!({}),
            r#"{"input":"x"}"#,
            r#"{"input":"x","model":"b"}"#,
        );
        check(Some("b"), json!({}), "{ }", r#"{ "model":"b"}"#);
    }

    #[test]
    fn defaults_fill_in_only_what_is_missing() {
        let defaults = json!({"temperature": 0.3, "seed": 7});
        check(
            Some("b"),
            defaults.clone(),
            r#"{"model":"a","temperature":null}"#,
            r#"{"model":"b","temperature":null,"seed":7}"#,
        );
        check(None, defaults, "{}", r#"{"seed":7,"temperature":0.3}"#);
    }

    #[test]
    fn a_default_model_gives_way_to_a_renaming() {
        check(Some("b"), json!({"model": "c"}), "{}", r#"{"model":"b"}"#);
        check(None, json!({"model": "c"}), "{}", r#"{"model":"c"}"#);
    }

    #[test]
    fn overrides_are_written_over_what_the_request_says_and_the_rest_is_kept() {
        let overrides = object(json!({"store": false, "user": {"id": 1}}));
        let edit = Edit::new(None, &[], &[&overrides]).expect("there is something to change");
        for (body, expected) in [
            (
                "{ \"store\" :  [true, {}] ,\n\"x\":1.50, \"store\":null}",
                "{ \"store\" :  false ,\n\"x\":1.50, \"store\":false,\"user\":{\"id\":1}}",
            ),
            (
                r#"{"user":"u","a":{"store":true}}"#,
                r#"{"user":{"id":1},"a":{"store":true},"store":false}"#,
            ),
            ("{}", r#"{"store":false,"user":{"id":1}}"#),
        ] {
            let out = apply(&edit, body.as_bytes()).expect("a copy");
            assert_eq!(std::str::from_utf8(&out).expect("UTF-8"), expected);
        }
    }

    #[test]
    fn the_later_of_two_settings_wins_and_an_override_wins_over_a_default() {
        let [first, second] = [json!({"a": 1, "b": 1}), json!({"b": 2, "c": 2})].map(object);
        let over = object(json!({"c": 3}));
        let edit = Edit::new(Some("m"), &[&first, &second], &[&second, &over]);
        let out = apply(&edit.expect("an edit"), br#"{"a":0,"c":0}"#).expect("a copy");
        let out: Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(out, json!({"a": 0, "b": 2, "c": 3, "model": "m"}));
    }

    #[test]
    fn a_limit_of_the_answer_goes_under_the_key_that_the_endpoint_has() {
        let filled = object(json!({"max_tokens": 500}));
        let filled = Edit::new(None, &[&filled], &[]).expect("an edit");
        let both = object(json!({"max_tokens": 9, "max_completion_tokens": 9}));
        let both = Edit::new(None, &[], &[&both]).expect("an edit");
        let responses = "/v1/responses";
        for (path, edit, body, expected) in [
            (responses, &filled, "{}", r#"{"max_output_tokens":500}"#),
            (
                responses,
                &filled,
                r#"{"max_output_tokens":5}"#,
                r#"{"max_output_tokens":5}"#,
            ),
            // The line's own mistake stays, and is its error.
            (
                responses,
                &filled,
                r#"{"max_tokens":5}"#,
                r#"{"max_tokens":5,"max_output_tokens":500}"#,
            ),
            (responses, &both, "{}", r#"{"max_output_tokens":9}"#),
            (
                responses,
                &both,
                r#"{"max_output_tokens":5}"#,
                r#"{"max_output_tokens":9}"#,
            ),
            ("/v1/messages", &both, "{}", r#"{"max_tokens":9}"#),
            (
                "/v1/chat/completions",
                &filled,
                "{}",
                r#"{"max_tokens":500}"#,
            ),
        ] {
            let splice = edit.splice(body.as_bytes(), Spelling::of(path, false));
            let copy = splice.map_or(Bytes::from(body), |splice| splice.copy());
            assert_eq!(std::str::from_utf8(&copy).expect("UTF-8"), expected);
        }
    }

    #[test]
    fn a_server_that_knows_only_max_tokens_is_sent_that() {
        let defaults = object(json!({"max_completion_tokens": 500, "seed": 7}));
        let filled = Edit::new(None, &[&defaults], &[]).expect("an edit");
        let overrides = object(json!({"max_tokens": 9}));
        let written = Edit::new(None, &[], &[&overrides]).expect("an edit");
        for (edit, body, expected) in [
            (
                &NOTHING,
                r#"{"a":"max_completion_tokens", "max_completion_tokens" : 5,"b":1}"#,
                r#"{"a":"max_completion_tokens", "max_tokens" : 5,"b":1}"#,
            ),
            (
                &NOTHING,
                r#"{"max_completion_t\u006fkens":5}"#,
                r#"{"max_tokens":5}"#,
            ),
            (
                &filled,
                r#"{"max_completion_tokens":5}"#,
                r#"{"max_tokens":5,"seed":7}"#,
            ),
            (
                &filled,
                r#"{"max_tokens":5}"#,
                r#"{"max_tokens":5,"seed":7}"#,
            ),
            (&filled, "{}", r#"{"max_tokens":500,"seed":7}"#),
            (
                &written,
                r#"{"max_completion_tokens":5}"#,
                r#"{"max_tokens":9}"#,
            ),
        ] {
            let splice = edit
                .splice(body.as_bytes(), Spelling::MaxTokens)
                .expect("a change");
            let copy = splice.copy();
            assert_eq!(copy.len(), splice.len(), "known before it is made");
            assert_eq!(std::str::from_utf8(&copy).expect("UTF-8"), expected);
        }
        for body in [
            r#"{"max_tokens":5}"#,
            r#"{"max_tokens":5,"max_completion_tokens":6}"#,
            "{}",
        ] {
            assert!(
                NOTHING
                    .splice(body.as_bytes(), Spelling::MaxTokens)
                    .is_none(),
                "{body}"
            );
        }
    }

    #[test]
    fn a_body_that_needs_nothing_or_is_no_object_is_passed_on_uncopied() {
        let edit = edit(None, json!({"seed": 7}));
        for body in [r#"{"seed":1}"#, "[1]", "not json", "", "{}}"] {
            assert_eq!(apply(&edit, body.as_bytes()), None);
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                any_object(inner).prop_map(Value::Object),
            ]
        })
    }

    fn any_object(
        value: impl Strategy<Value = Value>,
    ) -> impl Strategy<Value = Map<String, Value>> {
        let key = prop_oneof![Just("model".to_owned()), Just("seed".to_owned()), ".{0,6}"];
        prop::collection::vec((key, value), 0..6).prop_map(|members| members.into_iter().collect())
    }

    proptest! {
        #[test]
        fn an_edit_does_what_the_same_edit_on_a_parsed_body_does(
            body in any_object(any_json()),
            model in prop::option::of(".{0,8}"),
            defaults in any_object(any_json()),
            overrides in any_object(any_json()),
            pretty: bool,
        ) {
            let mut expected = body.clone();
            for (key, value) in &defaults {
                expected.entry(key.clone()).or_insert_with(|| value.clone());
            }
            expected.extend(overrides.clone());
            if let Some(model) = &model {
                expected.insert("model".to_owned(), Value::from(model.as_str()));
            }
            let text = if pretty {
                serde_json::to_vec_pretty(&body)
            } else {
                serde_json::to_vec(&body)
            };
            let bytes = Bytes::from(text.expect("JSON"));
            let edit = Edit::new(model.as_deref(), &[&defaults], &[&overrides]);
            let out = edit.and_then(|edit| apply(&edit, &bytes)).unwrap_or(bytes);
            let parsed: Value = serde_json::from_slice(&out).expect("still JSON");
            prop_assert_eq!(parsed, Value::Object(expected));
        }
    }
}

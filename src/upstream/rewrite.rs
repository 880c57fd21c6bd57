//! Renaming the model of a request and filling in what it leaves out, by splicing bytes.
//!
//! Every byte that is not the value of a top-level `model` key stays as the user wrote it: key
//! order, numbers and white space. Most requests need no change at all; those are sent as they are,
//! uncopied.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// What a route changes in the body of a request.
#[derive(Debug)]
pub(super) struct Edit {
    /// What the upstream calls the model, as a JSON string.
    model: Option<String>,
    /// Keys, and members (`"key":value`) to add where the key is missing.
    defaults: Vec<(String, String)>,
}

impl Edit {
    /// `None` if there is nothing to change.
    pub(super) fn new(model: Option<&str>, defaults: &Map<String, Value>) -> Option<Self> {
        if model.is_none() && defaults.is_empty() {
            return None;
        }
        let member = |key: &String, value: &Value| format!("{}:{value}", quoted(key));
        let defaults = defaults
            .iter()
            .filter(|(key, _)| model.is_none() || *key != "model");
        Some(Self {
            model: model.map(quoted),
            defaults: defaults
                .map(|(key, value)| (key.clone(), member(key, value)))
                .collect(),
        })
    }

    /// The body with the changes made. The very same bytes if none is needed, or if the body is
    /// no JSON object (the envelope check lets no such line through).
    pub(super) fn apply(&self, body: &Bytes) -> Bytes {
        self.spliced(body).map_or_else(|| body.clone(), Bytes::from)
    }

    fn spliced(&self, body: &[u8]) -> Option<Vec<u8>> {
        let outline = Outline::read(body)?;
        let mut added: Vec<Cow<'_, str>> = Vec::new();
        let mut replaced: &[Range<usize>] = &[];
        let model = self.model.as_deref().unwrap_or_default();
        if !model.is_empty() && outline.models.is_empty() {
            added.push(format!("\"model\":{model}").into());
        } else if !model.is_empty() {
            replaced = &outline.models;
        }
        let missing = |key: &String| !outline.keys.iter().any(|present| present == key);
        let defaults = self.defaults.iter().filter(|(key, _)| missing(key));
        added.extend(defaults.map(|(_, member)| member.into()));
        if added.is_empty() && replaced.is_empty() {
            return None;
        }
        let mut out = Vec::with_capacity(body.len() + 256);
        let mut copied = 0;
        for value in replaced {
            out.extend_from_slice(body.get(copied..value.start)?);
            out.extend_from_slice(model.as_bytes());
            copied = value.end;
        }
        out.extend_from_slice(body.get(copied..outline.end)?);
        for (index, member) in added.iter().enumerate() {
            if index > 0 || !outline.keys.is_empty() {
                out.push(b',');
            }
            out.extend_from_slice(member.as_bytes());
        }
        out.extend_from_slice(body.get(outline.end..)?);
        Some(out)
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Where the parts of a top-level object are that an edit must know.
struct Outline<'a> {
    keys: Vec<Cow<'a, str>>,
    /// Where the values of `model` are, in order (a key may be there twice).
    models: Vec<Range<usize>>,
    /// Where the closing brace is.
    end: usize,
}

impl<'a> Outline<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let (keys, models) = deserializer.deserialize_map(Members { body }).ok()?;
        deserializer.end().ok()?;
        let end = body.iter().rposition(|&byte| byte == b'}')?;
        Some(Self { keys, models, end })
    }
}

struct Members<'a> {
    body: &'a [u8],
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Visitor<'a> for Members<'a> {
    type Value = (Vec<Cow<'a, str>>, Vec<Range<usize>>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut keys, mut models) = (Vec::new(), Vec::new());
        while let Some((Key(key), value)) = map.next_entry::<Key<'a>, &'a RawValue>()? {
            if key == "model" {
                // A raw value borrows from the body: its address tells where it stands.
                let start = value.get().as_ptr().addr() - self.body.as_ptr().addr();
                models.push(start..start + value.get().len());
            }
            keys.push(key);
        }
        Ok((keys, models))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn edit(model: Option<&str>, defaults: Value) -> Edit {
        let Value::Object(defaults) = defaults else {
            panic!("defaults are an object")
        };
        Edit::new(model, &defaults).expect("there is something to change")
    }

    fn check(model: Option<&str>, defaults: Value, body: &str, expected: &str) {
        let out = edit(model, defaults).apply(&Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(std::str::from_utf8(&out).expect("UTF-8"), expected);
    }

    #[test]
    fn nothing_to_change_is_no_edit() {
        assert!(Edit::new(None, &Map::new()).is_none());
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
    fn a_body_that_needs_nothing_or_is_no_object_is_passed_on_uncopied() {
        let edit = edit(None, json!({"seed": 7}));
        for body in [r#"{"seed":1}"#, "[1]", "not json", "", "{}}"] {
            let body = Bytes::copy_from_slice(body.as_bytes());
            assert_eq!(edit.apply(&body).as_ptr(), body.as_ptr());
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
            pretty: bool,
        ) {
            let mut expected = body.clone();
            if let Some(model) = &model {
                expected.insert("model".to_owned(), Value::from(model.as_str()));
            }
            for (key, value) in &defaults {
                expected.entry(key.clone()).or_insert_with(|| value.clone());
            }
            let text = if pretty {
                serde_json::to_vec_pretty(&body)
            } else {
                serde_json::to_vec(&body)
            };
            let bytes = Bytes::from(text.expect("JSON"));
            let out = match Edit::new(model.as_deref(), &defaults) {
                Some(edit) => edit.apply(&bytes),
                None => bytes,
            };
            let parsed: Value = serde_json::from_slice(&out).expect("still JSON");
            prop_assert_eq!(parsed, Value::Object(expected));
        }
    }
}

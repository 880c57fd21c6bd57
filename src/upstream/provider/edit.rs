//! Changes the body of a request: renames its model, and adds keys that it leaves out. The new
//! bytes are spliced in.
//!
//! Only the value of a top-level `model` key is replaced. All other bytes stay as the user wrote
//! them: the order of keys, numbers and white space. Most requests need no change, and are sent
//! without a copy.

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
pub(in crate::upstream) struct Edit {
    /// What the upstream calls the model. `None`: the model keeps its name.
    model: Option<NewModel>,
    /// Keys, each with the member (`"key":value`) to add where the key is missing.
    defaults: Vec<(String, String)>,
}

#[derive(Debug)]
struct NewModel {
    /// The name as a JSON string.
    value: String,
    /// The name as a member, to add where the body has no `model`.
    member: String,
}

impl Edit {
    /// `model`: the new name, if there is one. `defaults`: what is added where it is missing.
    /// `None` if there is nothing to change.
    pub(in crate::upstream) fn new(
        model: Option<&str>,
        defaults: &Map<String, Value>,
    ) -> Option<Self> {
        if model.is_none() && defaults.is_empty() {
            return None;
        }
        let member = |key: &String, value: &Value| format!("{}:{value}", quoted(key));
        let defaults = defaults
            .iter()
            .filter(|(key, _)| model.is_none() || *key != "model");
        Some(Self {
            model: model.map(|model| NewModel {
                value: quoted(model),
                member: format!("\"model\":{}", quoted(model)),
            }),
            defaults: defaults
                .map(|(key, value)| (key.clone(), member(key, value)))
                .collect(),
        })
    }

    /// How the body is to be changed. `None` if no change is needed, or if the body is no JSON
    /// object, which the check at the upload excludes.
    pub(in crate::upstream) fn splice<'a>(&'a self, body: &'a [u8]) -> Option<Splice<'a>> {
        let outline = Outline::read(body)?;
        let mut added: Vec<&str> = Vec::new();
        let mut replaced = Vec::new();
        if let Some(model) = &self.model {
            if outline.models.is_empty() {
                added.push(&model.member);
            } else {
                replaced = outline.models;
            }
        }
        let missing = |key: &String| !outline.keys.iter().any(|present| present == key);
        let defaults = self.defaults.iter().filter(|(key, _)| missing(key));
        added.extend(defaults.map(|(_, member)| member.as_str()));
        if added.is_empty() && replaced.is_empty() {
            return None;
        }
        Some(Splice {
            body,
            model: self.model.as_ref().map_or("", |model| &model.value),
            replaced,
            added,
            end: outline.end,
            is_first: outline.keys.is_empty(),
        })
    }
}

/// What a changed copy of a body is made of.
#[derive(Debug)]
pub(in crate::upstream) struct Splice<'a> {
    body: &'a [u8],
    /// What replaces each value of `model`.
    model: &'a str,
    /// Where the values of `model` stand in the body.
    replaced: Vec<Range<usize>>,
    /// The members to add.
    added: Vec<&'a str>,
    /// Where they are added: the place of the closing brace.
    end: usize,
    /// Whether the object has no members yet.
    is_first: bool,
}

impl Splice<'_> {
    /// How many bytes the copy takes.
    pub(in crate::upstream) fn len(&self) -> usize {
        let removed: usize = self.replaced.iter().map(ExactSizeIterator::len).sum();
        let renamed = self.replaced.len() * self.model.len();
        let added: usize = self.added.iter().map(|member| member.len() + 1).sum();
        let commas = usize::from(self.is_first && !self.added.is_empty());
        self.body.len() - removed + renamed + added - commas
    }

    /// Makes the copy.
    pub(in crate::upstream) fn copy(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.len());
        let mut copied = 0;
        for value in &self.replaced {
            out.extend_from_slice(&self.body[copied..value.start]);
            out.extend_from_slice(self.model.as_bytes());
            copied = value.end;
        }
        out.extend_from_slice(&self.body[copied..self.end]);
        for (index, member) in self.added.iter().enumerate() {
            if index > 0 || !self.is_first {
                out.push(b',');
            }
            out.extend_from_slice(member.as_bytes());
        }
        out.extend_from_slice(&self.body[self.end..]);
        out.into()
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What an edit must know of a top-level object.
struct Outline<'a> {
    keys: Vec<Cow<'a, str>>,
    /// Where the values of `model` stand, in order. A key may stand twice.
    models: Vec<Range<usize>>,
    /// Where the closing brace stands.
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
                // A raw value borrows from the body, so its address shows where it stands there.
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
        let out = apply(&edit(model, defaults), body.as_bytes()).expect("a copy");
        assert_eq!(std::str::from_utf8(&out).expect("UTF-8"), expected);
    }

    /// The changed copy, if one is needed.
    fn apply(edit: &Edit, body: &[u8]) -> Option<Bytes> {
        let splice = edit.splice(body)?;
        let copy = splice.copy();
        assert_eq!(copy.len(), splice.len(), "known before it is made");
        Some(copy)
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
            let edit = Edit::new(model.as_deref(), &defaults);
            let out = edit.and_then(|edit| apply(&edit, &bytes)).unwrap_or(bytes);
            let parsed: Value = serde_json::from_slice(&out).expect("still JSON");
            prop_assert_eq!(parsed, Value::Object(expected));
        }
    }
}

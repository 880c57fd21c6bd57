//! The lines of an input, one by one, as they are sent: what flags change is changed here, before
//! anything else looks at a line.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::lines::{Key, Record, Source};
use crate::domain::json;
use crate::upstream::ModelSettings;

/// What flags change in every line.
#[derive(Clone, Debug, Default)]
pub(in crate::cli::run) struct Reshape {
    /// Lines may be bare bodies, and may lack a `custom_id`.
    pub(in crate::cli::run) ids: bool,
    /// Put into every body.
    pub(in crate::cli::run) set: Map<String, Value>,
    /// Requests beyond so many are left out.
    pub(in crate::cli::run) limit: Option<u64>,
}

impl Reshape {
    fn changes_lines(&self) -> bool {
        self.ids || !self.set.is_empty()
    }

    /// A name of what it does: another name, another input.
    pub(in crate::cli::run) fn name(&self) -> String {
        let set = Value::Object(self.set.clone());
        format!("ids={} limit={:?} set={set}", self.ids, self.limit)
    }

    /// The flags that differ from those in an earlier run's name.
    pub(in crate::cli::run) fn differences(&self, earlier: &str) -> Vec<String> {
        let (ids, limit, set) = read_name(earlier).unwrap_or_default();
        let mut flags = Vec::new();
        if ids != self.ids.to_string() {
            flags.push("--ids".to_owned());
        }
        if limit != format!("{:?}", self.limit) {
            flags.push("--limit".to_owned());
        }
        let keys: BTreeSet<&String> = self.set.keys().chain(set.keys()).collect();
        let changed = keys
            .into_iter()
            .filter(|key| self.set.get(*key) != set.get(*key));
        flags.extend(changed.map(|key| match key.as_str() {
            "model" => "--model".to_owned(),
            key => format!("--set {key}"),
        }));
        flags
    }

    /// The line as it is sent, by its number from 1. What is no request stays as it is.
    pub(in crate::cli::run) fn line<'a>(&self, line: &'a [u8], number: u64) -> Cow<'a, [u8]> {
        if !self.changes_lines() {
            return Cow::Borrowed(line);
        }
        let text = std::str::from_utf8(line).ok();
        let request = text.and_then(|text| self.request(text, number));
        request.map_or(Cow::Borrowed(line), Cow::Owned)
    }

    fn request(&self, line: &str, number: u64) -> Option<Vec<u8>> {
        let mut members: Vec<(String, &str)> = Vec::new();
        json::members(line, |key, value| members.push((key.to_owned(), value)))?;
        let of = |name: &str| {
            let found = members.iter().rev().find(|(key, _)| key == name);
            found
                .map(|(_, value)| *value)
                .filter(|value| *value != "null")
        };
        let is_bare = self.ids && of("body").is_none();
        let body = if is_bare { line.trim() } else { of("body")? };
        let custom_id = match of("custom_id") {
            Some(custom_id) => custom_id.to_owned(),
            None if self.ids => format!("\"line-{number}\""),
            None => String::new(),
        };
        let url = match of("url") {
            Some(url) => url.to_owned(),
            None if self.ids => quoted(endpoint_of(body)?),
            None => String::new(),
        };
        let method = of("method").map(str::to_owned);
        let method = method.or(self.ids.then(|| "\"POST\"".to_owned()));

        let mut out = Vec::with_capacity(line.len() + 100);
        out.push(b'{');
        let mut member = |name: &str, value: &[u8]| {
            if !value.is_empty() {
                if out.len() > 1 {
                    out.push(b',');
                }
                json::string(name, &mut out);
                out.push(b':');
                out.extend_from_slice(value);
            }
        };
        member("custom_id", custom_id.as_bytes());
        member("method", method.unwrap_or_default().as_bytes());
        member("url", url.as_bytes());
        let body = self.body(body, is_bare);
        member("body", &body);
        out.push(b'}');
        Some(out)
    }

    fn body(&self, body: &str, is_bare: bool) -> Vec<u8> {
        let mut out = vec![b'{'];
        let mut add = |key: &str, value: &str| {
            if out.len() > 1 {
                out.push(b',');
            }
            json::string(key, &mut out);
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        };
        let read = json::members(body, |key, value| {
            // The id of a bare body is the envelope's.
            let is_envelope = is_bare && key == "custom_id";
            if !is_envelope && !self.set.contains_key(key) {
                add(key, value);
            }
        });
        if read.is_none() {
            // It is no object: the check of the input says so.
            return body.as_bytes().to_owned();
        }
        for (key, value) in &self.set {
            add(key, &value.to_string());
        }
        out.push(b'}');
        out
    }
}

/// The parts of [`Reshape::name`].
fn read_name(name: &str) -> Option<(&str, &str, Map<String, Value>)> {
    let (flags, set) = name.strip_prefix("ids=")?.split_once(" set=")?;
    let (ids, limit) = flags.split_once(" limit=")?;
    Some((ids, limit, serde_json::from_str(set).ok()?))
}

/// The endpoint that a bare body is for.
fn endpoint_of(body: &str) -> Option<&'static str> {
    let mut found = None;
    json::members(body, |key, _| {
        let endpoint = match key {
            "messages" => "/v1/chat/completions",
            "prompt" => "/v1/completions",
            "input" => "/v1/embeddings",
            _ => return,
        };
        found.get_or_insert(endpoint);
    })?;
    found
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    json::string(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// What is known of a line, as it is sent.
pub(in crate::cli::run) fn record(line: &[u8], models: &[ModelSettings]) -> Record {
    if line.iter().all(|&byte| json::is_space(byte)) {
        return Record {
            key: Key::default(),
            source: Source::Blank,
        };
    }
    let key = std::str::from_utf8(line)
        .ok()
        .and_then(|line| key(line, models));
    Record {
        key: key.unwrap_or_default(),
        source: Source::Sent,
    }
}

fn key(line: &str, models: &[ModelSettings]) -> Option<Key> {
    let request = crate::domain::line::read(line)?;
    let mut model = None;
    json::members(request.body, |key, value| {
        if key == "model" {
            model = json::text(value);
        }
    })?;
    let mut body = Vec::with_capacity(request.body.len());
    json::compact(request.body.as_bytes(), &mut body);
    let name = model.as_deref().unwrap_or_default();
    // What the configuration fills in or writes over is a part of what is asked.
    let model = ModelSettings::of(models, name);
    let settings = model.map(|model| [&model.defaults, &model.overrides]);
    let settings = settings.into_iter().flatten().filter(|set| !set.is_empty());
    let settings: String = settings
        .map(|set| Value::Object(set.clone()).to_string())
        .collect();
    let parts: [&[u8]; 3] = [request.url.as_bytes(), &body, settings.as_bytes()];
    Some(Key::new(&request.custom_id, &parts))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reshape(ids: bool, set: Value) -> Reshape {
        let Value::Object(set) = set else {
            panic!("an object")
        };
        Reshape {
            ids,
            set,
            limit: None,
        }
    }

    fn line(reshape: &Reshape, line: &str) -> Value {
        let line = reshape.line(line.as_bytes(), 7);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn bare_bodies_become_requests() {
        let ids = reshape(true, json!({"model": "m"}));
        for (body, url) in [
            (json!({"input": "x"}), "/v1/embeddings"),
            (json!({"messages": []}), "/v1/chat/completions"),
            (json!({"prompt": "x", "model": "other"}), "/v1/completions"),
        ] {
            let request = line(&ids, &body.to_string());
            assert_eq!(request["custom_id"], "line-7");
            assert_eq!(
                (&request["method"], &request["url"]),
                (&json!("POST"), &json!(url))
            );
            assert_eq!(request["body"]["model"], "m");
        }
        let named = json!({"custom_id": "mine", "input": "x"});
        let request = line(&ids, &named.to_string());
        assert_eq!(request["custom_id"], "mine");
        assert_eq!(request["body"], json!({"input": "x", "model": "m"}));
        let whole = json!({"custom_id": "a", "method": "POST", "url": "/v1/x", "body": {"n": 1}});
        let request = line(&ids, &whole.to_string());
        assert_eq!(
            (&request["custom_id"], &request["url"]),
            (&json!("a"), &json!("/v1/x"))
        );
        assert_eq!(request["body"], json!({"n": 1, "model": "m"}));
    }

    #[test]
    fn flags_that_differ_from_an_earlier_runs_are_named() {
        let earlier = reshape(false, json!({"model": "a", "x": " set=1", "same": [1]}));
        let mut now = reshape(true, json!({"model": "b", "y": 1, "same": [1]}));
        now.limit = Some(3);
        assert_eq!(
            now.differences(&earlier.name()),
            ["--ids", "--limit", "--model", "--set x", "--set y"]
        );
        assert!(now.differences(&now.name()).is_empty());
    }

    #[test]
    fn what_is_set_takes_the_place_of_what_was_there_and_nothing_else_changes() {
        let set = reshape(false, json!({"temperature": 0, "new": [1]}));
        let text = r#"{"custom_id":"a","method":"POST","url":"/v1/x","body":{"big":1e400,"temperature":1}}"#;
        let changed = set.line(text.as_bytes(), 1);
        let changed = std::str::from_utf8(&changed).unwrap();
        assert!(changed.contains(r#""body":{"big":1e400,"#), "{changed}");
        assert!(changed.contains(r#""temperature":0"#) && changed.contains(r#""new":[1]"#));
        assert!(!changed.contains(r#""temperature":1"#), "{changed}");
        for text in ["", "words", "[]", "{\"body\": 3}"] {
            assert!(!set.line(text.as_bytes(), 1).is_empty() || text.is_empty());
        }
        let none = reshape(false, json!({}));
        assert!(matches!(none.line(text.as_bytes(), 1), Cow::Borrowed(_)));
    }
}

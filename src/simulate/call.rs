//! What the simulator reads of a request's body. The rest is skipped, never built.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ending::Ending;
use super::text::fingerprint;

/// The keys of a body that its answer depends on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Call {
    pub model: Option<String>,
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    pub input: Option<Input>,
    pub dimensions: Option<usize>,
    pub encoding_format: Option<String>,
    pub n: Option<usize>,
    documents: Option<Input>,
    pub top_n: Option<usize>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    max_output_tokens: Option<usize>,
    pub simulate: Steering,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

/// How a request steers its own answer: the key `simulate` of its body.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Steering {
    pub status: Option<u16>,
    /// `status`, `body`, `headers`, `retry_after_ms`, `reset`, `truncate`, `stall` and `hang` hold
    /// for the first so many calls with this body only.
    pub times: Option<u32>,
    pub latency_ms: Option<u64>,
    pub retry_after_ms: Option<u64>,
    pub body: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub reset: bool,
    pub truncate: bool,
    /// A streamed answer stands still in its middle.
    pub stall: bool,
    pub hang: bool,
    pub bytes: Option<usize>,
    pub echo: bool,
}

impl Call {
    /// Reads a body, which must be a JSON object.
    pub(super) fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        if first == Some(&b'[') {
            // Serde would take an array for the struct's fields in their order.
            return Err(serde::de::Error::custom("the body is not an object"));
        }
        serde_json::from_slice(body)
    }

    /// The most tokens that the request wants, in the words of whichever endpoint.
    pub(super) fn token_limit(&self) -> Option<usize> {
        self.max_completion_tokens
            .or(self.max_output_tokens)
            .or(self.max_tokens)
    }

    /// How many documents there are to rank.
    pub(super) fn documents(&self) -> usize {
        let documents = self.documents.as_ref();
        documents.map_or(0, |documents| documents.0.len())
    }

    /// Whether a stream is to tell its tokens.
    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage)
    }

    /// What there is to embed or to judge.
    pub(super) fn inputs(&self) -> &[Item] {
        const NOTHING: [Item; 1] = [Item {
            fingerprint: 0,
            tokens: 1,
        }];
        self.input.as_ref().map_or(&NOTHING, |input| &input.0)
    }
}

impl Steering {
    /// How a stream ends.
    pub(super) fn ending(&self) -> Ending {
        match (self.stall, self.truncate) {
            (true, _) => Ending::Stalls,
            (_, true) => Ending::Breaks,
            _ => Ending::Whole,
        }
    }

    /// Whether the request wants another answer than the usual one.
    pub(super) fn has_fault(&self) -> bool {
        self.status.is_some()
            || self.body.is_some()
            || self.retry_after_ms.is_some()
            || !self.headers.is_empty()
            || self.reset
            || self.truncate
            || self.stall
            || self.hang
    }
}

/// `input`: a text or its tokens is one, an array of texts or of tokens is many.
#[derive(Debug)]
pub(super) struct Input(Vec<Item>);

/// One thing to embed, to judge or to rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Of what it says, however it is written.
    pub fingerprint: u64,
    /// About how many tokens it has.
    pub tokens: usize,
}

impl Input {
    pub(super) fn first(&self) -> Option<Item> {
        self.0.first().copied()
    }
}

impl Item {
    fn text(text: &str) -> Self {
        Self::of(text.as_bytes(), text.len().div_ceil(4))
    }

    /// Any JSON value.
    fn value(json: &str) -> Self {
        if let Ok(text) = serde_json::from_str::<String>(json) {
            return Self::text(&text);
        }
        let tight: String = json.split_ascii_whitespace().collect();
        Self::of(tight.as_bytes(), tight.split(',').count())
    }

    fn of(bytes: &[u8], tokens: usize) -> Self {
        Self {
            fingerprint: fingerprint(0, bytes),
            tokens: tokens.max(1),
        }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inputs;

        impl<'de> Visitor<'de> for Inputs {
            type Value = Input;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a text, an object or an array")
            }

            fn visit_str<E>(self, text: &str) -> Result<Input, E> {
                Ok(Input(vec![Item::text(text)]))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Input(vec![Item::text("")]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input, A::Error> {
                let (mut items, mut tokens) = (Vec::new(), Vec::new());
                while let Some(item) = seq.next_element::<&serde_json::value::RawValue>()? {
                    items.push(Item::value(item.get()));
                    if item.get().starts_with(|c: char| c.is_ascii_digit()) {
                        tokens.push(item.get());
                    }
                }
                if !tokens.is_empty() {
                    items = vec![Item::value(&format!("[{}]", tokens.join(",")))];
                }
                Ok(Input(items))
            }
        }

        deserializer.deserialize_any(Inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Call {
        Call::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_inputs_of_an_embedding_are_counted() {
        for (body, inputs) in [
            ("{}", 1),
            (r#"{"input":null}"#, 1),
            (r#"{"input":"a"}"#, 1),
            (r#"{"input":["a","b"]}"#, 2),
            (r#"{"input":[1,2,3]}"#, 1),
            (r#"{"input":[[1,2],[3]]}"#, 2),
            (r#"{"input":[{"type":"text","text":"a"}]}"#, 1),
        ] {
            assert_eq!(read(body).inputs().len(), inputs, "{body}");
        }
    }

    #[test]
    fn an_input_is_the_same_alone_and_in_a_list() {
        for (alone, listed) in [
            (r#"{"input":"a\u00e9"}"#, r#"{"input":["b","aé"]}"#),
            (r#"{"input":[1, 2]}"#, r#"{"input":[[3],[1,2]]}"#),
        ] {
            let (alone, listed) = (read(alone), read(listed));
            assert_eq!(alone.inputs()[0], listed.inputs()[1]);
            assert_ne!(listed.inputs()[0], listed.inputs()[1]);
        }
    }

    #[test]
    fn what_is_not_needed_may_be_anything() {
        let call = read(r#"{"messages":[{"content":{"deep":[1]}}],"model":"m","max_tokens":3}"#);
        assert_eq!(call.model.as_deref(), Some("m"));
        assert_eq!(call.token_limit(), Some(3));
        assert!(!call.simulate.has_fault());
    }

    #[test]
    fn a_body_that_is_no_object_or_steers_with_unknown_words_is_refused() {
        for body in ["", "[]", "3", "{", r#"{"simulate":{"statsu":400}}"#] {
            assert!(Call::read(body.as_bytes()).is_err(), "{body}");
        }
    }
}

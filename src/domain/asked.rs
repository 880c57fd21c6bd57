//! What the bodies of a file's lines ask for: their keys, by model and endpoint. It is gathered at
//! the upload, and stored with the file. Whether a key is wrong depends on the routes, so it is
//! judged when a batch is made.
//!
//! A key is remembered with the first lines that have it, where its value asks for something. What
//! is remembered is bounded. Lines beyond the bounds are judged when they are sent.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::json;

/// Keys that are remembered of the lines of one model and endpoint.
pub const KEYS_MAX: usize = 256;
/// Lines that are remembered of each of them.
pub(super) const LINES_MAX: usize = 101;
/// Models and endpoints together of which keys are remembered.
const GROUPS_MAX: usize = 1_000;
/// A longer key is none that any API has.
const KEY_BYTES_MAX: usize = 128;
/// Keys of a file that are remembered, and their bytes as they are stored.
const ALL_KEYS_MAX: usize = 4_096;
const ALL_KEY_BYTES_MAX: usize = 256 << 10;
/// Numbers of lines that are remembered beside the first line of each key.
const NUMBERS_MAX: usize = 20_000;
/// Sets of keys that are told apart in a group. A line with another one is looked at twice.
const SHAPES_MAX: usize = 1_024;
/// Lines of a group that are looked at twice.
const LOOKS_MAX: usize = 4_096;

/// Keys that each endpoint has, or that are checked for themselves.
const COMMON: [&str; 3] = ["model", "stream", "background"];

/// What the bodies of a file's lines ask for. Stored as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked(Vec<Group>);

/// The lines of one model and endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// As the lines give it; empty for those that give none.
    pub model: String,
    /// The endpoint's path.
    pub endpoint: String,
    /// The first of them.
    lines: Vec<u64>,
    keys: Vec<Key>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    name: String,
    /// The first lines that have it. Empty where these are those of the group.
    lines: Vec<u64>,
}

impl Asked {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.0.iter()
    }
}

impl Group {
    /// The first of its lines.
    #[must_use]
    pub fn lines(&self) -> &[u64] {
        &self.lines
    }

    /// Each key of the lines' bodies, with the first lines that have it.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &[u64])> {
        self.keys.iter().map(|key| {
            let is_in_all = key.lines.is_empty();
            let lines = if is_in_all { &self.lines } else { &key.lines };
            (key.name.as_str(), lines.as_slice())
        })
    }
}

/// The set of keys of a body that ask for something, as a number. Two sets may have one number;
/// then what only the second has is not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape(u64);

impl Default for Shape {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Shape {
    /// Adds a member of the body, with its value as raw JSON.
    pub fn add(&mut self, key: &str, value: &str) {
        if COMMON.contains(&key) || asks_for_no_ability(key, value) {
            return;
        }
        let mut add = |word: u64| {
            let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.0 = mixed ^ (mixed >> 32);
        };
        let (words, rest) = key.as_bytes().as_chunks::<8>();
        for word in words {
            add(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // No text has this byte, so it tells where a key ends.
        last[rest.len()] = 0xff;
        add(u64::from_le_bytes(last));
    }
}

/// Whether a member of a request asks for nothing: it says what holds without it, too. `value` is
/// raw JSON.
#[must_use]
pub fn asks_for_nothing(key: &str, value: &str) -> bool {
    let is_number = |number: f64| value.parse() == Ok(number);
    let is_text = |text: &str| json::text(value).is_some_and(|own| own == text);
    match value.as_bytes().first() {
        Some(b'n') => true,
        Some(b'f') => matches!(
            key,
            "background"
                | "defer_loading"
                | "eager_input_streaming"
                | "logprobs"
                | "store"
                | "stream"
                | "strict"
        ),
        Some(b't') => key == "parallel_tool_calls",
        Some(b'"') => match key {
            _ if value.len() == 2 => true,
            "service_tier" | "detail" => is_text("auto"),
            "verbosity" => is_text("medium"),
            _ => false,
        },
        Some(b'[' | b'{') => {
            // Lists and objects may be written with white space.
            let mut inner = value[1..].bytes().skip_while(|&byte| json::is_space(byte));
            let is_empty = matches!(inner.next(), Some(b']' | b'}'));
            let texts = || serde_json::from_str::<Vec<&str>>(value);
            let are_texts = |texts: Vec<&str>| texts.iter().all(|text| *text == "text");
            is_empty || (key == "modalities" && texts().is_ok_and(are_texts))
        }
        _ => match key {
            "n" => is_number(1.0),
            "frequency_penalty" | "presence_penalty" | "top_logprobs" => is_number(0.0),
            _ => false,
        },
    }
}

/// Whether a member of a request asks for no ability of a model: it asks for nothing, or says that
/// an ability is not to be used. `value` is raw JSON.
#[must_use]
pub fn asks_for_no_ability(key: &str, value: &str) -> bool {
    match key {
        "reasoning_effort" | "tool_choice" if value == "\"none\"" => true,
        "reasoning" if says(value, "effort", "\"none\"") => true,
        "thinking" if says(value, "type", "\"disabled\"") => true,
        _ => asks_for_nothing(key, value),
    }
}

/// Whether a member of an object, which is raw JSON, has this value.
fn says(object: &str, key: &str, value: &str) -> bool {
    let mut says = false;
    json::members(object, |own, written| {
        if own == key {
            says = written == value;
        }
    });
    says
}

/// Gathers what the bodies ask for, line by line.
#[derive(Debug, Default)]
pub struct Gatherer {
    groups: Vec<Gathered>,
    /// By the number of the model.
    places: Vec<Vec<(&'static Endpoint, usize)>>,
    keys: Keys,
    numbers: usize,
}

/// How many keys of a file are remembered.
#[derive(Debug, Default)]
struct Keys {
    count: usize,
    bytes: usize,
}

impl Keys {
    /// Counts one more; whether there is room for the key.
    fn admit(&mut self, key: &str) -> bool {
        let written = serde_json::Value::from(key).to_string().len();
        let has_room =
            self.count < ALL_KEYS_MAX && self.bytes.saturating_add(written) <= ALL_KEY_BYTES_MAX;
        if has_room {
            self.count += 1;
            self.bytes += written;
        }
        has_room
    }
}

#[derive(Debug)]
struct Gathered {
    group: Group,
    /// The places of the keys in the group, by their names.
    places: HashMap<String, usize>,
    /// Most files have few.
    shapes: BTreeMap<Shape, Known>,
    /// Sets of keys that were looked at, be they told apart or not.
    looks: usize,
}

#[derive(Debug)]
struct Known {
    /// The places of the keys.
    keys: Box<[usize]>,
    /// Each of the keys has as many lines as are remembered.
    is_done: bool,
}

impl Gatherer {
    /// Notes a line of an endpoint. `model_no` is the model's number in the file; `body` is read
    /// only where a line of its shape was not seen before. Lines are noted in ascending order.
    pub fn line(
        &mut self,
        line: u64,
        (model_no, model): (u16, &str),
        endpoint: &'static Endpoint,
        shape: Shape,
        body: &str,
    ) {
        let Some(place) = self.place((model_no, model), endpoint) else {
            return;
        };
        let (all_keys, numbers) = (&mut self.keys, &mut self.numbers);
        let gathered = &mut self.groups[place];
        note(&mut gathered.group.lines, line, numbers);
        if !gathered.shapes.contains_key(&shape) {
            if gathered.looks >= LOOKS_MAX {
                return;
            }
            gathered.looks += 1;
            let keys = gathered.places_of(endpoint, body, all_keys);
            if gathered.shapes.len() >= SHAPES_MAX {
                for key in keys {
                    note(&mut gathered.group.keys[key].lines, line, numbers);
                }
                return;
            }
            let known = Known {
                keys: keys.into(),
                is_done: false,
            };
            gathered.shapes.insert(shape, known);
        }
        let Some(known) = gathered.shapes.get_mut(&shape) else {
            return;
        };
        if known.is_done {
            return;
        }
        known.is_done = true;
        for &key in &known.keys {
            let lines = &mut gathered.group.keys[key].lines;
            note(lines, line, numbers);
            known.is_done &= lines.len() >= LINES_MAX || *numbers >= NUMBERS_MAX;
        }
    }

    /// The place of a group, added if it is new; `None` if there are too many.
    fn place(
        &mut self,
        (model_no, model): (u16, &str),
        endpoint: &'static Endpoint,
    ) -> Option<usize> {
        let model_no = usize::from(model_no);
        if self.places.len() <= model_no {
            self.places.resize_with(model_no + 1, Vec::new);
        }
        let of_model = &mut self.places[model_no];
        let known = of_model
            .iter()
            .find(|(known, _)| std::ptr::eq(*known, endpoint));
        if let Some((_, place)) = known {
            return Some(*place);
        }
        let place = self.groups.len();
        if place >= GROUPS_MAX {
            return None;
        }
        of_model.push((endpoint, place));
        self.groups.push(Gathered {
            group: Group {
                model: model.to_owned(),
                endpoint: endpoint.path.to_owned(),
                lines: Vec::new(),
                keys: Vec::new(),
            },
            places: HashMap::new(),
            shapes: BTreeMap::new(),
            looks: 0,
        });
        Some(place)
    }

    #[must_use]
    pub fn finish(self) -> Asked {
        let groups = self.groups.into_iter().map(|gathered| {
            let mut group = gathered.group;
            for key in &mut group.keys {
                if key.lines == group.lines {
                    key.lines = Vec::new();
                }
            }
            group
        });
        Asked(groups.collect())
    }
}

impl Gathered {
    /// The places of the keys of a body that ask for something; keys that are new are added, as far
    /// as there is room.
    fn places_of(&mut self, endpoint: &Endpoint, body: &str, all_keys: &mut Keys) -> Vec<usize> {
        let mut places = Vec::new();
        json::members(body, |key, value| {
            let is_common = COMMON.contains(&key)
                || endpoint.required.contains(&key)
                || endpoint.limit == Some(key);
            if is_common || key.len() > KEY_BYTES_MAX || asks_for_no_ability(key, value) {
                return;
            }
            if let Some(&place) = self.places.get(key) {
                places.push(place);
                return;
            }
            let keys = &mut self.group.keys;
            if keys.len() >= KEYS_MAX || !all_keys.admit(key) {
                return;
            }
            places.push(keys.len());
            self.places.insert(key.to_owned(), keys.len());
            keys.push(Key {
                name: key.to_owned(),
                lines: Vec::new(),
            });
        });
        // A key may stand twice.
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// Notes the number of a line among the first of its kind.
fn note(lines: &mut Vec<u64>, line: u64, numbers: &mut usize) {
    let has_room = lines.len() < LINES_MAX && *numbers < NUMBERS_MAX;
    if has_room || lines.is_empty() {
        lines.push(line);
        *numbers += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::endpoint::find;

    const CHAT: &str = "/v1/chat/completions";

    /// What is remembered of these lines, each of one model.
    fn gather(bodies: impl IntoIterator<Item = (u16, String)>) -> Asked {
        let mut gatherer = Gatherer::default();
        for (number, (model_no, body)) in (1..).zip(bodies) {
            let mut shape = Shape::default();
            json::members(&body, |key, value| shape.add(key, value)).expect("an object");
            let (endpoint, model) = (find(CHAT).expect("known"), format!("m-{model_no}"));
            gatherer.line(number, (model_no, &model), endpoint, shape, &body);
        }
        let stored = serde_json::to_string(&gatherer.finish()).expect("JSON");
        serde_json::from_str(&stored).expect("read again")
    }

    fn body(more: &str) -> String {
        format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\"}}]{more}}}")
    }

    fn of_group(asked: &Asked, place: usize) -> Vec<(&str, &[u64])> {
        asked.groups().nth(place).expect("a group").keys().collect()
    }

    #[test]
    fn keys_are_remembered_by_model_with_the_first_lines_that_have_them() {
        let asked = gather([
            (0, body(",\"seed\":1,\"temperature\":0.5")),
            (1, body(",\"seed\":1")),
            (0, body(",\"temperature\":1")),
            (0, body("")),
            (0, body(",\"temperature\":1,\"seed\":2")),
        ]);
        let [one, two] = [0, 1].map(|place| asked.groups().nth(place).expect("a group"));
        assert_eq!((one.model.as_str(), one.endpoint.as_str()), ("m-0", CHAT));
        assert_eq!(one.lines(), [1, 3, 4, 5]);
        let keys: [(&str, &[u64]); 2] = [("seed", &[1, 5]), ("temperature", &[1, 3, 5])];
        assert_eq!(of_group(&asked, 0), keys);
        assert_eq!(two.lines(), [2]);
        assert_eq!(of_group(&asked, 1), [("seed", &[2_u64][..])]);
    }

    #[test]
    fn what_asks_for_nothing_is_no_key() {
        for member in [
            "\"seed\":null",
            "\"user\":\"\"",
            "\"tools\":[ ]",
            "\"metadata\":{\n}",
            "\"n\":1",
            "\"presence_penalty\":0.0",
            "\"logprobs\":false",
            "\"stream\":true",
            "\"parallel_tool_calls\":true",
            "\"service_tier\":\"auto\"",
            "\"reasoning_effort\":\"none\"",
            "\"tool_choice\":\"none\"",
            "\"modalities\":[ \"text\" ]",
        ] {
            let asked = gather([(0, body(&format!(",{member}")))]);
            assert_eq!(of_group(&asked, 0), [], "{member}");
        }
        for member in [
            "\"n\":2",
            "\"logprobs\":true",
            "\"tools\":[1]",
            "\"modalities\":[\"audio\"]",
        ] {
            let asked = gather([(0, body(&format!(",{member}")))]);
            assert_eq!(of_group(&asked, 0).len(), 1, "{member}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_however_many_keys_lines_and_models_there_are() {
        // One key in each of many lines, and all keys in each of many more.
        let many = (0..2_000).map(|no| (0, body(&format!(",\"key-{no}\":1"))));
        let all: String = (0..KEYS_MAX).map(|no| format!(",\"key-{no}\":1")).collect();
        let full = (0..2_000).map(|no| (no % 500, body(&all)));
        let asked = gather(many.chain(full));
        let groups: Vec<&Group> = asked.groups().collect();
        assert!(groups.iter().all(|group| group.keys.len() <= KEYS_MAX));
        assert!(groups.iter().all(|group| group.lines().len() <= LINES_MAX));
        let keys: usize = groups.iter().map(|group| group.keys.len()).sum();
        let numbers = groups.iter().flat_map(|group| &group.keys);
        let numbers: usize = numbers.map(|key| key.lines.len()).sum();
        assert_eq!(keys, ALL_KEYS_MAX);
        assert!(
            numbers <= NUMBERS_MAX + ALL_KEYS_MAX + GROUPS_MAX,
            "{numbers}"
        );
        // The first line of a key is known in any case.
        assert_eq!(of_group(&asked, 0)[7].1[0], 8);
    }

    #[test]
    fn long_keys_that_are_longer_still_when_they_are_stored_are_bounded_together() {
        let key = |no: usize| format!("{}{no:03}", "\\u0001".repeat(120));
        let line = |group: usize| {
            let keys = (0..KEYS_MAX).map(|no| format!(",\"{}\":1", key(group * KEYS_MAX + no)));
            (group as u16, body(&keys.collect::<String>()))
        };
        let stored = serde_json::to_string(&gather((0..16).map(line))).expect("JSON");
        assert!(stored.len() < ALL_KEY_BYTES_MAX * 5 / 4, "{}", stored.len());
        assert!(stored.len() > ALL_KEY_BYTES_MAX / 2, "{}", stored.len());
    }

    #[test]
    fn of_a_file_of_equal_lines_little_is_stored() {
        let line = body(",\"temperature\":0.5,\"max_tokens\":9,\"user\":\"u\"");
        let asked = gather((0..100_000).map(|_| (0, line.clone())));
        let stored = serde_json::to_string(&asked).expect("JSON");
        assert!(stored.len() < 600, "{}", stored.len());
        assert_eq!(of_group(&asked, 0)[2].1.len(), LINES_MAX);
    }
}

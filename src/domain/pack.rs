//! One request for the embeddings of several lines' inputs, and its answer taken apart again. All
//! in the form of OpenAI's API, as text: what nobody changes stays as it is written.

use super::divide::divide;
use super::json;

const INPUT: &str = "input";

/// A request for embeddings, as far as requests are put together by it.
#[derive(Debug, PartialEq, Eq)]
pub struct Embedding<'a> {
    body: &'a str,
    /// The value of `input`.
    input: &'a str,
    kind: Kind,
    /// How many vectors it asks for: at least one.
    pub inputs: usize,
    /// All but the input: the keys and their values, in the order of the keys.
    parameters: Vec<(String, &'a str)>,
}

/// What is to be embedded. Providers take no list with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Texts,
    Tokens,
}

/// What one line has of a request that was put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// How many of the vectors are the line's.
    pub inputs: usize,
    /// The line's part of the tokens is that of these bytes.
    pub bytes: usize,
}

impl Part {
    /// By which what is known of all parts together is divided.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.bytes as u64
    }
}

impl<'a> Embedding<'a> {
    /// Reads a body. `None` for one that shares a call with no other: its input is neither texts
    /// nor tokens, or has both, or is empty.
    #[must_use]
    pub fn read(body: &'a str) -> Option<Self> {
        let (mut input, mut is_odd) = (None, false);
        let mut parameters = Vec::new();
        json::members(body, |key, value| match key {
            INPUT => is_odd |= input.replace(value).is_some(),
            // Half a surrogate pair, which no key can be told by.
            "" => is_odd = true,
            _ => parameters.push((key.to_owned(), value)),
        })?;
        let input = input.filter(|_| !is_odd)?;
        let (kind, inputs) = measure(input)?;
        // A key that stands twice keeps the order of its values.
        parameters.sort_by(|(one, _), (other, _)| one.cmp(other));
        Some(Self {
            body,
            input,
            kind,
            inputs,
            parameters,
        })
    }

    /// What requests must have in common to be put together.
    #[must_use]
    pub fn parameters(&self) -> Vec<u8> {
        let mut all = vec![self.kind as u8];
        for (key, value) in &self.parameters {
            for text in [key.as_str(), value] {
                all.extend(text.len().to_le_bytes());
                all.extend(text.as_bytes());
            }
        }
        all
    }

    /// What the request has of one that was put together.
    #[must_use]
    pub fn part(&self) -> Part {
        Part {
            inputs: self.inputs,
            bytes: self.input.len(),
        }
    }

    /// The inputs, as items of a list.
    fn items(&self) -> &'a str {
        let is_list_of_inputs = match self.kind {
            Kind::Texts => self.input.starts_with('['),
            Kind::Tokens => json_list(self.input).trim_start().starts_with('['),
        };
        if is_list_of_inputs {
            json_list(self.input)
        } else {
            self.input
        }
    }
}

/// One body for all these requests, which have the same [parameters](Embedding::parameters). It has
/// the inputs of all, in their order.
#[must_use]
pub fn together(requests: &[Embedding<'_>]) -> String {
    let Some(first) = requests.first() else {
        return String::new();
    };
    let inputs: usize = requests.iter().map(|one| one.input.len() + 1).sum();
    let mut body = String::with_capacity(first.body.len() + inputs + 2);
    let before = first.input.as_ptr().addr() - first.body.as_ptr().addr();
    body.push_str(&first.body[..before]);
    body.push('[');
    for (place, request) in requests.iter().enumerate() {
        if place > 0 {
            body.push(',');
        }
        body.push_str(request.items());
    }
    body.push(']');
    body.push_str(&first.body[before + first.input.len()..]);
    body
}

/// The answer of each of the requests that were put together. The tokens that the answer reports
/// are divided by the bytes of the inputs, and add up to what is reported.
///
/// # Errors
/// Why the answer cannot be taken apart, in words.
pub fn apart(answer: &str, parts: &[Part]) -> Result<Vec<String>, &'static str> {
    let (mut members, mut data) = (Vec::new(), None);
    let read = json::members(answer, |key, value| {
        if key == "data" {
            data = Some(value);
        }
        members.push((key.to_owned(), value));
    });
    read.ok_or("the answer is no object")?;
    let vectors = vectors(data.ok_or("the answer has no data")?)?;
    let asked: usize = parts.iter().map(|part| part.inputs).sum();
    if vectors.len() != asked {
        return Err("the answer has another number of vectors than there are inputs");
    }
    let weights: Vec<u64> = parts.iter().map(Part::weight).collect();
    let mut shared = members.iter().filter(|(key, _)| key == "usage");
    let usages = shared.next().map(|(_, usage)| divided(usage, &weights));
    let mut from = 0;
    let answers = parts.iter().enumerate().map(|(place, part)| {
        let own = &vectors[from..from + part.inputs];
        from += part.inputs;
        let length: usize = own.iter().map(|vector| vector.text.len()).sum();
        let mut out = Vec::with_capacity(length + 256);
        for (nth, (key, value)) in members.iter().enumerate() {
            out.push(if nth == 0 { b'{' } else { b',' });
            json::string(key, &mut out);
            out.push(b':');
            match (key.as_str(), &usages) {
                ("data", _) => write_vectors(own, &mut out),
                ("usage", Some(usages)) => out.extend(usages[place].as_bytes()),
                _ => out.extend(value.as_bytes()),
            }
        }
        out.push(b'}');
        // Pieces of a text, cut at its tokens, are a text.
        String::from_utf8(out).unwrap_or_default()
    });
    Ok(answers.collect())
}

/// A vector of an answer: its object, and where in that its number stands.
struct Vector<'a> {
    text: &'a str,
    index: Option<std::ops::Range<usize>>,
}

/// The vectors in the order of their inputs.
fn vectors(data: &str) -> Result<Vec<Vector<'_>>, &'static str> {
    const ODD: &str = "the answer's vectors are not numbered as they should be";
    let mut texts = Vec::new();
    json::items(data, |item| texts.push(item)).ok_or("the answer's data is no list")?;
    let mut vectors: Vec<Option<Vector<'_>>> = Vec::new();
    vectors.resize_with(texts.len(), || None);
    for (place, text) in texts.into_iter().enumerate() {
        let (mut index, mut at) = (None, place);
        let read = json::members(text, |key, value| {
            if key == "index" {
                let from = value.as_ptr().addr() - text.as_ptr().addr();
                index = Some(from..from + value.len());
                at = value.parse().unwrap_or(usize::MAX);
            }
        });
        read.ok_or("the answer's data has something else than vectors")?;
        let slot = vectors.get_mut(at).ok_or(ODD)?;
        if slot.replace(Vector { text, index }).is_some() {
            return Err(ODD);
        }
    }
    // As many vectors as places, and none twice.
    Ok(vectors.into_iter().flatten().collect())
}

fn write_vectors(vectors: &[Vector<'_>], out: &mut Vec<u8>) {
    out.push(b'[');
    for (place, Vector { text, index }) in vectors.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        match index {
            Some(index) => {
                out.extend(&text.as_bytes()[..index.start]);
                out.extend(place.to_string().as_bytes());
                out.extend(&text.as_bytes()[index.end..]);
            }
            None => out.extend(text.as_bytes()),
        }
    }
    out.push(b']');
}

/// What an answer says under `usage`, for each part: every number in it divided.
fn divided(usage: &str, weights: &[u64]) -> Vec<String> {
    let mut outs = vec![String::new(); weights.len()];
    divide_value(usage, weights, &mut outs);
    outs
}

fn divide_value(value: &str, weights: &[u64], outs: &mut [String]) {
    let push = |outs: &mut [String], text: &str| outs.iter_mut().for_each(|out| out.push_str(text));
    if value.starts_with('{') {
        let mut before = "{";
        let _ = json::members(value, |key, value| {
            push(outs, before);
            let mut written = Vec::new();
            json::string(key, &mut written);
            push(outs, &String::from_utf8_lossy(&written));
            push(outs, ":");
            divide_value(value, weights, outs);
            before = ",";
        });
        push(outs, if before == "{" { "{}" } else { "}" });
    } else if let Ok(total) = value.parse::<u128>() {
        for (out, part) in outs.iter_mut().zip(divide(total, weights)) {
            out.push_str(&part.to_string());
        }
    } else if let Some((total, scale)) = decimal(value) {
        for (out, part) in outs.iter_mut().zip(divide(total, weights)) {
            let digits = format!("{part:0width$}", width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            out.push_str(whole);
            out.push('.');
            out.push_str(fraction);
        }
    } else {
        push(outs, value);
    }
}

/// A decimal such as `0.25`, which some servers tell a cost by: its digits, with more behind them to
/// be divided into, and how many of them stand behind the point.
fn decimal(value: &str) -> Option<(u128, usize)> {
    const MORE: usize = 6;
    let (whole, fraction) = value.split_once('.')?;
    let digits = format!("{whole}{fraction}{}", "0".repeat(MORE));
    let total = digits.parse().ok()?;
    Some((total, fraction.len() + MORE))
}

/// What stands between the brackets of a list.
fn json_list(list: &str) -> &str {
    list.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(list)
}

/// What an input is, and how many vectors it asks for.
fn measure(input: &str) -> Option<(Kind, usize)> {
    if input.starts_with('"') {
        return Some((Kind::Texts, 1));
    }
    let (mut texts, mut numbers, mut lists, mut all) = (0, 0, 0, 0);
    json::items(input, |item| {
        all += 1;
        match item.as_bytes().first() {
            Some(b'"') => texts += 1,
            Some(b'0'..=b'9') => numbers += 1,
            Some(b'[') => lists += 1,
            _ => {}
        }
    })?;
    match all {
        0 => None,
        all if texts == all => Some((Kind::Texts, all)),
        all if lists == all => Some((Kind::Tokens, all)),
        all if numbers == all => Some((Kind::Tokens, 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

//! Which lines of a unit may share a call: those of `/v1/embeddings` with the same parameters.

use std::collections::HashMap;

use bytes::Bytes;

use super::line::OpenLine;
use crate::domain::endpoint;
use crate::domain::line;
use crate::domain::pack::Embedding;

/// The lines of a unit that may share calls, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct Packing(Vec<(u32, Packable)>);

/// A line that may share a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packable {
    /// Lines of one group have the same parameters.
    group: u32,
    /// How many vectors the line asks for.
    pub inputs: usize,
}

impl Packing {
    /// Reads the lines, and puts those of one group next to each other, that of the first line
    /// first. Lines that share no call come last. `None` if no two lines may share one.
    pub(super) fn of(text: &Bytes, lines: &mut [OpenLine]) -> Option<Self> {
        let mut groups: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut packables = Vec::with_capacity(lines.len());
        for line in &*lines {
            let Some((parameters, inputs)) = read(text, line) else {
                continue;
            };
            let next = u32::try_from(groups.len()).unwrap_or(u32::MAX);
            let group = *groups.entry(parameters).or_insert(next);
            packables.push((line.index, Packable { group, inputs }));
        }
        if groups.len() == packables.len() {
            return None;
        }
        packables.sort_unstable_by_key(|(index, _)| *index);
        let packing = Self(packables);
        lines.sort_by_cached_key(|line| packing.get(line).map_or(u32::MAX, |one| one.group));
        Some(packing)
    }

    /// How a line may share a call. `None`: it does not.
    pub(crate) fn get(&self, line: &OpenLine) -> Option<Packable> {
        let found = self
            .0
            .binary_search_by_key(&line.index, |(index, _)| *index);
        found.ok().map(|place| self.0[place].1)
    }
}

impl Packable {
    /// Whether the lines have the same parameters.
    pub(crate) fn goes_with(self, other: Packable) -> bool {
        self.group == other.group
    }
}

/// The parameters of a line, and how many inputs it has.
fn read(text: &Bytes, line: &OpenLine) -> Option<(Vec<u8>, usize)> {
    let line = std::str::from_utf8(text.get(line.range.clone())?).ok()?;
    let envelope = line::read(line)?;
    if endpoint::of_batch(&envelope.url).path != endpoint::EMBEDDINGS {
        return None;
    }
    let embedding = Embedding::read(envelope.body)?;
    Some((embedding.parameters(), embedding.inputs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_endpoint_and_the_same_parameters_stand_next_to_each_other() {
        let line = |url: &str, body: &str| {
            format!(r#"{{"custom_id":"x","method":"POST","url":"{url}","body":{body}}}"#)
        };
        let embedding = |body: &str| line("/v1/embeddings", body);
        let texts = [
            line("/v1/moderations", r#"{"model":"m","input":"a"}"#),
            embedding(r#"{"model":"m","input":"a"}"#),
            embedding(r#"{"model":"m","input":"b","dimensions":2}"#),
            embedding(r#"{"model":"m","input":[]}"#),
            embedding(r#"{"input":["c","d"],"model":"m"}"#),
            embedding(r#"{"model":"m","dimensions":2,"input":"e"}"#),
        ];
        let (mut text, mut lines) = (String::new(), Vec::new());
        for (index, line) in (0..).zip(&texts) {
            lines.push(OpenLine::new(index, text.len()..text.len() + line.len()));
            text += line;
        }
        let text = Bytes::from(text);
        let packing = Packing::of(&text, &mut lines).expect("lines that may share calls");
        let order: Vec<u32> = lines.iter().map(|line| line.index).collect();
        assert_eq!(order, [1, 4, 2, 5, 0, 3]);
        let inputs = lines
            .iter()
            .map(|line| packing.get(line).map(|one| one.inputs));
        let inputs: Vec<Option<usize>> = inputs.collect();
        assert_eq!(inputs, [Some(1), Some(2), Some(1), Some(1), None, None]);
        let [first, second, third] = [0, 1, 2].map(|place| packing.get(&lines[place]).unwrap());
        assert!(first.goes_with(second) && !first.goes_with(third));
        // Whatever order they come in.
        lines.sort_by_key(|line| (line.index * 5) % 6);
        let packing = Packing::of(&text, &mut lines).expect("lines that may share calls");
        let groups = lines
            .iter()
            .map(|line| packing.get(line).map(|one| one.group));
        let groups: Vec<Option<u32>> = groups.collect();
        assert_eq!(groups.iter().flatten().count(), 4, "{groups:?}");
        lines.sort_by_key(|line| [4, 0, 2, 5, 1, 3][line.index as usize]);
        assert!(
            Packing::of(&text, &mut lines[1..3]).is_none(),
            "no two are alike"
        );
    }
}

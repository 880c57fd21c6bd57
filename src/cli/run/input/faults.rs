//! What is wrong with an input, for people.

use std::collections::{HashMap, HashSet};

use super::lines::Key;
use crate::domain::endpoint::Endpoints;
use crate::domain::findings::{Finding, TOO_MANY_ERRORS};
use crate::domain::line::{self, Check, Fault};
use crate::store::{Batch, Store};

/// Faults of one kind that are printed.
const PRINTED: usize = 3;
/// Ids that are remembered while faults are counted: some 32 MB of memory. Among lines beyond
/// them, those that repeat an id are not counted.
const SEEN_MAX: usize = 1_000_000;
const MISSING: &str = "missing_required_parameter";

/// Faults are of one kind if code and key are the same.
type Kind = (String, Option<String>);

/// Counts the faults of lines, where only the first faults are listed.
#[derive(Default)]
pub(in crate::cli::run) struct Counter {
    endpoints: Endpoints,
    seen: HashSet<super::lines::Hash>,
    counts: HashMap<Kind, usize>,
}

impl Counter {
    pub(in crate::cli::run) fn new(endpoints: Endpoints) -> Self {
        Self {
            endpoints,
            ..Self::default()
        }
    }

    pub(in crate::cli::run) fn line(&mut self, line: &[u8]) {
        let fault = match line::check(line, self.endpoints) {
            Check::Blank => return,
            Check::Fault(fault) => Some(fault),
            Check::Request(request) => {
                let custom_id = Key::new(&request.custom_id, &[]).custom_id();
                let is_seen = self.seen.len() < SEEN_MAX && !self.seen.insert(custom_id);
                let unknown = request.endpoint.is_none().then(Fault::unknown_url);
                let duplicate = is_seen.then(|| Fault::duplicate_custom_id(""));
                request.fault.or(unknown).or(duplicate)
            }
        };
        if let Some(fault) = fault {
            let kind = (fault.code.to_owned(), fault.param.map(Into::into));
            *self.counts.entry(kind).or_default() += 1;
        }
    }
}

/// What is wrong with an input, by kind.
pub(in crate::cli::run) struct Faults {
    kinds: Vec<Faulty>,
}

/// The faults of one kind.
struct Faulty {
    first: Vec<Finding>,
    count: usize,
}

impl Faults {
    /// The first faults, and how many there are of each kind, where they were counted.
    pub(in crate::cli::run) fn new(listed: Vec<Finding>, counter: &Counter) -> Faults {
        let mut kinds: Vec<Faulty> = Vec::new();
        let kind = |finding: &Finding| (finding.code.clone(), finding.param.clone());
        for finding in listed {
            if finding.line.is_none() && finding.code == TOO_MANY_ERRORS {
                continue;
            }
            let known = kinds
                .iter_mut()
                .find(|known| kind(&known.first[0]) == kind(&finding));
            match known {
                Some(known) => {
                    known.count += 1;
                    if known.first.len() <= PRINTED {
                        known.first.push(finding);
                    }
                }
                None => kinds.push(Faulty {
                    first: vec![finding],
                    count: 1,
                }),
            }
        }
        for known in &mut kinds {
            let counted = counter.counts.get(&kind(&known.first[0]));
            known.count = known.count.max(counted.copied().unwrap_or(0));
        }
        Faults { kinds }
    }

    /// Of a batch that was refused.
    pub(in crate::cli::run) async fn of(store: &Store, batch: &Batch) -> anyhow::Result<Faults> {
        let errors = batch.row.errors.as_deref().unwrap_or("[]");
        let listed: Vec<Finding> = serde_json::from_str(errors)?;
        let mut counter = Counter::default();
        if listed
            .last()
            .is_some_and(|last| last.code == TOO_MANY_ERRORS)
        {
            for (chunk, _) in store.first_lines(&batch.row.input_file_id).await? {
                let Some(chunk) = store.chunk(&batch.row.input_file_id, chunk).await? else {
                    break;
                };
                for line in chunk.bytes.split(|&byte| byte == b'\n') {
                    counter.line(line);
                }
            }
        }
        Ok(Faults::new(listed, &counter))
    }

    pub(in crate::cli::run) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Prints the first faults of each kind, and what may help.
    pub(in crate::cli::run) fn print(&self) {
        tell!("The input is not valid:");
        for kind in &self.kinds {
            // One more is as short as the words for it.
            let most = match kind.count {
                count if count <= PRINTED + 1 => count,
                _ => PRINTED,
            };
            for fault in kind.first.iter().take(most) {
                tell!("  {}", told(fault));
            }
            let more = kind.count.saturating_sub(kind.first.len().min(most));
            if more > 0 {
                tell!("  … and {more} more ({})", kind.first[0].code);
            }
        }
        for hint in self.hints() {
            tell!("{hint}");
        }
    }

    /// The first fault, and how many others there are.
    pub(in crate::cli::run) fn in_short(&self) -> String {
        let Some(first) = self.kinds.first().and_then(|kind| kind.first.first()) else {
            return "the input is not valid".to_owned();
        };
        let count: usize = self.kinds.iter().map(|kind| kind.count).sum();
        let more = match count - 1 {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        format!("the input is not valid: {}{more}", told(first))
    }

    /// Flags that mend what is missing.
    fn hints(&self) -> Vec<&'static str> {
        let misses = |param: &str| {
            self.kinds.iter().any(|kind| {
                let first = &kind.first[0];
                first.code == MISSING && first.param.as_deref() == Some(param)
            })
        };
        let hints = [
            (
                "custom_id",
                "--ids takes lines without a custom_id, and bare bodies.",
            ),
            ("body.model", "--model NAME gives every request a model."),
        ];
        let hints = hints.into_iter().filter(|(param, _)| misses(param));
        hints.map(|(_, hint)| hint).collect()
    }
}

fn told(fault: &Finding) -> String {
    let place = fault
        .line
        .map_or(String::new(), |line| format!("line {line}: "));
    format!("{place}{} ({})", fault.message, fault.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(line: u64, code: &str, param: &str) -> Finding {
        Finding {
            code: code.to_owned(),
            message: format!("{code}!"),
            param: Some(param.to_owned()),
            line: Some(line),
        }
    }

    #[test]
    fn faults_are_counted_by_kind() {
        let mut listed: Vec<_> = (1..=20)
            .map(|line| finding(line, "duplicate_custom_id", "custom_id"))
            .collect();
        listed.push(finding(21, MISSING, "body.model"));
        listed.push(Finding::of_file(TOO_MANY_ERRORS, "more", None));
        let mut counter = Counter::default();
        for _ in 0..30 {
            let body = r#"{"model":"m","messages":[]}"#;
            let line = format!(
                r#"{{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{body}}}"#
            );
            counter.line(line.as_bytes());
        }
        let faults = Faults::new(listed, &counter);
        let counts: Vec<_> = faults.kinds.iter().map(|kind| kind.count).collect();
        assert_eq!(counts, [29, 1]);
        assert_eq!(
            faults.in_short(),
            "the input is not valid: line 1: duplicate_custom_id! (duplicate_custom_id); and 29 more"
        );
        assert_eq!(
            faults.hints(),
            ["--model NAME gives every request a model."]
        );
    }
}

//! What is wrong with an input file, by line. It is gathered at the upload, before it is known for
//! which endpoint the file will be used, and read when a batch is made.
//!
//! A batch lists the first [`LISTED_MAX`] faulty lines. Each list here keeps the first
//! [`KEPT_MAX`], which is one more. So a merge of the lists gives the exact first [`LISTED_MAX`]
//! lines, and shows whether there are more: each of the first [`KEPT_MAX`] faulty lines of the file
//! is among the first [`KEPT_MAX`] of its own list.

use std::collections::{BTreeMap, BinaryHeap};

use serde::{Deserialize, Serialize};

use super::asked::{self, Asked};
use super::endpoint::{self, ANY, Endpoint, VERSION};
use super::line::{self, Fault};

/// How many lines a batch's `errors` name at most.
pub const LISTED_MAX: usize = 100;
/// How many entries each list here keeps at most.
pub const KEPT_MAX: usize = LISTED_MAX + 1;

const _: () = assert!(asked::LINES_MAX == KEPT_MAX);

/// The code of the finding that stands for all lines beyond those listed.
pub const TOO_MANY_ERRORS: &str = "too_many_errors";
/// So many letters and digits in a row are taken for a key, and not for a name.
const KEY_CHARS_MIN: usize = 24;

/// One entry of a batch's `errors.data`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// The line, from 1. `None` if the finding is about the file.
    pub line: Option<u64>,
}

impl Finding {
    /// About the file as a whole.
    #[must_use]
    pub fn of_file(code: &str, message: &str, param: Option<&str>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.to_owned(),
            param: param.map(str::to_owned),
            line: None,
        }
    }

    /// About one line.
    #[must_use]
    pub fn of_line(line: u64, fault: Fault) -> Self {
        Self {
            code: fault.code.to_owned(),
            message: fault.message,
            param: fault.param.map(Into::into),
            line: Some(line),
        }
    }

    /// Whether the log may have the message. Messages about the file may be logged, but for one
    /// that repeats an id from the request; of the messages about lines, only the one that names a
    /// model.
    fn is_for_the_log(&self) -> bool {
        match self.line {
            Some(_) => ["model_not_found", line::INVALID_TASK].contains(&&*self.code),
            None => self.code != "invalid_request",
        }
    }
}

/// The first finding and how many more there are, for the log. The log has the finding's message
/// only where the message repeats nothing that the client wrote, but for a model's name, which
/// operators look for. A client may have written a key into any field, also into the model's, so
/// whatever looks like a key is masked.
#[must_use]
pub fn in_short(findings: &[Finding]) -> String {
    let Some(first) = findings.first() else {
        return "unknown".to_owned();
    };
    let mut text = match first.line {
        Some(line) => format!("line {line}: {}", first.code),
        None => first.code.clone(),
    };
    if first.is_for_the_log() {
        text.push_str(&format!(": {}", without_keys(&first.message)));
    } else if let Some(param) = &first.param {
        text.push_str(&format!(" ({param})"));
    }
    if findings.len() > 1 {
        text.push_str(&format!("; and {} more", findings.len() - 1));
    }
    text
}

/// The text with `***` for each word that looks like a key: one that begins with `sk-`, or that has
/// many letters and digits in a row.
fn without_keys(text: &str) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_word) {
        let (before, behind) = rest.split_at(start);
        let end = behind.find(|c| !is_of_word(c)).unwrap_or(behind.len());
        let (word, behind) = behind.split_at(end);
        masked.push_str(before);
        masked.push_str(if looks_like_a_key(word) { "***" } else { word });
        rest = behind;
    }
    masked.push_str(rest);
    masked
}

fn looks_like_a_key(word: &str) -> bool {
    let is_random = |run: &str| {
        run.len() >= KEY_CHARS_MIN
            && run.bytes().any(|byte| byte.is_ascii_digit())
            && run.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    word.starts_with("sk-") || word.split(['-', '_']).any(is_random)
}

/// What is wrong with a file, whichever endpoint it is used for. Stored as JSON, with the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// What is wrong with the file as a whole.
    #[serde(default)]
    of_file: Vec<Finding>,
    /// Lines that are wrong for every endpoint.
    envelopes: Vec<Finding>,
    /// Lines with a whole envelope, by the endpoint that their `url` names. Lines whose `url` names
    /// no endpoint are under the empty name.
    endpoints: BTreeMap<String, Requests>,
    /// Lines whose `custom_id` stands on an earlier line.
    duplicates: Vec<Finding>,
    /// What may be wrong, depending on the routes. Nothing in a file that was uploaded by an
    /// earlier version.
    #[serde(default, skip_serializing_if = "Asked::is_empty")]
    pub asked: Asked,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Requests {
    /// The first lines with this endpoint: for a batch of another endpoint they are wrong.
    lines: Vec<u64>,
    /// The `url` of each of these lines as it is written. Empty where all lines write the
    /// endpoint's path, and in a file that was uploaded by an earlier version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    urls: Vec<String>,
    /// The first lines that are wrong for their own endpoint. In a file that was uploaded by an
    /// earlier version, those that name no model are among them.
    faults: Vec<Finding>,
    /// The first lines that name no model, where the endpoint needs one. They are right in a batch
    /// that has a task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unnamed: Vec<Finding>,
    /// The first lines that are right but that they do not say how much the model may write, where
    /// the endpoint wants to know. They are right where their routes fill it in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unlimited: Vec<Finding>,
}

/// What lines need not say, because something else says it for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Supplied {
    /// The model: the batch has a task.
    pub model: bool,
    /// How much the model may write: each route fills it in.
    pub limit: bool,
}

impl Findings {
    /// Whether lines may count for no model: lines that are no requests, and those of models that
    /// are too many.
    #[must_use]
    pub fn has_lines_of_no_model(&self) -> bool {
        !self.envelopes.is_empty() || !self.of_file.is_empty()
    }

    /// Notes a line that is no request. Lines are noted in ascending order.
    pub fn fault(&mut self, line: u64, fault: Fault) {
        if self.envelopes.len() < KEPT_MAX {
            self.envelopes.push(Finding::of_line(line, fault));
        }
    }

    /// Notes a line that is a request, and what is wrong with its body. `url` is what the line
    /// names as its endpoint. `beside`: what else is wrong with a line that names no model. Lines
    /// are noted in ascending order.
    pub fn request(
        &mut self,
        line: u64,
        endpoint: Option<&Endpoint>,
        url: &str,
        fault: Option<Fault>,
        beside: Option<Fault>,
    ) {
        let name = endpoint.map_or("", |endpoint| endpoint.path);
        if !self.endpoints.contains_key(name) {
            self.endpoints.insert(name.to_owned(), Requests::default());
        }
        let Some(requests) = self.endpoints.get_mut(name) else {
            return;
        };
        if requests.lines.len() < KEPT_MAX {
            if url != name || !requests.urls.is_empty() {
                // Until now, all lines wrote the path.
                requests.urls.resize(requests.lines.len(), name.to_owned());
                requests.urls.push(line::quoted(url).into_owned());
            }
            requests.lines.push(line);
        }
        let limit = endpoint.and_then(|endpoint| endpoint.limit);
        for fault in [fault, beside].into_iter().flatten() {
            let list = if fault.is_missing_model() {
                &mut requests.unnamed
            } else if limit.is_some_and(|limit| fault.is_missing(limit)) {
                &mut requests.unlimited
            } else {
                &mut requests.faults
            };
            if list.len() < KEPT_MAX {
                list.push(Finding::of_line(line, fault));
            }
        }
    }

    /// Notes a line whose `custom_id` is known to stand on an earlier line, in ascending order.
    pub fn duplicate(&mut self, line: u64, custom_id: &str) {
        if self.duplicates.len() < KEPT_MAX {
            let fault = Fault::duplicate_custom_id(custom_id);
            self.duplicates.push(Finding::of_line(line, fault));
        }
    }

    /// Notes that the file names more models than it may.
    pub fn too_many_models(&mut self, max: usize) {
        let message = format!(
            "The input file names more than {max} models, the maximum. Whoever runs the server can \
             raise it: [limits] max_models_per_file."
        );
        let finding = Finding::of_file("too_many_models", &message, Some("body.model"));
        self.of_file.push(finding);
    }

    /// What is wrong with the file for a batch of that endpoint: first the findings about the file,
    /// then one for each of the first [`KEPT_MAX`] faulty lines, by line. For a batch of [`ANY`],
    /// each line is checked for its own endpoint.
    #[must_use]
    pub fn for_endpoint(&self, endpoint: &str) -> Vec<Finding> {
        self.for_batch(endpoint, Supplied::default())
    }

    /// The same for a batch whose lines need not say everything.
    #[must_use]
    pub fn for_batch(&self, endpoint: &str, supplied: Supplied) -> Vec<Finding> {
        let mut lists = vec![self.of_file.clone(), self.envelopes.clone()];
        for (name, requests) in &self.endpoints {
            let is_any = endpoint == ANY.path;
            let is_own = is_any || name == endpoint;
            if is_own && !supplied.model && !(is_any && name.is_empty()) {
                lists.push(requests.unnamed.clone());
            }
            if is_own && !supplied.limit {
                lists.push(requests.unlimited.clone());
            }
            lists.push(if is_any && name.is_empty() {
                let lines = requests.lines.iter();
                lines
                    .map(|&line| Finding::of_line(line, Fault::unknown_url()))
                    .collect()
            } else if is_own {
                // In a file that was uploaded by an earlier version, these are among the others.
                let limit = endpoint::find(name).and_then(|endpoint| endpoint.limit);
                let lacks = |finding: &Finding, key: &str| {
                    line::lacks(&finding.code, finding.param.as_deref(), key)
                };
                let is_supplied = |finding: &Finding| {
                    (supplied.model && lacks(finding, "model"))
                        || (supplied.limit && limit.is_some_and(|limit| lacks(finding, limit)))
                };
                let faults = requests.faults.iter();
                faults
                    .filter(|fault| !is_supplied(fault))
                    .cloned()
                    .collect()
            } else {
                let path = Some(name.as_str()).filter(|path| !path.is_empty());
                let url = |place: usize| requests.urls.get(place).map(String::as_str).or(path);
                let fault = |url: Option<&str>| match url {
                    // Where the url is the endpoint's, the upload knew of no such endpoint.
                    Some(url) if path.is_none() && is_path(url, endpoint) => {
                        Fault::older_than_endpoint(endpoint)
                    }
                    url => Fault::invalid_url(url, endpoint),
                };
                let lines = requests.lines.iter().enumerate();
                lines
                    .map(|(place, &line)| Finding::of_line(line, fault(url(place))))
                    .collect()
            });
        }
        lists.push(self.duplicates.clone());
        let mut findings = merge(lists);
        findings.truncate(self.of_file.len() + KEPT_MAX);
        findings
    }
}

/// Whether a `url` is an endpoint's path, be it with or without its `/v1`.
fn is_path(url: &str, endpoint: &str) -> bool {
    url == endpoint || endpoint.strip_prefix(VERSION) == Some(url)
}

/// What a batch's `errors` say, merged from lists that each have at least their first [`KEPT_MAX`]
/// lines: first the findings about the file, then one finding a line, by line. Where several lists
/// have a finding for a line, the first list's counts. If there are more than [`LISTED_MAX`] lines,
/// a `too_many_errors` stands at the end.
#[must_use]
pub fn report(lists: impl IntoIterator<Item = Vec<Finding>>) -> Vec<Finding> {
    let mut findings = merge(lists);
    let of_file = findings.iter().take_while(|f| f.line.is_none()).count();
    if findings.len() > of_file + LISTED_MAX {
        findings.truncate(of_file + LISTED_MAX);
        let message = format!("There are more errors than the first {LISTED_MAX} that are listed.");
        findings.push(Finding::of_file(TOO_MANY_ERRORS, &message, None));
    }
    findings
}

/// The first lines of any of these kinds, as many as a list of findings keeps: there may be so many
/// kinds that a finding for each of their lines would be too much to hold.
#[must_use]
pub fn first_lines<'a, K: Copy + Ord>(
    kinds: impl Iterator<Item = (K, &'a [u64])>,
) -> Vec<(u64, K)> {
    let mut first = BinaryHeap::new();
    for (kind, lines) in kinds {
        for &line in lines {
            first.push((line, kind));
            if first.len() > KEPT_MAX {
                first.pop();
            }
        }
    }
    first.into_sorted_vec()
}

/// First the findings about the file, then one finding a line, by line.
fn merge(lists: impl IntoIterator<Item = Vec<Finding>>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = lists.into_iter().flatten().collect();
    // The sort is stable: of several findings about one line, the first list's stands first.
    findings.sort_by_key(|finding| finding.line);
    findings.dedup_by(|later, first| first.line.is_some() && later.line == first.line);
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::endpoint::{ENDPOINTS, Endpoints, find};

    fn fault(code: &'static str) -> Fault {
        Fault {
            code,
            message: format!("{code}!"),
            param: Some("body.x".into()),
        }
    }

    fn codes(findings: &[Finding]) -> Vec<(Option<u64>, &str)> {
        let codes = findings.iter().map(|f| (f.line, f.code.as_str()));
        codes.collect()
    }

    #[test]
    fn a_file_of_the_version_before_has_nothing_that_depends_on_routes() {
        let stored = r#"{"envelopes":[],"endpoints":{},"duplicates":[]}"#;
        let findings: Findings = serde_json::from_str(stored).expect("findings");
        assert!(findings.asked.is_empty());
        // And the version before reads what this one stores where nothing is asked for.
        let stored = serde_json::to_string(&findings).expect("JSON");
        assert!(!stored.contains("asked"), "{stored}");
    }

    #[test]
    fn a_line_is_judged_by_the_endpoint_of_the_batch() {
        let mut findings = Findings::default();
        let mut request = |line, url, fault| findings.request(line, find(url), url, fault, None);
        request(1, "/v1/embeddings", None);
        request(2, "/v1/embeddings", Some(fault("body")));
        request(4, "/v1/responses", Some(fault("body")));
        request(5, "https://x.example/", None);
        request(6, "/v1/embeddings", None);
        findings.fault(3, fault("envelope"));
        findings.duplicate(5, "x");
        findings.duplicate(6, "x");
        let stored = serde_json::to_string(&findings).expect("JSON");
        let findings: Findings = serde_json::from_str(&stored).expect("findings");
        assert_eq!(
            codes(&findings.for_endpoint("/v1/embeddings")),
            [
                (Some(2), "body"),
                (Some(3), "envelope"),
                (Some(4), "invalid_url"),
                (Some(5), "invalid_url"),
                (Some(6), "duplicate_custom_id"),
            ]
        );
        assert_eq!(
            codes(&findings.for_endpoint("/v1/videos")),
            [1, 2, 3, 4, 5, 6].map(|line| {
                (
                    Some(line),
                    if line == 3 { "envelope" } else { "invalid_url" },
                )
            })
        );
    }

    #[test]
    fn a_file_that_is_older_than_its_endpoint_is_to_be_uploaded_again() {
        let mut findings = Findings::default();
        for (line, url) in [(1, "/v1/rerank"), (2, "/rerank"), (3, "/v1/other")] {
            findings.request(line, None, url, None, None);
        }
        let found = findings.for_endpoint("/v1/rerank");
        let is_told = |finding: &Finding| finding.message.contains("upload the file again");
        let told: Vec<bool> = found.iter().map(is_told).collect();
        assert_eq!(told, [true, true, false], "{found:?}");
    }

    #[test]
    fn in_a_batch_with_a_task_a_line_need_not_name_a_model() {
        let missing = || Fault {
            code: Fault::MISSING,
            message: String::new(),
            param: Some(line::MODEL.into()),
        };
        let of_task = Supplied {
            model: true,
            limit: false,
        };
        let mut findings = Findings::default();
        let endpoint = &ENDPOINTS[1];
        let mut request = |line, fault, beside| {
            findings.request(line, Some(endpoint), endpoint.path, fault, beside);
        };
        // More lines without a model than a list keeps, and what else is wrong behind them.
        for line in 1..=200 {
            request(line, Some(missing()), None);
        }
        request(201, Some(missing()), Some(fault("beside")));
        request(202, Some(fault("body")), None);
        let stored = serde_json::to_string(&findings).expect("JSON");
        let findings: Findings = serde_json::from_str(&stored).expect("findings");
        assert_eq!(
            codes(&findings.for_batch(endpoint.path, of_task)),
            [(Some(201), "beside"), (Some(202), "body")]
        );
        let found = findings.for_endpoint(endpoint.path);
        assert_eq!(found.len(), KEPT_MAX);
        let lines = found.iter().map(|finding| finding.line);
        assert!(lines.eq((1..=KEPT_MAX as u64).map(Some)));
        // A file that an earlier version has taken has these lines among the others.
        let mut older = serde_json::to_value(&findings).expect("JSON");
        let of_endpoint = &mut older["endpoints"][endpoint.path];
        of_endpoint["faults"] = of_endpoint["unnamed"].take();
        let of_endpoint = of_endpoint.as_object_mut().expect("an object");
        of_endpoint.remove("unnamed");
        let older: Findings = serde_json::from_value(older).expect("findings");
        assert_eq!(older.for_batch(endpoint.path, of_task), []);
        assert_eq!(older.for_endpoint(endpoint.path).len(), KEPT_MAX);
    }

    #[test]
    fn lines_need_not_say_how_much_is_written_where_their_routes_do() {
        let supplied = Supplied {
            model: false,
            limit: true,
        };
        let endpoint = find("/v1/messages").expect("an endpoint");
        let mut findings = Findings::default();
        let check = |body: &str| {
            let line = format!(
                r#"{{"custom_id":"a","method":"POST","url":"/v1/messages","body":{body}}}"#
            );
            match line::check(line.as_bytes(), Endpoints::USUAL) {
                line::Check::Request(request) => (request.fault, request.fault_beside_model),
                _ => panic!("a request"),
            }
        };
        // More than a list keeps, and what else is wrong behind them.
        for number in 1..=200 {
            let (fault, beside) = check(r#"{"model":"m","messages":[]}"#);
            findings.request(number, Some(endpoint), endpoint.path, fault, beside);
        }
        let (fault, beside) = check(r#"{"model":"m","messages":[],"stream":true}"#);
        findings.request(201, Some(endpoint), endpoint.path, fault, beside);
        let (fault, beside) = check(r#"{"messages":[],"max_tokens":null}"#);
        findings.request(202, Some(endpoint), endpoint.path, fault, beside);
        let stored = serde_json::to_string(&findings).expect("JSON");
        let findings: Findings = serde_json::from_str(&stored).expect("findings");
        let left = findings.for_batch(endpoint.path, supplied);
        let left: Vec<_> = left
            .iter()
            .map(|one| (one.line, one.param.as_deref()))
            .collect();
        assert_eq!(
            left,
            [
                (Some(201), Some("body.stream")),
                (Some(202), Some("body.model"))
            ]
        );
        let found = findings.for_endpoint(endpoint.path);
        assert_eq!(found[0].param.as_deref(), Some("body.max_tokens"));
        assert_eq!(found.len(), KEPT_MAX);
        // A file that an earlier version has taken has these lines among the others.
        let mut older = serde_json::to_value(&findings).expect("JSON");
        let of_endpoint = &mut older["endpoints"][endpoint.path];
        of_endpoint["faults"] = of_endpoint["unlimited"].take();
        let of_endpoint = of_endpoint.as_object_mut().expect("an object");
        of_endpoint.remove("unlimited");
        of_endpoint.remove("unnamed");
        let older: Findings = serde_json::from_value(older).expect("findings");
        assert_eq!(older.for_batch(endpoint.path, supplied), []);
    }

    #[test]
    fn a_line_for_another_endpoint_is_told_both_urls() {
        let mut findings = Findings::default();
        findings.request(1, find("/v1/embeddings"), "/v1/embeddings", None, None);
        findings.request(2, None, "https://x.example/", None, None);
        findings.request(3, find("/embeddings"), "/embeddings", None, None);
        findings.request(4, find("/v1/embeddings"), "/v1/embeddings", None, None);
        // A file that was uploaded when the urls were not kept.
        let mut older = serde_json::to_value(&findings).expect("JSON");
        for name in ["", "/v1/embeddings"] {
            let requests = older["endpoints"][name].as_object_mut();
            requests.expect("an object").remove("urls");
        }
        let older: Findings = serde_json::from_value(older).expect("findings");
        let message = |findings: &Findings, place: usize| {
            let found = findings.for_endpoint("/v1/responses");
            let (sentence, rest) = found[place].message.split_once(". ").expect("a sentence");
            assert!(sentence.ends_with("does not match the batch endpoint"));
            rest.to_owned()
        };
        let endpoint = "batch's endpoint is '/v1/responses'.";
        assert_eq!(
            message(&findings, 0),
            format!("The line's url is '/v1/embeddings', and the {endpoint}")
        );
        assert_eq!(
            message(&findings, 1),
            format!("The line's url is 'https://x.example/', and the {endpoint}")
        );
        // As the line writes it, and those beside it as they do.
        for (place, url) in [(2, "/embeddings"), (3, "/v1/embeddings")] {
            assert_eq!(
                message(&findings, place),
                format!("The line's url is '{url}', and the {endpoint}")
            );
        }
        assert_eq!(message(&older, 1), format!("The {endpoint}"));
        assert_eq!(message(&older, 2), message(&findings, 0));
    }

    #[test]
    fn the_log_is_told_no_text_of_the_client_but_a_model_and_no_key() {
        let model = |name: &str| Finding::of_line(2, Fault::model_not_found(name));
        let of_file = |code: &str, message: &str| Finding::of_file(code, message, Some("file_id"));
        let unknown = |name: &str| {
            format!(
                "line 2: model_not_found: The provided model '{name}' is not supported by the \
                 Batch API."
            )
        };
        for name in [
            "gpt-4o-mini-2024-07-18",
            "meta-llama/Llama-3.3-70B-Instruct-Turbo-FP8",
            "ft:gpt-4o-mini:my-org::AbC12dEf",
            "task-1",
        ] {
            assert_eq!(in_short(&[model(name)]), unknown(name));
        }
        for key in [
            "sk-1",
            "sk-proj-a_b-c",
            "AIzaSyA1234567890abcdefghijklmnopqrstuv",
            "gsk_0123456789abcdefghijABCDEFGHIJ",
            "0123456789abcdef0123456789abcdef",
        ] {
            let given = format!("x/{key}");
            assert_eq!(in_short(&[model(&given)]), unknown("x/***"));
            let missing = of_file("invalid_request", &format!("Cannot find file {key}"));
            assert_eq!(in_short(&[missing]), "invalid_request (file_id)");
        }
        let duplicate = Finding::of_line(3, Fault::duplicate_custom_id("private"));
        assert_eq!(
            in_short(&[duplicate, model("m")]),
            "line 3: duplicate_custom_id (custom_id); and 1 more"
        );
        let large = of_file("too_many_requests", "The input file has 7 requests.");
        assert_eq!(
            in_short(&[large]),
            "too_many_requests: The input file has 7 requests."
        );
    }

    #[test]
    fn a_finding_has_its_keys_in_order() {
        let finding = Finding::of_line(7, fault("code"));
        assert_eq!(
            serde_json::to_string(&finding).expect("JSON"),
            r#"{"code":"code","message":"code!","param":"body.x","line":7}"#
        );
    }

    #[test]
    fn a_report_lists_the_file_then_a_hundred_lines_then_that_there_are_more() {
        let lines = |count: u64| -> Vec<Finding> {
            (1..=count)
                .map(|line| Finding::of_line(line, fault("x")))
                .collect()
        };
        assert_eq!(report([]), []);
        assert_eq!(report([lines(100), lines(50)]), lines(100));
        let mut findings = Findings::default();
        findings.too_many_models(100);
        for line in 1..=200 {
            findings.fault(line, fault("x"));
        }
        let of_file = findings.for_endpoint("/v1/embeddings");
        let report = report([of_file, lines(101)]);
        assert_eq!(codes(&report[..1]), [(None, "too_many_models")]);
        assert_eq!(report[1..101], lines(100));
        assert_eq!(codes(&report[101..]), [(None, "too_many_errors")]);
    }

    proptest! {
        /// A file of 600 lines, some at fault, against a judgement that forgets nothing.
        #[test]
        fn the_first_hundred_are_exact(
            file in proptest::collection::vec((0_usize..24, any::<bool>()), 0..600),
            rare in 1_usize..12,
        ) {
            let mut findings = Findings::default();
            let mut expected = BTreeMap::new();
            let mut duplicates = Vec::new();
            let batch = &ENDPOINTS[0];
            for (line, (kind, twice)) in (1..).zip(file) {
                match kind {
                    0..4 if kind * rare < 8 => {
                        findings.fault(line, fault("envelope"));
                        expected.insert(line, "envelope");
                        continue;
                    }
                    4 => {
                        findings.request(line, Some(batch), batch.path, Some(fault("body")), None);
                        expected.insert(line, "body");
                    }
                    5..14 => {
                        findings.request(line, ENDPOINTS.get(kind - 5), "", None, None);
                        if kind > 5 {
                            expected.insert(line, "invalid_url");
                        }
                    }
                    _ => findings.request(line, Some(batch), batch.path, None, None),
                }
                if twice && kind % rare == 0 {
                    duplicates.push(line);
                    expected.entry(line).or_insert("duplicate_custom_id");
                }
            }
            for line in duplicates {
                findings.duplicate(line, "x");
            }
            let report = report([findings.for_endpoint(batch.path)]);
            let mut listed: Vec<_> = expected
                .iter()
                .take(LISTED_MAX)
                .map(|(&line, &code)| (Some(line), code))
                .collect();
            if expected.len() > LISTED_MAX {
                listed.push((None, "too_many_errors"));
            }
            prop_assert_eq!(codes(&report), listed);
        }
    }
}

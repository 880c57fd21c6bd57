//! Looks at a batch file's lines, and remembers what a batch will need to know of them.

use std::collections::HashMap;
use std::hash::RandomState;
use std::io;

use super::duplicates::Duplicates;
use super::nouns::{MayHold, ModelReport, Report};
use crate::domain::asked::Gatherer;
use crate::domain::endpoint::Endpoints;
use crate::domain::findings::KEPT_MAX;
use crate::domain::jsonl::NotJsonl;
use crate::domain::line::{self, Check, Fault};

/// What a line turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Blank,
    /// It is no request, or asks for a model that is not counted.
    Faulty,
    /// `model_no` is the model's place in [`Report::models`].
    Request {
        model_no: u16,
    },
}

pub(super) struct Inspector {
    report: Report,
    max_models: usize,
    endpoints: Endpoints,
    duplicates: Duplicates,
    /// Where in the report a model is, by its name.
    model_nos: HashMap<String, u16>,
    /// The last line's model, which is likely to be the next one's.
    last_model_no: u16,
    asked: Gatherer,
}

impl Inspector {
    pub fn new(max_models: usize, endpoints: Endpoints, may_hold: MayHold) -> Self {
        Self {
            report: Report::default(),
            max_models,
            endpoints,
            duplicates: Duplicates::new(RandomState::new(), may_hold),
            model_nos: HashMap::new(),
            last_model_no: 0,
            asked: Gatherer::default(),
        }
    }

    /// Looks at the next line.
    pub fn line(&mut self, bytes: &[u8]) -> io::Result<Line> {
        self.report.lines += 1;
        let number = self.report.lines;
        let request = match line::check(bytes, self.endpoints) {
            Check::Blank => return Ok(Line::Blank),
            Check::Fault(fault) => {
                self.report.requests += 1;
                if self.report.requests == 1 {
                    self.report.not_jsonl = NotJsonl::of_first_line(bytes);
                }
                self.report.findings.fault(number, fault);
                return Ok(Line::Faulty);
            }
            Check::Request(request) => request,
        };
        self.report.requests += 1;
        self.duplicates.insert(&request.custom_id, number)?;
        let findings = &mut self.report.findings;
        let (fault, beside) = (request.fault, request.fault_beside_model);
        findings.request(number, request.endpoint, &request.url, fault, beside);
        let model = request.model.as_deref().unwrap_or_default();
        let model_no = self.count_model(model, number);
        if let (Some(model_no), Some(endpoint)) = (model_no, request.endpoint) {
            let model = (model_no, model);
            self.asked
                .line(number, model, endpoint, request.shape, request.body);
        }
        Ok(model_no.map_or(Line::Faulty, |model_no| Line::Request { model_no }))
    }

    /// Notes that the next line is too long to be looked at.
    pub fn long_line(&mut self, max_bytes: usize) {
        let report = &mut self.report;
        report.lines += 1;
        report.requests += 1;
        let fault = Fault::line_too_long(max_bytes);
        report.findings.fault(report.lines, fault);
    }

    pub fn finish(mut self) -> io::Result<Report> {
        self.report.suspects = self.duplicates.finish()?;
        self.report.findings.asked = self.asked.finish();
        Ok(self.report)
    }

    /// Counts a request of a model; returns the model's number in the file. `None` if the file
    /// names too many models.
    fn count_model(&mut self, name: &str, line: u64) -> Option<u16> {
        let model_no = self.model_no(name)?;
        self.last_model_no = model_no;
        let model = self.report.models.get_mut(usize::from(model_no))?;
        model.requests += 1;
        if model.first_lines.len() < KEPT_MAX {
            model.first_lines.push(line);
        }
        Some(model_no)
    }

    /// Where in the report a model is, added if it is new; `None` if there are too many.
    fn model_no(&mut self, name: &str) -> Option<u16> {
        let models = &mut self.report.models;
        let last = models.get(usize::from(self.last_model_no));
        if last.is_some_and(|last| last.name == name) {
            return Some(self.last_model_no);
        }
        if let Some(&model_no) = self.model_nos.get(name) {
            return Some(model_no);
        }
        if models.len() == self.max_models {
            self.report.too_many_models = true;
            return None;
        }
        let model_no = u16::try_from(models.len()).ok()?;
        models.push(ModelReport {
            name: name.to_owned(),
            requests: 0,
            first_lines: Vec::new(),
        });
        self.model_nos.insert(name.to_owned(), model_no);
        Some(model_no)
    }
}

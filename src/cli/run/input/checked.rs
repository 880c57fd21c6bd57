//! The requests that a dry run finds, checked as those of a run are.

use std::collections::{BTreeMap, BTreeSet};

use super::Input;
use super::faults::{Counter, Faults};
use super::feed::{Feed, Gathered, limits};
use super::lines::Reader;
use super::reshape::Reshape;
use crate::cli::exit::{NOT_VALID, OrExit as _};
use crate::cli::run::begin::not_jsonl;
use crate::cli::run::generation::Generation;
use crate::config::Config;
use crate::domain::endpoint;
use crate::domain::findings::{self, Finding, Supplied};
use crate::domain::jsonl::NotJsonl;
use crate::domain::line::{self, Fault};
use crate::intake::{self, Contents, Intake, ModelReport, Suspect};
use crate::upstream::Pool;

/// What would be sent.
pub(in crate::cli::run) struct Sent {
    pub(in crate::cli::run) report: intake::Report,
    counter: Counter,
}

/// Reads the requests that would be sent, as the store would get them.
pub(in crate::cli::run) async fn check(
    input: &Input,
    reshape: &Reshape,
    config: &Config,
    surveyed: Option<&Generation>,
) -> anyhow::Result<Sent> {
    let limits = limits(config);
    let mut intake = Intake::new(limits, Contents::Requests);
    let mut counter = Counter::new(config.endpoints);
    let mut sources = surveyed
        .map(|found| Reader::open(&found.lines()))
        .transpose()?;
    let mut gathered = Gathered::default();
    let mut take = |gathered: &mut Gathered, line: &[u8]| -> anyhow::Result<()> {
        let record = match &mut sources {
            Some(sources) => sources.next()?,
            None => None,
        };
        let is_kept = record.is_some_and(|record| record.is_kept());
        let line = if is_kept { b"" } else { line };
        counter.line(line);
        gathered.line(line);
        Ok(())
    };
    let mut feed = Feed::open(input, reshape, limits).await?;
    while feed.read(|line, _| take(&mut gathered, &line)).await? {
        intake.push(&gathered.take(), &mut Vec::new())?;
    }
    feed.finish(|line, _| take(&mut gathered, &line))?;
    intake.push(&gathered.take(), &mut Vec::new())?;
    let report = intake.finish(&mut Vec::new())?;
    Ok(Sent { report, counter })
}

impl Sent {
    /// What a run would refuse. `may_be_none`: it need not send anything.
    pub(in crate::cli::run) async fn faults(
        &self,
        input: &Input,
        reshape: &Reshape,
        config: &Config,
        pool: &Pool,
        may_be_none: bool,
    ) -> anyhow::Result<Faults> {
        let report = &self.report;
        let empty = (report.bytes == 0).then_some(NotJsonl::EMPTY);
        if let Some(what) = empty.as_ref().or(report.not_jsonl.as_ref()) {
            return Err(anyhow::anyhow!(not_jsonl(input, what))).or_exit(NOT_VALID);
        }
        let mut of_file = Vec::new();
        let most = config.limits.max_requests_per_batch;
        if report.requests == 0 && !may_be_none {
            let message = "The input file is empty. Please ensure that your batch contains at \
                           least one request.";
            of_file.push(Finding::of_file("empty_file", message, None));
        } else if report.requests > most {
            let message = format!(
                "The input file has {} requests; a batch may have at most {most}.",
                report.requests
            );
            of_file.push(Finding::of_file("too_many_requests", &message, None));
        }
        let mut found = report.findings.clone();
        if report.too_many_models {
            found.too_many_models(config.limits.max_models_per_file);
        }
        let ids = custom_ids(input, reshape, config, &report.suspects).await?;
        for suspect in &report.suspects {
            if let Some(id) = ids.get(&suspect.line)
                && suspect.earlier.iter().any(|line| ids.get(line) == Some(id))
            {
                found.duplicate(suspect.line, id);
            }
        }
        let models = report.models.iter();
        let unknown = models.filter(|model| pool.resolve(&model.name).is_none());
        let unknown = unknown.flat_map(model_not_found).collect();
        let supplied = Supplied {
            model: false,
            limit: pool.fills_in_limits(&found, endpoint::ANY.path, None),
        };
        let of_lines = found.for_batch(endpoint::ANY.path, supplied);
        let unsupported = pool.unsupported(&found, endpoint::ANY.path, None);
        let listed = findings::report([of_file, of_lines, unknown, unsupported]);
        Ok(Faults::new(listed, &self.counter))
    }
}

fn model_not_found(model: &ModelReport) -> impl Iterator<Item = Finding> {
    let lines = model.first_lines.iter();
    lines.map(|&line| Finding::of_line(line, Fault::model_not_found(&model.name)))
}

/// The ids of lines that may repeat each other's.
async fn custom_ids(
    input: &Input,
    reshape: &Reshape,
    config: &Config,
    suspects: &[Suspect],
) -> anyhow::Result<BTreeMap<u64, String>> {
    let mut ids = BTreeMap::new();
    let lines = suspects.iter();
    let lines: BTreeSet<u64> = lines
        .flat_map(|suspect| suspect.earlier.iter().copied().chain([suspect.line]))
        .collect();
    if lines.is_empty() {
        return Ok(ids);
    }
    let mut note = |text: &[u8], number: u64| -> anyhow::Result<()> {
        if lines.contains(&number)
            && let Some(request) = std::str::from_utf8(text).ok().and_then(line::read)
        {
            ids.insert(number, request.custom_id.into_owned());
        }
        Ok(())
    };
    let mut feed = Feed::open(input, reshape, limits(config)).await?;
    while feed.read(|line, number| note(&line, number)).await? {}
    feed.finish(|line, number| note(&line, number))?;
    Ok(ids)
}

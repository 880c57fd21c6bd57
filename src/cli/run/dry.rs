//! `--dry-run`: what a run would do. It looks at all that a run looks at, and changes nothing.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::args::RunArgs;
use super::change::Change;
use super::claim;
use super::generation::Generation;
use super::input::Input;
use super::input::checked::{Sent, check};
use super::input::reshape::Reshape;
use super::journal::{INPUT_COPY, Journal, must_be_unused};
use super::keep::{Keep, keep_answers, survey};
use super::listed::Listed;
use super::places::Places;
use super::prepare::{admit, counts, earlier, why_anew};
use super::report::Report;
use super::result::beside::beside;
use super::summary::Summary;
use super::words::Words;
use crate::app;
use crate::cli::exit::{NOT_VALID, OrExit as _};
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::upstream::{Options, Pool};

/// What is added to the name of a store's file for each of its files.
const STORE_FILES: [&str; 2] = ["", "-wal"];

/// What an earlier run has of the input.
struct Earlier {
    /// Why its batch would not be gone on with.
    why: Option<String>,
    /// Answers that would be kept.
    kept: u64,
    /// Requests that failed, and would not be sent again.
    failed: u64,
}

/// Says what a run would send, and what is wrong with its input.
pub(super) async fn dry_run(
    args: &RunArgs,
    places: &Places,
    config: &mut Config,
    words: &Words,
    report: &Report,
) -> anyhow::Result<ExitCode> {
    let reshape = args.reshape();
    // Nothing listens for a signal here: it ends the process.
    let stop = CancellationToken::new();
    let input = Input::of(&args.input, config.limits.max_file_bytes, &stop);
    let mut input = input.or_exit(NOT_VALID)?;
    let _lock = claim::look(&places.state)?;
    let journal = earlier(args, places)?;
    admit(args, places, journal.as_ref()).or_exit(NOT_VALID)?;
    must_be_unused(&places.state)?;
    // What is wrong with a certificate shows here.
    let pool = Pool::new(&config.upstream_settings(), Options::default());
    let pool = pool.map_err(anyhow::Error::from).or_exit(NOT_VALID)?;
    let journal = journal.filter(|_| !args.restart);
    let directory = Scratch::new(journal.is_some() || !input.is_lasting())?;
    let scratch = directory.generation();
    if let Some(scratch) = &scratch {
        input
            .make_lasting(&scratch.state().join(INPUT_COPY))
            .await?;
    }
    let earlier = match (&journal, &scratch) {
        (Some(journal), Some(scratch)) => {
            Some(compare(args, journal, scratch, &reshape, config, &input).await?)
        }
        _ => None,
    };
    let surveyed = scratch.as_ref().filter(|_| earlier.is_some());
    let sent = check(&input, &reshape, config, surveyed).await?;
    let goes_on = earlier
        .as_ref()
        .is_some_and(|earlier| earlier.why.is_none());
    // A batch that is gone on with was checked when it was made.
    if !goes_on {
        let listed = match &config.models[..] {
            [] => Some(Listed::ask(&pool, args, words).await),
            _ => None,
        };
        let faults = sent
            .faults(&input, &reshape, config, &pool, earlier.is_some())
            .await?;
        if !faults.is_empty() {
            faults.print();
            let summary = Summary::new("invalid", None, 0, report.elapsed());
            report.print(&summary.because(faults.in_short()))?;
            return Ok(ExitCode::from(NOT_VALID));
        }
        if let Some(listed) = listed {
            listed.warn_of_others(&sent.report.models);
        }
    }
    if args.json {
        report.print(&summary(&sent, earlier.as_ref(), report))?;
    } else {
        say(&sent, earlier.as_ref(), config)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A directory for what a dry run has to write; removed at the end.
struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    fn new(is_needed: bool) -> anyhow::Result<Scratch> {
        let made = is_needed.then(tempfile::tempdir).transpose();
        let made = made.context("cannot make a directory for temporary files")?;
        Ok(Scratch(made))
    }

    fn generation(&self) -> Option<Generation> {
        let directory = self.0.as_ref()?;
        Some(Generation::first(directory.path()))
    }
}

/// Matches the input with the answers of an earlier run, as that run's store has them. The store
/// is copied: to open one changes its files.
async fn compare(
    args: &RunArgs,
    journal: &Journal,
    scratch: &Generation,
    reshape: &Reshape,
    config: &mut Config,
    input: &Input,
) -> anyhow::Result<Earlier> {
    let input_sha256 = input.hash().await?;
    let mut journal = journal;
    let (why, change, counts, store) = loop {
        let change = Change::since(journal, &input_sha256, reshape);
        copy_store(&journal.generation().database(), &scratch.database())?;
        config.database.move_to(&scratch.database());
        let store = app::open_store_alone(config, Clock::default()).await?;
        let counts = counts(journal, &store).await?;
        let why = why_anew(args, journal, &change, counts, config);
        // As a run does, which goes back to the run before one that was killed without an answer.
        match journal.earlier() {
            Some(earlier) if why.is_some() && !journal.has_answers(counts) => {
                store.close().await;
                scratch.remove();
                journal = earlier;
            }
            _ => break (why, change, counts, store),
        }
    };
    let keep = match why {
        Some(_) => Keep::Marks,
        None => Keep::MarksOfAll,
    };
    let answers = keep_answers(journal, scratch, &store, keep).await;
    store.close().await;
    let answers = answers?;
    let found = survey(scratch, reshape, config, input).await?;
    if change.is_some() && answers > 0 && found.kept == 0 {
        return Err(anyhow::anyhow!(change.keeps_nothing(journal))).or_exit(NOT_VALID);
    }
    let failed = match why {
        Some(_) => 0,
        None => u64::try_from(counts.failed).unwrap_or(0),
    };
    Ok(Earlier {
        why,
        kept: found.kept.saturating_sub(failed),
        failed,
    })
}

fn copy_store(from: &Path, to: &Path) -> anyhow::Result<()> {
    for ending in STORE_FILES {
        let (from, to) = (beside(from, ending), beside(to, ending));
        if from.exists() {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn summary(sent: &Sent, earlier: Option<&Earlier>, report: &Report) -> Summary<'static> {
    let (kept, failed) = earlier.map_or((0, 0), |earlier| (earlier.kept, earlier.failed));
    let mut summary = Summary::new("dry_run", None, kept, report.elapsed());
    let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    summary.failed = whole(failed);
    summary.total = whole(kept + failed + sent.report.requests);
    summary.to_send = Some(sent.report.requests);
    summary
}

fn say(sent: &Sent, earlier: Option<&Earlier>, config: &Config) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    let requests = sent.report.requests;
    match earlier {
        None => writeln!(out, "{requests} requests would be sent")?,
        Some(Earlier { why, kept, failed }) => {
            let why = why
                .as_deref()
                .unwrap_or("The earlier run would be gone on with");
            let failed = match failed {
                0 => String::new(),
                failed => format!("{failed} have failed before, "),
            };
            writeln!(
                out,
                "{why}: {kept} answers would be kept, {failed}{requests} requests would be sent"
            )?;
        }
    }
    for model in &sent.report.models {
        let name = match model.name.as_str() {
            "" => "(no model)",
            name => name,
        };
        writeln!(out, "  {:>10}  {name}", model.requests)?;
    }
    for upstream in &config.upstreams {
        writeln!(out, "to {}: {}", upstream.name, upstream.base_url)?;
    }
    Ok(())
}

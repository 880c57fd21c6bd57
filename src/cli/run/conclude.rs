//! The end of a run: its files, and how it went.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::args::RunArgs;
use super::journal::Journal;
use super::places::Places;
use super::report::Report;
use super::result::answers::Sources;
use super::result::files::{self, must_be_all};
use super::result::growing::Streams;
use super::result::stream::Stream;
use super::result::target::Target;
use super::summary::{self, Failures, Summary};
use crate::domain::file::Kind;
use crate::store::{Batch, Store};

/// Causes of failures that are printed.
const PRINTED_CAUSES: usize = 5;

/// Writes the results of a run whose batch has ended, and says how it went.
pub(super) async fn conclude(
    args: &RunArgs,
    places: &Places,
    store: &Store,
    batch: Option<&Batch>,
    streams: Streams,
    journal: &mut Journal,
    report: &Report,
) -> anyhow::Result<ExitCode> {
    let Places { output, errors, .. } = places;
    // The owner had time to edit them since the run began.
    for target in [output, errors] {
        journal.results.must_be_unchanged(target)?;
    }
    let mut summary = Summary::new("completed", batch, journal.kept(), report.elapsed());
    let sources = Sources::of(store, journal);
    let answered = (Kind::Output, whole(summary.completed));
    match output.file() {
        Some(path) => files::write(&sources, answered, output, path, journal).await?,
        None => finish(streams.output, &sources, answered, output).await?,
    }
    let failed = (Kind::Error, whole(summary.failed));
    match errors.file() {
        Some(path) => write_errors(&sources, failed, errors, path, journal).await?,
        None => finish(streams.errors, &sources, failed, errors).await?,
    }
    let error_file = batch.and_then(|batch| batch.row.error_file_id.as_deref());
    let failures = match error_file {
        Some(file_id) => summary::failures(store, file_id).await?,
        None => Vec::new(),
    };
    args.say(&format!(
        "{} of {} requests succeeded: {output}",
        summary.completed, summary.total
    ));
    if summary.failed > 0 {
        args.say(&format!("{} failed: {errors}", summary.failed));
        say_causes(args, &failures);
    }
    summary.output = (!output.is_stdout()).then(|| output.to_string());
    summary.errors = error_file.map(|_| errors.to_string());
    summary.failures = failures;
    report.print(&summary)?;
    Ok(if summary.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes the rest of a result that only takes bytes. `stream` has had its first lines, if any.
async fn finish(
    stream: Option<Stream>,
    sources: &Sources,
    (kind, lines): (Kind, u64),
    target: &Target,
) -> anyhow::Result<()> {
    let stream = match stream {
        Some(stream) => stream,
        None => Stream::start(sources, kind, target).await?,
    };
    let written = stream.finish().await?;
    must_be_all(written, lines).with_context(|| format!("cannot write all of {target}"))
}

/// Writes the lines that failed, or removes those that an earlier run has written.
async fn write_errors(
    sources: &Sources,
    failed: (Kind, u64),
    errors: &Target,
    path: &Path,
    journal: &mut Journal,
) -> anyhow::Result<()> {
    let is_ours = journal.results.has_errors(errors);
    let (_, lines) = failed;
    if lines > 0 {
        // Noted first: only what a run of this output wrote is ever removed.
        if !is_ours {
            journal.results.note_errors(errors);
            journal.write()?;
        }
        files::write(sources, failed, errors, path, journal).await?;
    } else if is_ours {
        files::remove(errors)?;
    }
    Ok(())
}

fn whole(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

fn say_causes(args: &RunArgs, failures: &[Failures]) {
    for failures in failures.iter().take(PRINTED_CAUSES) {
        let (cause, first) = (&failures.cause, &failures.custom_id);
        args.say(&format!("  {} like {first}: {cause}", failures.count));
    }
    if let Some(more) = failures.len().checked_sub(PRINTED_CAUSES)
        && more > 0
    {
        args.say(&format!("  … and {more} more causes"));
    }
}

//! The end of a run: its files, and how it went.

use std::process::ExitCode;

use super::answers::Sources;
use super::args::RunArgs;
use super::files;
use super::journal::Journal;
use super::places::Places;
use super::report::Report;
use super::stream::Stream;
use super::summary::{self, Failures, Summary};
use crate::domain::file::Kind;
use crate::store::{Batch, Store};

/// Causes of failures that are printed.
const PRINTED_CAUSES: usize = 5;

/// Writes the files of a run whose batch has ended, and says how it went. `stream` has had a part
/// of the answers, where the output is no file.
pub(super) async fn conclude(
    args: &RunArgs,
    places: &Places,
    store: &Store,
    batch: Option<&Batch>,
    stream: Option<Stream>,
    journal: &mut Journal,
    report: &Report,
) -> anyhow::Result<ExitCode> {
    let Places { output, errors, .. } = places;
    // The owner had time to edit them since the run began.
    for target in [output, errors] {
        journal.results.must_be_unchanged(target)?;
    }
    let sources = Sources::of(store, journal);
    match (output.file(), stream) {
        (Some(_), _) => files::write(&sources, Kind::Output, output, journal).await?,
        (None, Some(stream)) => stream.finish().await?,
        (None, None) => Stream::start(&sources, output).await?.finish().await?,
    }
    let error_file = batch.and_then(|batch| batch.row.error_file_id.as_deref());
    write_errors(&sources, places, journal, error_file.is_some()).await?;
    let failures = match error_file {
        Some(file_id) => summary::failures(store, file_id).await?,
        None => Vec::new(),
    };
    let mut summary = Summary::new("completed", batch, journal.kept, report.elapsed());
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

/// Writes the lines that failed, or removes those that an earlier run has written.
async fn write_errors(
    sources: &Sources,
    places: &Places,
    journal: &mut Journal,
    has_failed: bool,
) -> anyhow::Result<()> {
    let errors = &places.errors;
    let is_ours = journal.results.has_errors(errors);
    if has_failed {
        // Noted first: only what a run of this output wrote is ever removed.
        if !is_ours {
            journal.results.note_errors(errors);
            journal.write()?;
        }
        files::write(sources, Kind::Error, errors, journal).await?;
    } else if is_ours {
        files::remove(errors)?;
    } else if errors.is_fifo() {
        // Its reader waits for an end.
        errors.open_stream().await?;
    }
    Ok(())
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

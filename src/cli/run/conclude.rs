//! The end of a run: its files, and how it went.

use std::process::ExitCode;
use std::time::Instant;

use super::answers::Sources;
use super::args::RunArgs;
use super::faults::refuse;
use super::files;
use super::journal::Journal;
use super::places::Places;
use super::summary::{self, Summary};
use crate::domain::batch::{Counts, Status};
use crate::domain::file::Kind;
use crate::store::{Batch, Store};

/// Causes of failures that are printed.
const PRINTED_CAUSES: usize = 5;

/// Writes the files of a run whose batch has ended, and says how it went.
pub(super) async fn conclude(
    args: &RunArgs,
    places: &Places,
    store: &Store,
    batch: Option<&Batch>,
    journal: &mut Journal,
    started: Instant,
) -> anyhow::Result<ExitCode> {
    let Places { output, errors, .. } = places;
    let kept = journal.kept;
    let summary = |status: &'static str| Summary::new(status, batch, kept, started.elapsed());
    if let Some(batch) = batch
        && batch.state.status == Status::Failed
    {
        args.report(output, &summary("invalid"))?;
        return refuse(store, batch, journal).await;
    }
    let sources = Sources::of(store, journal);
    files::write(&sources, Kind::Output, output).await?;
    let is_ours = journal.wrote_errors(errors);
    let error_file = batch.and_then(|batch| batch.row.error_file_id.as_deref());
    if error_file.is_some() {
        // Noted first: only what a run of this output wrote is ever removed.
        if !is_ours {
            journal.note_errors(errors);
            journal.write(&places.state)?;
        }
        files::write(&sources, Kind::Error, errors).await?;
    } else if is_ours {
        files::remove(errors)?;
    } else if errors.is_fifo() {
        // Its reader waits for an end.
        errors.open_stream().await?;
    }
    let failures = match error_file {
        Some(file_id) => summary::failures(store, file_id).await?,
        None => Vec::new(),
    };
    let mut summary = summary("completed");
    args.say(&format!(
        "{} of {} requests succeeded: {output}",
        summary.completed, summary.total
    ));
    if summary.failed > 0 {
        args.say(&format!("{} failed: {errors}", summary.failed));
        for failures in failures.iter().take(PRINTED_CAUSES) {
            let (cause, first) = (&failures.cause, &failures.custom_id);
            args.say(&format!("  {} like {first}: {cause}", failures.count));
        }
        if failures.len() > PRINTED_CAUSES {
            args.say(&format!(
                "  … and {} more causes",
                failures.len() - PRINTED_CAUSES
            ));
        }
    }
    summary.output = (!output.is_stdout()).then(|| output.to_string());
    summary.errors = error_file.map(|_| errors.to_string());
    summary.failures = failures;
    args.report(output, &summary)?;
    let counts = batch.map_or(Counts::default(), |batch| batch.counts);
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

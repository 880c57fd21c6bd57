//! What is wrong with an input, for people.

use std::collections::HashSet;
use std::process::ExitCode;

use super::exit::NOT_VALID;
use super::journal::Journal;
use super::lines::Key;
use crate::domain::findings::{Finding, LISTED, TOO_MANY_ERRORS};
use crate::domain::line::{self, Check};
use crate::store::{Batch, Store};

/// Faults of an input that are printed.
const PRINTED_FAULTS: usize = 20;
/// Ids that are remembered while faults are counted: some 32 MB of memory. Among lines beyond
/// them, those that repeat an id are not counted.
const SEEN_MAX: usize = 1_000_000;

/// Says what is wrong with an input.
pub(super) async fn refuse(
    store: &Store,
    batch: &Batch,
    journal: &Journal,
) -> anyhow::Result<ExitCode> {
    let errors = batch.row.errors.as_deref().unwrap_or("[]");
    let faults: Vec<Finding> = serde_json::from_str(errors)?;
    let count = match faults.last() {
        Some(last) if last.line.is_none() && last.code == TOO_MANY_ERRORS => {
            count_faults(store, batch).await?
        }
        _ => faults.len(),
    };
    print_faults(&faults, count);
    // Nothing was sent: once the input is mended, there is nothing to go on with, but for the
    // answers of earlier inputs.
    if journal.kept == 0 {
        Journal::forget(&journal.state)?;
    }
    Ok(ExitCode::from(NOT_VALID))
}

/// How many lines of a batch's input are at fault, where only the first are listed.
async fn count_faults(store: &Store, batch: &Batch) -> anyhow::Result<usize> {
    let mut seen = HashSet::new();
    let mut count = 0;
    for (chunk, _) in store.first_lines(&batch.row.input_file_id).await? {
        let Some(chunk) = store.chunk(&batch.row.input_file_id, chunk).await? else {
            break;
        };
        for line in chunk.bytes.split(|&byte| byte == b'\n') {
            count += usize::from(match line::check(line) {
                Check::Blank => false,
                Check::Fault(_) => true,
                Check::Request(request) => {
                    let is_seen = seen.len() < SEEN_MAX
                        && !seen.insert(Key::new(&request.custom_id, &[]).custom_id());
                    is_seen || request.fault.is_some() || request.endpoint.is_none()
                }
            });
        }
    }
    Ok(count.max(LISTED))
}

/// Prints the first of so many faults.
pub(super) fn print_faults(faults: &[Finding], count: usize) {
    tell!("The input is not valid:");
    for fault in faults.iter().take(PRINTED_FAULTS) {
        let place = fault
            .line
            .map_or(String::new(), |line| format!("line {line}: "));
        tell!("  {place}{} ({})", fault.message, fault.code);
    }
    if count > PRINTED_FAULTS {
        tell!("  … and {} more", count - PRINTED_FAULTS);
    }
}

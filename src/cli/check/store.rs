//! `nightshift check --store`: what is stored, looked over.

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::config::Config;
use crate::store::{AuditFinding, AuditSettings, Audited, Store};

/// How often a terminal shows how far the check has got.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// Looks the store over, and prints each fault and what was looked at. Whether there is none.
pub(super) async fn check(store: &Store, config: &Config) -> anyhow::Result<bool> {
    // Where there is no terminal, it shows nothing.
    let progress = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let settings = AuditSettings {
        lease: config.worker.lease,
        grace: config.retention.grace,
    };
    let mut told = Instant::now();
    let audited = {
        let mut tell = |what: AuditFinding| match what {
            AuditFinding::Fault(text) => progress.suspend(|| print("FAIL", &text)),
            AuditFinding::Waits(text) => progress.suspend(|| print("note", &text)),
            AuditFinding::Progress(audited) => {
                if told.elapsed() >= SHOWN_EVERY {
                    told = Instant::now();
                    progress.set_message(so_far(&audited));
                    progress.tick();
                }
            }
        };
        store.audit(settings, &mut tell).await?
    };
    progress.finish_and_clear();
    let mut out = std::io::stdout();
    if audited.faults == 0 {
        writeln!(out, "ok    store          {}", so_far(&audited))?;
    } else {
        writeln!(
            out,
            "FAIL  store          {} found in {}",
            plural(audited.faults, "fault"),
            so_far(&audited)
        )?;
    }
    for line in sizes(&audited) {
        writeln!(out, "      {line}")?;
    }
    Ok(audited.faults == 0)
}

/// A reader that has gone away is no reason to stop looking: the exit code says enough.
fn print(mark: &str, text: &str) {
    let _ = writeln!(std::io::stdout(), "{mark}  store          {text}");
}

fn so_far(audited: &Audited) -> String {
    format!(
        "{}, {} ({} live), {}, {}",
        plural(audited.files, "file"),
        batches(audited.batches),
        HumanCount(audited.live_batches),
        plural(audited.lines, "line"),
        plural(audited.units, "unit"),
    )
}

fn sizes(audited: &Audited) -> [String; 3] {
    [
        format!(
            "{:<15}{}, stored in {}",
            "files",
            HumanBytes(audited.file_bytes),
            HumanBytes(audited.file_bytes_stored)
        ),
        format!(
            "{:<15}{}, stored in {} ({})",
            "lines",
            HumanBytes(audited.segment_bytes),
            HumanBytes(audited.segment_bytes_stored),
            plural(audited.segments, "segment")
        ),
        format!(
            "{:<15}{}, of which {} are free",
            "database",
            HumanBytes(audited.database_bytes),
            HumanBytes(audited.free_bytes)
        ),
    ]
}

fn batches(number: u64) -> String {
    match number {
        1 => "1 batch".to_owned(),
        _ => format!("{} batches", HumanCount(number)),
    }
}

fn plural(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{} {noun}s", HumanCount(number)),
    }
}

//! What `--json` prints: one summary of a run, however the run came out.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::args::RunArgs;
use super::result::target::Target;
use super::summary::Summary;
use crate::cli::exit::{Exit, NOT_VALID, USAGE};

/// Prints the summary of a run, once.
pub(super) struct Report {
    is_wanted: bool,
    /// The answers go to standard output.
    to_stderr: bool,
    started: Instant,
    is_printed: Cell<bool>,
}

impl Report {
    pub(super) fn of(args: &RunArgs) -> Report {
        Report {
            is_wanted: args.json,
            to_stderr: Target::of(&args.output).is_ok_and(|output| output.is_stdout()),
            started: Instant::now(),
            is_printed: Cell::new(false),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn print(&self, summary: &Summary<'_>) -> anyhow::Result<()> {
        if !self.is_wanted || self.is_printed.replace(true) {
            return Ok(());
        }
        let text = serde_json::to_string(summary)?;
        if self.to_stderr {
            tell!("{text}");
        } else {
            writeln!(std::io::stdout(), "{text}")?;
        }
        Ok(())
    }

    /// Prints why a command failed, unless a summary was printed before.
    pub(super) fn failed(&self, error: &anyhow::Error) -> anyhow::Result<()> {
        let code = error.downcast_ref::<Exit>().map(|exit| exit.code);
        let status = match code {
            Some(NOT_VALID | USAGE) => "invalid",
            _ => "stopped",
        };
        let summary = Summary::new(status, None, 0, self.elapsed());
        self.print(&summary.because(format!("{error:#}")))
    }
}

//! Where a run reads and writes.

use std::path::PathBuf;

use anyhow::bail;

use super::args::RunArgs;
use super::claim;
use super::result::beside::{STATE, beside, errors_path};
use super::result::files;
use super::result::target::Target;
use super::result::written::is_within;

/// The errors file of an output that is no file, in the state directory.
const ERRORS: &str = "errors.jsonl";

/// Where a run reads and writes.
pub(super) struct Places {
    pub(super) output: Target,
    pub(super) errors: Target,
    pub(super) state: PathBuf,
    /// Nobody named the state directory: it is removed once nothing is left to go on with.
    pub(super) state_is_temporary: bool,
}

impl Places {
    pub(super) fn of(args: &RunArgs) -> anyhow::Result<Places> {
        let output = Target::of(&args.output)?;
        let is_file = output.file().is_some();
        let errors = match &args.errors {
            Some(errors) => Some(Target::of(errors)?),
            None if is_file => Some(Target::of(&errors_path(&args.output))?),
            None => None,
        };
        files::must_differ(&args.input, &output, errors.as_ref())?;
        let (state, state_is_temporary) = match (&args.state, output.file()) {
            (Some(state), _) => (state.clone(), false),
            (None, Some(file)) => (beside(file, STATE), false),
            (None, None) => (claim::temporary(), true),
        };
        for target in [Some(&output), errors.as_ref()].into_iter().flatten() {
            if target.file().is_some_and(|file| is_within(&state, file)) {
                // What a run no longer needs is removed from there.
                bail!(
                    "{target} is in the state directory, {}: name a file outside it, or another \
                     directory with --state",
                    state.display()
                );
            }
        }
        let errors = errors.unwrap_or_else(|| Target::within(&state.join(ERRORS)));
        Ok(Places {
            output,
            errors,
            state,
            state_is_temporary,
        })
    }

    /// How the next command goes on with this run.
    pub(super) fn how_to_go_on(&self, is_restart: bool) -> String {
        let mut command = "the same command".to_owned();
        if is_restart {
            command.push_str(" without --restart");
        }
        if self.state_is_temporary {
            let joined = if is_restart { "and with" } else { "with" };
            command.push_str(&format!(" {joined} --state {}", self.state.display()));
        }
        let and = match self.output.file() {
            Some(_) => "",
            None => ", and writes all answers again from the first",
        };
        format!("{command} goes on where this one stopped{and}")
    }
}

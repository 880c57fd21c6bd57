//! Where a run reads and writes.

use std::path::PathBuf;

use super::args::RunArgs;
use super::claim;
use super::files::{self, STATE};
use super::target::Target;

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
            None if is_file => Some(Target::of(&files::errors_path(&args.output))?),
            None => None,
        };
        files::must_differ(&args.input, &output, errors.as_ref())?;
        let (state, state_is_temporary) = match (&args.state, output.file()) {
            (Some(state), _) => (state.clone(), false),
            (None, Some(file)) => (files::beside(file, STATE), false),
            (None, None) => (claim::temporary(), true),
        };
        let errors = errors.unwrap_or_else(|| Target::within(&state.join(ERRORS)));
        Ok(Places {
            output,
            errors,
            state,
            state_is_temporary,
        })
    }

    /// What the next command needs to go on with this run.
    pub(super) fn how_to_go_on(&self) -> String {
        if self.state_is_temporary {
            format!(
                "The same command with --state {} goes on where this one stopped.",
                self.state.display()
            )
        } else {
            "The same command goes on where this one stopped.".to_owned()
        }
    }
}

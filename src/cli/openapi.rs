//! `nightshift openapi`: the document that describes the HTTP API.

use std::io::Write as _;
use std::process::ExitCode;

use crate::api;

const EXAMPLE: &str = "\
Example:
  nightshift openapi > openapi.json";

/// Print the OpenAPI document.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct OpenapiArgs {}

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let document = api::document().to_pretty_json()?;
    writeln!(std::io::stdout(), "{document}")?;
    Ok(ExitCode::SUCCESS)
}

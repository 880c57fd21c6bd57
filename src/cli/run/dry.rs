//! `--dry-run`: what a run would do.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use tokio::io::AsyncReadExt as _;

use super::args::RunArgs;
use super::exit::NOT_VALID;
use super::faults::print_faults;
use super::input::{Input, READ_BYTES};
use super::reshape::{Gathered, Splitter};
use crate::config::Config;
use crate::domain::endpoint;
use crate::intake::{Contents, Intake, Limits};
use crate::upstream::{Options, Pool};

/// Says what a run would send, and what is wrong with its input.
pub(super) async fn dry_run(args: &RunArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let reshape = args.reshape();
    let input = Input::of(&args.input)?;
    // What is wrong with a certificate shows here.
    Pool::new(&config.upstream_settings(), Options::default())?;
    let limits = Limits {
        max_line_bytes: config.limits.max_line_bytes,
        max_models: config.limits.max_models_per_file,
    };
    let mut intake = Intake::new(limits, Contents::Requests);
    let mut gathered = Gathered::default();
    let mut splitter = Splitter::new(limits.max_line_bytes, reshape.limit);
    let mut reader = input.open().await?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let take = |gathered: &mut Gathered, line: &[u8], number: u64| -> anyhow::Result<()> {
        gathered.line(&reshape.line(line, number));
        Ok(())
    };
    while reader.read_buf(&mut buffer).await? > 0 {
        splitter.push(&buffer, |line, number| take(&mut gathered, line, number))?;
        buffer.clear();
        intake.push(&gathered.take(), &mut Vec::new())?;
    }
    splitter.finish(|line, number| take(&mut gathered, line, number))?;
    intake.push(&gathered.take(), &mut Vec::new())?;
    let report = intake.finish(&mut Vec::new())?;
    if report.requests == 0 {
        bail!("{} has no request", input.name.display());
    }
    let faults = report.findings.for_endpoint(endpoint::ANY.path);
    if !faults.is_empty() || !report.suspects.is_empty() {
        print_faults(&faults, faults.len());
        for suspect in &report.suspects {
            tell!(
                "  line {}: its custom_id seems to stand on an earlier line",
                suspect.line
            );
        }
        return Ok(ExitCode::from(NOT_VALID));
    }
    let mut out = std::io::stdout();
    writeln!(out, "{} requests would be sent", report.requests)?;
    for model in &report.models {
        let name = if model.name.is_empty() {
            "(no model)"
        } else {
            &model.name
        };
        writeln!(out, "  {:>10}  {name}", model.requests)?;
    }
    for upstream in &config.upstreams {
        writeln!(out, "to {}: {}", upstream.name, upstream.base_url)?;
    }
    Ok(ExitCode::SUCCESS)
}

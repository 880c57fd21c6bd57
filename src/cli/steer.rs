//! `nightshift pause`, `resume` and `cancel`: batches of a server that runs.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::Value;

use super::remote::{Remote, RemoteArgs};
use crate::config::Environment;

/// A batch, and the server that has it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct SteerArgs {
    /// The batch's id
    id: String,

    /// Print the batch as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    server: RemoteArgs,
}

/// Has the server pause a batch.
pub(super) async fn pause(args: SteerArgs) -> anyhow::Result<ExitCode> {
    steer(args, "pause", |_| "is paused".to_owned()).await
}

/// Has the server resume a batch.
pub(super) async fn resume(args: SteerArgs) -> anyhow::Result<ExitCode> {
    steer(args, "resume", |_| "goes on".to_owned()).await
}

/// Has the server cancel a batch.
pub(super) async fn cancel(args: SteerArgs) -> anyhow::Result<ExitCode> {
    let outcome = |batch: &Value| format!("is {}", batch["status"].as_str().unwrap_or_default());
    steer(args, "cancel", outcome).await
}

/// `outcome`: what became of the batch, in words.
async fn steer(
    args: SteerArgs,
    act: &str,
    outcome: impl Fn(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    let server = Remote::new(&args.server, &Environment::capture())?;
    let answer = server.post(&["v1", "batches", &args.id, act]).await?;
    let batch: Value = serde_json::from_str(&answer)
        .context("the server's answer is not understood: is it nightshift?")?;
    let text = if args.json {
        serde_json::to_string_pretty(&batch)? + "\n"
    } else {
        format!("{} {}\n", args.id, outcome(&batch))
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

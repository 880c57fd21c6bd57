//! `nightshift upstreams`: what operators do with the upstreams of a server that runs.

use std::process::ExitCode;

use super::remote::{Remote, RemoteArgs};
use crate::config::Environment;

const EXAMPLE: &str = "\
Examples:
  nightshift upstreams reset gpu-1
  OPS_KEY=sk-ns-… nightshift upstreams reset openai \\
    --url https://batch.internal --api-key-env OPS_KEY";

/// Steer the upstreams of a server that runs.
///
/// Where the server asks for keys, it needs one made with `nightshift keys create --scope admin`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct UpstreamsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Send lines again at once to an upstream that is closed: its key, its account or its server
    /// is mended, or it asked for a longer wait than it needs
    Reset {
        /// The upstream's name, as `nightshift status` shows it
        name: String,

        #[command(flatten)]
        server: RemoteArgs,
    },
}

pub(super) async fn run(args: UpstreamsArgs) -> anyhow::Result<ExitCode> {
    let Command::Reset { name, server } = args.command;
    let server = Remote::new(&server, &Environment::capture())?;
    server.post(&["admin", "upstreams", &name, "reset"]).await?;
    println!("{name} is open");
    Ok(ExitCode::SUCCESS)
}

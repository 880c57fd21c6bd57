//! `nightshift status`: how things stand in a server that runs, for people.

pub(super) mod picture;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::remote::{Remote, RemoteArgs};
use super::table::width_of_output;
use crate::config::Environment;
use picture::picture;

const EXAMPLE: &str = "\
Examples:
  nightshift status
  nightshift status --watch
  OPS_KEY=sk-ns-… nightshift status --url https://batch.internal \\
    --api-key-env OPS_KEY --json";

/// How often it is asked by --watch.
const EVERY: Duration = Duration::from_secs(2);
/// Clears a terminal, and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show how things stand in a server that runs: upstreams, models, batches, replicas.
///
/// Where the server asks for keys, it needs one made with `nightshift keys create --scope admin`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    server: RemoteArgs,

    /// Print what the server answers, as JSON
    #[arg(long)]
    json: bool,

    /// Cut nothing, however wide the tables are
    #[arg(long)]
    wide: bool,

    /// Go on: ask every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let server = Remote::new(&args.server, &Environment::capture())?;
    let mut out = std::io::stdout();
    loop {
        // Whoever watches may make the window larger.
        let width = if args.wide { None } else { width_of_output() };
        let text = server.get("/admin/status").await?;
        let picture = if args.json {
            text.trim_end().to_owned() + "\n"
        } else {
            let status = serde_json::from_str(&text);
            let status = status.context("the server's answer is not understood: is it nightshift?");
            picture(&status?, width)
        };
        if !args.watch {
            out.write_all(picture.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        // Whoever reads a pipe or a file gets one picture behind the other.
        let clear = match (args.json, out.is_terminal()) {
            (true, _) => "",
            (false, true) => CLEAR,
            (false, false) => "\n",
        };
        write!(out, "{clear}{picture}")?;
        out.flush()?;
        tokio::time::sleep(EVERY).await;
    }
}

//! The commands, one a file.

#![deny(clippy::print_stderr)]

/// Tells the user something on standard error. That it cannot be written, as where the terminal was
/// closed, is no reason to stop: `eprintln!` would panic. A bar makes way for it.
macro_rules! tell {
    ($($text:tt)*) => {{
        let text = format!("{}\n", format_args!($($text)*));
        let _ = ::std::io::Write::write_all(&mut $crate::telemetry::terminal::Log, text.as_bytes());
    }};
}

mod cache;
mod check;
mod completions;
mod configuration;
mod demo;
mod descriptors;
mod exit;
mod figures;
mod keys;
mod machine;
mod openapi;
mod prices;
mod printable;
mod progress;
mod remote;
mod run;
mod serve;
mod simulate;
mod status;
mod steer;
mod table;
mod trials;
mod upstreams;
mod usage;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser, Subcommand};

use exit::{Exit, READER_GONE};

const EXAMPLE: &str = "\
Examples:
  nightshift demo
  nightshift serve --upstream http://localhost:8000/v1
  nightshift run -i requests.jsonl -o answers.jsonl \\
    --upstream http://localhost:8000/v1";

/// A self-hosted server that speaks OpenAI's Batch API, for any model server.
#[derive(Debug, Parser)]
#[command(name = "nightshift", version, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Run(run::RunArgs),
    Demo(demo::DemoArgs),
    Simulate(simulate::SimulateArgs),
    Keys(keys::KeysArgs),
    Openapi(openapi::OpenapiArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Upstreams(upstreams::UpstreamsArgs),
    Cache(cache::CacheArgs),
    Usage(usage::UsageArgs),
    /// Pause a batch: nothing new of it is sent, and calls in flight finish
    Pause(steer::SteerArgs),
    /// Resume a batch that was paused
    Resume(steer::SteerArgs),
    /// Cancel a batch: lines that have not been sent never will be
    Cancel(steer::SteerArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Tells users who look for a flag of other servers what it is called here.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.clone(),
        _ => return error,
    };
    let tip = match unknown.split('=').next() {
        Some("--port" | "-p" | "--host" | "--bind") => {
            "the address is given by '--listen HOST:PORT', as in '--listen 127.0.0.1:9000'"
        }
        _ => return error,
    };
    error.remove(ContextKind::SuggestedArg);
    error.insert(
        ContextKind::Suggested,
        ContextValue::StyledStrs(vec![tip.into()]),
    );
    error
}

/// Reads the command line and does what it says. Exits 2 on wrong usage; on failure with the code
/// that the command gave its error, else 1.
pub async fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| with_tip(error).exit());
    descriptors::raise();
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Simulate(args) => simulate::run(args).await,
        Command::Keys(args) => keys::run(args).await,
        Command::Openapi(_) => openapi::run(),
        Command::Check(args) => check::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Upstreams(args) => upstreams::run(args).await,
        Command::Cache(args) => cache::run(args).await,
        Command::Usage(args) => usage::run(args).await,
        Command::Pause(args) => steer::pause(args).await,
        Command::Resume(args) => steer::resume(args).await,
        Command::Cancel(args) => steer::cancel(args).await,
        Command::Completions(args) => completions::completions(&args, Cli::command()),
        Command::Man(args) => completions::man(&args, Cli::command()),
    };
    outcome.unwrap_or_else(|error| {
        // Who reads the output has seen enough, as `head` has.
        let written = error.downcast_ref::<std::io::Error>();
        if written.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            return ExitCode::from(READER_GONE);
        }
        tell!("error: {error:#}");
        let exit = error.downcast_ref::<Exit>();
        exit.map_or(ExitCode::FAILURE, |exit| ExitCode::from(exit.code))
    })
}

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

mod check;
mod completions;
mod demo;
mod descriptors;
mod keys;
mod openapi;
pub mod progress;
mod remote;
mod run;
mod serve;
pub mod simulate;
mod status;
mod upstreams;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigErrors, Environment, Overrides};

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
    Simulate(simulate::Args),
    Keys(keys::KeysArgs),
    Openapi(openapi::OpenapiArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Upstreams(upstreams::UpstreamsArgs),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

/// Where the configuration is.
#[derive(Clone, Debug, Args)]
struct ConfigArgs {
    /// The TOML file to read [default: nightshift.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// <sqlite://PATH> or <postgres://user:password@host/name>
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

impl ConfigArgs {
    fn overrides(self) -> Overrides {
        Overrides {
            config: self.config,
            database: self.database,
            ..Overrides::default()
        }
    }
}

/// Reads all layers of the configuration, and tells on standard error of variables that were meant
/// for Nightshift, and that it does not read.
fn load(overrides: &Overrides) -> anyhow::Result<Config> {
    let (config, near_misses) = load_quietly(overrides);
    warn_of(&near_misses);
    config.map_err(has_mistakes)
}

/// The same, for commands that tell in a way of their own.
fn load_quietly(overrides: &Overrides) -> (Result<Config, ConfigErrors>, Vec<String>) {
    let environment = Environment::capture();
    let config = Config::load(overrides, &environment);
    // Only now is it known which variables the configuration names.
    (config, environment.near_misses())
}

fn warn_of(near_misses: &[String]) {
    for near_miss in near_misses {
        tell!("warning: {near_miss}");
    }
}

/// A wrong value of a flag is wrong usage, whatever command the flag is of.
fn has_mistakes(errors: ConfigErrors) -> anyhow::Error {
    if errors.0.iter().all(|error| error.place.starts_with("--")) {
        let error = anyhow::anyhow!("{errors}");
        return Exit { code: USAGE, error }.into();
    }
    anyhow::anyhow!("the configuration has mistakes:\n{errors}")
}

/// The exit code of wrong usage, as `clap` has it.
const USAGE: u8 = 2;
/// What a shell shows of a process that SIGPIPE ended.
const READER_GONE: u8 = 141;

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

/// An error with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
struct Exit {
    code: u8,
    error: anyhow::Error,
}

/// Gives the error of a result an exit code, unless it has one.
trait OrExit<T> {
    fn or_exit(self, code: u8) -> anyhow::Result<T>;
}

impl<T> OrExit<T> for anyhow::Result<T> {
    fn or_exit(self, code: u8) -> anyhow::Result<T> {
        self.map_err(|error| match error.downcast::<Exit>() {
            Ok(exit) => exit.into(),
            Err(error) => Exit { code, error }.into(),
        })
    }
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
        Command::Simulate(args) => simulate::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Keys(args) => keys::run(args).await,
        Command::Openapi(_) => openapi::run(),
        Command::Check(args) => check::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Upstreams(args) => upstreams::run(args).await,
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
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

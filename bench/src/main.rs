//! The benchmark: starts what it needs, measures Nightshift beside a bare client loop, and writes
//! tables and plots. bench/README.md tells how to run it and what the figures mean.

mod client;
mod cost;
mod files;
mod floor;
mod holdings;
mod input;
mod life;
mod machine;
mod postgres;
mod process;
mod procfs;
mod recorder;
mod report;
mod results;
mod sections;
mod server;
mod text;
mod world;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;

use machine::Machine;
use postgres::Postgres;
use results::{Point, Results, System};
use sections::{Bench, Section};
use world::World;

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p bench
  cargo run --release -p bench -- --quick
  cargo run --release -p bench -- dispatch upload --rounds 3";

/// A whole run has no fewer rounds.
const ROUNDS: u32 = 5;

/// Measures Nightshift beside a bare client loop.
#[derive(Debug, clap::Parser)]
#[command(name = "bench", after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    measure: MeasureArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make tables and plots anew from results.json, and the README's table
    Report(ReportArgs),
    /// Count the instructions of a line by valgrind, with a plain configuration and a full one
    Cost(cost::CostArgs),
    #[command(hide = true)]
    Floor(floor::FloorArgs),
    #[command(hide = true)]
    Files(files::FilesArgs),
}

#[derive(Debug, clap::Args)]
struct MeasureArgs {
    /// What is measured [default: all; with --quick, those that are quick]
    sections: Vec<Section>,
    /// Less than two minutes, with small files and two rounds: for looking at only
    #[arg(long)]
    quick: bool,
    /// How often everything is run [default: 5, with --quick 2], and without --quick three times
    /// as often where a ratio is a target
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// The lines of the base point [default: 50000, with --quick 5000]
    #[arg(long, value_name = "N")]
    lines: Option<u64>,
    /// Measure this engine only (may be repeated)
    #[arg(long = "engine", value_enum)]
    engines: Vec<Engine>,
    /// The binary to measure [default: the release build, built first]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// A Postgres on which databases may be created [default: one of its own]
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Where files and databases stand meanwhile [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where results go [default: docs/benchmarks if everything is measured in at least five
    /// rounds, else target/benchmarks]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl MeasureArgs {
    /// Whether it is a run of which the results may be published.
    fn is_whole(&self) -> bool {
        self.sections.is_empty()
            && !self.quick
            && self.rounds.is_none_or(|rounds| rounds >= ROUNDS)
            && self.lines.is_none()
            && self.engines.is_empty()
            && self.binary.is_none()
    }
}

#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// Where results.json is
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    out: PathBuf,
    /// Write the README's table
    #[arg(long)]
    readme: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    Sqlite,
    Postgres,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Some(Command::Cost(args)) => cost::run(args, &root()?).await,
        Some(Command::Floor(args)) => floor::run(args).await,
        Some(Command::Files(args)) => files::run(args).await,
        Some(Command::Report(args)) => report(&args),
        None => tokio::select! {
            measured = measure(args.measure) => measured,
            // What was started is stopped when it is dropped.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        },
    }
}

async fn measure(args: MeasureArgs) -> Result<()> {
    let root = root()?;
    let data = tempfile::Builder::new()
        .prefix("nightshift-bench-")
        .tempdir_in(args.data.clone().unwrap_or_else(std::env::temp_dir))?;
    // Postgres runs as a user of its own.
    std::fs::set_permissions(
        data.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let binary = match &args.binary {
        Some(binary) => binary.canonicalize().context("--binary")?,
        None => build(&root)?,
    };
    let engines = engines(&args.engines);
    let postgres = match &args.postgres {
        _ if !engines.contains(&System::Postgres) => None,
        Some(url) => Some(Arc::new(Postgres::named(url)?)),
        None => Some(Arc::new(Postgres::start(&data.path().join("postgres"))?)),
    };
    let out = args.out.clone().unwrap_or_else(|| {
        root.join(match args.is_whole() {
            true => "docs/benchmarks",
            false => "target/benchmarks",
        })
    });
    std::fs::create_dir_all(&out)?;
    let path = out.join("results.json");
    let machine = Machine {
        postgres: postgres
            .as_ref()
            .map(|p| p.version.clone())
            .unwrap_or_default(),
        quick: args.quick,
        ..Machine::describe(data.path(), &binary)?
    };
    let mut bench = Bench {
        world: World::new(binary, data.path(), postgres, engines),
        results: Results {
            machine,
            ..Results::default()
        },
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { ROUNDS }),
        lines: args
            .lines
            .unwrap_or(if args.quick { 5000 } else { Point::BASE.lines }),
        quick: args.quick,
        path,
        begun: Instant::now(),
    };
    ensure!(
        bench.rounds > 0 && bench.lines > 0,
        "there is nothing to measure"
    );
    let sections = match args.sections.as_slice() {
        [] if args.quick => &Section::QUICK[..],
        [] => &Section::ALL[..],
        named => named,
    };
    for section in sections {
        bench
            .measure(*section)
            .await
            .with_context(|| format!("section {}", section.name()))?;
    }
    report::write(&bench.results, &out)?;
    eprintln!(
        "{} and what is beside it\n",
        out.join("README.md").display()
    );
    write!(std::io::stdout(), "{}", report::targets(&bench.results)?)?;
    Ok(())
}

fn report(args: &ReportArgs) -> Result<()> {
    let results = Results::read(&args.out.join("results.json"))?;
    report::write(&results, &args.out)?;
    if args.readme {
        report::rewrite_readme(&results, &root()?.join("README.md"))?;
    }
    Ok(())
}

fn engines(named: &[Engine]) -> Vec<System> {
    let all = [
        (Engine::Sqlite, System::Sqlite),
        (Engine::Postgres, System::Postgres),
    ];
    let measured = all
        .into_iter()
        .filter(|(name, _)| named.is_empty() || named.contains(name));
    measured.map(|(_, engine)| engine).collect()
}

/// The repository: this crate's directory is one of its own.
fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(root
        .context("the crate stands in the repository")?
        .to_owned())
}

/// Builds what users run.
fn build(root: &Path) -> Result<PathBuf> {
    let status = std::process::Command::new("cargo")
        .args(["build", "--release", "--locked", "--package", "nightshift"])
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(root.join("target/release/nightshift"))
}

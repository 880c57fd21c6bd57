//! How many instructions a line costs the server, from its upload to its end, counted by valgrind:
//! with as little configured as can be, and with all that can be configured for a line. The
//! machine's load does not change the counts by more than a percent, so that two versions can be
//! compared anywhere.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::results::System;
use crate::server::{Serving, Store};
use crate::world::World;

const IN_FLIGHT: u64 = 256;
/// The files of the keys that [`Configured::Full`] names, each with its name as its key.
const KEYS: [&str; 3] = ["key-a", "key-b", "key-c"];
/// Looks at the batch are to be few, because the server is slow.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct CostArgs {
    /// Runs of so many lines are compared: what does not grow with the lines falls out
    #[arg(long, num_args = 2, value_names = ["FEWER", "MORE"], default_values_t = [4000, 16_000])]
    lines: Vec<u64>,
    /// The binary to measure, built with the feature rustix/use-libc-auxv [default: built first]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Where callgrind's files stay, to be read by `callgrind_annotate` [default: nowhere]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// What is configured.
#[derive(Clone, Copy)]
enum Configured {
    /// One upstream.
    Plain,
    /// A task of two models; routes by weight and in tiers that spill late, with models of other
    /// names, `defaults` and `overrides`; an upstream with several keys; and rate limits and
    /// concurrency of each thing that can have them. No limit is reached.
    Full,
}

impl Configured {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Full => "full",
        }
    }

    /// `keys`: where the files of the upstream's keys are.
    fn config(self, upstream: &str, keys: &Path) -> String {
        match self {
            Self::Plain => format!(
                "auth.required = false\n[[upstreams]]\nname = \"sim\"\nbase_url = \"{upstream}\"\n\
                 concurrency = {IN_FLIGHT}\n"
            ),
            Self::Full => include_str!("cost.toml")
                .replace("@UPSTREAM@", upstream)
                .replace("@KEYS@", &keys.display().to_string()),
        }
    }
}

/// Counts, and prints what a line costs.
pub async fn run(args: CostArgs, root: &Path) -> Result<()> {
    let data = tempfile::Builder::new()
        .prefix("nightshift-cost-")
        .tempdir()?;
    let binary = match &args.binary {
        Some(binary) => binary.canonicalize().context("--binary")?,
        None => build(root)?,
    };
    let keep = args.keep.as_deref().unwrap_or(data.path());
    std::fs::create_dir_all(keep)?;
    let mut world = World::new(binary, data.path(), None, vec![System::Sqlite]);
    let [few, many] = [0, 1].map(|at| args.lines.get(at).copied().unwrap_or_default());
    ensure!(few < many, "--lines: the second number is to be greater");
    let mut costs = Vec::new();
    for configured in [Configured::Plain, Configured::Full] {
        let mut counts = Vec::new();
        for lines in [few, many] {
            let out = keep.join(format!("callgrind.{}.{lines}", configured.name()));
            counts.push(count(&mut world, configured, lines, &out).await?);
        }
        let cost = (counts[1] - counts[0]) / (many - few) as f64;
        let name = configured.name();
        writeln!(std::io::stdout(), "{name}: {cost:.0} instructions a line")?;
        costs.push(cost);
    }
    let ratio = costs[1] / costs[0];
    writeln!(std::io::stdout(), "full over plain: {ratio:.3}")?;
    Ok(())
}

/// The instructions of a server that is started, runs a batch of so many lines, and is stopped.
async fn count(world: &mut World, configured: Configured, lines: u64, out: &Path) -> Result<f64> {
    let input = world.input(lines)?;
    let (upstream, _) = world.upstream(0).await?;
    for key in KEYS {
        std::fs::write(world.data.join(key), key)?;
    }
    let store = Store::create(world, System::Sqlite)?;
    let server = store
        .serve(&Serving {
            config: Some(configured.config(&upstream, &world.data)),
            counted: Some(out),
            ..Serving::new(&upstream, IN_FLIGHT)
        })
        .await?;
    let file_id = server.client.upload(&input).await?;
    let batch = server.client.create(&file_id).await?;
    server.client.watch(&batch.id, LOOK_EVERY).await?;
    server.process.stop().await?;
    store.remove()?;
    let written = std::fs::read_to_string(out)?;
    let totals = written
        .lines()
        .find_map(|line| line.strip_prefix("totals: "));
    let totals = totals.with_context(|| format!("{} has no totals", out.display()))?;
    Ok(totals.trim().parse()?)
}

/// Builds what users run, but that it runs under valgrind, which hides what rustix looks for.
fn build(root: &Path) -> Result<PathBuf> {
    let status = std::process::Command::new("cargo")
        .args(["build", "--release", "--locked", "--package", "nightshift"])
        .args(["--features", "rustix/use-libc-auxv"])
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "cargo build: {status}");
    Ok(root.join("target/release/nightshift"))
}

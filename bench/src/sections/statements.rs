//! How many statements and commits a line costs after its upload. Not timed: each statement is
//! logged by the server, which is how they are counted on either engine.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::Result;

use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::results::{Figures, Point, System};
use crate::server::{Serving, Store};

/// What a server logs whose statements are counted.
pub const LOG: &str = "warn,sqlx::query=debug";

pub async fn run(bench: &mut Bench) -> Result<()> {
    let point = bench.base();
    for round in 0..bench.rounds {
        for engine in in_turn(&bench.world.engines, round) {
            let figures = count(bench, engine, point).await?;
            bench.add(Section::Statements, engine, point, round, figures)?;
        }
    }
    Ok(())
}

/// Uploads by one server, and counts what another does to run the batch.
async fn count(bench: &mut Bench, engine: System, point: Point) -> Result<Figures> {
    let input = bench.world.input(point.lines)?;
    let (upstream, _) = bench.world.upstream(point.latency_ms).await?;
    let store = Store::create(&bench.world, engine)?;
    let mut serving = Serving::new(&upstream, point.in_flight);
    let server = store.serve(&serving).await?;
    let file_id = server.client.upload(&input).await?;
    // Postgres counts commits of a connection that has ended, and of others now and then.
    server.process.stop().await?;
    let commits_before = postgres_commits(&store)?;

    serving.log = Some(LOG);
    let server = store.serve(&serving).await?;
    let batch = server.client.create(&file_id).await?;
    server.client.watch(&batch.id, LOOK_EVERY).await?;
    server.process.stop().await?;
    let statements = statements(&server.log, 0)?;
    let commits = match (postgres_commits(&store)?, commits_before) {
        (Some(after), Some(before)) => after - before,
        _ => statements.get("COMMIT").copied().unwrap_or_default() as f64,
    };
    store.remove()?;

    let mut figures = Figures::default();
    let lines = point.lines as f64;
    let all: u64 = statements.values().sum();
    figures.set("statements_per_line", all as f64 / lines);
    figures.set("commits_per_line", commits / lines);
    for (name, count) in statements {
        figures.set(&format!("statements_{name}"), count as f64);
    }
    Ok(figures)
}

/// Transactions that Postgres has committed in the store so far.
fn postgres_commits(store: &Store) -> Result<Option<f64>> {
    let postgres = store.postgres();
    postgres
        .map(|(postgres, database)| postgres.commits(database))
        .transpose()
}

/// How often each statement has been logged beyond so many bytes of a log, by the name it begins
/// with, else by its first word: `BEGIN`, `COMMIT`.
pub fn statements(log: &Path, from: u64) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    let mut log = std::fs::File::open(log)?;
    log.seek(SeekFrom::Start(from))?;
    for line in BufReader::new(log).lines() {
        let line = line?;
        let Some((_, summary)) = line.split_once("sqlx::query: summary=\"") else {
            continue;
        };
        let text = summary.strip_prefix("-- ").unwrap_or(summary);
        let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = text.split(|c| !is_letter(c)).next().unwrap_or_default();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

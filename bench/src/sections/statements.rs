//! How many statements and commits a line costs after its upload. Not timed: each statement is
//! logged by the server, which is how they are counted on either engine. `BEGIN` and `COMMIT`
//! are not among them; commits are counted by Postgres itself.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Result;

use super::{Bench, Section};
use crate::results::Figures;
use crate::server::{Serving, Store};

pub async fn run(bench: &mut Bench) -> Result<()> {
    let point = bench.base();
    let input = bench.world.input(point.lines)?;
    let (upstream, _) = bench.world.upstream(point.latency_ms).await?;
    for engine in bench.world.engines.clone() {
        let store = Store::create(&bench.world, engine)?;
        let mut serving = Serving::new(&upstream, point.in_flight);
        let server = store.serve(&serving).await?;
        let file_id = server.client.upload(&input).await?;
        // Postgres counts commits of a connection that has ended, and of others now and then.
        server.process.stop().await?;
        let commits_before = commits(&store)?;

        serving.log = "warn,sqlx::query=debug";
        let server = store.serve(&serving).await?;
        let batch = server.client.create(&file_id).await?;
        server.client.watch(&batch.id).await?;
        server.process.stop().await?;
        let statements = statements(&store.log())?;

        let mut figures = Figures::default();
        let lines = point.lines as f64;
        figures.set(
            "statements_per_line",
            statements.values().sum::<u64>() as f64 / lines,
        );
        for (name, count) in statements {
            figures.set(&format!("statements_{name}"), count as f64);
        }
        if let (Some(after), Some(before)) = (commits(&store)?, commits_before) {
            figures.set("commits_per_line", (after - before) / lines);
        }
        store.remove()?;
        bench.add(Section::Statements, engine, point, 0, figures)?;
    }
    Ok(())
}

/// Transactions that Postgres has committed in the store so far.
fn commits(store: &Store) -> Result<Option<f64>> {
    let postgres = store.postgres();
    postgres
        .map(|(postgres, database)| postgres.commits(database))
        .transpose()
}

/// How often each statement has been logged, by its name.
fn statements(log: &Path) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for line in BufReader::new(std::fs::File::open(log)?).lines() {
        let line = line?;
        let Some((_, summary)) = line.split_once("sqlx::query: summary=\"") else {
            continue;
        };
        let name = summary
            .strip_prefix("-- ")
            .and_then(|rest| rest.split_whitespace().next());
        *counts
            .entry(name.unwrap_or("unnamed").to_owned())
            .or_default() += 1;
    }
    Ok(counts)
}

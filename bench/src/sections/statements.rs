//! How many statements and commits a line costs after its upload. Not timed: each statement is
//! logged by the server, which is how they are counted on either engine. `BEGIN` and `COMMIT`
//! are not among them; commits are counted by Postgres itself.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Result;

use super::{Bench, Section};
use crate::life::Life;
use crate::results::Figures;
use crate::server::{Serving, Store};

pub async fn run(bench: &mut Bench) -> Result<()> {
    let point = bench.base();
    let input = bench.world.input(point.lines)?;
    let (upstream, pid) = bench.world.upstream(point.latency_ms).await?;
    for engine in bench.world.engines.clone() {
        let store = Store::create(&bench.world, engine)?;
        let serving = Serving {
            log: "warn,sqlx::query=debug",
            ..Serving::new(&upstream, point.in_flight)
        };
        let server = store.serve(&serving).await?;
        let life = Life::begin(&store, &server, pid, &input)?;
        let file_id = life.upload(&mut Figures::default()).await?;
        let before = statements(&store.log())?;
        let mut run = Figures::default();
        life.run(&file_id, &mut run).await?;
        server.process.stop().await?;
        let after = statements(&store.log())?;

        let mut figures = Figures::default();
        let per_line = |statements: u64| statements as f64 / point.lines as f64;
        let sum = after.values().sum::<u64>() - before.values().sum::<u64>();
        figures.set("statements_per_line", per_line(sum));
        for (name, all) in &after {
            let earlier = before.get(name).copied().unwrap_or(0);
            if *all > earlier {
                figures.set(&format!("statements_{name}"), (all - earlier) as f64);
            }
        }
        if let Some(commits) = run.get("commits_per_line") {
            figures.set("commits_per_line", commits);
        }
        store.remove()?;
        bench.add(Section::Statements, engine, point, 0, figures)?;
    }
    Ok(())
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

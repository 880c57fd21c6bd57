//! One tenant with all lines, and a hundred with a batch each.

use std::time::Instant;

use anyhow::Result;
use futures::future::try_join_all;

use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::life::look_figures;
use crate::procfs::peak_mib;
use crate::results::{Figures, Point, System};
use crate::server::{Meter, Serving, Store};

const TENANTS: [u64; 2] = [1, 100];
/// So many clients look as often as one; more of them look less often each, so that the server is
/// busy with lines and not with looks.
const OFTEN: usize = 10;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let base = bench.base();
    let mut runs = Vec::new();
    for &engine in &bench.world.engines {
        runs.extend(TENANTS.map(|tenants| (engine, Point { tenants, ..base })));
    }
    for round in 0..bench.rounds {
        for (engine, point) in in_turn(&runs, round) {
            let figures = share(bench, engine, point).await?;
            bench.add(Section::Tenants, engine, point, round, figures)?;
        }
    }
    Ok(())
}

/// Every tenant uploads its part and creates its batch at the same moment.
async fn share(bench: &mut Bench, engine: System, point: Point) -> Result<Figures> {
    let input = bench.world.input(point.lines / point.tenants)?;
    let (upstream, upstream_pid) = bench.world.upstream(point.latency_ms).await?;
    let store = Store::create(&bench.world, engine)?;
    let serving = Serving {
        keys: true,
        ..Serving::new(&upstream, point.in_flight)
    };
    let server = store.serve(&serving).await?;
    let keys = store.keys(point.tenants).await?;
    let clients: Vec<_> = keys
        .into_iter()
        .map(|key| server.client.with_key(key))
        .collect();
    let uploads = clients.iter().map(|client| client.upload(&input));
    let files = try_join_all(uploads).await?;

    let meter = Meter {
        servers: vec![server.process.pid],
        upstream: upstream_pid,
        store: &store,
    };
    let every = LOOK_EVERY * clients.len().min(OFTEN) as u32;
    let before = meter.begin()?;
    let runs = clients.iter().zip(&files).map(async |(client, file_id)| {
        let batch = client.create(file_id).await?;
        client.watch(&batch.id, every).await
    });
    let watched = try_join_all(runs).await?;
    let ended = watched.iter().map(|watched| watched.ended).max();
    let after = meter.end(ended.unwrap_or_else(Instant::now))?;

    let lines = input.lines * point.tenants;
    let mut figures = Figures::default();
    let seconds = (after.at - before.at).as_secs_f64();
    figures.set("lines_per_s", lines as f64 / seconds);
    after.cpu_figures(&before, lines, &mut figures);
    figures.set(
        "written_per_line",
        after.written_since(&before) / lines as f64,
    );
    figures.set("peak_mib", peak_mib(server.process.pid)?);
    let looks = watched.into_iter().flat_map(|watched| watched.looks_ms);
    look_figures(looks.collect(), &mut figures)?;
    server.process.stop().await?;
    store.remove()?;
    Ok(figures)
}

//! What a small batch costs beside its lines: many of them, from a few clients and from one.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::statements::{LOG, statements};
use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::life::look_figures;
use crate::results::{Figures, Point, System, quantile};
use crate::server::{Meter, Server, Serving, Store};

/// Of a batch.
const LINES: u64 = 5;
const LATENCY_MS: u64 = 5;
pub const CLIENTS: u64 = 16;
const BATCHES: u64 = 1000;
/// A client alone is slow, and its statements are always the same.
const FEW_BATCHES: u64 = 200;
const QUICK_BATCHES: u64 = 50;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let batches = |all| if bench.quick { QUICK_BATCHES } else { all };
    let many = point(CLIENTS, batches(BATCHES));
    let one = point(1, batches(FEW_BATCHES));
    let engines = bench.world.engines.clone();
    for round in 0..bench.rounds {
        for engine in in_turn(&engines, round) {
            for point in [one, many] {
                let figures = load(bench, engine, point).await?;
                bench.add(Section::Small, engine, point, round, figures)?;
                let figures = count_statements(bench, engine, point).await?;
                bench.add(Section::Small, engine, point, round, figures)?;
            }
        }
    }
    Ok(())
}

/// So many batches by so many clients.
pub fn point(clients: u64, batches: u64) -> Point {
    Point {
        latency_ms: LATENCY_MS,
        lines: batches * LINES,
        clients,
        ..Point::BASE
    }
}

/// Lets clients upload, create and look, and measures all of it.
pub async fn load(bench: &mut Bench, engine: System, point: Point) -> Result<Figures> {
    let input = bench.world.input(LINES)?;
    let (upstream, upstream_pid) = bench.world.upstream(point.latency_ms).await?;
    let store = Store::create(&bench.world, engine)?;
    let serving = Serving::new(&upstream, point.in_flight);
    let servers = store.serve_many(&serving, point.replicas).await?;
    let held = store.hold(point.held).await?;
    let meter = Meter {
        servers: servers.iter().map(|server| server.process.pid).collect(),
        upstream: upstream_pid,
        store: &store,
    };
    let batches = point.lines / LINES;
    let before = meter.begin()?;
    let runs = create(&servers, point, async |server: &Server, _: u64| {
        server.client.upload(&input).await
    });
    let (completed_ms, looks_ms) = runs.await?;
    let after = meter.end(Instant::now())?;

    let mut figures = Figures::default();
    let seconds = (after.at - before.at).as_secs_f64();
    figures.set("batches_per_s", batches as f64 / seconds);
    figures.set("lines_per_s", point.lines as f64 / seconds);
    after.cpu_figures(&before, point.lines, &mut figures);
    after.cpu_figures_per("batch", &before, batches, &mut figures);
    for (name, share) in [("completed_p50_ms", 0.5), ("completed_p99_ms", 0.99)] {
        figures.set(
            name,
            quantile(completed_ms.clone(), share).context("no batch")?,
        );
    }
    look_figures(looks_ms, &mut figures)?;
    for server in servers {
        server.process.stop().await?;
    }
    drop(held);
    store.remove()?;
    Ok(figures)
}

/// Counts the statements of all servers from the first batch's creation to the last one's end, for
/// each batch. Its file is uploaded before, and the statements of the clients' looks are
/// taken off: a client looks as often as it likes.
pub async fn count_statements(bench: &mut Bench, engine: System, point: Point) -> Result<Figures> {
    let point = Point {
        lines: point.lines.min(FEW_BATCHES * LINES),
        ..point
    };
    let input = bench.world.input(LINES)?;
    let (upstream, _) = bench.world.upstream(point.latency_ms).await?;
    let store = Store::create(&bench.world, engine)?;
    let mut serving = Serving::new(&upstream, point.in_flight);
    let server = store.serve(&serving).await?;
    let batches = point.lines / LINES;
    let mut files = Vec::new();
    for _ in 0..batches {
        files.push(server.client.upload(&input).await?);
    }
    server.process.stop().await?;

    serving.log = Some(LOG);
    let servers = store.serve_many(&serving, point.replicas).await?;
    let mut begun = Vec::new();
    for server in &servers {
        begun.push(server.log.metadata()?.len());
    }
    let runs = create(&servers, point, async |_: &Server, number: u64| {
        anyhow::Ok(files[number as usize].clone())
    });
    runs.await?;
    let (mut all, mut looked) = (0, 0);
    for (server, from) in servers.into_iter().zip(begun) {
        server.process.stop().await?;
        let counts = statements(&server.log, from)?;
        all += counts.values().sum::<u64>();
        let of_looks = ["batch", "batches_of"].iter();
        looked += of_looks.filter_map(|name| counts.get(*name)).sum::<u64>();
    }
    ensure!(looked > 0, "there are no statements for looks");
    store.remove()?;

    let mut figures = Figures::default();
    figures.set(
        "statements_per_batch",
        (all - looked) as f64 / batches as f64,
    );
    Ok(figures)
}

/// Lets each client create a batch of a file and look until it has ended, again and again until
/// there are as many as the point says, each at the next server. Returns how long each took from
/// its creation, and how long each look, in milliseconds.
async fn create(
    servers: &[Server],
    point: Point,
    file: impl AsyncFn(&Server, u64) -> Result<String>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let runs = stream::iter(0..point.lines / LINES).map(async |number| {
        let server = &servers[number as usize % servers.len()];
        let file_id = file(server, number).await?;
        let created = Instant::now();
        let batch = server.client.create(&file_id).await?;
        let watched = server.client.watch(&batch.id, LOOK_EVERY).await?;
        let taken_ms = (watched.ended - created).as_secs_f64() * 1000.0;
        anyhow::Ok((taken_ms, watched.looks_ms))
    });
    let runs = runs.buffer_unordered(point.clients as usize);
    let runs: Vec<(f64, Vec<f64>)> = runs.try_collect().await?;
    let (taken_ms, looks_ms): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    Ok((taken_ms, looks_ms.concat()))
}

//! What lines cost that come in one by one, as those of real models do: rows, their versions, and
//! bytes. Not timed, so that both engines are measured at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;

use super::{Bench, Section};
use crate::client::content;
use crate::input::Input;
use crate::results::{Figures, Point};
use crate::server::{Meter, Serving, Store};
use crate::world::Upstream;

/// Many tenants with small batches, and one with a large one.
const POINTS: [Point; 2] = [
    Point {
        latency_ms: 2000,
        in_flight: 64,
        lines: 64 * 40,
        tenants: 64,
        ..Point::BASE
    },
    Point {
        latency_ms: 5000,
        in_flight: 64,
        lines: 64 * 20,
        ..Point::BASE
    },
];
/// Of requests, and about that of answers.
const LINE_BYTES: usize = 500;
const ANSWER_TOKENS: u64 = 30;
/// Counts differ little from round to round, and a round takes three minutes.
const FEW_ROUNDS: u32 = 3;
/// The answers of a short run come by so much sooner.
const QUICK: u64 = 10;
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub async fn run(bench: &mut Bench) -> Result<()> {
    for round in 0..bench.rounds.min(FEW_ROUNDS) {
        for mut point in POINTS {
            if bench.quick {
                point.latency_ms /= QUICK;
            }
            let path = bench.world.data.join("slow.jsonl");
            let input = Input::write(&path, point.lines / point.tenants, 0, LINE_BYTES)?;
            let upstream = Upstream {
                latency_ms: point.latency_ms,
                // Real latencies differ; were these the same, answers would come all at once.
                jitter_ms: point.latency_ms / 2,
                answer_tokens: ANSWER_TOKENS,
            };
            let (upstream, upstream_pid) = bench.world.simulate(upstream).await?;
            let mut stores = Vec::new();
            for &engine in &bench.world.engines {
                stores.push((engine, Store::create(&bench.world, engine)?));
            }
            let runs = stores
                .iter()
                .map(|(_, store)| share(store, point, &input, &upstream, upstream_pid));
            let all = try_join_all(runs).await?;
            for ((engine, store), figures) in stores.into_iter().zip(all) {
                store.remove()?;
                bench.add(Section::Slow, engine, point, round, figures)?;
            }
        }
    }
    Ok(())
}

/// Every tenant creates its batch at the same moment, of a file that is there already.
async fn share(
    store: &Store,
    point: Point,
    input: &Input,
    upstream: &str,
    upstream_pid: u32,
) -> Result<Figures> {
    let serving = Serving {
        keys: true,
        ..Serving::new(upstream, point.in_flight)
    };
    let server = store.serve(&serving).await?;
    let keys = store.keys(point.tenants).await?;
    let clients = |client: &crate::client::Client| -> Vec<_> {
        keys.iter()
            .map(|key| client.with_key(key.clone()))
            .collect()
    };
    let uploaders = clients(&server.client);
    let files = try_join_all(uploaders.iter().map(|client| client.upload(input))).await?;
    server.process.stop().await?;
    let holdings_before = store.holdings().await?;

    let server = store.serve(&serving).await?;
    let meter = Meter {
        servers: vec![server.process.pid],
        upstream: upstream_pid,
        store,
    };
    let before = meter.begin()?;
    let clients = clients(&server.client);
    let runs = clients.iter().zip(&files).map(async |(client, file_id)| {
        let batch = client.create(file_id).await?;
        client.watch(&batch.id, LOOK_EVERY).await
    });
    let watched = try_join_all(runs).await?;
    let after = meter.end(Instant::now())?;
    let mut output_bytes = 0;
    for (client, watched) in clients.iter().zip(watched) {
        let file_id = watched.batch.output_file_id.context("there is no output")?;
        output_bytes += client.download(&content(&file_id)).await?;
    }
    server.process.stop().await?;
    let holdings = store.holdings().await?;

    let mut figures = Figures::default();
    let lines = point.lines as f64;
    let per_line = |now: f64, then: f64| (now - then) / lines;
    figures.set(
        "rows_per_line",
        per_line(holdings.rows, holdings_before.rows),
    );
    figures.set(
        "stored_per_line",
        per_line(holdings.bytes, holdings_before.bytes),
    );
    if let (Some(now), Some(then)) = (holdings.row_versions, holdings_before.row_versions) {
        figures.set("row_versions_per_line", per_line(now, then));
    }
    let bytes = (input.bytes * point.tenants + output_bytes) as f64;
    figures.set("written_per_byte", after.written_since(&before) / bytes);
    figures.set("output_bytes_per_line", output_bytes as f64 / lines);
    after.cpu_figures(&before, point.lines, &mut figures);
    Ok(figures)
}

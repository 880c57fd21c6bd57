//! Several servers on one Postgres: with one batch, of which each sends its part, and with small
//! batches, which cost statements.

use anyhow::Result;

use super::small::{self, CLIENTS};
use super::{Bench, Section, in_turn};
use crate::client::LOOK_EVERY;
use crate::life::look_figures;
use crate::procfs::peak_mib;
use crate::results::{Figures, Point, System};
use crate::server::{Meter, Serving, Store};

const REPLICAS: [u64; 2] = [1, 3];
/// Slow enough that the limit is what holds one server back.
const LATENCY_MS: u64 = 100;
/// What one server sends within eight seconds.
const LINES: u64 = 20_480;
const REPLICAS_OF_SMALL: [u64; 3] = [1, 4, 8];
const BATCHES: u64 = 300;
const QUICK_BATCHES: u64 = 50;

pub async fn run(bench: &mut Bench) -> Result<()> {
    if !bench.world.engines.contains(&System::Postgres) {
        return Ok(());
    }
    for round in 0..bench.pairs() {
        for replicas in in_turn(&REPLICAS, round) {
            let point = Point {
                latency_ms: LATENCY_MS,
                in_flight: Point::BASE.in_flight * replicas,
                lines: bench.lines.min(LINES),
                replicas,
                ..Point::BASE
            };
            let figures = share(bench, point).await?;
            bench.add(Section::Replicas, System::Postgres, point, round, figures)?;
        }
    }
    let batches = if bench.quick { QUICK_BATCHES } else { BATCHES };
    for round in 0..bench.rounds {
        for replicas in in_turn(&REPLICAS_OF_SMALL, round) {
            let point = Point {
                replicas,
                ..small::point(CLIENTS, batches)
            };
            for figures in [
                small::load(bench, System::Postgres, point).await?,
                small::count_statements(bench, System::Postgres, point).await?,
            ] {
                bench.add(Section::Replicas, System::Postgres, point, round, figures)?;
            }
        }
    }
    Ok(())
}

async fn share(bench: &mut Bench, point: Point) -> Result<Figures> {
    let input = bench.world.input(point.lines)?;
    let (upstream, upstream_pid) = bench.world.upstream(point.latency_ms).await?;
    let store = Store::create(&bench.world, System::Postgres)?;
    // Servers on one Postgres keep a limit together.
    let serving = Serving::new(&upstream, point.in_flight);
    let servers = store.serve_many(&serving, point.replicas).await?;
    let client = servers[0].client.clone();
    let file_id = client.upload(&input).await?;
    let meter = Meter {
        servers: servers.iter().map(|server| server.process.pid).collect(),
        upstream: upstream_pid,
        store: &store,
    };
    let before = meter.begin()?;
    let batch = client.create(&file_id).await?;
    let watched = client.watch(&batch.id, LOOK_EVERY).await?;
    let after = meter.end(watched.ended)?;
    let mut figures = Figures::default();
    let seconds = (after.at - before.at).as_secs_f64();
    figures.set("lines_per_s", point.lines as f64 / seconds);
    after.cpu_figures(&before, point.lines, &mut figures);
    look_figures(watched.looks_ms, &mut figures)?;
    let mut peak = 0.0;
    for server in servers {
        peak = peak_mib(server.process.pid)?.max(peak);
        server.process.stop().await?;
    }
    figures.set("peak_mib", peak);
    store.remove()?;
    Ok(figures)
}

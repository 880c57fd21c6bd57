//! Peak memory: of a large upload, of a large batch at full speed, of its download.

use anyhow::Result;

use super::{Bench, Section, in_turn};
use crate::input::{Input, LINE_BYTES};
use crate::life::Life;
use crate::procfs::{peak_mib, reset_peak};
use crate::results::{Figures, Point, System};
use crate::server::{Serving, Store};

const UPLOAD_BYTES: u64 = 1_000_000_000;
const LINES: u64 = 1_000_000;
const QUICK_UPLOAD_BYTES: u64 = 40_000_000;
const QUICK_LINES: u64 = 20_000;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let (lines, upload_bytes) = match bench.quick {
        true => (QUICK_LINES, QUICK_UPLOAD_BYTES),
        false => (LINES, UPLOAD_BYTES),
    };
    let point = Point {
        lines,
        latency_ms: 0,
        ..Point::BASE
    };
    let large = bench
        .world
        .input(upload_bytes.div_ceil(LINE_BYTES as u64))?;
    for round in 0..bench.rounds {
        for engine in in_turn(&bench.world.engines, round) {
            let figures = peaks(bench, engine, point, &large).await?;
            bench.add(Section::Memory, engine, point, round, figures)?;
        }
    }
    Ok(())
}

/// Uploads the large file and the batch's own, runs the batch, and reads its output.
async fn peaks(bench: &mut Bench, engine: System, point: Point, large: &Input) -> Result<Figures> {
    let input = bench.world.input(point.lines)?;
    let (upstream, upstream_pid) = bench.world.upstream(point.latency_ms).await?;
    let store = Store::create(&bench.world, engine)?;
    let server = store
        .serve(&Serving::new(&upstream, point.in_flight))
        .await?;
    let pid = server.process.pid;
    let mut figures = Figures::default();
    let mut greatest: f64 = 0.0;
    let mut note = |name, figures: &mut Figures| -> Result<()> {
        let peak = peak_mib(pid)?;
        figures.set(name, peak);
        greatest = greatest.max(peak);
        reset_peak(pid)
    };
    server.client.upload(large).await?;
    let life = Life::begin(&store, &server, upstream_pid, &input)?;
    let file_id = life.upload(&mut figures).await?;
    note("upload_peak_mib", &mut figures)?;
    let batch = life.run(&file_id, &mut figures).await?;
    note("run_peak_mib", &mut figures)?;
    life.download(&batch, &mut figures).await?;
    note("download_peak_mib", &mut figures)?;
    figures.set("peak_mib", greatest);
    server.process.stop().await?;
    store.remove()?;
    Ok(figures)
}

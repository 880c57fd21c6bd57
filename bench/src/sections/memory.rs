//! Peak memory: of a large upload, of a large batch, of its download.

use anyhow::Result;

use super::{Bench, Section};
use crate::input::LINE_BYTES;
use crate::life::Life;
use crate::procfs::{peak_mib, reset_peak};
use crate::results::{Figures, Point};
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
        ..Point::BASE
    };
    let input = bench.world.input(lines)?;
    let large = bench
        .world
        .input(upload_bytes.div_ceil(LINE_BYTES as u64))?;
    let (upstream, upstream_pid) = bench.world.upstream(point.latency_ms).await?;
    for engine in bench.world.engines.clone() {
        let store = Store::create(&bench.world, engine)?;
        let server = store
            .serve(&Serving::new(&upstream, point.in_flight))
            .await?;
        let pid = server.process.pid;
        let mut figures = Figures::default();
        server.client.upload(&large).await?;
        figures.set("upload_peak_mib", peak_mib(pid)?);

        let life = Life::begin(&store, &server, upstream_pid, &input)?;
        let file_id = life.upload(&mut figures).await?;
        reset_peak(pid)?;
        let batch = life.run(&file_id, &mut figures).await?;
        figures.set("run_peak_mib", peak_mib(pid)?);
        reset_peak(pid)?;
        let output_bytes = life.download(&batch, &mut figures).await?;
        figures.set("download_peak_mib", peak_mib(pid)?);
        let peaks = ["upload_peak_mib", "run_peak_mib", "download_peak_mib"];
        let peak = peaks
            .iter()
            .filter_map(|peak| figures.get(peak))
            .fold(0.0, f64::max);
        figures.set("peak_mib", peak);
        life.end(output_bytes, &mut figures)?;
        server.process.stop().await?;
        store.remove()?;
        bench.add(Section::Memory, engine, point, 0, figures)?;
    }
    Ok(())
}

//! How many lines a second go out and come back, and what a line costs.

use anyhow::Result;

use super::{Bench, Section};
use crate::floor::{FloorResult, Library};
use crate::input::compression_factor;
use crate::life::live;
use crate::results::{Figures, Point, System};

/// A run is to last no longer than this where the upstream is what limits it.
const SECONDS: u64 = 8;
/// A short one.
const QUICK_SECONDS: u64 = 1;

pub async fn run(bench: &mut Bench) -> Result<()> {
    for point in points(bench) {
        compare(bench, Section::Dispatch, point).await?;
    }
    Ok(())
}

/// Runs all systems at one point in turn, as often as there are rounds.
pub async fn compare(bench: &mut Bench, section: Section, point: Point) -> Result<()> {
    let mut systems = bench.world.engines.clone();
    systems.extend([System::Floor, System::HyperFloor]);
    for round in 0..bench.rounds {
        // Nobody is always the first.
        systems.rotate_left(1);
        for &system in &systems {
            let figures = match system {
                System::Floor => floor(bench, Library::Reqwest, point).await?,
                System::HyperFloor => floor(bench, Library::Hyper, point).await?,
                engine => live(&mut bench.world, engine, point).await?,
            };
            bench.add(section, system, point, round, figures)?;
        }
    }
    Ok(())
}

async fn floor(bench: &mut Bench, library: Library, point: Point) -> Result<Figures> {
    let FloorResult {
        lines,
        seconds,
        cpu_seconds,
        peak_mib,
    } = bench.world.floor(library, point).await?;
    let mut figures = Figures::default();
    figures.set("run_seconds", seconds);
    figures.set("lines_per_s", lines as f64 / seconds);
    figures.set(
        "server_cpu_ms_per_line",
        cpu_seconds * 1000.0 / lines as f64,
    );
    figures.set("peak_mib", peak_mib);
    let output = bench.world.floor_output();
    figures.set(
        "requests_zstd3",
        compression_factor(&bench.world.input(lines)?.path)?,
    );
    figures.set("answers_zstd3", compression_factor(&output)?);
    figures.set(
        "answer_bytes",
        output.metadata()?.len() as f64 / lines as f64,
    );
    Ok(figures)
}

/// Every latency with every number in flight; of a short run, the base point and two beside it.
fn points(bench: &Bench) -> Vec<Point> {
    let mut points = Vec::new();
    for latency_ms in [0, 10, 100] {
        for in_flight in [64, 256, 1024] {
            if bench.quick && in_flight != 256 {
                continue;
            }
            points.push(point(latency_ms, in_flight, bench));
        }
    }
    points
}

/// With fewer lines where the upstream's latency would make the run long.
fn point(latency_ms: u64, in_flight: u64, bench: &Bench) -> Point {
    let seconds = if bench.quick { QUICK_SECONDS } else { SECONDS };
    let answered = (in_flight * 1000 * seconds).checked_div(latency_ms);
    let lines = bench.lines.min(answered.unwrap_or(u64::MAX));
    Point {
        lines,
        latency_ms,
        in_flight,
        ..Point::BASE
    }
}

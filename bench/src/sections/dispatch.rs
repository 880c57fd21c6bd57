//! How many lines a second go out and come back, and what a line costs.

use std::ops::Range;

use anyhow::Result;

use super::{Bench, Section, in_turn};
use crate::floor::{FloorResult, Library};
use crate::input::compression_factor;
use crate::life::live;
use crate::results::{Figures, Point, System};

/// A run is to last no longer than this where the upstream is what limits it.
const SECONDS: u64 = 6;
/// A short one.
const QUICK_SECONDS: u64 = 1;

/// Latencies and numbers in flight where a ratio to the floor is a target.
const TARGETS: [(u64, u64); 4] = [(0, 64), (0, 256), (10, 256), (100, 256)];

pub async fn run(bench: &mut Bench) -> Result<()> {
    let mut systems = bench.world.engines.clone();
    systems.push(System::Floor);
    for point in points(bench) {
        let (few, many) = (bench.rounds, bench.pairs());
        let mut all = systems.clone();
        // With a slower upstream both loops wait for it alone.
        all.extend((point.latency_ms == 0).then_some(System::HyperFloor));
        compare(bench, Section::Dispatch, point, &all, 0..few).await?;
        if TARGETS.contains(&(point.latency_ms, point.in_flight)) {
            compare(bench, Section::Dispatch, point, &systems, few..many).await?;
        }
    }
    Ok(())
}

/// Runs systems at one point in turn.
pub async fn compare(
    bench: &mut Bench,
    section: Section,
    point: Point,
    systems: &[System],
    rounds: Range<u32>,
) -> Result<()> {
    for round in rounds {
        for system in in_turn(systems, round) {
            let mut figures = match system {
                System::Floor => floor(bench, Library::Reqwest, point).await?,
                System::HyperFloor => floor(bench, Library::Hyper, point).await?,
                engine => live(&mut bench.world, engine, point).await?,
            };
            if let Some(seconds) = figures.get("run_seconds") {
                let ideal_ms = (point.lines * point.latency_ms) as f64 / point.in_flight as f64;
                figures.set("ideal_share", ideal_ms / 1000.0 / seconds);
            }
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
    // All it does lies between its input and its output: the whole is what it takes for the run.
    for name in ["lines_per_s", "whole_lines_per_s"] {
        figures.set(name, lines as f64 / seconds);
    }
    for name in ["server_cpu_ms_per_line", "whole_server_cpu_ms_per_line"] {
        figures.set(name, cpu_seconds * 1000.0 / lines as f64);
    }
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

//! How the figures grow with the number of lines. (The million is in `memory`, too.)

use anyhow::Result;

use super::{Bench, Section, dispatch};
use crate::life::live;
use crate::results::Point;

/// With as many rounds as all.
const FEW: [u64; 2] = [10_000, 200_000];
/// Once: it takes minutes.
const MANY: u64 = 1_000_000;

pub async fn run(bench: &mut Bench) -> Result<()> {
    let rounds = bench.rounds;
    for lines in FEW {
        // The larger ones say as much in fewer rounds.
        bench.rounds = if lines > Point::BASE.lines {
            rounds.min(3)
        } else {
            rounds
        };
        let compared = dispatch::compare(bench, Section::Lines, scaled(bench, lines)).await;
        bench.rounds = rounds;
        compared?;
    }
    let point = scaled(bench, MANY);
    for engine in bench.world.engines.clone() {
        let figures = live(&mut bench.world, engine, point).await?;
        bench.add(Section::Lines, engine, point, 0, figures)?;
    }
    Ok(())
}

/// In proportion to the base point of this run.
fn scaled(bench: &Bench, lines: u64) -> Point {
    Point {
        lines: lines * bench.lines / Point::BASE.lines,
        ..Point::BASE
    }
}

//! How the figures grow with the number of lines. (The million is in `memory`, too; the base point
//! is in `dispatch`.)

use anyhow::Result;

use super::{Bench, Section, dispatch};
use crate::results::{Point, System};

const LINES: [u64; 3] = [10_000, 200_000, 1_000_000];
/// Larger points than the base say as much in fewer rounds.
const FEW_ROUNDS: u32 = 3;
/// From here on, the floor would take minutes to say nothing new.
const MANY: u64 = 1_000_000;

pub async fn run(bench: &mut Bench) -> Result<()> {
    for lines in LINES {
        let rounds = match lines > Point::BASE.lines {
            true => bench.rounds.min(FEW_ROUNDS),
            false => bench.rounds,
        };
        let mut systems = bench.world.engines.clone();
        if lines < MANY {
            systems.push(System::Floor);
        }
        // In proportion to the base point of this run.
        let point = Point {
            lines: lines * bench.lines / Point::BASE.lines,
            ..Point::BASE
        };
        dispatch::compare(bench, Section::Lines, point, &systems, 0..rounds).await?;
    }
    Ok(())
}
